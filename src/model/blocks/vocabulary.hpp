#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// How SGLang has an embedding, and with several stages the head that is tied to it.
enum class InSglang : std::uint8_t {
  kCut,    ///< as vLLM: cut between ranks, its vocabulary padded
  kWhole,  ///< whole on each rank; on the last of several stages a head of its own, which is cut
};

/// The embedding [vocabulary, hidden], on the first stage.
class Embedding final : public Block {
 public:
  Embedding(Names names, std::int64_t vocabulary, std::int64_t hidden, InSglang in_sglang = InSglang::kCut);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  std::int64_t vocabulary_;
  std::int64_t hidden_;
  InSglang in_sglang_;
};

/// The head [vocabulary, hidden], on the last stage: a tensor of its own or, tied, the embedding once more.
class Head final : public Block {
 public:
  /// `embedding` is what the head is tied to, null for none.
  Head(Names names, std::int64_t vocabulary, std::int64_t hidden, const Names* embedding,
       InSglang in_sglang = InSglang::kCut);

  void list(const Site& site, TensorList& tensors) const override;
  /// A tied head is the embedding, which a stage that is the first one, too, has already.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  /// A tied head of several stages is a copy, which must be equal and is not sent.
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  std::optional<std::string> copy_of(std::string_view stored_name) const override;

 private:
  Names names_;
  std::int64_t vocabulary_;
  std::int64_t hidden_;
  std::optional<Names> tied_to_;
  InSglang in_sglang_;
};

}  // namespace weightcast
