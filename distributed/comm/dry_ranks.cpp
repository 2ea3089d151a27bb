#include "weft/comm/dry_ranks.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "distributed/comm/flight_record.h"
#include "distributed/comm/sent_bytes.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

struct Done final : Transfer {
  void wait() override {}
};

}  // namespace

int64_t sent_bytes(const Operation& operation, int ranks) {
  const int64_t bytes = operation.count * static_cast<int64_t>(size_of(operation.dtype)), others = ranks - 1;
  switch (operation.kind) {
    case Collective::barrier:
    case Collective::split: return 0;
    case Collective::broadcast: return others > 0 ? bytes : 0;
    case Collective::all_reduce: return 2 * others * bytes / ranks;
    case Collective::all_gather: return others * bytes;
    case Collective::reduce_scatter:
    case Collective::all_to_all: return others * bytes / ranks;
  }
  return 0;
}

int64_t sent_bytes(std::span<const Send> sends, int me) {
  int64_t bytes = 0;
  for (const Send& s : sends) bytes += s.peer == me ? 0 : static_cast<int64_t>(s.tensor.num_bytes());
  return bytes;
}

DryCommunicator::DryCommunicator(int ranks, int rank, std::string name, const DryCommunicator* counts_with)
    : Communicator(rank, ranks, std::move(name)),
      sent_(counts_with ? counts_with->sent_ : std::make_shared<int64_t>(0)) {
  WEFT_CHECK(ranks >= 1 && rank >= 0 && rank < ranks, str("dry communicator: rank ", rank, " of ", ranks),
             "name a rank of them");
}

void DryCommunicator::abort(std::string) noexcept {}

// Integers say where tokens are, and what follows from them is planned from their values.
void DryCommunicator::run(const Operation& operation, const void* from, void* to) {
  *sent_ += sent_bytes(operation, size());
  if (operation.kind != Collective::all_gather || is_floating(operation.dtype)) return;
  const size_t bytes = static_cast<size_t>(operation.count) * size_of(operation.dtype);
  for (int r = 0; r < size(); ++r) {
    char* place = static_cast<char*>(to) + static_cast<size_t>(r) * bytes;
    std::memcpy(place, from, bytes);
    if (r != rank() && others_ && operation.dtype == kI32)
      others_(r, {reinterpret_cast<int32_t*>(place), static_cast<size_t>(operation.count)});
  }
}

std::unique_ptr<Transfer> DryCommunicator::start(std::span<const Send> sends, std::span<const Receive>) {
  *sent_ += sent_bytes(sends, rank());
  return std::make_unique<Done>();
}

std::unique_ptr<Communicator> DryCommunicator::split_off(const Operation&, int, int, std::string name) {
  auto part = std::make_unique<DryCommunicator>(size(), rank(), std::move(name), this);
  part->set_others(others_);
  return part;
}

int64_t recorded_bytes(const std::string& folder, int rank) {
  const std::string path = str(folder, "/flight-", rank, ".txt");
  std::ifstream file(path);
  std::string head;
  const size_t at = std::getline(file, head) ? head.find(FlightRecord::kSent) : std::string::npos;
  WEFT_CHECK(at != std::string::npos, str("recorded_bytes: ", path, " is no flight record"),
             "name a folder that Communicator::record_to() was given");
  return std::strtoll(head.c_str() + at + FlightRecord::kSent.size(), nullptr, 10);
}

}  // namespace weft::dist
