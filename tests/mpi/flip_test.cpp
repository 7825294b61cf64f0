#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tampered_job.hpp"

// One bit of one message of a real job is flipped on the wire; the program has no hook for it.
namespace weightcast::test_support {

namespace {

/// A message of trainer 0 in the order of sending, as the plan cuts it: a segment of 256 KiB or more travels
/// alone, what lies between such segments travels together.
struct Sent {
  std::int64_t bytes = 0;
  std::vector<std::int64_t> offsets;  ///< of the segments in it
  std::vector<std::string> tensors;
  std::size_t receivers = 0;
};

std::vector<Sent> messages_of(const nlohmann::json& plan) {
  std::vector<Sent> messages;
  for (const auto& bucket : plan["buckets"]) {
    const std::size_t receivers = plan["destinations"][bucket["destinations"].get<std::size_t>()].size() *
                                  plan["inference"]["replicas"].get<std::size_t>();
    if (bucket["root"] != 0) continue;
    std::int64_t start = -1;  // of the open message in the bucket
    for (const auto& segment : bucket["segments"]) {
      const auto extent = [&](const char* axis) {
        return segment[axis][1].get<std::int64_t>() - segment[axis][0].get<std::int64_t>();
      };
      const std::int64_t bytes = extent("rows") * extent("columns") * 2;
      const std::int64_t offset = segment["offset"];
      const bool alone = bytes >= 256 << 10;
      if (alone || start < 0) {
        messages.push_back({0, {}, {}, receivers});
        start = offset;
      }
      messages.back().offsets.push_back(offset - start);
      messages.back().tensors.push_back(segment["tensor"]);
      messages.back().bytes = offset - start + bytes;
      if (alone) start = -1;
    }
  }
  return messages;
}

/// Where a bit is to be flipped.
struct Flip {
  std::int64_t least_bytes = 0;
  std::int64_t message = 0;  ///< among those of at least least_bytes
  std::int64_t byte = 0;
  std::string tensor;
  std::int64_t message_bytes = 0;
  std::size_t receivers = 0;
};

class FlipTest : public CliTest {
 protected:
  // Larger than any message that is not weights.
  static constexpr std::int64_t kLeastBytes = 32 << 10;

  /// The flip of the first byte of segment number `segment` of the message with that number; negative numbers
  /// count from the end.
  Flip choose(const Words& sync, std::int64_t message, std::int64_t segment) {
    const std::string path = dir_ / "plan.json";
    Words words = sync;
    words.front() = "plan";
    EXPECT_TRUE(done(run_plain(words + Words{"--segments", "--json", path})));
    std::vector<Sent> counted;
    for (Sent& sent : messages_of(read_json(path))) {
      if (sent.bytes >= kLeastBytes) counted.push_back(std::move(sent));
    }
    const auto at = [](std::int64_t number, std::size_t size) {
      return number < 0 ? size - static_cast<std::size_t>(-number) : static_cast<std::size_t>(number);
    };
    const std::size_t number = at(message, counted.size());
    const Sent& sent = counted.at(number);
    const std::size_t in = at(segment, sent.offsets.size());
    return {kLeastBytes,         static_cast<std::int64_t>(number),
            sent.offsets.at(in), sent.tensors.at(in),
            sent.bytes,          sent.receivers};
  }

  static Outcome run_flipped(int ranks, const Words& words, const Flip& flip) {
    Outcome outcome = run_tampered_job(ranks, words,
                                       {{"FLIP_LEAST_BYTES", std::to_string(flip.least_bytes)},
                                        {"FLIP_MESSAGE", std::to_string(flip.message)},
                                        {"FLIP_BYTE", std::to_string(flip.byte)}});
    EXPECT_TRUE(has(outcome.err, {"flipped a bit of byte"}));
    return outcome;
  }

  Words sync(const std::string& source, const std::string& inference) const {
    return {"sync", "--source", source, "--inference", inference, "--bucket-size", "1MiB"};
  }
  Words sink() const { return {"--sink", "hdf5:" + sink_}; }
};

/// Layer and parameter of an expert's or another tensor: what the error must say beside the tensor's name.
std::string parameter_of(const std::string& tensor) {
  const std::size_t experts = tensor.find(".experts.");
  if (experts != std::string::npos) {
    const bool down = tensor.find("down_proj") != std::string::npos;
    return tensor.substr(0, experts) + (down ? ".experts.w2_weight" : ".experts.w13_weight");
  }
  for (const char* kind : {"q_proj", "k_proj", "v_proj"}) {
    const std::size_t at = tensor.find(kind);
    if (at != std::string::npos) return tensor.substr(0, at) + "qkv_proj.weight";
  }
  for (const char* kind : {"mlp.gate_proj", "mlp.up_proj"}) {
    const std::size_t at = tensor.find(kind);
    if (at != std::string::npos) return tensor.substr(0, at) + "mlp.gate_up_proj.weight";
  }
  return tensor;
}

TEST_F(FlipTest, InAMessageToOneRankIsFoundAndNothingIsWritten) {
  const Words words = sync(trained(0), "tp=2,ep=2");
  const Flip flip = choose(words, 0, -1);
  EXPECT_EQ(flip.receivers, 1u);
  const Outcome outcome = run_flipped(3, words + sink(), flip);
  EXPECT_TRUE(refused(outcome, 66, {"verify", flip.tensor, parameter_of(flip.tensor) + " "}));
  EXPECT_TRUE(folder_contents(sink_).empty());
}

TEST_F(FlipTest, InABroadcastIsFoundAndTheOldShardsStay) {
  const Words words = sync(trained(1), "tp=2,ep=2,replicas=2");
  EXPECT_TRUE(done(run_job(5, sync(trained(0), "tp=2,ep=2,replicas=2") + sink())));
  const auto before = folder_contents(sink_);
  EXPECT_EQ(before.size(), 4u);
  const Flip flip = choose(words, -1, 0);
  EXPECT_GT(flip.receivers, 1u);
  const Outcome outcome = run_flipped(5, words + sink() + Words{"--weight-version", "2"}, flip);
  EXPECT_TRUE(refused(outcome, 66, {"verify", flip.tensor, parameter_of(flip.tensor) + " "}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

TEST_F(FlipTest, InWhatArrivesStraightInParametersIsFound) {
  const std::string source = dir_ / "dense";
  EXPECT_TRUE(done(run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", source})));
  for (const std::int64_t message : {1, -2}) {
    const Words words = sync(source, "tp=1");
    const Flip flip = choose(words, message, 0);
    EXPECT_GE(flip.message_bytes, 256 << 10);
    const Outcome outcome = run_flipped(2, words + sink(), flip);
    EXPECT_TRUE(refused(outcome, 66, {"verify", flip.tensor, parameter_of(flip.tensor) + " "}));
    EXPECT_TRUE(folder_contents(sink_).empty());
  }
}

TEST_F(FlipTest, WithoutVerificationGoesThroughAndVerifyFindsIt) {
  const Words words = sync(trained(0), "tp=2,ep=2");
  const Flip flip = choose(words, 1, 1);
  EXPECT_TRUE(done(run_flipped(3, words + sink() + Words{"--no-verify"}, flip)));
  EXPECT_EQ(folder_contents(sink_).size(), 2u);
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", trained(0)}), 66,
                      {flip.tensor, parameter_of(flip.tensor) + " "}));
}

TEST_F(FlipTest, NothingFlippedIsNothingFound) {
  // The library alone changes nothing.
  const Words words = sync(trained(0), "tp=2,ep=2");
  EXPECT_TRUE(done(run_tampered_job(3, words + sink(), {})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
}

}  // namespace

}  // namespace weightcast::test_support
