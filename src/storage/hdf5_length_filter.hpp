#pragma once

#include <cstddef>
#include <optional>

#include "sys/hdf5.hpp"

// A filter that changes nothing and refuses data of a wrong length: what a chunk's filters leave must be as
// long as the chunk. All here is called under an Hdf5Lock.
namespace weightcast {

/// Adds one that wants exactly so many bytes behind the filters that `creation` has, so that it is the last
/// to see a chunk on its way out of the file if it is added first.
void add_length_filter(hid_t creation, std::size_t bytes);

/// Adds one that wants as many bytes as the filter scale-offset, added just before, reads of what it is given
/// without looking at the length: for elements of that size.
void add_scale_offset_guard(hid_t creation, std::size_t elements, std::size_t element_bytes);

/// The length that such a filter refused last, if one has since this was last asked.
std::optional<std::size_t> take_refused_length();

}  // namespace weightcast
