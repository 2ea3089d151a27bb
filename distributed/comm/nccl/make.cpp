// Ways for ranks to find each other before NCCL joins them.
#include "distributed/comm/nccl/rank.h"
#include "distributed/comm/rendezvous.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

constexpr int64_t kTextBytes = 512;

// Texts as rows of a tensor, filled up with zeros.
std::vector<std::string> gather_by(Communicator& ranks, const std::string& mine) {
  Tensor row = Tensor::zeros({1, kTextBytes}, kU8, Device::cpu());
  WEFT_CHECK(static_cast<int64_t>(mine.size()) < kTextBytes, str("NCCL: a name of ", mine.size(), " bytes"),
             "use shorter host names");
  std::copy(mine.begin(), mine.end(), row.mutable_data<uint8_t>());
  const Tensor all = ranks.all_gather(row);
  std::vector<std::string> texts;
  for (int r = 0; r < ranks.size(); ++r) {
    const auto* begin = all.data<uint8_t>() + r * kTextBytes;
    texts.emplace_back(begin, begin + kTextBytes);
  }
  return texts;
}

}  // namespace

bool has_nccl() { return true; }

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& same_ranks, const NcclOptions& options) {
  return join_by_nccl(
      open_nccl(options.device.index), same_ranks.rank(), same_ranks.size(),
      [&](const std::string& mine) { return gather_by(same_ranks, mine); }, options);
}

std::unique_ptr<Communicator> make_nccl_communicator(const std::string& rendezvous, int rank, int size,
                                                     const NcclOptions& options) {
  return join_by_nccl(
      open_nccl(options.device.index), rank, size,
      [&](const std::string& mine) { return gather_by_tcp(rendezvous, rank, size, mine, options.timeout_s); }, options);
}

}  // namespace weft::dist
