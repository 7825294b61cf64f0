#include "model/landing/landed_family.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "core/error.hpp"
#include "model/landing/landed_experts.hpp"
#include "model/landing/landing_check.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

namespace {

/// Rows that lie `pitch` apart, as a layout.
MatrixLayout in_rows(std::int64_t pitch) {
  MatrixLayout layout;
  layout.step[3] = pitch;
  return layout;
}

/// What no tensor feeds of a parameter.
Padding padding_of(const Box& box, std::int64_t cols, std::int64_t element) {
  const std::int64_t pitch = cols * element;
  if (box.cols == cols) return {box.row * pitch, box.rows * pitch};
  return {0, box.cols * element, box.col * element, box.row, box.rows, in_rows(pitch)};
}

/// A parameter as the loader leaves it.
Parameter as_loaded(const LandedParameter& landed, const std::vector<std::uint32_t>& numbers) {
  Parameter parameter{landed.name, landed.dtype, landed.shape, {}, {}};
  const std::int64_t element = dtype_bytes(landed.dtype);
  const std::int64_t cols = landed.shape.cols();
  parameter.parts.reserve(landed.landings.size());
  for (const Landing& landing : landed.landings) {
    Part part{numbers[landing.tensor], landing.box, (landing.row * cols + landing.col) * element,
              cols * element};
    if (landing.turned) {
      part.layout = turned_layout(element, part.pitch);
      part.pitch = 0;
    }
    parameter.parts.push_back(part);
  }
  for (const Box& box : landed.zero) parameter.padding.push_back(padding_of(box, cols, element));
  for (const Box& box : landed.left) parameter.untouched.push_back(padding_of(box, cols, element));
  return parameter;
}

class LandedFamily final : public Family {
 public:
  LandedFamily(std::shared_ptr<const LandingMap> map, std::unique_ptr<Family> described)
      : map_(std::move(map)), described_(std::move(described)) {
    for (const LandedTensor& tensor : map_->tensors) {
      numbers_.push_back(static_cast<std::uint32_t>(catalog_.size()));
      if (!tensor.read) {
        // By the name that a source's may be called, too.
        unread_.insert({tensor.name, canonical_name(tensor.name)});
        continue;
      }
      const std::uint32_t number = catalog_.add(tensor.name, tensor.wanted, tensor.shape);
      catalog_.set_reading(number, tensor.unread,
                           tensor.dtype == DType::kBF16 && tensor.wanted == DType::kF32);
    }
    for (const LandingRank& rank : map_->ranks) {
      own_.insert(rank.left.begin(), rank.left.end());
      for (const LandedParameter& parameter : rank.parameters) {
        if (!parameter.loaded) continue;
        own_.insert(parameter.name);
        own_.insert(parameter.aliases.begin(), parameter.aliases.end());
      }
    }
  }

  const Catalog& catalog() const override { return catalog_; }

  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override {
    require_layout(*map_, layout);
    require_expert_layout(layout);
    const LandingRank& mapped = map_->ranks.at(static_cast<std::size_t>(rank.pp * map_->tp + rank.tp));
    std::vector<Parameter> parameters;
    for (const LandedParameter& landed : mapped.parameters) {
      if (landed.loaded) continue;
      if (landed.experts == ExpertWeights::kNone || layout.moe_layout == EngineLayout().moe_layout) {
        parameters.push_back(as_loaded(landed, numbers_));
      } else {
        parameters.push_back(place_experts(landed, numbers_, catalog_, layout, map_->origin));
      }
    }
    for (const LoadedTensor& loaded : mapped.loader) {
      const Tensor& tensor = catalog_[numbers_[loaded.tensor]];
      parameters.push_back(
          stack(catalog_, tensor.name, tensor.shape, {{numbers_[loaded.tensor], Box::whole(tensor.shape)}}));
      parameters.back().for_loader = true;
    }
    return parameters;
  }

  std::optional<StoredForm> other_stored_form(const Tensor& tensor) const override {
    const auto known = described_ ? described_->catalog().find(tensor.name) : std::nullopt;
    return known ? described_->other_stored_form(described_->catalog()[*known]) : std::nullopt;
  }

  bool may_ignore(std::string_view stored_name) const override {
    return unread_.contains(std::string(stored_name)) || (described_ && described_->may_ignore(stored_name));
  }

  std::optional<std::string> ignored_beside(std::string_view stored_name) const override {
    if (unread_.contains(std::string(stored_name)) || !described_) return std::nullopt;
    return described_->ignored_beside(stored_name);
  }

  std::optional<std::string> copy_of(std::string_view stored_name) const override {
    const auto original = described_ ? described_->copy_of(stored_name) : std::nullopt;
    return original && catalog_.find(*original) ? original : std::nullopt;
  }

  bool is_engines_own(std::string_view parameter) const override {
    return own_.contains(std::string(parameter));
  }

  std::vector<std::string> left_out() const override {
    return described_ ? described_->left_out() : std::vector<std::string>();
  }

  std::string_view doubt() const override { return "is --landing the map of this model?"; }

 private:
  std::vector<TrainerTensor> trainer_dense(const TrainerLayout& layout, std::int64_t /*pp*/,
                                           std::int64_t /*tp*/) const override {
    refuse_trainers(layout);
  }
  std::vector<TrainerTensor> trainer_experts(const TrainerLayout& layout, std::int64_t /*pp*/,
                                             std::int64_t /*etp*/, std::int64_t /*ep*/) const override {
    refuse_trainers(layout);
  }

  [[noreturn]] void refuse_trainers(const TrainerLayout& layout) const {
    throw UsageError(
        fmt::format("{}: not together with --landing {}, which knows tensors by Hugging Face's "
                    "names alone; leave one of them out",
                    layout.option, map_->origin));
  }

  std::shared_ptr<const LandingMap> map_;
  std::unique_ptr<Family> described_;
  Catalog catalog_;
  std::vector<std::uint32_t> numbers_;      ///< in the catalog, of each of the map's tensors that is read
  std::unordered_set<std::string> unread_;  ///< tensors
  std::unordered_set<std::string> own_;     ///< parameters
};

}  // namespace

std::unique_ptr<Family> make_landed_family(std::shared_ptr<const LandingMap> map,
                                           std::unique_ptr<Family> described) {
  if (described) require_as_described(*map, *described);
  return std::make_unique<LandedFamily>(std::move(map), std::move(described));
}

}  // namespace weightcast
