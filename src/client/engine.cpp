#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"

namespace weightcast::client {

namespace {

/// What has been decided of an update whose bytes are all there.
enum class Decision { kCommitted, kVoid, kUnknown };

/// The name of the record is the decision: the job step gives it to a record, an engine whose job step is
/// dead makes it itself, as void; whoever comes second finds what the first has decided.
Decision decide(const weightcast_export& e, std::uint64_t update) {
  constexpr const char kVoid[] = "void\n";
  char path[4200];
  std::snprintf(path, sizeof path, "%s/commit-%" PRIu64 ".json", e.folder, update);
  const int made = ::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (made >= 0) {
    // Empty it would say the same.
    static_cast<void>(!::write(made, kVoid, sizeof kVoid - 1));
    ::close(made);
    return Decision::kVoid;
  }
  if (errno != EEXIST) return Decision::kUnknown;
  char first = 'v';
  const int found = ::open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  struct stat status = {};
  const bool is_file = found >= 0 && ::fstat(found, &status) == 0 && S_ISREG(status.st_mode);
  const ssize_t got = found < 0 ? -1 : is_file ? ::read(found, &first, 1) : 0;
  const int error = errno;
  if (found >= 0) ::close(found);
  // What is no file has kept the record from its name.
  if (got < 0) return error == EISDIR || error == ELOOP ? Decision::kVoid : Decision::kUnknown;
  return first == '{' ? Decision::kCommitted : Decision::kVoid;
}

std::uint64_t rest_word(const weightcast_block& block, std::uint64_t word) {
  return WEIGHTCAST_WORD(static_cast<weightcast_state>(block.rest), WEIGHTCAST_UPDATE_OF(word));
}

/// What an update of a job step that is gone leaves: see the states' rules in the project's pages. Only while
/// this process holds the update's lock, so that no other job step begins. A folder that cannot be read is
/// looked at again until the time `until`.
void settle_after_death(weightcast_export& e, double until) {
  weightcast_block& block = *e.block;
  const std::uint64_t word = load_word(block);
  const std::uint64_t update = WEIGHTCAST_UPDATE_OF(word);
  switch (WEIGHTCAST_STATE_OF(word)) {
    case WEIGHTCAST_ASKED:
    case WEIGHTCAST_PAUSED:
      put_text(block.reason, sizeof block.reason, "the job step that asked is gone");
      change_word(block, word, rest_word(block, word));
      return;
    case WEIGHTCAST_WRITING:
      invalidate(block, word, WEIGHTCAST_WRITTEN_SOME, "the job step died while it wrote");
      return;
    case WEIGHTCAST_WRITTEN:
      switch (decide(e, update)) {
        case Decision::kCommitted:
          change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_COMMITTED, update));
          return;
        case Decision::kVoid:
          invalidate(block, word, WEIGHTCAST_WRITTEN_ALL,
                     "the job step died before the version was committed; all of it is written");
          return;
        case Decision::kUnknown:
          if (now() < until) return;
          invalidate(block, word, WEIGHTCAST_WRITTEN_ALL,
                     "the job step died, and its folder does not say whether the version was committed");
          return;
      }
      return;
    default:
      return;
  }
}

/// Sleeps for a change of `word`; settles what a job step that is gone has left.
void await_job_step(weightcast_export& e, std::uint64_t word, double until) {
  const weightcast_state state = WEIGHTCAST_STATE_OF(word);
  const bool written = state == WEIGHTCAST_WRITING || state == WEIGHTCAST_WRITTEN;
  const double left = until - now();
  await_in_piece(e, word, !written && left < kLook ? left : kLook);
  settle_if_dead(e, word, until);
}

/// Nothing came in time: what the engine had it still has, be it no version.
int nothing_came(const weightcast_export& e, weightcast_state rest, double seconds) {
  if (rest == WEIGHTCAST_INVALID) return not_paused(e, rest);
  return fail(WEIGHTCAST_NO_ANSWER, "no new weights came within %g s; go on with the old ones", seconds);
}

/// Answers a question, for which the window would have to be empty: the engine goes on with what it has.
int decline_for_window(weightcast_export& e, std::uint64_t word) {
  weightcast_block& block = *e.block;
  const int error = errno;
  std::snprintf(block.reason, sizeof block.reason, "its window cannot be emptied: %s", std::strerror(error));
  change_word(block, word, rest_word(block, word));
  return not_paused(e, static_cast<weightcast_state>(block.rest));
}

/// Whether that question, which an engine has been asked on some of its ranks, will not be asked on this one
/// any more. 0 stands for whichever comes.
bool is_over(const weightcast_export& e, std::uint64_t word, std::uint64_t question) {
  if (question == 0) return false;
  if (WEIGHTCAST_UPDATE_OF(word) > question) return true;
  if (!is_at_rest(WEIGHTCAST_STATE_OF(word))) return false;
  // A job step has the locks of all ranks before it asks the first, and until it has no more to say.
  return WEIGHTCAST_UPDATE_OF(word) == question || holder_of_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE) == 0;
}

/// The wait of weightcast_pause_for().
int await_version(weightcast_export& e, std::uint64_t question, double seconds, std::int64_t* version) {
  weightcast_block& block = *e.block;
  const double until = e.wait.until;
  bool& paused = e.wait.begun;
  for (;;) {
    const std::uint64_t word = load_word(block);
    if (is_over(e, word, question)) {
      if (load_word(block) != word) continue;
      const weightcast_state rest = rest_of(block, word);
      if (WEIGHTCAST_UPDATE_OF(word) == question || rest == WEIGHTCAST_INVALID) return not_paused(e, rest);
      return fail(WEIGHTCAST_REFUSED,
                  "the update ended before this rank was asked; go on with what was there");
    }
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_ASKED:
        if (!clear_window(e)) return decline_for_window(e, word);
        paused = change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_PAUSED, WEIGHTCAST_UPDATE_OF(word))) ||
                 paused;
        continue;
      case WEIGHTCAST_COMMITTED:
        e.left_while_written = false;
        if (version != nullptr) *version = block.asked;
        return WEIGHTCAST_OK;
      case WEIGHTCAST_PAUSED:
        // Nothing has been written, so the engine may go on without an answer. Past that only the job step
        // ends.
        if (now() < until) break;
        put_text(block.reason, sizeof block.reason, "the engine has waited for too long");
        if (!change_word(block, word, rest_word(block, word))) continue;
        return nothing_came(e, static_cast<weightcast_state>(block.rest), seconds);
      case WEIGHTCAST_WRITING:
        if (e.window < 0) break;
        if (version != nullptr) *version = block.asked;
        return WEIGHTCAST_OK;
      case WEIGHTCAST_WRITTEN:
        break;
      default:
        if (paused) return not_paused(e, WEIGHTCAST_STATE_OF(word));
        if (now() >= until) return nothing_came(e, WEIGHTCAST_STATE_OF(word), seconds);
        break;
    }
    if (now() >= e.wait.slice_end) return WEIGHTCAST_PENDING;
    await_job_step(e, word, until);
  }
}

}  // namespace

void leave_update(weightcast_export& e, const char* reason) {
  weightcast_block& block = *e.block;
  for (;;) {
    const std::uint64_t word = load_word(block);
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_PAUSED:
        put_text(block.reason, sizeof block.reason, reason);
        if (change_word(block, word, rest_word(block, word))) return;
        continue;
      case WEIGHTCAST_WRITING:
        if (!invalidate(block, word, WEIGHTCAST_WRITTEN_SOME, reason)) continue;
        e.left_while_written = true;
        return;
      case WEIGHTCAST_WRITTEN:
      case WEIGHTCAST_COMMITTED:
        if (invalidate(block, word, WEIGHTCAST_WRITTEN_ALL, reason)) return;
        continue;
      default:
        return;
    }
  }
}

void settle_if_dead(weightcast_export& e, std::uint64_t word, double until) {
  // At rest there is no update whose job step could be gone, and its lock is not to be in a new one's way.
  if (is_at_rest(WEIGHTCAST_STATE_OF(word)) || load_word(*e.block) != word ||
      !take_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE)) {
    return;
  }
  settle_after_death(e, until);
  drop_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE);
}

int not_paused(const weightcast_export& e, weightcast_state state) {
  if (state == WEIGHTCAST_INVALID) {
    return fail(WEIGHTCAST_IS_INVALID,
                "no version is in memory: %s; wait for an update, or load one and call weightcast_serve",
                e.block->cause);
  }
  return fail(WEIGHTCAST_REFUSED, "the update did not take place, go on with what was there: %s",
              e.block->reason);
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_serve(weightcast_export* e, int64_t version) {
  if (const int code = require_usable(e, e != nullptr && e->published); code != WEIGHTCAST_OK) return code;
  if (!e->engine) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "only an engine serves a version; a trainer says at each weightcast_offer which one it has");
  }
  if (const int code = require_version(version); code != WEIGHTCAST_OK) return code;
  if (e->left_while_written && holder_of_lock(e->block_file, WEIGHTCAST_LOCK_UPDATE) != 0) {
    return fail(
        WEIGHTCAST_REFUSED,
        "the job step that wrote when the engine was interrupted may still write; load and say so when "
        "it has ended");
  }
  e->left_while_written = false;
  const std::uint64_t word = load_word(*e->block);
  const weightcast_state state = WEIGHTCAST_STATE_OF(word);
  if (!is_at_rest(state)) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "an update is under way; say so when it has ended");
  }
  const std::int64_t before = e->block->version;
  e->block->version = version;
  if (!change_word(*e->block, word, WEIGHTCAST_WORD(WEIGHTCAST_SERVING, WEIGHTCAST_UPDATE_OF(word)))) {
    // What it goes back to when it declines.
    e->block->version = before;
    return fail(WEIGHTCAST_REFUSED, "a job step has just asked; answer it first");
  }
  ++e->form;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_wanted(const weightcast_export* e, int64_t* version) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return -code;
  if (WEIGHTCAST_STATE_OF(load_word(*e->block)) != WEIGHTCAST_ASKED) return 0;
  if (version != nullptr) *version = e->block->asked;
  return 1;
}

extern "C" uint64_t weightcast_question(const weightcast_export* e) {
  std::int64_t version = 0;
  const std::uint64_t word = weightcast_wanted(e, &version) == 1 ? load_word(*e->block) : 0;
  return WEIGHTCAST_STATE_OF(word) == WEIGHTCAST_ASKED ? WEIGHTCAST_UPDATE_OF(word) : 0;
}

extern "C" int weightcast_pause(weightcast_export* e, double seconds, int64_t* version) {
  return weightcast_pause_for(e, 0, seconds, version);
}

extern "C" int weightcast_pause_for(weightcast_export* e, uint64_t question, double seconds,
                                    int64_t* version) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  // Whatever still runs on a GPU may read the weights.
  const bool is_new = begin_wait(*e, Call::kPause, seconds);
  if (const int code = is_new ? synchronize_gpus(*e) : WEIGHTCAST_OK; code != WEIGHTCAST_OK)
    return end_wait(*e, code);
  return end_wait(*e, await_version(*e, question, seconds, version));
}

extern "C" int weightcast_resume(weightcast_export* e) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  const std::uint64_t word = load_word(*e->block);
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_COMMITTED)
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "nothing has been committed; call weightcast_pause first, and where there is a window "
                "weightcast_landed until it has no more");
  e->block->version = e->block->asked;
  ++e->form;
  change_word(*e->block, word, WEIGHTCAST_WORD(WEIGHTCAST_SERVING, WEIGHTCAST_UPDATE_OF(word)));
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_decline(weightcast_export* e, const char* reason) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(reason, "the reason"); code != WEIGHTCAST_OK) return code;
  const std::uint64_t word = load_word(*e->block);
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_ASKED)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "nobody asks; call weightcast_wanted first");
  put_text(e->block->reason, sizeof e->block->reason, reason);
  if (!change_word(*e->block, word, rest_word(*e->block, word)))
    return fail(WEIGHTCAST_REFUSED, "the question has just been taken back; go on");
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_invalidate(weightcast_export* e, const char* reason) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(reason, "the reason"); code != WEIGHTCAST_OK) return code;
  weightcast_block& block = *e->block;
  const std::uint64_t word = load_word(block);
  weightcast_written written = WEIGHTCAST_WRITTEN_SOME;
  switch (WEIGHTCAST_STATE_OF(word)) {
    case WEIGHTCAST_NONE:
      return WEIGHTCAST_OK;
    case WEIGHTCAST_COMMITTED:
      written = WEIGHTCAST_WRITTEN_ALL;
      break;
    case WEIGHTCAST_SERVING:
      block.asked = block.version;
      break;
    case WEIGHTCAST_INVALID:
      block.asked = block.lost;
      break;
    default:
      return fail(WEIGHTCAST_REFUSED, "a job step asks or writes; answer it, or wait for its end, first");
  }
  if (!invalidate(block, word, written, reason))
    return fail(WEIGHTCAST_REFUSED, "a job step has just asked; answer it first");
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_abandon(weightcast_export* e, const char* reason) {
  if (const int code = require_usable(e, true); code != WEIGHTCAST_OK) return code;
  e->wait = Wait();
  if (!e->engine) return abandon_offer(*e);
  leave_update(*e, reason == nullptr ? "the engine was interrupted" : reason);
  return WEIGHTCAST_OK;
}
