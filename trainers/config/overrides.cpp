#include "trainers/config/overrides.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <memory>

#include "trainers/config/config.pb.h"
#include "trainers/config/config_error.h"
#include "trainers/config/field_path.h"
#include "trainers/config/origins.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"
#include "trainers/config/text_reader.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

struct Override {
  std::string argument;  // as written, the origin of what it sets
  std::vector<PathStep> path;
  std::string value;
  bool is_append = false;
};

Override parse_override(const std::string& argument) {
  size_t equals = argument.find('=');
  if (equals == std::string::npos || equals == 0)
    throw ConfigError(str(argument, ": not of the form path=value."), "Write for example train.tokens=2M.");
  Override out;
  out.argument = argument;
  out.is_append = argument[equals - 1] == '+';
  out.path = parse_path(std::string_view(argument).substr(0, equals - (out.is_append ? 1 : 0)), argument);
  out.value = argument.substr(equals + 1);
  return out;
}

bool is_message(const FieldDescriptor& field) { return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE; }
bool is_wrapped(const std::string& text, char open, char close) {
  return text.size() >= 2 && text.front() == open && text.back() == close;
}

class Applier {
 public:
  Applier(const Override& what, const std::string& folder, Origins* origins)
      : what_(what), folder_(folder), origins_(origins) {}

  void apply(const Target& target) {
    const FieldDescriptor& field = *target.field;
    bool is_whole_list = field.is_repeated() && target.index == kNoIndex;
    if (what_.is_append) return append(target);
    if (what_.value.empty()) return clear(target);
    if (is_whole_list && !is_wrapped(what_.value, '[', ']')) return set_only_element(target);
    if (is_whole_list) return set_list(target);
    if (is_message(field)) return set_message(target);
    set_value(target, what_.value);
  }

 private:
  static const pb::Reflection& reflection(const Target& target) { return *target.parent->GetReflection(); }

  void note(const std::string& path) const {
    if (!origins_) return;
    origins_->forget(path);
    origins_->set(path, what_.argument);
  }

  void set_value(const Target& target, const std::string& value) {
    set_scalar(*target.parent, *target.field, target.index, value, what_.argument, target.path);
    if (facts(*target.field).is_path) {
      std::string path = reflection(target).GetString(*target.parent, target.field);
      reflection(target).SetString(target.parent, target.field, resolve_path(path, folder_));
    }
    note(target.path);
  }

  void append(const Target& target) {
    if (!target.field->is_repeated() || target.index != kNoIndex)
      throw ConfigError(str(what_.argument, ": ", target.path, " is not a list, += does not fit."),
                        str("Write ", target.path, "=..."));
    int index = reflection(target).FieldSize(*target.parent, target.field);
    Target element = target;
    element.path = element_path(target.path, index);
    if (is_message(*target.field)) {
      pb::Message* added = reflection(target).AddMessage(target.parent, target.field);
      read_message(*added, element.path);
    } else {
      set_scalar(*target.parent, *target.field, -1, what_.value, what_.argument, target.path);
    }
    note(element.path);
  }

  // Without an index a list with one element stands for that element.
  void set_only_element(const Target& target) {
    int size = reflection(target).FieldSize(*target.parent, target.field);
    if (size != 1)
      throw ConfigError(str(what_.argument, ": ", target.path, " is a list of ", size, " elements."),
                        size == 0 ? str("Append with ", target.path, "+=", what_.value,
                                        " or give the whole list: ", target.path, "=[...].")
                                  : str("Name an element, ", target.path, "[0] to ", target.path, "[", size - 1,
                                        "], or give the whole list: ", target.path, "=[...]."));
    apply({target.parent, target.field, 0, element_path(target.path, 0)});
  }

  void set_list(const Target& target) {
    std::unique_ptr<pb::Message> fresh(target.parent->New());
    size_t dot = target.path.rfind('.');
    std::string around = dot == std::string::npos ? "" : target.path.substr(0, dot);
    read_text(*fresh, target.field->name() + ": " + what_.value, {what_.argument, false, around, folder_}, nullptr);
    reflection(target).SwapFields(target.parent, fresh.get(), {target.field});
    note(target.path);
  }

  void set_message(const Target& target) {
    const pb::Reflection& fields = reflection(target);
    pb::Message* message = target.index == kNoIndex
                               ? fields.MutableMessage(target.parent, target.field)
                               : fields.MutableRepeatedMessage(target.parent, target.field, target.index);
    message->Clear();
    read_message(*message, target.path);
    note(target.path);
  }

  void read_message(pb::Message& message, const std::string& path) {
    if (what_.value.starts_with('{') && !what_.value.ends_with('}'))
      throw ConfigError(str(what_.argument, ": the '{' of ", path, " is not closed."), "Add the missing '}'.");
    if (!is_wrapped(what_.value, '{', '}'))
      throw ConfigError(str(what_.argument, ": ", path, " is a message with the fields ",
                            join(field_names(*message.GetDescriptor()), ", "), "."),
                        str("Set one of them, ", path, ".FIELD=..., or all, ", path, "={...}."));
    read_text(message, what_.value.substr(1, what_.value.size() - 2), {what_.argument, false, path, folder_}, nullptr);
  }

  void clear(const Target& target) {
    const pb::Reflection& fields = reflection(target);
    if (target.index == kNoIndex) {
      fields.ClearField(target.parent, target.field);
      note(target.path);
      return;
    }
    int size = fields.FieldSize(*target.parent, target.field);
    for (int i = target.index; i + 1 < size; ++i) fields.SwapElements(target.parent, target.field, i, i + 1);
    fields.RemoveLast(target.parent, target.field);
    size_t bracket = target.path.rfind('[');
    note(target.path.substr(0, bracket));  // the elements behind it have moved
  }

  const Override& what_;
  const std::string& folder_;
  Origins* origins_;
};

std::unique_ptr<pb::Message> made(const Descriptor& type) {
  return std::unique_ptr<pb::Message>(pb::MessageFactory::generated_factory()->GetPrototype(&type)->New());
}

// "{path: \"a.txt\"}", or a list of such.
std::string value_text(const pb::Message& message, const FieldDescriptor* list) {
  pb::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  if (!list) {
    printer.PrintToString(message, &text);
    return str("{", text, "}");
  }
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < reflection.FieldSize(message, list); ++i)
    text += str(i ? "," : "", value_text(reflection.GetRepeatedMessage(message, list, i), nullptr));
  return str("[", text, "]");
}

// The text of a message, or of a list of messages, with its paths made absolute.
std::string resolved_text(const Override& what, const FieldDescriptor& field, const std::string& folder) {
  const TextSource source{what.argument, false, "", folder};
  if (is_wrapped(what.value, '[', ']')) {
    const std::unique_ptr<pb::Message> around = made(*field.containing_type());
    read_text(*around, field.name() + ": " + what.value, source, nullptr);
    return value_text(*around, &field);
  }
  const std::unique_ptr<pb::Message> message = made(*field.message_type());
  if (!is_wrapped(what.value, '{', '}')) return what.value;
  read_text(*message, what.value.substr(1, what.value.size() - 2), source, nullptr);
  return value_text(*message, nullptr);
}

}  // namespace

std::string with_absolute_paths(const std::string& argument, const std::string& folder) {
  try {
    const Override what = parse_override(argument);
    if (what.value.empty()) return argument;
    const FieldDescriptor& field = find_field(*Experiment::descriptor(), what.path, argument);
    const std::string path = argument.substr(0, argument.size() - what.value.size());  // with its = or +=
    if (is_message(field)) {
      const std::string here = resolved_text(what, field, folder);
      return here == resolved_text(what, field, folder + "/elsewhere") ? argument : path + here;
    }
    if (!facts(field).is_path) return argument;
    const std::unique_ptr<pb::Message> around = made(*field.containing_type());
    set_scalar(*around, field, kNoIndex, what.value, argument, argument);
    return path + resolve_path(around->GetReflection()->GetString(*around, &field), folder);
  } catch (const ConfigError&) { return argument; }  // whoever applies it says what is wrong with it
}

void apply_override(pb::Message& message, const std::string& argument, const std::string& folder, Origins* origins) {
  Override what = parse_override(argument);
  bool is_clear = what.value.empty() && !what.is_append;
  std::vector<Target> targets = resolve(message, what.path, is_clear ? PathUse::clear : PathUse::write, argument);
  Applier applier(what, folder, origins);
  // Backwards, so that removing elements does not move those that are still to be removed.
  for (auto target = targets.rbegin(); target != targets.rend(); ++target) applier.apply(*target);
}

}  // namespace weft::config
