#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "launch/options.hpp"
#include "model/catalog.hpp"
#include "report/progress.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// Bytes that the plain commands hold of a tensor at a time.
inline constexpr std::int64_t kCopyBytes = std::int64_t{8} << 20;

/// The checkpoint that `--output` describes: HDF5 when its name ends in .h5 or .hdf5, else a Hugging Face
/// directory.
std::unique_ptr<TensorFileWriter> create_checkpoint(const Options& options, std::int64_t weight_version,
                                                    const std::string& config_text,
                                                    const std::vector<DatasetSpec>& tensors);

/// The same with all tensors of a catalog, in its order.
std::unique_ptr<TensorFileWriter> create_checkpoint(const Options& options, std::int64_t weight_version,
                                                    const std::string& config_text, const Catalog& catalog);

/// Writes a matrix of `shape` to dataset number `index`, from `offset` bytes on, in pieces: `read` is given a
/// box of it and where its bytes belong.
void copy_matrix(TensorFileWriter& to, std::size_t index, std::int64_t offset, const Shape& shape,
                 std::int64_t element_bytes, Progress& progress,
                 const std::function<void(const Box&, std::span<std::byte>)>& read);

/// Calls `visit` with consecutive boxes that together are the whole tensor, each of at most kCopyBytes (or
/// part of one row).
void for_each_box(const Shape& shape, std::int64_t element_bytes,
                  const std::function<void(const Box&)>& visit);

}  // namespace weightcast
