#include "session/parameter_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"

namespace weightcast {

namespace {

class OwnParameterMemory final : public ParameterMemory {
 public:
  explicit OwnParameterMemory(std::unique_ptr<Memory> (*make)(std::int64_t, const char*)) : make_(make) {}

  std::int64_t bytes_to_allocate(const RankPlan& rank_plan) const override {
    return rank_plan.parameter_bytes;
  }

  void open(const RankPlan& rank_plan) override {
    allocations_.push_back(make_(rank_plan.parameter_bytes, "the parameters"));
    for (std::size_t p = 0; p < rank_plan.parameters.size(); ++p) {
      place(0, rank_plan.parameter_offsets[p], rank_plan.parameters[p].bytes());
    }
  }

 private:
  std::unique_ptr<Memory> (*make_)(std::int64_t, const char*);
};

class GivenParameterMemory final : public ParameterMemory {
 public:
  GivenParameterMemory(std::vector<std::shared_ptr<Memory>> allocations,
                       std::vector<GivenParameter> parameters, std::shared_ptr<ParameterWindow> window) {
    allocations_ = std::move(allocations);
    window_ = std::move(window);
    require_apart(parameters);
    for (const GivenParameter& parameter : parameters) {
      std::string name = parameter.name;
      if (!by_name_.emplace(std::move(name), parameter).second) {
        throw InternalError("parameter " + parameter.name + ": memory was given for it twice");
      }
    }
  }

  std::int64_t bytes_to_allocate(const RankPlan& /*rank_plan*/) const override {
    return window_ ? window_->limit() : 0;
  }

  void open(const RankPlan& rank_plan) override {
    for (const Parameter& wanted : rank_plan.parameters) {
      const auto found = by_name_.find(wanted.name);
      if (found == by_name_.end()) {
        throw InputError(fmt::format("parameter {}: no memory was given for it", wanted.name));
      }
      const GivenParameter& given = found->second;
      if (given.bytes != wanted.bytes()) {
        throw InputError(fmt::format("parameter {}: {} bytes of memory were given but {} {} has {}",
                                     wanted.name, given.bytes, dtype_name(wanted.dtype),
                                     wanted.shape.to_string(), wanted.bytes()));
      }
      place(given.allocation, given.offset, given.bytes);
    }
  }

 private:
  void require_apart(std::vector<GivenParameter>& parameters) const {
    std::sort(parameters.begin(), parameters.end(), [](const auto& a, const auto& b) {
      return std::tie(a.allocation, a.offset) < std::tie(b.allocation, b.offset);
    });
    const GivenParameter* before = nullptr;
    for (const GivenParameter& parameter : parameters) {
      const bool within = parameter.allocation < allocations_.size() && parameter.offset >= 0 &&
                          parameter.bytes >= 0 &&
                          parameter.bytes <= allocations_[parameter.allocation]->bytes() - parameter.offset;
      if (!within) throw InternalError("parameter " + parameter.name + ": is not within its allocation");
      if (before != nullptr && before->allocation == parameter.allocation &&
          before->offset + before->bytes > parameter.offset) {
        throw InternalError(fmt::format("parameters {} and {} overlap", before->name, parameter.name));
      }
      before = &parameter;
    }
  }

  std::unordered_map<std::string, GivenParameter> by_name_;
};

}  // namespace

bool ParameterMemory::on_host() const {
  return std::all_of(allocations_.begin(), allocations_.end(),
                     [](const auto& allocation) { return allocation->on_host(); });
}

void ParameterMemory::require_whole() const {
  for (const auto& allocation : allocations_) allocation->require_whole();
}

void ParameterMemory::read(std::size_t p, std::int64_t offset, std::span<std::byte> to) const {
  places_.at(p).memory->read(places_[p].offset + offset, to);
}

void ParameterMemory::write(std::size_t p, std::int64_t offset, std::span<const std::byte> from) {
  places_.at(p).memory->write(places_[p].offset + offset, from);
}

void ParameterMemory::fill(std::byte value) {
  for (const Place& place : places_) {
    place.memory->fill(place.offset, static_cast<std::int64_t>(place.bytes.size()), value);
  }
}

void ParameterMemory::place(std::size_t number, std::int64_t offset, std::int64_t bytes) {
  Memory& memory = *allocations_.at(number);
  places_.push_back({&memory, offset, {memory.data() + offset, static_cast<std::size_t>(bytes)}});
}

std::unique_ptr<ParameterMemory> own_parameter_memory(std::unique_ptr<Memory> (*make)(std::int64_t,
                                                                                      const char*)) {
  return std::make_unique<OwnParameterMemory>(make);
}

std::unique_ptr<ParameterMemory> given_parameter_memory(std::vector<std::shared_ptr<Memory>> allocations,
                                                        std::vector<GivenParameter> parameters,
                                                        std::shared_ptr<ParameterWindow> window) {
  return std::make_unique<GivenParameterMemory>(std::move(allocations), std::move(parameters),
                                                std::move(window));
}

}  // namespace weightcast
