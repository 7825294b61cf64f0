#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "model/family.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"
#include "plan/share.hpp"

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

/// A world rank after an emulated update.
struct EmulatedRank {
  Share share;
  std::vector<std::vector<std::byte>> parameters;  ///< by number, as in the share
};

/// Runs a whole update in this process: every bucket is packed from the weights by the host executor, handed
/// message by message to every rank that the plan sends it to, and unpacked there by the rank's own program
/// into memory that held rubbish before. Also expects every digest to agree and all padding to be zero.
std::vector<EmulatedRank> emulate_update(const Plan& plan, const Family& family,
                                         const naive::Weights& weights);

/// Expects a rank's parameters to be those, by name, shape and every byte.
void expect_parameters(const EmulatedRank& rank, const std::vector<naive::Parameter>& expected);

}  // namespace weightcast
