// Where a tensor's memory lives.
#pragma once

#include <cstdint>
#include <string>

namespace weft {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int8_t index = 0;

  static constexpr Device cpu() { return {}; }
  static constexpr Device cuda(int index = 0) { return {DeviceKind::cuda, static_cast<int8_t>(index)}; }
  constexpr bool is_cpu() const { return kind == DeviceKind::cpu; }
  constexpr bool is_cuda() const { return kind == DeviceKind::cuda; }
  friend constexpr bool operator==(Device, Device) = default;
};

std::string to_string(Device device);  // "cpu", "cuda:0"

// The device of tensors that are made without naming one. Each thread has its own setting; it starts as the CPU.
Device default_device();
void set_default_device(Device device);

}  // namespace weft
