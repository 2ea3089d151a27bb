// What a training step will cost on many ranks, from the sizes of the model and the figures of a machine (weft/distributed/cost_model.h). Not
// in it, unless `other_s_per_token` says it: what is bound by memory inside the layers (norms, activations), and the loading of data.
#pragma once

#include <map>
#include <optional>
#include <tuple>

#include "weft/distributed/context_recurrence.h"
#include "weft/distributed/cost_model.h"

namespace weft::dist {

// Layers with the same attention.
struct AttentionLayers {
  int64_t layers = 0;
  int64_t heads = 1, kv_heads = 1, key_width = 64, value_width = 64;
  int64_t window = 0;  // 0: all earlier tokens
  double share = 1;    // of the pairs that are seen: fewer where heads are chosen
  // Above 0: keys and values of all heads are made of one latent of so many numbers, and `rotated` ones for positions (MLA). Where that is fewer
  // bytes, they travel, and attention is as wide as they are.
  int64_t latent = 0, rotated = 0;
  double forward_flops = 0,
         backward_flops = 0;  // per second, where they are known of this kind; 0: those of the hardware
  bool operator==(const AttentionLayers&) const = default;
};

// Layers with the same recurrence; `shape` without ranks, segments and device. Its threads are those of a rank of the training.
struct RecurrentLayers {
  int64_t layers = 0;
  CarryShape shape = {};
};

// Calls for neighbouring tokens: so many before and behind, of so many numbers each. A rank fetches those that are not its own.
struct NeighbourCalls {
  int64_t calls = 0, tokens = 0, numbers = 1;  // calls of one forward
  DType dtype = kF32;
};

struct TrainingShape {
  int64_t tokens = 0;         // of a sequence
  int64_t rows_per_step = 1;  // sequences, over all ranks
  double params = 0, matmul_params = 0;
  std::vector<AttentionLayers> attention = {};
  std::vector<RecurrentLayers> recurrences = {};  // their operations are in matmul_params
  std::vector<NeighbourCalls> neighbours = {};
  DType dtype = kBF16;  // of the products
  int64_t block = 64;   // of striped and balanced layouts
  std::vector<std::vector<int32_t>> documents =
      {};                        // of packed rows like those of the training; empty: a row is one document
  double other_s_per_token = 0;  // of a rank: what its work takes beside products and attention
  double update_s = -1;          // of the optimiser; below 0: by the memory that AdamW moves
};

// One way to spread a training: data x context ranks.
struct MeshChoice {
  int data = 1, context = 1;
  int64_t micro_batch = 1;
  bool recomputes = false;  // forward of the blocks again, but for attention, whose output and lse are kept
  Scheme scheme = Scheme::ring;
  LayoutKind layout = LayoutKind::zigzag;
  int zero = 0;  // what ranks share: 1 the optimiser's state, 2 gradients too
  int ranks() const { return data * context; }
};
std::string to_string(const MeshChoice& choice);  // "data 2 x context 4, ring, zigzag, micro-batch 1, recomputes"

// What is not to be chosen.
struct FixedChoices {
  std::optional<int> data = {}, context = {};
  std::optional<int64_t> micro_batch = {};
  std::optional<Scheme> scheme = {};
  std::optional<LayoutKind> layout = {};
  int zero = 0;
};
std::string to_string(const FixedChoices& fixed);  // "context 4, layout zigzag", or ""

struct StepCost {
  double step_s = 0;
  double linear_s = 0, attention_s = 0, optimizer_s = 0;
  double carry_s = 0;                           // states of recurrences, which no work hides, and waiting for them
  double others_s = 0;                          // messages of neighbouring tokens
  double reduce_s = 0, exposed_reduce_s = 0;    // of gradients; what backward does not hide
  double context_sent = 0, gradients_sent = 0;  // bytes per rank and step
  double context_bytes = 0;                     // memory that context attention takes beside its own tokens
};

// Costs of choices that differ in little: plans and costs of attention are made once.
class StepPlanner {
 public:
  StepPlanner(TrainingShape training, Hardware hardware)
      : training_(std::move(training)), hardware_(std::move(hardware)) {}

  const TrainingShape& training() const { return training_; }
  const Hardware& hardware() const { return hardware_; }

  // "" or why the choice cannot run.
  std::string problem(const MeshChoice& choice) const;
  StepCost cost(const MeshChoice& choice);  // Error where there is a problem
  // Every choice of these ranks that can run, for micro-batches that are powers of two. A sequence is shared by kMostContext ranks at most.
  std::vector<MeshChoice> choices(int ranks, const FixedChoices& fixed = {}) const;
  // Attention of a micro-batch in one of the layers training().attention[kind].
  SchemeCost attention(const MeshChoice& choice, size_t kind);
  double attention_memory(const MeshChoice& choice, size_t kind);
  // What states of training().recurrences[kind] cost in one micro-batch. Documents are not looked at.
  SchemeCost carry(const MeshChoice& choice, size_t kind) const;
  // What calls of training().neighbours[kind] cost in one micro-batch; a call sends as much backward.
  SchemeCost neighbours(const MeshChoice& choice, size_t kind) const;
  // Pairs of the busiest rank over those of the mean one: hop by hop, as a ring waits for it, and in all.
  struct Balance {
    double hops = 1, ranks = 1;
  };
  Balance balance(const MeshChoice& choice, size_t kind);

  static constexpr int kMostContext = 512;

 private:
  using Plans = std::map<std::tuple<LayoutKind, int, int64_t, int64_t>, std::vector<HopPlan>>;

  ContextShape shape(const MeshChoice& choice, size_t kind) const;
  SchemeOptions options(const MeshChoice& choice, size_t kind) const;
  int64_t rows_at_once(const MeshChoice& choice) const;  // of those that training().documents has
  const std::vector<HopPlan>& plans(const MeshChoice& choice, size_t kind);

  TrainingShape training_;
  Hardware hardware_;
  std::map<std::tuple<size_t, Scheme, LayoutKind, int, int64_t>, SchemeCost> costs_ = {};
  std::map<std::tuple<size_t, Scheme, int>, double> memory_ = {};  // of one row
  Plans plans_ = {};
};

inline StepCost step_cost(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware) {
  return StepPlanner(training, hardware).cost(choice);
}

}  // namespace weft::dist
