// Attention Residuals (2603.15031) and Delta Attention Residuals (2605.18855) as points of one space: sources x combine x weights.
// Sublayers are l = 0 .. L-1; the first reads e. There is one router per later sublayer, and with `replace` one more for the output.
#include <algorithm>

#include "src/nn/residual/depth_router.h"
#include "weft/core/error.h"

namespace weft {

namespace {

RoutedResidualOptions checked(RoutedResidualOptions o, const ResidualArgs& args) {
  WEFT_CHECK(args.dim >= 1 && args.sublayers >= 1, str("residual: dim ", args.dim, ", sublayers ", args.sublayers),
             "both must be 1 or more");
  if (o.blocks == 0) o.blocks = std::min<int64_t>(8, args.sublayers);
  WEFT_CHECK(o.sources != ResidualSources::block_sums || (o.blocks >= 1 && o.blocks <= args.sublayers),
             str("residual: ", o.blocks, " blocks of ", args.sublayers, " sublayers (two per layer)"),
             str("use 1 .. ", args.sublayers, " blocks"));
  WEFT_CHECK(o.window >= 0 && (o.window == 0 || o.sources == ResidualSources::outputs),
             str("residual: a depth window of ", o.window), "windows are positive and go with outputs as sources");
  WEFT_CHECK(o.query_std >= 0 && o.group >= 0, str("residual: query_std ", o.query_std, ", group ", o.group),
             "use 0 or more");
  return o;
}

// Where blocks end: exactly `blocks` of them, ceil(sublayers / blocks) sublayers each as long as one is left for every later block.
std::vector<int64_t> block_ends(int64_t sublayers, int64_t blocks) {
  std::vector<int64_t> ends;
  const int64_t length = (sublayers + blocks - 1) / std::max<int64_t>(blocks, 1);
  for (int64_t n = 1, end = 0; n <= blocks; ++n) ends.push_back(end = std::min(end + length, sublayers - (blocks - n)));
  return ends;
}

class RoutedResidual;

// What has been written so far, and the sources that it makes.
class RoutedStream final : public ResidualStream {
 public:
  RoutedStream(RoutedResidual& residual, const Var& x, Tokens& tokens);
  Var input() override;
  void write(const Var& y) override;
  Var output() override;

 private:
  std::vector<DepthSource> sources() const;
  void keep(const Var& value);
  Var mixed();
  Var mixed_in_group();

  RoutedResidual& residual_;
  Tokens& tokens_;
  std::vector<DepthSource> finished_;
  Var block_;            // of block_sums: the running block, undefined at its start
  DepthSource partial_;  // the same as a source, where it is one
  Var sum_;              // p
  int64_t sublayer_ = 0;
  // The sublayers that read `shared_` of the finished sources together, the first of them `group_begin_`.
  std::unique_ptr<DepthGroup> group_;
  int64_t group_begin_ = 0, group_end_ = 0, shared_ = 0;
};

class RoutedResidual final : public Residual {
 public:
  RoutedResidual(const RoutedResidualOptions& options, const ResidualArgs& args, Rng rng)
      : o(checked(options, args)),
        args(args),
        ends(block_ends(args.sublayers, o.sources == ResidualSources::block_sums ? o.blocks : 0)) {
    const bool has_output = o.combine == ResidualCombine::replace;
    for (int64_t l = 1; l < args.sublayers + (has_output ? 1 : 0); ++l) {
      routers.push_back(std::make_unique<DepthRouter>(o, args.dim, num_sources(l) + (o.has_null_source ? 1 : 0),
                                                      rng[static_cast<uint64_t>(l)]));
      name_part({l < args.sublayers ? str("routers.", l) : "output", *routers.back()});
    }
  }
  std::unique_ptr<ResidualStream> start(const Var& x_BTD, Tokens& tokens) override {
    return std::make_unique<RoutedStream>(*this, x_BTD, tokens);
  }

  // Whether sublayers read in groups: not where two phases do not apply.
  bool has_groups() const {
    const bool is_possible = o.weights == ResidualWeights::softmax && !o.has_null_source && o.window == 0;
    const bool are_single = o.group == 1 || (o.group == 0 && std::ssize(ends) == args.sublayers);
    return is_possible && !are_single;
  }
  // Where the group of sublayer l ends.
  int64_t group_end(int64_t l) const {
    if (o.group == 0 && o.sources == ResidualSources::block_sums)
      return l < args.sublayers ? *std::upper_bound(ends.begin(), ends.end(), l) : l + 1;
    const int64_t length = o.group > 0 ? o.group : 8;
    return (l / length + 1) * length;
  }
  // Blocks that are finished before sublayer l, and whether it is the first behind one.
  int64_t finished_blocks(int64_t l) const { return std::upper_bound(ends.begin(), ends.end(), l) - ends.begin(); }
  bool is_block_end(int64_t l) const { return std::binary_search(ends.begin(), ends.end(), l); }
  // That sublayer l (or the output, l = L) reads.
  int64_t num_sources(int64_t l) const {
    if (o.sources != ResidualSources::block_sums) return o.window > 0 ? 1 + std::min(l, o.window) : 1 + l;
    bool reads_partial = o.combine == ResidualCombine::replace && l > 0 && !is_block_end(l);
    return 1 + finished_blocks(l) + (reads_partial ? 1 : 0);
  }

  RoutedResidualOptions o;
  ResidualArgs args;
  std::vector<int64_t> ends;                          // of blocks
  std::vector<std::unique_ptr<DepthRouter>> routers;  // of sublayers 1 .., then of the output
};

RoutedStream::RoutedStream(RoutedResidual& residual, const Var& x, Tokens& tokens)
    : residual_(residual), tokens_(tokens), sum_(x) {
  keep(x);
}

void RoutedStream::keep(const Var& value) {
  finished_.push_back(depth_source(value, residual_.o, residual_.args.norm_eps));
}

std::vector<DepthSource> RoutedStream::sources() const {
  std::vector<DepthSource> all = finished_;
  const int64_t window = residual_.o.window, extra = static_cast<int64_t>(all.size()) - 1 - window;
  if (window > 0 && extra > 0) all.erase(all.begin() + 1, all.begin() + 1 + extra);
  if (residual_.o.combine == ResidualCombine::replace && partial_.value().defined()) all.push_back(partial_);
  return all;
}

Var RoutedStream::input() {
  if (sublayer_ == 0) return sum_;
  return residual_.o.combine == ResidualCombine::add ? sum_ + mixed() : mixed();
}

// Of the router whose turn it is: that of this sublayer, or of the output.
Var RoutedStream::mixed() {
  if (residual_.has_groups()) return mixed_in_group();
  return (*residual_.routers[static_cast<size_t>(sublayer_ - 1)])(sources(), tokens_);
}

Var RoutedStream::mixed_in_group() {
  const auto& routers = residual_.routers;  // of sublayer l at l - 1
  const auto at = sublayer_ - 1, all = static_cast<int64_t>(routers.size());
  auto router = [&](int64_t l) -> const DepthRouter& { return *routers[static_cast<size_t>(l - 1)]; };
  if (!group_ || sublayer_ >= group_end_) {
    group_begin_ = sublayer_, group_end_ = std::min(residual_.group_end(sublayer_), all + 1);
    const DType wide = finished_[0].value().dtype() == kF64 ? kF64 : kF32;
    std::vector<Var> directions;
    for (int64_t l = group_begin_; l < group_end_; ++l) directions.push_back(unsqueeze(router(l).direction(wide), 0));
    shared_ = static_cast<int64_t>(finished_.size());
    group_ = std::make_unique<DepthGroup>(finished_, concatenate(directions, 0),
                                          residual_.o.combine == ResidualCombine::replace);
  }
  std::vector<DepthSource> now = sources();
  return router(at + 1).read(*group_, sublayer_ - group_begin_, std::span(now).subspan(static_cast<size_t>(shared_)),
                             tokens_);
}

void RoutedStream::write(const Var& y) {
  const RoutedResidualOptions& o = residual_.o;
  ++sublayer_;
  if (o.combine == ResidualCombine::add || o.sources == ResidualSources::states) sum_ = sum_ + y;
  switch (o.sources) {
    case ResidualSources::outputs: return keep(y);
    case ResidualSources::states: return keep(sum_);
    case ResidualSources::block_sums: break;
  }
  block_ = block_.defined() ? block_ + y : y;
  bool is_end = residual_.is_block_end(sublayer_);
  partial_ = {};
  if (is_end) keep(std::exchange(block_, Var()));
  else if (o.combine == ResidualCombine::replace) partial_ = depth_source(block_, o, residual_.args.norm_eps);
}

Var RoutedStream::output() { return residual_.o.combine == ResidualCombine::add ? sum_ : mixed(); }

}  // namespace

std::unique_ptr<Residual> RoutedResidualOptions::operator()(const ResidualArgs& args, Rng rng) const {
  return std::make_unique<RoutedResidual>(*this, args, rng);
}

}  // namespace weft
