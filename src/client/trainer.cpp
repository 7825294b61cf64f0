#include <cinttypes>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"

using namespace weightcast::client;

extern "C" int weightcast_offer(weightcast_export* e, int64_t version, double seconds) {
  if (const int code = require_trainer(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_version(version); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  // Whatever still runs on a GPU may write the weights.
  if (const int code = synchronize_gpus(*e); code != WEIGHTCAST_OK) return code;
  weightcast_block& block = *e->block;
  // An offer that nobody has begun to read is replaced, one that has been read is settled; one that is being
  // read has to be settled first.
  std::uint64_t word = load_word(block);
  if (WEIGHTCAST_STATE_OF(word) == WEIGHTCAST_OFFERS || WEIGHTCAST_STATE_OF(word) == WEIGHTCAST_READ) {
    const std::uint64_t training = WEIGHTCAST_WORD(WEIGHTCAST_TRAINING, WEIGHTCAST_UPDATE_OF(word));
    if (change_word(block, word, training)) word = training;
  }
  if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_TRAINING) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "version %" PRId64 " is still being read; call weightcast_settle first", block.version);
  }
  block.version = version;
  block.reason[0] = '\0';
  change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_OFFERS, WEIGHTCAST_UPDATE_OF(word)));
  return seconds > 0 ? weightcast_settle(e, seconds) : WEIGHTCAST_OK;
}

extern "C" int weightcast_settle(weightcast_export* e, double seconds) {
  if (const int code = require_trainer(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_seconds(seconds); code != WEIGHTCAST_OK) return code;
  weightcast_block& block = *e->block;
  const double until = now() + seconds;
  for (;;) {
    const std::uint64_t word = load_word(block);
    const std::uint64_t training = WEIGHTCAST_WORD(WEIGHTCAST_TRAINING, WEIGHTCAST_UPDATE_OF(word));
    switch (WEIGHTCAST_STATE_OF(word)) {
      case WEIGHTCAST_READ:
        change_word(block, word, training);
        return WEIGHTCAST_OK;
      case WEIGHTCAST_OFFERS:
        if (now() < until) break;
        if (!change_word(block, word, training)) continue;
        return fail(WEIGHTCAST_NO_ANSWER,
                    "version %" PRId64 " was not read within %g s; offer it again, or go on%s%s",
                    block.version, seconds, block.reason[0] == '\0' ? "" : ": ", block.reason);
      case WEIGHTCAST_BEING_READ:
        break;
      default:
        return fail(WEIGHTCAST_BAD_ARGUMENT, "nothing is offered; call weightcast_offer first");
    }
    await_change(block, word, kLook);
    if (WEIGHTCAST_STATE_OF(word) != WEIGHTCAST_BEING_READ || load_word(block) != word ||
        !take_lock(e->block_file, WEIGHTCAST_LOCK_UPDATE)) {
      continue;
    }
    const bool gone = change_word(block, word, training);
    drop_lock(e->block_file, WEIGHTCAST_LOCK_UPDATE);
    if (gone)
      return fail(WEIGHTCAST_REFUSED, "the job step died while it read version %" PRId64 "; offer it again",
                  block.version);
  }
}
