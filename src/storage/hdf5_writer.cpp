#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/dataset_specs.hpp"
#include "storage/file_kind.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_types.hpp"
#include "storage/partial_file.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

Hdf5Properties creation_properties(const std::string& path) {
  Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), path));
  WEIGHTCAST_HDF5(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), path);
  // The space is laid out when the dataset is made, so that it has an offset, and nothing is written to it.
  WEIGHTCAST_HDF5(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), path);
  WEIGHTCAST_HDF5(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), path);
  return creation;
}

Hdf5Space space_of(const Shape& shape, const std::string& subject) {
  if (shape.dims() == 0) return Hdf5Space(WEIGHTCAST_HDF5(H5Screate(H5S_SCALAR), subject));
  std::array<hsize_t, Shape::kMaxDims> extents{};
  std::copy(shape.extents().begin(), shape.extents().end(), extents.begin());
  return Hdf5Space(
      WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(shape.dims()), extents.data(), nullptr), subject));
}

// Makes one dataset and returns its offset in the file.
std::int64_t make_dataset(hid_t file, const Hdf5Properties& creation, const DatasetSpec& spec,
                          const std::string& path) {
  const std::string subject = fmt::format("{}: dataset '{}'", path, spec.name);
  const Hdf5Space space = space_of(spec.shape, subject);
  const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dcreate2(file, spec.name.c_str(), hdf5_type(spec.dtype),
                                                       space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                                            subject));
  write_hdf5_attribute(dataset.get(), kDTypeAttribute, std::string(dtype_name(spec.dtype)), subject);
  if (spec.bytes() == 0) return 0;
  const haddr_t offset = H5Dget_offset(dataset.get());
  if (offset == HADDR_UNDEF) throw IoError(fmt::format("{}: HDF5 gives it no place in the file", subject));
  return static_cast<std::int64_t>(offset);
}

class Hdf5Writer final : public TensorFileWriter {
 public:
  Hdf5Writer(const std::string& path, const Attributes& attributes, const std::vector<DatasetSpec>& datasets,
             const std::string& id)
      : file_(path, id), specs_(datasets) {
    require_free_or_own(path, attributes);
    lay_out(attributes);
    file_.reserve(file_.size());
  }

  void write(std::size_t index, std::int64_t offset, std::span<const std::byte> data) override {
    check_write_range(file_.final_path(), specs_, index, offset, data.size());
    file_.write_at(offsets_.at(index) + offset, data);
  }

  void flush() override { file_.flush(); }

  void prepare() override { file_.prepare(); }
  void place() override { file_.place(); }
  void take_back() override { file_.take_back(); }
  void give_up() noexcept override { file_.give_up(); }
  void settle() noexcept override { file_.settle(); }
  void keep() noexcept override { file_.keep(); }

 private:
  // Leaves a complete HDF5 file whose data is a hole; the library has no part in what follows.
  void lay_out(const Attributes& attributes) {
    const Hdf5Lock lock;
    const std::string& path = file_.final_path();
    const Hdf5Properties access = hdf5_file_access();
    // The format of HDF5 1.8 keeps many thousands of names in an index of their own.
    WEIGHTCAST_HDF5(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST), path);
    Hdf5File file(WEIGHTCAST_HDF5(
        H5Fcreate(file_.path_of_open_file().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), path));
    for (const auto& [name, value] : attributes) write_hdf5_attribute(file.get(), name, value, path);
    const Hdf5Properties creation = creation_properties(path);
    offsets_.reserve(specs_.size());
    for (const DatasetSpec& spec : specs_) offsets_.push_back(make_dataset(file.get(), creation, spec, path));
    WEIGHTCAST_HDF5(H5Fclose(file.release()), path);
  }

  PartialFile file_;
  std::vector<DatasetSpec> specs_;
  std::vector<std::int64_t> offsets_;
};

}  // namespace

std::unique_ptr<TensorFileWriter> create_hdf5(const std::string& path, const Attributes& attributes,
                                              const std::vector<DatasetSpec>& datasets,
                                              const std::string& id) {
  for (const DatasetSpec& spec : datasets) {
    if (spec.name == "." || spec.name.find('/') != std::string::npos) {
      throw InputError(
          fmt::format("{}: an HDF5 dataset cannot be named '{}'; write safetensors, or rename the tensor",
                      path, excerpt(spec.name)));
    }
  }
  const std::int64_t bytes = check_dataset_specs(path, datasets);
  require_space(path, bytes);
  require_file_size(path, bytes);
  make_folder_of(path);
  return std::make_unique<Hdf5Writer>(path, attributes, datasets, id);
}

}  // namespace weightcast
