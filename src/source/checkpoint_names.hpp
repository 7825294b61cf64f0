#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/catalog.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// The tensors of a whole checkpoint by the names that the model gives them: without wrappers
/// (model/stored_names.hpp), and without one word more in front where all names have the same
/// (`pretrained_model.`, `actor.`, `model.text_model.`).
class CheckpointNames {
 public:
  /// Throws InputError for the tensors of an adapter, and for those of several models. `checkpoint` must
  /// outlive this.
  CheckpointNames(const Catalog& catalog, const Checkpoint& checkpoint);

  /// Its number in the checkpoint, or nothing. Throws InputError when two stored tensors have that name and
  /// are not the same bytes.
  std::optional<std::uint32_t> find(const std::string& name) const;

  const std::string& name_of(std::size_t stored) const { return names_[stored]; }

 private:
  /// canonical_name(), with the beginning that the model's own body has.
  std::string name_in_body(std::string_view stored) const;
  void remove_prefix(const Catalog& catalog);

  const Checkpoint& checkpoint_;
  std::string body_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::unordered_map<std::string, std::uint32_t> twice_;
};

}  // namespace weightcast
