#include "weft/core/dtype.h"

namespace weft {

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64: return 8;
    case DType::float32:
    case DType::int32: return 4;
    case DType::bfloat16: return 2;
    case DType::uint8:
    case DType::boolean: return 1;
  }
  return 0;
}

std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::float32: return "f32";
    case DType::bfloat16: return "bf16";
    case DType::float64: return "f64";
    case DType::int64: return "i64";
    case DType::int32: return "i32";
    case DType::uint8: return "u8";
    case DType::boolean: return "bool";
  }
  return "?";
}

bool is_floating(DType dtype) { return dtype == kF32 || dtype == kBF16 || dtype == kF64; }

}  // namespace weft
