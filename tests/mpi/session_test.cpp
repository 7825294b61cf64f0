#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "control_world.hpp"
#include "session/parameter_memory.hpp"
#include "session_cases.hpp"
#include "source/memory_source.hpp"

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

struct Case {
  const char* name;
  naive::Model model;
  Topology topology;
  std::int64_t bucket_bytes = Limits::kLeastBucketBytes;
  std::int64_t buffers = 3;
  FanOut fan_out = FanOut::kNeeded;
  QuantizeAt quantize_at = QuantizeAt::kSource;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

/// Rows that are larger than a bucket.
naive::Model wide_model() {
  naive::Model model;
  model.hidden = 40'000;
  model.layers = 1;
  model.head_dim = 2;
  model.vocabulary = 20;
  model.inner = 4;
  return model;
}

/// Tensors that are sent and received without staging.
naive::Model large_model() {
  naive::Model model = small_model(true);
  model.hidden = 512;
  model.expert_inner = 320;
  return model;
}

naive::Model with(naive::Model model, void (*change)(naive::Model&)) {
  change(model);
  return model;
}

std::vector<Case> cases() {
  const naive::Model dense = small_model(false);
  const naive::Model moe = small_model(true);
  const naive::Model tied = with(dense, [](naive::Model& m) { m.tied = true; });
  const naive::Model biased = with(moe, [](naive::Model& m) {
    m.bias = true;
    m.mlp_only_layers = {0};
  });
  const naive::Model floats = with(moe, [](naive::Model& m) { m.dtype = DType::kF32; });
  return {
      {"OneToOne", dense, topology_of(1, "tp=1")},
      {"OneBuffer", moe, topology_of(2, "tp=2,ep=2,replicas=2"), 64 << 10, 1},
      {"ExpertsCutBothWays", moe, topology_of(1, "tp=4,ep=2", "cutlass"), 100'001, 2},
      {"SharedKeyAndValueHeads", biased, topology_of(2, "tp=4,ep=4")},
      {"Stages", tied, topology_of(1, "tp=2,pp=2")},
      {"StagesOfExperts", moe, topology_of(2, "pp=2,replicas=2")},
      {"EverythingToEverybody", floats, topology_of(3, "tp=2"), 64 << 10, 3, FanOut::kAll},
      {"ThreeReplicas", moe, topology_of(3, "replicas=3"), 1 << 20},
      {"Colocated", moe, colocated("tp=4,ep=4")},
      {"ColocatedReplicas", biased, colocated("tp=2,replicas=2"), 64 << 10, 1},
      {"ColocatedStages", tied, colocated("tp=2,pp=2"), 80'000, 2},
      {"ColocatedAlone", dense, colocated("tp=1")},
      {"ColocatedEverythingToEverybody", moe, colocated("tp=2,ep=2,replicas=2"), 64 << 10, 2, FanOut::kAll},
      {"LargeSegments", large_model(), topology_of(2, "tp=2,ep=2,replicas=2"), 1 << 20, 2},
      {"LargeSegmentsOneBuffer", large_model(), topology_of(1, "tp=2,ep=2"), 2 << 20, 1},
      {"LargeSegmentsColocated", large_model(), colocated("tp=2,ep=2,replicas=2"), 1 << 20, 2},
      {"LargeSegmentsToEverybody", large_model(), topology_of(1, "tp=2,ep=2"), 1 << 20, 3, FanOut::kAll},
      {"RowsLargerThanBuckets", wide_model(), topology_of(2, "tp=2")},
      {"CodesTravel", block_model(), quantized(topology_of(2, "tp=2,replicas=2"), "fp8-block")},
      {"CodesTravelToEverybody", block_model(), quantized(topology_of(2, "tp=2,ep=2"), "fp8-channel"),
       64 << 10, 2, FanOut::kAll},
      {"ScalesOfWholeTensors", block_model(), quantized(topology_of(3, "tp=2"), "fp8-tensor"), 1 << 20},
      {"QuantizedOnArrival", block_model(), quantized(topology_of(2, "tp=2", "cutlass"), "fp8-block"),
       64 << 10, 3, FanOut::kNeeded, QuantizeAt::kDestination},
      {"QuantizedOnArrivalColocated", block_model(), quantized(colocated("tp=2"), "fp8-tensor"), 1 << 20, 2,
       FanOut::kNeeded, QuantizeAt::kDestination},
      {"CodesTravelColocated", block_model(), quantized(colocated("tp=2,ep=2"), "mxfp8"), 100'000, 1},
      {"MoreRootsThanWork", with(wide_model(), [](naive::Model& m) { m.hidden = 8; }),
       topology_of(5, "tp=1")},
  };
}

/// Memory that an engine might give: every parameter with a gap before it, the last one first.
class GappedMemory final : public ParameterMemory {
 public:
  std::int64_t bytes_to_allocate(const RankPlan& /*rank_plan*/) const override { return 0; }

  void open(const RankPlan& rank_plan) override {
    std::int64_t bytes = kGap;
    std::vector<std::int64_t> offsets;
    for (auto parameter = rank_plan.parameters.rbegin(); parameter != rank_plan.parameters.rend();
         ++parameter) {
      offsets.push_back(bytes);
      bytes += parameter->bytes() + kGap;
    }
    allocations_.push_back(make_host_memory(bytes, "a test"));
    std::ranges::fill(all(), kCanary);
    for (std::size_t p = 0; p < rank_plan.parameters.size(); ++p) {
      place(0, offsets[offsets.size() - 1 - p], rank_plan.parameters[p].bytes());
      held_.push_back(parameter(p));
    }
  }

  void begin(std::int64_t version) override {
    log += fmt::format("begin {}", version);
    if (fails_ == Stage::kBegin) throw IoError("fails on purpose");
  }
  void commit(std::int64_t version) override {
    log += fmt::format(", commit {}", version);
    if (fails_ == Stage::kCommit) throw IoError("fails on purpose");
  }

  void fail_at(Stage stage) { fails_ = stage; }

  /// Whether nothing but parameters has been written to.
  bool gaps_are_intact() const {
    const std::byte* at = all().data();
    const auto untouched = [&](const std::byte* to) {
      return std::all_of(at, to, [](std::byte byte) { return byte == kCanary; });
    };
    for (auto held = held_.rbegin(); held != held_.rend(); ++held) {
      if (!untouched(held->data())) return false;
      at = held->data() + held->size();
    }
    return untouched(all().data() + all().size());
  }

  std::string log;

 private:
  static constexpr std::int64_t kGap = 256;
  static constexpr std::byte kCanary{0x3c};

  std::span<std::byte> all() const {
    return {allocations_.front()->data(), static_cast<std::size_t>(allocations_.front()->bytes())};
  }

  std::vector<std::span<std::byte>> held_;
  Stage fails_ = Stage::kNone;
};

class SessionOf : public ::testing::TestWithParam<Case> {
 protected:
  /// Three updates of the session; after each the parameters are those of the version, at their old
  /// addresses.
  static void update_three_times(Control& control, const Case& c) {
    const auto family = c.model.family();
    Limits limits;
    limits.bucket_bytes = c.bucket_bytes;
    limits.buffers = c.buffers;
    limits.fan_out = c.fan_out;
    limits.quantize_at = c.quantize_at;
    Session session(control, *family, c.topology, limits, {.source_bytes = &MemorySource::bytes_needed});
    EXPECT_LE(session.plan().slot_bytes, (c.bucket_bytes + 255) / 256 * 256);
    const auto trainer = c.topology.trainer(control.rank());

    Progress progress(ProgressMode::kNever, false);
    std::vector<const std::byte*> addresses;
    std::vector<std::vector<std::byte>> previous;
    for (const std::int64_t version : {7, 8, 1'000'000}) {
      SCOPED_TRACE(version);
      std::optional<MemorySource> source;
      if (trainer) source.emplace(session.plan(), family->catalog(), *trainer, version);
      // Whatever an engine has left there, padding included, is overwritten.
      if (version == 8) session.poison();
      session.update(source ? &*source : nullptr, version, true, progress);
      expect_holds(session, control.rank(), c.model, synthetic_weights(c.model, version));
      for (std::size_t p = 0; p < session.rank_plan().parameters.size(); ++p) {
        const std::span<const std::byte> live = session.parameter(p);
        const std::string& name = session.rank_plan().parameters[p].name;
        if (p == addresses.size()) {
          addresses.push_back(live.data());
          previous.emplace_back();
        }
        EXPECT_EQ(live.data(), addresses[p]) << name;
        // A parameter of padding alone is the same in every version. The largest of many values may be, too,
        // and with it what scales follow from.
        const std::vector<Part>& parts = session.rank_plan().parameters[p].parts;
        const bool scales = !parts.empty() && parts.front().form.plane == Plane::kScales;
        const bool fed = !parts.empty();
        if (!scales && session.rank_plan().parameters[p].scalars.empty()) {
          EXPECT_EQ(!std::equal(live.begin(), live.end(), previous[p].begin(), previous[p].end()),
                    fed || version == 7)
              << name;
        }
        previous[p].assign(live.begin(), live.end());
      }
    }
  }
};

TEST_P(SessionOf, ParametersAreThoseOfEachVersion) {
  const Case& c = GetParam();
  under_control(static_cast<int>(c.topology.ranks()),
                [&](Control& control) { update_three_times(control, c); });
}

INSTANTIATE_TEST_SUITE_P(Layouts, SessionOf, ::testing::ValuesIn(cases()),
                         [](const auto& of) { return std::string(of.param.name); });

class Failing : public ::testing::TestWithParam<std::tuple<const char*, Stage, QuantizeAt>> {
 protected:
  static Topology topology() {
    const std::string name = std::get<0>(GetParam());
    if (name == "Colocated") return quantized(colocated("tp=2,ep=2"), "fp8-tensor");
    return quantized(topology_of(2, "tp=2,ep=1"), "fp8-tensor");
  }
};

TEST_P(Failing, AnUpdateLeavesTheProcessesFitForTheNext) {
  const Stage stage = std::get<1>(GetParam());
  const naive::Model model = block_model();
  const Topology topology = Failing::topology();
  Limits limits;
  limits.bucket_bytes = Limits::kLeastBucketBytes;
  limits.quantize_at = std::get<2>(GetParam());
  under_control(static_cast<int>(topology.ranks()), [&](Control& control) {
    const auto family = model.family();
    const auto memory = std::make_shared<GappedMemory>();
    Session session(control, *family, topology, limits, {.parameters = memory});
    const auto trainer = topology.trainer(control.rank());
    std::optional<MemorySource> values;
    if (trainer) values.emplace(session.plan(), family->catalog(), *trainer, 5);
    const bool culprit = control.rank() == control.size() / 2 - 1;  // the last trainer
    Progress progress(ProgressMode::kNever, false);
    for (int failures = 0; failures < 2; ++failures) {
      std::optional<FailingSource> source;
      if (values) source.emplace(*values, culprit ? stage : Stage::kNone, session.plan());
      memory->fail_at(culprit ? stage : Stage::kNone);
      memory->log.clear();
      ::testing::internal::CaptureStderr();
      try {
        session.update(source ? &*source : nullptr, 5, true, progress);
        ADD_FAILURE() << "not noticed";
      } catch (const AgreedFailure& failure) {
        const bool lie = stage == Stage::kDigest;
        EXPECT_EQ(failure.code(), lie ? ExitCode::kVerificationFailed : ExitCode::kInputOutput);
        const std::string line = failure.what();
        EXPECT_TRUE(lie || line.find("on purpose") != std::string::npos) << line;
      }
      ::testing::internal::GetCapturedStderr();
      if (!culprit || stage != Stage::kCommit) {
        EXPECT_EQ(memory->log, stage == Stage::kCommit ? "begin 5, commit 5" : "begin 5");
      }
      EXPECT_EQ(session.has_written(), stage != Stage::kLargest && stage != Stage::kBegin);
      EXPECT_TRUE(memory->gaps_are_intact());
      // The next one, in the same processes.
      memory->fail_at(Stage::kNone);
      memory->log.clear();
      session.poison();
      session.update(values ? &*values : nullptr, 5, true, progress);
      EXPECT_EQ(memory->log, "begin 5, commit 5");
      expect_holds(session, control.rank(), model, synthetic_weights(model, 5));
      EXPECT_TRUE(memory->gaps_are_intact());
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Stages, Failing,
                         ::testing::Combine(::testing::Values("Apart", "Colocated"),
                                            ::testing::Values(Stage::kLargest, Stage::kBegin,
                                                              Stage::kFirstPack, Stage::kPack, Stage::kDigest,
                                                              Stage::kUnchanged, Stage::kCommit),
                                            ::testing::Values(QuantizeAt::kSource, QuantizeAt::kDestination)),
                         [](const auto& of) {
                           return fmt::format(
                               "{}{}{}", std::get<0>(of.param), static_cast<int>(std::get<1>(of.param)),
                               std::get<2>(of.param) == QuantizeAt::kSource ? "Source" : "Destination");
                         });

/// What a trainer holds, each tensor in pieces of any shape that lie in several buffers with gaps between
/// rows.
struct Pieces {
  std::vector<HeldBox> boxes;
  std::vector<std::vector<std::byte>> buffers = std::vector<std::vector<std::byte>>(3);

  void add(const Tensor& tensor, std::uint32_t number, const Box& box, const std::vector<std::byte>& values) {
    if (box.empty()) return;
    const std::int64_t element = dtype_bytes(tensor.dtype);
    const std::int64_t width = box.cols * element;
    const auto buffer = static_cast<std::uint32_t>(boxes.size() % buffers.size());
    std::vector<std::byte>& memory = buffers[buffer];
    // Now and then without gaps, so that it may be sent from where it lies.
    const std::int64_t pitch = boxes.size() % 2 == 0 ? width : width + 16;
    boxes.push_back({number, box, buffer, static_cast<std::int64_t>(memory.size()), pitch});
    for (std::int64_t row = box.row; row < box.row + box.rows; ++row) {
      const auto* from = values.data() + (row * tensor.shape.cols() + box.col) * element;
      memory.insert(memory.end(), from, from + width);
      memory.resize(memory.size() + static_cast<std::size_t>(pitch - width), std::byte{0xee});
    }
  }
};

TEST(Session, WeightsMayLieInManyPieces) {
  const naive::Model model = large_model();
  for (const Topology& topology : {topology_of(2, "tp=2,ep=2"), colocated("tp=2")}) {
    under_control(static_cast<int>(topology.ranks()), [&](Control& control) {
      const auto family = model.family();
      const Catalog& catalog = family->catalog();
      Limits limits;
      limits.bucket_bytes = 1 << 20;
      Session session(control, *family, topology, limits);
      const naive::Weights weights = synthetic_weights(model, 3);
      std::optional<HeldSource> source;
      Pieces pieces;
      if (const auto trainer = topology.trainer(control.rank())) {
        for (std::uint32_t t = 0; t < catalog.size(); ++t) {
          const Shape& shape = catalog[t].shape;
          const std::int64_t rows = (t * 7) % (shape.rows() + 1);
          const std::int64_t cols = t % 3 == 0 ? shape.cols() : (t * 13) % (shape.cols() + 1);
          const std::vector<std::byte>& values = weights.at(catalog[t].name);
          pieces.add(catalog[t], t, {0, rows, 0, cols}, values);
          pieces.add(catalog[t], t, {rows, shape.rows() - rows, 0, cols}, values);
          pieces.add(catalog[t], t, {0, shape.rows(), cols, shape.cols() - cols}, values);
        }
        std::vector<std::byte*> buffers;
        for (auto& buffer : pieces.buffers) buffers.push_back(buffer.data());
        source.emplace(session.plan(), catalog, *trainer, HeldWeights(pieces.boxes, catalog.size()), buffers);
      }
      Progress progress(ProgressMode::kNever, false);
      session.poison();
      session.update(source ? &*source : nullptr, 3, true, progress);
      expect_holds(session, control.rank(), model, weights);
    });
  }
}

/// Bytes of this process that lie in no file.
std::int64_t anonymous_bytes() {
  std::ifstream file("/proc/self/status");
  constexpr std::string_view kField = "RssAnon:";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(kField)) return std::stoll(line.substr(kField.size())) << 10;
  }
  return 0;
}

TEST(Session, StagingIsGivenBackBetweenUpdates) {
  const naive::Model model = with(small_model(true), [](naive::Model& m) { m.vocabulary = 40'000; });
  const Topology topology = topology_of(1, "tp=2");
  under_control(3, [&](Control& control) {
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = 8 << 20;
    Session session(control, *family, topology, limits);
    ASSERT_GT(session.plan().staging_bytes_per_rank(), 8 << 20);
    Progress progress(ProgressMode::kNever, false);
    for (const std::int64_t version : {3, 4, 5}) {
      std::optional<MemorySource> source;
      if (topology.trainer(control.rank()))
        source.emplace(session.plan(), family->catalog(), control.rank(), version);
      session.memory().fill(std::byte{0xa5});
      session.update(source ? &*source : nullptr, version, true, progress);
      expect_holds(session, control.rank(), model, synthetic_weights(model, version));
      const std::int64_t before = anonymous_bytes();
      session.release_staging();
      const std::int64_t freed = before - anonymous_bytes();
      EXPECT_GT(freed, session.plan().staging_bytes_per_rank() * 3 / 4) << "of " << before;
      // After the other one the update does it by itself.
      if (version == 3) session.take_staging();
    }
  });
}

TEST(Session, WithoutVerificationTheBytesAreTheSame) {
  const naive::Model model = small_model(true);
  const Topology topology = topology_of(2, "tp=2,ep=2");
  under_control(4, [&](Control& control) {
    const auto family = model.family();
    Session session(control, *family, topology, Limits{});
    std::optional<MemorySource> source;
    if (topology.trainer(control.rank()))
      source.emplace(session.plan(), family->catalog(), control.rank(), 5);
    Progress progress(ProgressMode::kNever, false);
    const UpdateSeconds seconds = session.update(source ? &*source : nullptr, 5, false, progress);
    expect_holds(session, control.rank(), model, synthetic_weights(model, 5));
    EXPECT_EQ(seconds.verify, 0);
    EXPECT_EQ(seconds.read, 0);
    EXPECT_GT(seconds.pack, 0);
    EXPECT_GT(seconds.update, 0);
  });
}

TEST(Session, AWrongSegmentIsNamedOnEveryRankAndTheNextUpdateIsFine) {
  const naive::Model model = small_model(true);
  const Topology topology = topology_of(1, "tp=2,ep=2,replicas=2");
  under_control(5, [&](Control& control) {
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    Session session(control, *family, topology, limits);
    Progress progress(ProgressMode::kNever, false);
    std::optional<MemorySource> source;
    if (control.rank() == 0) source.emplace(session.plan(), family->catalog(), 0, 1);
    const auto wrong = static_cast<std::uint32_t>(session.plan().segments.size() / 2);
    std::optional<LyingSource> liar;
    if (source) liar.emplace(*source, wrong);
    const std::string& tensor = family->catalog()[session.plan().segments[wrong].tensor].name;
    expect_noticed(session, liar ? &*liar : nullptr, tensor);
    session.update(source ? &*source : nullptr, 1, true, progress);
    expect_holds(session, control.rank(), model, synthetic_weights(model, 1));
  });
}

TEST(Session, RanksThatPlanDifferentlyAreNoticed) {
  const naive::Model model = small_model(false);
  under_control(3, [&](Control& control) {
    const auto family = model.family();
    Limits limits;
    limits.buffers = control.rank() == 2 ? 4 : 3;
    ::testing::internal::CaptureStderr();
    try {
      const Session session(control, *family, topology_of(1, "tp=2"), limits);
      ADD_FAILURE() << "not noticed";
    } catch (const AgreedFailure& failure) {
      EXPECT_EQ(failure.code(), ExitCode::kInternal);
      EXPECT_NE(std::string(failure.what()).find("hash"), std::string::npos) << failure.what();
    }
    ::testing::internal::GetCapturedStderr();
  });
}

}  // namespace

}  // namespace weightcast
