#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/checkpoint_origin.hpp"
#include "launch/files/output_file.hpp"
#include "launch/files/overlap.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/job/shard_place.hpp"
#include "launch/model.hpp"
#include "launch/plan_command.hpp"
#include "memory/available.hpp"
#include "plan/plan.hpp"
#include "report/log.hpp"
#include "report/trace.hpp"
#include "session/gpu.hpp"
#include "sink/shard_sink.hpp"
#include "storage/file_kind.hpp"
#include "storage/output_lock.hpp"
#include "storage/partial_file.hpp"
#include "storage/rank_file.hpp"
#include "storage/tentative_folder.hpp"

namespace weightcast {

namespace {

/// Bytes of all engines' parameters.
std::int64_t parameter_bytes(const Family& family, const EngineLayout& layout) {
  std::int64_t bytes = 0;
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    for (const Parameter& parameter : family.parameters(layout, engine_rank(layout, rank))) {
      bytes += parameter.bytes();
    }
  }
  return bytes;
}

/// Throws what a job would throw before it writes into its folders. Returns what is found, as a line.
std::string look_at_sink(const Options& options, const ShardPlace& sink, const Model& model,
                         const EngineLayout& layout, std::int64_t bytes) {
  std::set<std::string> folders;
  const std::int64_t first = version_of(options, model.sources.front().checkpoint);
  for (std::size_t i = 0; i < model.sources.size(); ++i) {
    folders.insert(sink.folder(first + static_cast<std::int64_t>(i)));
  }
  require_folders_apart(sink, folders);
  const SinkFolders sinks(sink, folders);
  for (const BoundCheckpoint& source : model.sources) sinks.require_no_shard_of(source.checkpoint);
  for (const std::string& folder : folders) {
    try {
      require_folder(folder);
    } catch (const IoError& error) {
      throw IoError(fmt::format("{}: {}", sink.option(folder), error.what()));
    }
    OutputLock::look(folder_lock(folder), sink.option(folder));
    for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
      for (const FileFormat format : {FileFormat::kHdf5, FileFormat::kSafetensors}) {
        const std::string path = folder + "/" + rank_file_name(kShardStem, {rank, format});
        require_free_or_own(path, kShardKind);
        require_no_later_map(path, layout.experts);
      }
    }
  }
  // Old shards stay until the new ones are there, one update after the other.
  require_space(*folders.begin() + "/" + rank_file_name(kShardStem, {0, sink.format}),
                bytes * static_cast<std::int64_t>(folders.size()));
  return fmt::format("# sink: {} of {} in {}\n", counted(layout.ranks(), "shard"), format_bytes(bytes),
                     printable(sink.directory));
}

/// The same of all that is in files, and what memory it takes.
std::string look_at_files(const Options& options, const Model& model, const EngineLayout& layout) {
  const std::int64_t bytes = parameter_bytes(*model.family, layout);
  ThreadPool readers(1);
  for (const BoundCheckpoint& source : model.sources)
    require_equal_copies(options, *model.family, source, readers, {}, [] {});
  std::string lines;
  if (const auto sink = shard_place(options.sink)) {
    lines += look_at_sink(options, *sink, model, layout, bytes);
  }
  // What one node has is no limit for a job on several.
  lines += fmt::format("# memory: all parameters are {}; this node has {} available\n", format_bytes(bytes),
                       format_bytes(available_node_bytes()));
  return lines;
}

/// Throws UsageError where every rank of a job here would be without the GPU that NCCL needs.
void require_gpu(const Options& options) {
  if (options.transport != "nccl") return;
  const bool built = !gpu_versions().empty();
  if (built && !visible_gpus().gpus.empty()) return;
  throw UsageError(
      fmt::format("--transport nccl: {}; {}, or use --transport mpi",
                  built ? "this process sees no GPU" : "this program was built without CUDA and NCCL",
                  built ? "start the dry run where the job will run" : "build it with them"));
}

}  // namespace

void run_dry_sync(const Options& options, OutputFile* json) {
  if (options.sources.empty()) throw UsageError("--source PATH is needed, once for each update");
  require_gpu(options);
  if (!options.trace.empty()) {
    if (json != nullptr) require_other_file("trace", options.trace, "json", options.json);
    OutputFile::look("trace", options.trace, trace_json({}, {}));
  }
  const bool live = live_directory(options.sources.front()).has_value();
  std::string found;
  std::int64_t ranks = 0;
  report_plan(options, json, [&](const Model& model, const Topology& topology) {
    ranks = topology.ranks();
    if (!live) found = look_at_files(options, model, topology.engine);
  });
  print_report("#\n" + found);
  print_line(fmt::format("# dry run: {} as the job needs them; start it in {}",
                         live ? "trainers and layouts are" : "sources and sink are", counted(ranks, "rank")));
}

}  // namespace weightcast
