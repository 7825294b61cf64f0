#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "session/control.hpp"
#include "session/session.hpp"
#include "session/team.hpp"
#include "storage/output_lock.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// Writes each inference rank's parameters as `DIRECTORY/rank-<inference rank>.h5`. All ranks write beside
/// the final names, flush, agree, and only then rename; the old files are kept until all have: a failure of
/// any rank leaves every old file as it was.
class ShardSink {
 public:
  /// `directory` may contain `{version}`, which becomes the weight version. `control` and `session` must
  /// outlive the sink. `writers` writes for it alone; unused on a rank that is no inference rank.
  ShardSink(Control& control, const Session& session, Team& writers, std::string directory);

  /// Locks the folders of these versions for as long as the sink lives, and clears them of what broken runs
  /// left. Throws (by agreement) IoError when another job writes there. `command` is what that job is told.
  /// Collective.
  void lock(std::span<const std::int64_t> versions, const std::string& command);

  /// Collective.
  void write(std::int64_t version);

 private:
  std::string directory_of_version(std::int64_t version) const;
  /// All ranks' files take their names, or none do. Collective.
  void place_everywhere(TensorFileWriter* writer);

  Control& control_;
  const Session& session_;
  Team& writers_;
  std::string directory_;
  std::vector<std::unique_ptr<OutputLock>> locks_;  ///< on the first inference rank
};

}  // namespace weightcast
