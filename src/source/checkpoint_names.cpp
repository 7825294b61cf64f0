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

/// What the names of a model's body begin with in its checkpoints, `model.` or `backbone.`.
std::string body_of(const Catalog& catalog) {
  const auto found = std::ranges::find_if(catalog.tensors(),
                                          [](const Tensor& tensor) { return tensor.layer != Tensor::kNone; });
  const std::size_t end = found == catalog.tensors().end() ? 0 : found->name.find("layers.");
  return end == 0 || end == std::string::npos ? std::string(kBody) : found->name.substr(0, end);
}

/// A tensor of the body that no other part of a larger model is likely to have, as it is called there:
/// `layers.0.input_layernorm.weight`. Empty for a model without layers.
std::string_view landmark(const Catalog& catalog, const std::string& body) {
  const std::string first_layer = body + "layers.0.";
  const auto found = std::ranges::find_if(
      catalog.tensors(), [&](const Tensor& tensor) { return tensor.name.starts_with(first_layer); });
  return found == catalog.tensors().end() ? std::string_view()
                                          : std::string_view(found->name).substr(body.size());
}

}  // namespace

CheckpointNames::CheckpointNames(const Catalog& catalog, const Checkpoint& checkpoint)
    : checkpoint_(checkpoint), body_(body_of(catalog)) {
  for (const StoredTensor& tensor : checkpoint.tensors) {
    if (const std::string why = adapter_part(tensor.name); !why.empty()) {
      throw InputError(fmt::format("{}: tensor {} {}", checkpoint.path, excerpt(tensor.name), why));
    }
    // What the model calls so itself is no other model's part.
    std::string plain = without_wrappers(tensor.name);
    names_.push_back(catalog.find(plain) ? std::move(plain) : name_in_body(tensor.name));
  }
  remove_prefix(catalog);
  for (std::uint32_t i = 0; i < names_.size(); ++i) {
    const auto [first, fresh] = numbers_.emplace(names_[i], i);
    if (!fresh && !same_bytes(checkpoint.tensors[first->second], checkpoint.tensors[i]))
      twice_.emplace(names_[i], i);
  }
}

std::string CheckpointNames::name_in_body(std::string_view stored) const {
  const std::string name = canonical_name(stored);
  // transformers calls the body of any model `model` while it is in memory.
  return name.starts_with(kBody) ? body_ + name.substr(kBody.size()) : name;
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
  const std::string_view mark = landmark(catalog, body_);
  if (mark.empty()) return;
  std::set<std::string> prefixes;
  for (const std::string& name : names_) {
    if (!name.ends_with(mark)) continue;
    const std::string before = name.substr(0, name.size() - mark.size());
    if (before == body_) return;  // the model under its own names
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
  if (whole == body_ || whole.ends_with("." + body_)) whole.remove_suffix(body_.size());
  for (std::size_t i = 0; i < names_.size(); ++i) {
    std::string& name = names_[i];
    const std::string_view prefix = name.starts_with(body) ? std::string_view(body) : whole;
    if (name.starts_with(prefix)) {
      name = name_in_body(std::string_view(name).substr(prefix.size()));
    } else if (name.starts_with(body_ + "layers.") ||
               (catalog.find(name) && (name.starts_with(body_) || whole != body))) {
      // It would fill a hole of another model.
      throw InputError(
          fmt::format("{}: tensor {} has not the prefix '{}' that other tensors of the model have; write the "
                      "model that is meant alone",
                      checkpoint_.path, excerpt(checkpoint_.tensors[i].name), excerpt(whole)));
    }
  }
}

}  // namespace weightcast
