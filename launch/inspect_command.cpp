#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "kernels/digest.hpp"
#include "launch/commands.hpp"
#include "launch/tensor_copy.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

std::uint64_t digest_of(const CheckpointReader& reader, const StoredTensor& tensor) {
  std::vector<std::byte> piece(static_cast<std::size_t>(kCopyBytes));
  const std::int64_t element = dtype_bytes(tensor.dtype);
  const std::uint64_t key = hash_text(tensor.name);
  std::uint64_t digest = 0;
  for_each_box(tensor.shape, element, [&](const Box& box) {
    reader.read(tensor, box, std::span(piece).first(static_cast<std::size_t>(box.area() * element)));
    digest += digest_box(piece.data(), box.cols * element, box, element, key);
  });
  return digest;
}

/// What a shard file says of itself: rank, layout, quantiser, version.
void print_attributes(const Checkpoint& checkpoint, nlohmann::ordered_json& json) {
  if (checkpoint.files.size() != 1 || !checkpoint.files.front().ends_with(".h5")) return;
  for (const auto& [name, value] : read_attributes(checkpoint.files.front())) {
    const auto* text = std::get_if<std::string>(&value);
    // A whole config.json is no line.
    if (text != nullptr && text->find('\n') != std::string::npos) continue;
    print_report(fmt::format("# {}: {}\n", name,
                             text != nullptr ? *text : std::to_string(std::get<std::int64_t>(value))));
    auto& entry = json["attributes"][name];
    text != nullptr ? entry = *text : entry = std::get<std::int64_t>(value);
  }
}

}  // namespace

void run_inspect(const Options& options, OutputFile* json) {
  if (options.arguments.size() != 1) throw UsageError("inspect takes one PATH: weightcast inspect PATH");
  const std::string& path = options.arguments.front();
  const Checkpoint checkpoint = read_checkpoint(path);
  const CheckpointReader reader(checkpoint);
  nlohmann::ordered_json report;
  report["weightcast"] = "inspect";
  report["path"] = path;
  report["files"] = checkpoint.files;
  auto& list = report["tensors"] = nlohmann::ordered_json::array();

  Table table({"tensor", "dtype", "shape", "bytes", options.no_digests ? "" : "digest"});
  std::int64_t total = 0;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const std::string digest = options.no_digests ? "" : fmt::format("{:016x}", digest_of(reader, tensor));
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
  report["bytes"] = total;
  if (checkpoint.weight_version) report["weight_version"] = *checkpoint.weight_version;

  print_report(
      fmt::format("# {}: {} tensors, {}, {} files{}\n", path, checkpoint.tensors.size(), format_bytes(total),
                  checkpoint.files.size(),
                  checkpoint.weight_version ? fmt::format(", version {}", *checkpoint.weight_version) : ""));
  print_attributes(checkpoint, report);
  print_report(table.text());
  if (json != nullptr) json->write(report.dump(2) + "\n");
}

}  // namespace weightcast
