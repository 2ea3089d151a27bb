// How the ranks of a training save: the first one writes, and has of the optimiser's state, which the others may have parts of, one whole tensor
// at a time. The others hear of it meanwhile, however long it takes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "src/training/shards.h"
#include "weft/io/safetensors.h"

namespace weft {

class Saving {
 public:
  // Every rank makes one. `mine`: the optimiser's state here. `shards`: null where each rank has all of it.
  Saving(dist::Communicator& comm, Device device, const Shards* shards, Shards::State mine);

  // The state of all ranks, with memory only where this rank has all of it; else take() has the elements.
  const std::vector<io::NamedTensor>& state() const { return state_; }
  bool has_parts() const { return !wholes_.empty(); }
  // A tensor of the state, while write() is in its function.
  Tensor take(const std::string& name);

  // f() on the first rank; its text, or its Error, on all. Every rank calls it.
  std::string write(const std::function<std::string()>& f);

 private:
  void tell(int64_t what);
  int64_t hear();
  std::string led(const std::function<std::string()>& f, std::string& problem, std::string& fix);
  void follow();

  dist::Communicator& comm_;
  const Device device_;
  const Shards* shards_;
  const Shards::State mine_;
  std::vector<Shards::Whole> wholes_;
  std::map<std::string, size_t, std::less<>> places_;  // in wholes_
  std::vector<io::NamedTensor> state_;
  std::mutex turns_;  // of the first rank's two threads at the communicator
};

}  // namespace weft
