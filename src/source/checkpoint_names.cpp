#include "source/checkpoint_names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kBody = "model.";

/// A tensor of the model's body that no other part of a larger model is likely to have, as it is called
/// there: `layers.0.input_layernorm.weight`. Empty for a model without layers.
std::string_view landmark(const Catalog& catalog) {
  constexpr std::string_view kFirstLayer = "model.layers.0.";
  const auto found = std::ranges::find_if(
      catalog.tensors(), [&](const Tensor& tensor) { return tensor.name.starts_with(kFirstLayer); });
  return found == catalog.tensors().end() ? std::string_view()
                                          : std::string_view(found->name).substr(kBody.size());
}

}  // namespace

CheckpointNames::CheckpointNames(const Catalog& catalog, const Checkpoint& checkpoint)
    : checkpoint_(checkpoint) {
  for (const StoredTensor& tensor : checkpoint.tensors) {
    if (const std::string why = adapter_part(tensor.name); !why.empty()) {
      throw InputError(fmt::format("{}: tensor {} {}", checkpoint.path, excerpt(tensor.name), why));
    }
    // What the model calls so itself is no other model's part.
    std::string plain = without_wrappers(tensor.name);
    names_.push_back(catalog.find(plain) ? std::move(plain) : canonical_name(tensor.name));
  }
  remove_prefix(catalog);
  for (std::uint32_t i = 0; i < names_.size(); ++i) {
    const auto [first, fresh] = numbers_.emplace(names_[i], i);
    if (!fresh && !same_bytes(checkpoint.tensors[first->second], checkpoint.tensors[i]))
      twice_.emplace(names_[i], i);
  }
}

std::optional<std::uint32_t> CheckpointNames::find(const std::string& name) const {
  const auto found = numbers_.find(name);
  if (found == numbers_.end()) return std::nullopt;
  if (const auto other = twice_.find(name); other != twice_.end()) {
    throw InputError(fmt::format("{}: {} and {} are both the model's {}; remove the one that is not meant",
                                 checkpoint_.path, excerpt(checkpoint_.tensors[found->second].name),
                                 excerpt(checkpoint_.tensors[other->second].name), name));
  }
  return found->second;
}

void CheckpointNames::remove_prefix(const Catalog& catalog) {
  const std::string_view mark = landmark(catalog);
  if (mark.empty()) return;
  std::set<std::string> prefixes;
  for (const std::string& name : names_) {
    if (!name.ends_with(mark)) continue;
    const std::string before = name.substr(0, name.size() - mark.size());
    if (before == kBody) return;  // the model under its own names
    if (before.ends_with('.')) prefixes.insert(before);
  }
  if (prefixes.empty()) return;
  if (prefixes.size() > 1) {
    throw InputError(
        fmt::format("{}: holds several models: names begin with '{}' and with '{}'; write the one that is "
                    "meant alone",
                    checkpoint_.path, excerpt(*prefixes.begin()), excerpt(*prefixes.rbegin())));
  }
  // The head is not in the body.
  const std::string& body = *prefixes.begin();
  std::string_view whole = body;
  if (whole == kBody || whole.ends_with(".model.")) whole.remove_suffix(kBody.size());
  for (std::size_t i = 0; i < names_.size(); ++i) {
    std::string& name = names_[i];
    const std::string_view prefix = name.starts_with(body) ? std::string_view(body) : whole;
    if (name.starts_with(prefix)) {
      name = canonical_name(std::string_view(name).substr(prefix.size()));
    } else if (name.starts_with("model.layers.") ||
               (catalog.find(name) && (name.starts_with(kBody) || whole != body))) {
      // It would fill a hole of another model.
      throw InputError(
          fmt::format("{}: tensor {} has not the prefix '{}' that other tensors of the model have; write the "
                      "model that is meant alone",
                      checkpoint_.path, excerpt(checkpoint_.tensors[i].name), excerpt(whole)));
    }
  }
}

}  // namespace weightcast
