#include "live/exporter.hpp"

#include <fmt/format.h>

#include <utility>

#include "client/block.hpp"
#include "core/error.hpp"
#include "live/gpu_live.hpp"

namespace weightcast {

Exporter::Exporter(Manifest manifest, Access access)
    : manifest_(std::move(manifest)), block_(manifest_, access) {
  // Before the look at the exporter: from here on it keeps its memory.
  if (!client::take_lock(block_.file(), WEIGHTCAST_LOCK_MAPPED, true)) {
    throw IoError(manifest_.path + ": its exporter is closing; wait until it has published again");
  }
  if (!lives()) {
    throw IoError(
        fmt::format("{}: its exporter, process {}, is gone; start it again", manifest_.path, manifest_.pid));
  }
  for (const LiveSegment& segment : manifest_.segments) {
    if (segment.on_host()) {
      auto memory = std::make_shared<SharedMemory>(manifest_, segment, access);
      if (segment.kind == SegmentKind::kWindow) window_ = memory.get();
      segments_.push_back(std::move(memory));
    } else {
      segments_.push_back(open_gpu_segment(manifest_, segment));
    }
  }
}

void Exporter::require_whole() const {
  weightcast::require_whole(manifest_, block_.mapping());
  for (const auto& segment : segments_) segment->require_whole();
}

void Exporter::require_there() const {
  if (!lives()) throw IoError(manifest_.path + ": " + name() + " has died; start it again");
  require_whole();
}

bool Exporter::take(const std::string& owner) {
  if (!client::take_lock(block_.file(), WEIGHTCAST_LOCK_UPDATE)) {
    const int holder = block_.updater();
    // Nobody by now, or the exporter itself, which looks for a moment whether a job step is gone.
    if (holder == 0) return false;
    throw IoError(fmt::format("{}: is in an update of another job ({}, {}); wait for its end", manifest_.path,
                              process_of(holder), block_.look().owner));
  }
  taken_ = true;
  // An engine whose other ranks a dead job step has not asked any more may never look at its question.
  change(WEIGHTCAST_ASKED, static_cast<weightcast_state>(block_->rest));
  switch (state()) {
    case WEIGHTCAST_ASKED:
    case WEIGHTCAST_PAUSED:
    case WEIGHTCAST_WRITING:
    case WEIGHTCAST_WRITTEN:
    case WEIGHTCAST_BEING_READ:
      give_back();
      return false;
    default:
      client::put_text(block_->owner, sizeof block_->owner, owner.c_str());
      return true;
  }
}

void Exporter::give_back() noexcept {
  if (!std::exchange(taken_, false)) return;
  client::drop_lock(block_.file(), WEIGHTCAST_LOCK_UPDATE);
}

weightcast_state Exporter::state() const {
  return WEIGHTCAST_STATE_OF(client::load_word(*block_));
}

std::uint64_t Exporter::update() const {
  return WEIGHTCAST_UPDATE_OF(client::load_word(*block_));
}

std::string Exporter::name() const {
  return fmt::format("{} {} (process {})", role_name(manifest_.role), manifest_.rank, manifest_.pid);
}

bool Exporter::change(weightcast_state from, weightcast_state to) {
  const std::uint64_t word = client::load_word(*block_);
  if (WEIGHTCAST_STATE_OF(word) != from) return false;
  return client::change_word(*block_, word, WEIGHTCAST_WORD(to, WEIGHTCAST_UPDATE_OF(word)));
}

bool Exporter::ask(weightcast_state from, std::uint64_t update, std::int64_t version) {
  const std::uint64_t word = client::load_word(*block_);
  if (WEIGHTCAST_STATE_OF(word) != from) return false;
  block_->asked = version;
  block_->rest = from;
  block_->reason[0] = '\0';
  return client::change_word(*block_, word, WEIGHTCAST_WORD(WEIGHTCAST_ASKED, update));
}

void Exporter::renumber(std::uint64_t update) {
  std::uint64_t word = client::load_word(*block_);
  while (client::is_at_rest(WEIGHTCAST_STATE_OF(word)) &&
         !client::change_word(*block_, word, WEIGHTCAST_WORD(WEIGHTCAST_STATE_OF(word), update))) {
    word = client::load_word(*block_);
  }
}

bool Exporter::invalidate(weightcast_state from, weightcast_written written, const std::string& reason) {
  const std::uint64_t word = client::load_word(*block_);
  if (WEIGHTCAST_STATE_OF(word) != from) return false;
  return client::invalidate(*block_, word, written, reason.c_str());
}

void Exporter::give_reason(const std::string& reason) {
  client::put_text(block_->reason, sizeof block_->reason, reason.c_str());
}

void Exporter::await_change() const {
  constexpr double kLook = 0.002;
  client::await_change(*block_, client::load_word(*block_), kLook);
}

}  // namespace weightcast
