#include "trainers/config/preset.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <memory>

#include "trainers/config/check.h"
#include "trainers/config/options_text.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

constexpr std::string_view kResidual = "residual.";

// What a preset is sized by. `heads`: the config's own number of query heads, 0 if it has none.
struct Sizes {
  int64_t dim, context, heads;
};

// As many heads as give them a width of 64, or of a smaller power of two where that gives at least two heads and a multiple of `unit`.
int64_t default_heads(int64_t dim, int64_t unit) {
  for (int64_t width = 64; width >= 2; width /= 2)
    if (dim % width == 0 && dim / width >= 2 && dim / width % unit == 0) return dim / width;
  return 0;
}

// Of whose point fewer key and value heads are a part; the other rows with kv_heads have them so that the suite meets both.
bool is_grouped(std::string_view row) {
  return row == "gqa" || row == "mqa" || row == "nexus_grouped" || row == "gsa_grouped";
}

// The table keeps numbers small so that its tests are fast. Here they grow with the model, or are those of the paper.
class Resizer {
 public:
  Resizer(const MixerRow& row, const Sizes& sizes) : row_(row), sizes_(sizes) {}

  // 0 heads: the model's width has none that fit.
  int64_t heads(int64_t unit) const { return sizes_.heads > 0 ? sizes_.heads : default_heads(sizes_.dim, unit); }
  int64_t window(int64_t of_row) const { return of_row > 0 ? std::max<int64_t>(sizes_.context / 4, 1) : 0; }

  template <class Options>
  void operator()(Options& o) const {
    if constexpr (requires { o.relational_heads; }) {
      o.heads = o.relational_heads = sizes_.heads > 0 ? sizes_.heads : heads(2) / 2;
      o.relations = 0;
      o.symbols = Options().symbols;
    } else if constexpr (requires { o.heads; }) {
      if (o.heads > 0) resize_heads(o);
    } else {
      o.head_dim = 0;
      const int64_t count = std::max<int64_t>(heads(1), 1);
      if constexpr (requires { o.query_rank; }) {
        o.experts = std::max<int64_t>(count, o.active);
        o.hidden = 0;
        o.query_rank = Options().query_rank;
      } else {
        o.experts = 2 * count;
        o.active = count;
      }
      o.is_dense = false;
    }
    if constexpr (requires { o.state_dim; }) o.state_dim = Options().state_dim, o.heads *= 2;  // of the inner width
    if constexpr (requires { o.slots; }) o.slots = Options().slots;
    if constexpr (requires { o.gate_rank; }) o.gate_rank = Options().gate_rank;
    if constexpr (requires { o.kernel; })
      if (o.kernel > 0 && Options().kernel > 0)
        o.kernel = Options().kernel;  // where it is off by default, the row has the paper's
    if constexpr (requires { o.key_heads; }) o.key_heads = o.head_dim = o.value_dim = 0;
    if constexpr (std::is_same_v<Options, LinearAttentionOptions>) {
      constexpr int64_t kWidth = 16;  // of FAST, whose features are as many as the square of it
      const bool is_fast = o.feature_map == weft::FeatureMap::taylor2 && sizes_.heads == 0;
      if (is_fast && sizes_.dim % kWidth == 0) o.heads = sizes_.dim / kWidth;
    }
    if constexpr (std::is_same_v<Options, HymbaOptions>) o.state = 0, o.meta = o.meta > 0 ? 128 : 0;
    if constexpr (std::is_same_v<Options, RatOptions>) o.groups = 0, o.chunk = Options().chunk;
    if constexpr (requires { o.softmax_heads; }) {
      o.head_dim = o.value_dim = o.softmax_heads = 0;
      o.chunk = Options().chunk;
    }
    if constexpr (std::is_same_v<Options, FluxOptions>) {
      o.hidden = Options().hidden;
      o.prompt = std::max<int64_t>(window(1) / 2, 1);
    }
    if constexpr (std::is_same_v<Options, HySparseOptions>)
      o.sparse = Options().sparse, o.block = Options().block, o.blocks = Options().blocks;
    if constexpr (requires { o.window; }) o.window = window(o.window);
    if constexpr (std::is_same_v<Options, MirasOptions>) o.chunk = Options().chunk;
    if constexpr (std::is_same_v<Options, TlinformerOptions>)
      o.depth = Options().depth, o.rows = o.window, o.hidden = 0;
    if constexpr (requires { o.q_rank; }) o.q_rank = o.q_rank > 0 ? std::max<int64_t>(sizes_.dim / 2, 1) : 0;
    if constexpr (std::is_same_v<Options, NeuralOptions>) o.hidden = 0;
    if constexpr (requires { o.buckets; }) o.buckets = Options().buckets, o.max_distance = Options().max_distance;
    if constexpr (requires { o.query_kernel; })
      o.query_kernel = Options().query_kernel, o.key_kernel = Options().key_kernel;
  }

 private:
  template <class Options>
  void resize_heads(Options& o) const {
    const int64_t before = o.heads;
    int64_t each = 1, unit = 1;
    if constexpr (requires { o.kv_heads; }) {
      if (is_grouped(row_.name)) unit = each = o.kv_heads > 0 ? before / o.kv_heads : 1;
    }
    auto grown = [&](int64_t count) { return count * o.heads / before; };
    if constexpr (std::is_same_v<Options, SoftmaxOptions>) {
      if (o.components > 0 || o.head_mixture.active > 0) unit = before;
    }
    if constexpr (requires { o.group; }) unit = o.group > 1 ? before : unit;
    o.heads = heads(unit);
    if constexpr (requires { o.kv_heads; })
      o.kv_heads = each == 1 ? 0 : row_.name == "mqa" ? 1 : std::max<int64_t>(o.heads / each, 1);
    if constexpr (requires { o.group; }) o.group = o.group > 1 ? std::max<int64_t>(grown(o.group), 1) : o.group;
    if constexpr (std::is_same_v<Options, SoftmaxOptions>) {
      o.components = grown(o.components);
      o.head_mixture.active = grown(o.head_mixture.active);
      o.head_mixture.shared = grown(o.head_mixture.shared);
      if (o.head_mixture.path == weft::HeadPath::dense) o.head_mixture.path = weft::HeadPath::automatic;
      if (o.softcap > 0) o.softcap = 50;  // Gemma 2
      if (o.dropout > 0) o.dropout = 0.1;
      o.affine.initial_mean = AffineOptions().initial_mean;
    }
  }

  const MixerRow& row_;
  const Sizes& sizes_;
};

// heads of the message that stands beside the preset.
int64_t heads_of(const pb::Message& mixer) {
  const pb::Reflection& reflection = *mixer.GetReflection();
  const FieldDescriptor* kind = reflection.GetOneofFieldDescriptor(mixer, mixer.GetDescriptor()->oneof_decl(0));
  if (!kind) return 0;
  const pb::Message& inner = reflection.GetMessage(mixer, kind);
  const FieldDescriptor* heads = inner.GetDescriptor()->FindFieldByName("heads");
  if (!heads || !inner.GetReflection()->HasField(inner, heads)) return 0;
  return std::max<int64_t>(inner.GetReflection()->GetInt64(inner, heads), 0);
}

// `over` on `base`: fields that it sets win, its lists replace those of the base.
void put_over(const pb::Message& over, pb::Message& base) {
  const pb::Reflection& reflection = *over.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(over, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->is_repeated() || !field->message_type()) base.GetReflection()->ClearField(&base, field);
    else put_over(reflection.GetMessage(over, field), *reflection.MutableMessage(&base, field));
  }
  std::unique_ptr<pb::Message> lists_and_numbers(over.New());
  lists_and_numbers->CopyFrom(over);
  for (const FieldDescriptor* field : fields)
    if (!field->is_repeated() && field->message_type()) reflection.ClearField(lists_and_numbers.get(), field);
  base.MergeFrom(*lists_and_numbers);
}

std::vector<std::string> names_of(bool is_residual) {
  std::vector<std::string> names;
  if (is_residual)
    for (const ResidualRow& row : residual_table()) names.push_back(row.name);
  else
    for (const MixerRow& row : mixer_table()) names.push_back(row.name);
  return names;
}

// The preset's message in the place of `message`; `what` is where it stands.
template <class Message>
void take_in(Loaded& config, Message& message, Message base, const std::string& what) {
  const std::string name = message.preset(), path = child_path(what, "preset");
  const pb::OneofDescriptor* kinds = message.GetDescriptor()->oneof_decl(0);
  const FieldDescriptor *own = message.GetReflection()->GetOneofFieldDescriptor(message, kinds),
                        *preset = base.GetReflection()->GetOneofFieldDescriptor(base, kinds);
  if (own && own != preset)
    refuse(config, path, str("is \"", name, "\", a row of ", preset->name(), ", beside ", own->name(), "."),
           str("Set fields of ", preset->name(), " beside it, or leave one of the two out."));
  message.clear_preset();
  put_over(message, base);
  const std::string origin = str(config.origins.of(path), " (preset ", name, ")");
  for (const Difference& d : differences(message, base))
    if (!d.b.empty()) config.origins.set(child_path(what, d.path), origin);
  config.presets.push_back({path, name});
  message = std::move(base);
}

void check_name(const Loaded& config, const std::string& path, const std::string& name, bool is_residual) {
  std::vector<std::string> names = names_of(is_residual);
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  refuse(config, path, str("is \"", name, "\", which is no row of docs/mixers.md. ", suggestion(name, names, "Rows")),
         str("`weft config --explain ", is_residual ? "model.residual.preset" : "model.mixer.preset", "` lists them."));
}

}  // namespace

void expand_presets(Loaded& config) {
  Model& model = *config.experiment.mutable_model();
  for (int i = 0; i < model.mixer_size(); ++i) {
    Mixer& mixer = *model.mutable_mixer(i);
    if (!mixer.has_preset()) continue;
    const std::string what = element_path("model.mixer", i), path = child_path(what, "preset");
    check_name(config, path, mixer.preset(), false);
    if (model.dim() < 1) return;  // check_fields() says so
    const MixerRow& row = mixer_row(mixer.preset());
    Sizes sizes{model.dim(), model.context(), heads_of(mixer)};
    MixerOptions options = options_of(row);
    auto has_heads = [&] {
      auto has_some = [](const auto& o) {
        if constexpr (requires { o.heads; }) return o.heads > 0;
        else return true;
      };
      return std::visit(has_some, options);
    };
    const bool wants_heads = has_heads();
    std::visit(Resizer(row, sizes), options);
    if (wants_heads && !has_heads())
      refuse(config, path, str("is \"", row.name, "\", and model.dim ", model.dim(), " has no number of heads for it."),
             "Set heads and head_dim beside it, or another model.dim.");
    take_in(config, mixer, train::mixer_message(options), what);
  }
  if (!model.has_residual() || !model.residual().has_preset()) return;
  Residual& residual = *model.mutable_residual();
  check_name(config, "model.residual.preset", residual.preset(), true);
  for (const ResidualRow& row : residual_table()) {
    if (row.name != residual.preset()) continue;
    const auto* found = row.make.target<RoutedResidualOptions>();
    RoutedResidualOptions o = found ? *found : RoutedResidualOptions();
    o.blocks = std::clamp<int64_t>(num_sublayers(model), 1, 8);
    o.window = o.window > 0 ? 8 : 0;  // as in the paper
    take_in(config, residual, train::residual_message(found ? &o : nullptr), "model.residual");
    return;
  }
}

std::string preset_list(bool is_residual) {
  std::string out = "presets:\n";
  auto add = [&](const std::string& name, std::string_view equation) {
    out += str("  ", name, std::string(name.size() < 20 ? 20 - name.size() : 1, ' '), equation, "\n");
  };
  if (is_residual)
    for (const ResidualRow& row : residual_table()) add(row.name, row.equation);
  else
    for (const MixerRow& row : mixer_table()) add(row.name, row.equation);
  return out;
}

}  // namespace weft::config
