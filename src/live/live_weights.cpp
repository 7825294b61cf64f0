#include "live/live_weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "live/live_window.hpp"
#include "model/beside_weights.hpp"
#include "source/binding.hpp"

namespace weightcast {

namespace {

void require_contiguous(const Manifest& manifest, const LiveEntry& entry) {
  if (entry.contiguous()) return;
  throw InputError(fmt::format("{}: tensor {} {} lies with strides {}, not row by row; publish it contiguous",
                               manifest.path, entry.name, entry.shape.to_string(),
                               Shape(std::span<const std::int64_t>(entry.strides)).to_string()));
}

/// Part of a tensor's matrix view that lies in an entry, from element number `first` of it on, its rows
/// `pitch` elements apart.
struct Run {
  Box box;
  std::int64_t first = 0;
  std::int64_t pitch = 0;
};

/// An entry that is a box of a tensor, in runs: all of it where the dimensions but the first and the last are
/// whole, else one for each index of what comes before the last dimension that is cut. [2, 4, 8] of [2, 6, 8]
/// from [0, 1, 0] on is rows 1..5 and rows 7..11 of 12.
std::vector<Run> runs_of(const Shape& shape, const LiveBox& box) {
  if (shape.elements() == 0) return {};
  const std::size_t dims = shape.dims();
  const std::int64_t cols = shape.cols();
  const std::int64_t col = dims == 0 ? 0 : box.start[dims - 1];
  // Rows of the whole and of the entry below an index of each dimension before the last.
  std::int64_t rows = 1;
  std::size_t inner = dims == 0 ? 0 : dims - 1;  // dimensions from here on make one run
  while (inner > 0) {
    rows *= shape[inner - 1];
    --inner;
    if (shape[inner] != box.whole[inner]) break;
  }
  std::int64_t row_of_inner = 0;
  std::int64_t whole_rows = 1;
  for (std::size_t i = dims == 0 ? 0 : dims - 1; i-- > inner;) {
    row_of_inner += box.start[i] * whole_rows;
    whole_rows *= box.whole[i];
  }
  std::vector<Run> runs;
  std::int64_t outer = 1;
  for (std::size_t i = 0; i < inner; ++i) outer *= shape[i];
  for (std::int64_t number = 0; number < outer; ++number) {
    // Where the indices that `number` counts are in the whole tensor.
    std::int64_t left = number;
    std::int64_t at = 0;
    std::int64_t step = 1;
    for (std::size_t i = inner; i-- > 0;) {
      at += (box.start[i] + left % shape[i]) * step;
      left /= shape[i];
      step *= box.whole[i];
    }
    runs.push_back({{at * whole_rows + row_of_inner, rows, col, cols}, number * rows * cols, cols});
  }
  return runs;
}

/// Where an entry is in tensors of checkpoint_of(), and which part of one it is.
struct EntryRun {
  const LiveEntry* entry = nullptr;
  Run run;
};

/// Throws InputError where a tensor of which a trainer has parts is read in other rows than its own: a part
/// of the one matrix is none of the other.
void require_own_rows(const Manifest& manifest, const HeldBox& held, const StoredTensor& whole) {
  const std::int64_t pitch = whole.shape.cols() * dtype_bytes(whole.dtype);
  if (held.pitch == pitch || held.box.rows <= 1) return;
  throw InputError(fmt::format(
      "{}: tensor {} {} is published in part, but the model reads it in rows of {} elements; "
      "publish the whole of it",
      manifest.path, excerpt(whole.name), whole.shape.to_string(), held.pitch / dtype_bytes(whole.dtype)));
}

/// Appends what of `held`, in a tensor as a whole, lies in a part of it.
void add_box(const HeldBox& held, const StoredTensor& whole, const EntryRun& of,
             std::vector<HeldBox>& boxes) {
  if (held.box.empty()) return;
  const std::int64_t element = dtype_bytes(whole.dtype);
  const std::int64_t cols = whole.shape.cols();
  const std::int64_t first_row = held.offset / element / cols;
  const std::int64_t first_col = held.offset / element % cols;
  const Box in_whole{first_row, held.box.rows, first_col, held.box.cols};
  const Run& run = of.run;
  const Box part = run.box.intersect(in_whole);
  if (part.empty()) return;
  const Box of_tensor{held.box.row + part.row - first_row, part.rows, held.box.col + part.col - first_col,
                      part.cols};
  const std::int64_t first = run.first + (part.row - run.box.row) * run.pitch + part.col - run.box.col;
  boxes.push_back(
      {held.tensor, of_tensor, of.entry->segment, of.entry->offset + first * element, run.pitch * element});
}

/// What a trainer's entries have of each tensor of a map.
std::vector<std::vector<EntryRun>> runs_of(const Manifest& manifest, const PublishedTensors& published,
                                           const ExportMap& map) {
  std::vector<std::vector<EntryRun>> runs(map.tensors.size());
  for (const OwnTensor& own : map.ranks.at(static_cast<std::size_t>(manifest.rank)).tensors) {
    const LiveEntry* const entry = published.by_name().at(own.name);
    for (const ExportedBox& box : own.boxes) {
      runs[box.tensor].push_back({entry, {box.box, box.from, box.pitch}});
    }
  }
  return runs;
}

/// Whether a parameter of an engine's own type takes what the layout has. PyTorch has no codes of four bits,
/// and engines keep them, and exponents of scales, as bytes of one type or another.
bool holds(DType published, DType wanted) {
  const bool bytes = wanted == DType::kF4E2M1x2 || wanted == DType::kF8E8M0;
  return published == wanted || (bytes && dtype_bytes(published) == 1);
}

/// Throws InputError unless a trainer has published just what the map says of it.
void require_as_mapped(const Manifest& manifest, const PublishedTensors& published, const ExportMap& map) {
  constexpr const char* kRemedy = "let all trainers publish anew, which learns the map anew";
  const ExportingRank& rank = map.ranks.at(static_cast<std::size_t>(manifest.rank));
  std::set<const LiveEntry*> mapped;
  for (const OwnTensor& own : rank.tensors) {
    const auto found = published.by_name().find(own.name);
    if (found == published.by_name().end()) {
      throw InputError(fmt::format("{}: tensor {} of {} is not published; {}", manifest.path, own.name,
                                   map.origin, kRemedy));
    }
    const LiveEntry& entry = *found->second;
    if (entry.dtype != own.dtype || entry.shape != own.shape) {
      throw InputError(fmt::format("{}: tensor {} is {} {}, but {} {} in {}; {}", manifest.path, own.name,
                                   dtype_name(entry.dtype), entry.shape.to_string(), dtype_name(own.dtype),
                                   own.shape.to_string(), map.origin, kRemedy));
    }
    require_contiguous(manifest, entry);
    if (!mapped.insert(&entry).second) {
      throw InputError(fmt::format("{}: tensor {} is the memory of another one, but two tensors in {}; {}",
                                   manifest.path, own.name, map.origin, kRemedy));
    }
  }
  for (const LiveEntry& entry : manifest.entries) {
    const auto is_left = [&](const std::string& name) { return rank.left.contains(name); };
    if (mapped.contains(&entry) || is_left(entry.name) || std::ranges::any_of(entry.aliases, is_left))
      continue;
    throw InputError(fmt::format("{}: tensor {} {} is published, but {} does not know it; {}", manifest.path,
                                 entry.name, entry.shape.to_string(), map.origin, kRemedy));
  }
}

std::vector<std::byte*> addresses_of(const Exporter& exporter) {
  std::vector<std::byte*> addresses;
  for (const auto& segment : exporter.segments()) addresses.push_back(segment->data());
  return addresses;
}

/// An exporter's segments, each of which keeps the exporter for as long as it is there itself.
std::vector<std::shared_ptr<Memory>> segments_of(const std::shared_ptr<Exporter>& exporter) {
  std::vector<std::shared_ptr<Memory>> segments;
  for (const auto& segment : exporter->segments()) segments.emplace_back(exporter, segment.get());
  return segments;
}

/// Null where the engine has none.
std::shared_ptr<ParameterWindow> window_of(const std::shared_ptr<Exporter>& exporter,
                                           std::chrono::seconds patience) {
  if (!exporter->window()) return nullptr;
  return std::make_shared<LiveWindow>(exporter, patience);
}

/// Whether a tensor of an engine is a parameter by its name. Others are tables that it has made itself:
/// scales of its cache, maps of experts, frequencies.
bool is_parameter(std::string_view name) {
  return name.ends_with("weight") || name.ends_with("bias");
}

class LiveParameters final : public ParameterMemory {
 public:
  LiveParameters(const std::shared_ptr<Exporter>& exporter, const Family& family,
                 std::chrono::seconds patience)
      : manifest_(exporter->manifest()), family_(family) {
    allocations_ = segments_of(exporter);
    window_ = window_of(exporter, patience);
  }

  std::int64_t bytes_to_allocate(const RankPlan& /*rank_plan*/) const override {
    return window_ ? window_->limit() : 0;
  }

  void open(const RankPlan& rank_plan) override {
    for (const LiveEntry* entry : parameter_entries(manifest_, rank_plan.parameters, family_)) {
      place(entry->segment, entry->offset, entry->shape.elements() * dtype_bytes(entry->dtype));
    }
  }

 private:
  const Manifest& manifest_;
  const Family& family_;
};

}  // namespace

PublishedTensors::PublishedTensors(const Manifest& manifest) : manifest_(manifest) {
  for (const LiveEntry& entry : manifest.entries) {
    std::vector<std::string> names = entry.aliases;
    names.push_back(entry.name);
    for (const std::string& name : names) {
      if (by_name_.emplace(name, &entry).second) continue;
      throw InputError(fmt::format("{}: tensor {} is there twice; publish it once", manifest.path, name));
    }
  }
}

const LiveEntry& PublishedTensors::parameter(const Parameter& parameter) const {
  const auto found = by_name_.find(parameter.name);
  if (parameter.for_loader && (found == by_name_.end() || found->second->segment != manifest_.window())) {
    throw InputError(
        fmt::format("{}: tensor {} goes through the engine's own loader, but no window is published for it; "
                    "let init_info say \"landing\": \"learn\", which publishes one",
                    manifest_.path, parameter.name));
  }
  if (found == by_name_.end()) {
    throw InputError(fmt::format("{}: parameter {} is not published; publish the whole module",
                                 manifest_.path, parameter.name));
  }
  const LiveEntry& entry = *found->second;
  if (!holds(entry.dtype, parameter.dtype) || entry.shape != parameter.shape) {
    throw InputError(
        fmt::format("{}: parameter {} is {} {} there, but {} {} in the engine's layout; let --inference, "
                    "--moe-layout and --quantize say what the engine has",
                    manifest_.path, parameter.name, dtype_name(entry.dtype), entry.shape.to_string(),
                    dtype_name(parameter.dtype), parameter.shape.to_string()));
  }
  require_contiguous(manifest_, entry);
  // All parameters are where the wire ends: on the host, or on the GPU where there is one.
  if (manifest_.device().empty() || !manifest_.segments[entry.segment].on_host()) return entry;
  throw InputError(
      fmt::format("{}: parameter {} is in the host's memory, others on {}; move the whole model there",
                  manifest_.path, entry.name, manifest_.device()));
}

Checkpoint checkpoint_of(const Manifest& manifest) {
  Checkpoint checkpoint;
  checkpoint.path = manifest.path;
  checkpoint.host = manifest.host;
  const PublishedTensors published(manifest);
  for (const auto& [name, entry] : published.by_name()) {
    require_contiguous(manifest, *entry);
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = entry->dtype;
    tensor.shape = entry->box ? entry->box->whole : entry->shape;
    tensor.offset = entry->offset;
    tensor.file = entry->segment;
    checkpoint.tensors.push_back(std::move(tensor));
  }
  return checkpoint;
}

Checkpoint checkpoint_of(const Manifest& manifest, const ExportMap& map) {
  require_as_mapped(manifest, PublishedTensors(manifest), map);
  Checkpoint checkpoint;
  checkpoint.path = map.origin;
  checkpoint.host = manifest.host;
  for (const ExportedTensor& exported : map.tensors) {
    StoredTensor tensor;
    tensor.name = exported.name;
    tensor.dtype = exported.dtype;
    tensor.shape = exported.shape;
    tensor.offset = exported.same_as;  // in no file: what is the same has the same place
    checkpoint.tensors.push_back(std::move(tensor));
  }
  std::ranges::sort(checkpoint.tensors, {}, &StoredTensor::name);
  return checkpoint;
}

HeldWeights held_in_segments(const Manifest& manifest, const Checkpoint& checkpoint, const HeldWeights& held,
                             const Catalog& catalog, const ExportMap* map) {
  const PublishedTensors published(manifest);
  std::vector<std::vector<EntryRun>> mapped;
  if (map != nullptr) mapped = runs_of(manifest, published, *map);
  std::vector<HeldBox> boxes;
  for (const HeldBox& box : held.boxes()) {
    const StoredTensor& stored = checkpoint.tensors.at(box.buffer);
    const Tensor& tensor = catalog[box.tensor];
    if (box.turned > 0) {
      throw InputError(
          fmt::format("{}: tensor {} is {} transposed, and live memory is not transposed; let trainers "
                      "publish an export map, "
                      "or Hugging Face's tensors",
                      manifest.path, stored.name, tensor.name));
    }
    const bool narrow = tensor.widened && stored.dtype == DType::kBF16 && tensor.dtype == DType::kF32;
    if (!narrow && dtype_bytes(stored.dtype) != dtype_bytes(tensor.dtype)) {
      throw InputError(
          fmt::format("{}: tensor {} is {}, but the model has {}; live memory is not converted: publish the "
                      "copy that has "
                      "the model's type",
                      manifest.path, stored.name, dtype_name(stored.dtype), dtype_name(tensor.dtype)));
    }
    const std::size_t before = boxes.size();
    const LiveEntry* const own = map == nullptr ? published.by_name().at(stored.name) : nullptr;
    if (map != nullptr || own->box) require_own_rows(manifest, box, stored);
    if (map != nullptr) {
      for (const EntryRun& run : mapped[stored.offset]) add_box(box, stored, run, boxes);
    } else if (own->box) {
      for (const Run& run : runs_of(own->shape, *own->box)) add_box(box, stored, {own, run}, boxes);
    } else {
      boxes.push_back(box);
      boxes.back().buffer = own->segment;
      boxes.back().offset += own->offset;
    }
    const auto added = std::span(boxes).subspan(before);
    for (HeldBox& of : added) {
      of.narrow = narrow;
      of.less_one = box.less_one;
    }
    const bool on_host = std::any_of(added.begin(), added.end(), [&](const HeldBox& of) {
      return manifest.segments[of.buffer].on_host();
    });
    if (!manifest.device().empty() && on_host) {
      throw InputError(
          fmt::format("{}: tensor {} is in the host's memory, others on {}; move the whole model there",
                      manifest.path, stored.name, manifest.device()));
    }
  }
  return {std::move(boxes), catalog.size()};
}

void require_tied(const Checkpoint& published, const Binding& binding, const Catalog& catalog) {
  for (const Copy& copy : binding.copies) {
    const StoredTensor& stored = published.tensors.at(copy.stored);
    const auto boxes = binding.held.of(copy.tensor);
    if (!boxes.empty() && same_bytes(stored, published.tensors.at(boxes.front().buffer))) continue;
    if (is_drafts_copy(stored.name)) {
      throw InputError(
          fmt::format("{}: tensor {} has memory of its own and may differ from {}, which engines use for "
                      "draft layers, too; "
                      "publish the one memory under both names, or send it without with --exclude '{}'",
                      published.path, excerpt(stored.name), catalog[copy.tensor].name, excerpt(stored.name)));
    }
    throw InputError(fmt::format(
        "{}: tensor {} is tied to {}, but has memory of its own, which may differ; tie them before they are "
        "published (--tied-head embedding: take a trainer's embedding alone)",
        published.path, stored.name, catalog[copy.tensor].name));
  }
}

bool has_boxes(const Manifest& manifest) {
  return std::any_of(manifest.entries.begin(), manifest.entries.end(),
                     [](const LiveEntry& entry) { return entry.box.has_value(); });
}

LiveSource::LiveSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                       const HeldWeights& held, const Exporter& exporter)
    : HeldSource(plan, catalog, trainer, held, addresses_of(exporter)), exporter_(exporter) {}

void require_being_read(const Exporter& exporter) {
  exporter.require_whole();
  if (exporter.state() == WEIGHTCAST_BEING_READ && exporter.lives()) return;
  throw IoError(
      fmt::format("{}: the {} has died or gone on while its weights were read; run the update again",
                  exporter.manifest().path, role_name(exporter.manifest().role)));
}

std::vector<GivenParameter> canonical_parameters(const Manifest& manifest, const Family& family) {
  const Catalog& catalog = family.catalog();
  const Checkpoint checkpoint = checkpoint_of(manifest);
  const Binding binding = bind(family, checkpoint);
  const HeldWeights held = held_in_segments(manifest, checkpoint, binding.held, catalog);
  std::map<std::pair<std::uint32_t, std::int64_t>, std::uint32_t> tensors_at;
  std::vector<GivenParameter> given;
  for (const HeldBox& box : held.boxes()) {
    const Tensor& tensor = catalog[box.tensor];
    if (box.narrow) {
      throw InputError(fmt::format(
          "{}: tensor {} is {}, but an update brings {}, as all engines but a module have it; let "
          "the module keep it in that type",
          manifest.path, tensor.name, dtype_name(DType::kBF16), dtype_name(tensor.dtype)));
    }
    const auto [there, is_new] = tensors_at.emplace(std::pair(box.buffer, box.offset), box.tensor);
    if (!is_new) {
      throw InputError(fmt::format(
          "{}: {} and {} are one memory, but the model has two tensors; is --model its config.json?",
          manifest.path, catalog[there->second].name, tensor.name));
    }
    given.push_back({tensor.name, box.buffer, box.offset, tensor.bytes()});
  }
  require_tied(checkpoint, binding, catalog);
  return given;
}

std::vector<const LiveEntry*> parameter_entries(const Manifest& manifest,
                                                std::span<const Parameter> parameters, const Family& family) {
  const PublishedTensors published(manifest);
  std::vector<const LiveEntry*> entries;
  std::map<const LiveEntry*, std::string> placed;
  for (const Parameter& parameter : parameters) {
    entries.push_back(&published.parameter(parameter));
    const auto [there, is_new] = placed.emplace(entries.back(), parameter.name);
    if (is_new) continue;
    throw InputError(
        fmt::format("{}: parameters {} and {} are one memory, but two in the model; is --model "
                    "the engine's config.json?",
                    manifest.path, there->second, parameter.name));
  }
  for (const LiveEntry& entry : manifest.entries) {
    const bool weights = is_parameter(entry.name) || entry.segment == manifest.window();
    if (placed.contains(&entry) || !weights || family.is_engines_own(entry.name)) continue;
    throw InputError(
        fmt::format("{}: parameter {} {} is published, but nothing of the model goes there, so that it "
                    "would stay as it is; let --model and --inference say what the engine has",
                    manifest.path, entry.name, entry.shape.to_string()));
  }
  return entries;
}

std::shared_ptr<ParameterMemory> live_canonical_memory(const std::shared_ptr<Exporter>& exporter,
                                                       const Family& family, std::chrono::seconds patience) {
  return given_parameter_memory(segments_of(exporter), canonical_parameters(exporter->manifest(), family),
                                window_of(exporter, patience));
}

std::shared_ptr<ParameterMemory> live_parameter_memory(const std::shared_ptr<Exporter>& exporter,
                                                       const Family& family, std::chrono::seconds patience) {
  return std::make_shared<LiveParameters>(exporter, family, patience);
}

}  // namespace weightcast
