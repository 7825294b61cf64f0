#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/shape.hpp"
#include "report/progress.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// What a line about a signal says that comes before files take their names.
inline constexpr const char* kNothingChanged = "nothing was changed";

/// Bytes that the plain commands hold of a tensor at a time.
inline constexpr std::int64_t kCopyBytes = std::int64_t{8} << 20;

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
