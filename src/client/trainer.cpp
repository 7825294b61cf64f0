#include <cinttypes>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"

namespace weightcast::client {

namespace {

std::uint64_t training_word(std::uint64_t word) {
  return WEIGHTCAST_WORD(WEIGHTCAST_TRAINING, WEIGHTCAST_UPDATE_OF(word));
}

/// Sleeps for a change of `word`. True when what was being read is no more, because its job step is gone.
bool await_reader(weightcast_export& e, std::uint64_t word) {
  weightcast_block& block = *e.block;
  await_in_piece(e, word);
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_BEING_READ || load_word(block) != word ||
      !take_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE)) {
    return false;
  }
  const bool gone = change_word(block, word, training_word(word));
  drop_lock(e.block_file, WEIGHTCAST_LOCK_UPDATE);
  return gone;
}

/// Until nothing is offered: an offer that nobody has begun to read is taken back, one that has been read is
/// settled, and one that is being read is waited for.
int await_earlier(weightcast_export& e, std::int64_t version, double seconds) {
  weightcast_block& block = *e.block;
  for (;;) {
    const std::uint64_t word = load_word(block);
    const weightcast_state state = WEIGHTCAST_STATE_OF(word);
    if (state == WEIGHTCAST_TRAINING) return WEIGHTCAST_OK;
    if (state == WEIGHTCAST_OFFERS || state == WEIGHTCAST_READ) {
      change_word(block, word, training_word(word));
      continue;
    }
    if (seconds <= 0) {
      return fail(WEIGHTCAST_BAD_ARGUMENT,
                  "version %" PRId64 " is still being read; call weightcast_settle first", block.version);
    }
    if (now() >= e.wait.until) {
      return fail(WEIGHTCAST_NO_ANSWER,
                  "version %" PRId64 " is still being read after %g s, so that version %" PRId64
                  " is not offered; call weightcast_settle before the parameters change",
                  block.version, seconds, version);
    }
    if (now() >= e.wait.slice_end) return WEIGHTCAST_PENDING;
    await_reader(e, word);
  }
}

int offer(weightcast_export& e, std::int64_t version, double seconds) {
  if (const int code = await_earlier(e, version, seconds); code != WEIGHTCAST_OK) return code;
  // Whatever still runs on a GPU may write the weights.
  if (const int code = synchronize_gpus(e); code != WEIGHTCAST_OK) return code;
  e.block->version = version;
  e.block->reason[0] = '\0';
  const std::uint64_t word = load_word(*e.block);
  change_word(*e.block, word, WEIGHTCAST_WORD(WEIGHTCAST_OFFERS, WEIGHTCAST_UPDATE_OF(word)));
  e.wait.begun = true;
  return WEIGHTCAST_OK;
}

int settle(weightcast_export& e, double seconds) {
  weightcast_block& block = *e.block;
  for (;;) {
    const std::uint64_t word = load_word(block);
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_READ:
        change_word(block, word, training_word(word));
        return WEIGHTCAST_OK;
      case WEIGHTCAST_OFFERS:
        if (now() < e.wait.until) break;
        if (!change_word(block, word, training_word(word))) continue;
        return fail(WEIGHTCAST_NO_ANSWER,
                    "version %" PRId64 " was not read within %g s; offer it again, or go on%s%s",
                    block.version, seconds, block.reason[0] == '\0' ? "" : ": ", block.reason);
      case WEIGHTCAST_BEING_READ:
        break;
      default:
        return fail(WEIGHTCAST_BAD_ARGUMENT, "nothing is offered; call weightcast_offer first");
    }
    if (now() >= e.wait.slice_end) return WEIGHTCAST_PENDING;
    if (await_reader(e, word)) {
      return fail(WEIGHTCAST_REFUSED, "the job step died while it read version %" PRId64 "; offer it again",
                  block.version);
    }
  }
}

}  // namespace

int abandon_offer(weightcast_export& e) {
  for (;;) {
    const std::uint64_t word = load_word(*e.block);
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_OFFERS:
      case WEIGHTCAST_READ:
        if (change_word(*e.block, word, training_word(word))) return WEIGHTCAST_OK;
        continue;
      case WEIGHTCAST_BEING_READ:
        return fail(WEIGHTCAST_NO_ANSWER,
                    "version %" PRId64 " is being read; call weightcast_settle before the parameters change",
                    e.block->version);
      default:
        return WEIGHTCAST_OK;
    }
  }
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_offer(weightcast_export* e, int64_t version, double seconds) {
  if (const int code = require_trainer(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_version(version); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  begin_wait(*e, Call::kOffer, seconds);
  int code = e->wait.begun ? WEIGHTCAST_OK : offer(*e, version, seconds);
  if (code == WEIGHTCAST_OK && seconds > 0) code = settle(*e, seconds);
  return end_wait(*e, code);
}

extern "C" int weightcast_settle(weightcast_export* e, double seconds) {
  if (const int code = require_trainer(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  begin_wait(*e, Call::kSettle, seconds);
  return end_wait(*e, settle(*e, seconds));
}
