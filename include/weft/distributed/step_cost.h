// What a training step will cost on many ranks, from the sizes of the model and the figures of a machine (weft/distributed/cost_model.h). Not
// in it: what is bound by memory inside the layers (norms, activations), and the loading of data.
#pragma once

#include "weft/distributed/cost_model.h"

namespace weft::dist {

// Layers with the same attention.
struct AttentionLayers {
  int64_t layers = 0;
  int64_t heads = 1, kv_heads = 1, width = 64;
  double share = 1;  // of the causal pairs: less with a window
};

struct TrainingShape {
  int64_t tokens = 0;         // of a sequence
  int64_t rows_per_step = 1;  // sequences, over all ranks
  double params = 0, matmul_params = 0;
  std::vector<AttentionLayers> attention = {};
  int64_t bytes = 2;  // of a number in the products
};

// One way to spread a training: data x context ranks.
struct MeshChoice {
  int data = 1, context = 1;
  int64_t micro_batch = 1;
  bool recomputes = false;  // forward of the blocks again, but for attention, whose output and lse are kept
  CostedScheme scheme = CostedScheme::ring;
  LayoutKind layout = LayoutKind::zigzag;
  int ranks() const { return data * context; }
};
std::string to_string(const MeshChoice& choice);  // "data 2 x context 4, ring, zigzag, micro-batch 1, recomputes"
// One call of attention in these layers.
AttentionShape attention_shape(const TrainingShape& training, const MeshChoice& choice, const AttentionLayers& layers);
// "" or why the choice cannot run.
std::string mesh_problem(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware);

struct StepCost {
  double step_s = 0;
  double linear_s = 0, attention_s = 0, optimizer_s = 0;
  double reduce_s = 0, exposed_reduce_s = 0;    // of gradients; what backward does not hide
  double context_sent = 0, gradients_sent = 0;  // bytes per rank and step
  double context_bytes = 0;                     // memory that context attention takes beside its own tokens
};
StepCost step_cost(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware);

// Every choice of these ranks that can run, for micro-batches that are powers of two.
std::vector<MeshChoice> mesh_choices(const TrainingShape& training, int ranks, const Hardware& hardware);

}  // namespace weft::dist
