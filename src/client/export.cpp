#include "client/export.hpp"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/clearing.hpp"
#include "client/error.hpp"
#include "client/layout_words.hpp"
#include "client/memory.hpp"
#include "client/memory_names.hpp"

namespace weightcast::client {

namespace {

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
  return ::mkdir(path, 0700) == 0 || errno == EEXIST
             ? WEIGHTCAST_OK
             : fail_with_errno("%s: the folder cannot be made; name one that can", folder);
}

/// Of a whole name.
int require_writable_folder(const char* folder) {
  struct stat status = {};
  if (::stat(folder, &status) == 0 && !S_ISDIR(status.st_mode))
    return fail(WEIGHTCAST_REFUSED, "%s: is no folder; name one", folder);
  // The user's that a file will be made as.
  if (::faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0) return WEIGHTCAST_OK;
  return fail_with_errno("%s: this user cannot write into the folder; change that, or name another", folder);
}

/// Makes shared memory a segment; a window where `limit` is not 0.
int add_shared_segment(weightcast_export& e, std::int64_t bytes, std::int64_t limit, void** memory,
                       int* segment) {
  if (const int code = require_given(memory, "the place for the memory"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(segment, "the place for the segment"); code != WEIGHTCAST_OK)
    return code;
  if (bytes <= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "a segment of %" PRId64 " bytes; ask for some", bytes);
  Segment* added = append(e.segments);
  if (added == nullptr) return fail_with_errno("a segment");
  char number[16];
  std::snprintf(number, sizeof number, "%d", e.shared_segments);
  name_of_memory(added->name, sizeof added->name, ::getuid(), e.generation, number);
  added->bytes = bytes;
  added->limit = limit;
  added->memory = limit == 0 ? make_memory(e, added->name, bytes)
                             : make_sparse_memory(e, added->name, bytes, limit < bytes ? limit : bytes);
  if (added->memory == nullptr) {
    --e.segments.size;
    return WEIGHTCAST_REFUSED;
  }
  ++e.shared_segments;
  *memory = added->memory;
  *segment = e.segments.size - 1;
  return WEIGHTCAST_OK;
}

void free_all(weightcast_export* e) {
  free_entries(*e);
  close_pieces(*e);
  ::free(e->segments.items);
  ::free(e);
}

/// Whether something has that name, a link that leads nowhere, too.
bool is_taken(const char* path) {
  struct stat status = {};
  return ::lstat(path, &status) == 0;
}

}  // namespace

int clear_place(const weightcast_export& e) {
  char path[4200];
  manifest_path(e, path, sizeof path);
  if (!is_taken(path)) return WEIGHTCAST_OK;
  const Clearing clearing;
  if (!clearing.may()) {
    return fail_with_errno("%s: cannot be looked at while others clear up in /dev/shm; try again", path);
  }
  if (!is_taken(path)) return WEIGHTCAST_OK;
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
  int process = 0;
  switch (same_boot ? life_of(there.generation, &process) : Life::kDead) {
    case Life::kUnknown:
      return fail_with_errno(
          "%s: whether its exporter lives cannot be seen in /dev/shm; remove the file if it does "
          "not",
          path);
    case Life::kLives:
      if (process == ::getpid()) {
        return fail(WEIGHTCAST_BAD_ARGUMENT,
                    "%s: this process has published it already; close that export first", path);
      }
      if (process > 0) {
        return fail(WEIGHTCAST_REFUSED,
                    "%s: process %d has published this rank and is alive; stop it, or use another folder",
                    path, process);
      }
      return fail(
          WEIGHTCAST_REFUSED,
          "%s: a process of another container has published this rank and is alive; stop it, or use another "
          "folder",
          path);
    case Life::kDead:
      break;
  }
  if (same_boot) remove_memory(there.generation);
  ::unlink(path);
  return WEIGHTCAST_OK;
}

int require_usable(const weightcast_export* e, bool published) {
  if (e == nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "the export is NULL; open one first");
  if (e->process != ::getpid()) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "the export belongs to process %ld; a forked child cannot use it, "
                "and has to publish its own",
                static_cast<long>(e->process));
  }
  if (e->published != published) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                published ? "the export has not been published yet; call weightcast_publish first"
                          : "the export is published already; close it, and open another");
  }
  return WEIGHTCAST_OK;
}

bool begin_wait(weightcast_export& e, Call call, double seconds) {
  const double start = now();
  const bool is_new = e.wait.call != call;
  if (is_new) e.wait = {call, start + seconds, 0, false};
  constexpr double kNever = 1e300;
  e.wait.slice_end = e.slice > 0 ? start + e.slice : kNever;
  return is_new;
}

void await_in_piece(const weightcast_export& e, std::uint64_t word, double seconds) {
  const double left = e.wait.slice_end - now();
  await_change(*e.block, word, seconds < left ? seconds : left);
}

int end_wait(weightcast_export& e, int code) {
  if (code != WEIGHTCAST_PENDING) e.wait = Wait();
  return code;
}

int require_engine(const weightcast_export* e) {
  if (const int code = require_usable(e, true); code != WEIGHTCAST_OK) return code;
  return e->engine
             ? WEIGHTCAST_OK
             : fail(WEIGHTCAST_BAD_ARGUMENT, "only an engine is asked; a trainer calls weightcast_offer");
}

int require_trainer(const weightcast_export* e) {
  if (const int code = require_usable(e, true); code != WEIGHTCAST_OK) return code;
  return e->engine ? fail(WEIGHTCAST_BAD_ARGUMENT, "only a trainer offers; an engine calls weightcast_pause")
                   : WEIGHTCAST_OK;
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_open(const char* folder, const char* role, int rank, int ranks, const char* layout,
                               weightcast_export** out) {
  if (const int code = require_given(out, "the place for the export"); code != WEIGHTCAST_OK) return code;
  *out = nullptr;
  if (const int code = require_text(role, "the role"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(folder, "the folder"); code != WEIGHTCAST_OK) return code;
  // As job steps name it.
  constexpr const char kLive[] = "live:";
  if (std::strncmp(folder, kLive, sizeof kLive - 1) == 0) folder += sizeof kLive - 1;
  if (*folder == '\0') return fail(WEIGHTCAST_BAD_ARGUMENT, "the folder's name is empty; name one");
  if (layout != nullptr) {
    if (const int code = require_text(layout, "the layout"); code != WEIGHTCAST_OK) return code;
  }
  const bool engine = std::strcmp(role, "engine") == 0;
  if (!engine && std::strcmp(role, "trainer") != 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "role '%s': write \"trainer\" or \"engine\"", role);
  }
  if (ranks < 1)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "%d ranks: there is one at least; give 1 or more", ranks);
  if (rank < 0 || rank >= ranks)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "rank %d of %d: ranks count from 0; give one below %d", rank, ranks,
                ranks);
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
    code = fail(WEIGHTCAST_BAD_ARGUMENT, "the folder's name is too long; give another");
  if (static_cast<std::size_t>(layout_length) >= sizeof e->layout) {
    code = fail(WEIGHTCAST_BAD_ARGUMENT, "a layout of %d characters; give one of %d at most", layout_length,
                static_cast<int>(sizeof e->layout) - 1);
  }
  if (code == WEIGHTCAST_OK && e->layout[0] != '\0') code = require_layout(e->layout, engine);
  if (code == WEIGHTCAST_OK) code = make_folder(folder);
  // Whole, because the process may change its working folder.
  char* whole = code == WEIGHTCAST_OK ? ::realpath(folder, nullptr) : nullptr;
  if (code == WEIGHTCAST_OK && whole == nullptr)
    code = fail_with_errno("%s: cannot be entered; name another folder", folder);
  if (whole != nullptr) std::snprintf(e->folder, sizeof e->folder, "%s", whole);
  ::free(whole);
  if (code == WEIGHTCAST_OK) code = require_writable_folder(e->folder);
  if (code == WEIGHTCAST_OK) code = clear_place(*e);
  if (code == WEIGHTCAST_OK) remove_unfinished(*e);
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
  *out = e;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_add_segment(weightcast_export* e, int64_t bytes, void** memory, int* segment) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  return add_shared_segment(*e, bytes, 0, memory, segment);
}

extern "C" int weightcast_add_window(weightcast_export* e, int64_t bytes, int64_t limit, void** memory,
                                     int* segment) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (!e->engine)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "only an engine has a window; a trainer adds segments");
  if (e->window >= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "there is a window already; one is all there is");
  if (limit <= 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "a window that %" PRId64 " bytes may be in at once; let there be some", limit);
  }
  const int code = add_shared_segment(*e, bytes, limit, memory, segment);
  if (code == WEIGHTCAST_OK) e->window = *segment;
  return code;
}

extern "C" int weightcast_publish(weightcast_export* e) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (const int code = require_apart(*e); code != WEIGHTCAST_OK) return code;
  if (e->experts != nullptr && e->experts->epoch < 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "nobody has said which experts sit in which slots; call weightcast_place_experts first");
  }
  // Somebody else may have published the rank since it was opened here.
  if (const int code = clear_place(*e); code != WEIGHTCAST_OK) return code;
  for (int i = 0; i < e->segments.size; ++i) {
    // A rank takes the descriptors from this process, which a hardened kernel allows nobody else. Where it is
    // not hardened this fails, and need not succeed.
    if (e->segments.items[i].pieces.size > 0) ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  }
  if (const int code = make_window_list(*e); code != WEIGHTCAST_OK) return code;
  if (const int code = write_manifest(*e); code != WEIGHTCAST_OK) {
    drop_window_list(*e);
    return code;
  }
  e->published = true;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_wait_in_pieces(weightcast_export* e, double seconds) {
  if (const int code = require_usable(e, e != nullptr && e->published); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  e->slice = seconds;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_keep_memory(weightcast_export* e, int segment) {
  if (const int code = require_usable(e, e != nullptr && e->published); code != WEIGHTCAST_OK) return code;
  if (segment < 0 || segment >= e->segments.size || e->segments.items[segment].memory == nullptr) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "segment %d: is none of this export's in the host's memory",
                segment);
  }
  e->segments.items[segment].kept = true;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_close(weightcast_export* e, double seconds) {
  if (e == nullptr) return WEIGHTCAST_OK;
  if (e->process != ::getpid()) return require_usable(e, true);
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  char path[4200];
  manifest_path(*e, path, sizeof path);
  const int removed = remove_manifest(*e);
  begin_wait(*e, Call::kClose, seconds);
  bool free_memory = false;
  // The lock of those who have it mapped: from here on nobody new can come.
  while (!(free_memory = take_lock(e->block_file, WEIGHTCAST_LOCK_MAPPED)) && now() < e->wait.until) {
    constexpr double kPeriod = 0.01;
    if (now() >= e->wait.slice_end) return WEIGHTCAST_PENDING;
    await_in_piece(*e, load_word(*e->block), kPeriod);
  }
  remove_memory(*e);
  for (int i = 0; i < e->segments.size && free_memory; ++i) {
    const Segment& segment = e->segments.items[i];
    if (segment.memory != nullptr && !segment.kept)
      ::munmap(segment.memory, static_cast<std::size_t>(segment.bytes));
  }
  if (free_memory) drop_window_list(*e);
  if (free_memory) drop_experts(*e);
  ::munmap(e->block, WEIGHTCAST_BLOCK_BYTES);
  ::close(e->block_file);
  free_all(e);
  if (free_memory) return removed;
  return fail(WEIGHTCAST_NO_ANSWER, "%s: a job step had the memory mapped for %g s; it is left to it", path,
              seconds);
}
