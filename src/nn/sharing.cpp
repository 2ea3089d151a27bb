#include "weft/nn/sharing.h"

#include <algorithm>
#include <numeric>

#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/nn/context_group.h"

namespace weft {

Sharing::Sharing(const TokenTable& table, const TokensOptions& options)
    : table_(table),
      is_training_(options.is_training),
      takes_diagnostics_(options.takes_diagnostics),
      is_first_rank_(!options.context || options.context->of_batch().rank() == 0),
      loss_share_(options.loss_share) {}

// A bare recompute() runs its function first without recording gradients. A value that leaves the function other than as its output
// would have no gradient.
void Sharing::check_recorded(std::string_view what, std::string_view name) const {
  WEFT_CHECK(!is_training_ || !is_first_forward_of_recompute() || recomputed_depth_ > 0,
             str(what, ": '", name, "' comes from inside recompute()"),
             "use Tokens::recomputed(), or return it as an output of recompute() and pass it on outside");
}

Var Sharing::recomputed(const std::function<Var(const Var&)>& f, const Var& x_BTD) {
  struct Left {  // by the side, in the order of the outputs after the first
    std::vector<std::string> shared;
    std::vector<Loss> losses;
  };
  Shared outside = shared_;
  struct Inside {
    int& depth;
    explicit Inside(int& depth) : depth(++depth) {}
    ~Inside() { --depth; }
  };
  auto left = std::make_shared<Left>();
  // Values enter as inputs and leave as outputs; in between, this object holds what the block sees.
  auto block = [this, f, outside, left](std::span<const Var> in) {
    Shared kept = std::exchange(shared_, outside);
    size_t num_losses = losses_.size();
    for (size_t i = 0; i < outside.size(); ++i) shared_[i].second = in[1 + i];
    std::vector<Var> out;
    {
      Inside inside{recomputed_depth_};
      out.push_back(f(in[0]));
    }
    *left = {};
    for (size_t i = 0; i < shared_.size(); ++i) {
      bool is_same = i < outside.size() && shared_[i].second.value().shares_memory_with(in[1 + i].value()) &&
                     shared_[i].second.shape() == in[1 + i].shape();
      if (is_same) continue;
      left->shared.push_back(shared_[i].first);
      out.push_back(shared_[i].second);
    }
    for (size_t i = num_losses; i < losses_.size(); ++i) {
      left->losses.push_back(losses_[i]);
      out.push_back(losses_[i].value);
    }
    losses_.resize(num_losses);
    shared_ = std::move(kept);
    return out;
  };
  std::vector<Var> inputs{x_BTD};
  for (const auto& [name, value] : outside) inputs.push_back(value);
  std::vector<Var> out = weft::recompute(block, inputs);
  size_t next = 1;
  for (const std::string& name : std::vector<std::string>(left->shared)) {
    check_recorded("share", name);
    auto known = std::ranges::find_if(shared_, [&](const auto& of) { return of.first == name; });
    if (known != shared_.end()) known->second = out[next++];  // what an earlier layer left, as the block gives it back
    else shared_.emplace_back(name, out[next++]);
  }
  for (const Loss& loss : left->losses) losses_.push_back({loss.name, out[next++], loss.weight});
  left->losses.clear();  // their values are not needed for backward
  return out[0];
}

void Sharing::share(std::string_view name, const Var& value) {
  check_recorded("share", name);
  WEFT_CHECK(!has_shared(name),
             str("share: '", name, "' is there already: another layer's, or that of an earlier forward"),
             "name values by the layer that leaves them, and make Tokens for each forward");
  shared_.emplace_back(std::string(name), value);
}

bool Sharing::has_shared(std::string_view name) const {
  return std::any_of(shared_.begin(), shared_.end(), [&](const auto& known) { return known.first == name; });
}

const Var& Sharing::shared(std::string_view name) const {
  std::string names;
  for (const auto& [known, var] : shared_) {
    if (known == name) return var;
    names += names.empty() ? known : ", " + known;
  }
  fail(str("shared: no value '", name, "'"),
       str("an earlier layer must share() it; there are: ", names.empty() ? "none" : names));
}

void Sharing::add_loss(std::string_view name, const Var& value, double weight) {
  check_recorded("add_loss", name);
  if (!is_training_) return;
  std::string path = Scope::path();
  losses_.push_back({path.empty() ? std::string(name) : str(path, ".", name), value,
                     weight * loss_share_ * (is_first_rank_ ? 1 : 0)});
}

void Sharing::accumulate(Buffer& buffer, const Var& sum, const Var& count) {
  if (is_training_ && !is_recomputing() && is_first_rank_) buffer.add(sum.value(), count.value());
}

bool Sharing::takes_reports() const { return takes_diagnostics_ && !is_recomputing(); }

void Sharing::report(std::string_view name, double sum, double count) {
  if (takes_reports() && count > 0) reports_.push_back({str(Scope::path(), ".", name), sum, count});
}

void Sharing::report_max(std::string_view name, double value) {
  if (takes_reports()) reports_.push_back({str(Scope::path(), ".", name), value, 1, true});
}

void Sharing::report_means(std::string_view name, const Var& x) {
  if (!takes_reports()) return;
  NoGrad no_grad;
  WEFT_CHECK(x.num_dims() >= 3 && x.size(0) == table_.batch() && x.size(1) == table_.num_tokens(),
             str("report_means: '", name, "' is ", x.value(), ", the tokens are [", table_.batch(), ", ",
                 table_.num_tokens(), "]"),
             "give [B, T, ..., N]");
  std::vector<int> dims(static_cast<size_t>(x.num_dims()) - 3);  // of those behind [B, T], all but the last
  std::iota(dims.begin(), dims.end(), 0);
  const int64_t last = x.size(-1),
                each = x.value().num_elements() / std::max<int64_t>(table_.batch() * table_.num_tokens() * last, 1);
  auto sums = sum(table_.sum_here(cast(x, kF64)), dims).value().to_vector<double>();
  const double tokens = table_.sum_here(cast(Var(table_.counted()), kF64)).value().item();
  const double count = tokens * static_cast<double>(each);
  for (size_t i = 0; i < sums.size(); ++i) report(str(name, "/", i), sums[i], count);
}

}  // namespace weft
