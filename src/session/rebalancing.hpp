#pragma once

#include <cstdint>
#include <memory>

#include "control/control.hpp"
#include "plan/rebalance.hpp"
#include "report/progress.hpp"
#include "report/update_report.hpp"
#include "session/session.hpp"
#include "source/source.hpp"

namespace weightcast {

/// A session that moves experts between the slots of its ranks: parameters are source and destination.
class Rebalancing {
 public:
  /// `options.parameters` is the memory that holds what the old map says; null: one of the session's own,
  /// which is the caller's to fill. `control` and `rebalance`, which has something to move, must outlive
  /// this. Throws as Session. Collective.
  Rebalancing(Control& control, const Rebalance& rebalance, SessionOptions options);

  Session& session() { return session_; }
  Source& source() { return *source_; }

  /// Moves once, as Session::update(): when it throws, slots that change hold anything. Collective.
  UpdateSeconds run(std::int64_t version, bool verify, Progress& progress) {
    return session_.update(source_.get(), version, verify, progress);
  }

 private:
  Session session_;
  std::unique_ptr<Source> source_;
};

}  // namespace weightcast
