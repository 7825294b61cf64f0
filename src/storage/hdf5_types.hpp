#pragma once

#include <optional>
#include <string>

#include "core/dtype.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// The little-endian HDF5 type that a file uses for a dtype. bfloat16 is a floating-point type of its own;
/// 8-bit floats, packed codes and bools are unsigned bytes. The identifier lives as long as the program: do
/// not close it. Call under an Hdf5Lock.
hid_t hdf5_type(DType dtype);

/// An HDF5 type of a file, understood.
struct Hdf5Element {
  DType dtype = DType::kU8;
  bool little_endian = true;  ///< its bytes are as this program wants them
  bool only_bits = false;     ///< integers, or bytes without meaning, that may stand for another dtype
  std::string tag;            ///< of opaque elements: what whoever wrote them says that they are
};

/// What an HDF5 type means by itself, in either byte order; nothing when it has the fields of no dtype.
/// h5py's enumeration of FALSE and TRUE is a bool. Opaque elements of two bytes without a tag are bfloat16,
/// which is how h5py writes ml_dtypes' type; of one byte they are bytes, because it writes several types so.
/// Call under an Hdf5Lock.
std::optional<Hdf5Element> hdf5_element(hid_t type);

/// Whether data of a type that means `stored` may carry an attribute that calls it `named`: it is the same,
/// or only bits, as many as the other has.
bool hdf5_may_hold(const Hdf5Element& stored, DType named);

}  // namespace weightcast
