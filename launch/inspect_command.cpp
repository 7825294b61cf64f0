#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "kernels/digest.hpp"
#include "launch/commands.hpp"
#include "launch/files/inspect_landing.hpp"
#include "launch/files/inspect_shards.hpp"
#include "launch/files/shard_set.hpp"
#include "launch/files/tensor_copy.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/landing.hpp"
#include "launch/live/inspect_live.hpp"
#include "launch/model.hpp"
#include "report/activity.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "storage/attributes.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

constexpr const char* kNotListed = "the list was not printed";

/// `piece` has room for kCopyBytes.
std::uint64_t digest_of(const CheckpointReader& reader, const StoredTensor& tensor,
                        std::span<std::byte> piece) {
  const std::int64_t element = dtype_bytes(tensor.dtype);
  const std::uint64_t key = hash_text(tensor.name);
  std::uint64_t digest = 0;
  for_each_box(tensor.shape, element, [&](const Box& box) {
    require_no_signal(kNotListed);
    reader.read(tensor, box, piece.first(static_cast<std::size_t>(box.area() * element)));
    digest += digest_box(piece.data(), box.cols * element, box, element, key);
  });
  return digest;
}

/// What a shard file says of itself: rank, layout, quantiser, version.
void print_attributes(const Checkpoint& checkpoint, nlohmann::ordered_json& json) {
  if (checkpoint.files.empty()) return;
  const std::string& path = checkpoint.files.front().path;
  for (const auto& [name, value] : read_attributes(path)) {
    const auto* text = std::get_if<std::string>(&value);
    // A whole config.json is no line.
    if (text != nullptr && text->find('\n') != std::string::npos) continue;
    print_line(fmt::format("# {}: {}", name,
                           text != nullptr ? *text : std::to_string(std::get<std::int64_t>(value))));
    auto& entry = json["attributes"][name];
    text != nullptr ? entry = *text : entry = std::get<std::int64_t>(value);
  }
}

}  // namespace

void run_inspect(const Options& options, OutputFile* json) {
  if (options.arguments.size() != 1) throw UsageError("inspect takes one PATH: weightcast inspect PATH");
  const std::string& path = options.arguments.front();
  if (const auto live = live_directory(path)) return inspect_live(*live, json);
  if (const auto map = find_landing(path)) return inspect_landing(*map, json);
  if (count_shards(path) > 0) return inspect_shards(path, json);
  Activity activity(options.progress, true);
  activity.begin("reading metadata");
  const Checkpoint checkpoint = read_source(options, path);
  const CheckpointReader reader(checkpoint);
  nlohmann::ordered_json report;
  report["weightcast"] = "inspect";
  report["path"] = path;
  auto& files = report["files"] = nlohmann::ordered_json::array();
  for (const CheckpointFile& file : checkpoint.files) files.push_back(file.path);
  auto& list = report["tensors"] = nlohmann::ordered_json::array();

  Table table({"tensor", "dtype", "shape", "bytes", options.no_digests ? "" : "digest"});
  std::vector<std::byte> piece(options.no_digests ? 0 : static_cast<std::size_t>(kCopyBytes));
  std::int64_t total = 0;
  std::vector<std::string> obstacles;
  if (!options.no_digests) activity.begin("reading tensors for their digests; --no-digests leaves them out");
  const StoredTensor* lost = nullptr;  // the first whose bytes are not there
  for (const StoredTensor& tensor : checkpoint.tensors) {
    if (tensor.obstacle != nullptr) {
      const Obstacle& obstacle = *tensor.obstacle;
      table.add({tensor.name, obstacle.form, "", "", options.no_digests ? "" : "not read"});
      obstacles.push_back(fmt::format("# {} {}", tensor.name, obstacle.why));
      if (lost == nullptr && obstacle.lost) lost = &tensor;
      list.push_back({{"name", tensor.name}, {"form", obstacle.form}, {"not_read", obstacle.why}});
      continue;
    }
    const std::string digest =
        options.no_digests ? "" : fmt::format("{:016x}", digest_of(reader, tensor, piece));
    table.add({tensor.name, std::string(dtype_name(tensor.dtype)), tensor.shape.to_string(),
               std::to_string(tensor.bytes()), digest});
    nlohmann::ordered_json entry = {{"name", tensor.name},
                                    {"dtype", dtype_name(tensor.dtype)},
                                    {"shape", tensor.shape.extents()},
                                    {"bytes", tensor.bytes()}};
    if (!digest.empty()) entry["digest"] = digest;
    list.push_back(std::move(entry));
    total += tensor.bytes();
  }
  activity.end();
  report["bytes"] = total;
  if (checkpoint.weight_version) report["weight_version"] = *checkpoint.weight_version;
  require_no_signal(kNotListed);

  print_line(
      fmt::format("# {}: {} tensors, {}, {}{}", path, checkpoint.tensors.size(), format_bytes(total),
                  counted(static_cast<std::int64_t>(checkpoint.files.size()), "file"),
                  checkpoint.weight_version ? fmt::format(", version {}", *checkpoint.weight_version) : ""));
  print_attributes(checkpoint, report);
  print_report(table.text());
  for (const std::string& line : obstacles) print_line(line);
  reader.require_unchanged();
  if (json != nullptr) json->write(json_report(report));
  // Digests were asked for, and there is a tensor that has none.
  if (lost != nullptr && !options.no_digests) checkpoint.require_readable(*lost);
}

}  // namespace weightcast
