#include "trainers/config/field_path.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <charconv>

#include "trainers/config/config_error.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

const FieldDescriptor& field_of(const Descriptor& message, const std::string& path, const std::string& name,
                                const std::string& origin) {
  if (const FieldDescriptor* field = message.FindFieldByName(name)) return *field;
  throw ConfigError(str(origin, ": ", path.empty() ? "the config" : path, " has no field '", name, "'. ",
                        suggestion(name, field_names(message), "Its fields")),
                    "");
}

[[noreturn]] void fail_no_fields(const std::string& origin, const std::string& path, const FieldDescriptor& field,
                                 const std::string& name) {
  throw ConfigError(str(origin, ": ", path, " has no field '", name, "': it is ", type_name(field), "."),
                    str("Set ", path, " itself."));
}

class Resolver {
 public:
  Resolver(const std::vector<PathStep>& steps, PathUse use, const std::string& origin)
      : steps_(steps), use_(use), origin_(origin) {}

  // Follows steps_[at...] from `message`; `is_one_of_many` behind [*].
  void follow(pb::Message& message, size_t at, const std::string& path, bool is_one_of_many) {
    const PathStep& step = steps_[at];
    const FieldDescriptor& field = field_of(*message.GetDescriptor(), path, step.name, origin_);
    std::string here = child_path(path, step.name);
    bool is_last = at + 1 == steps_.size();
    if (step.index != kNoIndex && !field.is_repeated())
      throw ConfigError(str(origin_, ": ", here, " is not repeated, it takes no index."), "Leave the index out.");
    if (is_last && step.index == kNoIndex) {
      targets_.push_back({&message, &field, kNoIndex, here});
      return;
    }
    if (!is_last && field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
      fail_no_fields(origin_, here, field, steps_[at + 1].name);
    if (field.is_repeated()) follow_elements(message, field, at, here, is_one_of_many);
    else follow_message(message, field, at, here, is_one_of_many);
  }

  std::vector<Target> take(const std::string& text) {
    // Passing over every element would be a silent no-op.
    if (targets_.empty() && use_ == PathUse::write)
      throw ConfigError(str(origin_, ": no element that ", text, " reaches holds '", passed_, "'."),
                        "Name one element by its index to change its kind.");
    return std::move(targets_);
  }

 private:
  void follow_message(pb::Message& message, const FieldDescriptor& field, size_t at, const std::string& here,
                      bool is_one_of_many) {
    const pb::Reflection& reflection = *message.GetReflection();
    bool is_set = reflection.HasField(message, &field);
    const OneofDescriptor* oneof = field.real_containing_oneof();
    bool holds_another = !is_set && oneof && reflection.HasOneof(message, oneof);
    if ((use_ == PathUse::clear && !is_set) || (is_one_of_many && holds_another)) {
      passed_ = field.name();
      find_field(*field.message_type(), {steps_.begin() + static_cast<std::ptrdiff_t>(at) + 1, steps_.end()}, origin_);
      return;
    }
    follow(*reflection.MutableMessage(&message, &field), at + 1, here, is_one_of_many);
  }

  void follow_elements(pb::Message& message, const FieldDescriptor& field, size_t at, const std::string& here,
                       bool is_one_of_many) {
    int size = message.GetReflection()->FieldSize(message, &field);
    int index = steps_[at].index;
    if (size == 0)
      throw ConfigError(str(origin_, ": ", here, " has no elements."), str("Append one with ", here, "+=..."));
    if (index == kNoIndex && size > 1)
      throw ConfigError(str(origin_, ": ", here, " has ", size, " elements; which one is meant?"),
                        str("Write ", here, "[0] to ", here, "[", size - 1, "], or ", here, "[*] for all."));
    if (index >= size)
      throw ConfigError(str(origin_, ": ", here, "[", index, "] does not exist: ", here, " has ", size, " element",
                            size == 1 ? "" : "s", "."),
                        str("Use an index in [0, ", size - 1, "], or append with ", here, "+=..."));
    bool is_all = index == kAllElements;
    int first = is_all ? 0 : std::max(index, 0), last = is_all ? size - 1 : first;
    for (int i = first; i <= last; ++i) {
      std::string element = element_path(here, i);
      if (at + 1 == steps_.size()) targets_.push_back({&message, &field, i, element});
      else
        follow(*message.GetReflection()->MutableRepeatedMessage(&message, &field, i), at + 1, element,
               is_one_of_many || is_all);
    }
  }

  const std::vector<PathStep>& steps_;
  PathUse use_;
  const std::string& origin_;
  std::vector<Target> targets_;
  std::string passed_;
};

}  // namespace

std::vector<PathStep> parse_path(std::string_view text, const std::string& origin) {
  auto fail_path = [&](std::string_view why) {
    throw ConfigError(str(origin, ": '", text, "' is not a path: ", why, "."),
                      "Write it like model.mixer[0].softmax.heads.");
  };
  std::vector<PathStep> steps;
  size_t at = 0;
  while (true) {
    size_t end = at;
    while (end < text.size() && is_name_char(text[end])) ++end;
    if (end == at) fail_path(str("a field name is missing at character ", at + 1));
    PathStep step{std::string(text.substr(at, end - at)), kNoIndex};
    at = end;
    if (at < text.size() && text[at] == '[') {
      size_t close = text.find(']', at);
      if (close == std::string_view::npos) fail_path("']' is missing");
      std::string_view index = text.substr(at + 1, close - at - 1);
      auto [stop, code] = std::from_chars(index.data(), index.data() + index.size(), step.index);
      if (index == "*") step.index = kAllElements;
      else if (code != std::errc() || stop != index.data() + index.size() || step.index < 0)
        fail_path(str("the index '", index, "' is neither a number nor *"));
      at = close + 1;
    }
    steps.push_back(std::move(step));
    if (at == text.size()) return steps;
    if (text[at] != '.') fail_path(str("unexpected '", text[at], "' at character ", at + 1));
    ++at;
  }
}

std::vector<Target> resolve(pb::Message& message, const std::vector<PathStep>& steps, PathUse use,
                            const std::string& origin) {
  Resolver resolver(steps, use, origin);
  resolver.follow(message, 0, "", false);
  return resolver.take(origin);
}

const FieldDescriptor& find_field(const Descriptor& message, const std::vector<PathStep>& steps,
                                  const std::string& origin) {
  const Descriptor* type = &message;
  const FieldDescriptor* field = nullptr;
  std::string path;
  for (const PathStep& step : steps) {
    if (!type) fail_no_fields(origin, path, *field, step.name);
    field = &field_of(*type, path, step.name, origin);
    path = child_path(path, step.name);
    type = field->message_type();
  }
  return *field;
}

}  // namespace weft::config
