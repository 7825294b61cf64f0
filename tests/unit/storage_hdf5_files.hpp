#pragma once

#include <string>
#include <vector>

#include "sys/hdf5.hpp"

// HDF5 files made with the library alone, as other programs make them. Everything here is called under an
// Hdf5Lock.
namespace weightcast::testing_files {

inline constexpr const char* kFile = "made by a test";

inline Hdf5File create_file(const std::string& path, hsize_t user_block = 0) {
  const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_CREATE), kFile));
  WEIGHTCAST_HDF5(H5Pset_userblock(creation.get(), user_block), kFile);
  return Hdf5File(
      WEIGHTCAST_HDF5(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), H5P_DEFAULT), kFile));
}

inline void put_dataset(const Hdf5File& file, const std::string& name, hid_t type, hid_t memory_type,
                        const std::vector<hsize_t>& extents, const void* data,
                        const std::vector<hsize_t>& chunk = {}) {
  const Hdf5Space space(
      WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), kFile));
  const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), kFile));
  if (!chunk.empty()) {
    WEIGHTCAST_HDF5(H5Pset_chunk(creation.get(), static_cast<int>(chunk.size()), chunk.data()), kFile);
    WEIGHTCAST_HDF5(H5Pset_shuffle(creation.get()), kFile);
    WEIGHTCAST_HDF5(H5Pset_deflate(creation.get(), 4), kFile);
  }
  const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
      H5Dcreate2(file.get(), name.c_str(), type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
      kFile));
  if (data != nullptr) {
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), kFile);
  }
}

inline void put_text_attribute(hid_t object, const char* name, const std::string& text, H5T_str_t padding) {
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Tcopy(H5T_C_S1), kFile));
  WEIGHTCAST_HDF5(H5Tset_size(type.get(), text.size()), kFile);
  WEIGHTCAST_HDF5(H5Tset_strpad(type.get(), padding), kFile);
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate(H5S_SCALAR), kFile));
  const Hdf5Attribute attribute(
      WEIGHTCAST_HDF5(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), kFile));
  WEIGHTCAST_HDF5(H5Awrite(attribute.get(), type.get(), text.data()), kFile);
}

// The dtype attribute of a dataset as h5py would write it, of fixed length.
inline void name_dtype(const Hdf5File& file, const std::string& dataset, const std::string& dtype) {
  const Hdf5Dataset object(WEIGHTCAST_HDF5(H5Dopen2(file.get(), dataset.c_str(), H5P_DEFAULT), kFile));
  put_text_attribute(object.get(), "weightcast.dtype", dtype, H5T_STR_NULLPAD);
}

inline Hdf5Type bfloat16(H5T_order_t order) {
  Hdf5Type type(WEIGHTCAST_HDF5(H5Tcopy(H5T_IEEE_F32LE), kFile));
  WEIGHTCAST_HDF5(H5Tset_fields(type.get(), 15, 7, 8, 0, 7), kFile);
  WEIGHTCAST_HDF5(H5Tset_size(type.get(), 2), kFile);
  WEIGHTCAST_HDF5(H5Tset_ebias(type.get(), 127), kFile);
  WEIGHTCAST_HDF5(H5Tset_order(type.get(), order), kFile);
  return type;
}

}  // namespace weightcast::testing_files
