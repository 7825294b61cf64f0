#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "report/direct_ways.hpp"

namespace weightcast {

/// One line of the rank map.
struct RankInfo {
  int rank = 0;
  std::string role;
  std::string host;
  std::string device;
};

/// Seconds of the parts of an update; each is the slowest rank's.
struct UpdateSeconds {
  double read = 0;  ///< trainers that read files
  double pack = 0;  ///< trainers that hold their weights in memory
  double transport = 0;
  double unpack = 0;
  double verify = 0;
  double write = 0;   ///< the sink; not part of `update`
  double update = 0;  ///< from begin to verified, in parameter memory
};

/// What keeps an update from being faster, with which it is compared.
struct BoundRecord {
  std::string what;
  std::string stage;  ///< the column of the update table that it is; empty for what was measured apart
  double gb_s = 0;
  double achieved = 0;  ///< rate ÷ that of the bound
};

struct UpdateRecord {
  std::int64_t weight_version = 0;
  std::string source;
  UpdateSeconds seconds;
  double rate_gb_s = 0;  ///< bytes that are sent of the model ÷ seconds.update
  BoundRecord bound;
  bool verified = false;
  bool partial = false;  ///< it brought a part of the model
};

/// What an update sends of a model, and what stays as engines have it.
struct PartialRecord {
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;
  std::int64_t staying_tensors = 0;
  std::int64_t staying_bytes = 0;
  std::string text;  ///< the same for people
};

/// Tensors of the source that are none of the model's.
struct LeftOutRecord {
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;
  std::string text;  ///< with names, for people
};

/// Everything a job reports; the text and the JSON are two faces of it.
struct JobReport {
  std::string command;
  std::string versions;  ///< of the program and its libraries
  std::string model;     ///< architecture and origin
  std::string layout;
  std::string limits;  ///< fan-out, wire, buckets
  std::vector<RankInfo> ranks;
  std::int64_t tensors = 0;
  std::int64_t model_bytes = 0;
  std::int64_t sent_bytes = 0;  ///< of the model's, by each update
  std::optional<PartialRecord> partial;
  std::optional<LeftOutRecord> left_out;
  std::int64_t wire_bytes = 0;
  std::int64_t buckets = 0;
  std::int64_t routes = 0;
  std::int64_t staging_bytes_per_rank = 0;
  std::optional<DirectWays> ways;  ///< where routes were to go directly if they can
  std::int64_t direct_bytes = 0;   ///< of all engines' parameters that are written: where they are used
  std::int64_t loader_bytes = 0;   ///< handed to the engines' own loaders through a window
  std::string plan_hash;
  std::int64_t expert_epoch = 0;  ///< of the map by which experts were placed, and what it is called
  std::string expert_placement = "contiguous";
  double startup_seconds = 0;
  double plan_seconds = 0;
  std::vector<std::pair<std::string, double>> start_parts;  ///< seconds by name
  std::vector<UpdateRecord> updates;
};

/// `#` lines of at most 80 characters, where no name is longer: versions, model, layout, plan and the rank
/// map.
std::string header_text(const JobReport& report);

/// The head of the update table, and one row of it: version, seconds of the stages, GB/s, the slowest stage,
/// whether the weights were compared; `partial` where a part of the model was sent, and compared.
std::string update_columns();
std::string update_text(const UpdateRecord& update);

/// `0.0123`, `41.34`: seconds or GB/s in at most six characters, below 100,000.
std::string figure_text(double figure);

/// The JSON report. `status` is `done` or the kind of error, `error` its line (empty: none). The top-level
/// figures are those of the last update; `updates` has them all.
std::string report_json(const JobReport& report, const std::string& status, const std::string& error);

}  // namespace weightcast
