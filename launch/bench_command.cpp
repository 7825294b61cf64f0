#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/job.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "session/memory_source.hpp"
#include "session/signals.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

/// One thing that is measured several times in a run.
struct Measured {
  std::string what;
  std::vector<double> seconds;
  std::int64_t bytes = 0;

  double gb_s() const { return static_cast<double>(bytes) / median(seconds) / 1e9; }
};

/// The wire alone: trainer 0's own weights, walked through in steps of one size, broadcast by plain MPI_Bcast
/// to all inference ranks into a region as large as the staging ring; optionally copied from there once, as
/// an engine that receives everything would.
class Wire {
 public:
  Wire(Control& control, const Topology& topology, std::span<std::byte> source, std::span<std::byte> target)
      : control_(control), buffer_(control.rank() == 0 ? source : target) {
    constexpr std::int64_t kMostBytes = std::int64_t{2} << 30;
    bytes_ = std::min<std::int64_t>(
        kMostBytes, control.rank() == 0 ? static_cast<std::int64_t>(buffer_.size()) : kMostBytes);
    std::array<std::int64_t, 1> least{-bytes_};
    control.maximum(std::span<std::int64_t>(least));
    bytes_ = -least[0];
    // The least that a receiver has room for bounds the steps.
    least[0] = control.rank() == 0 || buffer_.empty() ? std::numeric_limits<std::int64_t>::min()
                                                      : -static_cast<std::int64_t>(buffer_.size());
    control.maximum(std::span<std::int64_t>(least));
    most_step_ = std::min(bytes_, -least[0]);
    std::vector<int> ranks{0};
    for (int rank = 1; rank < control.size(); ++rank) {
      if (topology.inference_rank(rank)) ranks.push_back(rank);
    }
    member_ = std::find(ranks.begin(), ranks.end(), control.rank()) != ranks.end();
    constexpr int kTag = 7;
    if (member_) {
      group_ = Communicator::of_ranks(control.comm(), ranks.data(), static_cast<int>(ranks.size()), kTag);
    }
  }

  std::int64_t bytes() const { return bytes_; }
  std::int64_t most_step() const { return most_step_; }

  /// Seconds to broadcast bytes() in steps of `step`; with `copy` every step is also copied to `copies`.
  double broadcast(std::int64_t step, std::span<std::byte> copies) {
    control_.together([] {});
    const auto start = Clock::now();
    const bool copy = member_ && control_.rank() != 0 && !copies.empty();
    const auto room = static_cast<std::int64_t>(buffer_.size());
    for (std::int64_t at = 0; member_ && at < bytes_; at += step) {
      const std::int64_t count = std::min(step, bytes_ - at);
      // Receivers walk round their region.
      std::byte* data =
          buffer_.data() + (control_.rank() == 0 ? at : at % std::max<std::int64_t>(1, room - step + 1));
      WEIGHTCAST_MPI(MPI_Bcast(data, static_cast<int>(count), MPI_BYTE, 0, group_.get()));
      if (copy) std::memcpy(copies.data(), data, static_cast<std::size_t>(count));
    }
    control_.together([] {});
    std::array<double, 1> slowest{seconds_since(start)};
    control_.maximum(std::span<double>(slowest));
    return slowest[0];
  }

 private:
  Control& control_;
  std::span<std::byte> buffer_;
  std::int64_t bytes_ = 0;
  std::int64_t most_step_ = 0;
  bool member_ = false;
  Communicator group_;
};

class BenchJob {
 public:
  BenchJob(Control& control, const Options& options)
      : control_(control), options_(options), progress_(options.progress, control.rank() == 0) {}

  void run() {
    run_job(
        control_, options_, [&] { measure(); },
        [&](ExitCode code, const std::string& line) { write_json(code, line); });
  }

 private:
  void measure() {
    open();
    // The first update touches all memory; it is not timed.
    update(0, !options_.no_verify, nullptr);
    const std::int64_t memory = memory_beyond_parameters();
    measure_together();
    report(memory);
  }

  void open() {
    const auto start = Clock::now();
    baseline_memory_ = peak_resident_bytes();
    Topology topology;
    control_.together([&] {
      if (options_.model.empty()) throw UsageError("--model CONFIG_JSON is needed");
      require_transport(options_);
      topology = topology_of(options_);
      require_world_size(topology, control_.size());
    });
    model_ = load_model(control_, options_);
    session_.emplace(control_, *model_.family, topology, limits_of(options_), &MemorySource::bytes_needed);
    control_.begin_phase("filling the trainers' weights");
    control_.together([&] {
      if (const auto trainer = topology.trainer(control_.rank())) {
        source_.emplace(session_->plan(), model_.family->catalog(), *trainer, options_.weight_version);
      }
    });
    report_ = describe_job(control_, options_, model_, *session_, seconds_since(start));
    if (control_.rank() == 0) print_report(header_text(report_));
  }

  /// One update, printed as a row of the table; `timing` receives its seconds.
  void update(std::int64_t number, bool verify, Measured* timing) {
    control_.together([&] {
      if (const int signal = soft_stop_signal(); signal != 0) {
        throw StoppedError(fmt::format("stopped by {} after {} updates", signal_name(signal), number));
      }
    });
    UpdateRecord record;
    record.weight_version = options_.weight_version;
    record.source = "memory";
    record.seconds =
        session_->update(source_ ? &*source_ : nullptr, options_.weight_version, verify, progress_);
    record.verified = verify;
    record.rate_gb_s = static_cast<double>(report_.model_bytes) / record.seconds.update / 1e9;
    if (timing != nullptr) {
      timing->seconds.push_back(record.seconds.update);
      report_.updates.push_back(record);
    }
  }

  /// Everything is measured in turn, several times, so that a noisy moment does not fall on one thing alone.
  void measure_together() {
    control_.begin_phase("measuring");
    const std::span<std::byte> target =
        session_->share().parameters.empty() ? std::span<std::byte>() : whole_parameters();
    Wire wire(control_, session_->plan().topology, source_ ? source_->memory() : std::span<std::byte>(),
              ring_of(target));
    std::vector<std::int64_t> steps;
    for (const std::int64_t step : {1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20}) {
      if (step <= wire.most_step()) steps.push_back(step);
    }
    if (steps.empty()) steps.push_back(wire.most_step());
    for (const std::int64_t step : steps) {
      wires_.push_back({fmt::format("MPI_Bcast of {}", format_bytes(step)), {}, wire.bytes()});
      copied_.push_back(
          {fmt::format("MPI_Bcast of {} and one memcpy", format_bytes(step)), {}, wire.bytes()});
    }
    // Copies go to the end of the parameters, broadcasts to their beginning.
    const std::span<std::byte> copies = target.size() > 2 * static_cast<std::size_t>(steps.back())
                                            ? target.last(static_cast<std::size_t>(steps.back()))
                                            : std::span<std::byte>();
    plain_.bytes = verified_.bytes = report_.model_bytes;
    for (std::int64_t i = 0; i < options_.iterations; ++i) {
      for (std::size_t s = 0; s < steps.size(); ++s) {
        wires_[s].seconds.push_back(wire.broadcast(steps[s], {}));
        copied_[s].seconds.push_back(wire.broadcast(steps[s], copies));
      }
      update(2 * i + 1, false, &plain_);
      if (!options_.no_verify) update(2 * i + 2, true, &verified_);
    }
  }

  std::span<std::byte> whole_parameters() const {
    const std::span<std::byte> first = session_->parameter(0);
    return {first.data(), static_cast<std::size_t>(session_->share().parameter_bytes)};
  }

  /// Plain broadcasts receive into as much memory as the pipeline's ring has, or all there is.
  std::span<std::byte> ring_of(std::span<std::byte> target) const {
    const auto ring = static_cast<std::size_t>(
        std::max(session_->plan().staging_bytes_per_rank(), std::int64_t{768} << 20));
    return target.first(std::min(target.size(), ring));
  }

  /// The most that any rank holds beyond its parameters and weights and beyond what it held when it started.
  std::int64_t memory_beyond_parameters() {
    const std::int64_t source = source_ ? static_cast<std::int64_t>(source_->memory().size()) : 0;
    std::array<std::int64_t, 1> most{peak_resident_bytes() - baseline_memory_ -
                                     session_->share().parameter_bytes - source};
    control_.maximum(std::span<std::int64_t>(most));
    return most[0];
  }

  void report(std::int64_t memory) {
    const auto faster = [](const Measured& a, const Measured& b) { return a.gb_s() < b.gb_s(); };
    const Measured& best = *std::max_element(wires_.begin(), wires_.end(), faster);
    const Measured& best_copied = *std::max_element(copied_.begin(), copied_.end(), faster);
    for (UpdateRecord& record : report_.updates) {
      record.limit = {best.what, best.gb_s(), record.rate_gb_s / best.gb_s()};
    }
    memory_beyond_ = memory;
    const double achieved = plain_.gb_s() / best.gb_s();
    if (control_.rank() == 0) {
      for (const UpdateRecord& record : report_.updates)
        print_report(update_text(record, report_.model_bytes));
      Table table({"median of " + std::to_string(options_.iterations), "s", "GB/s", "of the wire"});
      const auto row = [&](const Measured& m) {
        table.add({m.what, fmt::format("{:.4f}", median(m.seconds)), fmt::format("{:.3f}", m.gb_s()),
                   fmt::format("{:.1f} %", 100 * m.gb_s() / best.gb_s())});
      };
      for (const Measured& m : wires_) row(m);
      row(best_copied);
      row(plain_);
      if (!verified_.seconds.empty()) row(verified_);
      print_report(fmt::format("#\n{}", table.text()));
      print_report(fmt::format("# memory beyond parameters: {} at most on a rank, {} of it staging\n",
                               format_bytes(memory), format_bytes(report_.staging_bytes_per_rank)));
    }
    control_.together([&] {
      if (achieved >= options_.min_achieved) return;
      throw InternalError(
          fmt::format("bench: an update reaches {:.3f} of the wire's rate, less than --min-achieved {}",
                      achieved, options_.min_achieved));
    });
  }

  void write_json(ExitCode code, const std::string& error) const {
    if (options_.json.empty()) return;
    auto json = nlohmann::ordered_json::parse(report_json(report_, status_name(code), error));
    json["memory_beyond_parameters"] = memory_beyond_;
    auto& list = json["measured"] = nlohmann::ordered_json::array();
    const auto add = [&](const Measured& m) {
      if (m.seconds.empty()) return;
      list.push_back({{"what", m.what}, {"bytes", m.bytes}, {"seconds", m.seconds}, {"gb_s", m.gb_s()}});
    };
    for (const Measured& m : wires_) add(m);
    for (const Measured& m : copied_) add(m);
    add(plain_);
    add(verified_);
    write_text(options_.json, json.dump(2) + "\n");
  }

  Control& control_;
  const Options& options_;
  Progress progress_;
  std::int64_t baseline_memory_ = 0;
  std::int64_t memory_beyond_ = 0;
  Model model_;
  std::optional<Session> session_;
  std::optional<MemorySource> source_;
  JobReport report_;
  std::vector<Measured> wires_;
  std::vector<Measured> copied_;
  Measured plain_{"update", {}, 0};
  Measured verified_{"update, verified", {}, 0};
};

}  // namespace

void run_bench(Control& control, const Options& options) {
  BenchJob(control, options).run();
}

}  // namespace weightcast
