#include <stdlib.h>
#include <unistd.h>

#include <cinttypes>
#include <cstring>

#include "client/error.hpp"
#include "client/export.hpp"

namespace weightcast::client {

namespace {

/// The segment in which an allocation lies, which is made where there is none; negative when there is no
/// memory.
int find_gpu_segment(weightcast_export& e, const GpuAllocation& found) {
  for (int i = 0; i < e.segments.size; ++i) {
    const Segment& known = e.segments.items[i];
    const auto bytes = static_cast<std::uint64_t>(known.bytes);
    if (known.gpu.bytes != 0 && found.address >= known.gpu.address &&
        found.address < known.gpu.address + bytes) {
      return i;
    }
  }
  Segment* added = append(e.segments);
  if (added == nullptr) return -1;
  added->gpu = found;
  if (found.has_handle) added->bytes = static_cast<std::int64_t>(found.bytes);
  return e.segments.size - 1;
}

/// The descriptor of a piece that another segment has, too; negative when none has.
int known_file(const weightcast_export& e, std::uint64_t address) {
  for (int i = 0; i < e.segments.size; ++i) {
    const List<Piece>& pieces = e.segments.items[i].pieces;
    for (int p = 0; p < pieces.size; ++p) {
      if (pieces.items[p].address == address) return pieces.items[p].file;
    }
  }
  return -1;
}

/// Lets a segment that is made of pieces reach up to `end`.
int add_pieces(const weightcast_export& e, Segment& segment, std::uint64_t end) {
  for (;;) {
    const std::uint64_t next = segment.gpu.address + static_cast<std::uint64_t>(segment.bytes);
    if (next >= end) return WEIGHTCAST_OK;
    GpuAllocation found;
    if (const int code = find_gpu_allocation(next, &found); code != WEIGHTCAST_OK) return code;
    Piece piece;
    piece.address = found.address;
    piece.bytes = static_cast<std::int64_t>(found.bytes);
    piece.file = known_file(e, found.address);
    if (piece.file < 0) {
      if (const int code = export_gpu_allocation(found, &piece.file); code != WEIGHTCAST_OK) return code;
    }
    Piece* added = append(segment.pieces);
    if (added == nullptr) return fail_with_errno("a piece of a segment");
    *added = piece;
    segment.bytes += piece.bytes;
  }
}

}  // namespace

void close_pieces(weightcast_export& e) {
  for (int i = 0; i < e.segments.size; ++i) {
    List<Piece>& pieces = e.segments.items[i].pieces;
    for (int p = 0; p < pieces.size; ++p) {
      const Piece piece = pieces.items[p];
      pieces.items[p].address = 0;
      if (known_file(e, piece.address) < 0) ::close(piece.file);
    }
    ::free(pieces.items);
    pieces = {};
  }
}

int synchronize_gpus(const weightcast_export& e) {
  const void* last = nullptr;
  for (int i = 0; i < e.segments.size; ++i) {
    void* const context = e.segments.items[i].gpu.context;
    if (context == nullptr || context == last) continue;
    if (const int code = synchronize_context(context); code != WEIGHTCAST_OK) return code;
    last = context;
  }
  return WEIGHTCAST_OK;
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_add_gpu_memory(weightcast_export* e, const void* address, int64_t bytes,
                                         int* segment, int64_t* offset) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (bytes <= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "memory of %" PRId64 " bytes; publish some", bytes);
  const auto first = reinterpret_cast<std::uintptr_t>(address);
  GpuAllocation found;
  if (const int code = find_gpu_allocation(first, &found); code != WEIGHTCAST_OK) return code;
  for (int i = 0; i < e->segments.size; ++i) {
    const GpuAllocation& known = e->segments.items[i].gpu;
    if (known.bytes == 0 || std::strcmp(known.device, found.device) == 0) continue;
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "memory on %s beside memory on %s: publish one GPU's from a process of its own", found.device,
                known.device);
  }
  const int number = find_gpu_segment(*e, found);
  if (number < 0) return fail_with_errno("a segment");
  Segment& in = e->segments.items[number];
  const std::uint64_t end = first + static_cast<std::uint64_t>(bytes);
  if (!found.has_handle) {
    if (const int code = add_pieces(*e, in, end); code != WEIGHTCAST_OK) return code;
  } else if (end > found.address + found.bytes) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "memory on a GPU: %" PRId64
                " bytes end behind their allocation; give "
                "its own size",
                bytes);
  }
  *segment = number;
  *offset = static_cast<std::int64_t>(first - in.gpu.address);
  return WEIGHTCAST_OK;
}
