#pragma once

#include <cstdint>

#include "client/control_block.h"

namespace weightcast::client {

/// Changes and waits for states of a control block. Used on both sides: by an exporter and by a job step.
inline std::uint64_t load_word(const weightcast_block& block) {
  return __atomic_load_n(&block.word, __ATOMIC_ACQUIRE);
}

/// Whether an engine is in no update.
inline bool is_at_rest(weightcast_state state) {
  return state == WEIGHTCAST_NONE || state == WEIGHTCAST_SERVING || state == WEIGHTCAST_INVALID;
}

/// The state of an engine whose word that is where it is at rest, else the one that it had before it was
/// asked.
inline weightcast_state rest_of(const weightcast_block& block, std::uint64_t word) {
  const weightcast_state state = WEIGHTCAST_STATE_OF(word);
  return is_at_rest(state) ? state : static_cast<weightcast_state>(block.rest);
}

/// False when the word is not `from` any more. Wakes whoever waits for a change.
bool change_word(weightcast_block& block, std::uint64_t from, std::uint64_t to);

/// Makes an engine invalid that was to get version `asked`: `written` of it is in memory, for that cause.
/// Only for who alone may change `word`; false when it is another one.
bool invalidate(weightcast_block& block, std::uint64_t word, weightcast_written written, const char* cause);

/// Sleeps until the word is not `word` any more, or for `seconds`.
void await_change(const weightcast_block& block, std::uint64_t word, double seconds);

/// Takes or drops the lock of a byte of the block's file, for this process; false when another process has
/// it. A lock that is dropped or taken again by its holder is no error.
bool take_lock(int file, weightcast_lock byte, bool shared = false);
void drop_lock(int file, weightcast_lock byte);

/// The process that keeps this one from taking the lock; 0 when there is none, -1 where it is in another
/// namespace, or nobody can say.
int holder_of_lock(int file, weightcast_lock byte);

/// Whether an exporter lives.
enum class Life { kDead, kLives, kUnknown };

/// Of this user's exporter that has that generation published or will: its lock says so, which is not taken.
/// `process`, if given, is the one that lives, -1 where it is in another container; where nothing is known,
/// errno says why. An exporter of this process itself lives, whichever copy of the client library has made
/// it.
Life life_of(std::uint64_t generation, int* process = nullptr);

/// Copies a line into a field of the block, cut where it is too long; control characters become blanks.
void put_text(char* field, std::uint64_t size, const char* text);

/// Seconds of a clock that never goes back.
double now();

}  // namespace weightcast::client
