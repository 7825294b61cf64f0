#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/job/live_ends.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// What a plan has to do with trainers and engines that run, from their manifests alone. Of other sources and
/// sinks nothing.
class LivePlan {
 public:
  /// Reads what the trainers have published; `topology` learns how the vocabulary is padded. Throws
  /// InputError where it is not what the model or the trainers' layout has, or a tied head has memory of its
  /// own, IoError where one of them is dead.
  LivePlan(const Options& options, const Family& family, Topology& topology);

  /// Throws UsageError for a pattern that fits neither the model nor what the trainers have beside it.
  void require_patterns_fit(const Model& model) const;

  /// Where the first engine says that its experts sit, on `ep` ranks; nothing where it does not, or is on
  /// another host. Throws InputError, IoError.
  std::optional<ExpertMap> published_experts(std::int64_t ep) const;

  /// Throws InputError, as an update would: naming the first parameter of an engine that has not been
  /// published as the plan writes it, or a tensor that the trainers have in another type; UsageError for an
  /// engine of another layout, or one that cannot be given a part of the model.
  void require_published(const Plan& plan, const Family& family) const;

  /// Who the trainers and engines are; for one rank from where in which trainer's memory each box comes that
  /// it sends or receives.
  void print(const Plan& plan, const Catalog& catalog, std::optional<std::int64_t> rank) const;

 private:
  void print_boxes(const Plan& plan, const Catalog& catalog, std::int64_t rank) const;

  std::vector<LiveTrainer> trainers_;
  std::vector<Manifest> engines_;
};

}  // namespace weightcast
