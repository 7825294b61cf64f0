#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/arguments.hpp"
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

/// The number of an entry, by one of its names. Models have tens of thousands of them.
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

/// Null when there is none.
const Named* find_name(const weightcast_export& e, const char* name) {
  const Named wanted = {name, 0};
  void* found = ::tfind(&wanted, &e.names, by_name);
  return found == nullptr ? nullptr : *static_cast<Named**>(found);
}

/// Fails for a name that an entry has already.
int require_new(const weightcast_export& e, const char* name) {
  if (find_name(e, name) == nullptr) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: is there twice; give every tensor a name of its own", name);
}

int find_entry(weightcast_export& e, const char* name, Entry** entry) {
  const int number = number_of_entry(e, name);
  if (number < 0) return WEIGHTCAST_BAD_ARGUMENT;
  *entry = &e.entries.items[number];
  return WEIGHTCAST_OK;
}

int bytes_of(const Entry& entry) {
  return bytes_of(entry.dtype);
}

std::int64_t end_of(const Entry& entry) {
  return weightcast_end_of_entry(entry.dims, entry.shape, entry.strides, entry.offset, bytes_of(entry));
}

/// An entry and the byte behind its last.
struct Placed {
  const Entry* entry;
  std::int64_t end;
};

/// By segment and by where they begin.
int by_place(const void* a, const void* b) {
  const Entry& first = *static_cast<const Placed*>(a)->entry;
  const Entry& second = *static_cast<const Placed*>(b)->entry;
  if (first.segment != second.segment) return first.segment < second.segment ? -1 : 1;
  if (first.offset != second.offset) return first.offset < second.offset ? -1 : 1;
  return 0;
}

}  // namespace

int require_apart(const weightcast_export& e) {
  const auto most = static_cast<std::size_t>(e.entries.size);
  if (most == 0) return WEIGHTCAST_OK;
  auto* sorted = static_cast<Placed*>(::malloc(most * sizeof(Placed)));
  if (sorted == nullptr) return fail_with_errno("the entries");
  std::size_t count = 0;
  for (int i = 0; i < e.entries.size; ++i) {
    const Entry& entry = e.entries.items[i];
    const std::int64_t end = end_of(entry);
    if (end > entry.offset) sorted[count++] = {&entry, end};
  }
  ::qsort(sorted, count, sizeof(Placed), by_place);
  int code = WEIGHTCAST_OK;
  for (std::size_t i = 1; i < count && code == WEIGHTCAST_OK; ++i) {
    const Entry& before = *sorted[i - 1].entry;
    const Entry& entry = *sorted[i].entry;
    if (before.segment != entry.segment || sorted[i - 1].end <= entry.offset) continue;
    code = fail(WEIGHTCAST_BAD_ARGUMENT,
                "%s: overlaps %s; publish one with the other's name as an alias, or in memory of its own",
                entry.name, before.name);
  }
  ::free(sorted);
  return code;
}

int number_of_entry(const weightcast_export& e, const char* name) {
  if (require_name(name, "the name of an entry") != WEIGHTCAST_OK) return -1;
  const Named* found = find_name(e, name);
  if (found != nullptr) return found->number;
  fail(WEIGHTCAST_BAD_ARGUMENT, "%s: there is no such entry; add it first", name);
  return -1;
}

std::int64_t bytes_of_entry(const Entry& entry) {
  std::int64_t bytes = bytes_of(entry);
  for (int i = 0; i < entry.dims; ++i) bytes *= entry.shape[i];
  return bytes;
}

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
  if (const int code = require_name(name, "the name of an entry"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_text(dtype, "the dtype of an entry"); code != WEIGHTCAST_OK) return code;
  if (bytes_of(dtype) == 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: dtype '%s' is not known; write it as safetensors does (BF16)",
                name, dtype);
  }
  if (dims < 0 || dims > WEIGHTCAST_MOST_DIMS) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: has %d dimensions; publish a view with %d at most", name, dims,
                WEIGHTCAST_MOST_DIMS);
  }
  if (shape == nullptr && dims > 0) return require_given(shape, "the shape");
  if (segment < 0 || segment >= e->segments.size) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: there is no segment %d; add it first", name, segment);
  }
  if (const int code = require_new(*e, name); code != WEIGHTCAST_OK) return code;
  Entry entry;
  std::snprintf(entry.dtype, sizeof entry.dtype, "%s", dtype);
  entry.dims = dims;
  entry.segment = segment;
  entry.offset = offset;
  std::int64_t stride = 1;
  for (int i = dims - 1; i >= 0; --i) {
    entry.shape[i] = shape[i];
    entry.strides[i] = strides == nullptr ? stride : strides[i];
    // What is too large or negative here is refused below.
    if (__builtin_mul_overflow(stride, shape[i] > 1 ? shape[i] : 1, &stride)) stride = -1;
  }
  const std::int64_t end = end_of(entry);
  if (end < 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "%s: its shape, strides or offset are negative or too large; give those of what lies there",
                name);
  }
  if (end > e->segments.items[segment].bytes) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "%s: ends behind its segment of %" PRId64
                " bytes; give it a place within, or a larger segment",
                name, e->segments.items[segment].bytes);
  }
  // The memory of a tensor of a window is given back in pages.
  if (e->segments.items[segment].limit > 0 && (offset % ::sysconf(_SC_PAGESIZE) != 0 || strides != nullptr)) {
    return fail(
        WEIGHTCAST_BAD_ARGUMENT,
        "%s: in a window a tensor begins with a page and lies without gaps; give it an offset that %ld "
        "divides, and no strides",
        name, ::sysconf(_SC_PAGESIZE));
  }
  entry.name = ::strdup(name);
  if (entry.name == nullptr) return fail_with_errno("an entry");
  Entry* added = append(e->entries);
  if (added != nullptr && add_name(*e, entry.name, e->entries.size - 1)) {
    *added = entry;
    return WEIGHTCAST_OK;
  }
  const int code = fail_with_errno("an entry");
  if (added != nullptr) --e->entries.size;
  ::free(entry.name);
  return code;
}

extern "C" int weightcast_add_alias(weightcast_export* e, const char* name, const char* alias) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  Entry* entry = nullptr;
  if (const int code = find_entry(*e, name, &entry); code != WEIGHTCAST_OK) return code;
  if (const int code = require_name(alias, "an alias"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_new(*e, alias); code != WEIGHTCAST_OK) return code;
  char* copy = ::strdup(alias);
  Alias* added = copy == nullptr ? nullptr : append(entry->aliases);
  if (added != nullptr && add_name(*e, copy, static_cast<int>(entry - e->entries.items))) {
    added->name = copy;
    return WEIGHTCAST_OK;
  }
  const int code = fail_with_errno("an alias");
  if (added != nullptr) --entry->aliases.size;
  ::free(copy);
  return code;
}

extern "C" int weightcast_set_box(weightcast_export* e, const char* name, const int64_t* whole,
                                  const int64_t* start) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  Entry* entry = nullptr;
  if (const int code = find_entry(*e, name, &entry); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(whole, "the whole tensor's shape"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(start, "the start of the box"); code != WEIGHTCAST_OK) return code;
  if (e->engine) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "%s: only a trainer publishes a box of a tensor; publish what the engine computes with",
                name);
  }
  if (!weightcast_is_box(entry->dims, entry->shape, whole, start)) {
    return fail(
        WEIGHTCAST_BAD_ARGUMENT,
        "%s: its box goes beyond the whole tensor, or that is too large; give the whole tensor's shape "
        "and where the entry begins in it",
        name);
  }
  for (int i = 0; i < entry->dims; ++i) {
    entry->whole[i] = whole[i];
    entry->start[i] = start[i];
  }
  entry->is_box = true;
  return WEIGHTCAST_OK;
}
