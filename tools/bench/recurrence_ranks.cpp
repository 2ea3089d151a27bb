// Forward and backward of a recurrence whose tokens two ranks share, beside one rank with the threads of both. The limit is the rate of that
// one rank, measured in turn.
#include "tools/bench/recurrence_ranks.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/rng.h"
#include "weft/distributed/context_recurrence.h"
#include "weft/ops/elementwise.h"

namespace weft::bench {

namespace {

constexpr int64_t kHeads = 8, kWidth = 64;
constexpr int kRanks = 2;

struct Kind {
  const char* name;
  bool is_delta, has_channels;
  dist::Carry carry;
  double goal;  // share of the rate of one rank
};
const Kind kKinds[] = {{"plain", false, false, dist::Carry::scan, 0.95},
                       {"plain", false, false, dist::Carry::gather, 0},
                       {"plain key channels", false, true, dist::Carry::scan, 0.95},
                       {"plain key channels", false, true, dist::Carry::gather, 0},
                       {"delta", true, false, dist::Carry::scan, 0.85},
                       {"delta", true, false, dist::Carry::gather, 0},
                       {"delta key channels", true, true, dist::Carry::scan, 0.85}};

Tensor numbers(const Shape& shape, const char* name, double low, double high) {
  const Rng rng = Rng(7)[name];
  Tensor t = Tensor::empty(shape, kF32, Device::cpu());
  float* x = t.mutable_data<float>();
  parallel_for(t.num_elements(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      x[i] = static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  });
  return t;
}

struct Inputs {
  ops::RecurrenceInput in;
  Tensor dout;
};

Inputs whole(const Kind& kind, int64_t tokens) {
  const Shape shape{1, tokens, kHeads, kWidth}, gates{1, tokens, kHeads};
  const double unit = std::sqrt(3.0 / kWidth);
  return {{.q_BTGK = numbers(shape, "q", -1, 1),
           .k_BTGK = numbers(shape, "k", -unit, unit),
           .v_BTHV = numbers(shape, "v", -1, 1),
           .log_decay = numbers(kind.has_channels ? shape : gates, "g", -0.2, 0),
           .beta = kind.is_delta ? numbers(gates, "beta", 0, 1) : Tensor()},
          numbers(shape, "dout", -1, 1)};
}

// Of a rank its parts of the row, each a segment [J, L, ...].
Inputs part_of(const Inputs& all, const std::vector<int64_t>& parts, int64_t length) {
  auto part = [&](const Tensor& x) {
    if (!x.defined()) return x;
    Shape shape = x.shape();
    shape[0] = static_cast<int64_t>(parts.size()), shape[1] = length;
    Tensor out = Tensor::empty(shape, x.dtype(), x.device());
    for (size_t j = 0; j < parts.size(); ++j) {
      const auto at = static_cast<int64_t>(j);
      Tensor row = out.slice(0, at, at + 1);
      ops::copy_(row, x.slice(1, parts[j] * length, (parts[j] + 1) * length));
    }
    return out;
  };
  const ops::RecurrenceInput& in = all.in;
  return {{.q_BTGK = part(in.q_BTGK),
           .k_BTGK = part(in.k_BTGK),
           .v_BTHV = part(in.v_BTHV),
           .log_decay = part(in.log_decay),
           .beta = part(in.beta)},
          part(all.dout)};
}

// By rank, which of so many equal parts of the row it has.
using Parts = std::vector<std::vector<int64_t>>;
struct Spread {
  const char* layout;
  Parts parts;
};
const Spread kSpreads[] = {{"contiguous", {{0}, {1}}}, {"zigzag", {{0, 3}, {1, 2}}}};

dist::SegmentPlan plan_of(const Parts& parts, int64_t count) {
  dist::SegmentPlan plan;
  plan.segments.resize(static_cast<size_t>(count));
  for (size_t r = 0; r < parts.size(); ++r) {
    plan.most = std::max(plan.most, static_cast<int64_t>(parts[r].size()));
    for (size_t j = 0; j < parts[r].size(); ++j)
      plan.segments[static_cast<size_t>(parts[r][j])] = {.rank = static_cast<int32_t>(r),
                                                         .index = static_cast<int32_t>(j),
                                                         .comes_in = parts[r][j] > 0,
                                                         .passes = parts[r][j] > 0};
  }
  return plan;
}

// The best of some rounds, of one rank and of ranks under each spread. Ranks stay for all rounds, as those of a training do: their memory is
// theirs and cached.
std::vector<double> seconds_of(const Kind& kind, const Inputs& all, int64_t tokens, double budget_s, int min_rounds) {
  constexpr size_t kCases = 1 + std::size(kSpreads);
  std::vector<std::vector<double>> last(kRanks, std::vector<double>(kCases));
  std::vector<double> result(kCases, 1e30);
  bool goes_on = true;
  dist::run_thread_ranks(
      kRanks,
      [&](dist::Communicator& comm) {
        const auto rank = static_cast<size_t>(comm.rank());
        std::vector<Inputs> mine;
        std::vector<dist::SegmentPlan> plans;
        for (const Spread& spread : kSpreads) {
          const auto count = static_cast<int64_t>(kRanks * spread.parts[0].size());
          mine.push_back(part_of(all, spread.parts[rank], tokens / count));
          plans.push_back(plan_of(spread.parts, count));
        }
        auto run = [&](size_t i) {
          if (i == 0) {
            if (rank != 0) return;
            set_num_threads(kRanks);
            ops::recur(all.in);
            ops::recur_backward(all.dout, {}, all.in);
            set_num_threads(1);
            return;
          }
          const dist::ContextRecurrence y = dist::context_recur(comm, plans[i - 1], kind.carry, mine[i - 1].in);
          dist::context_recur_backward(comm, plans[i - 1], kind.carry, mine[i - 1].dout, {}, y, mine[i - 1].in);
        };
        const double end = now_s() + budget_s;
        for (int round = -1; goes_on; ++round) {  // the first one fills caches
          for (size_t j = 0; j < kCases; ++j) {
            const size_t i = (j + static_cast<size_t>(round + 1)) % kCases;  // no one is always first
            comm.barrier();
            const double begin = now_s();
            run(i);
            last[rank][i] = now_s() - begin;
          }
          comm.barrier();
          if (rank == 0) {
            for (size_t i = 0; i < kCases && round >= 0; ++i)
              result[i] = std::min(result[i], i == 0 ? last[0][0] : std::max(last[0][i], last[1][i]));
            goes_on = round < min_rounds || now_s() < end;
          }
          comm.barrier();
        }
      },
      {.threads_per_rank = 1});
  return result;
}

void add_kind(const Kind& kind, int64_t tokens, const BenchOptions& options, std::vector<Row>& rows) {
  const std::vector<double> seconds =
      seconds_of(kind, whole(kind, tokens), tokens, options.quick ? options.effort : 12, options.quick ? 2 : 5);
  auto rate = [&](size_t i) { return static_cast<double>(tokens) / seconds[i] * 1e-3; };
  for (size_t i = 0; i < std::size(kSpreads); ++i) {
    rows.push_back(rate_row(str(kRanks, " ranks ", kind.name, ", ", kSpreads[i].layout, ", ", to_string(kind.carry)),
                            str("B1 H", kHeads, " d", kWidth, " T", tokens), kF32, rate(i + 1), "tokens/ms", rate(0)));
    if (kind.goal > 0) rows.back().extra = {{"goal", str(kind.goal)}};
  }
}

}  // namespace

void add_recurrence_ranks(const BenchOptions& options, std::vector<Row>& rows) {
  const int64_t tokens = options.quick ? static_cast<int64_t>(8192 * options.effort) : 65536;
  for (const Kind& kind : kKinds) add_kind(kind, tokens, options, rows);
}

}  // namespace weft::bench
