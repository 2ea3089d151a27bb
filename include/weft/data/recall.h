// Tasks of recall: rows of ids whose targets can only be known from something earlier in the row.
//   RecallTask task(MqarOptions{.pairs = 8}, /*context=*/64, /*seed=*/1);
//   Batch batch = task.samples(Split::train)(0, 16);
// A row is a pure function of (seed, split, index). Whether a row belongs to training or to tests is decided by a hash of its content, what a
// model would have to remember. So no content of a test is ever trained on, whatever the seeds. Test rows do not depend on the seed.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "weft/data/samples.h"

namespace weft::data {

// Multi-query associative recall (Zoology, 2312.04927): `k1 v1 k2 v2 ..`, and later keys alone, at which the value is the target. Queries
// stand in slots of two tokens; slot j is drawn with weight (j + 1)^(power - 1). Overwriting: the pairs are followed by `updates` pairs
// that give keys a new value, and the newest one counts.
struct MqarOptions {
  int64_t vocab = 256;  // 0 filler, then keys, and values from vocab / 2 on
  int64_t pairs = 8;
  int64_t updates = 0;  // at most `pairs`
  int64_t passes = 1;   // how often the pairs are written
  double power = 0.01;
  bool has_random_filler = true;  // other tokens are any ids; otherwise 0
};

// Content among noise (id 0), then a marker (id 1) per item, at which the items are the targets in their order.
enum class CopyKind : uint8_t {
  selective,  // items at random places (2312.00752)
  delayed,    // items first, then the noise
  string,     // items, the marker, and the items again, each predicting the next (2402.01032)
  reversed,   // likewise, but from the last item to the first
};
struct CopyOptions {
  CopyKind kind = CopyKind::selective;
  int64_t items = 16;
  int64_t symbols = 16;  // ids 2 .. symbols + 1
};

// A special id stands once in the first half of random symbols and once at the end, where the target is what followed it. `repeats`: a random
// half is repeated, and each token of the second one predicts the next.
struct InductionOptions {
  int64_t symbols = 16;  // ids 0 .. symbols - 1; the special id is `symbols`
  bool repeats = false;
};

// Needles `KEY word VAL digits` in a haystack, and at the end `ASK word VAL`, which the digits must follow (RULER, 2404.06654, in ids of its
// own). The depth of the needle goes through ten steps with the rows. With `hops`, needles `KEY word VAL KEY other` lead to it.
struct NeedleOptions {
  int64_t vocab = 256;  // 1 KEY, 2 VAL, 3 ASK, digits from 4, 64 words from 14, and the haystack's ids from 78 on
  int64_t needles = 1;
  int64_t digits = 4;
  int64_t hops = 0;
};

// Every token is an element of a group, and the target at each is the product of all so far. Parity is the sum modulo 2.
enum class StateKind : uint8_t {
  sum,          // modulo `size`
  permutation,  // of `size` things; ids count them in lexicographic order
};
struct StateOptions {
  StateKind kind = StateKind::sum;
  int64_t size = 2;
};

using RecallOptions = std::variant<MqarOptions, CopyOptions, InductionOptions, NeedleOptions, StateOptions>;

enum class Split : uint8_t { train, test };

// `groups` [B, T] i32: what kind of target each is, a number of group_names(); -1 where there is no target.
struct RecallRows {
  Batch batch;
  Tensor groups;
};

class RecallTask {
 public:
  // Error that says how long a row or how large a vocabulary must be.
  RecallTask(const RecallOptions& options, int64_t context, uint64_t seed);

  std::string name() const;  // "mqar", "copy", "induction", "needle", "state"
  int64_t vocab() const;     // ids are below it
  int64_t context() const { return context_; }

  RecallRows rows(Split split, int64_t first, int64_t count) const;
  SampleSource samples(Split split) const;
  std::vector<std::string> group_names() const;

  // The number that makes the task harder: pairs, items or needles; the others have none and one size, 0. `sizes()` are those that fit into
  // the context: powers of two from 1 on, and the task's own.
  std::string size_name() const;
  std::vector<int64_t> sizes() const;
  RecallTask with_size(int64_t size) const;

  const RecallOptions& options() const { return options_; }

 private:
  RecallOptions options_;
  int64_t context_;
  uint64_t seed_;
};

// The defaults of all tasks.
std::vector<RecallOptions> recall_tasks();
std::string recall_name(const RecallOptions& options);

}  // namespace weft::data
