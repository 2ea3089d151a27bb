#include "src/training/saving.h"

#include <chrono>

#include "src/training/comm_ranks.h"
#include "src/training/repeating.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft {

namespace {

// What the first rank tells the others, beside the number of a tensor that it wants.
constexpr int64_t kGoOnWaiting = -1, kHasEnded = -2;
constexpr std::chrono::milliseconds kBetweenSigns{200};  // far below every time-out

// Shapes and dtypes without elements: each has an address of its own, at which there is one number.
std::vector<io::NamedTensor> without_elements(const std::vector<Shards::Whole>& wholes) {
  std::vector<io::NamedTensor> tensors;
  const auto addresses = std::make_shared<std::vector<double>>(wholes.size());
  for (size_t i = 0; i < wholes.size(); ++i)
    tensors.push_back({wholes[i].name, Tensor::borrow(&(*addresses)[i], wholes[i].shape, wholes[i].dtype, addresses)});
  return tensors;
}

}  // namespace

Saving::Saving(dist::Communicator& comm, Device device, const Shards* shards, Shards::State mine)
    : comm_(comm), device_(device), shards_(shards), mine_(std::move(mine)) {
  if (shards_) {
    wholes_ = shards_->whole_state(mine_);
    for (size_t i = 0; i < wholes_.size(); ++i) places_.emplace(wholes_[i].name, i);
    state_ = without_elements(wholes_);
  } else {
    for (const auto& [name, tensor] : mine_) state_.push_back({name, tensor});
  }
}

void Saving::tell(int64_t what) {
  Tensor number = ops::to(Tensor::from({what}, {1}), device_);
  comm_.broadcast(number, 0);
}

int64_t Saving::hear() {
  Tensor number = Tensor::zeros({1}, kI64, device_);
  comm_.broadcast(number, 0);
  return number.to_vector<int64_t>()[0];
}

Tensor Saving::take(const std::string& name) {
  const size_t i = places_.at(name);
  std::lock_guard turn(turns_);
  tell(static_cast<int64_t>(i));
  return shards_->gather(wholes_[i], mine_);
}

void Saving::follow() {
  for (int64_t told; (told = hear()) != kHasEnded;)
    if (told != kGoOnWaiting) shards_->gather(wholes_[static_cast<size_t>(told)], mine_);
}

std::string Saving::led(const std::function<std::string()>& f, std::string& problem, std::string& fix) {
  const Repeating signs(kBetweenSigns, [this] {
    std::lock_guard turn(turns_);
    tell(kGoOnWaiting);
  });
  try {
    return f();
  } catch (const Error& e) { problem = e.problem(), fix = e.fix(); }
  return {};
}

std::string Saving::write(const std::function<std::string()>& f) {
  std::string path, problem, fix;
  if (comm_.rank() == 0) {
    path = led(f, problem, fix);
    tell(kHasEnded);
  } else {
    follow();
  }
  const std::string said = gather_texts(comm_, path + '\n' + problem + '\n' + fix, device_)[0];
  const size_t first = said.find('\n'), second = said.find('\n', first + 1);
  if (second > first + 1) fail(said.substr(first + 1, second - first - 1), said.substr(second + 1));
  return said.substr(0, first);
}

}  // namespace weft
