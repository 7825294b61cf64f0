#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"
#include "plan/share.hpp"
#include "report/progress.hpp"
#include "report/update_report.hpp"
#include "session/control.hpp"
#include "session/pipeline.hpp"
#include "session/source.hpp"
#include "transport/transport.hpp"

namespace weightcast {

/// What stays open between updates: the plan, communicators, the staging ring, parameter memory. Opened once,
/// updated many times; after the first update nothing is allocated any more.
class Session {
 public:
  /// Collective. Plans, proves, compares the plan's hash over all ranks, checks that every node has the
  /// memory, allocates, and opens the routes. `source_bytes` is what this rank's source will hold beside.
  /// `control` and `family` must outlive the session.
  Session(Control& control, const Family& family, const Topology& topology, const Limits& limits,
          std::int64_t (*source_bytes)(const Plan&, const Catalog&, std::int64_t trainer) = nullptr);

  const Plan& plan() const { return plan_; }
  const Share& share() const { return share_; }
  double plan_seconds() const { return plan_seconds_; }

  /// Live memory of parameter number p of the share. Its address never changes.
  std::span<std::byte> parameter(std::size_t p) const;

  /// One update, collective: streams all buckets from the trainers' sources (null on other ranks) into
  /// parameter memory and, with `verify`, compares there what arrived with what was sent. Returns on every
  /// rank with the slowest rank's seconds (`pack` holds what the sources took), or throws AgreedFailure when
  /// weights arrived wrong; a failure amid the stream ends the job.
  UpdateSeconds update(Source* source, std::int64_t version, bool verify, Progress& progress);

 private:
  void plan_together(const Topology& topology, const Limits& limits);
  void require_memory(std::int64_t source_bytes);
  void open_routes();
  void verify_written() const;

  Control& control_;
  const Family& family_;
  std::unique_ptr<Executor> executor_;
  Plan plan_;
  Share share_;
  double plan_seconds_ = 0;
  HostBuffer memory_;
  std::vector<std::byte*> parameters_;
  std::vector<const std::byte*> readable_parameters_;  ///< the same, to be read
  std::vector<std::uint64_t> expected_;                ///< digest of every segment, as sent
  std::vector<std::uint64_t> written_;  ///< digest of every check, as found in parameter memory
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Pipeline> pipeline_;
};

}  // namespace weightcast
