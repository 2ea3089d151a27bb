// States of a model: rank collapse, secondary sinks, how far a change of one token spreads. T tokens, D width, L layers.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "src/models/analysis_rows.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"

namespace weft {

namespace {

using Rows = std::vector<double>;

Rows rows_of(const Tensor& state_TD) {
  WEFT_CHECK(state_TD.num_dims() == 2 && state_TD.size(0) >= 1, str("analysis: a state is ", state_TD),
             "give the [T, D] of one row");
  return cast(Var(state_TD), kF64).value().to_vector<double>();
}

double dot(const double* a, const double* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

double cosine(const double* a, const double* b, size_t n) {
  return dot(a, b, n) / std::max(std::sqrt(dot(a, a, n) * dot(b, b, n)), 1e-300);
}

// sqrt(largest column sum * largest row sum of |x|)
double mixed_norm(const Rows& x, size_t D) {
  std::vector<double> columns(D, 0.0);
  double row = 0;
  for (size_t t = 0; t < x.size() / D; ++t) {
    double sum = 0;
    for (size_t c = 0; c < D; ++c) {
      sum += std::abs(x[t * D + c]);
      columns[c] += std::abs(x[t * D + c]);
    }
    row = std::max(row, sum);
  }
  return std::sqrt(*std::max_element(columns.begin(), columns.end()) * row);
}

Rows without(const Rows& x, const double* m, size_t D) {
  Rows out(x);
  for (size_t i = 0; i < out.size(); ++i) out[i] -= m[i % D];
  return out;
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

// The tokens of all ranks, in the order of positions.
struct WholeRows {
  // Every rank that shares the rows makes one.
  explicit WholeRows(const AnalysisRows& rows)
      : here(rows.tokens, {.context = rows.context}),
        document_positions(here.gathered_positions()),
        documents(here.gathered_documents()),
        places(here.gathered_places()),
        numbers(documents.defined() ? documents.to_vector<int32_t>() : std::vector<int32_t>()) {}

  int64_t batch() const { return document_positions.size(0); }
  int64_t length() const { return document_positions.size(1); }
  bool is_padding(int64_t row, int64_t token) const {
    return !numbers.empty() && numbers[static_cast<size_t>(row * length() + token)] < 0;
  }
  // Which token of the row here that is, or -1.
  int64_t index_here(int64_t row, int64_t token) const {
    if (places.empty()) return token;
    const auto of_row =
        places.subspan(static_cast<size_t>(row * here.num_tokens()), static_cast<size_t>(here.num_tokens()));
    const auto found = std::find(of_row.begin(), of_row.end(), static_cast<int32_t>(token));
    return found == of_row.end() ? -1 : found - of_row.begin();
  }
  // Of i32 numbers of the tokens here [B, T]: of all [B, S].
  Tensor gather(const Tensor& x_BT) {
    const Var wide[] = {cast(Var(x_BT), kF64)};
    return cast(here.gather(wide)[0], kI32).value();
  }

  Tokens here;
  Tensor document_positions, documents;  // [B, S]; documents may be undefined
  std::span<const int32_t> places;       // of the tokens here; empty: as they stand

 private:
  std::vector<int32_t> numbers;
};

// The first row that begins with a token, up to its first padding, at most 64 tokens; whole, on every rank.
AnalysisRows short_row(const AnalysisRows& rows) {
  constexpr int64_t kMost = 64;  // of attention_flow()
  WholeRows all(rows);
  const int64_t B = all.batch(), S = all.length();
  int64_t row = 0, count = 0;
  while (row < B - 1 && all.is_padding(row, 0)) ++row;
  while (count < std::min(S, kMost) && !all.is_padding(row, count)) ++count;
  WEFT_CHECK(count > 0, "analyse: rows of nothing but padding", "give rows with tokens");
  auto some = [&](const Tensor& t) { return t.defined() ? t.slice(0, row, row + 1).slice(1, 0, count) : t; };
  return {.ids = some(all.gather(rows.ids)),
          .targets = some(all.gather(rows.targets)),
          .tokens = {some(all.gather(rows.tokens.positions)), some(all.documents), some(all.document_positions)}};
}

// "model.layers.2.mixer": 2.
int64_t layer_of(std::string_view path) {
  constexpr std::string_view kLayers = "layers.";
  const size_t at = path.find(kLayers);
  int64_t layer = -1;
  if (at != std::string_view::npos)
    std::from_chars(path.data() + at + kLayers.size(), path.data() + path.size(), layer);
  WEFT_CHECK(layer >= 0, str("analysis: weights of '", path, "'"), "show weights in the layers of a model");
  return layer;
}

// Of equal tensors in f64.
Tensor mean_of(std::span<const Tensor> all) {
  Var sum = all[0];
  for (const Tensor& x : all.subspan(1)) sum = sum + Var(x);
  return (sum / static_cast<double>(all.size())).value();
}

}  // namespace

RankCollapse rank_collapse(const Tensor& state_TD) {
  Rows x = rows_of(state_TD);
  const auto T = static_cast<size_t>(state_TD.size(0)), D = static_cast<size_t>(state_TD.size(1));
  Rows mean(D, 0.0);
  for (size_t i = 0; i < x.size(); ++i) mean[i % D] += x[i] / static_cast<double>(T);
  Rows centred = without(x, mean.data(), D), from_first = without(x, x.data(), D);
  auto frobenius = [](const Rows& m) { return std::sqrt(dot(m.data(), m.data(), m.size())); };
  return {.residual = ratio(mixed_norm(centred, D), mixed_norm(x, D)),
          .frobenius_residual = ratio(frobenius(centred), frobenius(x)),
          .first_residual = ratio(frobenius(from_first), frobenius(x)),
          .last_cosine = T > 1 ? cosine(&x[(T - 2) * D], &x[(T - 1) * D], D) : 1};
}

// The first token is large between the layer where its norm jumps up most and the one behind that where it falls most.
std::vector<SecondarySink> secondary_sinks(std::span<const Tensor> states_TD) {
  WEFT_CHECK(states_TD.size() >= 2, str("secondary_sinks: ", states_TD.size(), " states"),
             "give those behind the embedding and behind each layer");
  const size_t L = states_TD.size() - 1;
  std::vector<Rows> states;
  for (const Tensor& state : states_TD) {
    WEFT_CHECK(state.shape() == states_TD[0].shape(), str("secondary_sinks: states ", states_TD[0], " and ", state),
               "all are [T, D] of the same tokens");
    states.push_back(rows_of(state));
  }
  const auto T = static_cast<size_t>(states_TD[0].size(0)), D = static_cast<size_t>(states_TD[0].size(1));
  Rows norm;
  for (const Rows& state : states) norm.push_back(std::sqrt(dot(state.data(), state.data(), D)));
  auto step = [&](size_t l) { return norm[l + 1] - norm[l]; };
  size_t jump = 0;
  for (size_t l = 1; l < L; ++l)
    if (step(l) > step(jump)) jump = l;
  const size_t start = jump + 1;
  size_t fall = start;
  for (size_t l = start; l < L; ++l)
    if (step(l) < step(fall)) fall = l;
  const size_t end = start < L ? fall + 1 : L + 1;  // without a layer behind the jump it stays large to the end

  std::vector<SecondarySink> sinks;
  for (size_t t = 1; t < T; ++t) {
    SecondarySink sink{static_cast<int64_t>(t), -1, 0};
    for (size_t l = start; l < end; ++l) {
      if (std::abs(cosine(&states[l][t * D], states[l].data(), D)) <= 0.9) continue;
      if (sink.first_layer < 0) sink.first_layer = static_cast<int64_t>(l);
      ++sink.lifetime;
    }
    auto life = static_cast<double>(sink.lifetime), layers = static_cast<double>(L);
    if (life > 0.1 * layers && life < 0.7 * layers) sinks.push_back(sink);
  }
  return sinks;
}

std::vector<double> perturbation_spread(LanguageModel& model, const AnalysisRows& rows, int64_t token) {
  NoGrad no_grad;
  const WholeRows known(rows);
  const int64_t B = known.batch(), T = known.here.num_tokens(), S = known.length();
  WEFT_CHECK(token >= 0 && token < S, str("perturbation_spread: token ", token, " of ", S), "choose one of the row");
  // Of each row: which of the tokens here is changed and which is its last but padding; -1: none. A row whose `token` is padding has no say.
  std::vector<int64_t> changed(static_cast<size_t>(B), -1), last_tokens = changed;
  for (int64_t b = 0; b < B; ++b) {
    if (known.is_padding(b, token)) continue;
    int64_t last = S - 1;
    while (known.is_padding(b, last)) --last;
    changed[static_cast<size_t>(b)] = known.index_here(b, token);
    last_tokens[static_cast<size_t>(b)] = known.index_here(b, last);
  }
  Rows sizes;  // of each row's change: 1 % of the embedding's norm, in a direction fixed by the token's own embedding
  auto states = [&](double sign) {
    std::vector<Rows> last;  // behind each layer, the last token of every row; zeros where it is not here
    Probe probe;
    probe.embedding = [&](const Var& x_BTD) {
      auto x = cast(x_BTD, kF64).value().to_vector<double>();
      const auto D = static_cast<size_t>(x_BTD.size(2));
      std::vector<double> change(x.size(), 0.0);
      sizes.assign(changed.size(), 0);
      for (size_t b = 0; b < changed.size(); ++b)
        for (size_t c = 0; c < D && changed[b] >= 0; ++c) {
          size_t i = (b * static_cast<size_t>(T) + static_cast<size_t>(changed[b])) * D + c;
          // The next channel's value turns the vector, so that a norm in front of the layers does not undo the change.
          change[i] = 0.01 * x[i - c + (c + 1) % D];
          sizes[b] += change[i] * change[i];
        }
      Tensor add = Tensor::from(std::span<const double>(change), x_BTD.shape());
      return x_BTD + cast(to(add, x_BTD.device()), x_BTD.dtype()) * sign;
    };
    probe.state = [&](std::string_view, const Var& x_BTD) {
      const auto D = static_cast<size_t>(x_BTD.size(2));
      Rows ends(last_tokens.size() * D, 0.0);
      for (size_t b = 0; b < last_tokens.size(); ++b) {
        if (last_tokens[b] < 0) continue;
        Var end = select(select(x_BTD, 0, static_cast<int64_t>(b)), 0, last_tokens[b]);
        std::ranges::copy(cast(end, kF64).value().to_vector<double>(), &ends[b * D]);
      }
      last.push_back(std::move(ends));
    };
    Tokens tokens(rows.tokens, {.probe = &probe, .context = rows.context});
    model.hidden(rows.ids, tokens);
    last.erase(last.begin());  // the embedding
    return last;
  };
  const std::vector<Rows> up = states(1), down = states(-1);
  // Per layer and row, and behind them the sizes: each is of one rank, so that a sum over ranks rounds nothing.
  const auto num_rows = static_cast<size_t>(B);
  Rows squares(up.size() * num_rows, 0.0);
  for (size_t l = 0; l < up.size(); ++l)
    for (size_t i = 0; i < up[l].size(); ++i)
      squares[l * num_rows + i / (up[l].size() / num_rows)] += (up[l][i] - down[l][i]) * (up[l][i] - down[l][i]) / 4;
  squares.insert(squares.end(), sizes.begin(), sizes.end());
  squares = sum_of_ranks(rows, std::move(squares));
  auto sum_of = [&](size_t which) {
    double sum = 0;
    for (size_t b = 0; b < num_rows; ++b) sum += squares[which * num_rows + b];
    return sum;
  };
  std::vector<double> spread;
  for (size_t l = 0; l < up.size(); ++l) spread.push_back(std::sqrt(ratio(sum_of(l), sum_of(up.size()))));
  return spread;
}

std::vector<std::pair<std::string, double>> analyse(LanguageModel& model, const AnalysisRows& rows,
                                                    dist::Communicator* comm) {
  std::vector<std::pair<std::string, double>> out;
  auto importance = head_importance(model, rows);
  for (const HeadImportance& layer : importance)
    for (size_t h = 0; h < layer.heads.size(); ++h)
      out.emplace_back(str(layer.mixer, ".head_importance/", h), layer.heads[h]);
  auto curve = pruning_curve(model, rows, importance, comm);
  for (size_t i = 0; i < curve.size(); ++i) out.emplace_back(str("pruned_loss/", 10 * i), curve[i].second);
  for (const auto& [mixer, more] : layer_sensitivity(model, rows, comm))
    out.emplace_back(mixer + ".loss_without", more);
  auto spread = perturbation_spread(model, rows);
  for (size_t l = 0; l < spread.size(); ++l)
    out.emplace_back(str("model.layers.", l, ".perturbation_spread"), spread[l]);

  // One short row, whole matrices.
  const AnalysisRows one = short_row(rows);
  const int64_t T = one.ids.size(1);
  std::vector<std::pair<std::string, Tensor>> states;
  std::map<int64_t, std::vector<Tensor>> shares;  // of a layer's calls
  Probe probe;
  probe.state = [&](std::string_view path, const Var& x) {
    states.emplace_back(std::string(path), cast(select(x, 0, 0), kF64).value());
  };
  probe.weights = [&](std::string_view path, const Tensor& weights, bool is_softmax) {
    shares[layer_of(path)].push_back(weight_shares(weights, is_softmax).reshape({T, T}));
  };
  NoGrad no_grad;
  Tokens tokens(one.tokens, {.probe = &probe});
  model.hidden(one.ids, tokens);
  std::vector<Tensor> of_layers;
  for (const auto& [path, state] : states) {
    RankCollapse r = rank_collapse(state);
    out.emplace_back(path + ".rank_residual", r.residual);
    out.emplace_back(path + ".rank_residual_frobenius", r.frobenius_residual);
    out.emplace_back(path + ".first_token_residual", r.first_residual);
    out.emplace_back(path + ".last_cosine", r.last_cosine);
    of_layers.push_back(state);
  }
  auto sinks = secondary_sinks(of_layers);
  out.emplace_back("secondary_sinks", static_cast<double>(sinks.size()));
  for (const SecondarySink& sink : sinks) {
    out.emplace_back(str("secondary_sink/", sink.token, ".first_layer"), static_cast<double>(sink.first_layer));
    out.emplace_back(str("secondary_sink/", sink.token, ".lifetime"), static_cast<double>(sink.lifetime));
  }
  std::vector<Tensor> layers;
  for (const auto& [layer, of_calls] : shares) layers.push_back(mean_of(of_calls));
  for (int64_t l = 0; l < std::ssize(spread); ++l)
    if (!shares.contains(l)) out.emplace_back(str("model.layers.", l, ".left_out_of_rollout"), 1);
  if (layers.empty()) return out;
  auto rollout = attention_rollout(layers).slice(0, T - 1, T).to_vector<double>();
  auto flow = attention_flow(layers, T - 1).to_vector<double>();
  for (size_t j = 0; j < rollout.size(); ++j) out.emplace_back(str("rollout/", j), rollout[j]);
  for (size_t j = 0; j < flow.size(); ++j) out.emplace_back(str("flow/", j), flow[j]);
  return out;
}

}  // namespace weft
