#include "sink/shard_sink.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "report/log.hpp"
#include "storage/attributes.hpp"
#include "storage/file_kind.hpp"
#include "storage/hidden_names.hpp"
#include "storage/output_lock.hpp"
#include "storage/rank_file.hpp"
#include "storage/removal.hpp"
#include "storage/replacement.hpp"
#include "storage/writer.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

/// What may be amid the renames when some rank does not answer any more.
constexpr std::string_view kMaybeMixed =
    "the folder may hold shards of two versions until the next job into it, which first makes it whole";

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
                        {"engine", std::string(engine_name(engine.engine))},
                        {"moe_layout", engine.moe_layout}};
  if (engine.attention_dp > 1) {
    attributes.insert({{"attn_tp_rank", place.attention_tp},
                       {"attn_tp_size", engine.attention_tp()},
                       {"attn_dp_rank", place.attention_dp},
                       {"attn_dp_size", engine.attention_dp}});
  }
  if (!engine.stage_layers.empty()) {
    attributes.emplace("stage_layers", fmt::format("{}", fmt::join(engine.stage_layers, ",")));
  }
  if (!engine.landing.empty()) attributes.emplace("landing", engine.landing);
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

bool is_shard(const std::filesystem::path& path) {
  return is_file_of_kind(path, kShardKind);
}

std::string shard_path(const std::string& directory, const RankFile& file) {
  return fmt::format("{}/{}", directory, rank_file_name(kShardStem, file));
}

[[noreturn]] void refuse_one_folder(const ShardPlace& to, const std::string& first,
                                    const std::string& second) {
  throw UsageError(
      fmt::format("{}: {} and {} are the same folder, where a version would replace another; "
                  "remove the link, or name another place",
                  to.option(to.directory), first, second));
}

}  // namespace

std::string ShardPlace::folder(std::int64_t version) const {
  constexpr std::string_view kPlaceholder = "{version}";
  const std::string number = std::to_string(version);
  std::string folder = directory;
  std::size_t at = 0;
  while ((at = folder.find(kPlaceholder, at)) != std::string::npos) {
    folder.replace(at, kPlaceholder.size(), number);
  }
  return folder;
}

std::string ShardPlace::option(const std::string& folder) const {
  return fmt::format("--sink {}:{}", file_format_name(format), folder);
}

void require_folders_apart(const ShardPlace& to, const std::set<std::string>& folders) {
  std::map<std::string, std::string> known;  // by what is_same_folder compares; a path begins with '/'
  for (const std::string& folder : folders) {
    const FolderPlace place = place_of_folder(folder);
    for (const std::string& mark : {place.path, place.number}) {
      const auto& other = known.try_emplace(mark, folder).first->second;
      if (other != folder) refuse_one_folder(to, other, folder);
    }
  }
}

ShardSink::ShardSink(Control& control, Topology topology, ThreadPool& writers, ShardPlace to)
    : control_(control), writers_(writers), to_(std::move(to)), topology_(std::move(topology)) {}

ShardSink::ShardSink(Control& control, const Session& session, ThreadPool& writers, ShardPlace to)
    : ShardSink(control, session.plan().topology, writers, std::move(to)) {
  hold(session, session.plan().topology);
}

void ShardSink::hold(const Session& session, const Topology& topology) {
  session_ = &session;
  topology_ = topology;
}

std::vector<std::string> ShardSink::surplus_files(const std::string& directory,
                                                  std::int64_t inference_rank) const {
  const std::int64_t ranks = topology_.engine.ranks();
  std::vector<std::string> surplus;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const std::filesystem::path& path = entry->path();
    const auto file = parse_rank_file(kShardStem, path.filename().string());
    if (!file) continue;
    const bool twin = file->rank == inference_rank && file->format != to_.format;  // of the new file
    if (!twin && (inference_rank != 0 || file->rank < ranks)) continue;
    if (is_shard(path)) {
      surplus.push_back(path.string());
    } else if (twin) {
      refuse_foreign(path);
    } else {
      log_note(
          fmt::format("{} stays: it has a shard's name but is none that this program wrote", path.string()));
    }
  }
  if (error) {
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, error.message()));
  }
  return surplus;
}

void require_no_later_map(const std::string& path, const ExpertPlacement& experts) {
  std::error_code none;
  if (!std::filesystem::exists(path, none)) return;
  std::optional<std::int64_t> epoch;
  try {
    epoch = integer_in(read_attributes(path), "expert_epoch");
  } catch (const Error&) {
    return;  // one that cannot be read is replaced, as ever
  }
  if (!epoch || *epoch <= experts.epoch) return;
  throw UsageError(
      fmt::format("{}: its experts were placed by a map of epoch {}, and this update was planned for epoch "
                  "{}; name the map "
                  "that the engine has now with --expert-map, or another folder",
                  path, *epoch, experts.epoch));
}

void ShardSink::begin(std::int64_t version, const std::string& command) {
  const std::string directory = to_.folder(version);
  const auto rank = topology_.inference_rank(control_.rank());
  const auto [found, is_new] = folders_.try_emplace(directory);
  Folder& folder = found->second;
  try {
    if (is_new) claim(folder, directory, command);
  } catch (const AgreedFailure&) {
    folders_.erase(found);
    throw;
  }
  std::optional<Error> problem;
  try {
    // A reader could not tell which of two files of a rank is meant: the other one goes, if it may.
    for (const FileFormat format : {FileFormat::kHdf5, FileFormat::kSafetensors}) {
      if (!rank) continue;
      require_free_or_own(shard_path(directory, {*rank, format}), kShardKind);
      // Without a session the files there are looked at, and what is to be written is not known yet.
      if (session_ != nullptr)
        require_no_later_map(shard_path(directory, {*rank, format}), topology_.engine.experts);
    }
  } catch (const std::exception& exception) {
    problem = error_of(exception);
  }
  std::array<std::int64_t, 1> failed{problem ? 1 : 0};
  control_.agreement.maximum(std::span<std::int64_t>(failed));
  // When all have looked: a folder that was moved away meanwhile took with it what they looked at.
  control_.agreement.together([&] {
    if (folder.claim) folder.claim->require_name();
  });
  if (failed[0] == 0) return;
  control_.agreement.together([&] {
    if (problem) throw Error(*problem);
  });
}

void ShardSink::require_one_folder(const std::string& directory, const FolderPlace& where) {
  const bool writes = topology_.inference_rank(control_.rank()).has_value();
  const std::vector<std::string> all = control_.agreement.gather(
      writes ? fmt::format("{}\n{}\n{}", this_host(), where.number, where.path) : "");
  control_.agreement.together([&] {
    std::map<std::string, std::pair<std::size_t, FolderPlace>> first;  // by host
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      std::istringstream lines(all[rank]);
      std::string host;
      FolderPlace place;
      if (!std::getline(lines, host)) continue;
      std::getline(lines, place.number);
      std::getline(lines, place.path, '\0');
      const auto& [other, known] = first.try_emplace(host, rank, place).first->second;
      if (is_same_folder(place, known)) continue;
      throw UsageError(
          fmt::format("{}: is {} for rank {} and {} for rank {} of the same host; name the whole path",
                      to_.option(directory), known.path, other, place.path, rank));
    }
  });
}

void ShardSink::claim(Folder& folder, const std::string& directory, const std::string& command) {
  const auto rank = topology_.inference_rank(control_.rank());
  require_one_folder(directory, place_of_folder(directory));
  control_.agreement.together([&] {
    if (rank != 0) return;
    folder.claim.emplace(
        folder_lock(directory), to_.option(directory), command,
        LeftOvers(
            directory, [](std::string_view name) { return parse_rank_file(kShardStem, name).has_value(); },
            &is_shard));
    // What is a link to the folder of another version may not have been one when the job began.
    folder.where = place_of_folder(directory);
    for (const auto& [other, known] : folders_) {
      if (other != directory && is_same_folder(folder.where, known.where)) {
        refuse_one_folder(to_, other, directory);
      }
    }
  });
  std::array<std::int64_t, 2> claimed{};  // whether there is a lock, and how many folders were made for it
  if (folder.claim) claimed = {folder.claim->held() ? 1 : 0, folder.claim->made_folders()};
  control_.agreement.maximum(std::span<std::int64_t>(claimed));
  control_.agreement.together([&] {
    if (!rank || rank == 0) return;
    folder.made.emplace(directory, static_cast<int>(claimed[1]));
    if (claimed[0] == 0) return;
    // The folder may be another one on every node: each rank clears its own files', the first one all
    // others'.
    folder.left_overs.emplace(
        directory,
        [own = *rank](std::string_view name) {
          const auto file = parse_rank_file(kShardStem, name);
          return file && file->rank == own;
        },
        &is_shard);
  });
  clear(folder);
}

void ShardSink::clear(const Folder& folder) {
  std::set<std::string> unfinished;
  control_.agreement.together([&] {
    if (folder.claim) unfinished = folder.claim->unfinished();
    if (folder.left_overs) unfinished = folder.left_overs->unfinished();
  });
  // On some nodes a replacement may have come to its end that broke off on others.
  const std::vector<std::string> found =
      control_.agreement.gather(fmt::format("{}", fmt::join(unfinished, " ")));
  std::istringstream all(control_.agreement.broadcast(fmt::format("{}", fmt::join(found, " "))));
  unfinished.insert(std::istream_iterator<std::string>(all), {});
  // One behind the other, because they may have the same folder.
  control_.agreement.together([&] {
    if (folder.claim) folder.claim->put_back(unfinished);
  });
  control_.agreement.together([&] {
    if (folder.left_overs) folder.left_overs->put_back(unfinished);
  });
  // What says that they broke off goes when all is put back, on every node.
  control_.agreement.together([&] {
    if (folder.claim) folder.claim->remove_unfinished();
  });
  control_.agreement.together([&] {
    if (folder.left_overs) folder.left_overs->remove_unfinished();
  });
}

void ShardSink::write(std::int64_t version) {
  const std::string directory = to_.folder(version);
  const auto rank = topology_.inference_rank(control_.rank());
  // Of all ranks' files, which tells them from those of every other update.
  const std::string update = control_.agreement.broadcast(fresh_id());
  std::unique_ptr<TensorFileWriter> writer;
  const auto stop_if_asked = [] {
    require_no_hard_stop("before the shard files were renamed; the previous version is untouched");
  };
  // A signal ends what follows by agreement, so that no partial file stays behind and a rank that has voted
  // renames, whatever comes.
  const Deadline::DeferSignals defer(control_.deadline);
  // No file before all defer: a rank that a signal still finds in an earlier wait ends the job.
  control_.agreement.together(stop_if_asked);
  control_.agreement.together([&] {
    if (!rank) return;
    const std::vector<Parameter>& parameters = session_->rank_plan().parameters;
    std::vector<DatasetSpec> datasets;
    datasets.reserve(parameters.size());
    for (const Parameter& parameter : parameters) {
      datasets.push_back({parameter.name, parameter.dtype, parameter.shape});
    }
    writer = create_tensor_file(to_.format, shard_path(directory, {*rank, to_.format}),
                                shard_attributes(topology_, *rank, version, update), datasets, update);
    std::vector<std::pair<std::size_t, std::int64_t>> pieces;  // parameter and offset
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      for (std::int64_t at = 0; at < parameters[p].bytes(); at += Session::kPieceBytes)
        pieces.emplace_back(p, at);
    }
    writers_.run(pieces.size(), [&](std::size_t i) {
      stop_if_asked();
      const auto [p, offset] = pieces[i];
      session_->read_piece(p, offset, [&, p = p, offset = offset](std::span<const std::byte> bytes) {
        writer->write(p, offset, bytes);
      });
    });
    writer->flush();
    stop_if_asked();
  });
  // All have written; one that does not vote keeps all from renaming. A deadline of its own, because the time
  // that the update has left must not run out between two renames.
  control_.deadline.begin_phase("renaming the shards of version", version, kMaybeMixed);
  const Folder& folder = folders_.at(directory);
  std::vector<std::unique_ptr<Removal>> removals;
  std::vector<Replacement*> parts;
  try {
    control_.agreement.together([&] {
      stop_if_asked();
      if (folder.claim) folder.claim->require_name();
      if (rank) {
        for (const std::string& path : surplus_files(directory, *rank)) {
          removals.push_back(std::make_unique<Removal>(path, update));
          // Another one may have come since it was found.
          require_free_or_own(path, kShardKind);
        }
      }
      if (writer) parts.push_back(writer.get());
      for (const auto& removal : removals) parts.push_back(removal.get());
      prepare_together(parts);
    });
  } catch (const AgreedFailure&) {
    // All have agreed that nobody renames.
    for (Replacement* part : parts) part->give_up();
    throw;
  }
  place_everywhere(parts);
  // A rank that fails before it has heard of the agreement takes its file back, and so may the next job: no
  // old file goes before all have heard.
  for (Replacement* part : parts) part->settle();
  control_.agreement.together([] {});
  const std::string in_place = fmt::format("version {} is in place", version);
  control_.deadline.begin_phase("after the update to version", version, in_place);
  control_.agreement.together([&] {
    for (Replacement* part : parts) part->keep();
    if (folder.claim) folder.claim->replaced();
    if (folder.left_overs) folder.left_overs->clear_old();
    require_no_hard_stop("after the shard files were renamed; " + in_place);
  });
}

void ShardSink::place_everywhere(std::span<Replacement* const> parts) {
  std::optional<IoError> problem;
  std::optional<NotPutBack> lost;
  const auto attempt = [&](void (&step)(std::span<Replacement* const>)) {
    try {
      step(parts);
    } catch (const NotPutBack& error) {
      lost = error;
    } catch (const IoError& error) {
      problem = error;
    }
  };
  const auto any_rank = [&](bool here) {
    std::array<std::int64_t, 1> most{here ? 1 : 0};
    control_.agreement.maximum(std::span<std::int64_t>(most));
    return most[0] != 0;
  };
  attempt(place_together);
  // Whoever was stopped here until after the deadline must not agree: the others have ended the job and taken
  // back what they had placed.
  control_.deadline.poll();
  if (!any_rank(problem || lost)) return;
  attempt(take_back_together);
  const bool intact = !any_rank(lost.has_value());
  // What could not be put back the next job puts back, if the others leave it the word that it has to.
  if (intact) {
    for (Replacement* part : parts) part->give_up();
  }
  control_.agreement.together([&] {
    if (lost) throw NotPutBack(*lost);
    if (problem && intact) throw IoError(std::string(problem->what()) + "; the previous version is intact");
  });
}

}  // namespace weightcast
