#include "launch/bench/layout_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/config_text.hpp"
#include "launch/job/file_threads.hpp"
#include "launch/job/run_job.hpp"
#include "launch/model.hpp"
#include "launch/version.hpp"
#include "measure/gpu_gauges.hpp"
#include "measure/layer_experts.hpp"
#include "measure/measured.hpp"
#include "measure/staged_values.hpp"
#include "measure/unpacking.hpp"
#include "memory/memory.hpp"
#include "model/layouts/moe_layout.hpp"
#include "plan/quantizing.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/update_report.hpp"
#include "session/gpu.hpp"
#include "session/verification.hpp"
#include "session/wire_choice.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kMostOnGpu = std::int64_t{1} << 30;
constexpr std::int64_t kMostOnHost = std::int64_t{256} << 20;

/// A layout, and a quantiser or none.
struct Pair {
  const MoeLayout* layout = nullptr;
  std::optional<Quantizer> quantizer;

  std::string quantizer_text() const { return quantizer ? quantizer_name(*quantizer) : "none"; }
};

/// Whether a layout puts what two quantisers make to the same places.
bool same_places(const MoeLayout& layout, Quantizer a, Quantizer b) {
  const ExpertMatrices x = layout.matrices(a);
  const ExpertMatrices y = layout.matrices(b);
  return x.w13 == y.w13 && x.w2 == y.w2 && x.w13_scales == y.w13_scales && x.w2_scales == y.w2_scales &&
         x.inner_unit == y.inner_unit && x.scale_for_each_row == y.scale_for_each_row;
}

/// The default rule of every scheme that the layout takes, and rules that make it another layout.
std::vector<Quantizer> quantizers_of(const MoeLayout& layout) {
  std::vector<Quantizer> quantizers;
  const TakenWeights taken = layout.takes();
  for (const std::string& name : quantizer_names()) {
    const Quantizer quantizer = parse_quantizer(name);
    if (std::count(taken.schemes.begin(), taken.schemes.end(), quantizer.scheme) == 0) continue;
    const bool known = std::any_of(quantizers.begin(), quantizers.end(), [&](const Quantizer& other) {
      return other.scheme == quantizer.scheme && same_places(layout, other, quantizer);
    });
    if (!known) quantizers.push_back(quantizer);
  }
  return quantizers;
}

/// What is to be measured. Throws UsageError when the layout that is asked for does not take the quantiser.
std::vector<Pair> pairs_of(const Options& options, const ExpertSizes& sizes) {
  const MoeLayout* const one = options.moe_layout.empty() ? nullptr : &find_moe_layout(options.moe_layout);
  std::vector<Pair> pairs;
  for (const MoeLayout* layout : moe_layouts()) {
    if (one != nullptr && layout != one) continue;
    if (!options.quantize.empty()) {
      const Quantizer quantizer = parse_quantizer(options.quantize);
      const TakenWeights taken = layout->takes();
      const bool takes = std::count(taken.schemes.begin(), taken.schemes.end(), quantizer.scheme) > 0;
      if (takes) pairs.push_back({layout, quantizer});
      if (!takes && one != nullptr) layout->require({sizes.inner, 1, sizes.hidden, sizes.dtype, quantizer});
      continue;
    }
    if (layout->takes().values) pairs.push_back({layout, std::nullopt});
    for (const Quantizer& quantizer : quantizers_of(*layout)) pairs.push_back({layout, quantizer});
  }
  return pairs;
}

/// The one rank: trainer and inference rank, so that everything goes through staging.
Topology topology_of(const Pair& pair) {
  Topology topology;
  topology.colocate = true;
  topology.engine.moe_layout = pair.layout->name();
  topology.engine.quantizer = pair.quantizer;
  return topology;
}

/// One bucket of values for all.
Limits limits_of(const Catalog& catalog) {
  Limits limits;
  const auto gaps = static_cast<std::int64_t>(catalog.size()) * kSegmentAlignment;
  limits.bucket_bytes = std::max(catalog.bytes() + gaps, Limits::kLeastBucketBytes);
  limits.buffers = 1;
  limits.quantize_at = QuantizeAt::kDestination;
  return limits;
}

/// What became of a pair.
struct LayoutRow {
  std::string layout;
  std::string quantizer;
  std::string refused;       ///< why; empty: it was measured
  std::int64_t written = 0;  ///< bytes of parameters
  Measured unpack{"unpack", {}, 0};
  Measured index{"index", {}, 0};  ///< without seconds where there is nothing to compare
  Measured copy{"copy", {}, 0};

  double of_copy() const { return unpack.gb_s() / copy.gb_s(); }
  bool has_index() const { return !index.seconds.empty(); }
  double index_ratio() const { return index.median_seconds() / unpack.median_seconds(); }
};

// Rows are printed one by one, as they are measured.
constexpr const char* kRow = "{:<16}{:<19}{:>9}{:>7}{:>7}{:>8}{:>8}{:>6}\n";

/// What is wrong, without the option before it and the remedy behind it, neither of which is news in a row.
std::string reason_of(const std::string& message) {
  const std::size_t colon = message.find(": ");
  const std::size_t begin = colon == std::string::npos ? 0 : colon + 2;
  return message.substr(begin, message.find("; ", begin) - begin);
}

/// A row without blanks at its end.
std::string trimmed(std::string row) {
  row.erase(row.find_last_not_of(" \n") + 1);
  return row + "\n";
}

std::string head_text() {
  return fmt::format(kRow, "# layout", "quantiser", "written", "unpack", "rate", "of copy", "indexed",
                     "ratio") +
         trimmed(fmt::format(kRow, "#", "", "", "ms", "GB/s", "%", "ms", ""));
}

std::string row_text(const LayoutRow& row) {
  if (!row.refused.empty())
    return fmt::format("{:<16}{:<19}refused: {}\n", row.layout, row.quantizer, row.refused);
  return trimmed(fmt::format(kRow, row.layout, row.quantizer, format_bytes(row.written),
                             figure_text(1e3 * row.unpack.median_seconds()),
                             fmt::format("{:.1f}", row.unpack.gb_s()),
                             fmt::format("{:.1f}", 100 * row.of_copy()),
                             row.has_index() ? figure_text(1e3 * row.index.median_seconds()) : "",
                             row.has_index() ? fmt::format("{:.2f}", row.index_ratio()) : ""));
}

nlohmann::ordered_json row_json(const LayoutRow& row) {
  using nlohmann::ordered_json;
  const bool measured = row.refused.empty();
  const auto figure = [](bool there, auto value) {
    return there ? ordered_json(value()) : ordered_json(nullptr);
  };
  return {{"layout", row.layout},
          {"quantizer", row.quantizer},
          {"bytes", figure(measured, [&] { return row.written; })},
          {"seconds", figure(measured, [&] { return row.unpack.median_seconds(); })},
          {"gb_s", figure(measured, [&] { return row.unpack.gb_s(); })},
          {"of_copy", figure(measured, [&] { return row.of_copy(); })},
          {"index_seconds", figure(row.has_index(), [&] { return row.index.median_seconds(); })},
          {"index_ratio", figure(row.has_index(), [&] { return row.index_ratio(); })},
          {"refused", figure(!measured, [&] { return row.refused; })}};
}

class LayoutBench {
 public:
  LayoutBench(Control& control, const Options& options) : control_(control), options_(options) {}

  void run() {
    run_job(
        control_, options_, [&](OutputFile*) { measure(); },
        [&](ExitCode code, const std::string& line) { return json_text(code, line); });
  }

 private:
  void measure() {
    open();
    for (const Pair& pair : pairs_) {
      control_.deadline.begin_phase("measuring");
      control_.agreement.together([&] {
        rows_.push_back(measure(pair));
        print_report(row_text(rows_.back()));
      });
    }
    control_.agreement.together([&] { print_end(); });
  }

  void open() {
    control_.agreement.together([&] {
      if (control_.size() != 1) {
        throw UsageError(fmt::format("--layouts: one rank unpacks, but {} were started; use mpirun -n 1",
                                     control_.size()));
      }
      if (options_.model.empty()) throw UsageError("--layouts: --model CONFIG_JSON is needed");
      config_ = load_config(options_);
      sizes_ = expert_sizes(*config_);
      pairs_ = pairs_of(options_, sizes_);
    });
    wire_choice_ = choose_wire(control_, options_.transport);
    pool_.emplace(file_threads(control_, true));
    control_.agreement.together([&] {
      all_experts_ = sizes_.experts;
      sizes_.experts = std::clamp((on_gpu() ? kMostOnGpu : kMostOnHost) / sizes_.expert_bytes(),
                                  std::int64_t{1}, all_experts_);
      family_.emplace(sizes_);
      values_.emplace(*pool_);
      print_report(header() + head_text());
    });
  }

  bool on_gpu() const { return wire_choice_.wire == Wire::kNccl; }

  std::string header() const {
    const std::string device = on_gpu() ? wire_choice_.device : wire_choice_.device + ", one thread";
    return fmt::format(
        "# {} {} --layouts\n"
        "# model   {} ({})\n"
        "# experts {} of {} of a layer, {} × {}, {}: {} of values in one bucket\n"
        "# device  {} {}\n"
        "# Medians of {}, of what follows the arrival of values: scales over whole\n"
        "# tensors are found, and padding is zeroed, before. Rates are of bytes read and\n"
        "# written, beside a plain copy of the values. Indexed: a table of rows for each\n"
        "# matrix is built{}, rows are gathered through it, then cut into blocks or\n"
        "# copied into the parameter; ratio: its time to that of unpack.\n#\n",
        version_line(), options_.command, printable(config_->architecture()), printable(config_->origin()),
        sizes_.experts, all_experts_, sizes_.hidden, sizes_.inner, dtype_name(sizes_.dtype),
        format_bytes(family_->catalog().bytes()), control_.host(), printable(device), options_.iterations,
        on_gpu() ? " and uploaded" : "");
  }

  std::unique_ptr<Memory> make_memory(std::int64_t bytes, const char* purpose) const {
    return (on_gpu() ? &make_gpu_memory : &make_host_memory)(bytes, purpose);
  }

  LayoutRow measure(const Pair& pair) {
    LayoutRow row;
    row.layout = pair.layout->name();
    row.quantizer = pair.quantizer_text();
    Plan plan;
    RankPlan rank_plan;
    try {
      plan = make_plan(*family_, topology_of(pair), limits_of(family_->catalog()));
      rank_plan = make_rank_plan(plan, *family_, 0);
    } catch (const UsageError& error) {
      // The limits are our own: only the pair itself can be wrong for the model.
      row.refused = reason_of(error.what());
      return row;
    }
    stage(plan);
    const std::unique_ptr<Memory> parameters = make_memory(rank_plan.parameter_bytes, "the parameters");
    const std::vector<GlobalScale> scales = values_->scales(plan, rank_plan);
    const std::vector<IndexedMatrix> matrices = indexed_matrices(plan, rank_plan);
    const std::unique_ptr<Unpacking> unpacking = make_unpacking(rank_plan, *parameters, scales, matrices);
    count_bytes(rank_plan, row);
    time(*unpacking, row);
    if (options_.no_verify) return row;
    const std::vector<std::uint64_t> expected = values_->digests(plan, family_->catalog(), rank_plan, scales);
    const auto verify = [&](const char* what, double (Unpacking::*way)()) {
      prepare(plan, rank_plan, scales, *parameters, *unpacking);
      ((*unpacking).*way)();
      try {
        verify_parameters(plan, rank_plan, expected, *parameters);
      } catch (const VerifyError& error) {
        throw VerifyError(fmt::format("{} with {}{}: {}", row.layout, row.quantizer, what, error.what()));
      }
    };
    if (row.has_index()) verify(" by index", &Unpacking::index_seconds);
    verify("", &Unpacking::unpack_seconds);
    return row;
  }

  /// The values where they are unpacked, and as much memory for a copy of them.
  void stage(const Plan& plan) {
    values_->fill(plan, family_->catalog());
    const auto bytes = static_cast<std::int64_t>(values_->bytes().size());
    if (!staging_ || staging_->bytes() != bytes) {
      staging_ = make_memory(bytes, "the staging buffer");
      copied_ = make_memory(bytes, "a copy");
    }
    staging_->write(0, values_->bytes());
  }

  std::unique_ptr<Unpacking> make_unpacking(const RankPlan& rank_plan, const Memory& parameters,
                                            const std::vector<GlobalScale>& scales,
                                            std::vector<IndexedMatrix> matrices) const {
    UnpackBuffers buffers{
        {staging_->data(), static_cast<std::size_t>(staging_->bytes())}, {}, copied_->data()};
    for (const std::int64_t offset : rank_plan.parameter_offsets) {
      buffers.parameters.push_back(parameters.data() + offset);
    }
    return (on_gpu() ? &make_gpu_unpacking : &make_host_unpacking)(rank_plan, std::move(buffers), scales,
                                                                   std::move(matrices));
  }

  /// Padding lies in parameters but is not written again.
  void count_bytes(const RankPlan& rank_plan, LayoutRow& row) const {
    for (const Parameter& parameter : rank_plan.parameters) row.written += parameter.bytes();
    const std::int64_t padding =
        std::accumulate(rank_plan.padding.begin(), rank_plan.padding.end(), std::int64_t{0},
                        [](std::int64_t sum, const Move& move) { return sum + move.bytes(); });
    row.unpack.bytes = family_->catalog().bytes() + row.written - padding;
    row.index.bytes = row.unpack.bytes;
    row.copy.bytes = 2 * staging_->bytes();
  }

  /// All in turn, so that a noisy moment does not fall on one of them alone. The first round touches all
  /// memory; it is not counted.
  void time(Unpacking& unpacking, LayoutRow& row) {
    unpacking.zero_padding();
    for (std::int64_t i = 0; i <= options_.iterations; ++i) {
      require_no_soft_stop("amid " + row.layout);
      control_.deadline.poll();
      const double copy = unpacking.copy_seconds();
      const double index = unpacking.index_seconds();
      const double unpack = unpacking.unpack_seconds();
      if (i == 0) continue;
      row.copy.seconds.push_back(copy);
      if (index > 0) row.index.seconds.push_back(index);
      row.unpack.seconds.push_back(unpack);
      copy_.seconds.push_back(copy);
    }
    copy_.bytes = row.copy.bytes;
  }

  /// Parameters of which nothing is left that was unpacked before.
  void prepare(const Plan& plan, const RankPlan& rank_plan, std::span<const GlobalScale> scales,
               Memory& parameters, Unpacking& unpacking) const {
    constexpr std::byte kPoison{0xa5};
    parameters.fill(0, parameters.bytes(), kPoison);
    unpacking.zero_padding();
    for (std::size_t p = 0; p < rank_plan.parameters.size(); ++p) {
      if (rank_plan.parameters[p].scalars.empty()) continue;
      const std::vector<float> values = scalar_values(plan, rank_plan.parameters[p], scales);
      parameters.write(rank_plan.parameter_offsets[p], std::as_bytes(std::span(values)));
    }
  }

  /// On the host, through the layout, whatever wrote them.
  void verify_parameters(const Plan& plan, const RankPlan& rank_plan, std::span<const std::uint64_t> expected,
                         const Memory& parameters) {
    HostBuffer held(parameters.on_host() ? 0 : parameters.bytes(), "a copy of the parameters");
    if (!parameters.on_host()) parameters.read(0, held.span());
    const std::byte* const base = parameters.on_host() ? parameters.data() : held.data();
    std::vector<const std::byte*> buffers;
    for (const std::int64_t offset : rank_plan.parameter_offsets) buffers.push_back(base + offset);
    std::vector<std::uint64_t> written(rank_plan.checks.size());
    const std::unique_ptr<Executor> executor = make_host_executor();
    pool_->run(written.size(), [&](std::size_t i) {
      executor->digest({&rank_plan.checks[i], 1}, buffers, {&written[i], 1});
    });
    require_written(plan, family_->catalog(), rank_plan, written, expected);
    require_zero_padding(rank_plan, executor->first_not_zero(rank_plan.padding, buffers));
  }

  bool measured_any() const { return !copy_.seconds.empty(); }

  void print_end() {
    verified_ = measured_any() && !options_.no_verify;
    if (measured_any()) {
      print_report(fmt::format("#\n# copy    {:.6f} s, {:.1f} GB/s\n", copy_.median_seconds(), copy_.gb_s()));
    }
    print_report(verified_ ? "# verified\n" : "# not verified\n");
  }

  std::string json_text(ExitCode code, const std::string& error) const {
    using nlohmann::ordered_json;
    ordered_json json{
        {"weightcast", version_line()}, {"command", options_.command}, {"status", status_name(code)}};
    json["ranks"] =
        ordered_json::array({{{"rank", 0}, {"host", control_.host()}, {"device", wire_choice_.device}}});
    if (family_) {
      json["experts"] = {{"taken", sizes_.experts},
                         {"of", all_experts_},
                         {"hidden", sizes_.hidden},
                         {"inner", sizes_.inner},
                         {"bytes", family_->catalog().bytes()}};
    }
    json["iterations"] = options_.iterations;
    json["copy_gb_s"] = measured_any() ? ordered_json(copy_.gb_s()) : ordered_json(nullptr);
    auto& layouts = json["layouts"] = ordered_json::array();
    for (const LayoutRow& row : rows_) layouts.push_back(row_json(row));
    json["verified"] = verified_;
    json["error"] = error.empty() ? ordered_json(nullptr) : ordered_json(error);
    return json_report(json);
  }

  Control& control_;
  const Options& options_;
  std::unique_ptr<ModelConfig> config_;
  ExpertSizes sizes_;  ///< of those that are taken
  std::int64_t all_experts_ = 0;
  std::vector<Pair> pairs_;
  WireChoice wire_choice_;
  std::optional<ThreadPool> pool_;
  std::optional<LayerExperts> family_;
  std::optional<StagedValues> values_;
  std::unique_ptr<Memory> staging_;
  std::unique_ptr<Memory> copied_;
  std::vector<LayoutRow> rows_;
  Measured copy_{"copy", {}, 0};
  bool verified_ = false;
};

}  // namespace

void run_layout_bench(Control& control, const Options& options) {
  LayoutBench(control, options).run();
}

}  // namespace weightcast
