// Attention as a graph: shares of weights, rollout, flow. T tokens, L layers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/models/analysis.h"

namespace weft {

namespace {

// own I + (1 - own) A
std::vector<double> passed_on(const Tensor& layer, double own) {
  const int64_t T = layer.size(0);
  WEFT_CHECK(layer.num_dims() == 2 && layer.size(1) == T && layer.dtype() == kF64,
             str("attention graph: a layer's shares are ", layer), "give [T, T] f64, one row of weight_shares()");
  auto m = layer.to_vector<double>();
  for (int64_t i = 0; i < T * T; ++i) m[static_cast<size_t>(i)] *= 1 - own;
  for (int64_t i = 0; i < T; ++i) m[static_cast<size_t>(i * T + i)] += own;
  return m;
}

void check_layers(std::span<const Tensor> layers, double own) {
  WEFT_CHECK(!layers.empty() && own >= 0 && own <= 1,
             str("attention graph: ", layers.size(), " layers, own share ", own),
             "give at least one layer, and a share in [0, 1]");
  for (const Tensor& layer : layers)
    WEFT_CHECK(layer.shape() == layers[0].shape(), str("attention graph: layers ", layers[0], " and ", layer),
               "all layers see the same tokens");
}

// Largest flow in a small graph: Dinic (1970). Capacities are real numbers; what is below kTiny counts as nothing.
class FlowGraph {
 public:
  explicit FlowGraph(size_t nodes) : first_(nodes) {}

  void add(size_t from, size_t to, double capacity) {
    if (capacity <= 0) return;
    first_[from].push_back(edges_.size());
    edges_.push_back({to, capacity, capacity});
    first_[to].push_back(edges_.size());
    edges_.push_back({from, 0, 0});
  }

  double largest(size_t source, size_t sink) {
    for (Edge& edge : edges_) edge.left = edge.capacity;
    double flow = 0;
    while (find_levels(source, sink)) {
      next_.assign(first_.size(), 0);
      while (double more = push(source, sink, std::numeric_limits<double>::infinity())) flow += more;
    }
    return flow;
  }

 private:
  static constexpr double kTiny = 1e-13;
  struct Edge {
    size_t to;
    double capacity, left;
  };

  bool find_levels(size_t source, size_t sink) {
    level_.assign(first_.size(), -1);
    level_[source] = 0;
    std::queue<size_t> todo({source});
    for (; !todo.empty(); todo.pop())
      for (size_t e : first_[todo.front()])
        if (edges_[e].left > kTiny && level_[edges_[e].to] < 0) {
          level_[edges_[e].to] = level_[todo.front()] + 1;
          todo.push(edges_[e].to);
        }
    return level_[sink] >= 0;
  }

  double push(size_t at, size_t sink, double limit) {
    if (at == sink) return limit;
    for (size_t& i = next_[at]; i < first_[at].size(); ++i) {
      size_t e = first_[at][i];
      if (edges_[e].left <= kTiny || level_[edges_[e].to] != level_[at] + 1) continue;
      double pushed = push(edges_[e].to, sink, std::min(limit, edges_[e].left));
      if (pushed <= 0) continue;
      edges_[e].left -= pushed;
      edges_[e ^ 1].left += pushed;
      return pushed;
    }
    return 0;
  }

  std::vector<std::vector<size_t>> first_;  // edges of a node; e ^ 1 is the way back
  std::vector<Edge> edges_;
  std::vector<int> level_;
  std::vector<size_t> next_;
};

}  // namespace

Tensor weight_shares(const Tensor& weights_BTHS, bool is_softmax) {
  WEFT_CHECK(weights_BTHS.num_dims() == 4, str("weight_shares: weights are ", weights_BTHS), "give [B, T, H, S]");
  const int64_t B = weights_BTHS.size(0), T = weights_BTHS.size(1), H = weights_BTHS.size(2), S = weights_BTHS.size(3);
  const std::vector<double> all = cast(Var(weights_BTHS), kF64).value().to_vector<double>();
  Tensor shares = Tensor::zeros({B, T, S}, kF64, Device::cpu());
  auto* out = shares.mutable_data<double>();
  for (int64_t i = 0; i < B * T * H; ++i) {
    const double* row = all.data() + i * S;
    double sum = 0;
    for (int64_t j = 0; j < S; ++j) sum += std::abs(row[j]);
    double unit = static_cast<double>(H) * (is_softmax ? 1 : std::max(sum, 1e-30));
    for (int64_t j = 0; j < S; ++j) out[i / H * S + j] += std::abs(row[j]) / unit;
  }
  return shares;
}

Tensor attention_rollout(std::span<const Tensor> layers, double own) {
  check_layers(layers, own);
  const auto T = static_cast<size_t>(layers[0].size(0));
  std::vector<double> rollout(T * T, 0.0), next(T * T);
  for (size_t i = 0; i < T; ++i) rollout[i * T + i] = 1;
  for (const Tensor& layer : layers) {
    std::vector<double> m = passed_on(layer, own);
    std::fill(next.begin(), next.end(), 0.0);
    for (size_t i = 0; i < T; ++i)
      for (size_t k = 0; k < T; ++k)
        for (size_t j = 0; j < T; ++j) next[i * T + j] += m[i * T + k] * rollout[k * T + j];
    rollout.swap(next);
  }
  return Tensor::from(std::span<const double>(rollout), {layers[0].size(0), layers[0].size(0)});
}

Tensor attention_flow(std::span<const Tensor> layers, int64_t query, double own) {
  check_layers(layers, own);
  const int64_t T = layers[0].size(0);
  WEFT_CHECK(T <= 64 && query >= 0 && query < T, str("attention_flow: query ", query, " of ", T, " tokens"),
             "use at most 64 tokens: a maximum flow per input grows fast");
  const auto n = static_cast<size_t>(T);
  FlowGraph graph((layers.size() + 1) * n);
  for (size_t l = 0; l < layers.size(); ++l) {
    std::vector<double> m = passed_on(layers[l], own);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j) graph.add((l + 1) * n + i, l * n + j, m[i * n + j]);
  }
  std::vector<double> flow;
  for (size_t j = 0; j < n; ++j) flow.push_back(graph.largest(layers.size() * n + static_cast<size_t>(query), j));
  return Tensor::from(std::span<const double>(flow), {T});
}

}  // namespace weft
