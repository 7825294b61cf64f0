#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/bench/layout_bench.hpp"
#include "launch/commands.hpp"
#include "launch/file_threads.hpp"
#include "launch/job.hpp"
#include "launch/layouts.hpp"
#include "launch/trace_file.hpp"
#include "launch/version.hpp"
#include "measure/file_gauges.hpp"
#include "measure/gpu_parts.hpp"
#include "measure/measured.hpp"
#include "measure/mpi_wire.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "source/file_source.hpp"
#include "source/memory_source.hpp"
#include "sys/team.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

class BenchJob {
 public:
  BenchJob(Control& control, const Options& options)
      : control_(control), options_(options), progress_(options.progress, control.rank() == 0) {
    report_.versions = version_line();
    report_.command = options.command;
  }

  void run() {
    run_job(
        control_, options_, [&](OutputFile* trace) { measure(trace); },
        [&](ExitCode code, const std::string& line) { return json_text(code, line); });
  }

 private:
  void measure(OutputFile* trace_file) {
    open();
    // The first update touches all memory; it is not timed.
    update(0, !options_.no_verify, nullptr);
    open_parts();
    memory_beyond_ = memory_beyond_parameters();
    measure_together();
    if (!options_.trace.empty()) trace(trace_file);
    report();
  }

  void open() {
    const auto start = Clock::now();
    baseline_memory_ = peak_resident_bytes();
    Topology topology;
    control_.agreement.together([&] {
      if (options_.model.empty() && !from_files()) {
        throw UsageError("--model CONFIG_JSON or --source PATH is needed");
      }
      if (options_.sources.size() > 1) {
        throw UsageError("--source: bench takes one, whose weights every update sends again");
      }
      topology = topology_of(options_);
      require_world_size(topology, control_.size());
    });
    placement_ = choose_placement(control_, options_.transport);
    model_ = load_model(control_, options_, topology);
    SessionOptions session_options;
    session_options.wire = placement_.wire;
    if (!from_files()) session_options.source_bytes = &MemorySource::bytes_needed;
    session_options.blocks = static_cast<int>(options_.blocks);
    session_.emplace(control_, *model_.family, topology, limits_of(options_), session_options);
    control_.agreement.together([&] {
      if (options_.min_achieved > 0 && session_->plan().wire_bytes() == 0) {
        throw UsageError(
            "--min-achieved: no byte of this layout travels, so there is no wire to compare with");
      }
      if (options_.min_achieved > 0 && from_files() && on_gpu()) {
        throw UsageError(
            "--min-achieved: over NCCL not together with --source; the wire is measured from "
            "weights on the GPU");
      }
    });
    const double startup = seconds_since(start);
    control_.deadline.begin_phase("filling the trainers' weights");
    const auto trainer = topology.trainer(control_.rank());
    const int threads = file_threads(control_, trainer.has_value());
    readers_.emplace(trainer && options_.read_threads > 0 ? static_cast<int>(options_.read_threads)
                                                          : threads);
    control_.agreement.together([&] {
      if (trainer) source_ = make_source(*trainer);
    });
    report_ = describe_job(control_, options_, model_, *session_, placement_, startup);
    if (control_.rank() == 0) print_report(header_text(report_));
  }

  std::unique_ptr<Source> make_source(std::int64_t trainer) {
    const Plan& plan = session_->plan();
    const Catalog& catalog = model_.family->catalog();
    if (from_files()) {
      require_equal_copies(options_, model_, 0, *readers_, {trainer, plan.topology.trainers},
                           [&] { control_.deadline.poll(); });
      return std::make_unique<FileSource>(plan, catalog, model_.checkpoints.front(), model_.bindings.front(),
                                          *readers_);
    }
    if (on_gpu()) return make_resident_source(plan, catalog, trainer, options_.weight_version);
    return std::make_unique<MemorySource>(plan, catalog, trainer, options_.weight_version);
  }

  bool from_files() const { return !options_.sources.empty(); }
  bool on_gpu() const { return placement_.wire == Wire::kNccl; }

  /// A trainer's weights in host memory.
  std::span<std::byte> host_weights() const {
    const auto* source = dynamic_cast<const MemorySource*>(source_.get());
    return source == nullptr ? std::span<std::byte>() : source->memory();
  }

  /// Bytes of the buckets that this rank packs.
  std::int64_t packed_bytes() const {
    std::int64_t bytes = 0;
    for (const ShareBucket& bucket : session_->share().buckets) {
      if (bucket.root) bytes += session_->plan().buckets[bucket.bucket].bytes;
    }
    return bytes;
  }

  void open_parts() {
    control_.deadline.begin_phase("measuring");
    if (from_files()) {
      files_.emplace(control_, *session_, model_.checkpoints.front(), model_.bindings.front(), source_.get(),
                     readers_->threads(), !options_.no_verify);
    }
    if (on_gpu()) {
      gpu_.emplace(control_, *session_, source_.get());
      return;
    }
    // Plain broadcasts receive into as much memory as the pipeline's ring has, or all there is.
    const Memory& memory = *session_->memory().allocations().front();
    mpi_.emplace(control_, session_->plan().topology,
                 from_files() ? session_->pipeline().host_staging() : host_weights(), packed_bytes(),
                 std::span(memory.data(), static_cast<std::size_t>(memory.bytes())),
                 std::max(session_->plan().staging_bytes_per_rank(), std::int64_t{768} << 20));
  }

  /// One update; `timing` receives its seconds. What is checked cannot be left over from before.
  void update(std::int64_t number, bool verify, Measured* timing) {
    control_.agreement.together([&] {
      if (const int signal = soft_stop_signal(); signal != 0) {
        throw StoppedError(fmt::format("stopped by {} after {} updates", signal_name(signal), number));
      }
      if (verify) session_->poison();
    });
    UpdateRecord record;
    record.weight_version = options_.weight_version;
    record.source = from_files() ? model_.checkpoints.front().path : "memory";
    record.seconds = session_->update(source_.get(), options_.weight_version, verify, progress_);
    record.verified = verify;
    record.rate_gb_s = static_cast<double>(report_.model_bytes) / record.seconds.update / 1e9;
    if (timing != nullptr) {
      timing->seconds.push_back(record.seconds.update);
      report_.updates.push_back(record);
    }
  }

  /// Everything is measured in turn, several times, so that a noisy moment does not fall on one thing alone.
  void measure_together() {
    plain_.bytes = verified_.bytes = report_.model_bytes;
    for (std::int64_t i = 0; i < options_.iterations; ++i) {
      control_.deadline.begin_phase("measuring");
      if (gpu_) gpu_->measure();
      if (mpi_) mpi_->measure();
      if (files_) files_->measure();
      update(2 * i + 1, false, &plain_);
      if (!options_.no_verify) update(2 * i + 2, true, &verified_);
    }
  }

  /// The times above are those without a trace.
  void trace(OutputFile* output) {
    TraceFile file(control_, *session_, output);
    update(0, !options_.no_verify, nullptr);
    file.add(options_.weight_version);
    file.write(report_);
  }

  /// The most that any rank holds beyond its parameters and weights; in host memory, beyond what it held when
  /// it started, too.
  std::int64_t memory_beyond_parameters() {
    if (gpu_) return gpu_->memory_beyond_parameters();
    std::array<std::int64_t, 1> most{peak_resident_bytes() - baseline_memory_ -
                                     session_->share().parameter_bytes -
                                     static_cast<std::int64_t>(host_weights().size())};
    control_.agreement.maximum(std::span<std::int64_t>(most));
    return most[0];
  }

  /// What an update is compared with: NCCL at the same bucket size, MPI at the best size; nothing when no
  /// byte has anywhere to go.
  const Measured* limit() const {
    if (gpu_) return gpu_->wires().empty() ? nullptr : &gpu_->wires().front();
    return &fastest(mpi_->broadcasts());
  }

  void report() {
    const Measured* wire = limit();
    for (UpdateRecord& record : report_.updates) {
      if (wire != nullptr) record.limit = {wire->what, wire->gb_s(), record.rate_gb_s / wire->gb_s()};
    }
    if (control_.rank() == 0) print_tables(wire);
    if (wire == nullptr) return;
    const double achieved = busiest_gb_s() / wire->gb_s();
    control_.agreement.together([&] {
      if (achieved >= options_.min_achieved) return;
      throw InternalError(
          fmt::format("bench: in an update the busiest rank reaches {:.3f} of the wire's rate, less than "
                      "--min-achieved {}",
                      achieved, options_.min_achieved));
    });
  }

  /// What the rank that sends or receives most makes of its link: model bytes that need not travel, or that
  /// others send, are no merit.
  double busiest_gb_s() const {
    std::int64_t most = 0;
    for (const Traffic& traffic : session_->plan().traffic()) {
      most = std::max({most, traffic.sent, traffic.received});
    }
    return static_cast<double>(most) / plain_.median_seconds() / 1e9;
  }

  void print_tables(const Measured* wire) const {
    for (const UpdateRecord& record : report_.updates) {
      print_report(update_text(record, report_.model_bytes));
    }
    const auto print = [&](const std::string& compared, const Measured* with,
                           const std::vector<const Measured*>& rows) {
      Table table({"median of " + std::to_string(options_.iterations), "s", "GB/s", compared});
      for (const Measured* m : rows) {
        if (m->seconds.empty()) continue;
        table.add({m->what, fmt::format("{:.4f}", m->median_seconds()), fmt::format("{:.3f}", m->gb_s()),
                   with == nullptr ? "" : fmt::format("{:.1f} %", 100 * m->gb_s() / with->gb_s())});
      }
      print_report(fmt::format("#\n{}", table.text()));
    };
    std::vector<const Measured*> rows;
    for (const Measured& m : gpu_ ? gpu_->wires() : mpi_->broadcasts()) rows.push_back(&m);
    if (mpi_ && !mpi_->with_copies().empty()) rows.push_back(&fastest(mpi_->with_copies()));
    rows.push_back(&plain_);
    rows.push_back(&verified_);
    print("of the wire", wire, rows);
    if (gpu_) {
      rows.clear();
      for (const Measured& m : gpu_->device()) rows.push_back(&m);
      print("of the copy", rows.front()->seconds.empty() ? nullptr : rows.front(), rows);
    }
    if (files_) print_files(print);
    print_report(fmt::format("# memory beyond parameters: {} at most on a rank, {} of it staging\n",
                             format_bytes(memory_beyond_), format_bytes(report_.staging_bytes_per_rank)));
  }

  /// The parts of an update from files, and what they say about the whole.
  template <typename Print>
  void print_files(const Print& print) const {
    std::vector<const Measured*> rows = files_->rows();
    rows.push_back(&plain_);
    rows.push_back(&verified_);
    print("of pread", files_->plain_reads(), rows);
    print_report(
        fmt::format("# an update takes {:.3f} × as long as reading and sending one after the other\n",
                    plain_.median_seconds() / files_->parts_seconds()));
  }

  std::string json_text(ExitCode code, const std::string& error) const {
    auto json = nlohmann::ordered_json::parse(report_json(report_, status_name(code), error));
    json["memory_beyond_parameters"] = memory_beyond_;
    auto& list = json["measured"] = nlohmann::ordered_json::array();
    const auto add = [&](const Measured& m) {
      if (m.seconds.empty()) return;
      list.push_back({{"what", m.what}, {"bytes", m.bytes}, {"seconds", m.seconds}, {"gb_s", m.gb_s()}});
    };
    const auto add_all = [&](const std::vector<Measured>& all) {
      for (const Measured& m : all) add(m);
    };
    if (gpu_) {
      add_all(gpu_->wires());
      add_all(gpu_->device());
    }
    if (mpi_) {
      add_all(mpi_->broadcasts());
      add_all(mpi_->with_copies());
    }
    if (files_) {
      for (const Measured* m : files_->rows()) add(*m);
    }
    add(plain_);
    add(verified_);
    return json_report(json);
  }

  Control& control_;
  const Options& options_;
  Progress progress_;
  std::int64_t baseline_memory_ = 0;
  std::int64_t memory_beyond_ = 0;
  Placement placement_;
  Model model_;
  std::optional<Session> session_;
  std::optional<Team> readers_;
  std::unique_ptr<Source> source_;
  std::optional<GpuParts> gpu_;
  std::optional<MpiWire> mpi_;
  std::optional<FileGauges> files_;
  JobReport report_;
  Measured plain_{"update", {}, 0};
  Measured verified_{"update, verified", {}, 0};
};

}  // namespace

void run_bench(Control& control, const Options& options) {
  if (options.layouts) return run_layout_bench(control, options);
  BenchJob(control, options).run();
}

}  // namespace weightcast
