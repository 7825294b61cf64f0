#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "client/control_block.h"
#include "live/manifest.hpp"
#include "live/shared_memory.hpp"

namespace weightcast {

/// What a control block says at one moment.
struct BlockState {
  weightcast_state state = WEIGHTCAST_NONE;
  std::uint64_t update = 0;
  std::int64_t version = 0;
  std::int64_t asked = 0;
  std::uint32_t written = 0;  ///< weightcast_written, of `lost`
  std::string owner;
  std::string reason;     ///< printable, as `owner`
  std::int64_t lost = 0;  ///< of an invalid engine: the version that was to come
  std::string cause;      ///< and why it did not; printable
};

/// `serves version 7`, `is asked for version 8`, `invalid: some of version 8 is written: …`
std::string in_words(const BlockState& state);

/// Who holds a lock, for messages: `process 123`, or that it is of another container where `holder` is no
/// number.
std::string process_of(int holder);

/// An exporter's control block, opened. A process has one of an exporter at a time: the kernel drops all
/// locks that a process has on a file when it closes any descriptor of it.
class OpenBlock {
 public:
  /// Throws IoError naming the manifest when the exporter cannot be reached or the block is none of this
  /// publication.
  OpenBlock(const Manifest& manifest, Access access);
  ~OpenBlock() = default;
  OpenBlock(const OpenBlock&) = delete;
  OpenBlock& operator=(const OpenBlock&) = delete;

  /// What another process may change at any moment. To be written only where the block was opened for that.
  weightcast_block& operator*() const { return *get(); }
  weightcast_block* operator->() const { return get(); }

  /// For client/block.hpp's locks.
  int file() const { return file_.descriptor(); }

  /// All of one state. Takes no lock and changes nothing.
  BlockState look() const;
  std::string reason() const;

  /// The version that an engine has: the one that it serves, or that has been committed and that it is about
  /// to serve. Nothing where it has none, or an update is under way.
  std::optional<std::int64_t> current_version() const;
  /// The version that a trainer offers.
  std::optional<std::int64_t> offered_version() const;

  /// Whether the exporter's process is alive.
  bool lives() const;

  /// The process that has the exporter for an update: 0 when there is none, -1 where it is in another
  /// container. Not the exporter itself, which takes the lock for a moment to see whether a job step is gone.
  int updater() const;

  /// How many processes have the memory mapped, as far as this one sees them.
  int mapped_by() const;

  const FileMapping& mapping() const { return *mapping_; }

 private:
  weightcast_block* get() const { return reinterpret_cast<weightcast_block*>(mapping_->data()); }

  SharedFile file_;
  std::unique_ptr<FileMapping> mapping_;
};

}  // namespace weightcast
