// What the tests of analyses and probes over ranks share: rows, models, and what one rank sees and finds of them.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "weft/data/spread.h"
#include "weft/models/analysis.h"
#include "weft/nn/context_group.h"
#include "weft/ops/elementwise.h"

namespace weft::analysis_test {

inline constexpr int64_t kBatch = 2, kLength = 26, kVocab = 11;

// With documents row 0 has three, row 1 two and padding behind them.
inline data::Batch rows(bool has_documents) {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({kBatch, kLength}, kI32, Device::cpu());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < kLength; ++t) {
      const int64_t at = b * kLength + t, first = 9 + 5 * b, second = kLength - 2;  // where documents begin
      const int64_t document = !has_documents || t < first ? 0 : t < second ? 1 : b == 0 ? 2 : -1;
      auto set = [&](Tensor& x, int64_t number) { x.mutable_data<int32_t>()[at] = static_cast<int32_t>(number); };
      set(batch.tokens, static_cast<int64_t>(Rng(1).below(kVocab, static_cast<uint64_t>(at))));
      set(batch.targets, t % 7 == 6 ? -1 : static_cast<int64_t>(Rng(2).below(kVocab, static_cast<uint64_t>(at))));
      set(batch.positions, t);
      set(batch.documents, document);
      set(batch.document_positions, document == 0 ? t : document == 1 ? t - first : document == 2 ? t - second : 0);
    }
  return batch;
}

inline AnalysisRows analysed(const data::Batch& batch, bool has_documents, const ContextGroup* context) {
  auto here = [](const Tensor& x) { return ops::to(x, default_device()); };
  AnalysisRows out{
      .ids = here(batch.tokens), .targets = here(batch.targets), .tokens = {.positions = here(batch.positions)}};
  out.tokens.are_consecutive = are_consecutive(batch.positions);
  if (has_documents)
    out.tokens.documents = here(batch.documents), out.tokens.document_positions = here(batch.document_positions);
  out.context = context;
  return out;
}

// Between them: a window, sinks, grouped heads, a mixture of heads, latents that are sent, weights of pairs, weights with signs, documents that
// choose how far they see, chunks, meta tokens, blocks.
inline std::vector<LanguageModelOptions> models() {
  SoftmaxOptions sink{.heads = 4, .kv_heads = 2, .window = 7}, mixture{.heads = 4};
  sink.sink.kind = SinkKind::logit;
  mixture.head_mixture = {.active = 1, .shared = 1, .path = HeadPath::grouped};
  const FluxOptions flux{.heads = 4, .window = 5, .prompt = 1, .hidden = 8};
  auto of = [](std::vector<MixerMaker> mixers) {
    return LanguageModelOptions{.vocab = kVocab,
                                .dim = 16,
                                .layers = 2,
                                .context = 32,
                                .mixers = std::move(mixers),
                                .ffn = {.hidden = 24},
                                .std = 0.3};
  };
  return {of({sink, mixture}),
          of({MlaOptions{.heads = 4, .head_dim = 8, .rope_dim = 2, .kv_rank = 3}, TapaOptions{.heads = 4}}),
          of({NapOptions{.heads = 4, .window = 5}, GlaOptions{.heads = 4}}),
          of({flux, NapOptions{.heads = 4}}),
          of({RatOptions{.heads = 4, .chunk = 3}, HymbaOptions{.heads = 4, .window = 5, .meta = 3}}),
          of({NatsLinearOptions{.heads = 4, .chunk = 4},
              HySparseOptions{.heads = 4, .sparse = 0, .block = 3, .blocks = 2, .window = 4}})};
}

inline std::unique_ptr<LanguageModel> make_model(const LanguageModelOptions& options) {
  auto model = std::make_unique<LanguageModel>(options, Rng(5));
  model->set_compute(kF64);
  return model;
}

struct Spread {
  dist::LayoutKind layout;
  dist::Scheme scheme;
  int ranks;
};
inline constexpr Spread kSpreads[] = {
    {dist::LayoutKind::contiguous, dist::Scheme::ring, 2},    {dist::LayoutKind::striped, dist::Scheme::all_gather, 2},
    {dist::LayoutKind::zigzag, dist::Scheme::ulysses, 2},     {dist::LayoutKind::balanced, dist::Scheme::usp, 4},
    {dist::LayoutKind::contiguous, dist::Scheme::ring, 3},    {dist::LayoutKind::zigzag, dist::Scheme::ring, 3},
    {dist::LayoutKind::striped, dist::Scheme::double_ring, 4}};

inline std::string to_string(const Spread& s) {
  return str(dist::to_string(s.layout), ", ", dist::to_string(s.scheme), ", ", s.ranks, " ranks");
}

// f on each rank of that device, with its part of the rows.
inline void on_ranks(const Spread& s, bool has_documents,
                     const std::function<void(const AnalysisRows&, dist::Communicator&)>& f,
                     Device device = Device::cpu()) {
  const data::SpreadOptions options{
      .layout = s.layout, .ranks = s.ranks, .block = 2, .keeps_documents_apart = has_documents};
  dist::run_thread_ranks(s.ranks, [&](dist::Communicator& comm) {
    set_default_device(device);
    const ContextGroup group{.tokens = &comm, .scheme = s.scheme};
    f(analysed(data::spread(rows(has_documents), options, comm.rank()), true, &group), comm);
  });
}

// By call, which has a number and a path: what a probe is shown, token by token of the rows, but padding.
using Shown = std::map<std::string, std::vector<double>>;

inline void watch(LanguageModel& model, const AnalysisRows& of, Shown& into, std::mutex& mutex) {
  int calls = 0;
  const Tensor positions = of.tokens.positions.cpu(),
               documents = of.tokens.documents.defined() ? of.tokens.documents.cpu() : Tensor();
  auto show = [&](std::string_view path, const Tensor& x, bool are_weights) {
    const std::vector<double> numbers = cast(Var(x), kF64).value().to_vector<double>();
    const auto each = static_cast<int64_t>(numbers.size()) / x.size(0) / x.size(1);
    const int64_t width = are_weights ? x.size(3) : each, kept = are_weights ? kLength : each;
    std::lock_guard lock(mutex);
    std::vector<double>& all = into[str(calls++, " ", path)];
    all.resize(static_cast<size_t>(kBatch * kLength * each / width * kept));
    for (int64_t i = 0; i < x.size(0) * x.size(1); ++i) {
      const int64_t position = positions.data<int32_t>()[i];
      if (position >= kLength || (documents.defined() && documents.data<int32_t>()[i] < 0)) continue;
      const int64_t to = (i / x.size(1) * kLength + position) * (each / width * kept);
      for (int64_t c = 0; c < each; ++c)
        if (c % width < kept)
          all[static_cast<size_t>(to + c / width * kept + c % width)] = numbers[static_cast<size_t>(i * each + c)];
        else EXPECT_EQ(numbers[static_cast<size_t>(i * each + c)], 0) << "a key of padding";
    }
  };
  Probe probe;
  probe.weights = [&](std::string_view path, const Tensor& weights, bool) {
    EXPECT_EQ(weights.dtype(), kF64);
    show(path, weights, true);
  };
  probe.heads = [&](std::string_view path, const Var& y) {
    show(path, y.value(), false);
    return y;
  };
  probe.state = [&](std::string_view path, const Var& x) { show(path, x.value(), false); };
  NoGrad no_grad;
  Tokens tokens(of.tokens, {.probe = &probe, .context = of.context});
  model.hidden(of.ids, tokens);
}

inline void expect_near(Shown& got, const Shown& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (const auto& [call, numbers] : expected) {
    ASSERT_EQ(got[call].size(), numbers.size()) << call << ", " << what;
    for (size_t i = 0; i < numbers.size(); ++i)
      ASSERT_NEAR(got[call][i], numbers[i], 1e-11) << call << ", " << what << ", number " << i;
  }
}

using Figures = std::vector<std::pair<std::string, double>>;

// All analyses, and the loss without a head.
inline Figures figures_of(LanguageModel& model, const AnalysisRows& of, dist::Communicator* others = nullptr) {
  Figures all = analyse(model, of, others);
  Probe without;
  without.heads = [](std::string_view path, const Var& y) {
    if (path != "model.layers.1.mixer") return y;
    Tensor mask = Tensor::full({4, 1}, 1, kF64, Device::cpu());
    mask.mutable_data<double>()[2] = 0;
    return y * to(Var(mask), y.device());
  };
  all.emplace_back("whole", analysis_loss(model, of));
  all.emplace_back("without a head", analysis_loss(model, of, without));
  const auto spread = perturbation_spread(model, of, 5);
  for (size_t l = 0; l < spread.size(); ++l) all.emplace_back(str("spread of token 5, ", l), spread[l]);
  return all;
}

inline void expect_near(const Figures& got, const Figures& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].first, expected[i].first) << what;
    EXPECT_NEAR(got[i].second, expected[i].second, 1e-10) << what << ", " << got[i].first;
  }
}

}  // namespace weft::analysis_test
