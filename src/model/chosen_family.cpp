#include "model/chosen_family.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "core/error.hpp"
#include "model/beside_weights.hpp"

namespace weightcast {

namespace {

/// Throws UsageError: an engine keeps the two together.
[[noreturn]] void refuse_apart(const Tensor& one, const Tensor& other, const std::string& why) {
  throw UsageError(fmt::format("--include, --exclude: {} is sent and {} is not, {}; send both or neither",
                               one.name, other.name, why));
}

class ChosenFamily final : public Family {
 public:
  ChosenFamily(std::unique_ptr<Family> whole, const std::vector<bool>& chosen, LeavesOut leaves_out)
      : whole_(std::move(whole)), leaves_out_(std::move(leaves_out)) {
    const Catalog& all = whole_->catalog();
    for (std::uint32_t number = 0; number < all.size(); ++number) {
      std::optional<std::uint32_t>& own = numbers_.emplace_back();
      if (!chosen.at(number)) continue;
      const Tensor& tensor = all[number];
      own = catalog_.add(tensor.name, tensor.dtype, tensor.shape);
      catalog_.set_place(*own, tensor.layer, tensor.expert);
      catalog_.set_reading(*own, tensor.unread, tensor.widened);
    }
    require_with_scales();
    if (catalog_.size() == all.size()) return;
    choice_ = Choice{static_cast<std::int64_t>(catalog_.size()), catalog_.bytes(),
                     static_cast<std::int64_t>(all.size() - catalog_.size()), all.bytes() - catalog_.bytes(),
                     catalog_.hash_of_names()};
    list_staying();
  }

  const Catalog& catalog() const override { return catalog_; }
  const Catalog& whole_catalog() const override { return whole_->catalog(); }
  const Choice* choice() const override { return choice_ ? &*choice_ : nullptr; }
  bool stays(std::string_view stored_name) const override {
    return staying_.contains(std::string(stored_name));
  }

  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override {
    std::vector<Parameter> all = whole_->parameters(layout, rank);
    if (!choice_) return all;
    const bool shared = layout.quantizer && has_global(layout.quantizer->scheme);
    if (shared) require_whole_scopes(all, *layout.quantizer);
    const std::unordered_set<std::string> zeros = zeros_to_write(all, layout, rank);
    std::vector<Parameter> fed;
    for (Parameter& parameter : all) {
      take_parts(parameter, shared);
      take_scalars(parameter);
      const bool takes = !parameter.parts.empty() || !parameter.scalars.empty();
      if (takes || zeros.contains(parameter.name)) fed.push_back(std::move(parameter));
    }
    return fed;
  }

  std::vector<TrainerTensor> trainer_dense(const TrainerLayout& layout, std::int64_t pp,
                                           std::int64_t tp) const override {
    return held(whole_->trainer_dense(layout, pp, tp));
  }
  std::vector<TrainerTensor> trainer_experts(const TrainerLayout& layout, std::int64_t pp, std::int64_t etp,
                                             std::int64_t ep) const override {
    return held(whole_->trainer_experts(layout, pp, etp, ep));
  }

  std::optional<StoredForm> other_stored_form(const Tensor& tensor) const override {
    return whole_->other_stored_form(tensor);
  }

  bool may_ignore(std::string_view stored_name) const override {
    if (catalog_.find(stored_name)) return false;
    return stays(stored_name) || whole_->may_ignore(stored_name) || leaves_out_(stored_name) ||
           whole_->copy_of(stored_name);  // of what is not sent
  }

  std::optional<std::string> ignored_beside(std::string_view stored_name) const override {
    if (stays(stored_name) || leaves_out_(stored_name)) return std::nullopt;
    return whole_->ignored_beside(stored_name);
  }

  std::optional<std::string> copy_of(std::string_view stored_name) const override {
    if (is_drafts_copy(stored_name) && leaves_out_(stored_name)) return std::nullopt;
    const std::optional<std::string> original = whole_->copy_of(stored_name);
    return original && catalog_.find(*original) ? original : std::nullopt;
  }

  bool is_engines_own(std::string_view parameter) const override {
    // What is not sent stays as it is, whatever the engine has there.
    return choice_ || leaves_out_(parameter) || whole_->is_engines_own(parameter);
  }

  std::string name_in_files(std::string_view canonical) const override {
    return whole_->name_in_files(canonical);
  }
  std::string_view doubt() const override { return whole_->doubt(); }
  bool sends_drafts() const override { return whole_->sends_drafts(); }
  std::vector<UnsentPart> unsent() const override { return whole_->unsent(); }
  QuantizationPlace quantization_place() const override { return whole_->quantization_place(); }
  std::vector<std::string> left_out() const override { return whole_->left_out(); }
  std::vector<std::string> towers() const override { return whole_->towers(); }

 private:
  /// Of a checkpoint that holds codes, whose scales are tensors of their own.
  void require_with_scales() const {
    struct Pair {
      std::string_view codes;  // behind the module's name, as `scales`
      std::string_view scales;
    };
    constexpr std::array kPairs{Pair{"", "_scale_inv"}, Pair{"", "_scale"}, Pair{"", "_scale_2"},
                                Pair{"_blocks", "_scales"}};
    const Catalog& all = whole_->catalog();
    for (std::uint32_t number = 0; number < all.size(); ++number) {
      for (const Pair& pair : kPairs) {
        std::string name = all[number].name;
        if (!name.ends_with(pair.codes)) continue;
        name.replace(name.size() - pair.codes.size(), pair.codes.size(), pair.scales);
        const auto scales = all.find(name);
        if (!scales || numbers_[*scales].has_value() == numbers_[number].has_value()) continue;
        const bool codes_are_sent = numbers_[number].has_value();
        refuse_apart(all[codes_are_sent ? number : *scales], all[codes_are_sent ? *scales : number],
                     "but the one holds the scales of the other's codes");
      }
    }
  }

  /// As checkpoints may have them: a tensor of which a part is sent is read.
  void list_staying() {
    std::unordered_set<std::string> read;
    for (const Tensor& tensor : catalog_.tensors()) {
      if (const auto form = whole_->other_stored_form(tensor)) read.insert(form->name);
    }
    const Catalog& all = whole_->catalog();
    for (std::uint32_t number = 0; number < all.size(); ++number) {
      if (numbers_[number]) continue;
      staying_.insert(all[number].name);
      const auto form = whole_->other_stored_form(all[number]);
      if (form && !read.contains(form->name)) staying_.insert(form->name);
    }
  }

  /// One scale of several tensors follows from all of them: none can be made of some.
  void require_whole_scopes(const std::vector<Parameter>& parameters, const Quantizer& quantizer) const {
    std::map<std::uint32_t, std::uint32_t> first_of;  // of a scope's tensors, any
    for (const Parameter& parameter : parameters) {
      for (const Part& part : parameter.parts) {
        if (part.form.plane == Plane::kValues) continue;
        const std::uint32_t other = first_of.emplace(part.scope, part.tensor).first->second;
        if (numbers_[part.tensor].has_value() == numbers_[other].has_value()) continue;
        const bool is_sent = numbers_[part.tensor].has_value();
        const Catalog& all = whole_->catalog();
        refuse_apart(all[is_sent ? part.tensor : other], all[is_sent ? other : part.tensor],
                     fmt::format("but both share one scale in {}", quantizer_name(quantizer)));
      }
    }
  }

  /// The parameters that are nothing but padding on this rank, while on others of the stage what is sent
  /// feeds them: an update of all of the parameter writes zeros there.
  std::unordered_set<std::string> zeros_to_write(const std::vector<Parameter>& own,
                                                 const EngineLayout& layout, const EngineRank& rank) const {
    std::unordered_set<std::string> unfed;
    for (const Parameter& parameter : own) {
      if (parameter.parts.empty() && parameter.scalars.empty()) unfed.insert(parameter.name);
    }
    std::unordered_set<std::string> fed;
    for (std::int64_t number = 0; !unfed.empty() && number < layout.replica_ranks(); ++number) {
      const EngineRank other = engine_rank(layout, number);
      if (other.pp != rank.pp) continue;
      for (const Parameter& parameter : whole_->parameters(layout, other)) {
        const bool sent = std::ranges::any_of(
            parameter.parts, [&](const Part& part) { return numbers_[part.tensor].has_value(); });
        if (sent && unfed.contains(parameter.name)) fed.insert(parameter.name);
      }
    }
    return fed;
  }

  void take_parts(Parameter& parameter, bool shared_scales) const {
    std::vector<Part> taken;
    for (Part part : parameter.parts) {
      const auto number = numbers_[part.tensor];
      if (!number) {
        parameter.untouched.push_back(region_of(parameter, part));
        continue;
      }
      part.tensor = *number;
      const bool has_scope = shared_scales && part.form.plane != Plane::kValues;
      part.scope = has_scope ? numbers_[part.scope].value() : 0;
      taken.push_back(part);
    }
    parameter.parts = std::move(taken);
  }

  void take_scalars(Parameter& parameter) const {
    constexpr std::int64_t kBytes = 4;
    std::vector<Scalar> taken;
    for (Scalar scalar : parameter.scalars) {
      const auto number = numbers_[scalar.scope];
      if (!number) {
        parameter.untouched.push_back({scalar.offset, kBytes});
        continue;
      }
      scalar.scope = *number;
      taken.push_back(scalar);
    }
    parameter.scalars = std::move(taken);
  }

  std::vector<TrainerTensor> held(std::vector<TrainerTensor> all) const {
    for (TrainerTensor& tensor : all) {
      const bool fed = !tensor.held.parts.empty();
      take_parts(tensor.held, false);
      tensor.stays = fed && tensor.held.parts.empty();
    }
    return all;
  }

  std::unique_ptr<Family> whole_;
  LeavesOut leaves_out_;
  Catalog catalog_;
  std::vector<std::optional<std::uint32_t>> numbers_;  ///< in the catalog, of the tensors of the whole one
  std::optional<Choice> choice_;
  std::unordered_set<std::string> staying_;  ///< stored tensors
};

}  // namespace

std::unique_ptr<Family> make_chosen_family(std::unique_ptr<Family> whole, const std::vector<bool>& chosen,
                                           LeavesOut leaves_out) {
  return std::make_unique<ChosenFamily>(std::move(whole), chosen, std::move(leaves_out));
}

}  // namespace weightcast
