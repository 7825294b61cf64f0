#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "launch/options.hpp"
#include "model/catalog.hpp"
#include "report/progress.hpp"
#include "storage/checkpoint.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// What a line about a signal says that comes before files take their names.
inline constexpr const char* kNothingChanged = "nothing was changed";

/// Bytes that the plain commands hold of a tensor at a time.
inline constexpr std::int64_t kCopyBytes = std::int64_t{8} << 20;

/// The weight version of what is made from a checkpoint: `--weight-version`, else the checkpoint's own, else
/// 0.
std::int64_t version_of(const Options& options, const Checkpoint& checkpoint);

/// The tensors of a catalog, in its order.
std::vector<DatasetSpec> specs_of(const Catalog& catalog);

/// Fills bytes with a box of tensor number i.
using ReadBox = std::function<void(std::size_t i, const Box& box, std::span<std::byte> to)>;

/// Writes the checkpoint that `--output` describes (HDF5 when its name ends as one, else a Hugging
/// Face directory), whole or not at all, and says so. `origin` is a hash of what the values come from: files
/// of one origin belong together. `confirm` is called after the last `read` and may throw when what was read
/// must not be used. Throws UsageError for an output that it must not be, StoppedError after a signal.
void write_checkpoint(const Options& options, std::int64_t weight_version, const std::string& config_text,
                      const std::vector<DatasetSpec>& tensors, std::uint64_t origin, const ReadBox& read,
                      const std::function<void()>& confirm);

/// Prints the line that says what was written. The error of a stdout that does not take it says that all is
/// in place all the same.
void report_written(const std::string& output, const std::string& line);

/// A hash of the files of a checkpoint as they are.
std::uint64_t origin_of(const Checkpoint& checkpoint);

/// Writes a matrix of `shape` to dataset number `index`, from `offset` bytes on, in pieces: `read` is given a
/// box of it and where its bytes belong. Throws StoppedError after a signal, when signals are watched.
void copy_matrix(TensorFileWriter& to, std::size_t index, std::int64_t offset, const Shape& shape,
                 std::int64_t element_bytes, Progress& progress,
                 const std::function<void(const Box&, std::span<std::byte>)>& read);

/// Calls `visit` with consecutive boxes that together are the whole tensor, each of at most kCopyBytes (or
/// part of one row).
void for_each_box(const Shape& shape, std::int64_t element_bytes,
                  const std::function<void(const Box&)>& visit);

}  // namespace weightcast
