#include "storage/hdf5_slab.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/hidden_names.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

// A rectangle of the dataset in its own dimensions.
struct Slab {
  Hdf5Extents start{};
  Hdf5Extents count{};
  std::int64_t rows = 0;  // of the matrix view
};

// The largest slab that starts at matrix row `row` and ends before row `end`. All dimensions but the last are
// folded into the rows of the matrix view, so a range of rows is in general several slabs: it fills up inner
// dimensions, then takes whole outer ones, then the rest.
Slab slab_at(const Shape& shape, std::int64_t row, std::int64_t end) {
  const std::size_t row_dims = shape.dims() - 1;
  Slab slab;
  std::array<std::int64_t, Shape::kMaxDims> rows_each{};  // matrix rows of one index of a dimension
  std::int64_t folded = 1;
  for (std::size_t dim = row_dims; dim-- > 0;) {
    rows_each.at(dim) = folded;
    folded *= shape[dim];
  }
  std::size_t outer = 0;
  while (outer < row_dims && (row % rows_each.at(outer) != 0 || end - row < rows_each.at(outer))) ++outer;
  slab.rows = 1;
  for (std::size_t dim = 0; dim < row_dims; ++dim) {
    const std::int64_t index = row / rows_each.at(dim) % shape[dim];
    std::int64_t count = 1;
    if (dim == outer) count = std::min((end - row) / rows_each.at(dim), shape[dim] - index);
    if (dim > outer) count = shape[dim];
    slab.start.at(dim) = static_cast<hsize_t>(index);
    slab.count.at(dim) = static_cast<hsize_t>(count);
    slab.rows *= count;
  }
  return slab;
}

}  // namespace

Hdf5SlabReader::Hdf5SlabReader(const CheckpointFile& file)
    : path_(file.path), access_(dataset_access(directory_of(file.path))) {
  OpenHdf5 opened = open_hdf5(path_);
  require_same_file(opened.input.identity(), file);
  file_bytes_ = opened.input.size();
  file_ = std::move(opened.file);
}

void Hdf5SlabReader::open(const StoredTensor& tensor) {
  if (dataset_ && name_ == tensor.name) return;
  chunks_.reset();
  dataset_.reset();
  name_ = tensor.name;
  subject_ = fmt::format("{}: dataset '{}'", path_, excerpt(name_));
  dataset_ =
      Hdf5Dataset(WEIGHTCAST_HDF5(H5Dopen2(file_.get(), tensor.dataset().c_str(), access_.get()), subject_));
  // The stored type in this machine's byte order: nothing but the order of bytes may change.
  const Hdf5Type stored(WEIGHTCAST_HDF5(H5Dget_type(dataset_.get()), subject_));
  memory_type_ = Hdf5Type(WEIGHTCAST_HDF5(H5Tcopy(stored.get()), subject_));
  if (H5Tget_order(stored.get()) == H5T_ORDER_BE && H5Tget_class(stored.get()) != H5T_ENUM) {
    WEIGHTCAST_HDF5(H5Tset_order(memory_type_.get(), H5T_ORDER_LE), subject_);
  }
  if (has_filters(dataset_.get(), subject_)) chunks_.emplace(dataset_.get(), subject_, file_bytes_);
}

void Hdf5SlabReader::read(const StoredTensor& tensor, const Box& box, std::span<std::byte> to) {
  open(tensor);
  const Hdf5Space stored(WEIGHTCAST_HDF5(H5Dget_space(dataset_.get()), subject_));
  const auto elements =
      static_cast<std::size_t>(WEIGHTCAST_HDF5(H5Sget_simple_extent_npoints(stored.get()), subject_));
  if (elements != static_cast<std::size_t>(tensor.shape.elements()) ||
      H5Tget_size(memory_type_.get()) != static_cast<std::size_t>(dtype_bytes(tensor.dtype))) {
    throw IoError(
        fmt::format("{} changed since its header was read; start again when nobody writes it", subject_));
  }
  const std::size_t dims = tensor.shape.dims();
  std::int64_t row = box.row;
  while (row < box.row + box.rows) {
    Slab slab;
    slab.rows = 1;
    if (dims > 0) {
      slab = slab_at(tensor.shape, row, box.row + box.rows);
      slab.start.at(dims - 1) = static_cast<hsize_t>(box.col);
      slab.count.at(dims - 1) = static_cast<hsize_t>(box.cols);
      WEIGHTCAST_HDF5(H5Sselect_hyperslab(stored.get(), H5S_SELECT_SET, slab.start.data(), nullptr,
                                          slab.count.data(), nullptr),
                      subject_);
    }
    const hsize_t count = static_cast<hsize_t>(slab.rows) * static_cast<hsize_t>(box.cols);
    if (chunks_) {
      chunks_->read(slab.start, slab.count, memory_type_.get(), to.data());
    } else {
      const Hdf5Space memory(WEIGHTCAST_HDF5(H5Screate_simple(1, &count, nullptr), subject_));
      WEIGHTCAST_HDF5(
          H5Dread(dataset_.get(), memory_type_.get(), memory.get(), stored.get(), H5P_DEFAULT, to.data()),
          subject_);
    }
    to = to.subspan(count * static_cast<std::size_t>(dtype_bytes(tensor.dtype)));
    row += slab.rows;
  }
}

}  // namespace weightcast
