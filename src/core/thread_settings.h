// What a thread takes over from the one that it works for: the rank whose name errors bear, books and limits of memory, the default device.
//   std::thread([settings = ThreadSettings()] { settings.apply(); ... });
#pragma once

#include "src/core/rank_memory.h"
#include "weft/core/device.h"
#include "weft/core/scope.h"

namespace weft {

struct ThreadSettings {
  RankLabel label = rank_label();
  ThreadMemory memory = {};
  Device device = default_device();

  void apply() const {
    set_rank_label(label);
    memory.apply();
    set_default_device(device);
  }
};

}  // namespace weft
