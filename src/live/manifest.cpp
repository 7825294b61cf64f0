#include "live/manifest.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "client/entry_rules.h"
#include "client/expert_table.h"
#include "client/memory_names.hpp"
#include "client/version.hpp"
#include "core/error.hpp"
#include "core/json_fields.hpp"
#include "core/json_text.hpp"
#include "storage/input_file.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr std::int64_t kFormat = 1;
static_assert(WEIGHTCAST_MOST_DIMS == Shape::kMaxDims);

/// Reads the fields of an object in a manifest, whose errors say where they are.
class Fields : public JsonFields {
 public:
  Fields(const json& object, std::string where)
      : JsonFields(object, std::move(where), "publish again with a matching client") {}
};

/// The name of shared memory, which is that of the exporter itself: another one's is not reached from here.
std::string memory_of(const Fields& fields, const char* name, const Manifest& manifest,
                      std::string_view what) {
  std::string text = fields.text(name);
  if (text != name_of_memory(manifest.uid, manifest.generation, what)) {
    fields.refuse(name, "names no shared memory of this exporter");
  }
  return text;
}

std::uint64_t generation_of(const Fields& fields) {
  const std::string text = fields.text("generation");
  std::uint64_t generation = 0;
  constexpr int kHex = 16;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), generation, kHex);
  if (error != std::errc() || end != text.data() + text.size() || text.size() != 16) {
    fields.refuse("generation", "is no number of 16 hexadecimal digits");
  }
  return generation;
}

/// Whether it is like `GPU-9832eea0-ced8-8bb0-9a41-9e53e9d09023`.
bool names_gpu(std::string_view text) {
  constexpr std::string_view kForm = "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  const auto fits = [](char c, char form) {
    return form == 'x' ? std::string_view("0123456789abcdef").find(c) != std::string_view::npos : c == form;
  };
  return std::equal(text.begin(), text.end(), kForm.begin(), kForm.end(), fits);
}

std::vector<LivePiece> pieces_of(const Fields& fields, std::int64_t bytes) {
  std::vector<LivePiece> pieces;
  std::int64_t end = 0;
  bool fits = true;
  for (const json& object : fields.list("pieces")) {
    const Fields piece(object, fmt::format("{}: piece {}", fields.where(), pieces.size()));
    const std::int64_t file = piece.number("fd");
    if (file > std::numeric_limits<int>::max()) piece.refuse("fd", "is no file descriptor");
    pieces.push_back({static_cast<int>(file), piece.number("bytes", 1)});
    fits = fits && !__builtin_add_overflow(end, pieces.back().bytes, &end);
  }
  if (!fits || end != bytes) fields.refuse("pieces", "do not add up to 'bytes'");
  return pieces;
}

/// The next one of that exporter.
LiveSegment segment_of(const Fields& fields, const Manifest& manifest) {
  LiveSegment segment;
  segment.bytes = fields.number("bytes", 1);
  const std::string kind = fields.text("kind");
  if (kind == "shm" || kind == "window") {
    // Counted as they are made, so that no two are one memory.
    const auto before = std::count_if(manifest.segments.begin(), manifest.segments.end(),
                                      [](const LiveSegment& other) { return other.on_host(); });
    segment.name = memory_of(fields, "name", manifest, std::to_string(before));
    if (kind == "shm") return segment;
    if (manifest.role != Role::kEngine || manifest.window())
      fields.refuse("kind", "is a window: an engine has one at most, a trainer none");
    segment.kind = SegmentKind::kWindow;
    segment.limit = fields.number("limit", 1);
    segment.list = memory_of(fields, "list", manifest, "list");
    return segment;
  }
  if (kind != "cuda_ipc" && kind != "cuda_fd")
    fields.refuse("kind", "is not known here: 'shm', 'window', 'cuda_ipc' and 'cuda_fd' are");
  const std::string device = fields.text("device");
  if (!names_gpu(device)) fields.refuse("device", "is no GPU's UUID");
  segment.device = device;
  if (kind == "cuda_fd") {
    segment.kind = SegmentKind::kCudaFd;
    segment.pieces = pieces_of(fields, segment.bytes);
    return segment;
  }
  segment.kind = SegmentKind::kCudaIpc;
  const std::string hex = fields.text("handle");
  constexpr int kHex = 16;
  bool good = hex.size() == 2 * segment.handle.size();
  for (std::size_t i = 0; good && i < segment.handle.size(); ++i) {
    std::uint8_t byte = 0;
    const char* at = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, byte, kHex);
    good = error == std::errc() && end == at + 2;
    segment.handle[i] = std::byte{byte};
  }
  if (!good) fields.refuse("handle", "is not 128 hexadecimal digits");
  return segment;
}

/// All that is on a GPU is on one.
void require_one_device(const Manifest& manifest) {
  const std::string device = manifest.device();
  for (const LiveSegment& segment : manifest.segments) {
    if (segment.on_host() || segment.device == device) continue;
    throw InputError(
        fmt::format("{}: has memory on {} and on {}; publish one GPU's from a process of its own",
                    manifest.path, device, segment.device));
  }
}

/// The box that an entry of that shape is, of a trainer's manifest.
LiveBox box_of(const json& object, const Shape& shape, const Fields& entry) {
  const Fields fields(object, entry.where() + ": 'box'");
  LiveBox box;
  const std::vector<std::int64_t> whole = fields.numbers("shape");
  box.start = fields.numbers("offset");
  if (whole.size() != shape.dims() || box.start.size() != shape.dims() ||
      weightcast_is_box(static_cast<int>(shape.dims()), shape.extents().data(), whole.data(),
                        box.start.data()) == 0) {
    entry.refuse("box", "goes beyond the whole tensor");
  }
  box.whole = Shape(std::span<const std::int64_t>(whole));
  return box;
}

LiveEntry entry_of(const json& object, const std::vector<LiveSegment>& segments, const std::string& path,
                   std::size_t number) {
  const Fields unnamed(object, fmt::format("{}: entry {}", path, number));
  LiveEntry entry;
  entry.name = unnamed.text("name");
  const Fields fields(object, fmt::format("{}: tensor {}", path, entry.name));
  if (const json* aliases = fields.find("aliases", false); aliases != nullptr) {
    for (const json& alias : fields.list("aliases")) {
      if (!alias.is_string()) fields.refuse("aliases", "holds what is no text");
      entry.aliases.push_back(alias.get<std::string>());
    }
  }
  const auto dtype = dtype_from_safetensors(fields.text("dtype"));
  if (!dtype) fields.refuse("dtype", "is not known");
  entry.dtype = *dtype;
  const std::vector<std::int64_t> shape = fields.numbers("shape");
  entry.strides = fields.numbers("strides");
  if (shape.size() > Shape::kMaxDims) fields.refuse("shape", "has too many dimensions");
  if (shape.size() != entry.strides.size()) fields.refuse("strides", "has another length than the shape");
  entry.segment = static_cast<std::uint32_t>(fields.number("segment"));
  if (static_cast<std::size_t>(fields.number("segment")) >= segments.size()) {
    fields.refuse("segment", "does not exist");
  }
  entry.offset = fields.number("offset");
  const std::int64_t end =
      weightcast_end_of_entry(static_cast<int>(shape.size()), shape.data(), entry.strides.data(),
                              entry.offset, dtype_bytes(entry.dtype));
  if (end < 0 || end > segments[entry.segment].bytes) {
    fields.refuse("offset", "or the shape goes beyond its segment");
  }
  entry.shape = Shape(std::span<const std::int64_t>(shape));
  if (segments[entry.segment].kind == SegmentKind::kWindow && !entry.contiguous())
    fields.refuse("strides", "leave gaps in a window");
  if (const json* box = fields.find("box", false); box != nullptr)
    entry.box = box_of(*box, entry.shape, fields);
  return entry;
}

/// The byte behind an entry's last in its segment.
std::int64_t end_of(const LiveEntry& entry) {
  return weightcast_end_of_entry(static_cast<int>(entry.shape.dims()), entry.shape.extents().data(),
                                 entry.strides.data(), entry.offset, dtype_bytes(entry.dtype));
}

void require_no_overlap(const Manifest& manifest) {
  std::vector<const LiveEntry*> entries;
  for (const LiveEntry& entry : manifest.entries) {
    if (entry.shape.elements() > 0) entries.push_back(&entry);
  }
  std::sort(entries.begin(), entries.end(), [](const LiveEntry* a, const LiveEntry* b) {
    return std::pair(a->segment, a->offset) < std::pair(b->segment, b->offset);
  });
  for (std::size_t i = 1; i < entries.size(); ++i) {
    const LiveEntry& before = *entries[i - 1];
    const LiveEntry& entry = *entries[i];
    if (before.segment != entry.segment || end_of(before) <= entry.offset) continue;
    throw InputError(
        fmt::format("{}: tensors {} and {} overlap; publish one with the other's name as an alias, or in "
                    "memory of its own",
                    manifest.path, before.name, entry.name));
  }
}

}  // namespace

const char* role_name(Role role) {
  return role == Role::kTrainer ? "trainer" : "engine";
}

std::string Manifest::device() const {
  const auto on_gpu = std::find_if(segments.begin(), segments.end(),
                                   [](const LiveSegment& segment) { return !segment.on_host(); });
  return on_gpu == segments.end() ? "" : on_gpu->device;
}

std::optional<std::uint32_t> Manifest::window() const {
  const auto found = std::ranges::find(segments, SegmentKind::kWindow, &LiveSegment::kind);
  if (found == segments.end()) return std::nullopt;
  return static_cast<std::uint32_t>(found - segments.begin());
}

bool LiveEntry::contiguous() const {
  if (shape.elements() == 0) return true;
  std::int64_t stride = 1;
  for (std::size_t i = strides.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != stride) return false;
    stride *= shape[i];
  }
  return true;
}

std::string name_of_memory(std::int64_t uid, std::uint64_t generation, std::string_view what) {
  char name[128];
  client::name_of_memory(name, sizeof name, uid, generation, std::string(what).c_str());
  return name;
}

std::string manifest_path(const std::string& directory, Role role, std::int64_t rank) {
  return fmt::format("{}/{}-{}.json", directory, role_name(role), rank);
}

std::string versions_of(const Manifest& manifest) {
  const std::string theirs =
      manifest.client.empty() ? "a client that does not say its version" : "client " + manifest.client;
  return fmt::format("it was published by {}, and this is weightcast {}: use one version on both sides",
                     theirs, client::version());
}

Manifest read_manifest(const std::string& path) {
  constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;
  const std::string text = read_text_file(path, kMostBytes);
  constexpr std::size_t kMostValues = 20'000'000;
  const json object =
      parse_json(text, path, {.bytes = kMostBytes, .values = kMostValues, .unique_names = true});
  const Fields fields(object, path);
  Manifest manifest;
  manifest.path = path;
  manifest.client = fields.text("client", false);
  if (fields.number("weightcast") != kFormat) {
    throw InputError(fmt::format("{}: 'weightcast' is not {}, the format that this program knows; {}", path,
                                 kFormat, versions_of(manifest)));
  }
  const std::string role = fields.text("role");
  if (role != "trainer" && role != "engine") fields.refuse("role", "is neither trainer nor engine");
  manifest.role = role == "trainer" ? Role::kTrainer : Role::kEngine;
  manifest.ranks = fields.number("ranks", 1);
  manifest.rank = fields.number("rank");
  if (manifest.rank >= manifest.ranks) fields.refuse("rank", "is not below 'ranks'");
  manifest.host = fields.text("host");
  manifest.boot_id = fields.text("boot_id");
  manifest.shm_device = Fields(*fields.find("namespaces", true), path + ": 'namespaces'").number("shm");
  manifest.pid = fields.number("pid");
  manifest.uid = fields.number("uid");
  manifest.generation = generation_of(fields);
  manifest.folder = fields.text("folder", false);
  manifest.job = fields.text("job", false);
  manifest.restart = fields.text("restart", false);
  manifest.layout = fields.text("layout", false);
  manifest.control = memory_of(fields, "control", manifest, "control");
  if (fields.find("experts", false) != nullptr) {
    if (manifest.role != Role::kEngine)
      fields.refuse("experts", "is of a trainer, which has no expert slots");
    manifest.expert_table = memory_of(fields, "experts", manifest, "experts");
    const std::vector<std::int64_t> sizes = fields.numbers("expert_slots");
    const bool possible = sizes.size() == 3 && sizes[0] >= 1 && sizes[2] >= 1 && sizes[1] >= sizes[2] &&
                          sizes[1] <= WEIGHTCAST_MOST_SLOTS && sizes[0] <= WEIGHTCAST_MOST_SLOTS / sizes[1];
    if (!possible) fields.refuse("expert_slots", "are not the layers, slots and experts of an engine");
    std::copy(sizes.begin(), sizes.end(), manifest.expert_slots.begin());
  }
  for (const json& segment : fields.list("segments")) {
    const Fields of(segment, fmt::format("{}: segment {}", path, manifest.segments.size()));
    manifest.segments.push_back(segment_of(of, manifest));
  }
  for (const json& entry : fields.list("entries")) {
    manifest.entries.push_back(entry_of(entry, manifest.segments, path, manifest.entries.size()));
    if (!manifest.entries.back().box || manifest.role == Role::kTrainer) continue;
    throw InputError(
        fmt::format("{}: tensor {}: an engine has no box of a tensor; publish what it computes with", path,
                    manifest.entries.back().name));
  }
  require_one_device(manifest);
  require_no_overlap(manifest);
  return manifest;
}

Reach reach_of(const Manifest& manifest) {
  if (manifest.host != this_host()) return Reach::kOtherHost;
  if (manifest.boot_id != this_boot()) return Reach::kOtherBoot;
  if (manifest.uid != static_cast<std::int64_t>(::getuid())) return Reach::kOtherUser;
  struct stat shm = {};
  const bool same =
      ::stat("/dev/shm", &shm) == 0 && static_cast<std::int64_t>(shm.st_dev) == manifest.shm_device;
  if (!same) return Reach::kOtherShm;
  struct stat folder = {};
  const std::string beside = manifest.path.substr(0, manifest.path.rfind('/') + 1) + ".";
  if (manifest.folder.empty() || ::stat(beside.c_str(), &folder) != 0) return Reach::kHere;
  return std::to_string(folder.st_ino) == manifest.folder ? Reach::kHere : Reach::kCopy;
}

void require_reachable(const Manifest& manifest) {
  switch (reach_of(manifest)) {
    case Reach::kHere:
      return;
    case Reach::kOtherHost:
      throw IoError(fmt::format("{}: is of host {}, and this process runs on {}; start it there",
                                manifest.path, manifest.host, this_host()));
    case Reach::kOtherBoot:
      throw IoError(manifest.path + ": its host has been started anew since; let the exporter publish again");
    case Reach::kOtherUser:
      throw IoError(fmt::format("{}: is of user {}, and this process of {}; run both as one user",
                                manifest.path, manifest.uid, ::getuid()));
    case Reach::kOtherShm:
      throw IoError(manifest.path +
                    ": its exporter has another /dev/shm, as in another container; run both in containers "
                    "that share it");
    case Reach::kCopy:
      throw IoError(manifest.path +
                    ": is a copy, and its exporter looks for commits in another folder; name that one");
  }
}

}  // namespace weightcast
