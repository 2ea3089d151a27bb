// Cases of `weft bench ring` on ranks that are threads. The ranks stay while all cases run in turn, round after round, so that a case meets
// warm caches as in a training. One rank with as many threads takes part in every round; the ranks wait meanwhile.
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "tools/bench/ring/ring.h"
#include "weft/comm/dry_ranks.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"

namespace weft::bench {

namespace {

constexpr int64_t kWidth = 64;

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

ops::AttentionOptions with_alibi() {
  ops::AttentionOptions o;
  o.score.alibi_slopes = Tensor::full({8}, 0.01, kF32, Device::cpu());
  return o;
}

// Queries, keys, values and gradients of the output at some places of the row, and what the core is told of them.
struct Part {
  Tensor q, k, v, dout;
  ops::AttentionTokens tokens = {};
};
struct Results {
  Tensor out, dq, dk, dv;
};

Tensor values(int64_t tokens, int64_t heads, DType dtype, uint64_t salt) {
  Tensor t = Tensor::empty({1, tokens, heads, kWidth}, kF32, Device::cpu());
  ops::fill_uniform_(t, Rng(7)[salt], -1, 1);
  return ops::cast(t, dtype);
}

Part whole_row(const RingKernel& kernel, const RowMask& mask) {
  const int64_t n = mask.tokens();
  Part p{.q = values(n, kernel.heads, kernel.dtype, 1),
         .k = values(n, kernel.kv_heads, kernel.dtype, 2),
         .v = values(n, kernel.kv_heads, kernel.dtype, 3),
         .dout = values(n, kernel.heads, kernel.dtype, 4)};
  p.tokens.positions = Tensor::from(std::span<const int32_t>(mask.positions), {1, n});
  if (!mask.documents.empty()) p.tokens.documents = Tensor::from(std::span<const int32_t>(mask.documents), {1, n});
  return p;
}

// Rows of places of the layout; zeros for padding behind the row.
Tensor rows(const Tensor& x, const std::vector<int32_t>& places) {
  Shape shape = x.shape();
  const int64_t tokens = shape[1];
  shape[1] = static_cast<int64_t>(places.size());
  Tensor out = Tensor::zeros(shape, x.dtype(), Device::cpu());
  const size_t each = static_cast<size_t>(shape[2] * shape[3]) * size_of(x.dtype());
  const auto* from = static_cast<const std::byte*>(x.raw());
  auto* to = static_cast<std::byte*>(out.mutable_raw());
  for (size_t i = 0; i < places.size(); ++i)
    if (places[i] < tokens) std::copy_n(from + static_cast<size_t>(places[i]) * each, each, to + i * each);
  return out;
}

Part part_of(const Part& all, const RowMask& mask, const dist::Layout& layout, int rank) {
  const std::vector<int32_t> places = layout.positions(rank);
  const int64_t n = layout.tokens_per_rank(), tokens = mask.tokens();
  std::vector<int32_t> positions, documents;
  for (int32_t place : places) {
    const bool is_padding = place >= tokens;
    const auto at = static_cast<size_t>(place);
    positions.push_back(is_padding ? place : mask.positions[at]);
    documents.push_back(is_padding ? -1 : mask.documents.empty() ? 0 : mask.documents[at]);
  }
  Part p{.q = rows(all.q, places), .k = rows(all.k, places), .v = rows(all.v, places), .dout = rows(all.dout, places)};
  p.tokens.positions = Tensor::from(std::span<const int32_t>(positions), {1, n});
  if (!mask.documents.empty() || layout.padded_tokens() > tokens)
    p.tokens.documents = Tensor::from(std::span<const int32_t>(documents), {1, n});
  return p;
}

void check_equal(const Tensor& mine, const Tensor& all, const std::vector<int32_t>& places, const std::string& of) {
  const Tensor got = ops::cast(mine, kF32), right = ops::cast(rows(all, places), kF32);
  const double tolerance = mine.dtype() == kBF16 ? 2e-2 : 1e-4;
  for (int64_t i = 0; i < right.num_elements(); ++i) {
    const double a = got.data<float>()[i], b = right.data<float>()[i];
    WEFT_CHECK(std::abs(a - b) <= tolerance * (1 + std::abs(b)), str("bench ring: ", of, ": ", a, " instead of ", b),
               "the tests ContextAttention.* find out why");
  }
}

// One rank of one case, with what it is given.
struct Place {
  const RingCase& of;
  dist::HopPlan plan;
  const Part& part;
  ops::AttentionOptions options;

  Results run(dist::Communicator& comm, double& after_forward) const {
    const dist::ContextRanks ranks(comm, of.options);
    const Part& p = part;
    const ops::Attention y = dist::context_attention(ranks, of.scheme, p.q, p.k, p.v, p.tokens, options, plan);
    after_forward = now_s();
    const ops::AttentionGrads g =
        dist::context_attention_backward(ranks, of.scheme, p.dout, {}, p.q, p.k, p.v, y, p.tokens, options, plan);
    return {y.out, g.dq, g.dk, g.dv};
  }
};

Results run_one(const Part& p, const ops::AttentionOptions& options, double& after_forward) {
  const ops::Attention y = ops::attend(p.q, p.k, p.v, p.tokens, p.tokens, options);
  after_forward = now_s();
  const ops::AttentionGrads g = ops::attend_backward(p.dout, {}, p.q, p.k, p.v, y, p.tokens, p.tokens, options);
  return {y.out, g.dq, g.dk, g.dv};
}

// A folder of flight records, for as long as they are read.
class Records {
 public:
  Records() {
    WEFT_CHECK(::mkdtemp(path_.data()), str("bench ring: cannot make ", path_),
               "set TMPDIR to a folder for short files");
  }
  ~Records() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / "weft-ring-XXXXXX").string();
};

// Times of one round, of a case or of one rank; of ranks the slowest one's.
struct Round {
  double forward = 0, both = 0;
};

}  // namespace

std::span<const RingKernel> ring_kernels() {
  using ops::ScoreActivation;
  static const std::vector<RingKernel> kKernels = {
      {.name = "softmax"},
      {.name = "softmax_bf16", .dtype = kBF16},
      {.name = "grouped", .kv_heads = 2},
      {.name = "softcap", .options = {.score = {.softcap = 30}}},
      {.name = "alibi", .options = with_alibi()},
      {.name = "signed", .options = {.normaliser = ops::Normaliser::signed_softmax}},
      {.name = "sigmoid",
       .options = {.score = {.shift = -8, .activation = ScoreActivation::sigmoid}, .normaliser = ops::Normaliser::sum}},
      {.name = "relu",
       .options = {.scale = 1.0 / 4096,
                   .score = {.activation = ScoreActivation::relu},
                   .normaliser = ops::Normaliser::sum}},
      {.name = "dropout", .options = {.dropout = 0.1}}};
  return kKernels;
}

double shared_core_speed() {
  const RowMask mask = make_ring_mask("causal", 2048, data::pretraining_document_lengths());
  const Part whole = whole_row(ring_kernels()[0], mask);
  ops::AttentionOptions options;
  double unused = 0;
  const int threads = num_threads();
  auto on_threads = [&](int n) {
    return [&, n] {
      set_num_threads(n);
      run_one(whole, options, unused);
      set_num_threads(threads);
    };
  };
  const std::function<void()> both[] = {on_threads(2), on_threads(1)};
  return ratios_in_turn(both, 9)[1] / 2;
}

std::vector<RingMeasured> measure_ring(const RingKernel& kernel, const RowMask& mask, std::span<const RingCase> cases,
                                       int ranks, int rounds) {
  if (cases.empty()) return {};
  ops::AttentionOptions options = kernel.options;
  options.mask = mask.mask;
  const int threads = std::min(ranks, num_threads());
  const Part whole = whole_row(kernel, mask);
  double unused = 0;
  const Results expected = run_one(whole, options, unused);
  std::vector<std::vector<Round>> times(static_cast<size_t>(ranks));  // of a rank: round after round, of each case
  std::vector<std::vector<int64_t>> extra(static_cast<size_t>(ranks));
  std::vector<std::vector<int64_t>> sent(static_cast<size_t>(ranks));
  std::vector<Round> alone(static_cast<size_t>(rounds));
  const Records records;
  auto counted = [&](dist::Communicator& comm, const Place& place) {
    const auto recorded = comm.split(0, comm.rank(), "recorded");
    recorded->record_to(records.path());
    double after_forward = 0;
    return place.run(*recorded, after_forward);
  };
  auto run_rank = [&](dist::Communicator& comm) {
    std::map<std::string, Part> parts;  // of each layout
    std::vector<Place> places;
    for (const RingCase& c : cases) {
      const std::string layout = to_string(c.layout);
      if (!parts.contains(layout)) parts.emplace(layout, part_of(whole, mask, c.layout, comm.rank()));
      const Part& part = parts.at(layout);
      places.push_back({c, plan_of_seen(c.layout, mask), part, options});
      if (c.layout.padded_tokens() > mask.tokens()) places.back().options.mask.same_document = true;
    }
    std::vector<Round>& mine = times[static_cast<size_t>(comm.rank())];
    Allocator& memory = allocator(Device::cpu());
    for (int round = -1; round < rounds; ++round)  // the first one checks, and fills caches
      for (size_t j = 0; j <= places.size(); ++j) {
        const size_t i = (j + static_cast<size_t>(round + 1)) % (places.size() + 1);
        comm.barrier();
        const double begin = now_s();
        double after_forward = 0;
        if (i == places.size()) {
          if (comm.rank() == 0) {
            set_num_threads(threads);
            run_one(whole, options, after_forward);
            if (round >= 0) alone[static_cast<size_t>(round)] = {after_forward - begin, now_s() - begin};
            set_num_threads(1);
          }
          continue;
        }
        memory.reset_peak();
        const int64_t before = memory.stats().current_bytes;
        const Results got = round < 0 ? counted(comm, places[i]) : places[i].run(comm, after_forward);
        const double end = now_s();
        if (round >= 0) {
          mine.resize(static_cast<size_t>(rounds) * places.size());
          mine[static_cast<size_t>(round) * places.size() + i] = {after_forward - begin, end - begin};
          continue;
        }
        std::vector<int64_t>& peaks = extra[static_cast<size_t>(comm.rank())];
        peaks.resize(places.size());
        peaks[i] = memory.stats().peak_bytes - before;
        sent[static_cast<size_t>(comm.rank())].push_back(dist::recorded_bytes(records.path(), comm.rank()));
        const std::vector<int32_t> at = cases[i].layout.positions(comm.rank());
        const std::string of = str(cases[i].name(), ", ", mask.name, ", ", kernel.name);
        check_equal(got.out, expected.out, at, of + ", out"), check_equal(got.dq, expected.dq, at, of + ", dq");
        check_equal(got.dk, expected.dk, at, of + ", dk"), check_equal(got.dv, expected.dv, at, of + ", dv");
      }
  };
  dist::run_thread_ranks(ranks, run_rank, {.threads_per_rank = 1});
  std::vector<RingMeasured> measured;
  for (size_t i = 0; i < cases.size(); ++i) {
    RingMeasured m;
    std::vector<double> forward, both, seconds;
    for (size_t round = 0; round < alone.size(); ++round) {
      Round slowest;
      for (const std::vector<Round>& of_rank : times) {
        const Round& r = of_rank[round * cases.size() + i];
        slowest = {std::max(slowest.forward, r.forward), std::max(slowest.both, r.both)};
      }
      forward.push_back(slowest.forward / alone[round].forward), both.push_back(slowest.both / alone[round].both);
      seconds.push_back(slowest.both);
    }
    if (rounds > 0) m.forward = median(forward), m.both = median(both), m.seconds = median(seconds);
    for (const std::vector<int64_t>& peaks : extra) m.extra_bytes = std::max(m.extra_bytes, peaks[i]);
    for (const std::vector<int64_t>& of_rank : sent) m.sent_bytes = std::max(m.sent_bytes, of_rank[i]);
    measured.push_back(m);
  }
  return measured;
}

}  // namespace weft::bench
