#include "client/export.hpp"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/block.hpp"
#include "client/error.hpp"

namespace weightcast::client {

namespace {

/// The exports of this process, whose locks another look at their files would drop.
weightcast_export* exports = nullptr;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

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

/// One more item at the end; null when there is no memory.
template <typename Item>
Item* append(List<Item>& list) {
  auto* items =
      static_cast<Item*>(::realloc(list.items, sizeof(Item) * static_cast<std::size_t>(list.size + 1)));
  if (items == nullptr) return nullptr;
  list.items = items;
  items[list.size] = Item();
  return &items[list.size++];
}

void name_of_memory(char* name, std::size_t size, std::uint64_t generation, const char* what) {
  std::snprintf(name, size, "/weightcast-%ld-%016" PRIx64 "-%s", static_cast<long>(::getuid()), generation,
                what);
}

/// Maps `bytes` of a new file, all of them reserved: what the system has no room for is an error now and not
/// a signal later. Null when it refuses.
void* reserve(int file, std::int64_t bytes) {
  void* memory = MAP_FAILED;
  do {
    errno = ::posix_fallocate(file, 0, bytes);
  } while (errno == EINTR);
  if (errno == 0)
    memory = ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory != MAP_FAILED) return memory;
  fail_with_errno("shared memory of %" PRId64 " bytes in /dev/shm", bytes);
  return nullptr;
}

/// Shared memory of that name, made here.
void* make_memory(const char* name, std::int64_t bytes) {
  const int file = ::shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) {
    fail_with_errno("shared memory %s", name);
    return nullptr;
  }
  void* memory = reserve(file, bytes);
  if (memory == nullptr) ::shm_unlink(name);
  ::close(file);
  return memory;
}

/// Makes a folder, and those above it that are not there.
int make_folder(const char* folder) {
  char path[sizeof weightcast_export::folder];
  std::snprintf(path, sizeof path, "%s", folder);
  for (char* at = std::strchr(path, '/'); at != nullptr; at = std::strchr(at + 1, '/')) {
    if (at == path) continue;
    *at = '\0';
    static_cast<void>(::mkdir(path, 0700));  // where that fails, the folder in it cannot be made
    *at = '/';
  }
  return ::mkdir(path, 0700) == 0 || errno == EEXIST ? WEIGHTCAST_OK : fail_with_errno("%s", folder);
}

/// Makes the control block. It is given its name last, when it is locked: nobody may take it for a dead
/// exporter's.
int make_block(weightcast_export& e) {
  name_of_memory(e.block_name, sizeof e.block_name, e.generation, "control");
  e.block_file = ::open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (e.block_file < 0) return fail_with_errno("shared memory in /dev/shm");
  e.block = static_cast<weightcast_block*>(reserve(e.block_file, WEIGHTCAST_BLOCK_BYTES));
  int code = e.block == nullptr ? WEIGHTCAST_REFUSED : WEIGHTCAST_OK;
  if (code == WEIGHTCAST_OK) {
    e.block->magic = WEIGHTCAST_BLOCK_MAGIC;
    e.block->generation = e.generation;
    e.block->word = WEIGHTCAST_WORD(e.engine ? WEIGHTCAST_NONE : WEIGHTCAST_TRAINING, 0);
    char file[64];
    char path[128];
    std::snprintf(file, sizeof file, "/proc/self/fd/%d", e.block_file);
    std::snprintf(path, sizeof path, "/dev/shm%s", e.block_name);
    if (!take_lock(e.block_file, WEIGHTCAST_LOCK_EXPORTER) ||
        ::linkat(AT_FDCWD, file, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0) {
      code = fail_with_errno("shared memory %s", e.block_name);
      ::munmap(e.block, WEIGHTCAST_BLOCK_BYTES);
    }
  }
  if (code != WEIGHTCAST_OK) ::close(e.block_file);
  return code;
}

/// Calls `visit(rest)` with what follows `prefix` in the name of each shared memory that begins with it.
/// False when some may not have been seen.
template <typename Visit>
bool for_each_memory(const char* prefix, Visit visit) {
  DIR* folder = ::opendir("/dev/shm");
  if (folder == nullptr) return false;
  // Names of memory begin with a slash, names of files do not.
  const std::size_t length = std::strlen(prefix + 1);
  errno = 0;
  while (const dirent* entry = ::readdir(folder)) {
    if (std::strstr(entry->d_name, prefix + 1) == entry->d_name) visit(entry->d_name + length);
    errno = 0;
  }
  const bool all = errno == 0;
  ::closedir(folder);
  return all;
}

/// Whether no shared memory has that name any more.
bool unlink_memory(const char* name) {
  return ::shm_unlink(name) == 0 || errno == ENOENT;
}

/// Takes away the memory of a dead exporter. The control block goes last, and only behind all the rest: by it
/// whoever comes next finds what is left.
void remove_memory(std::uint64_t generation) {
  char prefix[64];
  name_of_memory(prefix, sizeof prefix, generation, "");
  char name[320];
  bool gone = true;
  const bool all = for_each_memory(prefix, [&](const char* what) {
    std::snprintf(name, sizeof name, "%s%s", prefix, what);
    if (std::strcmp(what, "control") != 0) gone = unlink_memory(name) && gone;
  });
  std::snprintf(name, sizeof name, "%scontrol", prefix);
  if (all && gone) unlink_memory(name);
}

/// The same for an export of this process.
void remove_memory(const weightcast_export& e) {
  bool gone = true;
  for (int i = 0; i < e.segments.size; ++i) {
    const Segment& segment = e.segments.items[i];
    if (segment.memory != nullptr) gone = unlink_memory(segment.name) && gone;
  }
  if (gone) unlink_memory(e.block_name);
}

/// Whether an exporter lives.
enum class Life { kDead, kLives, kUnknown };

/// Of the exporter that has that generation published or will. `process` is the one that lives, -1 where it
/// is in another container; where nothing is known, errno says why.
Life life_of(std::uint64_t generation, int* process) {
  char name[64];
  name_of_memory(name, sizeof name, generation, "control");
  const int file = ::shm_open(name, O_RDWR | O_CLOEXEC | O_NONBLOCK, 0);
  // A block that merely cannot be opened, for want of descriptors for example, may be a living exporter's.
  if (file < 0) return errno == ENOENT ? Life::kDead : Life::kUnknown;
  *process = holder_of_lock(file, WEIGHTCAST_LOCK_EXPORTER);
  ::close(file);
  return *process == 0 ? Life::kDead : Life::kLives;
}

/// An export of this process, whose locks a look at its file would drop. A forked child has none of its
/// parent's.
const weightcast_export* own_export(std::uint64_t generation) {
  const weightcast_export* e = exports;
  while (e != nullptr && (e->generation != generation || e->process != ::getpid())) e = e->next;
  return e;
}

/// Takes away what dead exporters of this user have left in memory, those that died before they had
/// published, too.
void remove_what_is_dead() {
  char prefix[64];
  std::snprintf(prefix, sizeof prefix, "/weightcast-%ld-", static_cast<long>(::getuid()));
  for_each_memory(prefix, [](const char* rest) {
    std::uint64_t generation = 0;
    int length = 0;
    if (std::sscanf(rest, "%16" SCNx64 "-control%n", &generation, &length) != 1 || length == 0) return;
    int process = 0;
    if (own_export(generation) == nullptr && life_of(generation, &process) == Life::kDead)
      remove_memory(generation);
  });
}

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

/// A descriptor that several segments have is closed once.
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

void free_all(weightcast_export* e) {
  ::tdestroy(e->names, ::free);
  for (int i = 0; i < e->entries.size; ++i) {
    Entry& entry = e->entries.items[i];
    for (int a = 0; a < entry.aliases.size; ++a) ::free(entry.aliases.items[a].name);
    ::free(entry.aliases.items);
    ::free(entry.name);
  }
  ::free(e->entries.items);
  close_pieces(*e);
  for (int i = 0; i < e->segments.size; ++i) ::free(e->segments.items[i].pieces.items);
  ::free(e->segments.items);
  ::free(e);
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

int clear_place(const weightcast_export& e) {
  char path[4200];
  manifest_path(e, path, sizeof path);
  if (::access(path, F_OK) != 0) return WEIGHTCAST_OK;
  Publication there;
  if (const int code = read_publication(path, &there); code != WEIGHTCAST_OK) return code;
  const Publication here = publication_from_here();
  if (std::strcmp(there.host, here.host) != 0) {
    return fail(WEIGHTCAST_REFUSED,
                "%s: was published on host %s, and from here nobody sees whether it lives; remove the file "
                "if it does not",
                path, there.host);
  }
  // Shared memory does not outlive its host's boot.
  const bool same_boot = std::strcmp(there.boot_id, here.boot_id) == 0;
  if (same_boot && there.shm != here.shm) {
    return fail(WEIGHTCAST_REFUSED,
                "%s: was published where there is another /dev/shm, as in another container, and from here "
                "nobody sees whether it lives; remove the file if it does not",
                path);
  }
  if (same_boot && own_export(there.generation) != nullptr) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%s: this process has published it already; close that export first",
                path);
  }
  int process = 0;
  switch (same_boot ? life_of(there.generation, &process) : Life::kDead) {
    case Life::kUnknown:
      return fail_with_errno("%s: whether its exporter lives cannot be seen in /dev/shm", path);
    case Life::kLives:
      if (process > 0) {
        return fail(WEIGHTCAST_REFUSED,
                    "%s: process %d has published this rank and is alive; stop it, or use another folder",
                    path, process);
      }
      return fail(WEIGHTCAST_REFUSED,
                  "%s: a process of another container has published this rank and is alive", path);
    case Life::kDead:
      break;
  }
  if (same_boot) remove_memory(there.generation);
  ::unlink(path);
  return WEIGHTCAST_OK;
}

int require_usable(const weightcast_export* e, bool published) {
  if (e == nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "the export is NULL");
  if (e->process != ::getpid()) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "the export belongs to process %ld; a forked child cannot use it",
                static_cast<long>(e->process));
  }
  if (e->published != published) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                published ? "the export has not been published yet" : "the export is published already");
  }
  return WEIGHTCAST_OK;
}

int require_engine(const weightcast_export* e) {
  if (const int code = require_usable(e, true); code != WEIGHTCAST_OK) return code;
  return e->engine ? WEIGHTCAST_OK
                   : fail(WEIGHTCAST_BAD_ARGUMENT, "a trainer offers; only an engine is asked");
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

int require_trainer(const weightcast_export* e) {
  if (const int code = require_usable(e, true); code != WEIGHTCAST_OK) return code;
  return e->engine ? fail(WEIGHTCAST_BAD_ARGUMENT, "an engine is asked; only a trainer offers")
                   : WEIGHTCAST_OK;
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_open(const char* folder, const char* role, int rank, int ranks, const char* layout,
                               weightcast_export** out) {
  *out = nullptr;
  const bool engine = std::strcmp(role, "engine") == 0;
  if (!engine && std::strcmp(role, "trainer") != 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "role '%s': write \"trainer\" or \"engine\"", role);
  }
  if (rank < 0 || rank >= ranks)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "rank %d of %d: ranks count from 0", rank, ranks);
  auto* e = static_cast<weightcast_export*>(::malloc(sizeof(weightcast_export)));
  if (e == nullptr) return fail_with_errno("an export");
  *e = weightcast_export();
  const int length = std::snprintf(e->folder, sizeof e->folder, "%s", folder);
  const int layout_length = std::snprintf(e->layout, sizeof e->layout, "%s", layout == nullptr ? "" : layout);
  e->engine = engine;
  e->rank = rank;
  e->ranks = ranks;
  e->process = ::getpid();
  int code = WEIGHTCAST_OK;
  if (static_cast<std::size_t>(length) >= sizeof e->folder)
    code = fail(WEIGHTCAST_BAD_ARGUMENT, "the folder's name is too long");
  if (static_cast<std::size_t>(layout_length) >= sizeof e->layout) {
    code = fail(WEIGHTCAST_BAD_ARGUMENT, "a layout of %d characters; up to %d are possible", layout_length,
                static_cast<int>(sizeof e->layout) - 1);
  }
  if (code == WEIGHTCAST_OK) code = make_folder(folder);
  // Whole, because the process may change its working folder.
  char* whole = code == WEIGHTCAST_OK ? ::realpath(folder, nullptr) : nullptr;
  if (code == WEIGHTCAST_OK && whole == nullptr) code = fail_with_errno("%s", folder);
  if (whole != nullptr) std::snprintf(e->folder, sizeof e->folder, "%s", whole);
  ::free(whole);
  if (code == WEIGHTCAST_OK) code = clear_place(*e);
  if (code == WEIGHTCAST_OK &&
      ::getrandom(&e->generation, sizeof e->generation, 0) != static_cast<ssize_t>(sizeof e->generation)) {
    code = fail_with_errno("random numbers");
  }
  if (code == WEIGHTCAST_OK) {
    remove_what_is_dead();
    code = make_block(*e);
  }
  if (code != WEIGHTCAST_OK) {
    ::free(e);
    return code;
  }
  e->next = exports;
  exports = e;
  *out = e;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_add_segment(weightcast_export* e, int64_t bytes, void** memory, int* segment) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (bytes <= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "a segment of %" PRId64 " bytes", bytes);
  Segment* added = append(e->segments);
  if (added == nullptr) return fail_with_errno("a segment");
  char number[16];
  std::snprintf(number, sizeof number, "%d", e->shared_segments);
  name_of_memory(added->name, sizeof added->name, e->generation, number);
  added->bytes = bytes;
  added->memory = make_memory(added->name, bytes);
  if (added->memory == nullptr) {
    --e->segments.size;
    return WEIGHTCAST_REFUSED;
  }
  ++e->shared_segments;
  *memory = added->memory;
  *segment = e->segments.size - 1;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_add_gpu_memory(weightcast_export* e, const void* address, int64_t bytes,
                                         int* segment, int64_t* offset) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (bytes <= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "memory of %" PRId64 " bytes", bytes);
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
    return fail(WEIGHTCAST_BAD_ARGUMENT, "memory on a GPU: %" PRId64 " bytes end behind their allocation",
                bytes);
  }
  *segment = number;
  *offset = static_cast<std::int64_t>(first - in.gpu.address);
  return WEIGHTCAST_OK;
}

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

extern "C" int weightcast_publish(weightcast_export* e) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  // Somebody else may have published the rank since it was opened here.
  if (const int code = clear_place(*e); code != WEIGHTCAST_OK) return code;
  for (int i = 0; i < e->segments.size; ++i) {
    // A rank takes the descriptors from this process, which a hardened kernel allows nobody else. Where it is
    // not hardened this fails, and need not succeed.
    if (e->segments.items[i].pieces.size > 0) ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  }
  if (const int code = write_manifest(*e); code != WEIGHTCAST_OK) return code;
  e->published = true;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_close(weightcast_export* e, double seconds) {
  if (e == nullptr) return WEIGHTCAST_OK;
  if (e->process != ::getpid()) return require_usable(e, true);
  char path[4200];
  manifest_path(*e, path, sizeof path);
  // A successor's is not this one's to take away.
  Publication there;
  if (e->published && read_publication(path, &there) == WEIGHTCAST_OK && there.generation == e->generation)
    ::unlink(path);
  const double give_up = now() + seconds;
  bool free_memory = false;
  // The lock of those who have it mapped: from here on nobody new can come.
  while (!(free_memory = take_lock(e->block_file, WEIGHTCAST_LOCK_MAPPED)) && now() < give_up) {
    constexpr double kPeriod = 0.01;
    await_change(*e->block, load_word(*e->block), kPeriod);
  }
  remove_memory(*e);
  for (int i = 0; i < e->segments.size && free_memory; ++i) {
    const Segment& segment = e->segments.items[i];
    if (segment.memory != nullptr) ::munmap(segment.memory, static_cast<std::size_t>(segment.bytes));
  }
  ::munmap(e->block, WEIGHTCAST_BLOCK_BYTES);
  ::close(e->block_file);
  for (weightcast_export** at = &exports; *at != nullptr; at = &(*at)->next) {
    if (*at != e) continue;
    *at = e->next;
    break;
  }
  free_all(e);
  if (free_memory) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_NO_ANSWER, "%s: a job step had the memory mapped for %g s; it is left to it", path,
              seconds);
}
