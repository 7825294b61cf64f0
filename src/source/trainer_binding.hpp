#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "model/family.hpp"
#include "model/trainer.hpp"
#include "source/binding.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// What trainers' shards show of their layout that an allocation does not say. Of several shards the larger
/// values count.
struct ShownLayout {
  /// Rows that the embedding (or head) implies for all tensor-parallel ranks together, padding included; 0
  /// when there is neither.
  std::int64_t padded_vocabulary = 0;
  bool whole_linear_attention = false;  ///< as of a TrainerLayout

  void add(const ShownLayout& other) {
    padded_vocabulary = std::max(padded_vocabulary, other.padded_vocabulary);
    whole_linear_attention = whole_linear_attention || other.whole_linear_attention;
  }
};
ShownLayout shown_layout(const TrainerLayout& layout, const Checkpoint& shard);

/// Finds all that trainer `rank` must hold in the shard that it wrote. Throws InputError naming file, tensor
/// and trainer for one that is missing, of the wrong shape or dtype, twice there, or not part of what the
/// trainer holds.
Binding bind_trainer(const Family& family, const TrainerLayout& layout, std::int64_t rank,
                     const Checkpoint& shard);

/// A digest of every tensor of the catalog that the shard holds as a whole and that is small (norms, mostly);
/// 0 for the others. Trainers that hold the same tensor must have the same: what replicas hold is taken from
/// any of them.
std::vector<std::int64_t> digests_of_small(const Catalog& catalog, const Checkpoint& shard,
                                           const HeldWeights& held);

/// Throws InputError naming the shard and the tensor where it holds something else than `others` say.
void require_equal_replicas(const Catalog& catalog, const std::string& path,
                            const std::vector<std::int64_t>& own, const std::vector<std::int64_t>& others);

/// Of a model whose head is tied to its embedding, in several stages: a digest of what the shard holds of the
/// embedding or of the last stage's copy of it, by tensor-parallel rank; 0 where it holds neither. Padding
/// does not count. Throws InputError as bind_trainer does.
std::vector<std::int64_t> digests_of_tied(const Family& family, const TrainerLayout& layout,
                                          std::int64_t rank, const Checkpoint& shard);

/// Throws InputError naming the shard where it holds another embedding than `others` say.
void require_equal_tied(const std::string& path, const std::vector<std::int64_t>& own,
                        const std::vector<std::int64_t>& others);

/// The shards of all trainers, in rank order, as one checkpoint and what it has of the model. Of replicas the
/// first is taken.
struct JoinedTrainers {
  Checkpoint checkpoint;  ///< names occur several times: for reading alone
  Binding binding;
};
JoinedTrainers join_trainers(const Family& family, const TrainerLayout& layout,
                             const std::vector<Checkpoint>& shards);

}  // namespace weightcast
