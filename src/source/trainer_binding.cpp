#include "source/trainer_binding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/text.hpp"
#include "kernels/digest.hpp"
#include "model/megatron.hpp"
#include "source/bound_reader.hpp"

namespace weightcast {

namespace {

/// `trainer 3 (pp 1 …) of megatron:(…)`
std::string describe(const TrainerLayout& layout, std::int64_t rank) {
  return fmt::format("trainer {} ({}) of {}", rank, to_string(trainer_rank(layout, rank)),
                     layout.to_string());
}

constexpr const char* kAsk = "was the shard written for this layout, and is config.json this model's?";

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
      unexpected_forms_.push_back(trainer_refusal(name.name));
      if (chunks) name.name.insert(0, name.chunk);
      const auto [other, fresh] = numbers_.emplace(std::move(name.name), i);
      if (fresh) continue;
      if (!same_bytes(shard.tensors[other->second], shard.tensors[i])) {
        throw InputError(fmt::format("{}: {} and {} are the same tensor; remove the one that is not meant",
                                     shard.path, excerpt(shard.tensors[other->second].name),
                                     excerpt(shard.tensors[i].name)));
      }
      used_[i] = true;
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

  /// A tensor that nobody has asked for, and why it may be there, if that is known.
  struct LeftOver {
    std::string tensor;
    std::string why;
  };
  std::optional<LeftOver> left_over() const {
    std::optional<LeftOver> found;
    for (std::size_t i = 0; i < used_.size(); ++i) {
      const StoredTensor& tensor = shard_.tensors[i];
      if (used_[i] || tensor.obstacle != nullptr || (found && unexpected_forms_[i].empty())) continue;
      found = LeftOver{fmt::format("tensor {} {}", excerpt(tensor.name), tensor.shape.to_string()),
                       unexpected_forms_[i]};
      if (!found->why.empty()) return found;
    }
    return found;
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
  std::vector<std::string> unexpected_forms_;  ///< why each cannot be read; mostly empty
};

/// Throws InputError unless a stored tensor can be read and has the shape that the trainer holds.
void require_held(const Checkpoint& shard, const StoredTensor& stored, const Shape& held,
                  const TrainerLayout& layout, std::int64_t rank) {
  shard.require_readable(stored);
  if (stored.shape == held) return;
  throw InputError(fmt::format("{}: tensor {} has shape {} but {} holds {}; {}", shard.path,
                               excerpt(stored.name), stored.shape.to_string(), describe(layout, rank),
                               held.to_string(), kAsk));
}

/// Throws InputError for elements to which 1 is not added.
void require_one_more(const Checkpoint& shard, const StoredTensor& stored, DType wanted) {
  if (wanted == DType::kBF16 || wanted == DType::kF32) return;
  throw InputError(fmt::format(
      "{}: tensor {} is held less one, to which 1 is added in bfloat16 and float32 alone, but the model is "
      "{}; keep linear attention whole on each rank, or name trainers that have Hugging Face's names",
      shard.path, excerpt(stored.name), dtype_name(wanted)));
}

/// What some shards hold.
class HeldByShards {
 public:
  explicit HeldByShards(const Family& family) : family_(family), boxes_(family.catalog().size()) {}

  /// Adds what trainer `rank` holds; its shard's tensors are numbered from `first` on.
  void add(const TrainerLayout& layout, std::int64_t rank, const Checkpoint& shard, std::uint32_t first) {
    ShardNames names(layout, shard);
    const std::vector<TrainerTensor> held = tensors_of(layout, rank, shard);
    std::vector<std::optional<std::uint32_t>> numbers;
    std::transform(held.begin(), held.end(), std::back_inserter(numbers),
                   [&](const TrainerTensor& tensor) { return names.take(tensor); });
    const std::optional<ShardNames::LeftOver> left_over = names.left_over();
    for (std::size_t i = 0; i < held.size(); ++i) {
      const TrainerTensor& tensor = held[i];
      if (tensor.copy || tensor.stays) continue;
      if (!numbers[i]) {
        throw InputError(fmt::format("{}: tensor {} {} is missing, which {} holds{}; {}", shard.path,
                                     tensor.held.name, tensor.held.shape.to_string(), describe(layout, rank),
                                     left_over ? ", and there is " + left_over->tensor : "",
                                     left_over && !left_over->why.empty() ? left_over->why : kAsk));
      }
      const StoredTensor& stored = shard.tensors[*numbers[i]];
      require_held(shard, stored, tensor.held.shape, layout, rank);
      const bool widened =
          !tensor.held.parts.empty() && family_.catalog()[tensor.held.parts.front().tensor].widened;
      require_castable(shard, stored, tensor.held.dtype, widened);
      if (tensor.less_one) require_one_more(shard, stored, tensor.held.dtype);
      cast_tensors_ += cast_between(stored.dtype, tensor.held.dtype) == Cast::kRound ? 1 : 0;
      for (const Part& part : tensor.held.parts) {
        HeldBox box = held_in(stored, first + *numbers[i], part.tensor, part.box,
                              part.offset / dtype_bytes(tensor.held.dtype));
        box.less_one = tensor.less_one;
        box.turned = static_cast<std::uint8_t>(tensor.turned);
        add(box);
      }
    }
    if (left_over) {
      throw InputError(fmt::format("{}: {} is not part of what {} holds; {}", shard.path, left_over->tensor,
                                   describe(layout, rank), left_over->why.empty() ? kAsk : left_over->why));
    }
  }

  Binding take() {
    std::vector<HeldBox> all;
    for (const auto& of_tensor : boxes_) all.insert(all.end(), of_tensor.begin(), of_tensor.end());
    return {HeldWeights(std::move(all), boxes_.size()), cast_tensors_, {}, {}};
  }

 private:
  /// What the trainer holds; what is wrong with the shard's sizes names the shard.
  std::vector<TrainerTensor> tensors_of(const TrainerLayout& layout, std::int64_t rank,
                                        const Checkpoint& shard) const {
    try {
      return trainer_tensors(family_, layout, rank);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}: {}", shard.path, error.what()));
    }
  }

  void add(const HeldBox& held) {
    std::vector<HeldBox>& boxes = boxes_[held.tensor];
    const auto known = [&](const HeldBox& other) { return other.box.contains(held.box); };
    if (std::none_of(boxes.begin(), boxes.end(), known)) boxes.push_back(held);
  }

  const Family& family_;
  std::vector<std::vector<HeldBox>> boxes_;  ///< by tensor
  std::int64_t cast_tensors_ = 0;
};

/// A digest of a box of a tensor, read in pieces. Positive, so that the maximum over ranks is that of one
/// that holds the tensor.
std::int64_t positive_digest(const Tensor& tensor, std::uint32_t number, const Box& box,
                             const BoundReader& reader) {
  constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;
  const std::int64_t element = dtype_bytes(tensor.dtype);
  const std::int64_t row_bytes = std::max<std::int64_t>(1, box.cols * element);
  const std::int64_t each =
      std::clamp<std::int64_t>(kPieceBytes / row_bytes, 1, std::max<std::int64_t>(1, box.rows));
  std::vector<std::byte> bytes(static_cast<std::size_t>(each * row_bytes));
  std::uint64_t digest = 0;
  for (std::int64_t row = 0; row < box.rows; row += each) {
    const Box piece{box.row + row, std::min(each, box.rows - row), box.col, box.cols};
    reader.read(number, piece, bytes.data());
    digest += digest_box(bytes.data(), box.cols * element, piece, element, hash_text(tensor.name));
  }
  return static_cast<std::int64_t>(digest >> 1 | 1);
}

bool differ(std::int64_t own, std::int64_t other) {
  return own != 0 && other != 0 && own != other;
}

[[noreturn]] void throw_unequal(const std::string& path, const std::string& tensor) {
  throw InputError(fmt::format(
      "{}: does not hold the same {} as another trainer's shard; are they of different steps? write "
      "the shards again",
      path, tensor));
}

}  // namespace

ShownLayout shown_layout(const TrainerLayout& layout, const Checkpoint& shard) {
  ShownLayout shown;
  for (const StoredTensor& tensor : shard.tensors) {
    const std::string name = unwrap_name(tensor.name).name;
    const bool words = name == kMegatronEmbedding || name == kMegatronHead;
    // Of the first: another one that differs is refused as it is read.
    if (words && shown.padded_vocabulary == 0) {
      shown.padded_vocabulary = tensor.shape.rows() * layout.tp;
    }
    if (name.find(kMegatronWholeLinearAttention) != std::string::npos) shown.whole_linear_attention = true;
  }
  return shown;
}

Binding bind_trainer(const Family& family, const TrainerLayout& layout, std::int64_t rank,
                     const Checkpoint& shard) {
  HeldByShards held(family);
  held.add(layout, rank, shard, 0);
  return held.take();
}

std::vector<std::int64_t> digests_of_small(const Catalog& catalog, const Checkpoint& shard,
                                           const HeldWeights& held) {
  constexpr std::int64_t kSmallBytes = std::int64_t{64} << 10;
  const BoundReader reader(catalog, shard, held);
  std::vector<std::int64_t> digests(catalog.size(), 0);
  for (std::uint32_t number = 0; number < catalog.size(); ++number) {
    const Tensor& tensor = catalog[number];
    const Box whole = Box::whole(tensor.shape);
    const std::span<const HeldBox> boxes = held.of(number);
    if (tensor.bytes() > kSmallBytes || boxes.size() != 1 || boxes.front().box != whole) continue;
    digests[number] = positive_digest(tensor, number, whole, reader);
  }
  return digests;
}

std::vector<std::int64_t> digests_of_tied(const Family& family, const TrainerLayout& layout,
                                          std::int64_t rank, const Checkpoint& shard) {
  std::vector<std::int64_t> digests(static_cast<std::size_t>(layout.tp), 0);
  const std::vector<TrainerTensor> held = trainer_tensors(family, layout, rank);
  // The last rank is of the last stage, which keeps the copy where there is one.
  const std::vector<TrainerTensor> last = trainer_tensors(family, layout, layout.ranks() - 1);
  const auto copy = std::ranges::find_if(last, &TrainerTensor::copy);
  if (copy == last.end() || copy->held.parts.empty()) return digests;
  const Tensor& original = family.catalog()[copy->held.parts.front().tensor];
  Catalog alone;
  alone.add(original.name, original.dtype, original.shape);
  ShardNames names(layout, shard);
  for (const TrainerTensor& tensor : held) {
    for (const Part& part : tensor.held.parts) {
      if (family.catalog()[part.tensor].name != original.name) continue;
      const auto number = names.take(tensor);
      if (!number) continue;
      const StoredTensor& stored = shard.tensors[*number];
      require_held(shard, stored, tensor.held.shape, layout, rank);
      require_castable(shard, stored, tensor.held.dtype);
      const std::int64_t first = part.offset / dtype_bytes(tensor.held.dtype);
      const HeldWeights own({held_in(stored, *number, 0, part.box, first)}, 1);
      digests[static_cast<std::size_t>(trainer_rank(layout, rank).tp)] =
          positive_digest(original, 0, part.box, BoundReader(alone, shard, own));
    }
  }
  return digests;
}

void require_equal_replicas(const Catalog& catalog, const std::string& path,
                            const std::vector<std::int64_t>& own, const std::vector<std::int64_t>& others) {
  for (std::uint32_t number = 0; number < catalog.size(); ++number) {
    if (differ(own[number], others[number])) throw_unequal(path, catalog[number].name);
  }
}

void require_equal_tied(const std::string& path, const std::vector<std::int64_t>& own,
                        const std::vector<std::int64_t>& others) {
  for (std::size_t tp = 0; tp < own.size(); ++tp) {
    if (!differ(own[tp], others[tp])) continue;
    throw InputError(fmt::format(
        "{}: the embedding of the first stage and the output layer of the last differ on tensor-parallel "
        "rank {}, though config.json ties them (tie_word_embeddings); set it to false, write the shards "
        "again, or keep the embedding with --tied-head embedding",
        path, tp));
  }
}

JoinedTrainers join_trainers(const Family& family, const TrainerLayout& layout,
                             const std::vector<Checkpoint>& shards) {
  JoinedTrainers joined;
  HeldByShards held(family);
  for (std::size_t rank = 0; rank < shards.size(); ++rank) {
    const Checkpoint& shard = shards[rank];
    const auto file = static_cast<std::uint32_t>(joined.checkpoint.files.size());
    held.add(layout, static_cast<std::int64_t>(rank), shard,
             static_cast<std::uint32_t>(joined.checkpoint.tensors.size()));
    joined.checkpoint.files.insert(joined.checkpoint.files.end(), shard.files.begin(), shard.files.end());
    for (StoredTensor tensor : shard.tensors) {
      tensor.file += file;
      joined.checkpoint.tensors.push_back(std::move(tensor));
    }
  }
  joined.binding = held.take();
  return joined;
}

}  // namespace weightcast
