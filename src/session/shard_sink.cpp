#include "session/shard_sink.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "report/log.hpp"
#include "session/signals.hpp"
#include "storage/file_kind.hpp"
#include "storage/hidden_names.hpp"
#include "storage/output_lock.hpp"
#include "storage/shard_name.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

Attributes shard_attributes(const Topology& topology, std::int64_t inference_rank, std::int64_t version,
                            const std::string& update) {
  const EngineLayout& engine = topology.engine;
  const EngineRank place = engine_rank(engine, inference_rank);
  Attributes attributes{{"kind", std::string(kShardKind)},
                        {"weight_version", version},
                        {"update", update},
                        {"rank", inference_rank},
                        {"replica", place.replica},
                        {"replicas", engine.replicas},
                        {"pp_rank", place.pp},
                        {"pp_size", engine.pp},
                        {"tp_rank", place.tp},
                        {"tp_size", engine.tp},
                        {"ep_rank", place.ep},
                        {"ep_size", engine.ep},
                        {"expert_epoch", engine.experts.epoch},
                        {"expert_placement", engine.experts.fingerprint()},
                        {"moe_layout", engine.moe_layout}};
  if (!engine.stage_layers.empty()) {
    attributes.emplace("stage_layers", fmt::format("{}", fmt::join(engine.stage_layers, ",")));
  }
  if (engine.quantizer) {
    attributes.emplace("quantizer", quantizer_name(*engine.quantizer));
    attributes.emplace("activation_scales", to_string(engine.activations));
  }
  return attributes;
}

void require_no_hard_stop(const std::string& where) {
  const int signal = hard_stop_signal();
  if (signal != 0) throw StoppedError(fmt::format("stopped by {} {}", signal_name(signal), where));
}

/// Removes the shards of an earlier, larger layout, which would make a mixture of the folder.
void remove_shards_from(std::int64_t first, const std::string& directory) {
  std::vector<std::filesystem::path> found;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (rank_of_shard(entry->path().filename().string()).value_or(-1) >= first)
      found.push_back(entry->path());
  }
  for (const auto& path : found) {
    if (!is_file_of_kind(path, kShardKind)) {
      log_note(
          fmt::format("{} stays: it has a shard's name but is none that this program wrote", path.string()));
      continue;
    }
    if (std::filesystem::remove(path, error) || !error) continue;
    throw IoError(
        fmt::format("cannot remove {}, of an earlier layout: {}; the new version is in place, remove it",
                    path.string(), error.message()));
  }
}

}  // namespace

std::string sink_folder(std::string directory, std::int64_t version) {
  constexpr std::string_view kPlaceholder = "{version}";
  const std::string number = std::to_string(version);
  std::size_t at = 0;
  while ((at = directory.find(kPlaceholder, at)) != std::string::npos) {
    directory.replace(at, kPlaceholder.size(), number);
  }
  return directory;
}

ShardSink::ShardSink(Control& control, const Session& session, Team& writers, std::string directory)
    : control_(control), session_(session), writers_(writers), directory_(std::move(directory)) {}

void ShardSink::begin(std::int64_t version, const std::string& command) {
  const std::string directory = sink_folder(directory_, version);
  const auto rank = session_.plan().topology.inference_rank(control_.rank());
  const auto [found, is_new] = places_.try_emplace(directory);
  Place& place = found->second;
  if (!is_new) return;
  control_.together([&] {
    if (rank != 0) return;
    place.claim.emplace(
        folder_lock(directory), "--sink hdf5:" + directory, command,
        LeftOvers(directory, [](std::string_view name) { return rank_of_shard(name).has_value(); }));
  });
  std::array<std::int64_t, 2> claimed{};  // whether there is a lock, and how many folders were made for it
  if (place.claim) claimed = {place.claim->held() ? 1 : 0, place.claim->made_folders()};
  control_.maximum(std::span<std::int64_t>(claimed));
  control_.together([&] {
    if (!rank || rank == 0) return;
    place.folder.emplace(directory, static_cast<int>(claimed[1]));
    if (claimed[0] == 0) return;
    // The folder may be another one on every node: each rank clears its own file's, the first one all
    // others'.
    place.left_overs.emplace(fmt::format("{}/{}", directory, shard_name(*rank)));
  });
  clear(place);
}

void ShardSink::clear(const Place& place) {
  std::set<std::string> unfinished;
  control_.together([&] {
    if (place.claim) unfinished = place.claim->unfinished();
    if (place.left_overs) unfinished = place.left_overs->unfinished();
  });
  // On some nodes a replacement may have come to its end that broke off on others.
  const std::vector<std::string> found = control_.gather(fmt::format("{}", fmt::join(unfinished, " ")));
  std::istringstream all(control_.broadcast(fmt::format("{}", fmt::join(found, " "))));
  unfinished.insert(std::istream_iterator<std::string>(all), {});
  control_.together([&] {
    if (place.claim) place.claim->clear(unfinished);
  });
  control_.together([&] {
    if (place.left_overs) place.left_overs->clear_unfinished(unfinished);
  });
}

void ShardSink::write(std::int64_t version) {
  const std::string directory = sink_folder(directory_, version);
  const auto rank = session_.plan().topology.inference_rank(control_.rank());
  // Of all ranks' files, which tells them from those of every other update.
  const std::string update = control_.broadcast(fresh_id());
  std::unique_ptr<TensorFileWriter> writer;
  const auto stop_if_asked = [] {
    require_no_hard_stop("before the shard files were renamed; the previous version is untouched");
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
    writer =
        create_hdf5(fmt::format("{}/{}", directory, shard_name(*rank)),
                    shard_attributes(session_.plan().topology, *rank, version, update), datasets, update);
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
    const Place& place = places_.at(directory);
    if (place.claim) {
      place.claim->replaced();
      remove_shards_from(session_.plan().topology.engine.ranks(), directory);
    }
    if (place.left_overs) place.left_overs->clear_old();
    require_no_hard_stop("after the shard files were renamed; " + in_place);
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
  // Whoever was stopped here until after the deadline must not agree: the others have ended the job and taken
  // back what they had placed. Once all have agreed nobody asks for the time any more.
  control_.poll();
  if (!any_rank(problem || lost)) return;
  attempt(&TensorFileWriter::take_back);
  const bool intact = !any_rank(lost.has_value());
  control_.together([&] {
    if (lost) throw NotPutBack(*lost);
    if (problem && intact) throw IoError(std::string(problem->what()) + "; the previous version is intact");
  });
}

}  // namespace weightcast
