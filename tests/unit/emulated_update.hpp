#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/executor.hpp"
#include "model/family.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// A model of hand-picked tensors and parameters, for tests of layouts and plans alone.
class ListedFamily final : public Family {
 public:
  using Parameters =
      std::function<std::vector<Parameter>(const Catalog&, const EngineLayout&, const EngineRank&)>;

  ListedFamily(Catalog catalog, Parameters parameters)
      : catalog_(std::move(catalog)), parameters_(std::move(parameters)) {}

  const Catalog& catalog() const override { return catalog_; }
  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override {
    return parameters_(catalog_, layout, rank);
  }
  std::optional<StoredForm> other_stored_form(const Tensor& /*tensor*/) const override {
    return std::nullopt;
  }
  bool may_ignore(std::string_view /*stored_name*/) const override { return false; }

 private:
  Catalog catalog_;
  Parameters parameters_;
};

/// A world rank of an emulated update.
struct EmulatedRank {
  RankPlan rank_plan;
  std::vector<std::vector<std::byte>> parameters;  ///< by number, as in the rank plan
};

/// Updates in this process. Every bucket is packed, and quantised where its codes travel, by the host
/// executor, handed message by message to every rank that the plan sends it to, and unpacked and quantised
/// there by the rank's own programs, into memory that held rubbish before.
class EmulatedUpdate {
 public:
  /// Both must outlive it.
  EmulatedUpdate(const Plan& plan, const Family& family);
  ~EmulatedUpdate();
  EmulatedUpdate(const EmulatedUpdate&) = delete;
  EmulatedUpdate& operator=(const EmulatedUpdate&) = delete;

  /// From now on these weights travel; they must outlive it. Finds the scales over all, which every rank
  /// writes. `quantized`: the whole planes that are expected of a plan with a quantiser.
  void begin(const naive::Weights& weights, const naive::Quantized& quantized = {});

  /// Sends a bucket; receivers run their programs for it `times` times.
  void apply(std::uint32_t bucket, int times = 1);

  /// Expects the digest of everything that any rank has written to be that of the weights, and all padding to
  /// be zero.
  void verify() const;

  std::vector<EmulatedRank>& ranks() { return ranks_; }

 private:
  class Packer;

  void deliver(const Bucket& bucket, const std::vector<std::byte>& packed, std::size_t rank, int times);
  void write_scales_over_all();

  const Plan& plan_;
  const Family& family_;
  std::unique_ptr<Executor> executor_;
  std::vector<EmulatedRank> ranks_;
  std::vector<std::vector<std::byte*>> buffers_;  // by rank, of its parameters
  std::unique_ptr<Packer> packer_;
};

/// A whole update, with all that can be expected of it.
std::vector<EmulatedRank> emulate_update(const Plan& plan, const Family& family,
                                         const naive::Weights& weights,
                                         const naive::Quantized& quantized = {});

/// Expects a rank's parameters to be those, by name, shape, type and every byte.
void expect_parameters(const EmulatedRank& rank, const std::vector<naive::Parameter>& expected);

}  // namespace weightcast
