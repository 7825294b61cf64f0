#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/control_block.h"
#include "live/manifest.hpp"
#include "live/open_block.hpp"
#include "live/shared_memory.hpp"
#include "memory/memory.hpp"

namespace weightcast {

/// An exporter as a rank of the job step has it: its segments mapped and its control block, where the two
/// meet. The memory stays mapped, and the exporter keeps it, until this goes.
class Exporter {
 public:
  /// Maps everything; what is on a GPU must be on the current device. One that is opened to be looked at is
  /// neither taken nor changed. Throws IoError naming the manifest when
  /// the exporter cannot be reached, is gone, or has published anew since, InputError when a segment is not
  /// as large as the manifest says.
  explicit Exporter(Manifest manifest, Access access = Access::kWrite);
  ~Exporter() = default;
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  const Manifest& manifest() const { return manifest_; }
  std::span<const std::shared_ptr<Memory>> segments() const { return segments_; }
  /// The segment that is a window; null where there is none.
  SharedMemory* window() const { return window_; }

  /// Takes the exporter for an update; `owner` says who has it. Throws IoError naming the holder when another
  /// job step has it. False while the exporter has yet to see that an earlier job step is gone: it needs the
  /// lock for that, which is why nothing is taken then.
  bool take(const std::string& owner);
  void give_back() noexcept;

  weightcast_state state() const;
  std::uint64_t update() const;
  std::int64_t version() const { return block_->version; }
  std::string reason() const { return block_.reason(); }
  /// As OpenBlock's.
  std::optional<std::int64_t> current_version() const { return block_.current_version(); }
  std::optional<std::int64_t> offered_version() const { return block_.offered_version(); }
  /// All of one state.
  BlockState look() const { return block_.look(); }

  /// Whether the exporter's process is alive.
  bool lives() const { return block_.lives(); }
  /// Throws IoError when a file of its memory has been cut: what was read or written here is not what it has.
  void require_whole() const;
  /// The same, and when it is dead.
  void require_there() const;

  /// `process 123 on host a (engine-0.json)`, for messages.
  std::string name() const;

  // Of an exporter that has been taken.

  /// Changes the state from `from` to `to`, keeping the update's number; false when the state is another by
  /// now.
  bool change(weightcast_state from, weightcast_state to);
  /// Asks an engine that rests in state `from` for update number `update` to `version`.
  bool ask(weightcast_state from, std::uint64_t update, std::int64_t version);
  /// Gives an engine that rests the number of an update that will not ask it: earlier questions are over.
  void renumber(std::uint64_t update);
  /// Says that the memory holds no version, and how much of the new one.
  bool invalidate(weightcast_state from, weightcast_written written, const std::string& reason);
  /// For whoever reads the state that follows.
  void give_reason(const std::string& reason);

  /// Sleeps until the state changes, or for a few milliseconds.
  void await_change() const;

 private:
  Manifest manifest_;
  OpenBlock block_;
  bool taken_ = false;
  std::vector<std::shared_ptr<Memory>> segments_;
  SharedMemory* window_ = nullptr;  ///< one of them
};

}  // namespace weightcast
