#include <unistd.h>

#include <cinttypes>
#include <cstdio>

#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"

namespace weightcast::client {

namespace {

/// How long a wait sleeps before it looks whether the job step is still there.
constexpr double kLook = 0.05;

bool is_committed(const weightcast_export& e, std::uint64_t update) {
  char path[4200];
  std::snprintf(path, sizeof path, "%s/commit-%" PRIu64 ".json", e.folder, update);
  return ::access(path, F_OK) == 0;
}

/// What an update of a job step that is gone leaves: see the states' rules in the project's pages. Only while
/// this process holds the update's lock, so that no other job step begins.
void settle_after_death(weightcast_export& e) {
  weightcast_block& block = *e.block;
  const std::uint64_t word = load_word(block);
  const std::uint64_t update = WEIGHTCAST_UPDATE_OF(word);
  switch (WEIGHTCAST_STATE_OF(word)) {
    case WEIGHTCAST_ASKED:
    case WEIGHTCAST_PAUSED:
      put_text(block.reason, sizeof block.reason, "the job step that asked is gone");
      change_word(block, word, WEIGHTCAST_WORD(e.rest, update));
      return;
    case WEIGHTCAST_WRITING:
      put_text(block.reason, sizeof block.reason, "the job step died while it wrote");
      block.written = WEIGHTCAST_WRITTEN_SOME;
      e.rest = WEIGHTCAST_INVALID;
      change_word(block, word, WEIGHTCAST_WORD(e.rest, update));
      return;
    case WEIGHTCAST_WRITTEN:
      if (is_committed(e, update)) {
        change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_COMMITTED, update));
        return;
      }
      put_text(block.reason, sizeof block.reason,
               "the job step died before the version was committed; all of it is written");
      block.written = WEIGHTCAST_WRITTEN_ALL;
      e.rest = WEIGHTCAST_INVALID;
      change_word(block, word, WEIGHTCAST_WORD(e.rest, update));
      return;
    default:
      return;
  }
}

/// Sleeps for a change of `word`; settles what a job step that is gone has left.
void await_job_step(weightcast_export& e, std::uint64_t word, double until) {
  const double left = until - now();
  await_change(*e.block, word, left < kLook ? left : kLook);
  if (load_word(*e.block) != word || !take_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE)) return;
  settle_after_death(e);
  drop_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE);
}

int not_paused(const weightcast_export& e) {
  if (e.rest == WEIGHTCAST_INVALID)
    return fail(WEIGHTCAST_IS_INVALID, "no version is in memory: %s", e.block->reason);
  return fail(WEIGHTCAST_REFUSED, "the update did not take place: %s", e.block->reason);
}

}  // namespace

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_serve(weightcast_export* e, int64_t version) {
  if (const int code = require_usable(e, e != nullptr && e->published); code != WEIGHTCAST_OK) return code;
  if (!e->engine) return require_engine(e);
  const std::uint64_t word = load_word(*e->block);
  const weightcast_state state = WEIGHTCAST_STATE_OF(word);
  if (state != WEIGHTCAST_NONE && state != WEIGHTCAST_SERVING && state != WEIGHTCAST_INVALID) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "an update is under way");
  }
  e->block->version = version;
  if (!change_word(*e->block, word, WEIGHTCAST_WORD(WEIGHTCAST_SERVING, WEIGHTCAST_UPDATE_OF(word)))) {
    return fail(WEIGHTCAST_REFUSED, "a job step has just asked; answer it first");
  }
  e->rest = WEIGHTCAST_SERVING;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_wanted(const weightcast_export* e, int64_t* version) {
  if (e == nullptr || e->process != ::getpid() || !e->published || !e->engine) return -require_engine(e);
  if (WEIGHTCAST_STATE_OF(load_word(*e->block)) != WEIGHTCAST_ASKED) return 0;
  *version = e->block->asked;
  return 1;
}

extern "C" int weightcast_pause(weightcast_export* e, double seconds, int64_t* version) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  weightcast_block& block = *e->block;
  const double until = now() + seconds;
  bool paused = false;
  for (;;) {
    const std::uint64_t word = load_word(block);
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_ASKED:
        paused = change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_PAUSED, WEIGHTCAST_UPDATE_OF(word))) ||
                 paused;
        continue;
      case WEIGHTCAST_COMMITTED:
        if (version != nullptr) *version = block.asked;
        return WEIGHTCAST_OK;
      case WEIGHTCAST_PAUSED:
        // Nothing has been written, so the engine may go on without an answer. Past that only the job step
        // ends.
        if (now() < until) break;
        put_text(block.reason, sizeof block.reason, "the engine has waited for too long");
        if (!change_word(block, word, WEIGHTCAST_WORD(e->rest, WEIGHTCAST_UPDATE_OF(word)))) continue;
        return fail(WEIGHTCAST_NO_ANSWER, "no new weights came within %g s; the old ones are untouched",
                    seconds);
      case WEIGHTCAST_WRITING:
      case WEIGHTCAST_WRITTEN:
        break;
      default:
        if (paused) return not_paused(*e);
        if (now() >= until) return fail(WEIGHTCAST_NO_ANSWER, "nobody has asked within %g s", seconds);
        break;
    }
    await_job_step(
        *e, word,
        WEIGHTCAST_STATE_OF(word) == WEIGHTCAST_WRITING || WEIGHTCAST_STATE_OF(word) == WEIGHTCAST_WRITTEN
            ? now() + kLook
            : until);
  }
}

extern "C" int weightcast_resume(weightcast_export* e) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  const std::uint64_t word = load_word(*e->block);
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_COMMITTED)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "nothing has been committed");
  e->block->version = e->block->asked;
  e->rest = WEIGHTCAST_SERVING;
  change_word(*e->block, word, WEIGHTCAST_WORD(WEIGHTCAST_SERVING, WEIGHTCAST_UPDATE_OF(word)));
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_decline(weightcast_export* e, const char* reason) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  const std::uint64_t word = load_word(*e->block);
  put_text(e->block->reason, sizeof e->block->reason, reason);
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_ASKED ||
      !change_word(*e->block, word, WEIGHTCAST_WORD(e->rest, WEIGHTCAST_UPDATE_OF(word)))) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "nobody asks");
  }
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_invalidate(weightcast_export* e, const char* reason) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  const std::uint64_t word = load_word(*e->block);
  put_text(e->block->reason, sizeof e->block->reason, reason);
  e->block->written = WEIGHTCAST_WRITTEN_ALL;
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_COMMITTED ||
      !change_word(*e->block, word, WEIGHTCAST_WORD(WEIGHTCAST_INVALID, WEIGHTCAST_UPDATE_OF(word)))) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "nothing has been committed");
  }
  e->rest = WEIGHTCAST_INVALID;
  return WEIGHTCAST_OK;
}
