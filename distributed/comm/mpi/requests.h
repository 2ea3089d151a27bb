// Messages of MPI that are on their way, and the wait for them.
#pragma once

#include <mpi.h>

#include <memory>
#include <vector>

#include "distributed/comm/mpi/link.h"

namespace weft::dist {

class MpiRequests {
 public:
  explicit MpiRequests(MpiLink& link) : link_(link) {}
  ~MpiRequests();
  MpiRequests(const MpiRequests&) = delete;
  MpiRequests& operator=(const MpiRequests&) = delete;

  // Peers are ranks of the world. The memory is used until wait() has returned. Long messages travel in pieces.
  void send(const void* from, int64_t bytes, int peer, int tag);
  void receive(void* to, int64_t bytes, int peer, int tag);
  void keep(const Tensor& tensor) { kept_.push_back(tensor); }
  void wait(const MpiWait& wait);

 private:
  struct Part {
    MPI_Request request;
    int peer;
    bool is_receive;
  };
  bool test();  // whether all have ended
  std::vector<int> absent() const;

  MpiLink& link_;
  std::vector<Part> parts_;
  std::vector<Tensor> kept_;
};

}  // namespace weft::dist
