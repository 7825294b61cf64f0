#include <errno.h>
#include <search.h>
#include <stdlib.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/error.hpp"
#include "client/export.hpp"

namespace weightcast::client {

namespace {

struct Dtype {
  const char* name;
  int bytes;
};
constexpr Dtype kDtypes[] = {{"BF16", 2}, {"F16", 2},     {"F32", 4},     {"F64", 8},
                             {"I8", 1},   {"U8", 1},      {"I16", 2},     {"U16", 2},
                             {"I32", 4},  {"U32", 4},     {"I64", 8},     {"U64", 8},
                             {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};

/// 0 for a dtype that is not known.
int bytes_of(const char* dtype) {
  for (const Dtype& known : kDtypes) {
    if (std::strcmp(known.name, dtype) == 0) return known.bytes;
  }
  return 0;
}

/// The number of an entry, by its name. Models have tens of thousands of them.
struct Named {
  const char* name;
  int number;
};

int by_name(const void* a, const void* b) {
  return std::strcmp(static_cast<const Named*>(a)->name, static_cast<const Named*>(b)->name);
}

bool add_name(weightcast_export& e, const char* name, int number) {
  auto* named = static_cast<Named*>(::malloc(sizeof(Named)));
  if (named == nullptr) return false;
  *named = {name, number};
  if (::tsearch(named, &e.names, by_name) != nullptr) return true;
  ::free(named);
  return false;
}

Entry* find_entry(weightcast_export& e, const char* name) {
  const Named wanted = {name, 0};
  void* found = ::tfind(&wanted, &e.names, by_name);
  return found == nullptr ? nullptr : &e.entries.items[(*static_cast<Named**>(found))->number];
}

/// Checks what an entry says against its segment.
int require_inside(const weightcast_export& e, const Entry& entry, int bytes) {
  const Segment& segment = e.segments.items[entry.segment];
  std::int64_t end = 1;  // elements up to the last one
  bool fits = true;
  for (int i = 0; i < entry.dims; ++i) {
    if (entry.shape[i] == 0) return WEIGHTCAST_OK;
    std::int64_t step = 0;
    fits = fits && !__builtin_mul_overflow(entry.shape[i] - 1, entry.strides[i], &step) &&
           !__builtin_add_overflow(end, step, &end);
  }
  fits = fits && !__builtin_mul_overflow(end, static_cast<std::int64_t>(bytes), &end) &&
         !__builtin_add_overflow(end, entry.offset, &end) && end <= segment.bytes;
  if (fits) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: ends behind its segment of %" PRId64 " bytes", entry.name,
              segment.bytes);
}

}  // namespace

void free_entries(weightcast_export& e) {
  ::tdestroy(e.names, ::free);
  for (int i = 0; i < e.entries.size; ++i) {
    Entry& entry = e.entries.items[i];
    for (int a = 0; a < entry.aliases.size; ++a) ::free(entry.aliases.items[a].name);
    ::free(entry.aliases.items);
    ::free(entry.name);
  }
  ::free(e.entries.items);
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_add_entry(weightcast_export* e, const char* name, const char* dtype, int dims,
                                    const int64_t* shape, const int64_t* strides, int segment,
                                    int64_t offset) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  const int bytes = bytes_of(dtype);
  if (bytes == 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: dtype '%s' is not known", name, dtype);
  if (dims < 0 || dims > kMostDims) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: has %d dimensions", name, dims);
  if (segment < 0 || segment >= e->segments.size || offset < 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: there is no segment %d, or its offset %" PRId64 " is negative",
                name, segment, offset);
  }
  if (find_entry(*e, name) != nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: is there twice", name);
  Entry entry;
  std::snprintf(entry.dtype, sizeof entry.dtype, "%s", dtype);
  entry.dims = dims;
  entry.segment = segment;
  entry.offset = offset;
  std::int64_t stride = 1;
  for (int i = dims - 1; i >= 0; --i) {
    entry.shape[i] = shape[i];
    entry.strides[i] = strides == nullptr ? stride : strides[i];
    if (shape[i] < 0 || entry.strides[i] < 0 || __builtin_mul_overflow(stride, shape[i], &stride)) {
      return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: its shape or strides are negative or too large", name);
    }
  }
  entry.name = ::strdup(name);
  if (entry.name == nullptr) return fail_with_errno("an entry");
  int code = require_inside(*e, entry, bytes);
  Entry* added = code == WEIGHTCAST_OK ? append(e->entries) : nullptr;
  if (added != nullptr && add_name(*e, entry.name, e->entries.size - 1)) {
    *added = entry;
    return WEIGHTCAST_OK;
  }
  if (code == WEIGHTCAST_OK) code = fail_with_errno("an entry");
  if (added != nullptr) --e->entries.size;
  ::free(entry.name);
  return code;
}

extern "C" int weightcast_add_alias(weightcast_export* e, const char* name, const char* alias) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  Entry* entry = find_entry(*e, name);
  if (entry == nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: there is no such entry", name);
  char* copy = ::strdup(alias);
  Alias* added = copy == nullptr ? nullptr : append(entry->aliases);
  if (added == nullptr) {
    ::free(copy);
    return fail_with_errno("an alias");
  }
  added->name = copy;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_set_box(weightcast_export* e, const char* name, const int64_t* whole,
                                  const int64_t* start) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  Entry* entry = find_entry(*e, name);
  if (entry == nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: there is no such entry", name);
  if (e->engine) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: only a trainer publishes a box of a tensor", name);
  for (int i = 0; i < entry->dims; ++i) {
    if (start[i] < 0 || whole[i] < 0 || start[i] > whole[i] - entry->shape[i]) {
      return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: its box goes beyond the whole tensor in dimension %d", name,
                  i);
    }
    entry->whole[i] = whole[i];
    entry->start[i] = start[i];
  }
  entry->is_box = true;
  return WEIGHTCAST_OK;
}
