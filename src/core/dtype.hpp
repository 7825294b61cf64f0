#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace weightcast {

/// Element types that checkpoints hold. 8-bit floats and packed 4-bit codes travel as opaque bytes.
enum class DType : std::uint8_t {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kF16,
  kBF16,
  kF32,
  kF64,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF4E2M1x2,
};

/// One row a dtype: every name it goes by, and its element size in bytes.
struct DTypeInfo {
  DType dtype;
  std::string_view name;         ///< in reports, configs and the HDF5 attribute `weightcast.dtype`
  std::string_view safetensors;  ///< in a safetensors header
  std::int64_t bytes;
};

/// The table of all dtypes, in the order of the enumeration.
const std::array<DTypeInfo, 17>& dtype_table();

/// Bytes of one element (of one byte of two codes for packed 4-bit types).
std::int64_t dtype_bytes(DType dtype);

/// Whether elements are integers: their bits may stand for those of another type.
constexpr bool is_integer(DType dtype) {
  return dtype >= DType::kU8 && dtype <= DType::kU64;
}

/// The name used in reports and files: `bfloat16`, `float8_e4m3fn`, ...
std::string_view dtype_name(DType dtype);

/// The name in a safetensors header: `BF16`, `F8_E4M3`, ...
std::string_view dtype_safetensors_name(DType dtype);

/// The dtype of a report or config name, or nothing.
std::optional<DType> dtype_from_name(std::string_view name);

/// The dtype of a safetensors name, or nothing.
std::optional<DType> dtype_from_safetensors(std::string_view name);

}  // namespace weightcast
