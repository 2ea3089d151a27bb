// Flux Attention (2604.07394): a router per layer decides for each document whether the layer attends to all tokens or to the last W of them.
//   r = silu(mean of x over the first P tokens of the document A) B,  c = (1, 0) where r_0 >= r_1, else (0, 1)
//   y = c_0 attend(rot(q), rot(k), v; all) + c_1 attend(rot(q), rot(k), v; last W),  from token P - 1 on
// Tokens before it take the window, through which they see all, since P <= W. So no token depends on a later one.
// In training Gumbel noise of the document is added to r, and c has the gradient of softmax(r). Where gradients are recorded both branches run,
// whatever the documents here chose: c stands on the tape of every rank, so that all send the same messages in backward. Otherwise only the
// branches that some document chose run. lambda (mean of c_0 - target)^2 is an auxiliary loss.
// B batch, T tokens, D model width, H heads, G key/value heads, K head width.
#include "src/nn/mixers/hybrids/shown_pairs.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/recompute.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

using namespace hybrid;

struct FluxRouter final : Module {
  FluxRouter(const FluxOptions& o, const MixerArgs& args, Rng rng)
      : up(args.dim, o.hidden, rng["up"], {.has_bias = true, .std = args.std}),
        down(o.hidden, 2, rng["down"], {.has_bias = true, .std = args.std}) {
    set_name("router");
    name_parts({{"up", up}, {"down", down}});
  }
  Linear up, down;
};

class Flux final : public ProjectedMixer {
 public:
  Flux(const FluxOptions& options, const MixerArgs& args, Rng rng)
      : ProjectedMixer("flux", {options.heads, options.kv_heads, options.head_dim}, args, rng),
        o_(options),
        router_(options, args, rng["router"]) {
    WEFT_CHECK(o_.prompt >= 1 && o_.prompt <= o_.window,
               str("flux: a prompt of ", o_.prompt, " tokens and a window of ", o_.window),
               "the router must have read its prompt before the window leaves out a token: 1 <= prompt <= window");
    WEFT_CHECK(o_.hidden >= 1 && o_.full_loss >= 0 && o_.full_target >= 0 && o_.full_target <= 1,
               str("flux: hidden ", o_.hidden, ", full_loss ", o_.full_loss, ", full_target ", o_.full_target),
               "hidden is 1 or more, full_loss 0 or more, full_target a share");
    name_part({"router", router_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const Var q_BTHK = rotated(queries(x_BTD), args_, tokens), k_BTGK = rotated(keys(x_BTD), args_, tokens),
              v_BTGK = values(x_BTD);
    const KeySet keys_of = tokens.keys(k_BTGK, v_BTGK);
    const QuerySet all = tokens.queries(q_BTHK);
    const Var choice_BT2 = choice(x_BTD, tokens);
    show(q_BTHK, k_BTGK, v_BTGK, choice_BT2, tokens);
    auto branch = [&](int64_t window) { return tokens.attend_part(all, keys_of, {.mask = {.window = window}})[0]; };
    auto part = [&](int64_t i) { return unsqueeze(slice(cast(choice_BT2, x_BTD.dtype()), -1, i, i + 1), -1); };
    auto both = [&] { return written(branch(0) * part(0) + branch(o_.window) * part(1), tokens); };
    if (tokens.is_training() || is_recording() || is_first_forward_of_recompute()) return both();
    const double num_full = is_dry_run() ? 1 : sum_all(select(cast(choice_BT2, kF64), -1, 0)).value().item();
    const double most = static_cast<double>(tokens.batch() * tokens.num_tokens());
    if (num_full == most) return written(branch(0), tokens);
    if (num_full == 0) return written(branch(o_.window), tokens);
    return both();
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  // To whoever watches, the branch that was chosen is the attention.
  void show(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGK, const Var& choice_BT2, Tokens& tokens) const {
    if (!tokens.is_watched()) return;
    NoGrad no_grad;
    const Var here[] = {k_BTGK};
    const Var k_BSGK = tokens.gather(here)[0];
    const AllTokens all = all_tokens(tokens);
    const Tensor is_full_B1T1 = greater(unsqueeze(slice(choice_BT2, -1, 0, 1), 1), 0.5);
    show_pairs(tokens, q_BTHK, k_BSGK, v_BTGK, [&](int64_t begin, int64_t end) {
      return logical_or(is_full_B1T1.slice(2, begin, end), less(all.distances(begin, end), o_.window));
    });
  }

  // [B, T, 2] f32 or wider: 1 for the branch that the token's document takes, 0 for the other.
  Var choice(const Var& x_BTD, Tokens& tokens) {
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    const DType wide = recurrent::wide(x_BTD);
    const Device device = x_BTD.device();
    Tensor in_prompt = Tensor::zeros({B, T, 1}, kF32, Device::cpu()),
           decides = Tensor::zeros({B, T, 1}, kF32, Device::cpu());
    const auto local = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_document_positions();
    for (size_t i = 0; i < local.size(); ++i) {
      in_prompt.mutable_data<float>()[i] = local[i] < o_.prompt ? 1 : 0;
      decides.mutable_data<float>()[i] = local[i] >= o_.prompt - 1 ? 1 : 0;
    }
    auto there = [&](const Tensor& x) { return cast(weft::to(x, device), wide); };
    const Var kept = there(in_prompt), ready = there(decides);
    const Var numbers[] = {cast(x_BTD, wide) * kept, kept};
    Var sums = tokens.scan(concatenate(numbers, -1));
    Var mean_BTD = slice(sums, -1, 0, args_.dim) / maximum(slice(sums, -1, args_.dim, args_.dim + 1), 1.0);
    Var logits_BT2 = logits(mean_BTD, wide);
    if (tokens.is_training()) logits_BT2 = logits_BT2 + noise(tokens, wide);
    Var chosen = one_hot(logits_BT2);
    if (tokens.is_training()) add_loss(chosen, ready, tokens);
    tokens.report_means("full_share", slice(chosen, -1, 0, 1));
    const Var both[] = {slice(chosen, -1, 0, 1) * ready, slice(chosen, -1, 1, 2) * ready + (1.0 - ready)};
    return concatenate(both, -1);
  }

  Var logits(const Var& mean_BTD, DType wide) {
    auto map = [&](Linear& layer, const Var& x) {
      return linear(x, cast(Var(layer.weight()), wide), cast(layer.bias_as(wide), wide));
    };
    return map(router_.down, silu(map(router_.up, mean_BTD)));
  }

  // The same for all tokens of a document.
  static Var noise(const Tokens& tokens, DType wide) {
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    const Rng rng = tokens.random("choice");
    std::vector<float> numbers(static_cast<size_t>(B * T * 2));
    const auto places = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_positions();
    const auto local = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_document_positions();
    for (size_t i = 0; i < places.size(); ++i) {
      const Rng of_row = rng[static_cast<uint64_t>(tokens.first_row() + static_cast<int64_t>(i) / T)];
      for (size_t c = 0; c < 2; ++c)
        numbers[2 * i + c] = gumbel(of_row, static_cast<uint64_t>(std::max(places[i] - local[i], 0)) * 2 + c);
    }
    Tensor noise = Tensor::from(std::span<const float>(numbers), {B, T, 2});
    return cast(weft::to(noise, tokens.positions().device()), wide);
  }

  void add_loss(const Var& chosen_BT2, const Var& ready_BT1, Tokens& tokens) const {
    Var count = maximum(tokens.sum(ready_BT1), 1.0);
    Var share = tokens.sum(slice(chosen_BT2, -1, 0, 1) * ready_BT1) / count;
    tokens.add_loss("full_loss", sum_all(square(share - o_.full_target)),
                    o_.full_loss / static_cast<double>(args_.layers));
  }

  FluxOptions o_;
  FluxRouter router_;
};

}  // namespace

std::unique_ptr<Mixer> FluxOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Flux>(*this, args, rng);
}

}  // namespace weft
