// The peers of an exchange for records and errors, each once: "to 1-3, 6 from 0".
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/core/error.h"

namespace weft::dist {

inline std::string ranks_text(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  std::string text;
  for (size_t begin = 0, end; begin < ranks.size(); begin = end) {
    for (end = begin + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    if (end == begin + 2) end = begin + 1;  // "1, 2"
    text += str(text.empty() ? "" : ", ", ranks[begin]);
    if (end > begin + 1) text += str("-", ranks[end - 1]);
  }
  return text;
}

inline std::string peers_text(std::span<const Send> sends, std::span<const Receive> receives) {
  std::vector<int> to, from;
  for (const Send& s : sends) to.push_back(s.peer);
  for (const Receive& r : receives) from.push_back(r.peer);
  return str(to.empty() ? "" : str(" to ", ranks_text(to)), from.empty() ? "" : str(" from ", ranks_text(from)));
}

}  // namespace weft::dist
