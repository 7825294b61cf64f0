#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/catalog.hpp"
#include "model/config.hpp"
#include "model/engine.hpp"
#include "model/parameter.hpp"
#include "model/stored_form.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// Which tensors of a model an update brings, where these are not all: a partial update.
struct Choice {
  std::int64_t tensors = 0;  ///< that are sent
  std::int64_t bytes = 0;
  std::int64_t staying_tensors = 0;  ///< that stay as engines have them
  std::int64_t staying_bytes = 0;
  std::string id;  ///< 16 hexadecimal digits, a hash of the names of those that are sent
};

/// Whether the user leaves out what is called so.
using LeavesOut = std::function<bool(std::string_view name)>;

/// A part of a model that its config describes and its family does not send.
struct UnsentPart {
  std::string prefix;  ///< of its tensors' names
  std::string line;    ///< what to say unless it is left out on purpose
};

/// One model of a family: what tensors it has, how checkpoints may store them, and which parameters an engine
/// rank keeps of them. A family is one file in families/ and one line in family.cpp.
class Family {
 public:
  virtual ~Family() = default;

  /// Every tensor of the model in network order (embedding, layers, final norm, head).
  virtual const Catalog& catalog() const = 0;

  /// The parameters of the rank at (`rank.pp`, `rank.tp`) of any replica. Throws UsageError when the layout
  /// does not divide the model, naming what does not.
  virtual std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const = 0;

  /// What a trainer rank at (`pp`, `tp`) holds beside routed experts, and what one at (`pp`, `etp`, `ep`)
  /// holds of those. Throws UsageError when the layout does not divide the model, naming what does not, or
  /// when trainers of this family are not known.
  virtual std::vector<TrainerTensor> trainer_dense(const TrainerLayout& layout, std::int64_t pp,
                                                   std::int64_t tp) const;
  virtual std::vector<TrainerTensor> trainer_experts(const TrainerLayout& layout, std::int64_t pp,
                                                     std::int64_t etp, std::int64_t ep) const;

  /// Another stored form in which a checkpoint may hold a canonical tensor, or nothing.
  virtual std::optional<StoredForm> other_stored_form(const Tensor& tensor) const = 0;

  /// True for a stored tensor that checkpoints carry but the engine never reads (rotary tables).
  virtual bool may_ignore(std::string_view stored_name) const = 0;

  /// The tensor that must lie beside one that may be ignored, so that it is what it seems: a layer behind the
  /// last one is a draft's if it has what joins it to the model, and the model's own if the config has too
  /// few layers. Nothing where none must.
  virtual std::optional<std::string> ignored_beside(std::string_view /*stored_name*/) const {
    return std::nullopt;
  }

  /// The canonical tensor whose values a stored tensor that the engine never reads must repeat (a tied head
  /// repeats the embedding); nothing for any other.
  virtual std::optional<std::string> copy_of(std::string_view stored_name) const;

  /// True for a parameter that an engine may have beside those above: it makes it itself, and an update
  /// leaves it as it is.
  virtual bool is_engines_own(std::string_view /*parameter*/) const { return false; }

  /// What the library that the model is of calls a canonical tensor in the files that it writes.
  virtual std::string name_in_files(std::string_view canonical) const { return std::string(canonical); }

  /// What to ask where weights do not fit the model.
  virtual std::string_view doubt() const { return "is --model its config.json?"; }

  /// Who says that tensors hold codes; empty for a model of values.
  virtual QuantizationPlace quantization_place() const { return {}; }

  /// What the names begin with of tensors that checkpoints of the model have, and that are left out.
  virtual std::vector<std::string> left_out() const { return {}; }

  /// What the names begin with of those of them that see or hear.
  virtual std::vector<std::string> towers() const { return {}; }

  /// Whether its draft layers are sent: what the config asks for with drafts(), and few families have.
  virtual bool sends_drafts() const { return false; }

  /// What make_family() refuses the config for, unless the user leaves it out.
  virtual std::vector<UnsentPart> unsent() const { return {}; }

  /// What is sent of the model where the user has chosen (model/chosen_family.hpp); null for all of it. The
  /// catalog has the chosen tensors then, and whole_catalog() those of the model.
  virtual const Choice* choice() const { return nullptr; }
  virtual const Catalog& whole_catalog() const { return catalog(); }

  /// True for a stored tensor that is of the model, and not sent because it was not chosen.
  virtual bool stays(std::string_view /*stored_name*/) const { return false; }
};

/// All that trainer `rank` holds, dense tensors first. Throws as Family's functions.
std::vector<TrainerTensor> trainer_tensors(const Family& family, const TrainerLayout& layout,
                                           std::int64_t rank);

/// Whether `config` names a family: make_family() throws for no other reason then than a size that is wrong.
bool names_family(const ModelConfig& config);

/// The family that `config` names: by its architectures, whatever a trainer has wrapped them in, or by its
/// model_type where those say nothing. Throws InputError naming what is not supported, or what is missing;
/// and for a part of the model that is not sent, unless the user leaves it out. Throws UsageError for draft
/// layers that the config asks for and does not describe.
std::unique_ptr<Family> make_family(const ModelConfig& config, const LeavesOut& leaves_out = {});

}  // namespace weightcast
