#include "launch/pictures/plan_picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/units.hpp"
#include "plan/steps.hpp"
#include "report/svg.hpp"

namespace weightcast {

namespace {

constexpr double kWidth = 1080;
constexpr double kMargin = 28;
constexpr double kLabels = 140;    // room for the names of rows
constexpr double kSideBars = 230;  // room for what rows send
constexpr double kGridWidth = kWidth - 2 * kMargin - kLabels - kSideBars;

/// Ranks of one side, in runs that one row or column stands for.
struct Runs {
  std::string_view what;  ///< `trainer`
  std::int64_t ranks = 0;
  std::int64_t of = 1;  ///< ranks of a run

  std::int64_t count() const { return ceil_div(ranks, of); }
  std::int64_t run_of(std::int64_t rank) const { return rank / of; }
  /// `3`, or `8–15`
  std::string number(std::int64_t run) const {
    const std::int64_t last = std::min(ranks, (run + 1) * of) - 1;
    return of == 1 ? std::to_string(run) : fmt::format("{}–{}", run * of, last);
  }
  /// `trainer 3`, `trainers 8–15`
  std::string name(std::int64_t run) const {
    return fmt::format("{}{} {}", what, of == 1 ? "" : "s", number(run));
  }
};

/// At most `most` of them: 1, 2, 4, … ranks each, so that they end where hosts do.
Runs runs_of(std::string_view what, std::int64_t ranks, std::int64_t most) {
  Runs runs{what, ranks, 1};
  while (runs.count() > most) runs.of *= 2;
  return runs;
}

/// The most rows that can be told apart in the matrix, and among the steps.
constexpr std::int64_t kMostRows = 32;
constexpr std::int64_t kMostLinks = 16;

/// What the picture shows, in numbers.
struct Flow {
  Runs trainers;
  Runs engine;                         ///< the ranks of one replica
  std::vector<std::int64_t> sent;      ///< by run: of the trainer in it that sends most
  std::vector<std::int64_t> received;  ///< by run: of the engine rank in it that receives most
  /// By trainers' run × engine's run: what an engine rank of it receives from them, in the mean.
  std::vector<std::int64_t> cells;
  std::int64_t busiest = 0;  ///< the most that any link carries

  /// Links that differ by a percent are equally busy.
  bool is_busiest(std::int64_t bytes) const { return busiest > 0 && bytes >= busiest - busiest / 100; }

  std::int64_t& cell(std::int64_t row, std::int64_t column) {
    return cells[static_cast<std::size_t>(row * engine.count() + column)];
  }
  std::int64_t cell(std::int64_t row, std::int64_t column) const {
    return cells[static_cast<std::size_t>(row * engine.count() + column)];
  }
};

Flow flow_of(const Plan& plan) {
  Flow flow{runs_of("trainer", plan.topology.trainers, kMostRows),
            runs_of("engine rank", plan.topology.engine.replica_ranks(), kMostRows),
            {},
            {},
            {},
            0};
  const auto columns = static_cast<std::size_t>(flow.engine.count());
  flow.sent.resize(static_cast<std::size_t>(flow.trainers.count()));
  flow.received.resize(columns);
  flow.cells.resize(flow.sent.size() * columns);
  std::vector<std::int64_t> into(static_cast<std::size_t>(flow.engine.ranks), 0);
  const bool alone = plan.topology.engine.replicas == 1;
  for (const Bucket& bucket : plan.buckets) {
    if (!plan.travels(bucket)) continue;
    for (const std::int64_t c : plan.destinations[bucket.destinations]) {
      // What a rank hands to itself comes through no link, unless another replica hears it, too.
      if (alone && plan.topology.inference_rank(bucket.root) == c) continue;
      into[static_cast<std::size_t>(c)] += bucket.bytes;
      flow.cell(flow.trainers.run_of(bucket.root), flow.engine.run_of(c)) += bucket.bytes;
    }
  }
  for (std::int64_t row = 0; row < flow.trainers.count(); ++row) {
    for (std::int64_t column = 0; column < flow.engine.count(); ++column) {
      const std::int64_t ranks =
          std::min(flow.engine.ranks, (column + 1) * flow.engine.of) - column * flow.engine.of;
      flow.cell(row, column) /= ranks;
    }
  }
  const std::vector<Traffic> traffic = plan.traffic();
  for (std::int64_t trainer = 0; trainer < flow.trainers.ranks; ++trainer) {
    auto& most = flow.sent[static_cast<std::size_t>(flow.trainers.run_of(trainer))];
    most = std::max(most, traffic[static_cast<std::size_t>(trainer)].sent);
  }
  for (std::int64_t c = 0; c < flow.engine.ranks; ++c) {
    auto& most = flow.received[static_cast<std::size_t>(flow.engine.run_of(c))];
    most = std::max(most, into[static_cast<std::size_t>(c)]);
  }
  for (const auto* side : {&flow.sent, &flow.received}) {
    for (const std::int64_t bytes : *side) flow.busiest = std::max(flow.busiest, bytes);
  }
  return flow;
}

double rank_plan(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

/// Names of columns or rows that would run into one another are left out, at equal distances.
std::int64_t stride_of(double room, double needed) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(needed / room)));
}

/// The matrix, with what rows send beside it and what columns receive below.
class Matrix {
 public:
  Matrix(const Flow& flow, double top) : flow_(flow), top_(top) {
    const auto rows = static_cast<double>(flow.trainers.count());
    row_ = std::clamp(420 / rows, 15.0, 40.0);
    column_ = kGridWidth / static_cast<double>(flow.engine.count());
    grid_bottom_ = top_ + kHead + rows * row_;
  }

  double bottom() const {
    const std::int64_t most = *std::ranges::max_element(flow_.received);
    return grid_bottom_ + kBelow + kColumnBar * rank_plan(most, flow_.busiest);
  }

  void draw(Svg& svg) const {
    const double left = kMargin + kLabels;
    const auto [least, most] = std::ranges::minmax(flow_.cells);
    svg.text(kMargin, top_, "Received from trainers", "head");
    svg.text(left + kGridWidth + 14, top_, "Sent", "head");
    const std::string range = format_bytes(least) == format_bytes(most)
                                  ? format_bytes(most)
                                  : fmt::format("{} to {}", format_bytes(least), format_bytes(most));
    svg.text(kMargin, top_ + 20,
             fmt::format("a field is what reaches an engine rank{}: {}",
                         flow_.engine.of == 1 ? "" : ", in the mean of a column's", range),
             "faint");
    svg.text(left + kGridWidth + 14, top_ + 20,
             flow_.trainers.of == 1 ? "once for all that hear it" : "by the busiest of a row", "faint");
    const bool numbers = column_ >= 54 && row_ >= 15;
    for (std::int64_t row = 0; row < flow_.trainers.count(); ++row) {
      const double y = top_ + kHead + static_cast<double>(row) * row_;
      svg.text(left - 8, y + row_ / 2 + 4, flow_.trainers.name(row), "faint", SvgAnchor::kEnd);
      for (std::int64_t column = 0; column < flow_.engine.count(); ++column) {
        const std::int64_t bytes = flow_.cell(row, column);
        const double x = left + static_cast<double>(column) * column_;
        const SvgRect at{x + 0.5, y + 0.5, column_ - 1, row_ - 1};
        svg.rect(at, "grid");
        const double strength = 0.06 + 0.5 * rank_plan(bytes, most);
        if (bytes > 0) {
          svg.rect(at, "bar", strength,
                   fmt::format("{} to {}: {}", flow_.trainers.name(row), flow_.engine.name(column),
                               format_bytes(bytes)));
        }
        if (numbers && bytes > 0) {
          svg.text(x + column_ / 2, y + row_ / 2 + 4, format_bytes(bytes), "field", SvgAnchor::kMiddle);
        }
      }
      draw_sent(svg, left + kGridWidth + 14, y, row);
    }
    draw_received(svg, left);
  }

 private:
  static constexpr double kHead = 34;
  static constexpr double kBelow = 72;
  static constexpr double kColumnBar = 52;

  void draw_sent(Svg& svg, double x, double y, std::int64_t row) const {
    const std::int64_t bytes = flow_.sent[static_cast<std::size_t>(row)];
    const bool marked = flow_.is_busiest(bytes);
    const double width = 130 * rank_plan(bytes, flow_.busiest);
    svg.rect({x, y + 2, width, row_ - 4}, marked ? "mark" : "soft");
    svg.text(x + width + 6, y + row_ / 2 + 4, format_bytes(bytes), marked ? "mark" : "faint");
  }

  void draw_received(Svg& svg, double left) const {
    const double label_width = flow_.engine.of == 1 ? 26 : 54;
    const std::int64_t every = stride_of(column_, label_width);
    const std::int64_t sizes_every = stride_of(column_, 72);
    const double bar = std::min(column_ - 4, 56.0);
    svg.text(left - 8, grid_bottom_ + 16, flow_.engine.of == 1 ? "engine rank" : "engine ranks", "faint",
             SvgAnchor::kEnd);
    svg.text(left - 8, grid_bottom_ + 48, flow_.engine.of == 1 ? "it receives" : "the busiest", "faint",
             SvgAnchor::kEnd);
    if (flow_.engine.of > 1) svg.text(left - 8, grid_bottom_ + 64, "receives", "faint", SvgAnchor::kEnd);
    for (std::int64_t column = 0; column < flow_.engine.count(); ++column) {
      const std::int64_t bytes = flow_.received[static_cast<std::size_t>(column)];
      const bool marked = flow_.is_busiest(bytes);
      const double x = left + static_cast<double>(column) * column_;
      const double height = kColumnBar * rank_plan(bytes, flow_.busiest);
      if (column % every == 0) {
        svg.text(x + column_ / 2, grid_bottom_ + 16, flow_.engine.number(column), "faint",
                 SvgAnchor::kMiddle);
      }
      svg.rect({x + (column_ - bar) / 2, grid_bottom_ + 24, bar, height}, marked ? "mark" : "soft", 1,
               fmt::format("{}: {}", flow_.engine.name(column), format_bytes(bytes)));
      if (column % sizes_every == 0) {
        svg.text(x + column_ / 2, grid_bottom_ + 24 + height + 14, format_bytes(bytes),
                 marked ? "small mark" : "small", SvgAnchor::kMiddle);
      }
    }
  }

  const Flow& flow_;
  double top_;
  double row_ = 0;
  double column_ = 0;
  double grid_bottom_ = 0;
};

/// Which links are busy in which step: a row a link, or a run of links.
class Steps {
 public:
  Steps(const Plan& plan, double top)
      : trainers_(runs_of("trainer", plan.topology.trainers, kMostLinks)),
        engine_(runs_of("engine rank", plan.topology.engine.replica_ranks(), kMostLinks)),
        top_(top),
        counts_(count_steps(plan)) {
    const std::vector<std::vector<std::size_t>> steps = links_by_step(plan);
    bins_ = std::min<std::int64_t>(static_cast<std::int64_t>(steps.size()), 128);
    buckets_.resize(static_cast<std::size_t>(rows()), 0);
    busy_.resize(buckets_.size() * static_cast<std::size_t>(std::max<std::int64_t>(bins_, 1)), 0);
    std::vector<std::int64_t> by_link(static_cast<std::size_t>(trainers_.ranks + engine_.ranks), 0);
    for (std::size_t step = 0; step < steps.size(); ++step) {
      const auto bin = static_cast<std::int64_t>(step) * bins_ / static_cast<std::int64_t>(steps.size());
      for (const std::size_t link : steps[step]) {
        const auto row = static_cast<std::size_t>(row_of(static_cast<std::int64_t>(link)));
        ++busy_[row * static_cast<std::size_t>(bins_) + static_cast<std::size_t>(bin)];
        buckets_[row] = std::max(buckets_[row], ++by_link[link]);
      }
    }
    steps_in_.resize(static_cast<std::size_t>(std::max<std::int64_t>(bins_, 1)), 0);
    for (std::size_t step = 0; step < steps.size(); ++step) {
      ++steps_in_[static_cast<std::size_t>(static_cast<std::int64_t>(step) * bins_ /
                                           static_cast<std::int64_t>(steps.size()))];
    }
    row_height_ = std::clamp(420 / static_cast<double>(rows()), 15.0, 22.0);
  }

  double bottom() const { return top_ + kHead + static_cast<double>(rows()) * row_height_ + kGap + 30; }

  void draw(Svg& svg) const {
    svg.text(kMargin, top_, "Steps", "head");
    svg.text(kMargin + kLabels + kGridWidth + 14, top_, "Buckets", "head");
    svg.text(kMargin + kLabels + kGridWidth + 14, top_ + 20,
             trainers_.of * engine_.of == 1 ? "of a link" : "of the busiest of a row", "faint");
    svg.text(kMargin, top_ + 20,
             fmt::format("in one step a link carries one bucket at most: {} steps, of which the busiest link "
                         "needs {}",
                         counts_.steps, counts_.least),
             "faint");
    const std::int64_t most = *std::ranges::max_element(buckets_);
    for (std::int64_t row = 0; row < rows(); ++row) draw_row(svg, row, most);
    const double left = kMargin + kLabels;
    const double end = bottom() - 14;
    if (counts_.steps > 0) svg.text(left, end, "step 1", "small");
    if (counts_.steps > 1) {
      svg.text(left + kGridWidth, end, std::to_string(counts_.steps), "small", SvgAnchor::kEnd);
    }
  }

 private:
  static constexpr double kHead = 34;
  static constexpr double kGap = 8;  // between the trainers' links and the engine's

  std::int64_t rows() const { return trainers_.count() + engine_.count(); }
  std::int64_t row_of(std::int64_t link) const {
    return link < trainers_.ranks ? trainers_.run_of(link)
                                  : trainers_.count() + engine_.run_of(link - trainers_.ranks);
  }
  std::int64_t links_in(std::int64_t row) const {
    const bool trainer = row < trainers_.count();
    const Runs& runs = trainer ? trainers_ : engine_;
    const std::int64_t run = trainer ? row : row - trainers_.count();
    return std::min(runs.ranks, (run + 1) * runs.of) - run * runs.of;
  }

  /// How much of a row is busy in a bin, in tenths.
  int tenths(std::int64_t row, std::int64_t bin) const {
    const std::int64_t busy = busy_[static_cast<std::size_t>(row * bins_ + bin)];
    const std::int64_t all = steps_in_[static_cast<std::size_t>(bin)] * links_in(row);
    return busy == 0 ? 0 : std::max(1, static_cast<int>(std::lround(10 * rank_plan(busy, all))));
  }

  void draw_row(Svg& svg, std::int64_t row, std::int64_t most) const {
    const bool trainer = row < trainers_.count();
    const double left = kMargin + kLabels;
    const double y = top_ + kHead + static_cast<double>(row) * row_height_ + (trainer ? 0 : kGap);
    const std::string name = trainer ? trainers_.name(row) : engine_.name(row - trainers_.count());
    const bool marked = most > 0 && buckets_[static_cast<std::size_t>(row)] == most;
    svg.text(left - 8, y + row_height_ / 2 + 4, name, "faint", SvgAnchor::kEnd);
    svg.rect({left, y + 1, kGridWidth, row_height_ - 2}, "grid");
    // Neighbours that are alike are one shape.
    for (std::int64_t bin = 0; bin < bins_;) {
      const int level = tenths(row, bin);
      const std::int64_t first = bin;
      while (bin < bins_ && tenths(row, bin) == level) ++bin;
      if (level == 0) continue;
      const double from = left + kGridWidth * rank_plan(first, bins_);
      const double to = left + kGridWidth * rank_plan(bin, bins_);
      svg.rect({from, y + 1, to - from, row_height_ - 2}, marked ? "mark" : "bar", 0.1 + 0.09 * level);
    }
    const std::int64_t buckets = buckets_[static_cast<std::size_t>(row)];
    svg.text(left + kGridWidth + 14, y + row_height_ / 2 + 4, std::to_string(buckets),
             marked ? "mark" : "faint");
  }

  Runs trainers_;
  Runs engine_;
  double top_;
  StepCounts counts_;
  std::int64_t bins_ = 0;
  double row_height_ = 0;
  std::vector<std::int64_t> buckets_;   ///< by row: of the link in it with most
  std::vector<std::int64_t> busy_;      ///< by row × bin: link-steps that carry something
  std::vector<std::int64_t> steps_in_;  ///< by bin
};

}  // namespace

std::string plan_picture(const Plan& plan, const std::string& model) {
  const Flow flow = flow_of(plan);
  const Topology& topology = plan.topology;
  const std::string layout = fmt::format(
      "{} trainer{} → {} replica{} of {} engine rank{} ({}, pp {})", topology.trainers,
      topology.trainers == 1 ? "" : "s", topology.engine.replicas, topology.engine.replicas == 1 ? "" : "s",
      topology.engine.replica_ranks(), topology.engine.replica_ranks() == 1 ? "" : "s",
      topology.engine.cut_text(), topology.engine.pp);
  const std::string amount =
      fmt::format("{} on the wire in {} buckets of at most {}; {}", format_bytes(plan.wire_bytes()),
                  plan.buckets.size(), format_bytes(plan.limits.bucket_bytes),
                  flow.busiest > 0 ? fmt::format("the busiest link carries {}", format_bytes(flow.busiest))
                                   : std::string("no link carries anything"));
  constexpr double kTop = 128;
  const Matrix matrix(flow, kTop);
  const Steps steps(plan, matrix.bottom() + 10);
  Svg svg(fmt::format("weightcast plan: {}", model), layout + ". " + amount + ".", kWidth, steps.bottom());
  constexpr std::size_t kMostOfTitle = 100;
  svg.text(kMargin, 36, shortened(model, kMostOfTitle), "head");
  svg.text(kMargin, 58,
           layout + (topology.engine.replicas > 1 ? "; all replicas are served alike, one is shown" : ""));
  svg.text(kMargin, 78, amount);
  matrix.draw(svg);
  steps.draw(svg);
  return svg.file();
}

}  // namespace weightcast
