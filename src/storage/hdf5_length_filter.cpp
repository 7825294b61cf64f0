#include "storage/hdf5_length_filter.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

namespace weightcast {

namespace {

// Of the numbers that HDF5 leaves to tests and to a program's own use.
constexpr H5Z_filter_t kLengthFilter = 509;
constexpr const char* kFilterSubject = "HDF5 filters";

// Values of the filter: one for an exact length, two for scale-offset.
enum class Values : unsigned { kExact = 1, kScaleOffset = 2 };

std::optional<std::size_t>& refused() {
  static std::optional<std::size_t> length;  // guarded by the Hdf5Lock
  return length;
}

/// How many bytes scale-offset reads of data that begin so: a head with the number of bits of each element,
/// and those bits.
bool fits_scale_offset(const unsigned char* data, std::size_t bytes, std::size_t elements,
                       std::size_t element_bytes) {
  constexpr std::size_t kHead = 21;
  if (bytes < kHead) return false;
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < 4; ++i) bits |= std::uint64_t{data[i]} << (8 * i);
  // One byte more is what its counterpart writes.
  const std::uint64_t needed = (elements * bits + 7) / 8;
  return bits <= 8 * element_bytes && bytes - kHead >= needed && bytes - kHead <= needed + 1;
}

// Called by C code.
std::size_t look_at_length(unsigned flags, std::size_t count, const unsigned* values, std::size_t bytes,
                           std::size_t* /*room*/, void** data) {
  if ((flags & H5Z_FLAG_REVERSE) == 0) return bytes;
  const bool right =
      count == static_cast<std::size_t>(Values::kExact)
          ? bytes == values[0]
          : fits_scale_offset(static_cast<const unsigned char*>(*data), bytes, values[0], values[1]);
  if (right) return bytes;
  refused() = bytes;
  return 0;  // a failure
}

void add(hid_t creation, std::size_t count, const unsigned* values) {
  static const H5Z_class2_t filter{H5Z_CLASS_T_VERS,     kLengthFilter, 1,       1,
                                   "weightcast: length", nullptr,       nullptr, &look_at_length};
  static const herr_t registered = H5Zregister(&filter);
  WEIGHTCAST_HDF5(registered, kFilterSubject);
  WEIGHTCAST_HDF5(H5Pset_filter(creation, kLengthFilter, H5Z_FLAG_MANDATORY, count, values), kFilterSubject);
}

}  // namespace

void add_length_filter(hid_t creation, std::size_t bytes) {
  const auto value = static_cast<unsigned>(bytes);  // HDF5's chunks have less than 4 GiB
  add(creation, static_cast<std::size_t>(Values::kExact), &value);
}

void add_scale_offset_guard(hid_t creation, std::size_t elements, std::size_t element_bytes) {
  const std::array<unsigned, 2> values{static_cast<unsigned>(elements), static_cast<unsigned>(element_bytes)};
  add(creation, static_cast<std::size_t>(Values::kScaleOffset), values.data());
}

std::optional<std::size_t> take_refused_length() {
  return std::exchange(refused(), std::nullopt);
}

}  // namespace weightcast
