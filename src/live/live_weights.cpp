#include "live/live_weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// The entries of a manifest by all names that they have.
std::map<std::string, const LiveEntry*, std::less<>> entries_by_name(const Manifest& manifest) {
  std::map<std::string, const LiveEntry*, std::less<>> entries;
  for (const LiveEntry& entry : manifest.entries) {
    std::vector<std::string> names = entry.aliases;
    names.push_back(entry.name);
    for (const std::string& name : names) {
      if (entries.emplace(name, &entry).second) continue;
      throw InputError(fmt::format("{}: tensor {} is there twice; publish it once", manifest.path, name));
    }
  }
  return entries;
}

void require_contiguous(const Manifest& manifest, const LiveEntry& entry) {
  if (entry.contiguous()) return;
  throw InputError(fmt::format("{}: tensor {} {} lies with strides {}, not row by row; publish it contiguous",
                               manifest.path, entry.name, entry.shape.to_string(),
                               Shape(std::span<const std::int64_t>(entry.strides)).to_string()));
}

std::vector<std::byte*> addresses_of(const Exporter& exporter) {
  std::vector<std::byte*> addresses;
  for (const auto& segment : exporter.segments()) addresses.push_back(segment->data());
  return addresses;
}

class LiveParameters final : public ParameterMemory {
 public:
  explicit LiveParameters(std::shared_ptr<Exporter> exporter) : exporter_(std::move(exporter)) {
    allocations_.assign(exporter_->segments().begin(), exporter_->segments().end());
  }

  std::int64_t bytes_to_allocate(const Share& /*share*/) const override { return 0; }

  void open(const Share& share) override {
    const Manifest& manifest = exporter_->manifest();
    const auto entries = entries_by_name(manifest);
    for (const Parameter& parameter : share.parameters) {
      const auto found = entries.find(parameter.name);
      if (found == entries.end()) {
        throw InputError(fmt::format("{}: parameter {} is not published; publish the whole module",
                                     manifest.path, parameter.name));
      }
      const LiveEntry& entry = *found->second;
      if (entry.dtype != parameter.dtype || entry.shape != parameter.shape) {
        throw InputError(
            fmt::format("{}: parameter {} is {} {} there, but {} {} in the engine's layout; let --inference, "
                        "--moe-layout and --quantize say what the engine has",
                        manifest.path, parameter.name, dtype_name(entry.dtype), entry.shape.to_string(),
                        dtype_name(parameter.dtype), parameter.shape.to_string()));
      }
      require_contiguous(manifest, entry);
      require_in_same_memory(entry);
      place(entry.segment, entry.offset, parameter.bytes());
    }
  }

 private:
  /// All parameters are where the wire ends: on the host, or on the GPU where there is one.
  void require_in_same_memory(const LiveEntry& entry) const {
    const Manifest& manifest = exporter_->manifest();
    if (manifest.device().empty() || manifest.segments[entry.segment].kind == SegmentKind::kCudaIpc) return;
    throw InputError(
        fmt::format("{}: parameter {} is in the host's memory, others on {}; move the whole model there",
                    manifest.path, entry.name, manifest.device()));
  }

  std::shared_ptr<Exporter> exporter_;
};

}  // namespace

Checkpoint checkpoint_of(const Manifest& manifest) {
  Checkpoint checkpoint;
  checkpoint.path = manifest.path;
  checkpoint.host = manifest.host;
  for (const auto& [name, entry] : entries_by_name(manifest)) {
    require_contiguous(manifest, *entry);
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = entry->dtype;
    tensor.shape = entry->shape;
    tensor.offset = entry->offset;
    tensor.file = entry->segment;
    checkpoint.tensors.push_back(std::move(tensor));
  }
  return checkpoint;
}

HeldWeights held_in_segments(const Manifest& manifest, const Checkpoint& checkpoint, const HeldWeights& held,
                             const Catalog& catalog) {
  std::vector<HeldBox> boxes(held.boxes().begin(), held.boxes().end());
  for (HeldBox& box : boxes) {
    const StoredTensor& stored = checkpoint.tensors.at(box.buffer);
    const Tensor& tensor = catalog[box.tensor];
    if (dtype_bytes(stored.dtype) != dtype_bytes(tensor.dtype)) {
      throw InputError(fmt::format(
          "{}: tensor {} is {}, but the model has {}; what is sent from a trainer's memory is not "
          "converted: publish the copy that has the model's type",
          manifest.path, stored.name, dtype_name(stored.dtype), dtype_name(tensor.dtype)));
    }
    if (!manifest.device().empty() && manifest.segments[stored.file].kind == SegmentKind::kShared) {
      throw InputError(
          fmt::format("{}: tensor {} is in the host's memory, others on {}; move the whole model there",
                      manifest.path, stored.name, manifest.device()));
    }
    box.buffer = stored.file;
    box.offset += stored.offset;
  }
  return {std::move(boxes), catalog.size()};
}

LiveSource::LiveSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                       const HeldWeights& held, const Exporter& exporter)
    : HeldSource(plan, catalog, trainer, held, addresses_of(exporter)), exporter_(exporter) {}

void require_being_read(const Exporter& exporter) {
  if (exporter.state() == WEIGHTCAST_BEING_READ && exporter.lives()) return;
  throw IoError(fmt::format("{}: the {} has died or gone on while its weights were read",
                            exporter.manifest().path, role_name(exporter.manifest().role)));
}

std::shared_ptr<ParameterMemory> live_parameter_memory(std::shared_ptr<Exporter> exporter) {
  return std::make_shared<LiveParameters>(std::move(exporter));
}

}  // namespace weightcast
