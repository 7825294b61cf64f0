#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/shape.hpp"
#include "model/catalog.hpp"
#include "model/engine.hpp"
#include "model/linears.hpp"
#include "model/parameter.hpp"
#include "model/sharding.hpp"
#include "model/stored_form.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// The names of one tensor in checkpoints (and so in the catalog), in an engine, and at a trainer rank.
struct Names {
  std::string canonical;
  std::string engine;
  std::string trainer;  ///< empty where it is not known
  /// By which other versions of the trainer call it.
  std::vector<std::string> other_trainer = {};
  /// What transformers calls it while it is in memory, where that is not what it writes.
  std::string memory = {};
};

/// Where a block stands: its layer, and what comes before its names.
struct Site {
  std::int64_t layer = Tensor::kNone;  ///< none for what stands outside of the layers
  std::string canonical;               ///< `model.layers.3.`
  std::string engine;                  ///< `model.layers.3.`
  std::string trainer;                 ///< `decoder.layers.1.`; empty where no trainer is meant
};

/// Takes the tensors that a block has: a catalog, or whoever only counts them.
class TensorList {
 public:
  virtual ~TensorList() = default;

  /// A tensor that is never quantised: a norm, a router, a bias, an embedding.
  virtual void add(const std::string& name, const Shape& shape) = 0;

  /// The same of one that is float32 in a model of any type. A checkpoint may have it in bfloat16.
  virtual void add_float32(const std::string& name, const Shape& shape) = 0;

  /// A tensor of codes or of their scales, which has a type of its own.
  virtual void add_coded(const std::string& name, DType dtype, const Shape& shape) = 0;

  /// The weight [out, in] of a linear layer, `MODULE.weight`: its values, or its codes and their scales.
  virtual void add_linear(const std::string& module, std::int64_t out, std::int64_t in) = 0;

  /// Calls `list` with the number of every expert or, where all that counts is how many there are, of one.
  virtual void for_each_expert(std::int64_t experts, const std::function<void(std::int64_t)>& list) = 0;
};

/// How one rank of an engine cuts what it keeps. With data-parallel attention vLLM cuts all but routed
/// experts as the attention, since each of its processes is a group of its own for them; SGLang cuts the
/// embedding so, MLPs and the head over all ranks of the stage.
struct EngineCut {
  EngineCut(const Catalog& of, const EngineLayout& how, const EngineRank& where, const Linears& with);

  /// How shared experts are cut that `module` names in messages. Throws UsageError where the layout leaves it
  /// open.
  const TensorParallel& shared_experts(const std::string& module) const;

  const Catalog& catalog;
  const EngineLayout& layout;
  EngineRank rank;
  const Linears& linears;
  TensorParallel attention;  ///< of every kind
  TensorParallel dense;      ///< MLPs of a layer without experts, and beside experts
  TensorParallel embedding;
  TensorParallel head;
};

/// How one trainer rank cuts what it holds beside routed experts.
struct TrainerCut {
  const TensorParallel& dense;
  std::int64_t padded_vocabulary = 0;  ///< rows of the embedding and the head on all ranks; 0: the default
  std::int64_t stages = 1;
  bool whole_linear_attention = false;  ///< as of a TrainerLayout
  bool plain_linear_norm = false;       ///< likewise
};

/// How one trainer rank cuts routed experts.
struct TrainerExpertCut {
  const TensorParallel& inner;
  std::int64_t ep = 1;
  std::int64_t ep_rank = 0;
  bool global_numbers = false;  ///< in names: an expert's number in the layer, not on the rank
};

/// A part of a model that many layers or families have, such as an MLP: which tensors it has, which
/// parameters an engine makes of them, and what a trainer holds of them. A block does not know its layer, so
/// that one object serves all layers of a kind. Functions append to their lists in network order.
class Block {
 public:
  virtual ~Block() = default;

  virtual void list(const Site& site, TensorList& tensors) const = 0;

  /// Throws UsageError when the layout does not divide the block, naming what does not.
  virtual void add_parameters(const Site& site, const EngineCut& cut,
                              std::vector<Parameter>& parameters) const = 0;

  /// What a trainer rank holds beside routed experts. Throws as add_parameters().
  virtual void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                   std::vector<TrainerTensor>& tensors) const;

  /// What it holds of routed experts. Throws as add_parameters().
  virtual void add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                                   std::vector<TrainerTensor>& tensors) const;

  /// Another stored form of one of its tensors, or nothing.
  virtual std::optional<StoredForm> other_stored_form(const Site& site, const Tensor& tensor) const;

  /// True for a parameter that an engine may have there and that no update writes.
  virtual bool is_engines_own(const Site& site, std::string_view parameter) const;

  /// The tensor whose values a stored tensor that no engine reads must repeat, or nothing.
  virtual std::optional<std::string> copy_of(std::string_view stored_name) const;
};

using BlockPtr = std::shared_ptr<const Block>;

}  // namespace weightcast
