// One of several ranks where the others do not exist, for dry runs (weft/core/dry_run.h): all that it calls returns at once, and it counts what
// it would have sent. What comes from the others are no numbers, but for integers that are gathered, which plans are made from.
#pragma once

#include "weft/comm/communicator.h"

namespace weft::dist {

class DryCommunicator final : public Communicator {
 public:
  // `counts_with`: its count is the one of this communicator too.
  DryCommunicator(int ranks, int rank, std::string name = "world", const DryCommunicator* counts_with = nullptr);
  void abort(std::string why) noexcept override;
  // Makes of the integers that this rank gives to an all_gather those that another one gives; unset: the same. Parts that are split off do so too.
  using Others = std::function<void(int rank, std::span<int32_t> numbers)>;
  void set_others(Others others) { others_ = std::move(others); }
  // By messages, and by collectives as rings of ranks do them: an all_reduce of m bytes sends 2 (P - 1) / P m. So does recorded_bytes().
  int64_t bytes_sent() const { return *sent_; }

 private:
  void run(const Operation& operation, const void* from, void* to) override;
  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override;
  // Of all ranks, whatever the colors.
  std::unique_ptr<Communicator> split_off(const Operation& operation, int color, int key, std::string name) override;
  bool takes(Device) const override { return true; }

  std::shared_ptr<int64_t> sent_;
  Others others_ = {};
};

// What a rank has sent since Communicator::record_to(folder), by all communicators that are recorded with it. Error if there is no record.
int64_t recorded_bytes(const std::string& folder, int rank);

}  // namespace weft::dist
