#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/parameter.hpp"

namespace weightcast {

/// Which of data and pipeline parallelism is the outermost dimension of the trainers' ranks.
enum class TrainerOrder : std::uint8_t {
  kTpDpPp,  ///< tp, cp, dp, pp: fastest first
  kTpPpDp,  ///< tp, cp, pp, dp
};

/// How the ranks of a Megatron-like trainer divide a model among themselves.
struct TrainerLayout {
  std::int64_t pp = 1;
  // Of everything but routed experts.
  std::int64_t tp = 1;
  std::int64_t cp = 1;
  std::int64_t dp = 1;
  // Of routed experts: each expert's tensors are cut etp ways, the experts of a layer are dealt to ep ranks.
  std::int64_t etp = 1;
  std::int64_t ep = 1;
  std::int64_t edp = 1;
  TrainerOrder order = TrainerOrder::kTpDpPp;

  /// Decoder layers of every chunk, chunk-major: chunk 0 of all stages, then chunk 1. Empty: one chunk a
  /// stage, all equal.
  std::vector<std::int64_t> stage_layers;

  /// Layer and expert numbers in tensor names count through the whole model, not through the rank's own.
  bool global_numbers = false;

  /// Rows of the embedding and the head over all tp ranks, padding included; 0: the vocabulary rounded up to
  /// a multiple of 128 × tp.
  std::int64_t padded_vocabulary = 0;

  /// Linear attention is Hugging Face's module, which each rank has whole, in place of Megatron-Core's.
  bool whole_linear_attention = false;
  /// The norm behind Megatron-Core's is as the model has it, not less one. Names do not tell.
  bool plain_linear_norm = false;

  /// What to change in error messages.
  std::string option = "--trainer-alloc";

  std::int64_t ranks() const { return pp * dp * cp * tp; }

  /// `megatron:(attn:d1p4t2c2|ffn:d1p4t2e2) --stage-layers 2,1,1,2`: as options would say it, and the same
  /// for layouts that mean the same.
  std::string to_string() const;
};

/// Where a trainer rank stands: stage, place among the ranks of its stage, place among those for experts.
struct TrainerRank {
  std::int64_t pp = 0;
  std::int64_t tp = 0;
  std::int64_t cp = 0;
  std::int64_t dp = 0;
  std::int64_t etp = 0;
  std::int64_t ep = 0;
  std::int64_t edp = 0;
};

/// `pp 0 dp 0 cp 1 tp 1, experts ep 0 etp 1`
std::string to_string(const TrainerRank& place);

/// Throws UsageError unless counting by attention and by experts puts every rank into the same stage, which
/// with TrainerOrder::kTpPpDp it need not. To be asked before experts are looked for.
void require_one_stage(const TrainerLayout& layout);

/// The place of trainer `rank` of layout.ranks(). Source: Megatron-Core's parallel state.
TrainerRank trainer_rank(const TrainerLayout& layout, std::int64_t rank);

/// Consecutive layers that a stage holds, and what stands around their numbers in its tensors' names.
struct TrainerChunk {
  std::string prefix;  ///< `vp_stages.1.` when a stage has several chunks and counts its own layers
  std::int64_t first = 0;
  std::int64_t layers = 0;
  bool embedding = false;
  bool head = false;
  bool final_norm = false;

  /// `decoder.layers.3.` with the number that the rank gives to global layer `layer`.
  std::string layer_prefix(const TrainerLayout& layout, std::int64_t layer) const;
};

/// The chunks of a stage of a model with `layers` layers: the embedding is with the first chunk of the first
/// stage, the head with the last of the last, the final norm with the last decoder layer. Throws UsageError
/// naming layout.option or --stage-layers when the stages do not add up to the model.
std::vector<TrainerChunk> trainer_chunks(const TrainerLayout& layout, std::int64_t stage,
                                         std::int64_t layers);

/// A tensor as a trainer rank holds it.
struct TrainerTensor {
  Parameter held;  ///< its own name and shape, and where what of the model is in it
  std::vector<std::string> other_names = {};  ///< by which other versions of the trainer call it
  /// A copy of what another stage trains (a tied head): it must be equal, and is not sent.
  bool copy = false;
  bool stays = false;  ///< nothing of it was chosen to be sent: it may be there or not
  /// It holds what each value is more than 1 (core/one_more.hpp): a norm that the trainer centres at zero,
  /// and the model does not.
  bool less_one = false;
  /// Its one part is there turned (core/turned.hpp), with columns of so many kinds; 0: as it is.
  std::int64_t turned = 0;
};

}  // namespace weightcast
