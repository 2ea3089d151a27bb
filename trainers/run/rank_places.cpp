#include "trainers/run/rank_places.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "weft/ops/elementwise.h"

namespace weft::train {

std::string host_name() {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  return host;
}

int count_ranks_at(dist::Communicator& world, const std::string& place) {
  const auto mine = static_cast<int64_t>(std::hash<std::string>{}(place));
  const Tensor all = world.all_gather(ops::to(Tensor::from({mine}, {1}), default_device()));
  const std::vector<int64_t> places = all.to_vector<int64_t>();
  return static_cast<int>(std::count(places.begin(), places.end(), mine));
}

}  // namespace weft::train
