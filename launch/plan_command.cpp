#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/job/update_job.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/live/plan_live.hpp"
#include "launch/model.hpp"
#include "plan/share.hpp"
#include "plan/steps.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

constexpr std::size_t kMostRowsOfRanks = 64;
constexpr const char* kNotPrinted = "the plan was not printed";

std::int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

/// `, nvfp4 from the source on`.
std::string quantizer_text(const Plan& plan) {
  const auto& quantizer = plan.topology.engine.quantizer;
  if (!quantizer) return ", weights as in the model";
  return fmt::format(", {} made at the {}", quantizer_name(*quantizer),
                     plan.limits.quantize_at == QuantizeAt::kSource ? "source" : "destination");
}

void print_ranks(const Plan& plan) {
  const std::vector<Traffic> traffic = plan.traffic();
  Table table({"rank", "role", "sent", "received", "buckets", "staging"});
  for (std::size_t rank = 0; rank < std::min(traffic.size(), kMostRowsOfRanks); ++rank) {
    table.add({std::to_string(rank), role_of(plan.topology, static_cast<std::int64_t>(rank)),
               std::to_string(traffic[rank].sent), std::to_string(traffic[rank].received),
               std::to_string(traffic[rank].buckets), std::to_string(plan.staging_bytes_per_rank())});
  }
  print_report(table.text());
  if (traffic.size() > kMostRowsOfRanks) {
    print_line(fmt::format("# {} more ranks; --json FILE lists all", traffic.size() - kMostRowsOfRanks));
  }
  const auto most = [&](std::int64_t Traffic::*field) {
    std::int64_t greatest = 0;
    for (const Traffic& rank : traffic) greatest = std::max(greatest, rank.*field);
    return greatest;
  };
  std::int64_t sent = 0;
  for (const Traffic& rank : traffic) sent += rank.sent;
  const std::int64_t mean = sent / plan.topology.trainers;
  if (mean > 0) {
    print_line(fmt::format("# sending: the busiest trainer has {:.3f} × the mean",
                           static_cast<double>(most(&Traffic::sent)) / static_cast<double>(mean)));
  }
  print_line(fmt::format("# lower bound: the busiest link carries {} out or {} in",
                         format_bytes(most(&Traffic::sent)), format_bytes(most(&Traffic::received))));
  const StepCounts steps = count_steps(plan);
  print_line(fmt::format(
      "# steps: {} of one bucket a link (the busiest link alone needs {}); in {} a link idles beside a busy "
      "one though it is needed later",
      steps.steps, steps.least, steps.with_idle_link));
}

/// The routes, largest first.
void print_routes(const Plan& plan) {
  struct RouteLine {
    std::uint32_t root = 0;
    std::uint32_t destinations = 0;
    std::int64_t buckets = 0;
    std::int64_t bytes = 0;
  };
  std::vector<RouteLine> lines;
  for (const Bucket& bucket : plan.buckets) {
    auto found = std::find_if(lines.begin(), lines.end(), [&](const RouteLine& line) {
      return line.root == bucket.root && line.destinations == bucket.destinations;
    });
    if (found == lines.end()) found = lines.insert(lines.end(), {bucket.root, bucket.destinations, 0, 0});
    ++found->buckets;
    found->bytes += bucket.bytes;
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const RouteLine& a, const RouteLine& b) { return a.bytes > b.bytes; });
  Table table({"route", "receivers", "buckets", "bytes"});
  constexpr std::size_t kMostRoutes = 32;
  for (std::size_t i = 0; i < std::min(lines.size(), kMostRoutes); ++i) {
    const auto receivers = plan.destination_ranks(lines[i].destinations);
    std::string names = std::to_string(receivers.front());
    constexpr std::size_t kMostNames = 8;
    for (std::size_t r = 1; r < std::min(receivers.size(), kMostNames); ++r)
      names += fmt::format(",{}", receivers[r]);
    if (receivers.size() > kMostNames) names += fmt::format(",… ({})", receivers.size());
    table.add({fmt::format("{} →", lines[i].root), names, std::to_string(lines[i].buckets),
               std::to_string(lines[i].bytes)});
  }
  print_report(table.text());
  if (lines.size() > kMostRoutes) print_line(fmt::format("# {} more routes", lines.size() - kMostRoutes));
}

void print_share(const Plan& plan, const Share& share, std::int64_t rank) {
  const Traffic traffic = plan.traffic().at(static_cast<std::size_t>(rank));
  Table table({"rank " + std::to_string(rank), role_of(plan.topology, rank)});
  table.add(
      {"parameters", fmt::format("{} in {}", format_bytes(share.parameter_bytes), share.parameters.size())});
  table.add({"sent", format_bytes(traffic.sent)});
  table.add({"received", format_bytes(traffic.received)});
  table.add({"buckets", std::to_string(traffic.buckets)});
  table.add({"moves", std::to_string(share.moves.size())});
  table.add({"staging", format_bytes(plan.staging_bytes_per_rank())});
  print_report(table.text());
}

}  // namespace

void run_plan(const Options& options, OutputFile* json) {
  require_live_options(options);
  // The plan is the same for every sink; what is none is refused.
  static_cast<void>(shard_place(options.sink));
  const std::shared_ptr<const LandingMap> landing = load_landing(options);
  Topology topology = topology_of(options, landing.get());
  Options files = options;
  std::erase_if(files.sources, [](const std::string& source) { return live_directory(source).has_value(); });
  const Model model = load_model(files, landing, topology.trainer_layout);
  LivePlan live(options, *model.family, topology);
  require_no_signal(kNotPrinted);
  if (options.rank && *options.rank >= topology.ranks()) {
    throw UsageError(fmt::format("--rank {}: there are {} ranks", *options.rank, topology.ranks()));
  }
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = make_plan(*model.family, topology, limits_of(options));
  live.require_published(plan, *model.family);
  std::optional<Share> share;
  require_no_signal(kNotPrinted);
  if (options.rank) share = make_share(plan, *model.family, *options.rank);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  require_no_signal(kNotPrinted);
  print_line(fmt::format("# model   {}, {} tensors, {}", model.title, model.family->catalog().size(),
                         format_bytes(model.family->catalog().bytes())));
  print_report(explain(topology, topology.trainer_layout ? model.config->integer({"num_hidden_layers"}) : 0));
  print_line(
      fmt::format("# plan    {} ranks, {} routes, {} buckets of at most {}, {} on the wire, hash {:016x}",
                  topology.ranks(), plan.routes(), plan.buckets.size(),
                  format_bytes(plan.limits.bucket_bytes), format_bytes(plan.wire_bytes()), plan.hash));
  print_line(fmt::format("# experts {}{}", topology.engine.experts_text(), quantizer_text(plan)));
  for (const BoundCheckpoint& source : model.sources) {
    if (source.binding.cast_tensors > 0) print_line(fmt::format("# cast    {}", source.binding.note()));
  }
  print_line(fmt::format("# built in {:.3f} s with {} of memory", seconds, format_bytes(peak_memory())));
  if (share) {
    print_share(plan, *share, *options.rank);
  } else {
    print_routes(plan);
    print_ranks(plan);
  }
  live.print(plan, model.family->catalog(), options.rank);
  if (json != nullptr) json->write(json_report(plan_json(plan, model.family->catalog(), options.segments)));
}

}  // namespace weightcast
