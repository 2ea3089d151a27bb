// B batch, T tokens, D model width, V vocabulary.
#include "weft/models/language_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "src/models/blocks.h"
#include "weft/autograd/ranks.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"

namespace weft {

namespace {

double out_std(const LanguageModelOptions& o) {
  const double std = o.out_std.value_or(o.std);
  return o.scales_init_by_depth ? std / std::sqrt(static_cast<double>(o.num_sublayers())) : std;
}

void check_init(const LanguageModelOptions& o) {
  const std::pair<const char*, std::optional<double>> stds[] = {
      {"std", o.std}, {"embedding_std", o.embedding_std}, {"out_std", o.out_std}};
  for (const auto& [name, std] : stds)
    WEFT_CHECK(!std || (std::isfinite(*std) && *std > 0), str("language model: ", name, " is ", *std),
               "give a finite standard deviation above 0");
}

LanguageModelOptions checked(LanguageModelOptions o) {
  WEFT_CHECK(o.vocab >= 1 && o.dim >= 1 && o.layers >= 1 && o.context >= 1,
             str("language model: vocab ", o.vocab, ", dim ", o.dim, ", layers ", o.layers, ", context ", o.context),
             "all must be 1 or more");
  WEFT_CHECK(!o.mixers.empty(), "language model: no mixer", "name at least one");
  if (o.pattern.empty())
    for (size_t i = 0; i < o.mixers.size(); ++i) o.pattern.push_back(static_cast<int>(i));
  for (int index : o.pattern)
    WEFT_CHECK(0 <= index && index < static_cast<int>(o.mixers.size()),
               str("language model: pattern names mixer ", index, " of ", o.mixers.size()),
               str("use 0 .. ", o.mixers.size() - 1));
  check_init(o);
  WEFT_CHECK(o.has_ffn || !o.own_ffn, "language model: a feed-forward network of one's own, and has_ffn is false",
             "leave own_ffn out, or let has_ffn be true");
  o.ffn.dim = o.dim;
  o.ffn.layers = o.layers;
  o.ffn.std = o.std;
  o.ffn.out_std = out_std(o);
  return o;
}

bool has_umoe_ffn(const LanguageModelOptions& o) { return o.has_ffn && !o.own_ffn && o.ffn.kind == FfnKind::umoe; }

// How many layers directly before this one have the same mixer.
int64_t place_in_run(const LanguageModelOptions& o, int64_t layer) {
  auto mixer_of = [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    return o.pattern.empty() ? static_cast<int>(at % o.mixers.size()) : o.pattern[at % o.pattern.size()];
  };
  int64_t place = 0;
  while (place < layer && mixer_of(layer - place - 1) == mixer_of(layer)) ++place;
  return place;
}

}  // namespace

MixerArgs mixer_args(const LanguageModelOptions& o, int64_t layer) {
  return {.dim = o.dim,
          .context = o.context,
          .layer = layer,
          .layers = o.layers,
          .rotary = o.position == PositionKind::rotary ? std::optional(o.rotary) : std::nullopt,
          .norm_eps = o.norm.eps,
          .std = o.std,
          .out_std = out_std(o),
          .numbers = {{"place_in_run", static_cast<double>(place_in_run(o, layer))}}};
}

LanguageModel::LanguageModel(const LanguageModelOptions& options, Rng rng)
    : options_(checked(options)),
      embedding_(options_.vocab, options_.dim, rng["embedding"], options_.embedding_std.value_or(options_.std)),
      norm_(options_.dim, options_.norm, options_.own_norm, rng["norm"]) {
  set_name("model");
  name_parts({{"embedding", embedding_}});
  if (options_.position == PositionKind::learned) {
    positions_ = std::make_unique<Embedding>(options_.context, options_.dim, rng["positions"], options_.std);
    name_part({"positions", *positions_});
  }
  const auto of_model = std::make_shared<ModelParams>();
  for (int64_t i = 0; i < options_.layers; ++i) {
    int mixer = options_.pattern[static_cast<size_t>(i) % options_.pattern.size()];
    blocks_.push_back(std::make_unique<Block>(options_, options_.mixers[static_cast<size_t>(mixer)], i, of_model,
                                              rng["layers"][static_cast<uint64_t>(i)]));
    name_part({str("layers.", i), *blocks_.back()});
  }
  add_fixed_sequence(rng);
  PartWatch watch;
  residual_ = options_.residual(
      {.dim = options_.dim, .sublayers = options_.num_sublayers(), .norm_eps = options_.norm.eps}, rng["residual"]);
  WEFT_CHECK(residual_, "residual stream: its maker returned nothing", "let it return a part");
  watch.check_named(*residual_, "residual stream");
  name_part({"residual", *residual_});
  name_part({"norm", norm_});
  if (!options_.has_tied_embedding) {
    head_ = std::make_unique<Linear>(options_.dim, options_.vocab, rng["head"], LinearOptions{.std = options_.std});
    name_part({"head", *head_});
  }
  add_adapters(*this, options_.adapters, rng["adapters"]);
}

LanguageModel::~LanguageModel() = default;

// Saved with the model, so that a trained one does not depend on the text.
void LanguageModel::add_fixed_sequence(Rng rng) {
  for (const auto& block : blocks_) {
    FixedSequence kind = block->mixer->fixed_sequence();
    if (kind == FixedSequence::none) continue;
    WEFT_CHECK(fixed_kind_ == FixedSequence::none || fixed_kind_ == kind,
               "language model: mixers read different fixed sequences", "use one kind");
    fixed_kind_ = kind;
  }
  if (fixed_kind_ == FixedSequence::none) return;
  const int64_t S = options_.context;
  if (fixed_kind_ == FixedSequence::random) {
    fixed_ = std::make_unique<Buffer>(normal_init({S, options_.dim}, rng["fixed_sequence"], 0.02));
  } else {
    const auto& ids = options_.fixed_text;
    WEFT_CHECK(static_cast<int64_t>(ids.size()) >= S,
               str("language model: a fixed text of ", ids.size(), " ids for a context of ", S),
               "give LanguageModelOptions::fixed_text at least `context` ids");
    std::vector<float> numbers(ids.begin(), ids.begin() + S);
    fixed_ = std::make_unique<Buffer>(
        weft::to(Tensor::from(std::span<const float>(numbers), {S}), default_device()).value());
  }
  name_part({"fixed_sequence", *fixed_});
}

// Embedded tokens, of the batch or a fixed sequence, as the first layer reads them.
Var LanguageModel::at_positions(const Var& x_BTD, const Tokens& tokens) const {
  return positions_ ? x_BTD + (*positions_)(tokens.document_positions()) : x_BTD;
}

namespace {

// Tokens first .. first + count - 1 of one row of `length`, and behind it padding.
TokenData part_of_row(int64_t first, int64_t count, int64_t length) {
  TokenData data = plain_tokens(1, count, first);
  if (first + count <= length) return data;
  data.documents = Tensor::zeros({1, count}, kI32, Device::cpu());
  data.document_positions = Tensor::zeros({1, count}, kI32, Device::cpu());
  for (int64_t i = 0; i < count; ++i) {
    const bool is_padding = first + i >= length;
    data.documents.mutable_data<int32_t>()[i] = is_padding ? -1 : 0;
    data.document_positions.mutable_data<int32_t>()[i] = is_padding ? 0 : static_cast<int32_t>(first + i);
  }
  for (Tensor* x : {&data.documents, &data.document_positions}) *x = weft::to(Var(*x), default_device()).value();
  return data;
}

}  // namespace

// Runs the sequence through the layers, where each mixer that reads it shares what it is there. Of several ranks each runs a part.
void LanguageModel::share_fixed_sequence(Tokens& tokens) {
  const ContextGroup* ranks = tokens.context();
  ContextGroup group;
  if (ranks) group = {.tokens = ranks->tokens, .scheme = ranks->scheme, .ranks_per_node = ranks->ranks_per_node};
  const int64_t S = options_.context, num_ranks = ranks ? ranks->tokens->size() : 1,
                count = (S + num_ranks - 1) / num_ranks, first = ranks ? ranks->tokens->rank() * count : 0;
  // Every rank has documents, or none has: padding is on the last ones.
  TokenData data = part_of_row(first, count, S);
  if (count * num_ranks > S && !data.documents.defined()) {
    data.documents = Tensor::zeros({1, count}, kI32, default_device());
    data.document_positions = data.positions;
  }
  Tokens alone(data, {.context = ranks ? &group : nullptr});  // not in training: no dropout, no losses
  auto part = [&](const Var& all) {
    const int64_t begin = std::min(first, S), end = std::min(first + count, S);
    Var here = slice(all, 0, begin, end);
    if (end - begin == count) return here;
    Shape missing = all.shape();
    missing[0] = count - (end - begin);
    const Var parts[] = {here, Tensor::zeros(missing, all.dtype(), all.device())};
    return concatenate(parts, 0);
  };
  Var x = fixed_kind_ == FixedSequence::random ? cast(part(fixed_->value()), Var(embedding_.weight()).dtype())
                                               : embedding_(cast(part(fixed_->value()), kI32).value());
  x = at_positions(unsqueeze(x, 0), alone);
  alone.share("embedding", x);
  alone.share("fixed_sequence", x);  // by which mixers know that they read the sequence itself
  run_blocks(x, alone, false);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i]->mixer->fixed_sequence() == FixedSequence::none) continue;
    std::string name = fixed_sequence_name(static_cast<int64_t>(i));
    Var state = alone.shared(name);
    if (ranks) state = slice(unsqueeze(all_gather(*ranks->tokens, squeeze(state, 0)), 0), 1, 0, S);
    tokens.share(name, state);
  }
}

const Param& LanguageModel::output_weight() const {
  return head_ ? head_->weight() : const_cast<Embedding&>(embedding_).weight();
}

Var LanguageModel::hidden(const Tensor& ids_BT, Tokens& tokens) {
  Scope scope(name());
  WEFT_CHECK(ids_BT.num_dims() == 2 && ids_BT.shape() == tokens.positions().shape(),
             str("language model: ids are ", ids_BT, ", positions ", tokens.positions()),
             "give ids [B, T] of the same tokens");
  Var x = tokens.embedding(at_positions(embedding_(ids_BT), tokens));
  tokens.share("embedding", x);
  if (fixed_) share_fixed_sequence(tokens);
  Sum state = run_blocks(x, tokens, options_.recompute == Recompute::blocks);
  tokens.finish_decode_step();
  return state.normed(norm_);
}

LanguageModelLoss LanguageModel::loss(const Tensor& ids_BT, const Tensor& targets_BT, Tokens& tokens, double factor) {
  Var x = hidden(ids_BT, tokens);
  Scope scope(name());
  Scope head_scope("head");
  WEFT_CHECK(targets_BT.shape() == ids_BT.shape(), str("language model: targets are ", targets_BT, ", ids ", ids_BT),
             "one target per token");
  Var targets = targets_BT;
  if (tokens.has_padding()) targets = where(tokens.counted(), targets, Tensor::full({}, -1, kI32, targets_BT.device()));
  auto [loss, losses] = linear_cross_entropy(reshape(x, {-1, options_.dim}), output_weight(),
                                             targets.value().reshape({-1}), {.factor = factor});
  for (const Tokens::Loss& extra : tokens.losses()) loss = loss + extra.value * extra.weight;
  return {loss, losses.reshape(ids_BT.shape())};
}

Tensor LanguageModel::logits(const Tensor& ids_BT, Tokens& tokens) {
  NoGrad no_grad;
  return output(hidden(ids_BT, tokens)).value();
}

Var LanguageModel::output(const Var& x_BTD) const {
  return matmul(x_BTD, output_weight(), {.transpose_b = true, .out = x_BTD.dtype() == kF64 ? kF64 : kF32});
}

int64_t LanguageModel::num_matmul_params() const {
  int64_t count = output_weight().value().num_elements();
  for (const NamedParam& p : params()) {
    bool is_table =
        p.param == &const_cast<Embedding&>(embedding_).weight() || (positions_ && p.param == &positions_->weight());
    bool is_head = p.param == &output_weight();
    if (p.param->value().num_dims() == 2 && !is_table && !is_head) count += p.param->value().num_elements();
  }
  return count;
}

// A umoe network chooses among the experts of its block's mixer, at best others than the mixer does.
int64_t LanguageModel::num_active_params() const {
  int64_t count = num_params();
  for (const auto& block : blocks_) {
    const Mixer& mixer = *block->mixer;
    count -= mixer.num_idle_params();
    if (has_umoe_ffn(options_))
      count += std::min(options_.ffn.active * mixer.num_expert_params(), mixer.num_idle_params());
  }
  return count;
}

double LanguageModel::flops_per_token() const {
  double flops = 6.0 * static_cast<double>(num_matmul_params());
  for (const auto& block : blocks_) {
    const Mixer& mixer = *block->mixer;
    flops += mixer.flops_per_token(mixer.keys_per_query(options_.context));
    if (has_umoe_ffn(options_)) {
      const int64_t runs = options_.ffn.is_dense ? mixer.num_experts() : options_.ffn.active;
      flops += 6.0 * static_cast<double>(runs * mixer.num_expert_params());
    }
  }
  return flops;
}

}  // namespace weft
