#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/shard_set.hpp"
#include "launch/job/file_threads.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/job/run_job.hpp"
#include "launch/job/shard_place.hpp"
#include "launch/layouts.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "launch/version.hpp"
#include "live/expert_table.hpp"
#include "live/folder.hpp"
#include "live/live_update.hpp"
#include "measure/gpu_gauges.hpp"
#include "measure/measured.hpp"
#include "measure/plain_ways.hpp"
#include "memory/host_buffer.hpp"
#include "model/fitted_placement.hpp"
#include "model/map_fields.hpp"
#include "plan/rebalance.hpp"
#include "report/activity.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"
#include "session/rebalancing.hpp"
#include "session/wire_choice.hpp"
#include "sink/shard_sink.hpp"
#include "storage/checkpoint.hpp"
#include "storage/foreign_file.hpp"
#include "storage/reader.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What `--from` may say of engines that run: what they have published.
constexpr const char* kPublished = "published";

/// What `--from` may say in place of a file: how engines begin.
std::optional<FirstPlacement> first_placement_of(const std::string& name) {
  if (name == "contiguous" || name == "trivial") return FirstPlacement::kContiguous;
  if (name == "round-robin") return FirstPlacement::kRoundRobin;
  return std::nullopt;
}

/// Throws UsageError unless the shards say that their experts lie as the map has them.
void require_placed_by(const ExpertMap& map, const std::string& directory, const Shard& shard) {
  const auto [epoch, placement] = placement_of(shard);
  if (placement == map.placement.fingerprint() && epoch == map.placement.epoch) return;
  throw UsageError(fmt::format(
      "--from {}: is map {} of epoch {}, but the experts of {} were placed by {} of epoch {}; name the map "
      "that "
      "they were placed by",
      map.origin, map.placement.fingerprint(), map.placement.epoch, directory, excerpt(placement), epoch));
}

/// The parameters of one shard file.
class ShardContents {
 public:
  explicit ShardContents(const Shard& shard)
      : path_(shard.path), file_(read_checkpoint(shard.path)), reader_(file_) {
    if (file_.files.front().identity != shard.identity) {
      throw IoError(
          fmt::format("{}: was replaced or written to since the rebalance began; run it again", path_));
    }
  }

  /// Throws InputError unless it holds these parameters and no others.
  void require(const std::vector<Parameter>& parameters) const {
    for (const Parameter& parameter : parameters) {
      const StoredTensor* stored = file_.find(parameter.name);
      if (stored == nullptr) {
        throw InputError(fmt::format("{}: {} is missing; is --model the model that it was written for?",
                                     path_, parameter.name));
      }
      file_.require_readable(*stored);
      if (stored->shape == parameter.shape && stored->dtype == parameter.dtype) continue;
      throw InputError(
          fmt::format("{}: {} is {} {}, but its layout and --from want {} {}; name the model and the "
                      "map that it was written for",
                      path_, parameter.name, dtype_name(stored->dtype), stored->shape.to_string(),
                      dtype_name(parameter.dtype), parameter.shape.to_string()));
    }
    if (file_.tensors.size() == parameters.size()) return;
    throw InputError(
        fmt::format("{}: holds {} parameters where the model has {}; is --model the model that it was "
                    "written for?",
                    path_, file_.tensors.size(), parameters.size()));
  }

  /// Reads all of them, several at once.
  void read(ParameterMemory& memory, const std::vector<Parameter>& parameters, ThreadPool& readers) const {
    readers.run(parameters.size(), [&](std::size_t p) {
      const Parameter& parameter = parameters[p];
      const std::int64_t row_bytes = parameter.shape.cols() * dtype_bytes(parameter.dtype);
      const std::int64_t rows = parameter.shape.rows();
      const std::int64_t step =
          std::max<std::int64_t>(1, Session::kPieceBytes / std::max<std::int64_t>(1, row_bytes));
      std::vector<std::byte> piece;
      for (std::int64_t row = 0; row < rows; row += step) {
        const std::int64_t count = std::min(step, rows - row);
        piece.resize(static_cast<std::size_t>(count * row_bytes));
        reader_.read(*file_.find(parameter.name), {row, count, 0, parameter.shape.cols()}, piece);
        memory.write(p, row * row_bytes, piece);
      }
    });
    reader_.require_unchanged();
  }

 private:
  const std::string& path_;
  Checkpoint file_;
  CheckpointReader reader_;
};

/// Moves the experts of shard files, which every rank reads whole and writes anew.
class RebalanceJob {
 public:
  RebalanceJob(Control& control, const Options& options)
      : control_(control),
        options_(options),
        progress_(options.progress, control.rank() == 0),
        activity_(options.progress, control.rank() == 0) {}

  void run() {
    run_job(
        control_, options_, [&](OutputFile* /*trace*/) { rebalance(); },
        [&](ExitCode code, const std::string& line) { return json_text(code, line); });
  }

 private:
  void rebalance() {
    control_.agreement.together([&] { require_options(); });
    read_maps();
    if (place_) {
      activity_.begin("reading what the shards say of themselves");
      claim_folder();
    }
    control_.agreement.together([&] { place_ ? read_layout() : take_layout(); });
    if (is_live()) live_.emplace(control_, options_, topology_);
    const WireChoice wire = live_ ? live_->choose_wire() : choose_wire(control_, options_.transport);
    wire_ = wire.wire;
    const Model model = load_model(control_, options_, nullptr, topology_, nullptr);
    if (live_) look_at_engines(model);
    placed_ = to_;
    control_.agreement.together([&] {
      fit_maps(model);
      if (place_) require_placed_by(from_, place_->directory, shard_);
    });
    activity_.begin("planning what moves");
    plan(*model.family);
    move(*model.family);
    report();
  }

  void require_options() {
    const auto require = [](bool given, const char* option, const char* what) {
      if (!given) throw UsageError(fmt::format("{} is needed: {}", option, what));
    };
    require(!options_.from_map.empty(), "--from MAP", "the expert map by which experts lie now, or trivial");
    require(!options_.to_map.empty(), "--to MAP", "the expert map by which they are to lie");
    require(!options_.model.empty(), "--model CONFIG_JSON", "the model whose experts these are");
    place_ = shard_place(options_.sink);
    if (is_live()) require_live_options(options_);
    if (options_.from_map == kPublished && !is_live()) {
      throw UsageError("--from published: is for --sink live:DIR, whose engines say where their experts sit");
    }
    if (place_ && place_->folder(0) != place_->directory) {
      throw UsageError(
          fmt::format("--sink {}: names a folder for each version; write that of one", options_.sink));
    }
  }

  void read_maps() {
    std::array<std::string, 2> texts;
    control_.agreement.together([&] {
      if (control_.rank() != 0) return;
      texts[1] = read_json_file(options_.to_map, kMostMapBytes);
      if (from_file()) texts[0] = read_json_file(options_.from_map, kMostMapBytes);
    });
    for (std::string& text : texts) text = control_.agreement.broadcast(text);
    control_.agreement.together([&] {
      to_ = parse_expert_map(texts[1], options_.to_map);
      from_ = from_file() ? parse_expert_map(texts[0], options_.from_map)
                          : ExpertMap{"", to_.experts, to_.slots, to_.ep, {}};
      from_.origin = options_.from_map;
      if (from_file()) require_successor(from_, to_);
    });
  }

  bool is_live() const { return live_directory(options_.sink).has_value(); }
  bool from_file() const { return options_.from_map != kPublished && !first_placement_of(options_.from_map); }

  /// Where the engines' experts sit, which is what `--from` has to say. Collective.
  void look_at_engines(const Model& model) {
    live_->open(*model.family);
    const std::optional<ExpertMap> published = live_->published_experts(topology_.engine.ep);
    control_.agreement.together([&] {
      if (!published) {
        throw InputError(
            fmt::format("{}: its engines do not say where their experts sit; let them publish that "
                        "(weightcast_add_experts)",
                        options_.sink));
      }
      if (const Exporter* engine = live_->engine(); engine != nullptr && engine->manifest().window()) {
        throw UsageError(engine->manifest().path +
                         ": its own loader makes parameters of what comes through a window; run an update");
      }
      if (from_file() && key_of(from_) != key_of(*published)) {
        throw UsageError(
            fmt::format("--from {}: is of epoch {}, but the engines of {} have another map, of epoch {}; "
                        "name that one, or "
                        "published",
                        from_.origin, from_.placement.epoch, options_.sink, published->placement.epoch));
      }
      // The engines' table has a row for each row of theirs.
      require_successor(*published, to_);
      if (options_.from_map != kPublished) return;
      from_ = *published;
      from_.origin = kPublished;
    });
    published_ = *published;
  }

  /// Fits both to the layers of the model.
  void fit_maps(const Model& model) {
    const bool drafts = model.family->sends_drafts() && model.config != nullptr;
    const ModelLayers layers = model_layers(model.family->whole_catalog(),
                                            drafts ? model.config->integer({"num_hidden_layers"}) : 0);
    if (layers.experts.empty()) throw UsageError(fmt::format("--model: {} has no experts", model.title));
    to_.placement = fit_placement(to_, layers);
    if (const auto first = first_placement_of(options_.from_map)) {
      from_.placement =
          first_placement(*first, to_.slots - to_.experts, layers, to_.ep, "--from " + options_.from_map);
      if (live_ && (published_.placement.epoch != 0 ||
                    fit_placement(published_, layers).fingerprint() != from_.placement.fingerprint())) {
        throw UsageError(
            fmt::format("--from {}: the engines of {} have another map, of epoch {}; name that one, or "
                        "published",
                        options_.from_map, options_.sink, published_.placement.epoch));
      }
    } else {
      from_.placement = fit_placement(from_, layers);
    }
  }

  /// From here on nobody else writes to the folder, and what an earlier job may have left amid its renames is
  /// made whole. It is not made where it is not.
  void claim_folder() {
    control_.agreement.together([&] {
      if (count_shards(place_->directory) == 0) static_cast<void>(read_shards(place_->directory));
    });
    files_.emplace(file_threads(control_, true));
    Topology all_write;
    all_write.colocate = true;
    sink_.emplace(control_, all_write, *files_, *place_);
    sink_->begin(0, options_.command);
  }

  void read_layout() {
    const std::vector<Shard> shards = read_shards(place_->directory);
    topology_.engine = common_layout(place_->directory, shards);
    topology_.engine.option = "--sink";
    colocate();
    version_ = shards.front().integer("weight_version");
    shard_ = shards[static_cast<std::size_t>(control_.rank())];
    if (shard_.file.format != place_->format) {
      throw UsageError(fmt::format("--sink {}: its shards are {} files; write {}:{}", options_.sink,
                                   file_format_name(shard_.file.format), file_format_name(shard_.file.format),
                                   place_->directory));
    }
  }

  /// Of what is in memory alone.
  void take_layout() {
    topology_ = topology_of(options_, nullptr);
    colocate();
  }

  void colocate() {
    topology_.colocate = true;
    topology_.trainers = topology_.engine.ranks();
    if (topology_.ranks() == control_.size()) return;
    throw UsageError(fmt::format("{} is of {}, but the launcher started {}; start {}",
                                 place_ ? "--sink " + options_.sink : topology_.engine.option,
                                 counted(topology_.ranks(), "rank"), control_.size(), topology_.ranks()));
  }

  /// The number of each rank's host.
  std::vector<std::int64_t> hosts_of_ranks() {
    const std::vector<std::string> names = control_.agreement.gather(control_.host());  // on rank 0
    std::string numbers;
    for (const std::string& name : names) {
      numbers += fmt::format("{} ", std::find(names.begin(), names.end(), name) - names.begin());
    }
    std::istringstream all(control_.agreement.broadcast(numbers));
    return {std::istream_iterator<std::int64_t>(all), {}};
  }

  void plan(const Family& family) {
    const std::vector<std::int64_t> hosts = hosts_of_ranks();
    const Limits limits{options_.bucket_size, options_.buffers};
    const auto start = Clock::now();
    control_.agreement.together(
        [&] { rebalance_ = plan_rebalance(family, topology_.engine, from_, to_, hosts, limits); });
    plan_seconds_ = seconds_since(start);
  }

  void move(const Family& family) {
    SessionOptions session;
    session.wire = wire_;
    session.activity = &activity_;
    if (live_) {
      EngineLayout layout = topology_.engine;
      layout.experts = from_.placement;
      control_.agreement.together([&] { session.parameters = live_->parameters(family, layout); });
      session.while_written = LiveUpdate::kWhileWritten;
      live_->plan_for(to_.placement);
    }
    Rebalancing there(control_, rebalance_, session);
    activity_.end();
    if (live_) return move_live(there);
    place_ ? move_shards(there) : measure(there);
  }

  /// The version that all engines serve. Throws (by agreement) IoError where one serves none, or another.
  /// Collective.
  std::int64_t served_version() {
    constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
    const Exporter* engine = live_->engine();
    const std::int64_t own = engine->current_version().value_or(kNone);
    std::array<std::int64_t, 2> seen{own, own == kNone ? kNone : -own};
    control_.agreement.maximum(std::span<std::int64_t>(seen));
    control_.agreement.together([&] {
      if (own != kNone && own == seen[0]) return;
      throw IoError(fmt::format("{}: {} serves no version, or another than the others; run an update first",
                                engine->manifest().path, engine->name()));
    });
    return seen[0];
  }

  /// The engines get slabs and map under one commit, in the states of an update to the version that they
  /// have.
  void move_live(Rebalancing& there) {
    version_ = served_version();
    LiveUpdate& update = live_->update();
    update.begin(version_, 0);
    try {
      update.move(version_);
      if (served_version() != version_) {
        control_.agreement.together([&] {
          throw IoError(options_.sink + ": its engines have been updated meanwhile; run it again");
        });
      }
      update.pause(version_, false);
      seconds_ = there.run(version_, true, progress_);
      control_.agreement.together([&] { live_->place_experts(placed_); });
    } catch (const AgreedFailure& failure) {
      update.fail(failure.what(), there.session().has_written());
      throw;
    }
    update.commit(version_);
  }

  void move_shards(Rebalancing& there) {
    const std::vector<Parameter>& parameters = there.session().rank_plan().parameters;
    topology_.engine.experts = to_.placement;
    sink_->hold(there.session(), topology_);
    const auto reading = Clock::now();
    activity_.begin("reading shards");
    control_.agreement.together([&] {
      const ShardContents contents(shard_);
      contents.require(parameters);
      contents.read(there.session().memory(), parameters, *files_);
    });
    const double read = seconds_since(reading);
    activity_.end();
    seconds_ = there.run(version_, !options_.no_verify, progress_);
    seconds_.read = read;
    const auto writing = Clock::now();
    activity_.begin("writing shards");
    sink_->write(version_);
    seconds_.write = seconds_since(writing);
    activity_.end();
  }

  /// Times the moves of any values beside the same messages alone, in turn. They are made again and again:
  /// what a slot holds does not matter to how long it takes.
  void measure(Rebalancing& there) {
    activity_.end();
    Session& session = there.session();
    control_.agreement.together([&] { fill(session); });
    const Plan& plan = session.plan();
    std::vector<std::vector<PlainMessage>> messages =
        plain_messages(plan, session.rank_plan(), rebalance_.rounds);
    const std::int64_t ring_bytes = plan.staging_bytes_per_rank();
    std::optional<HostBuffer> ring;
    std::function<double()> plain;
    if (wire_ == Wire::kNccl) {
      plain = make_plain_nccl(control_, std::move(messages), ring_bytes);
    } else {
      control_.agreement.together([&] { ring.emplace(ring_bytes, "what is sent and received plainly"); });
      plain = [&, messages = std::move(messages)] {
        return plain_mpi_seconds(control_, messages, ring->span());
      };
    }
    // The first of each touches all memory.
    plain();
    there.run(version_, !options_.no_verify, progress_);
    for (std::int64_t i = 0; i < options_.iterations; ++i) {
      control_.agreement.together([&] { require_no_soft_stop(fmt::format("after {} rebalances", i)); });
      control_.deadline.begin_phase("measuring");
      plain_.seconds.push_back(plain());
      moved_.seconds.push_back(there.run(version_, !options_.no_verify, progress_).update);
      unverified_.seconds.push_back(there.run(version_, false, progress_).update);
    }
    plain_.bytes = moved_.bytes = unverified_.bytes = rebalance_.figures.moved_bytes();
    seconds_.update = moved_.median_seconds();
  }

  /// Fills the parameters with values of which no two pieces are alike.
  static void fill(Session& session) {
    std::vector<std::uint64_t> piece(static_cast<std::size_t>(Session::kPieceBytes) / sizeof(std::uint64_t));
    std::uint64_t state = 1;
    for (std::size_t p = 0; p < session.rank_plan().parameters.size(); ++p) {
      const std::int64_t bytes = session.rank_plan().parameters[p].bytes();
      for (std::int64_t at = 0; at < bytes; at += Session::kPieceBytes) {
        for (std::uint64_t& value : piece)
          value = state = state * 6364136223846793005U + 1442695040888963407U;
        const auto count = static_cast<std::size_t>(std::min(Session::kPieceBytes, bytes - at));
        session.memory().write(p, at, std::as_bytes(std::span(piece)).first(count));
      }
    }
  }

  double rate_gb_s() const {
    return seconds_.update > 0 ? static_cast<double>(rebalance_.figures.moved_bytes()) / seconds_.update / 1e9
                               : 0;
  }

  void report() {
    if (control_.rank() != 0) return;
    const RebalanceFigures& figures = rebalance_.figures;
    report_in_place(control_, [&] {
      print_line(fmt::format(
          "epoch {} → {}: {} of {} get another expert", from_.placement.epoch, to_.placement.epoch,
          figures.changed(),
          counted(to_.layers() * to_.slots * topology_.engine.replicas * topology_.engine.expert_tp(),
                  "slot")));
      print_line(
          fmt::format("{} from the rank itself, {}", figures.local, format_bytes(figures.local_bytes)));
      print_line(
          fmt::format("{} from its host, {}", figures.same_host, format_bytes(figures.same_host_bytes)));
      print_line(
          fmt::format("{} from other hosts, {}", figures.other_host, format_bytes(figures.other_host_bytes)));
      print_line(fmt::format("{} between ranks; at least {} have to", format_bytes(figures.moved_bytes()),
                             format_bytes(figures.least_bytes)));
      print_line(fmt::format("moved in {:.4f} s over {}, {:.2f} GB/s, {}", seconds_.update, wire_name(wire_),
                             rate_gb_s(), options_.no_verify ? "not verified" : "verified"));
      if (live_) {
        return print_line(fmt::format("# {} of version {} in {}", counted(topology_.engine.ranks(), "rank"),
                                      version_, options_.sink));
      }
      if (place_) {
        return print_line(fmt::format("# {} of version {} in {}", counted(topology_.engine.ranks(), "shard"),
                                      version_, place_->directory));
      }
      Table table({"median of " + std::to_string(options_.iterations), "s", "GB/s", "÷ plain"});
      for (const Measured* one : {&plain_, &unverified_, &moved_}) {
        table.add({one->what, fmt::format("{:.4f}", one->median_seconds()),
                   fmt::format("{:.2f}", one->gb_s()),
                   fmt::format("{:.3f}", one->median_seconds() / plain_.median_seconds())});
      }
      print_report(table.text());
    });
  }

  std::string json_text(ExitCode code, const std::string& line) const {
    const RebalanceFigures& figures = rebalance_.figures;
    nlohmann::ordered_json report = {
        {"weightcast", version_line()}, {"command", options_.command}, {"status", status_name(code)}};
    if (code == ExitCode::kDone) {
      report["weight_version"] = version_;
      report["from_epoch"] = from_.placement.epoch;
      report["to_epoch"] = to_.placement.epoch;
      report["slots"] = {
          {"local", figures.local}, {"same_host", figures.same_host}, {"other_host", figures.other_host}};
      report["bytes"] = {{"local", figures.local_bytes},
                         {"same_host", figures.same_host_bytes},
                         {"other_host", figures.other_host_bytes},
                         {"moved", figures.moved_bytes()},
                         {"least", figures.least_bytes}};
      report["rounds"] = rebalance_.rounds.size();
      report["staging_bytes_per_rank"] = rebalance_.plan.staging_bytes_per_rank();
      report["seconds"] = {{"plan", plan_seconds_},
                           {"read", seconds_.read},
                           {"move", seconds_.update},
                           {"write", seconds_.write}};
      report["rate_gb_s"] = rate_gb_s();
      if (!place_ && !live_) {
        report["plain_gb_s"] = plain_.gb_s();
        report["unverified_gb_s"] = unverified_.gb_s();
      }
      report["verified"] = !options_.no_verify;
    }
    report["error"] = line.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(line);
    return json_report(report);
  }

  Control& control_;
  const Options& options_;
  Progress progress_;
  Activity activity_;
  std::optional<ShardPlace> place_;  ///< of shard files; nothing where values are in memory alone
  std::optional<ThreadPool> files_;
  std::optional<ShardSink> sink_;
  std::optional<LiveEnds> live_;
  ExpertMap from_;
  ExpertMap to_;
  ExpertMap placed_;     ///< as `to_`, with the rows of the file
  ExpertMap published_;  ///< what engines that run say
  Topology topology_;
  std::int64_t version_ = 0;
  Shard shard_;
  Rebalance rebalance_;
  Wire wire_ = Wire::kMpi;
  double plan_seconds_ = 0;
  UpdateSeconds seconds_;
  Measured plain_{"the same messages alone", {}, 0};
  Measured unverified_{"moved, not verified", {}, 0};
  Measured moved_{"moved", {}, 0};
};

}  // namespace

void run_rebalance(Control& control, const Options& options) {
  RebalanceJob(control, options).run();
}

}  // namespace weightcast
