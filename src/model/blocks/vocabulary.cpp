#include "model/blocks/vocabulary.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "model/megatron.hpp"

namespace weightcast {

namespace {

/// A trainer's slice of an embedding or head. Throws InputError for fewer rows than the vocabulary has.
TrainerTensor trainer_slice(const std::string& name, const std::string& tensor, std::int64_t vocabulary,
                            const TrainerCut& cut) {
  const std::int64_t padded = cut.padded_vocabulary > 0
                                  ? cut.padded_vocabulary
                                  : megatron_padded_vocabulary(vocabulary, cut.dense.size());
  if (padded < vocabulary) {
    throw InputError(
        fmt::format("{}: the trainers' {} has {} rows on all tensor-parallel ranks together but {} has {}; "
                    "were the shards written for this layout and model?",
                    cut.dense.option(), name, padded, tensor, vocabulary));
  }
  return {cut.dense.vocabulary(name, tensor, padded)};
}

}  // namespace

Embedding::Embedding(Names names, std::int64_t vocabulary, std::int64_t hidden, InSglang in_sglang)
    : names_(std::move(names)), vocabulary_(vocabulary), hidden_(hidden), in_sglang_(in_sglang) {}

void Embedding::list(const Site& /*site*/, TensorList& tensors) const {
  tensors.add(names_.canonical, {vocabulary_, hidden_});
}

void Embedding::add_parameters(const Site& /*site*/, const EngineCut& cut,
                               std::vector<Parameter>& parameters) const {
  const bool whole = in_sglang_ == InSglang::kWhole && cut.layout.engine == Engine::kSglang;
  parameters.push_back(whole ? cut.embedding.replicated(names_.engine, names_.canonical)
                             : cut.embedding.vocabulary(names_.engine, names_.canonical));
}

void Embedding::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                    std::vector<TrainerTensor>& tensors) const {
  tensors.push_back(trainer_slice(site.trainer + names_.trainer, names_.canonical, vocabulary_, cut));
}

Head::Head(Names names, std::int64_t vocabulary, std::int64_t hidden, const Names* embedding,
           InSglang in_sglang)
    : names_(std::move(names)), vocabulary_(vocabulary), hidden_(hidden), in_sglang_(in_sglang) {
  if (embedding != nullptr) tied_to_ = *embedding;
}

void Head::list(const Site& /*site*/, TensorList& tensors) const {
  if (!tied_to_) tensors.add(names_.canonical, {vocabulary_, hidden_});
}

void Head::add_parameters(const Site& /*site*/, const EngineCut& cut,
                          std::vector<Parameter>& parameters) const {
  if (!tied_to_) {
    parameters.push_back(cut.head.vocabulary(names_.engine, names_.canonical));
  } else if (cut.rank.pp > 0) {
    const bool own = in_sglang_ == InSglang::kWhole && cut.layout.engine == Engine::kSglang;
    parameters.push_back(own ? cut.head.vocabulary(names_.engine, tied_to_->canonical)
                             : cut.embedding.vocabulary(tied_to_->engine, tied_to_->canonical));
  }
}

void Head::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                               std::vector<TrainerTensor>& tensors) const {
  if (tied_to_ && cut.stages == 1) return;
  const std::string& tensor = tied_to_ ? tied_to_->canonical : names_.canonical;
  tensors.push_back(trainer_slice(site.trainer + names_.trainer, tensor, vocabulary_, cut));
  tensors.back().copy = tied_to_.has_value();
}

std::optional<std::string> Head::copy_of(std::string_view stored_name) const {
  if (tied_to_ && stored_name == names_.canonical) return tied_to_->canonical;
  return std::nullopt;
}

}  // namespace weightcast
