#include "core/dtype.hpp"

#include <algorithm>

namespace weightcast {

const std::array<DTypeInfo, 17>& dtype_table() {
  static constexpr std::array<DTypeInfo, 17> kTable{{
      {DType::kBool, "bool", "BOOL", 1},
      {DType::kU8, "uint8", "U8", 1},
      {DType::kI8, "int8", "I8", 1},
      {DType::kI16, "int16", "I16", 2},
      {DType::kU16, "uint16", "U16", 2},
      {DType::kI32, "int32", "I32", 4},
      {DType::kU32, "uint32", "U32", 4},
      {DType::kI64, "int64", "I64", 8},
      {DType::kU64, "uint64", "U64", 8},
      {DType::kF16, "float16", "F16", 2},
      {DType::kBF16, "bfloat16", "BF16", 2},
      {DType::kF32, "float32", "F32", 4},
      {DType::kF64, "float64", "F64", 8},
      {DType::kF8E4M3, "float8_e4m3fn", "F8_E4M3", 1},
      {DType::kF8E5M2, "float8_e5m2", "F8_E5M2", 1},
      {DType::kF8E8M0, "float8_e8m0fnu", "F8_E8M0", 1},
      {DType::kF4E2M1x2, "e2m1x2", "F4", 1},
  }};
  return kTable;
}

namespace {

const DTypeInfo& info(DType dtype) {
  return dtype_table().at(static_cast<std::size_t>(dtype));
}

template <typename Matches>
std::optional<DType> find(Matches matches) {
  const auto& table = dtype_table();
  const auto* found = std::find_if(table.begin(), table.end(), matches);
  if (found == table.end()) return std::nullopt;
  return found->dtype;
}

}  // namespace

std::int64_t dtype_bytes(DType dtype) {
  return info(dtype).bytes;
}
std::string_view dtype_name(DType dtype) {
  return info(dtype).name;
}
std::string_view dtype_safetensors_name(DType dtype) {
  return info(dtype).safetensors;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  return find([&](const DTypeInfo& row) { return row.name == name; });
}

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  return find([&](const DTypeInfo& row) { return row.safetensors == name; });
}

}  // namespace weightcast
