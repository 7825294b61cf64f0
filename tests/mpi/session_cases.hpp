#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "model/synthetic.hpp"
#include "naive_model.hpp"
#include "plan/topology.hpp"
#include "session/session.hpp"
#include "source/source.hpp"

/// What the tests of the session share.
namespace weightcast::session_cases {

/// A model of about a megabyte, so that buckets of 64 KiB are many.
inline naive::Model small_model(bool moe) {
  naive::Model model;
  model.moe = moe;
  model.hidden = 96;
  model.heads = 8;
  model.kv_heads = 2;
  model.head_dim = 16;
  model.vocabulary = 1000;
  model.inner = 320;
  model.experts = 8;
  model.expert_inner = 64;
  return model;
}

/// A model whose blocks no rank of tp=2 cuts, whatever they are quantised to.
inline naive::Model block_model() {
  naive::Model model;
  model.moe = true;
  model.hidden = 256;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 128;
  model.vocabulary = 300;
  model.inner = 512;
  model.experts = 4;
  model.expert_inner = 256;
  model.mlp_only_layers = {1};
  return model;
}

inline Topology topology_of(std::int64_t trainers, const char* engine, const char* moe_layout = "triton") {
  Topology topology;
  topology.trainers = trainers;
  topology.engine = parse_engine_layout(engine, moe_layout);
  return topology;
}

inline Topology colocated(const char* engine) {
  Topology topology = topology_of(1, engine);
  topology.colocate = true;
  topology.trainers = topology.engine.ranks();
  return topology;
}

inline Topology quantized(Topology topology, const char* quantizer) {
  topology.engine.quantizer = parse_quantizer(quantizer);
  return topology;
}

/// What MemorySource fills the tensors with.
inline naive::Weights synthetic_weights(const naive::Model& model, std::int64_t version) {
  naive::Weights weights;
  for (const naive::Entry& entry : naive::tensors(model)) {
    const Tensor tensor{entry.name, model.dtype, entry.shape};
    auto& bytes = weights[entry.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    fill_synthetic(tensor, version, 0, bytes);
  }
  return weights;
}

/// Expects this rank's live parameters to be what the naive construction makes of `weights`.
inline void expect_holds(const Session& session, std::int64_t world_rank, const naive::Model& model,
                         const naive::Weights& weights) {
  const Topology& topology = session.plan().topology;
  const auto rank = topology.inference_rank(world_rank);
  if (!rank) {
    EXPECT_TRUE(session.rank_plan().parameters.empty());
    return;
  }
  const EngineLayout& engine = topology.engine;
  const EngineRank place{*rank / (engine.pp * engine.tp), *rank / engine.tp % engine.pp, *rank % engine.tp};
  const naive::Quantized quantized =
      engine.quantizer ? naive::quantize(model, *engine.quantizer, weights) : naive::Quantized();
  const std::vector<naive::Parameter> expected = naive::parameters(model, engine, place, weights, quantized);
  ASSERT_EQ(session.rank_plan().parameters.size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    EXPECT_EQ(session.rank_plan().parameters[p].name, expected[p].name);
    std::vector<std::byte> live;
    session.read_parameter(p, [&](std::int64_t offset, std::span<const std::byte> bytes) {
      EXPECT_EQ(offset, static_cast<std::int64_t>(live.size()));
      live.insert(live.end(), bytes.begin(), bytes.end());
    });
    EXPECT_TRUE(live == expected[p].bytes) << expected[p].name;
  }
}

/// A trainer that says other digests than those of the bytes that it sends.
class LyingSource final : public HostSource {
 public:
  LyingSource(HostSource& source, std::uint32_t segment) : source_(source), segment_(segment) {}
  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override {
    source_.find_largest(trainer, largest, poll);
  }
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    source_.use_scales(scales());
    source_.finish_bucket(bucket, staging, digests);
    if (!digests.empty() && digests[segment_] != 0) ++digests[segment_];
  }
  std::byte* in_place(std::uint32_t segment) const override { return source_.in_place(segment); }

 private:
  HostSource& source_;
  std::uint32_t segment_;
};

/// Expects an update from this source to be found wrong, with an error that names the culprit.
inline void expect_noticed(Session& session, Source* source, const std::string& culprit) {
  Progress progress(ProgressMode::kNever, false);
  ::testing::internal::CaptureStderr();
  try {
    session.update(source, 1, true, progress);
    ADD_FAILURE() << "not noticed";
  } catch (const AgreedFailure& failure) {
    EXPECT_EQ(failure.code(), ExitCode::kVerificationFailed);
    EXPECT_NE(std::string(failure.what()).find(culprit), std::string::npos) << failure.what();
  }
  ::testing::internal::GetCapturedStderr();
}

/// Where an update fails on one rank.
enum class Stage : std::uint8_t { kNone, kLargest, kBegin, kFirstPack, kPack, kDigest, kUnchanged, kCommit };

inline std::ostream& operator<<(std::ostream& out, Stage stage) {
  return out << "stage " << static_cast<int>(stage);
}

/// A trainer that fails once on purpose.
class FailingSource final : public HostSource {
 public:
  FailingSource(HostSource& source, Stage stage, const Plan& plan)
      : source_(source), stage_(stage), segments_(plan.segments.size()) {}
  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override {
    if (stage_ == Stage::kLargest) fail();
    source_.find_largest(trainer, largest, poll);
  }
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    ++packed_;
    if (stage_ == Stage::kFirstPack && packed_ == 1) fail();
    if (stage_ == Stage::kPack && packed_ == 3) fail();
    source_.use_scales(scales());
    source_.finish_bucket(bucket, staging, digests);
    if (stage_ == Stage::kDigest && packed_ == 2) {
      for (std::uint64_t& digest : digests.first(segments_)) digest += digest != 0 ? 1 : 0;
    }
  }
  void require_unchanged() const override {
    if (stage_ == Stage::kUnchanged) fail();
  }
  std::byte* in_place(std::uint32_t segment) const override { return source_.in_place(segment); }

 private:
  [[noreturn]] static void fail() { throw IoError("fails on purpose"); }

  HostSource& source_;
  Stage stage_;
  std::size_t segments_;
  int packed_ = 0;
};

}  // namespace weightcast::session_cases
