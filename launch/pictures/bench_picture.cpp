#include "launch/pictures/bench_picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/units.hpp"
#include "report/svg.hpp"

namespace weightcast {

namespace {

constexpr double kWidth = 960;
constexpr double kMargin = 28;
constexpr double kLabels = 200;
constexpr double kNumbers = 250;  // behind the longest bar
constexpr double kBars = kWidth - 2 * kMargin - kLabels - kNumbers;
constexpr double kLeft = kMargin + kLabels;
constexpr double kRow = 34;
constexpr double kStageRow = 22;

/// The distance of marks of an axis: 1, 2 or 5 times a power of ten, four to eight of them.
double tick_of(double most) {
  const double power = std::pow(10.0, std::floor(std::log10(most / 4)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (most / (power * factor) <= 8) return power * factor;
  }
  return power * 10;
}

std::string seconds_text(double seconds) {
  return seconds >= 1     ? fmt::format("{:.2f} s", seconds)
         : seconds >= 0.1 ? fmt::format("{:.4f} s", seconds)
                          : fmt::format("{:.3f} ms", seconds * 1e3);
}

/// `0.1646 s · 371 GB/s · 56.9 GiB`
std::string numbers_of(const BenchFigures::Row& row) {
  return fmt::format("{} · {:.3g} GB/s · {}", seconds_text(row.seconds), row.gb_s, format_bytes(row.bytes));
}

constexpr std::size_t kMostOfTitle = 84;
constexpr std::size_t kMostOfLayout = 116;
constexpr std::size_t kMostOfName = 30;

}  // namespace

std::string bench_picture(const BenchFigures& figures) {
  std::vector<std::pair<BenchFigures::Row, std::string_view>> rows;
  for (const BenchFigures::Row& row : figures.updates) rows.emplace_back(row, "bar");
  if (figures.wire) rows.emplace_back(*figures.wire, "soft");
  if (figures.bound) rows.emplace_back(*figures.bound, "mark");
  double most = 1e-9;
  for (const auto& [row, look] : rows) most = std::max(most, row.seconds);
  for (const auto& [name, seconds] : figures.stages) most = std::max(most, seconds);
  const auto width = [&](double seconds) { return kBars * seconds / most; };

  constexpr double kTop = 100;
  const double stages_top = kTop + kRow * static_cast<double>(rows.size()) + 40;
  const double bottom = figures.stages.empty()
                            ? stages_top - 40
                            : stages_top + kStageRow * static_cast<double>(figures.stages.size());
  std::string description = figures.layout + ".";
  for (const auto& [row, look] : rows) {
    description += fmt::format(" {}: {}.", row.what, numbers_of(row));
  }
  Svg svg(fmt::format("weightcast bench: {}", figures.model), description, kWidth, bottom + 48);
  svg.text(kMargin, 36, shortened(figures.model, kMostOfTitle), "head");
  svg.text(kMargin, 58, shortened(figures.layout, kMostOfLayout), "faint");
  svg.text(kMargin, 78, "medians, in seconds: the shorter the better", "faint");

  const double tick = tick_of(most);
  for (int i = 0; i * tick <= most * 1.0001; ++i) {
    const double x = kLeft + width(i * tick);
    svg.line(x, kTop - 6, x, bottom);
    svg.text(x, bottom + 18,
             most < 1 ? fmt::format("{:g} ms", i * tick * 1e3) : fmt::format("{:g} s", i * tick), "small",
             SvgAnchor::kMiddle);
  }
  if (figures.bound) {
    const double x = kLeft + width(figures.bound->seconds);
    svg.line(x, kTop - 6, x, bottom, "mark");
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto& [row, look] = rows[i];
    const double y = kTop + kRow * static_cast<double>(i);
    svg.text(kLeft - 10, y + kRow / 2 + 4, shortened(row.what, kMostOfName), look == "mark" ? "mark" : "ink",
             SvgAnchor::kEnd);
    svg.rect({kLeft, y + 5, width(row.seconds), kRow - 10}, look);
    svg.text(kLeft + width(row.seconds) + 8, y + kRow / 2 + 4, numbers_of(row),
             look == "mark" ? "mark halo" : "ink halo");
  }
  if (!figures.stages.empty()) {
    svg.text(kMargin, stages_top - 12, "Stages of an update, which overlap", "faint");
  }
  for (std::size_t i = 0; i < figures.stages.size(); ++i) {
    const auto& [name, seconds] = figures.stages[i];
    const double y = stages_top + kStageRow * static_cast<double>(i);
    svg.text(kLeft - 10, y + kStageRow / 2 + 4, name, "faint", SvgAnchor::kEnd);
    svg.rect({kLeft, y + 4, width(seconds), kStageRow - 8}, "soft", 0.75);
    svg.text(kLeft + width(seconds) + 8, y + kStageRow / 2 + 4, seconds_text(seconds), "faint halo");
  }
  return svg.file();
}

}  // namespace weightcast
