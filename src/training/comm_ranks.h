// Sums over the ranks of a communicator. Gradients are summed in buckets, in the plan's order, each as soon as all of its gradients and those
// of the buckets before it are final: never in the order in which they happen to become final, which may differ between ranks.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "src/training/gradient_plan.h"
#include "src/training/job_thread.h"
#include "weft/autograd/var.h"
#include "weft/nn/sharing.h"
#include "weft/training/rank_sums.h"

namespace weft {

class CommRanks final : public RankSums {
 public:
  // `leaves`: the trained parameters, whose gradients are summed. keeps_parts: of a sum this rank keeps its parts() alone.
  CommRanks(const RanksOptions& options, std::vector<Var> leaves, std::vector<Bucket> buckets, bool keeps_parts);
  ~CommRanks() override;

  void start_step();
  void sum_counts(std::span<int64_t> counts) override;
  void sum_gradient(size_t param, Tensor& grad) override;
  void finish_gradients() override;
  void sum_values(Tensor& values) override;
  // By parameter; without numbers where this rank has no part. Then they are the caller's.
  std::vector<Tensor> take_parts();
  // One of each name, over all ranks.
  std::vector<Sharing::Report> merged(const std::vector<Sharing::Report>& reports) const;

  // Why this rank leaves a step before its end; the others learn it.
  void note_failure(std::string why) { failure_ = std::move(why); }

 private:
  void note_final(size_t param);
  void launch_final();
  void launch(size_t bucket);
  // Begin the sum of a bucket. What they return ends it.
  using End = std::function<void()>;
  End sum(size_t bucket, std::vector<Tensor> grads);
  End sum_everywhere(std::vector<Tensor> grads);
  End sum_parts(size_t bucket, const std::vector<Tensor>& grads);
  bool has_thread() const;  // of its own for buckets; else this thread begins their sums
  void end_all_but(size_t newest);
  void drop_summed();

  dist::Communicator& comm_;
  std::unique_ptr<dist::Communicator> of_buckets_;  // its operations come in between others as it happens
  std::vector<Var> leaves_;
  std::vector<Bucket> buckets_;
  std::vector<size_t> bucket_of_;  // each parameter
  const bool keeps_parts_, overlaps_;
  const bool sums_at_end_;  // of the step, and not while its backward goes on
  const Device device_;

  std::vector<bool> is_final_;   // of this step, each parameter's gradient
  std::vector<size_t> missing_;  // of each bucket: gradients that are not final yet
  size_t next_ = 0;              // the first bucket that has not been launched
  std::optional<size_t> last_;   // parameter whose other hooks may be running
  std::vector<Tensor> sums_;     // of the parts, by bucket
  std::deque<End> begun_;        // sums of this thread, oldest first
  size_t num_dropped_ = 0;       // buckets of this step whose gradients were freed
  int64_t done_before_ = 0;      // jobs, when the step began
  std::string failure_;
  JobThread thread_;  // the last member: its jobs use the others
};

// What each rank says, by rank. Every rank calls it.
std::vector<std::string> gather_texts(dist::Communicator& comm, const std::string& text, Device device);
// Error on all ranks if the weights are not the same on all, which names one.
void check_same_weights(dist::Communicator& comm, std::span<const std::string> names, std::span<const Tensor> weights);

}  // namespace weft
