#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/bench/layout_bench.hpp"
#include "launch/commands.hpp"
#include "launch/job/run_job.hpp"
#include "launch/job/update_job.hpp"
#include "launch/pictures/bench_picture.hpp"
#include "measure/file_gauges.hpp"
#include "measure/gpu_parts.hpp"
#include "measure/measured.hpp"
#include "measure/mpi_wire.hpp"
#include "memory/host_buffer.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/svg.hpp"
#include "report/table.hpp"
#include "source/memory_source.hpp"

namespace weightcast {

namespace {

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

class BenchJob {
 public:
  BenchJob(Control& control, const Options& options)
      : control_(control), options_(options), job_(control, options) {}

  void run() {
    run_job(
        control_, options_, [&](OutputFile* trace) { measure(trace); },
        [&](ExitCode code, const std::string& line) { return json_text(code, line); });
  }

 private:
  void measure(OutputFile* trace) {
    open();
    // The first update touches all memory; it is not timed.
    update(0, !options_.no_verify, nullptr);
    open_parts();
    // On the host nobody can tell the memory of others that is mapped from what is taken.
    if (gpu_ || !from_trainers()) memory_beyond_ = memory_beyond_parameters();
    measure_together();
    // The times above are those without a trace.
    if (!options_.trace.empty()) {
      job_.begin_trace(trace);
      update(0, !options_.no_verify, nullptr);
      job_.write_trace();
    }
    report();
  }

  void open() {
    baseline_memory_ = peak_resident_bytes();
    control_.agreement.together([&] {
      if (options_.picture.empty() || control_.rank() != 0) return;
      require_other_file("picture", options_.picture, "json", options_.json);
      require_other_file("picture", options_.picture, "trace", options_.trace);
      picture_.emplace("picture", options_.picture, unfinished_picture("weightcast bench"));
    });
    control_.agreement.together([&] {
      if (options_.model.empty() && options_.landing.empty() && !from_files()) {
        throw UsageError("--model CONFIG_JSON, --landing FILE or --source PATH is needed");
      }
      if (options_.sink != "none" && !into_engines()) {
        throw UsageError("--sink: bench writes no files; leave it out, or write live:DIR");
      }
      if (into_engines() && !from_trainers()) {
        throw UsageError(
            "--sink live:DIR: bench gives running engines what trainers offer; add --source live:DIR");
      }
      if (options_.sources.size() > 1) {
        throw UsageError("--source: bench takes one, whose weights every update sends again");
      }
    });
    SessionOptions session;
    if (!from_files() && !from_trainers()) session.source_bytes = &MemorySource::bytes_needed;
    session.blocks = static_cast<int>(options_.blocks);
    if (options_.landing.empty() && options_.sources.empty())
      session.also = ", or --layers N for part of the model";
    job_.open(session, [] {});
    control_.agreement.together([&] {
      if (options_.min_achieved > 0 && plan().wire_bytes() == 0) {
        throw UsageError(
            "--min-achieved: no byte of this layout travels, so there is no wire to compare with");
      }
      if (options_.min_achieved > 0 && from_files() && on_gpu()) {
        throw UsageError(
            "--min-achieved: over NCCL not together with --source; the wire is measured from "
            "weights on the GPU");
      }
    });
    control_.deadline.begin_phase("filling the trainers' weights");
    control_.agreement.together([&] { source_ = make_source(); });
    job_.print_head("");
  }

  std::unique_ptr<Source> make_source() {
    if (from_files() || from_trainers()) return job_.source_of(job_.model().sources.front());
    const auto trainer = job_.trainer();
    if (!trainer) return nullptr;
    const Catalog& catalog = job_.model().family->catalog();
    if (on_gpu()) return make_resident_source(plan(), catalog, *trainer, options_.weight_version);
    return std::make_unique<MemorySource>(plan(), catalog, *trainer, options_.weight_version);
  }

  bool from_trainers() const {
    return !options_.sources.empty() && live_directory(options_.sources.front()).has_value();
  }
  bool from_files() const { return !options_.sources.empty() && !from_trainers(); }
  /// Whether what is written is the memory of running engines: it is theirs between updates.
  bool into_engines() const { return live_directory(options_.sink).has_value(); }
  bool on_gpu() const { return job_.wire_choice().wire == Wire::kNccl; }
  const Plan& plan() const { return job_.session().plan(); }

  /// A trainer's weights in host memory.
  std::span<std::byte> host_weights() const {
    const auto* source = dynamic_cast<const MemorySource*>(source_.get());
    return source == nullptr ? std::span<std::byte>() : source->memory();
  }

  /// Bytes of the buckets that this rank packs.
  std::int64_t packed_bytes() const {
    std::int64_t bytes = 0;
    for (const RankBucket& bucket : job_.session().rank_plan().buckets) {
      if (bucket.root) bytes += plan().buckets[bucket.bucket].bytes;
    }
    return bytes;
  }

  void open_parts() {
    control_.deadline.begin_phase("measuring");
    Session& session = job_.session();
    if (from_files()) {
      const auto& [checkpoint, binding] = job_.model().sources.front();
      files_.emplace(control_, session, checkpoint, binding.held, source_.get(), job_.readers().threads(),
                     !options_.no_verify);
    }
    if (on_gpu()) {
      gpu_.emplace(control_, session, source_.get(), job_.report().sent_bytes,
                   from_trainers() ? GpuParts::kWire : GpuParts::kAll);
      return;
    }
    if (from_trainers()) {
      control_.agreement.together([&] {
        host_wire_ = HostBuffer(plan().staging_bytes_per_rank(), "what travels while the wire is measured");
      });
      mpi_.emplace(control_, plan().topology, host_wire_.span(), packed_bytes(), host_wire_.span(),
                   host_wire_.bytes());
      return;
    }
    // Plain broadcasts receive into as much memory as the pipeline's ring has, or all there is.
    const Memory& memory = *session.memory().allocations().front();
    mpi_.emplace(control_, plan().topology, from_files() ? session.pipeline().host_staging() : host_weights(),
                 packed_bytes(), std::span(memory.data(), static_cast<std::size_t>(memory.bytes())),
                 std::max(plan().staging_bytes_per_rank(), std::int64_t{768} << 20));
  }

  /// One update; `timing` receives its seconds. What is checked cannot be left over from before.
  void update(std::int64_t number, bool verify, Measured* timing) {
    const auto prepare = [&] {
      control_.agreement.together([&] {
        require_no_soft_stop(fmt::format("after {} updates", number));
        if (verify && !into_engines()) job_.session().poison();
      });
      return source_.get();
    };
    bool there = false;
    const std::vector<BoundCheckpoint>& sources = job_.model().sources;
    const std::int64_t version = job_.begin_live(
        options_.weight_version, sources.empty() ? Checkpoint() : sources.front().checkpoint, there);
    control_.agreement.together([&] {
      if (there) {
        throw IoError(fmt::format(
            "bench: the engines have version {} already; let the trainers offer a new one for each update",
            version));
      }
    });
    const std::string label = options_.sources.empty() ? "memory" : options_.sources.front();
    const UpdateRecord record = job_.update_unreported({version, label, verify, prepare});
    if (timing == nullptr) return;
    timing->seconds.push_back(record.seconds.update);
    job_.report().updates.push_back(record);
  }

  /// Everything is measured in turn, several times, so that a noisy moment does not fall on one thing alone.
  void measure_together() {
    plain_.bytes = verified_.bytes = job_.report().sent_bytes;
    for (std::int64_t i = 0; i < options_.iterations; ++i) {
      control_.deadline.begin_phase("measuring");
      if (gpu_) gpu_->measure();
      if (mpi_) mpi_->measure();
      if (files_) files_->measure();
      if (!into_engines()) update(2 * i + 1, false, &plain_);
      if (!options_.no_verify) update(2 * i + 2, true, &verified_);
    }
  }

  /// The most that any rank holds beyond its parameters and weights; in host memory, beyond what it held when
  /// it started, too.
  std::int64_t memory_beyond_parameters() {
    if (gpu_) return gpu_->memory_beyond_parameters();
    std::array<std::int64_t, 1> most{peak_resident_bytes() - baseline_memory_ -
                                     job_.session().rank_plan().parameter_bytes -
                                     static_cast<std::int64_t>(host_weights().size())};
    control_.agreement.maximum(std::span<std::int64_t>(most));
    return most[0];
  }

  /// What an update is compared with: over NCCL its own transfers, or one link where something goes directly;
  /// over MPI broadcasts of the best size; nothing when no byte has anywhere to go.
  const Measured* bound() const {
    if (!gpu_) return &fastest(mpi_->broadcasts());
    if (!gpu_->transfers().seconds.empty()) return &gpu_->transfers();
    const std::optional<DirectWays>& ways = job_.report().ways;
    return ways && ways->direct_routes > 0 ? link() : nullptr;
  }
  /// One link: NCCL's broadcasts at the same bucket size, or the same.
  const Measured* link() const {
    if (gpu_) return gpu_->wires().empty() ? nullptr : &gpu_->wires().front();
    return bound();
  }

  void report() {
    const Measured* wire = bound();
    for (UpdateRecord& record : job_.report().updates) {
      if (wire != nullptr) record.bound = {wire->what, "", wire->gb_s(), record.rate_gb_s / wire->gb_s()};
    }
    if (control_.rank() == 0) print_tables(wire);
    control_.agreement.together([&] {
      if (picture_) picture_->write(bench_picture(figures(wire)));
    });
    if (link() == nullptr) return;
    const double achieved = busiest_gb_s() / link()->gb_s();
    control_.agreement.together([&] {
      if (achieved >= options_.min_achieved) return;
      throw InternalError(
          fmt::format("bench: in an update the busiest rank reaches {:.3f} of the wire's rate, less than "
                      "--min-achieved {}",
                      achieved, options_.min_achieved));
    });
  }

  /// What the rank sends or receives that sends or receives most.
  std::int64_t busiest_bytes() const {
    std::int64_t most = 0;
    for (const Traffic& traffic : plan().traffic()) {
      most = std::max({most, traffic.sent, traffic.received});
    }
    return most;
  }

  /// What that rank makes of its link: model bytes that need not travel, or that others send, are no merit.
  double busiest_gb_s() const {
    const Measured& update = plain_.seconds.empty() ? verified_ : plain_;
    return static_cast<double>(busiest_bytes()) / update.median_seconds() / 1e9;
  }

  BenchFigures figures(const Measured* wire) const {
    BenchFigures figures;
    figures.model = job_.report().model;
    figures.layout = job_.report().layout;
    for (const Measured* update : {&plain_, &verified_}) {
      if (update->seconds.empty()) continue;
      figures.updates.push_back({update->what, update->median_seconds(), update->bytes, update->gb_s()});
    }
    if (wire != nullptr && busiest_bytes() > 0) {
      figures.wire = {wire->what, wire->median_seconds(), wire->bytes, wire->gb_s()};
      const double rate = link() == nullptr ? wire->gb_s() : link()->gb_s();
      const double seconds = static_cast<double>(busiest_bytes()) / rate / 1e9;
      figures.bound = {"bound: the busiest link", seconds, busiest_bytes(), rate};
    }
    const auto add_stage = [&](const char* name, double UpdateSeconds::*stage) {
      Measured all{name, {}, 0};
      for (const UpdateRecord& record : job_.report().updates) all.seconds.push_back(record.seconds.*stage);
      if (all.seconds.empty() || all.median_seconds() <= 0) return;
      figures.stages.emplace_back(name, all.median_seconds());
    };
    add_stage("reading", &UpdateSeconds::read);
    add_stage("packing", &UpdateSeconds::pack);
    add_stage("transport", &UpdateSeconds::transport);
    add_stage("unpacking", &UpdateSeconds::unpack);
    add_stage("verifying", &UpdateSeconds::verify);
    return figures;
  }

  void print_tables(const Measured* wire) const {
    Table updates({"update", "source", "wire", "unpack", "verify", "total s", "GB/s", "of wire", "verified"});
    for (std::size_t i = 0; i < job_.report().updates.size(); ++i) {
      const UpdateRecord& record = job_.report().updates[i];
      const UpdateSeconds& s = record.seconds;
      updates.add({std::to_string(i + 1), figure_text(std::max(s.read, s.pack)), figure_text(s.transport),
                   figure_text(s.unpack), figure_text(s.verify), figure_text(s.update),
                   figure_text(record.rate_gb_s),
                   wire == nullptr ? "" : fmt::format("{:.1f} %", 100 * record.bound.achieved),
                   record.verified ? "yes" : "no"});
    }
    print_report("#\n" + updates.text());
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
    if (gpu_) rows.push_back(&gpu_->transfers());
    if (mpi_ && !mpi_->with_copies().empty()) rows.push_back(&fastest(mpi_->with_copies()));
    rows.push_back(&plain_);
    rows.push_back(&verified_);
    print("of wire", wire, rows);
    if (gpu_ && !gpu_->device().empty()) {
      rows.clear();
      for (const Measured& m : gpu_->device()) rows.push_back(&m);
      print("of copy", rows.front()->seconds.empty() ? nullptr : rows.front(), rows);
    }
    if (files_) print_files(print);
    if (!memory_beyond_) return;
    print_report(fmt::format("# memory beyond parameters: {} at most on a rank, {} of it staging\n",
                             format_bytes(*memory_beyond_),
                             format_bytes(job_.report().staging_bytes_per_rank)));
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
    auto json = nlohmann::ordered_json::parse(report_json(job_.report(), status_name(code), error));
    if (memory_beyond_) json["memory_beyond_parameters"] = *memory_beyond_;
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
      add(gpu_->transfers());
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
  std::int64_t baseline_memory_ = 0;
  std::optional<std::int64_t> memory_beyond_;
  UpdateJob job_;
  std::unique_ptr<Source> source_;
  HostBuffer host_wire_;  ///< sent and received in place of live memory
  std::optional<GpuParts> gpu_;
  std::optional<MpiWire> mpi_;
  std::optional<FileGauges> files_;
  std::optional<OutputFile> picture_;  ///< of `--picture`, on rank 0
  Measured plain_{"update", {}, 0};
  Measured verified_{"update, verified", {}, 0};
};

}  // namespace

void run_bench(Control& control, const Options& options) {
  if (options.layouts) return run_layout_bench(control, options);
  BenchJob(control, options).run();
}

}  // namespace weightcast
