#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "live/exporter.hpp"
#include "live/manifest.hpp"
#include "model/export_map.hpp"
#include "model/family.hpp"
#include "model/parameter.hpp"
#include "model/trainer.hpp"
#include "plan/held_weights.hpp"
#include "session/parameter_memory.hpp"
#include "source/binding.hpp"
#include "source/memory_source.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// What a trainer has published, as the headers of a checkpoint, which can be matched with a model; there are
/// no files. Of a tensor of which it has a box, the whole. An alias is a tensor of its own. Throws InputError
/// naming an entry that is not row by row.
Checkpoint checkpoint_of(const Manifest& manifest);

/// The same for a trainer that has its own names: all tensors of the map, whole, whoever has them. Throws
/// InputError naming a tensor that is not published as the map says of this trainer, or that it does not
/// know. The map must have this trainer's rank.
Checkpoint checkpoint_of(const Manifest& manifest, const ExportMap& map);

/// Boxes of the model in the trainer's segments, when `held` are those in the tensors of checkpoint_of():
/// buffer number s is segment number s. `map` is that of checkpoint_of(), null without one. Throws InputError
/// naming a tensor that is of another dtype than the model's: of what is read in place nothing is converted
/// but bfloat16 of a tensor that is float32 in a model of any type (Tensor::widened).
HeldWeights held_in_segments(const Manifest& manifest, const Checkpoint& checkpoint, const HeldWeights& held,
                             const Catalog& catalog, const ExportMap* map = nullptr);

/// Throws InputError naming a tensor that has memory of its own though the model's config ties it to another
/// one, when `binding` is that of checkpoint_of().
void require_tied(const Checkpoint& published, const Binding& binding, const Catalog& catalog);

/// Whether a trainer has boxes of tensors, so that others have the rest.
bool has_boxes(const Manifest& manifest);

/// Throws IoError unless the exporter, a trainer, lives, has all of its memory and its weights are being
/// read: they have stayed as they were.
void require_being_read(const Exporter& exporter);

/// A trainer's live weights in the host's memory. They must stay as they are for as long as the update reads
/// them, which the trainer's control block says.
class LiveSource final : public HeldSource {
 public:
  /// All arguments but `held`, which is that of held_in_segments(), must outlive the source.
  LiveSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
             const Exporter& exporter);

  void require_unchanged() const override { require_being_read(exporter_); }

 private:
  const Exporter& exporter_;
};

/// The tensors that an exporter has published, by all names that they have.
class PublishedTensors {
 public:
  /// `manifest` must outlive this. Throws InputError naming a tensor that is there twice.
  explicit PublishedTensors(const Manifest& manifest);

  const std::map<std::string, const LiveEntry*, std::less<>>& by_name() const { return by_name_; }

  /// An engine's parameter. Throws InputError naming it when it is not published, or not in a window though
  /// it is for the engine's loader, or is of another dtype or shape, or does not lie row by row, or not in
  /// the kind of memory where others are.
  const LiveEntry& parameter(const Parameter& parameter) const;

 private:
  const Manifest& manifest_;
  std::map<std::string, const LiveEntry*, std::less<>> by_name_;
};

/// Where a running engine that has the model's tensors whole, under Hugging Face's names, experts single or
/// stacked, has each of them; allocation number s is segment number s. Throws InputError naming the first one
/// that is missing, of another dtype or shape, not row by row, or in the memory of another; what is published
/// beside them must be no weight of the model.
std::vector<GivenParameter> canonical_parameters(const Manifest& manifest, const Family& family);

/// Those tensors in the engine's memory; where it has a window, some or all of them are there. An engine that
/// takes nothing out of it for `patience` ends the update. Throws as canonical_parameters().
std::shared_ptr<ParameterMemory> live_canonical_memory(const std::shared_ptr<Exporter>& exporter,
                                                       const Family& family, std::chrono::seconds patience);

/// Where a running engine has the parameters of its layout, in their order. Throws as
/// PublishedTensors::parameter(), and InputError naming two parameters of one memory, or one that is
/// published though nothing of the model goes there, and is not the engine's own (Family::is_engines_own()).
std::vector<const LiveEntry*> parameter_entries(const Manifest& manifest,
                                                std::span<const Parameter> parameters, const Family& family);

/// Parameters in the memory of a running engine, on the host or on its GPU, found by their names; `patience`
/// as above. `exporter` is kept by the memory, which `family` must outlive. `open` throws as
/// parameter_entries().
std::shared_ptr<ParameterMemory> live_parameter_memory(const std::shared_ptr<Exporter>& exporter,
                                                       const Family& family, std::chrono::seconds patience);

}  // namespace weightcast
