#include "live/open_block.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string_view>
#include <thread>

#include "client/block.hpp"
#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

template <std::size_t Size>
std::string text_of(const char (&field)[Size]) {
  return printable(std::string_view(field, ::strnlen(field, Size)));
}

const char* how_much(std::uint32_t written) {
  return written == WEIGHTCAST_WRITTEN_NONE ? "none" : written == WEIGHTCAST_WRITTEN_SOME ? "some" : "all";
}

const Manifest& reachable(const Manifest& manifest) {
  require_reachable(manifest);
  return manifest;
}

}  // namespace

std::string process_of(int holder) {
  return holder > 0 ? fmt::format("process {}", holder) : "a process of another container";
}

std::string in_words(const BlockState& state) {
  const auto with_reason = [&](const std::string& words) {
    return state.reason.empty() ? words
                                : words + " (the last update did not take place: " + state.reason + ")";
  };
  switch (state.state) {
    case WEIGHTCAST_NONE:
      return with_reason("holds no version yet");
    case WEIGHTCAST_INVALID:
      return with_reason(fmt::format("invalid: {} of version {} is written: {}", how_much(state.written),
                                     state.lost, state.cause));
    case WEIGHTCAST_SERVING:
      return with_reason(fmt::format("serves version {}", state.version));
    case WEIGHTCAST_ASKED:
      return fmt::format("is asked for version {}", state.asked);
    case WEIGHTCAST_PAUSED:
      return fmt::format("paused for version {}", state.asked);
    case WEIGHTCAST_WRITING:
      return fmt::format("being written: version {}", state.asked);
    case WEIGHTCAST_WRITTEN:
      return fmt::format("written, not committed: version {}", state.asked);
    case WEIGHTCAST_COMMITTED:
      return fmt::format("committed, not yet served: version {}", state.asked);
    case WEIGHTCAST_TRAINING:
      return "trains";
    case WEIGHTCAST_OFFERS:
      return with_reason(fmt::format("offers version {}", state.version));
    case WEIGHTCAST_BEING_READ:
      return fmt::format("being read: version {}", state.version);
    case WEIGHTCAST_READ:
      return fmt::format("version {} has been read", state.version);
  }
  return fmt::format("in state {}, which this program does not know", static_cast<int>(state.state));
}

OpenBlock::OpenBlock(const Manifest& manifest, Access access)
    : file_(reachable(manifest), manifest.control, access),
      mapping_(file_.map(manifest, WEIGHTCAST_BLOCK_BYTES)) {
  const weightcast_block& block = *get();
  if (block.magic != WEIGHTCAST_BLOCK_MAGIC) {
    throw IoError(fmt::format("{}: its control block is not as this program knows it; {}", manifest.path,
                              versions_of(manifest)));
  }
  if (block.generation != manifest.generation)
    throw IoError(manifest.path + ": its control block is of another publication; publish again");
}

BlockState OpenBlock::look() const {
  const weightcast_block& block = *get();
  BlockState state;
  std::uint64_t word = 0;
  // What is beside the word is stored before it changes. One that never rests is taken as it is.
  constexpr int kMostLooks = 100;
  for (int looks = 0; looks < kMostLooks && (looks == 0 || client::load_word(block) != word); ++looks) {
    word = client::load_word(block);
    state = {WEIGHTCAST_STATE_OF(word),
             WEIGHTCAST_UPDATE_OF(word),
             block.version,
             block.asked,
             block.written,
             text_of(block.owner),
             reason(),
             block.lost,
             text_of(block.cause)};
  }
  return state;
}

std::optional<std::int64_t> OpenBlock::current_version() const {
  const weightcast_state state = WEIGHTCAST_STATE_OF(client::load_word(*get()));
  if (state == WEIGHTCAST_SERVING) return get()->version;
  if (state == WEIGHTCAST_COMMITTED) return get()->asked;
  return std::nullopt;
}

std::optional<std::int64_t> OpenBlock::offered_version() const {
  const weightcast_state state = WEIGHTCAST_STATE_OF(client::load_word(*get()));
  return state == WEIGHTCAST_OFFERS ? std::optional(get()->version) : std::nullopt;
}

std::string OpenBlock::reason() const {
  return text_of(get()->reason);
}

bool OpenBlock::lives() const {
  return client::holder_of_lock(file(), WEIGHTCAST_LOCK_EXPORTER) != 0;
}

int OpenBlock::updater() const {
  constexpr int kMostLooks = 5;
  for (int looks = 0; looks < kMostLooks; ++looks) {
    const int holder = client::holder_of_lock(file(), WEIGHTCAST_LOCK_UPDATE);
    // By its lock, as its number is another one in another namespace.
    const int exporter = client::holder_of_lock(file(), WEIGHTCAST_LOCK_EXPORTER);
    if (holder >= 0 || exporter >= 0) return holder == exporter ? 0 : holder;
    // Both are in another container, be they one process or two: an exporter has it for a moment only.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return -1;
}

int OpenBlock::mapped_by() const {
  if (client::holder_of_lock(file(), WEIGHTCAST_LOCK_MAPPED) == 0) return 0;
  struct stat status = {};
  if (::fstat(file(), &status) != 0) return 1;
  // `7: POSIX  ADVISORY  READ  1234 00:1b:83395 2 2`; a lock that somebody waits for has an arrow in front.
  const std::string of_file = fmt::format(" {:02x}:{:02x}:{} {} ", major(status.st_dev), minor(status.st_dev),
                                          status.st_ino, static_cast<int>(WEIGHTCAST_LOCK_MAPPED));
  int count = 0;
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    if (line.find(of_file) != std::string::npos && line.find("->") == std::string::npos) ++count;
  }
  return std::max(count, 1);
}

}  // namespace weightcast
