#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/blocks/block.hpp"
#include "model/family.hpp"
#include "model/stored_quantization.hpp"

namespace weightcast {

/// The blocks of a layer, in network order.
using LayerBlocks = std::vector<BlockPtr>;

/// In what an engine's names are unlike those of blocks.
struct EngineNames {
  std::string prefix = {};  ///< of the model's names, where it is a part of another one
  /// Parts of names that it has in place of others.
  std::vector<std::pair<std::string, std::string>> replaced = {};
};

/// Where the parts of a draft layer stand, and what an engine calls the head that it repeats.
struct DraftSites {
  Site before;
  Site body;
  Site after;
  bool joined = true;  ///< what is before and after is its own, not the first draft layer's
  std::string head;    ///< empty: as in the model
};

/// The layers behind the last one of a model that only drafts of engines use.
struct DraftParts {
  std::int64_t layers = 0;
  LayerBlocks before;                 ///< what makes one input of the model's output and the next token
  LayerBlocks body;                   ///< a layer as the model's
  LayerBlocks after;                  ///< the norm behind it
  bool alone = false;                 ///< they are sent without the model, as one of their own
  std::vector<std::string> prefixes;  ///< of all their tensors
  /// Of draft layer `draft`; with an engine, as its class of draft models calls its parts. Throws UsageError
  /// for more layers than that has.
  std::function<DraftSites(std::int64_t draft, std::optional<Engine> engine)> sites;
};

/// What a decoder-only model is made of. A family fills it in.
struct DecoderParts {
  std::string origin;  ///< of the config, for messages
  std::string sizes;   ///< what the config says of sizes, for messages
  DType dtype = DType::kBF16;
  std::optional<StoredQuantization> stored;  ///< of a checkpoint that holds codes

  BlockPtr embedding;
  LayerBlocks beside_embedding;  ///< what else stands before the layers
  std::int64_t layers = 0;
  std::vector<LayerBlocks> kinds;  ///< of layers
  /// The kind of a layer, as an index. Unset: all are of the first.
  std::function<std::size_t(std::int64_t layer)> kind_of;
  /// Layers behind the last one that only drafts of engines use; tensors of theirs are left out.
  std::int64_t draft_layers = 0;
  /// These, where they are sent.
  std::optional<DraftParts> drafts;
  /// What other tensors begin with that are left out, those of drafts and of vision towers, and parameters of
  /// engines that stay as they are.
  std::vector<std::string> left_out;
  std::vector<std::string> towers;  ///< those of these that are what sees or hears
  std::vector<UnsentPart> unsent;   ///< those of these that the config describes
  /// What canonical names begin with, and what begins those in the files of a model that this is a part of.
  std::vector<std::pair<std::string, std::string>> in_files;
  /// What names of layers begin with in checkpoints; in engines it is `model.layers.`.
  std::string layers_prefix = "model.layers.";
  /// Why no trainers of Megatron's kind are taken; empty where they are.
  std::string trainers_refused;
  EngineNames vllm;
  EngineNames sglang;
  BlockPtr final_norm;
  BlockPtr head;
};

/// A model of embedding, layers of blocks, final norm and head.
class Decoder final : public Family {
 public:
  /// Throws InputError for sizes beyond those of any model, before anything is listed.
  explicit Decoder(DecoderParts parts);

  const Catalog& catalog() const override { return catalog_; }
  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override;
  std::vector<TrainerTensor> trainer_dense(const TrainerLayout& layout, std::int64_t pp,
                                           std::int64_t tp) const override;
  std::vector<TrainerTensor> trainer_experts(const TrainerLayout& layout, std::int64_t pp, std::int64_t etp,
                                             std::int64_t ep) const override;
  std::optional<StoredForm> other_stored_form(const Tensor& tensor) const override;
  bool may_ignore(std::string_view stored_name) const override;
  std::optional<std::string> ignored_beside(std::string_view stored_name) const override;
  std::optional<std::string> copy_of(std::string_view stored_name) const override;
  bool is_engines_own(std::string_view parameter) const override;
  std::string name_in_files(std::string_view canonical) const override;
  QuantizationPlace quantization_place() const override;
  std::vector<std::string> left_out() const override;
  std::vector<std::string> towers() const override { return parts_.towers; }
  std::vector<UnsentPart> unsent() const override { return parts_.unsent; }
  bool sends_drafts() const override { return parts_.drafts.has_value(); }

 private:
  /// Of a layer of the model, or of a draft's behind them.
  const LayerBlocks& blocks(std::int64_t layer) const;
  /// What stands before and behind the layers.
  LayerBlocks first_blocks() const;
  LayerBlocks last_blocks() const { return {parts_.final_norm, parts_.head}; }
  Site layer_site(std::int64_t layer) const;
  Site site_of(std::int64_t layer) const;
  bool drafts_alone() const { return parts_.drafts && parts_.drafts->alone; }
  /// Whether a draft that is sent has a tensor of that name, or one that it only repeats.
  bool is_of_sent_drafts(std::string_view stored_name) const;
  /// The layer of a draft that a stored tensor is of, if it is of one.
  std::optional<std::int64_t> draft_layer_of(std::string_view stored_name) const;
  /// Of an engine that fuses and cuts them.
  std::vector<Parameter> cut_parameters(const EngineLayout& layout, const EngineRank& rank) const;
  void add_model(const EngineCut& cut, std::vector<Parameter>& parameters) const;
  void add_drafts(const EngineCut& cut, std::vector<Parameter>& parameters) const;
  void add_shared_with_drafts(const EngineCut& cut, std::vector<Parameter>& parameters) const;
  const EngineNames& names_of(Engine engine) const {
    return engine == Engine::kVllm ? parts_.vllm : parts_.sglang;
  }
  /// Gives parameters an engine's own names.
  void rename(Engine engine, std::vector<Parameter>& parameters) const;
  std::optional<Quantizer> stored_quantizer() const;
  /// Throws UsageError for trainers of a family that refuses them, of a model whose checkpoints hold codes,
  /// or of draft layers.
  void require_trainers(const TrainerLayout& layout) const;
  void require_plausible_sizes() const;
  bool is_left_out(std::string_view name) const;
  void list_tensors();

  DecoderParts parts_;
  Catalog catalog_;
  std::uint32_t head_ = 0;  ///< its tensor; tied, that of the embedding, which is the first
};

}  // namespace weightcast
