// Records which module ran when: the Scopes of this thread and, on a GPU, the work that was started inside them.
//   Profile profile(default_device());
//   trainer.step();
//   for (const ProfileSpan& span : profile.finish()) ...
// In a CUDA build, tools that read NVTX ranges (Nsight Systems) see the same scopes without a Profile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/core/device.h"

namespace weft {

struct ProfileSpan {
  std::string path;  // of the scope, outermost name first
  int depth = 0;     // number of spans around it
  double begin_us = 0, duration_us = 0;
  double device_begin_us = 0, device_duration_us = 0;  // of its work on the GPU, on the same clock; 0 on the CPU
};

// The time of spans without that of the spans inside them: on the GPU, if they have times there.
struct SelfTime {
  std::string
      name;  // the outermost span and the last name of the path, "backward layer_norm"; layers of one kind are one: "forward layers.*"
  double us = 0;
  int64_t count = 0;
};
std::vector<SelfTime> self_times(std::span<const ProfileSpan> spans);  // the longest first

// Records from its construction to finish(), on the thread that made it. A thread has at most one at a time.
class Profile {
 public:
  explicit Profile(Device device);  // waits for the device first
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  std::vector<ProfileSpan> finish();  // waits for the device; spans in the order in which they began

 private:
  class Recording;
  std::unique_ptr<Recording> recording_;
};

// A span that is not a Scope: it is part of no module path. Only profiles and tools see it.
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
