#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"
#include "client/memory.hpp"
#include "client/memory_names.hpp"

namespace weightcast::client {

namespace {

std::uint32_t load(const std::uint32_t& count) {
  return __atomic_load_n(&count, __ATOMIC_ACQUIRE);
}

/// Sleeps until the job step has put more into the list than `landed`, or for a moment: how its state changes
/// has to be looked at, too.
void await_landing(const weightcast_export& e, std::uint32_t landed) {
  constexpr double kPeriod = 0.002;
  const double left = e.wait.slice_end - now();
  const double seconds = left < kPeriod ? left : kPeriod;
  if (seconds <= 0) return;
  timespec time = {};
  time.tv_nsec = static_cast<long>(seconds * 1e9);
  ::syscall(SYS_futex, &e.list->landed, FUTEX_WAIT, landed, &time, nullptr, 0);
}

/// The system takes the pages of an entry of the window, or of all of it. False, with errno, when it does
/// not.
bool give_memory_back(const weightcast_export& e, std::int64_t offset, std::int64_t bytes) {
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  const auto size = static_cast<std::size_t>((bytes + page - 1) / page * page);
  char* memory = static_cast<char*>(e.segments.items[e.window].memory) + offset;
  if (size == 0 || ::madvise(memory, size, MADV_REMOVE) == 0) return true;
  // Locked, as all memory is of a process that has called mlockall().
  return ::munlock(memory, size) == 0 && ::madvise(memory, size, MADV_REMOVE) == 0;
}

/// Ends an update that is under way: of it the caller may have a part, so that no version is in memory.
int give_up(weightcast_export& e, const char* reason) {
  leave_update(e, reason);
  return not_paused(e, rest_of(*e.block, load_word(*e.block)));
}

/// Of give_memory_back(), which has failed.
void say_that_memory_stays(char* reason, std::size_t size) {
  std::snprintf(reason, size, "the system does not take back memory of the window: %s", std::strerror(errno));
}

bool is_of_window(const weightcast_export& e, std::uint32_t number) {
  return number < static_cast<std::uint32_t>(e.entries.size) && e.entries.items[number].segment == e.window;
}

/// Gives back what the caller has been given.
int give_back_taken(weightcast_export& e) {
  for (std::uint32_t i = load(e.list->taken); i < e.handed; ++i) {
    const std::uint32_t number = WEIGHTCAST_LIST_ENTRIES(e.list)[i];
    if (!is_of_window(e, number)) continue;
    const Entry& entry = e.entries.items[number];
    if (!give_memory_back(e, entry.offset, bytes_of_entry(entry))) {
      char reason[sizeof e.block->reason];
      say_that_memory_stays(reason, sizeof reason);
      return give_up(e, reason);
    }
  }
  __atomic_store_n(&e.list->taken, e.handed, __ATOMIC_RELEASE);
  return WEIGHTCAST_OK;
}

/// The numbers that are in the list up to `landed`, behind those that were handed over before.
int hand_over(weightcast_export& e, std::uint32_t landed, int* numbers, int most, int* count) {
  const std::uint32_t* list = WEIGHTCAST_LIST_ENTRIES(e.list);
  if (landed > static_cast<std::uint32_t>(e.entries.size)) landed = 0;
  for (; e.handed < landed && *count < most; ++e.handed) {
    const std::uint32_t number = __atomic_load_n(&list[e.handed], __ATOMIC_RELAXED);
    if (!is_of_window(e, number) || e.entries.items[number].landed) break;
    e.entries.items[number].landed = true;
    numbers[(*count)++] = static_cast<int>(number);
  }
  if (*count > 0) return WEIGHTCAST_OK;
  return give_up(
      e,
      "the window's list names what is no tensor of the window, or has come before; run a job step "
      "of this version");
}

/// The wait of weightcast_landed().
int await_landed(weightcast_export& e, int* numbers, int most, int* count) {
  for (;;) {
    const std::uint64_t word = load_word(*e.block);
    const std::uint32_t landed = load(e.list->landed);
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_WRITING:
        if (landed != e.handed) return hand_over(e, landed, numbers, most, count);
        break;
      case WEIGHTCAST_WRITTEN:
        break;
      case WEIGHTCAST_COMMITTED:
        e.left_while_written = false;
        return WEIGHTCAST_OK;
      default:
        // The job step writes no more, or is gone; not where this process has left it amid the update.
        if (!e.left_while_written) clear_window(e);
        return not_paused(e, rest_of(*e.block, word));
    }
    if (now() >= e.wait.slice_end) return WEIGHTCAST_PENDING;
    await_landing(e, landed);
    settle_if_dead(e, word, e.wait.until);
  }
}

}  // namespace

int make_window_list(weightcast_export& e) {
  if (e.window < 0) return WEIGHTCAST_OK;
  name_of_memory(e.list_name, sizeof e.list_name, ::getuid(), e.generation, "list");
  e.list = static_cast<weightcast_window_list*>(
      make_memory(e, e.list_name, WEIGHTCAST_LIST_BYTES(e.entries.size)));
  if (e.list == nullptr) return WEIGHTCAST_REFUSED;
  e.list->magic = WEIGHTCAST_LIST_MAGIC;
  e.list->generation = e.generation;
  // All of it has pages where a process locks what it maps.
  if (clear_window(e)) return WEIGHTCAST_OK;
  const int code = fail_with_errno("%s: a window cannot be emptied", e.list_name);
  drop_window_list(e);
  return code;
}

void drop_window_list(weightcast_export& e) {
  if (e.list == nullptr) return;
  ::munmap(e.list, static_cast<std::size_t>(WEIGHTCAST_LIST_BYTES(e.entries.size)));
  ::shm_unlink(e.list_name);
  e.list = nullptr;
}

bool clear_window(weightcast_export& e) {
  if (e.list == nullptr) return true;
  for (int i = 0; i < e.entries.size; ++i) e.entries.items[i].landed = false;
  e.handed = 0;
  __atomic_store_n(&e.list->taken, 0, __ATOMIC_RELEASE);
  __atomic_store_n(&e.list->landed, 0, __ATOMIC_RELEASE);
  return give_memory_back(e, 0, e.segments.items[e.window].bytes);
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_landed(weightcast_export* e, int* numbers, int most, int* count) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(numbers, "the place for the numbers"); code != WEIGHTCAST_OK)
    return code;
  if (const int code = require_given(count, "the place for their count"); code != WEIGHTCAST_OK) return code;
  *count = 0;
  if (e->window < 0) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "the export has no window; weightcast_pause returns when all is in its memory");
  }
  if (most <= 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "%d tensors at most; let it be one", most);
  // How long a folder is looked at that does not say what a job step which is gone has decided.
  constexpr double kFolderSeconds = 60;
  // In a call that is made again all has been given back.
  if (begin_wait(*e, Call::kLanded, kFolderSeconds)) {
    if (const int code = give_back_taken(*e); code != WEIGHTCAST_OK) return end_wait(*e, code);
  }
  return end_wait(*e, await_landed(*e, numbers, most, count));
}
