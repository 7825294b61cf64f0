#include "storage/hdf5_header.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "core/error.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_types.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

struct Link {
  std::string name;
  bool hard = true;  ///< the object is certainly in this file
};

// Called by C code, which no exception may cross.
herr_t collect_link(hid_t /*group*/, const char* name, const H5L_info_t* info, void* links) {
  static_cast<std::vector<Link>*>(links)->push_back({name, info->type == H5L_TYPE_HARD});
  return 0;
}

DType dtype_of(hid_t dataset, const std::optional<Hdf5Element>& element, std::size_t stored_bytes,
               const std::string& subject) {
  const auto attribute = read_hdf5_attribute(dataset, kDTypeAttribute, subject);
  if (!element) {
    throw InputError(fmt::format("{}: its HDF5 type of {} bytes has the fields of no supported dtype",
                                 subject, stored_bytes));
  }
  if (!attribute) return element->dtype;
  const auto* name = std::get_if<std::string>(&*attribute);
  const auto named = name != nullptr ? dtype_from_name(*name) : std::nullopt;
  if (!named) {
    throw InputError(fmt::format("{}: unknown dtype '{}' in its attribute weightcast.dtype", subject,
                                 name != nullptr ? *name : "(an integer)"));
  }
  if (!hdf5_may_hold(element->dtype, *named)) {
    throw InputError(fmt::format("{}: its attribute weightcast.dtype says {} but its HDF5 type is {}",
                                 subject, *name, dtype_name(element->dtype)));
  }
  return *named;
}

Shape shape_of(hid_t dataset, const std::string& subject) {
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(dataset), subject));
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) {
    throw InputError(fmt::format("{}: it has no shape (a null dataspace)", subject));
  }
  const int dims = WEIGHTCAST_HDF5(H5Sget_simple_extent_ndims(space.get()), subject);
  if (static_cast<std::size_t>(dims) > Shape::kMaxDims) {
    throw InputError(
        fmt::format("{}: {} dimensions; at most {} are supported", subject, dims, Shape::kMaxDims));
  }
  std::array<hsize_t, Shape::kMaxDims> extents{};
  WEIGHTCAST_HDF5(H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr), subject);
  std::array<std::int64_t, Shape::kMaxDims> signed_extents{};
  std::int64_t elements = 8;  // the largest element, so that the size in bytes fits too
  for (std::size_t i = 0; i < static_cast<std::size_t>(dims); ++i) {
    if (__builtin_mul_overflow(elements, extents.at(i), &elements)) {
      throw InputError(fmt::format("{}: its shape has too many elements", subject));
    }
    signed_extents.at(i) = static_cast<std::int64_t>(extents.at(i));
  }
  return Shape(std::span<const std::int64_t>(signed_extents.data(), static_cast<std::size_t>(dims)));
}

// Where the data lies in the file, if it lies there in one piece and nothing stands between it and the file.
std::int64_t offset_of(hid_t dataset, const StoredTensor& tensor, std::int64_t file_bytes,
                       const std::string& subject) {
  if (tensor.bytes() == 0) return 0;
  const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Dget_create_plist(dataset), subject));
  if (H5Pget_layout(creation.get()) != H5D_CONTIGUOUS || H5Pget_nfilters(creation.get()) != 0 ||
      H5Pget_external_count(creation.get()) != 0) {
    return StoredTensor::kThroughLibrary;
  }
  // Never written: the library knows the fill value. (The offset does not tell: that of a dataset without
  // space may be "undefined" plus the size of the user's block.)
  H5D_space_status_t status = H5D_SPACE_STATUS_ERROR;
  WEIGHTCAST_HDF5(H5Dget_space_status(dataset, &status), subject);
  const haddr_t offset = H5Dget_offset(dataset);
  if (status != H5D_SPACE_STATUS_ALLOCATED || offset == HADDR_UNDEF) return StoredTensor::kThroughLibrary;
  if (offset > static_cast<haddr_t>(file_bytes) ||
      tensor.bytes() > file_bytes - static_cast<std::int64_t>(offset)) {
    throw InputError(
        fmt::format("{}: {} bytes from byte {} reach past the file's {} bytes; the file is truncated or "
                    "damaged, copy it again",
                    subject, tensor.bytes(), offset, file_bytes));
  }
  return static_cast<std::int64_t>(offset);
}

}  // namespace

bool has_hdf5_signature(const std::string& path) {
  constexpr std::array<unsigned char, 8> kSignature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  const InputFile file(path);
  // At the start, or after a block that belongs to the user, whose size is a power of two from 512 on.
  for (std::int64_t offset = 0; offset + 8 <= file.size(); offset = offset == 0 ? 512 : offset * 2) {
    std::array<std::byte, kSignature.size()> start{};
    file.read_at(offset, start, "its first bytes");
    if (std::memcmp(start.data(), kSignature.data(), start.size()) == 0) return true;
  }
  return false;
}

std::optional<std::int64_t> read_hdf5_header(const std::string& path, std::uint32_t file_number,
                                             std::vector<StoredTensor>& tensors) {
  const std::int64_t file_bytes = InputFile(path).size();
  const Hdf5Lock lock;
  const Hdf5File file = open_hdf5(path);
  std::vector<Link> links;
  hsize_t position = 0;
  WEIGHTCAST_HDF5(H5Literate(file.get(), H5_INDEX_NAME, H5_ITER_NATIVE, &position, collect_link, &links),
                  path);

  for (Link& link : links) {
    const std::string subject = fmt::format("{}: dataset '{}'", path, link.name);
    const Hdf5Object object(WEIGHTCAST_HDF5(H5Oopen(file.get(), link.name.c_str(), H5P_DEFAULT), subject));
    if (H5Iget_type(object.get()) != H5I_DATASET) continue;
    const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(object.get()), subject));
    const auto element = hdf5_element(type.get());

    StoredTensor tensor;
    tensor.file = file_number;
    tensor.dtype = dtype_of(object.get(), element, H5Tget_size(type.get()), subject);
    tensor.shape = shape_of(object.get(), subject);
    const bool direct = link.hard && element->little_endian;
    tensor.offset =
        direct ? offset_of(object.get(), tensor, file_bytes, subject) : StoredTensor::kThroughLibrary;
    tensor.name = std::move(link.name);
    tensors.push_back(std::move(tensor));
  }

  const auto version = read_hdf5_attribute(file.get(), kVersionAttribute, path);
  if (!version) return std::nullopt;
  const auto* number = std::get_if<std::int64_t>(&*version);
  if (number == nullptr) {
    throw InputError(fmt::format("{}: attribute weightcast.weight_version is no integer", path));
  }
  return *number;
}

}  // namespace weightcast
