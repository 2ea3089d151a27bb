// What ran when, module by module: the Scopes of this thread and, on a GPU, the work that they asked for.
//   Profile profile(default_device());
//   trainer.step();
//   for (const ProfileSpan& span : profile.finish()) ...
// Tools that read NVTX ranges (Nsight Systems) see the same scopes in a CUDA build, without any of this.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "weft/core/device.h"

namespace weft {

struct ProfileSpan {
  std::string path;  // of the scope, outermost name first
  int depth = 0;     // spans around it
  double begin_us = 0, duration_us = 0;
  double device_begin_us = 0, device_duration_us = 0;  // of its work on the GPU, on the same clock; 0 on the CPU
};

// Recorded from here to finish(), on the thread that made it: one at a time.
class Profile {
 public:
  explicit Profile(Device device);  // waits for what the device is at
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  std::vector<ProfileSpan> finish();  // waits for the device; spans in the order in which they began

 private:
  class Recording;
  std::unique_ptr<Recording> recording_;
};

// A span that is not a Scope: part of no path, seen only by profiles and tools.
class ProfileRange {
 public:
  explicit ProfileRange(std::string_view name);
  ~ProfileRange();
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  bool is_seen_;
};

}  // namespace weft
