#include "launch/plan_command.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/expert_slots.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/job/shard_place.hpp"
#include "launch/landing.hpp"
#include "launch/layout_text.hpp"
#include "launch/layouts.hpp"
#include "launch/live/plan_live.hpp"
#include "launch/model.hpp"
#include "launch/pictures/plan_picture.hpp"
#include "launch/plan/plan_text.hpp"
#include "launch/tensor_choice.hpp"
#include "plan/rank_plan.hpp"
#include "report/activity.hpp"
#include "report/json_report.hpp"
#include "report/lines.hpp"
#include "report/log.hpp"
#include "report/svg.hpp"

namespace weightcast {

namespace {

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

std::int64_t layers_of(const Catalog& catalog) {
  std::int64_t layers = 0;
  for (const Tensor& tensor : catalog.tensors()) layers = std::max(layers, tensor.layer + 1);
  return layers;
}

/// The plan and what it was made for, in words: model, layouts, limits.
std::string details(const Plan& plan, const Model& model, double seconds) {
  const Topology& topology = plan.topology;
  const Catalog& catalog = model.family->whole_catalog();
  std::string text = fmt::format("# model      {} tensors, {}: {}\n", catalog.size(),
                                 format_bytes(catalog.bytes()), printable(model.title));
  if (const Choice* const choice = model.family->choice(); choice != nullptr) {
    text += wrapped(fmt::format("# partial    {}\n", choice_text(*choice)), kLineWidth, "#            ");
  }
  text += wrapped(explain(topology, topology.trainer_layout ? layers_of(catalog) : 0), kLineWidth,
                  "#            ");
  text += fmt::format("# experts    {}{}\n", topology.engine.experts_text(), quantizer_text(plan));
  if (const std::string slots = slots_text(topology.engine); !slots.empty()) {
    text += fmt::format("#            {}\n", slots);
  }
  text += fmt::format("# buckets    {} of at most {}; a rank has room for {}, {} of staging\n",
                      plan.buckets.size(), format_bytes(plan.slot_bytes), plan.limits.buffers,
                      format_bytes(plan.staging_bytes_per_rank()));
  for (const BoundCheckpoint& source : model.sources) {
    if (!source.binding.left_out.empty()) {
      text += wrapped(
          fmt::format("# unsent     of the source {}\n", printable(left_out_text(source.binding.left_out))),
          kLineWidth, "#            ");
    }
    if (source.binding.cast_tensors > 0) {
      text += fmt::format("# cast       {}\n", printable(source.binding.note()));
    }
  }
  text += fmt::format("# plan       {}, {}, hash {:016x}\n", counted(topology.ranks(), "rank"),
                      counted(plan.routes(), "route"), plan.hash);
  text += fmt::format("# made       in {:.3f} s with {} of memory\n", seconds, format_bytes(peak_memory()));
  return text;
}

}  // namespace

void report_plan(const Options& options, OutputFile* json,
                 const std::function<void(const Model&, const Topology&)>& look) {
  require_live_options(options);
  std::optional<OutputFile> picture;
  if (!options.picture.empty()) {
    if (json != nullptr) require_other_file("picture", options.picture, "json", options.json);
    picture.emplace("picture", options.picture, unfinished_picture("weightcast plan"));
  }
  // The plan is the same for every sink; what is none is refused.
  static_cast<void>(shard_place(options.sink));
  Activity activity(options.progress, true);
  activity.begin("reading metadata of the source");
  const std::shared_ptr<const LandingMap> landing = load_landing(options);
  const std::optional<ExpertMap> expert_map = load_expert_map(options);
  Topology topology = topology_of(options, landing.get());
  Options files = options;
  std::erase_if(files.sources, [](const std::string& source) { return live_directory(source).has_value(); });
  const Model model = load_model(files, landing, topology.trainer_layout);
  place_experts(options, expert_map, model, topology.engine);
  look(model, topology);
  LivePlan live(options, *model.family, topology);
  if (const auto published = live.published_experts(topology.engine.ep)) {
    place_experts(options, published, model, topology.engine);
  }
  if (model.sources.empty()) live.require_patterns_fit(model);
  require_no_signal(kNotPrinted);
  if (options.rank && *options.rank >= topology.ranks()) {
    throw UsageError(fmt::format("--rank {}: there are {} ranks", *options.rank, topology.ranks()));
  }
  const auto start = std::chrono::steady_clock::now();
  activity.begin("building the plan");
  const Plan plan = make_plan(*model.family, topology, limits_of(options));
  live.require_published(plan, *model.family);
  std::optional<RankPlan> rank_plan;
  require_no_signal(kNotPrinted);
  if (options.rank) rank_plan = make_rank_plan(plan, *model.family, *options.rank);
  activity.end();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  require_no_signal(kNotPrinted);
  if (!rank_plan) print_report(plan_summary(plan, options.link_gbps) + "#\n");
  print_report(details(plan, model, seconds) + "#\n");
  print_report(rank_plan ? rank_plan_text(plan, *rank_plan, *options.rank) : plan_tables(plan, options.all));
  live.print(plan, model.family->catalog(), options.rank);
  if (picture) picture->write(plan_picture(plan, model.title));
  if (json == nullptr) return;
  nlohmann::ordered_json report = plan_json(plan, model.family->catalog(), options.segments);
  report["partial"] = choice_json_of(*model.family);
  if (options.link_gbps) report["least_seconds"] = least_seconds(plan, *options.link_gbps);
  json->write(json_report(report));
}

void run_plan(const Options& options, OutputFile* json) {
  report_plan(options, json, [](const Model&, const Topology&) {});
}

}  // namespace weightcast
