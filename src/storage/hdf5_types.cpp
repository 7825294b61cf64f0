#include "storage/hdf5_types.hpp"

#include <string>
#include <vector>

namespace weightcast {

namespace {

constexpr std::string_view kTypeSubject = "HDF5 types";

struct TypePair {
  DType dtype;
  hid_t little;
  hid_t big;
};

// A 16-bit IEEE-like float: sign at bit 15, exponent above the mantissa. HDF5 before 1.14 predefines neither
// float16 nor bfloat16.
hid_t float_of_16_bits(std::size_t exponent_bits, std::size_t bias, H5T_order_t order) {
  const std::size_t mantissa_bits = 15 - exponent_bits;
  const hid_t type = WEIGHTCAST_HDF5(H5Tcopy(H5T_IEEE_F32LE), kTypeSubject);
  WEIGHTCAST_HDF5(H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits), kTypeSubject);
  WEIGHTCAST_HDF5(H5Tset_precision(type, 16), kTypeSubject);
  WEIGHTCAST_HDF5(H5Tset_size(type, 2), kTypeSubject);
  WEIGHTCAST_HDF5(H5Tset_ebias(type, bias), kTypeSubject);
  WEIGHTCAST_HDF5(H5Tset_order(type, order), kTypeSubject);
  return type;
}

// Made once, because a checkpoint has many thousands of datasets to compare with; the library closes them
// itself when the program ends.
const std::vector<TypePair>& types() {
  static const auto* table = new std::vector<TypePair>{
      {DType::kU8, H5T_STD_U8LE, H5T_STD_U8BE},
      {DType::kI8, H5T_STD_I8LE, H5T_STD_I8BE},
      {DType::kI16, H5T_STD_I16LE, H5T_STD_I16BE},
      {DType::kU16, H5T_STD_U16LE, H5T_STD_U16BE},
      {DType::kI32, H5T_STD_I32LE, H5T_STD_I32BE},
      {DType::kU32, H5T_STD_U32LE, H5T_STD_U32BE},
      {DType::kI64, H5T_STD_I64LE, H5T_STD_I64BE},
      {DType::kU64, H5T_STD_U64LE, H5T_STD_U64BE},
      {DType::kF16, float_of_16_bits(5, 15, H5T_ORDER_LE), float_of_16_bits(5, 15, H5T_ORDER_BE)},
      {DType::kBF16, float_of_16_bits(8, 127, H5T_ORDER_LE), float_of_16_bits(8, 127, H5T_ORDER_BE)},
      {DType::kF32, H5T_IEEE_F32LE, H5T_IEEE_F32BE},
      {DType::kF64, H5T_IEEE_F64LE, H5T_IEEE_F64BE},
  };
  return *table;
}

// h5py writes bools as an enumeration over signed bytes.
bool is_bool_enumeration(hid_t type) {
  if (H5Tget_class(type) != H5T_ENUM || H5Tget_size(type) != 1 || H5Tget_nmembers(type) != 2) return false;
  unsigned char value = 0;
  return H5Tenum_valueof(type, "FALSE", &value) >= 0 && value == 0 &&
         H5Tenum_valueof(type, "TRUE", &value) >= 0 && value == 1;
}

std::string opaque_tag(hid_t type) {
  char* const tag = H5Tget_tag(type);
  std::string text(tag != nullptr ? tag : "");
  H5free_memory(tag);
  return text;
}

}  // namespace

hid_t hdf5_type(DType dtype) {
  for (const TypePair& pair : types()) {
    if (pair.dtype == dtype) return pair.little;
  }
  return H5T_STD_U8LE;
}

std::optional<Hdf5Element> hdf5_element(hid_t type) {
  const std::size_t bytes = H5Tget_size(type);
  for (const TypePair& pair : types()) {
    if (static_cast<std::size_t>(dtype_bytes(pair.dtype)) != bytes) continue;
    const bool bits = is_integer(pair.dtype);
    if (H5Tequal(type, pair.little) > 0) return Hdf5Element{pair.dtype, true, bits, {}};
    if (H5Tequal(type, pair.big) > 0) return Hdf5Element{pair.dtype, bytes == 1, bits, {}};
  }
  if (H5Tget_class(type) == H5T_OPAQUE && (bytes == 1 || bytes == 2)) {
    return Hdf5Element{bytes == 1 ? DType::kU8 : DType::kBF16, true, true, opaque_tag(type)};
  }
  if (is_bool_enumeration(type)) return Hdf5Element{DType::kBool, true, false, {}};
  return std::nullopt;
}

bool hdf5_may_hold(const Hdf5Element& stored, DType named) {
  return stored.dtype == named || (stored.only_bits && dtype_bytes(stored.dtype) == dtype_bytes(named));
}

}  // namespace weightcast
