#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/shape.hpp"
#include "launch/options.hpp"
#include "model/family.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// The tensors of a model's catalog, in its order, in the shapes and types in which checkpoints of the model
/// have them: MXFP4's codes and exponents are bytes there, [experts, rows, groups, 16] and
/// [experts, rows, groups].
std::vector<DatasetSpec> specs_of(const Family& family);

/// Fills bytes with a box of tensor number i, consecutive elements of it.
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

}  // namespace weightcast
