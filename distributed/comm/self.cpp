// One rank: collectives are done before they are called, and a message to itself is a copy.
#include "weft/comm/communicator.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

struct Done final : Transfer {
  void wait() override {}
};

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : Communicator(0, 1, std::move(name)) {}
  void abort(std::string) noexcept override {}

 private:
  void run(const Operation&, const void*, void*) override {}
  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override {
    WEFT_CHECK(sends.size() == receives.size(),
               str("exchange: one rank sends itself ", sends.size(), " tensors and receives ", receives.size()),
               "receive what is sent");
    for (size_t i = 0; i < sends.size(); ++i) {
      Tensor to = receives[i].tensor;
      to.set_bytes(sends[i].tensor);
    }
    return std::make_unique<Done>();
  }
  std::unique_ptr<Communicator> split_off(const Operation&, int, int, std::string name) override {
    return std::make_unique<SelfCommunicator>(std::move(name));
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() { return std::make_unique<SelfCommunicator>("world"); }

}  // namespace weft::dist
