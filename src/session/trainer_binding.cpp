#include "session/trainer_binding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "model/megatron.hpp"

namespace weightcast {

namespace {

/// `trainer 3 (pp 1 tp 0 cp 1 dp 0; experts: etp 1 ep 0)`
std::string describe(const TrainerLayout& layout, std::int64_t rank) {
  const TrainerRank place = trainer_rank(layout, rank);
  return fmt::format("trainer {} (pp {} tp {} cp {} dp {}; experts: etp {} ep {})", rank, place.pp, place.tp,
                     place.cp, place.dp, place.etp, place.ep);
}

/// The tensors of a shard by the names that the model's family expects.
class ShardNames {
 public:
  ShardNames(const TrainerLayout& layout, const Checkpoint& shard)
      : shard_(shard), used_(shard.tensors.size(), false) {
    const bool chunks =
        !layout.global_numbers && static_cast<std::int64_t>(layout.stage_layers.size()) > layout.pp;
    for (std::uint32_t i = 0; i < shard.tensors.size(); ++i) {
      UnwrappedName name = unwrap_name(shard.tensors[i].name);
      if (trainer_may_ignore(name.name)) used_[i] = true;
      if (chunks) name.name.insert(0, name.chunk);
      const auto [other, fresh] = numbers_.emplace(std::move(name.name), i);
      if (!fresh) {
        throw InputError(fmt::format("{}: {} and {} are the same tensor", shard.path,
                                     shard.tensors[other->second].name, shard.tensors[i].name));
      }
    }
  }

  /// Its number in the shard, or nothing.
  std::optional<std::uint32_t> take(const TrainerTensor& tensor) {
    std::optional<std::uint32_t> result = take(tensor.held.name);
    for (const std::string& name : tensor.other_names) {
      if (!result) result = take(name);
    }
    return result;
  }

  /// A tensor that nobody has asked for, or null.
  const StoredTensor* left_over() const {
    const auto found = std::find(used_.begin(), used_.end(), false);
    return found == used_.end() ? nullptr : &shard_.tensors[static_cast<std::size_t>(found - used_.begin())];
  }

 private:
  std::optional<std::uint32_t> take(const std::string& name) {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) return std::nullopt;
    used_[found->second] = true;
    return found->second;
  }

  const Checkpoint& shard_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::vector<bool> used_;
};

/// The bounds of some shards, by tensor.
class BoundsByTensor {
 public:
  explicit BoundsByTensor(const Family& family) : family_(family), bounds_(family.catalog().size()) {}

  /// Adds what trainer `rank` holds; its shard's tensors are numbered from `first` on.
  void add(const TrainerLayout& layout, std::int64_t rank, const Checkpoint& shard, std::uint32_t first) {
    ShardNames names(layout, shard);
    for (const TrainerTensor& tensor : trainer_tensors(family_, layout, rank)) {
      const auto number = names.take(tensor);
      if (tensor.copy) continue;
      if (!number) {
        throw InputError(
            fmt::format("{}: tensor {} {} is missing, which {} of {} holds; was the shard written for "
                        "this layout?",
                        shard.path, tensor.held.name, tensor.held.shape.to_string(), describe(layout, rank),
                        layout.to_string()));
      }
      const StoredTensor& stored = shard.tensors[*number];
      if (stored.shape != tensor.held.shape) {
        throw InputError(
            fmt::format("{}: tensor {} has shape {} but {} of {} holds {}; was the shard written for "
                        "this layout?",
                        shard.path, stored.name, stored.shape.to_string(), describe(layout, rank),
                        layout.to_string(), tensor.held.shape.to_string()));
      }
      const bool cast = needs_cast(shard.path, stored, tensor.held.dtype);
      cast_tensors_ += cast ? 1 : 0;
      for (const Part& part : tensor.held.parts) {
        const Box place = place_in(tensor.held, part, part.box);
        add(part.tensor, {first + *number, cast, part.box, place.row, place.col});
      }
    }
    if (const StoredTensor* other = names.left_over()) {
      throw InputError(fmt::format(
          "{}: tensor {} {} is not part of what {} of {} holds; was the shard written for this "
          "layout?",
          shard.path, other->name, other->shape.to_string(), describe(layout, rank), layout.to_string()));
    }
  }

  Binding take() {
    Binding binding;
    binding.cast_tensors = cast_tensors_;
    for (const auto& of_tensor : bounds_) {
      binding.starts.push_back(static_cast<std::uint32_t>(binding.bounds.size()));
      binding.bounds.insert(binding.bounds.end(), of_tensor.begin(), of_tensor.end());
    }
    binding.starts.push_back(static_cast<std::uint32_t>(binding.bounds.size()));
    return binding;
  }

 private:
  void add(std::uint32_t tensor, const Bound& bound) {
    const auto known = [&](const Bound& other) { return other.box.contains(bound.box); };
    if (std::none_of(bounds_[tensor].begin(), bounds_[tensor].end(), known)) bounds_[tensor].push_back(bound);
  }

  const Family& family_;
  std::vector<std::vector<Bound>> bounds_;
  std::int64_t cast_tensors_ = 0;
};

}  // namespace

std::int64_t padded_vocabulary_of(const TrainerLayout& layout, const Checkpoint& shard) {
  for (const StoredTensor& tensor : shard.tensors) {
    const std::string name = unwrap_name(tensor.name).name;
    if (name == kMegatronEmbedding || name == kMegatronHead) return tensor.shape.rows() * layout.tp;
  }
  return 0;
}

Binding bind_trainer(const Family& family, const TrainerLayout& layout, std::int64_t rank,
                     const Checkpoint& shard) {
  BoundsByTensor bounds(family);
  bounds.add(layout, rank, shard, 0);
  return bounds.take();
}

JoinedTrainers join_trainers(const Family& family, const TrainerLayout& layout,
                             const std::vector<Checkpoint>& shards) {
  JoinedTrainers joined;
  BoundsByTensor bounds(family);
  for (std::size_t rank = 0; rank < shards.size(); ++rank) {
    const Checkpoint& shard = shards[rank];
    const auto file = static_cast<std::uint32_t>(joined.checkpoint.files.size());
    bounds.add(layout, static_cast<std::int64_t>(rank), shard,
               static_cast<std::uint32_t>(joined.checkpoint.tensors.size()));
    joined.checkpoint.files.insert(joined.checkpoint.files.end(), shard.files.begin(), shard.files.end());
    for (StoredTensor tensor : shard.tensors) {
      tensor.file += file;
      joined.checkpoint.tensors.push_back(std::move(tensor));
    }
  }
  joined.binding = bounds.take();
  return joined;
}

}  // namespace weightcast
