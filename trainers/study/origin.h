// By which build of Weft and on which machine a run was made. Runs of several are compared, and never without a word.
#pragma once

#include <compare>
#include <string>

namespace weft::study {

struct Origin {
  std::string build, machine;  // machine: processor, kernels and memory
  std::string host;
  auto operator<=>(const Origin&) const = default;
};
// Of the environment that the run was started with; "not recorded" where its folder has none.
Origin origin_of(const std::string& run_folder);

}  // namespace weft::study
