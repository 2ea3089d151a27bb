// What a training sets up for several ranks: who has which rows, in which buckets gradients are summed, and who updates what.
#include <algorithm>

#include "src/training/state.h"
#include "weft/core/error.h"

namespace weft {

namespace {

// Work of five Newton-Schulz steps, up to a factor: products of [small, small] and [small, large].
double muon_cost(const Tensor& matrix) {
  const auto rows = static_cast<double>(matrix.size(0)), columns = static_cast<double>(matrix.size(1));
  const double small = std::min(rows, columns), large = std::max(rows, columns);
  return small * small * (2 * large + small);
}

// Of parameters that one rank must have whole; 0 for the others.
std::vector<double> whole_costs(const TrainingOptions& options, std::span<const OptimizerParam> params) {
  std::vector<double> costs;
  for (const OptimizerParam& p : params) {
    if (options.optimizer) {
      costs.push_back(static_cast<double>(p.value.num_elements()));
      continue;
    }
    const size_t group = group_of(options.groups, p);
    const bool is_muon =
        group < options.groups.size() && std::holds_alternative<MuonOptions>(options.groups[group].algorithm);
    costs.push_back(is_muon && p.value.num_dims() == 2 ? muon_cost(p.value) : 0);
  }
  return costs;
}

}  // namespace

void Training::State::make_ranks() {
  const RanksOptions& o = options.ranks;
  WEFT_CHECK(o.zero >= 0 && o.zero <= 2 && o.bucket_bytes > 0,
             str("training: ranks.zero is ", o.zero, ", ranks.bucket_bytes ", o.bucket_bytes),
             "use zero 0, 1 or 2, and buckets of at least one byte");
  WEFT_CHECK(!o.comm || !o.sums, "training: ranks.comm and ranks.sums are both given",
             "give a communicator, or sums of your own");
  WEFT_CHECK(o.comm || o.zero == 0, str("training: ranks.zero is ", o.zero, " without ranks.comm"),
             "give the communicator of the ranks that share the optimiser's state");
  const int size = o.comm ? o.comm->size() : 1;
  WEFT_CHECK(o.ranks_per_row >= 1 && size % o.ranks_per_row == 0,
             str("training: ranks_per_row is ", o.ranks_per_row, ", and there are ", size, " ranks"),
             "let the ranks of a row divide all ranks");
  ranks = o.sums;
  share.micro_batch = options.micro_batch;
  if (size == 1) return;

  const std::vector<OptimizerParam> trained = optimizer_params(model);
  std::vector<std::string> names;
  std::vector<Tensor> weights;
  for (const NamedParam& p : params) names.push_back(p.name), weights.push_back(p.param->value());
  check_same_weights(*o.comm, names, weights);
  share.rank = o.comm->rank() / o.ranks_per_row;
  share.ranks = size / o.ranks_per_row;
  if (!options.context && o.ranks_per_row == 1)
    alone = dist::make_self_communicator(), group = {.tokens = alone.get(), .batch = o.comm};
  std::vector<Bucket> buckets = plan_buckets(masters, o.bucket_bytes);
  if (o.zero > 0) {
    share_out(buckets, masters, whole_costs(options, trained), size);
    shards = std::make_unique<Shards>(*o.comm, trained, buckets);
  }
  comm_ranks = std::make_unique<CommRanks>(o, leaves, std::move(buckets), o.zero == 2);
  ranks = comm_ranks.get();
}

void Training::State::make_optimizer() {
  std::vector<OptimizerParam> trained = optimizer_params(model);
  if (options.optimizer) {
    optimizer = options.optimizer(shards ? shards->params_here() : std::move(trained));
    return;
  }
  if (options.groups.empty()) options.groups.emplace_back();
  if (shards)
    optimizer = std::make_unique<Optimizer>(options.groups, shards->params(), [this] { shards->fetch_parts(); });
  else optimizer = std::make_unique<Optimizer>(options.groups, std::move(trained));
}

}  // namespace weft
