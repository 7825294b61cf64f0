#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "report/progress.hpp"

namespace weightcast {

/// Which weights, and how they are read.
struct SourceOptions {
  std::vector<std::string> sources;
  std::string model;
  std::string landing;
  std::string export_map;
  bool external_data = false;
  std::string tied_head = "refuse";
  std::vector<std::string> include;  ///< patterns of tensors' names
  std::vector<std::string> exclude;
  std::string mtp = "exclude";
  std::string target = "model";
  std::optional<std::int64_t> layers;
  std::int64_t read_threads = 0;  ///< 0: by cores
};

/// Who holds what on either side.
struct LayoutOptions {
  /// A text and what to call its option in messages.
  struct Named {
    std::string option;
    std::string text;
  };

  std::int64_t trainers = 1;
  bool colocate = false;
  std::string source_split = "catalog";
  std::optional<std::string> inference;  ///< none: as `landing` says, else tp=1
  std::string engine;                    ///< empty: as the allocation says
  std::optional<Named> alloc;
  std::optional<Named> trainer_alloc;
  std::optional<Named> inference_alloc;
  std::string trainer_order;
  std::vector<std::int64_t> stage_layers;
  std::vector<std::int64_t> inference_stage_layers;
  std::string trainer_names;
  std::string trainer_linear_attention;
  std::string moe_layout = "triton";  ///< empty with `layouts`: all of them
  std::string expert_map;
  std::string placement = "contiguous";
  std::int64_t redundant_experts = 0;
  std::string quantize;
  std::string quantize_at = "source";
  std::string activation_scales = "1,1";
};

/// How an update runs.
struct UpdateOptions {
  std::string fan_out = "needed";
  std::int64_t bucket_size = 0;
  std::int64_t buffers = 0;
  std::string transport = "auto";
  std::string direct = "never";
  std::string sink = "none";
  std::int64_t weight_version = 0;
  bool has_weight_version = false;
  bool no_verify = false;
  bool allow_older = false;
  bool on_offer = false;
  bool release_staging = false;
  bool no_queue = false;
  std::int64_t wait = 0;  ///< seconds, for exporters that have not published
  bool dry_run = false;
  std::int64_t timeout = 0;
};

/// What is said of it, and where.
struct ReportOptions {
  ProgressMode progress = ProgressMode::kAuto;
  bool quiet = false;
  std::string json;
  std::string trace;
  std::string picture;
  std::optional<std::int64_t> rank;
  bool segments = false;
  bool all = false;
  std::optional<double> link_gbps;  ///< of a rank's link, each way
  bool no_digests = false;
};

/// What `bench` measures.
struct BenchOptions {
  bool layouts = false;
  std::int64_t iterations = 0;
  std::int64_t blocks = 0;
  double min_achieved = 0;
};

/// Which experts `balance` puts where.
struct BalanceOptions {
  std::string load;
  std::string previous;
  std::optional<std::int64_t> max_moves;
  std::optional<std::int64_t> slots;
  std::optional<std::int64_t> ranks;
  std::int64_t groups = 1;
  std::int64_t nodes = 1;
};

/// From which expert map to which `rebalance` moves experts.
struct RebalanceOptions {
  std::string from_map;
  std::string to_map;
};

/// What `convert`, `synth`, `hosts` and `balance` write.
struct OutputOptions {
  std::string output;
  std::string to;
  std::optional<std::string> format;
  std::int64_t max_file_size = 0;
  bool has_max_file_size = false;
  bool clean = false;
};

/// What the user asked for: command line over environment (`WEIGHTCAST_BUCKET_SIZE`) over `--config FILE`.
struct Options : SourceOptions,
                 LayoutOptions,
                 UpdateOptions,
                 ReportOptions,
                 BenchOptions,
                 BalanceOptions,
                 RebalanceOptions,
                 OutputOptions {
  std::string command;
  std::vector<std::string> arguments;  ///< positional ones behind the command
  /// What the ranks of a job must have been given alike: values by option, the command under no name.
  std::map<std::string, std::string> alike;
};

/// Reads command line, environment and configuration file. Returns nothing when `--help` or `--version` has
/// been answered on stdout (by the process that `speaks`). Throws UsageError naming the option and what to
/// write instead. `notes` receives lines for the log.
std::optional<Options> parse_options(int argc, const char* const* argv, bool speaks,
                                     std::vector<std::string>& notes);

}  // namespace weightcast
