#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launch/job/live_ends.hpp"
#include "launch/serve/sight.hpp"
#include "live/manifest.hpp"
#include "live/open_block.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// Looks whether this rank's exporters are still those that are mapped, and what they offer and have, be they
/// mapped or not.
class ExporterWatch {
 public:
  /// The manifests are those of a trainer and of an engine at most.
  ExporterWatch(const std::optional<std::string>& trainer, const std::optional<std::string>& engine);

  /// What is published now is about to be mapped. Lets go of all that it has looked at: a process has one
  /// control block of an exporter open at a time.
  void note();

  /// What this rank sees; `ends` are the exporters that are mapped, if any are. Looks at files twice a
  /// second at most.
  Sight look(const LiveEnds* ends);
  /// The same with a look at the files now.
  Sight look_now(const LiveEnds* ends);
  /// Whether this rank's exporters have published and live, while nothing is mapped. Of one that cannot be
  /// reached or read all that counts is that it is there: whoever maps it says what is wrong.
  Sight look_for_publications();

 private:
  using Clock = std::chrono::steady_clock;

  struct Published {
    Role role = Role::kTrainer;
    std::string manifest;
    std::optional<FileIdentity> mapped;  ///< nothing: there was none
    bool dead = false;
    // While nothing is mapped:
    std::optional<FileIdentity> looked_at;
    std::unique_ptr<OpenBlock> block;  ///< null where it cannot be seen
    bool was_dead = false;             ///< when it was looked at, be its block still there or not
  };

  Sight::Exporters exporters(const LiveEnds* ends);
  /// Opens the control blocks of what is published and not mapped.
  void open_blocks();

  std::vector<Published> published_;
  Sight::Exporters last_ = Sight::kGone;
  bool blocks_are_open_ = false;  ///< those of what was published at the last look at the files
  Clock::time_point next_ = Clock::now();
};

}  // namespace weightcast
