#include "trainers/config/schema.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <cmath>
#include <cstdlib>

#include "trainers/config/config_error.h"
#include "trainers/config/schema.pb.h"

namespace weft::config {

// The serialized FileDescriptorSet of config.proto, compiled in.
extern const unsigned char descriptor_set[];
extern const size_t descriptor_set_size;

namespace {

namespace pb = google::protobuf;

// Generated code drops comments, so the embedded descriptors get a pool of their own.
const pb::DescriptorPool& commented_pool() {
  static const pb::DescriptorPool& pool = *[] {
    auto* made = new pb::DescriptorPool;  // lives as long as the program
    pb::FileDescriptorSet files;
    bool is_read = files.ParseFromArray(descriptor_set, static_cast<int>(descriptor_set_size));
    WEFT_CHECK(is_read, "config schema: the embedded descriptors cannot be read", "build again from clean sources");
    for (const pb::FileDescriptorProto& file : files.file()) made->BuildFile(file);
    return made;
  }();
  return pool;
}

std::string one_line(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '\n') c = ' ';
    if (c == ' ' && (out.empty() || out.back() == ' ')) continue;
    out += c;
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

template <class D>
std::string comment_of(const D* commented) {
  pb::SourceLocation location;
  if (!commented || !commented->GetSourceLocation(&location)) return "";
  return one_line(location.leading_comments.empty() ? location.trailing_comments : location.leading_comments);
}

Range parse_range(const std::string& text) {
  Range range;
  size_t comma = text.find(',');
  if (text.size() < 5 || comma == std::string::npos) return range;
  range.low = std::strtod(text.c_str() + 1, nullptr);
  range.high = std::strtod(text.c_str() + comma + 1, nullptr);
  range.has_low = text.front() == '[';
  range.has_high = text.back() == ']';
  range.text = text;
  return range;
}

}  // namespace

bool Range::contains(double value) const {
  if (text.empty()) return true;
  if (std::isnan(value)) return false;
  return (has_low ? value >= low : value > low) && (has_high ? value <= high : value < high);
}

Facts facts(const FieldDescriptor& field) {
  const pb::FieldOptions& options = field.options();
  Facts out;
  out.preset = options.GetExtension(preset);
  out.unset = options.GetExtension(unset);
  out.unit = options.GetExtension(unit);
  out.range = parse_range(options.GetExtension(range));
  out.is_required = options.GetExtension(required);
  out.is_path = options.GetExtension(is_path);
  return out;
}

const FieldDescriptor* default_choice(const OneofDescriptor& oneof) {
  const std::string& name = oneof.options().GetExtension(choice);
  return name.empty() ? nullptr : oneof.containing_type()->FindFieldByName(name);
}

std::string type_name(const FieldDescriptor& field) {
  std::string name;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: name = "bool"; break;
    case FieldDescriptor::CPPTYPE_STRING: name = facts(field).is_path ? "path" : "text"; break;
    case FieldDescriptor::CPPTYPE_ENUM: name = join(value_names(*field.enum_type()), " | "); break;
    case FieldDescriptor::CPPTYPE_MESSAGE: name = "message"; break;
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE: name = "number"; break;
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64: name = "integer"; break;
  }
  return field.is_repeated() ? "list of " + name + "s" : name;
}

std::string comment(const FieldDescriptor& field) {
  const Descriptor* message = commented_pool().FindMessageTypeByName(field.containing_type()->full_name());
  return message ? comment_of(message->FindFieldByNumber(field.number())) : "";
}

std::string comment(const Descriptor& message) {
  return comment_of(commented_pool().FindMessageTypeByName(message.full_name()));
}

std::vector<std::string> field_names(const Descriptor& message) {
  std::vector<std::string> out;
  for (int i = 0; i < message.field_count(); ++i) out.push_back(message.field(i)->name());
  return out;
}

std::vector<std::string> value_names(const EnumDescriptor& type) {
  std::vector<std::string> out;
  for (int i = 0; i < type.value_count(); ++i)
    if (type.value(i)->number() != 0) out.push_back(type.value(i)->name());
  return out;
}

}  // namespace weft::config
