#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "launch/job/live_ends.hpp"
#include "launch/serve/sight.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// Looks whether this rank's exporters are still those that are mapped.
class ExporterWatch {
 public:
  explicit ExporterWatch(std::vector<std::string> manifests);

  /// What is published now is about to be mapped.
  void note();

  /// What this rank sees; `ends` are the exporters that are mapped, if any are. Looks at files twice a
  /// second at most.
  Sight look(const LiveEnds* ends);
  /// The same with a look at the files now.
  Sight look_now(const LiveEnds* ends);

 private:
  using Clock = std::chrono::steady_clock;

  struct Published {
    std::string manifest;
    std::optional<FileIdentity> mapped;  ///< nothing: there was none
    bool dead = false;
  };

  Sight::Exporters exporters(const LiveEnds* ends);

  std::vector<Published> published_;
  Sight::Exporters last_ = Sight::kGone;
  Clock::time_point next_ = Clock::now();
};

}  // namespace weightcast
