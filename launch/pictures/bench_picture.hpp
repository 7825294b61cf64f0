#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace weightcast {

/// What `bench` has measured, for a picture.
struct BenchFigures {
  struct Row {
    std::string what;  ///< `update, verified`
    double seconds = 0;
    std::int64_t bytes = 0;  ///< that were moved in them
    double gb_s = 0;
  };
  std::string model;
  std::string layout;
  std::vector<Row> updates;
  /// What an update is compared with, and what no update can undercut: the busiest link's bytes at the wire's
  /// rate. Nothing where no byte travels.
  std::optional<Row> wire;
  std::optional<Row> bound;
  std::vector<std::pair<std::string, double>> stages;  ///< of an update: seconds of the slowest rank
};

/// Bars of seconds as SVG.
std::string bench_picture(const BenchFigures& figures);

}  // namespace weightcast
