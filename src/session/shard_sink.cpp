#include "session/shard_sink.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <set>
#include <string_view>

#include "core/error.hpp"
#include "report/log.hpp"
#include "session/signals.hpp"
#include "storage/hidden_names.hpp"
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

std::string shard_name(std::int64_t rank) {
  return fmt::format("rank-{}.h5", rank);
}

void require_no_signal(const std::string& where) {
  const int signal = hard_stop_signal();
  if (signal != 0) throw StoppedError(fmt::format("stopped by {} {}", signal_name(signal), where));
}

/// The rank of `rank-3.h5`; nothing for another name.
std::optional<std::int64_t> rank_of(std::string_view name) {
  constexpr std::string_view kStem = "rank-";
  std::int64_t rank = -1;
  if (name.starts_with(kStem)) std::from_chars(name.data() + kStem.size(), name.data() + name.size(), rank);
  return rank >= 0 && name == shard_name(rank) ? std::optional(rank) : std::nullopt;
}

/// Removes the shards of an earlier, larger layout, which would make a mixture of the folder.
void remove_shards_from(std::int64_t first, const std::string& directory) {
  std::vector<std::filesystem::path> shards;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (rank_of(entry->path().filename().string()).value_or(-1) >= first) shards.push_back(entry->path());
  }
  for (const auto& shard : shards) {
    if (std::filesystem::remove(shard, error) || !error) continue;
    throw IoError(
        fmt::format("cannot remove {}, of an earlier layout: {}; the new version is in place, remove it",
                    shard.string(), error.message()));
  }
}

}  // namespace

ShardSink::ShardSink(Control& control, const Session& session, Team& writers, std::string directory)
    : control_(control), session_(session), writers_(writers), directory_(std::move(directory)) {}

void ShardSink::lock(std::span<const std::int64_t> versions, const std::string& command) {
  const auto rank = session_.plan().topology.inference_rank(control_.rank());
  std::set<std::string> directories;
  for (const std::int64_t version : versions) directories.insert(directory_of_version(version));
  control_.together([&] {
    if (rank != 0) return;
    for (const std::string& directory : directories) {
      const auto& lock = locks_.emplace_back(
          std::make_unique<OutputLock>(folder_lock(directory), "--sink hdf5:" + directory, command));
      if (!lock->note().empty()) log_note(lock->note());
    }
  });
  // The folder may be another one on every node: each rank clears its own file's, the first one all others'.
  control_.together([&] {
    if (!rank) return;
    for (const std::string& directory : directories) {
      remove_left_overs(directory, [&](std::string_view name) {
        const auto left = rank_of(name);
        return left == rank || (left && rank == 0);
      });
    }
  });
}

std::string ShardSink::directory_of_version(std::int64_t version) const {
  constexpr std::string_view kPlaceholder = "{version}";
  std::string directory = directory_;
  if (const std::size_t at = directory.find(kPlaceholder); at != std::string::npos) {
    directory.replace(at, kPlaceholder.size(), std::to_string(version));
  }
  return directory;
}

void ShardSink::write(std::int64_t version) {
  const std::string directory = directory_of_version(version);
  const auto rank = session_.plan().topology.inference_rank(control_.rank());
  std::unique_ptr<TensorFileWriter> writer;
  const auto stop_if_asked = [] {
    require_no_signal("before the shard files were renamed; the previous version is untouched");
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
    writer = create_hdf5(fmt::format("{}/{}", directory, shard_name(*rank)),
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
  control_.together([&] {
    stop_if_asked();
    if (writer) writer->check();
  });
  place_everywhere(writer.get());
  const std::string in_place = fmt::format("version {} is in place", version);
  control_.begin_phase("after the update to version", version, in_place);
  control_.together([&] {
    if (writer) writer->keep();
    if (rank && *rank == 0) remove_shards_from(session_.plan().topology.engine.ranks(), directory);
    require_no_signal("after the shard files were renamed; " + in_place);
  });
}

void ShardSink::place_everywhere(TensorFileWriter* writer) {
  std::optional<IoError> problem;
  std::optional<NotPutBack> lost;
  const auto attempt = [&](void (TensorFileWriter::*step)()) {
    try {
      if (writer != nullptr) (writer->*step)();
    } catch (const NotPutBack& error) {
      lost = error;
    } catch (const IoError& error) {
      problem = error;
    }
  };
  const auto any_rank = [&](bool here) {
    std::array<std::int64_t, 1> most{here ? 1 : 0};
    control_.maximum(std::span<std::int64_t>(most));
    return most[0] != 0;
  };
  attempt(&TensorFileWriter::place);
  if (!any_rank(problem || lost)) return;
  attempt(&TensorFileWriter::take_back);
  const bool intact = !any_rank(lost.has_value());
  control_.together([&] {
    if (lost) throw NotPutBack(*lost);
    if (problem && intact) throw IoError(std::string(problem->what()) + "; the previous version is intact");
  });
}

}  // namespace weightcast
