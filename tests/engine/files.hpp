#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "engine/parameters.hpp"
#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"

namespace weightcast::engine {

/// The bfloat16 and float32 tensors of one file or of a checkpoint directory, as parameters.
class FileSource : public ParameterSource {
 public:
  explicit FileSource(const std::string& path);

  std::vector<std::string> names() const override;

  /// Throws InputError also when the tensor is of another dtype.
  Tensor read(const std::string& name) const override;

 private:
  Checkpoint checkpoint_;
  CheckpointReader reader_;
};

/// What the attributes of a shard file say.
struct ShardFacts {
  RankLayout layout;
  std::int64_t rank = 0;  ///< among all inference ranks
  std::int64_t replica = 0;
  std::int64_t replicas = 1;
  std::int64_t weight_version = 0;
  std::int64_t expert_epoch = 0;  ///< of the map by which experts sit in the shard's slots
  std::string moe_layout;
};

/// Reads the attributes of a shard file. Throws InputError naming the one that is missing, is impossible, or
/// asks for what this forward pass does not compute (pipeline stages, other expert layouts).
ShardFacts read_shard_facts(const std::string& path);

/// By layer the expert in each slot, of an expert map of that epoch. Throws InputError for another one.
std::vector<std::vector<std::int64_t>> read_experts_of_slots(const std::string& path, std::int64_t epoch);

/// What another implementation computed from one version of the weights.
struct Reference {
  std::string path;
  std::vector<std::vector<std::int64_t>> prompts;  ///< `input_ids` [prompts, n]
  Matrix logits;                                   ///< `logits` [prompts, n, vocabulary], row below row
  /// `greedy_ids` [1, m]: the first prompt and what greedy decoding appends; empty where nobody decoded.
  std::vector<std::int64_t> greedy;

  std::int64_t appended() const;  ///< tokens of `greedy` behind the prompt
};

/// Reads a `reference.safetensors`. Throws InputError when its tensors do not fit together.
Reference read_reference(const std::string& path);

/// The text of a file. Throws IoError.
std::string read_text(const std::string& path);

}  // namespace weightcast::engine
