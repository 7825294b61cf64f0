#pragma once

#include <cstdint>
#include <string>

#include "session/control.hpp"
#include "session/session.hpp"
#include "session/team.hpp"

namespace weightcast {

/// Writes each inference rank's parameters as `DIRECTORY/rank-<inference rank>.h5`. All ranks write beside
/// the final names, flush, agree, and only then rename: a failure of any rank leaves every old file as it
/// was.
class ShardSink {
 public:
  /// `directory` may contain `{version}`, which becomes the weight version. `control` and `session` must
  /// outlive the sink. `writers` writes for it alone; unused on a rank that is no inference rank.
  ShardSink(Control& control, const Session& session, Team& writers, std::string directory);

  /// Collective.
  void write(std::int64_t version);

 private:
  Control& control_;
  const Session& session_;
  Team& writers_;
  std::string directory_;
};

}  // namespace weightcast
