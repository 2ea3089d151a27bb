// A place where the ranks of one program find each other before they have a communicator: rank 0 listens at a TCP address.
#pragma once

#include <string>
#include <vector>

namespace weft::dist {

// Every rank gives a text and has those of all, in the order of ranks. `address`: "host:port" of rank 0. Error after the time-out, which
// names the address, and on rank 0 the ranks that did not come.
std::vector<std::string> gather_by_tcp(const std::string& address, int rank, int size, const std::string& mine,
                                       double timeout_s);

}  // namespace weft::dist
