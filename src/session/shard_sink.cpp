#include "session/shard_sink.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "session/signals.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

Attributes shard_attributes(const Topology& topology, std::int64_t inference_rank, std::int64_t version) {
  const EngineLayout& engine = topology.engine;
  const EngineRank place = engine_rank(engine, inference_rank);
  Attributes attributes{{"kind", std::string("shard")}, {"weight_version", version},
                        {"rank", inference_rank},       {"replica", place.replica},
                        {"replicas", engine.replicas},  {"pp_rank", place.pp},
                        {"pp_size", engine.pp},         {"tp_rank", place.tp},
                        {"tp_size", engine.tp},         {"ep_rank", place.tp / engine.expert_tp()},
                        {"ep_size", engine.ep},         {"moe_layout", engine.moe_layout}};
  if (engine.quantizer) {
    attributes.emplace("quantizer", quantizer_name(*engine.quantizer));
    attributes.emplace("activation_scales", to_string(engine.activations));
  }
  return attributes;
}

/// Removes the shards of an earlier, larger layout, which would make a mixture of the folder.
void remove_shards_from(std::int64_t first, const std::string& directory) {
  std::vector<std::filesystem::path> shards;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (const std::filesystem::directory_iterator end; entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::int64_t rank = -1;
    std::from_chars(name.data() + std::min(name.size(), std::string_view("rank-").size()),
                    name.data() + name.size(), rank);
    if (rank >= first && name == fmt::format("rank-{}.h5", rank)) shards.push_back(entry->path());
  }
  for (const auto& shard : shards) std::filesystem::remove(shard, error);
}

}  // namespace

ShardSink::ShardSink(Control& control, const Session& session, Team& writers, std::string directory)
    : control_(control), session_(session), writers_(writers), directory_(std::move(directory)) {}

void ShardSink::write(std::int64_t version) {
  constexpr std::string_view kPlaceholder = "{version}";
  std::string directory = directory_;
  if (const std::size_t at = directory.find(kPlaceholder); at != std::string::npos) {
    directory.replace(at, kPlaceholder.size(), std::to_string(version));
  }
  const auto rank = session_.plan().topology.inference_rank(control_.rank());
  std::unique_ptr<TensorFileWriter> writer;
  const auto stop_if_asked = [] {
    if (const int signal = hard_stop_signal(); signal != 0) {
      throw StoppedError(
          fmt::format("stopped by {} before the shard files were renamed; the previous version is untouched",
                      signal_name(signal)));
    }
  };
  // A signal ends what follows by agreement, so that no partial file stays behind and a rank that has voted
  // renames, whatever comes.
  const Control::DeferSignals defer(control_);
  // No file before all defer: a rank that a signal still finds in an earlier wait ends the job.
  control_.together(stop_if_asked);
  control_.together([&] {
    if (!rank) return;
    const std::vector<Parameter>& parameters = session_.share().parameters;
    std::vector<DatasetSpec> datasets;
    datasets.reserve(parameters.size());
    for (const Parameter& parameter : parameters) {
      datasets.push_back({parameter.name, parameter.dtype, parameter.shape});
    }
    writer = create_hdf5(fmt::format("{}/rank-{}.h5", directory, *rank),
                         shard_attributes(session_.plan().topology, *rank, version), datasets);
    std::vector<std::pair<std::size_t, std::int64_t>> pieces;  // parameter and offset
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      for (std::int64_t at = 0; at < parameters[p].bytes(); at += Session::kPieceBytes)
        pieces.emplace_back(p, at);
    }
    writers_.run(pieces.size(), [&](std::size_t i) {
      stop_if_asked();
      const auto [p, offset] = pieces[i];
      session_.read_piece(p, offset, [&, p = p, offset = offset](std::span<const std::byte> bytes) {
        writer->write(p, offset, bytes);
      });
    });
    writer->flush();
    stop_if_asked();
  });
  // All have written; one that does not vote keeps all from renaming. A deadline of its own, because the time
  // that the update has left must not run out between two renames.
  control_.begin_phase("renaming the shards of version", version);
  control_.together(stop_if_asked);
  control_.together([&] {
    if (writer) writer->commit();
    if (rank && *rank == 0) remove_shards_from(session_.plan().topology.engine.ranks(), directory);
  });
}

}  // namespace weightcast
