#include "trainers/config/options_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"

namespace weft::train {

namespace pb = google::protobuf;
using config::FieldDescriptor;

void clear_presets(pb::Message& message) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->message_type()) {
      for (int i = 0; field->is_repeated() && i < reflection.FieldSize(message, field); ++i)
        clear_presets(*reflection.MutableRepeatedMessage(&message, field, i));
      if (!field->is_repeated()) clear_presets(*reflection.MutableMessage(&message, field));
    } else if (const std::string preset = config::facts(*field).preset; !preset.empty()) {
      std::unique_ptr<pb::Message> other(message.New());
      config::set_scalar(*other, *field, -1, preset, "config schema", field->name());
      if (config::scalar_text(*other, *field, -1) == config::scalar_text(message, *field, -1))
        reflection.ClearField(&message, field);
    }
  }
}

std::string text_of_message(const pb::Message& message) {
  std::string out;
  pb::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  printer.SetUseShortRepeatedPrimitives(true);
  printer.PrintToString(message, &out);
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

std::string config_text(const MixerRow& row) {
  constexpr std::string_view kResidual = "residual.";
  for (const ResidualRow& residual : residual_table())
    if (row.name == str(kResidual, residual.name))
      return text_of_message(residual_message(residual.make.target<RoutedResidualOptions>()));
  for (const MixerRow& known : mixer_table())
    if (row.name == known.name) return text_of_message(mixer_message(options_of(known)));
  // A program's own, in the place where a config names it.
  const size_t dot = row.name.find('.');
  const std::string kind = row.name.substr(0, dot);
  const bool is_model_part = kind == "norm" || kind == "ffn" || kind == "residual";
  const bool is_softmax_part = kind == "heads" || kind == "attention";
  config::Custom custom;
  custom.set_type(is_model_part || is_softmax_part ? row.name.substr(dot + 1) : row.name);
  for (const auto& [key, value] : row.numbers) {
    custom.add_number()->set_key(key);
    custom.mutable_number(custom.number_size() - 1)->set_value(value);
  }
  for (const auto& [key, value] : row.texts) {
    custom.add_text()->set_key(key);
    custom.mutable_text(custom.text_size() - 1)->set_value(value);
  }
  const std::string fields = str(" { ", text_of_message(custom), " }");
  if (is_model_part) return str(kind, " { custom", fields, " }");
  if (is_softmax_part) return str("softmax { heads: 4 custom_", kind, fields, " }");
  return str("custom", fields);
}

}  // namespace weft::train
