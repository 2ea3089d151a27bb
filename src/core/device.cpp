#include "weft/core/device.h"

#include "src/core/cuda_build.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"

namespace weft {

namespace {
thread_local Device device_of_thread;
}  // namespace

std::string to_string(Device device) { return device.is_cpu() ? "cpu" : str("cuda:", static_cast<int>(device.index)); }

Device default_device() { return device_of_thread; }

void set_default_device(Device device) {
  WEFT_CHECK(kCuda || device.is_cpu(), str("set_default_device: ", device, " is not in this build"),
             "use Device::cpu()");
  WEFT_CHECK(device.is_cpu() || device.index < num_cuda_devices(),
             str("set_default_device: there is no ", device, ": ", num_cuda_devices(), " GPUs",
                 cuda_problem().empty() ? "" : ", ", cuda_problem()),
             "use Device::cpu()");
  device_of_thread = device;
}

}  // namespace weft
