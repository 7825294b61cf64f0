#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "model/family.hpp"
#include "plan/direct_routes.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "report/activity.hpp"
#include "report/progress.hpp"
#include "report/update_report.hpp"
#include "session/gpu.hpp"
#include "session/parameter_memory.hpp"
#include "session/pipeline.hpp"
#include "session/wire_choice.hpp"
#include "source/source.hpp"

namespace weightcast {

struct SessionOptions {
  Wire wire = Wire::kMpi;
  /// Where this rank's parameters are; null: in an allocation of the session's own.
  std::shared_ptr<ParameterMemory> parameters = nullptr;
  /// For the line when a signal or the deadline ends an update that writes: what the memory holds then. Empty
  /// where the previous version is elsewhere and untouched.
  std::string while_written = {};
  /// What this rank's source will hold beside the session, in the same memory as the parameters.
  std::int64_t (*source_bytes)(const Plan&, const Catalog&, std::int64_t trainer) = nullptr;
  /// On GPUs: which routes write into their destinations' parameters. Only for sources on GPUs; none does
  /// where there are `rounds`.
  Direct direct = Direct::kNever;
  /// Most thread blocks of a kernel on a GPU; 0: the default.
  int blocks = 0;
  /// What else needs less memory, behind the remedies of an error: `, or fewer --layers`.
  const char* also = "";
  /// Told what opening does; null: nobody is.
  Activity* activity = nullptr;
  /// Makes the plan in place of make_plan(), the same on every rank; empty: that does.
  std::function<Plan()> plan = nullptr;
  /// Of a plan whose trainers' weights are the ranks' parameters: the first bucket of each round
  /// (session/rounds.hpp).
  std::vector<std::uint32_t> rounds = {};
};

/// Seconds that parts of opening a session took on this rank.
struct StartSeconds {
  double plan = 0;
  double memory = 0;  ///< parameters; over MPI with the staging buffers
  GpuStart gpu;
};

/// What stays open between updates: the plan, communicators, the staging ring, parameter memory. Opened once,
/// updated many times; after the first update with a source nothing is allocated any more.
class Session {
 public:
  /// Collective. Plans, proves, compares the plan's hash over all ranks, checks that every node has the
  /// memory, opens that of the parameters, and opens the routes over the wire, which also says whether
  /// parameters are in host memory or the current GPU's. `control` and `family` must outlive the session.
  Session(Control& control, const Family& family, const Topology& topology, const Limits& limits,
          const SessionOptions& options = {});

  const Plan& plan() const { return plan_; }
  const RankPlan& rank_plan() const { return rank_plan_; }
  const StartSeconds& start_seconds() const { return start_; }

  /// Live memory of parameter number p of the rank plan, on the host or on the GPU. Its address never
  /// changes.
  std::span<std::byte> parameter(std::size_t p) const { return memory_->parameter(p); }

  /// A piece of a parameter that is read at a time.
  static constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

  /// Calls `visit` with the bytes of parameter p from `offset` on, kPieceBytes or what is left of it,
  /// readable by the host. Callable from several threads.
  void read_piece(std::size_t p, std::int64_t offset,
                  const std::function<void(std::span<const std::byte>)>& visit) const;

  /// Calls `visit(offset, bytes)` with all pieces of parameter p, one after the other.
  void read_parameter(std::size_t p,
                      const std::function<void(std::int64_t, std::span<const std::byte>)>& visit) const;

  ParameterMemory& memory() const { return *memory_; }
  Pipeline& pipeline() const { return *pipeline_; }

  /// Overwrites parameters and staging, so that nothing old can pass for new.
  void poison();

  /// One update, collective: streams all buckets from the trainers' sources (null on other ranks) into
  /// parameter memory and, with `verify`, compares there what arrived with what was sent. The memory's
  /// begin() comes before the first byte, its commit() when all ranks have agreed that all is there. Returns
  /// on every rank with the slowest rank's seconds (none of `write`), or throws
  /// AgreedFailure when weights arrived wrong or a stage failed on some rank: what is in the parameters is no
  /// version then, and the next update may follow. Over NCCL a failure of the wire is such a failure, too;
  /// over MPI it ends the job, as a signal and the deadline do.
  UpdateSeconds update(Source* source, std::int64_t version, bool verify, Progress& progress);

  /// Gives the staging buffers back, and the wire with them; take_staging() opens both anew, which the next
  /// update does where nobody has. Throws (by agreement) IoError where the memory is not there any more; the
  /// buffers are then still given back. Between the two there is no pipeline(). Collective.
  void release_staging() { pipeline_.reset(); }
  void take_staging();

  /// Whether the update that failed may have written parameters on some rank; the same answer on every rank.
  bool has_written() const { return has_written_; }

 private:
  void plan_together(const Topology& topology, const Limits& limits);
  void open_routes();
  void verify_written() const;
  /// Opens the wire anew when the last update has left it broken on some rank. Collective.
  void mend_wire();
  /// Agrees on the scales of the plan's scopes and puts those that parameters hold into them. Collective.
  void agree_on_scales(Source* source);
  /// Calls `visit` with the scales that this rank's parameters hold: in turn those that lie one behind the
  /// other from byte `offset` of parameter p on.
  void for_each_scalar(
      const std::function<void(std::size_t p, std::int64_t offset, std::span<const float>)>& visit) const;

  Control& control_;
  const Family& family_;
  Plan plan_;
  RankPlan rank_plan_;
  SessionOptions options_;
  StartSeconds start_;
  std::shared_ptr<ParameterMemory> memory_;
  std::vector<GlobalScale> scales_;      ///< of the plan's scopes, in the update that runs
  std::vector<std::uint64_t> expected_;  ///< digests of what was sent (Plan::digests)
  std::vector<std::uint64_t> written_;   ///< digest of every check, as found in parameter memory
  std::unique_ptr<Pipeline> pipeline_;
  bool has_written_ = false;
  bool windows_ = false;  ///< some rank has parameters in a window
};

}  // namespace weightcast
