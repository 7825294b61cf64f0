// Trainers' own shards in, the engine's shards out: the same as from the checkpoint that both are of.

#include "cli/trainers.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <tuple>

#include "engine/cut.hpp"
#include "engine/files.hpp"
#include "engine/thread_group.hpp"

namespace weightcast::test_support {
namespace {

/// A source of choices that is the same everywhere, which the standard's distributions are not.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}

  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(count));
  }
  bool one_in(std::int64_t count) { return below(count) == 0; }

  template <typename T>
  T pick(const std::vector<T>& choices) {
    return choices.at(static_cast<std::size_t>(below(static_cast<std::int64_t>(choices.size()))));
  }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[static_cast<std::size_t>(below(static_cast<std::int64_t>(i)))]);
    }
  }

 private:
  std::mt19937_64 engine_;
};

/// What limits the layouts of a model.
struct Limits {
  explicit Limits(const nlohmann::json& config)
      : layers(config.at("num_hidden_layers")),
        heads(config.at("num_attention_heads")),
        groups(config.at("num_key_value_heads")),
        inner(config.at("intermediate_size")),
        experts(config.value("num_local_experts", 0)),
        expert_inner(config.value("moe_intermediate_size", 0)),
        vocabulary(config.at("vocab_size")) {}

  bool fits_tp(std::int64_t t) const {
    return heads % t == 0 && inner % t == 0 && (groups % t == 0 || t % groups == 0);
  }

  std::int64_t layers;
  std::int64_t heads;
  std::int64_t groups;
  std::int64_t inner;
  std::int64_t experts;
  std::int64_t expert_inner;
  std::int64_t vocabulary;
};

template <typename Fits>
std::vector<std::int64_t> fitting(std::int64_t most, const Fits& fits) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t size = 1; size <= most; ++size) {
    if (fits(size)) sizes.push_back(size);
  }
  return sizes;
}

struct Inference {
  std::int64_t d = 1;
  std::int64_t p = 1;
  std::int64_t t = 1;
  std::int64_t e = 1;

  std::int64_t ranks() const { return d * p * t; }
  std::string layout() const {
    return "tp=" + std::to_string(t) + ",ep=" + std::to_string(e) + ",pp=" + std::to_string(p) +
           ",replicas=" + std::to_string(d);
  }
};

/// Two layouts and how the bytes go from one to the other.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : dice_(seed), model_(dice_.pick(small_models())) {
    const Limits limits(config_of(model_));
    draw_trainers(limits);
    draw_stages(limits);
    draw_experts(limits);
    draw_names();
    // Megatron-Core takes any multiple that the user likes.
    const std::int64_t rows = (limits.vocabulary + trainers_.t - 1) / trainers_.t;
    trainers_.vocabulary_rows = trainers_.t * (rows + dice_.pick<std::int64_t>({0, 0, 1, 5, 130}));
    extension_ = dice_.pick<std::string>({".safetensors", ".safetensors", ".h5"});
    draw_inference(limits);
    draw_options();
  }

  const SmallModel& model() const { return model_; }
  const MegatronLayout& trainers() const { return trainers_; }
  const Inference& inference() const { return inference_; }
  const std::string& extension() const { return extension_; }
  /// What steers the layout of the engine.
  const Words& engine_words() const { return engine_words_; }
  const Words& stream_words() const { return stream_words_; }
  const Words& allocation_words() const { return allocation_words_; }
  const std::string& trainer_allocation() const { return trainer_allocation_; }

  int job_ranks() const {
    return static_cast<int>(trainers_.ranks() + (colocated_ ? 0 : inference_.ranks()));
  }

  std::string text() const {
    std::string text = model_.name + " " + extension_ + ", rows of the vocabulary " +
                       std::to_string(trainers_.vocabulary_rows) + ", names " + trainers_.names.wrappers +
                       " " + trainers_.names.input_norm + " " + trainers_.names.dense_norm +
                       (trainers_.names.local_experts ? " local_experts" : "") +
                       (trainers_.names.chunk_prefix ? "" : " no chunk prefix") + ", " +
                       std::to_string(job_ranks()) + " ranks:";
    for (const std::string& word :
         allocation_words_ + trainer_words(trainers_) + stream_words_ + engine_words_) {
      text += " " + word;
    }
    return text;
  }

 private:
  static constexpr std::int64_t kMostTrainers = 8;
  static constexpr std::int64_t kMostRanks = 12;

  void draw_trainers(const Limits& limits) {
    const auto tp = fitting(kMostTrainers, [&](std::int64_t t) { return limits.fits_tp(t); });
    do {
      trainers_.t = dice_.pick(tp);
      trainers_.p = dice_.pick<std::int64_t>({1, 2, 2, 3, 4});
      trainers_.c = dice_.pick<std::int64_t>({1, 2});
      trainers_.d = dice_.pick<std::int64_t>({1, 1, 2, 3});
    } while (trainers_.ranks() > kMostTrainers);
    trainers_.pp_before_dp = trainers_.p > 1 && dice_.one_in(3);
  }

  void draw_stages(const Limits& limits) {
    if (trainers_.p == 1) return;
    const std::int64_t chunks = dice_.pick<std::int64_t>({1, 1, 2});
    if (chunks == 1 && limits.layers % trainers_.p == 0 && dice_.one_in(2)) return;
    // Stages without a layer hold the embedding or the head.
    trainers_.stage_layers.assign(static_cast<std::size_t>(trainers_.p * chunks), 0);
    for (std::int64_t layer = 0; layer < limits.layers; ++layer) {
      ++trainers_.stage_layers.at(static_cast<std::size_t>(dice_.below(trainers_.p * chunks)));
    }
  }

  void draw_experts(const Limits& limits) {
    const std::int64_t stage = trainers_.d * trainers_.t * trainers_.c;
    // With pp before dp, ranks of one stage are neighbours in runs of t·c, for experts as for attention.
    const bool runs = trainers_.p > 1 && trainers_.pp_before_dp;
    const std::int64_t run = trainers_.t * trainers_.c;
    std::vector<std::pair<std::int64_t, std::int64_t>> choices;
    for (std::int64_t etp = 1; etp <= stage; ++etp) {
      for (std::int64_t e = 1; etp * e <= stage; ++e) {
        const bool divides = limits.experts == 0 ? e == 1 && (runs || etp == 1)
                                                 : limits.experts % e == 0 && limits.expert_inner % etp == 0;
        if (divides && stage % (etp * e) == 0 && (!runs || etp * e == run)) choices.emplace_back(etp, e);
      }
    }
    if (choices.empty()) {
      trainers_.pp_before_dp = false;
      draw_experts(limits);
      return;
    }
    // One group of experts, of which most choices are, is the dull case.
    const auto one = dice_.pick(choices);
    const auto other = dice_.pick(choices);
    std::tie(trainers_.etp, trainers_.e) = one.second > other.second ? one : other;
  }

  void draw_names() {
    MegatronNames& names = trainers_.names;
    names.wrappers = dice_.pick<std::string>(
        {"", "", "module.", "module.module.", "language_model.", "module.module.language_model."});
    names.input_norm =
        dice_.pick<std::string>({"self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight",
                                 "self_attention.input_layernorm.weight"});
    names.dense_norm =
        dice_.pick<std::string>({"mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"});
    names.local_experts = dice_.one_in(2);
    names.global_numbers = dice_.one_in(3);
    names.chunk_prefix = !names.global_numbers || dice_.one_in(2);
  }

  void draw_inference(const Limits& limits) {
    colocated_ = dice_.one_in(4);
    const std::int64_t padded = (limits.vocabulary + 63) / 64 * 64;
    const auto tp =
        fitting(kMostTrainers, [&](std::int64_t t) { return limits.fits_tp(t) && padded % t == 0; });
    const auto pp = fitting(limits.layers, [&](std::int64_t p) { return limits.layers % p == 0; });
    for (;;) {
      inference_.t = dice_.pick(tp);
      inference_.p = dice_.pick(pp);
      inference_.d = dice_.pick<std::int64_t>({1, 1, 2, 3});
      const auto ep = fitting(inference_.t, [&](std::int64_t e) {
        return inference_.t % e == 0 &&
               (limits.experts == 0
                    ? e == 1
                    : limits.experts % e == 0 && limits.expert_inner % (inference_.t / e) == 0);
      });
      inference_.e = dice_.pick(ep);
      const std::int64_t ranks = inference_.ranks();
      if (colocated_ ? ranks == trainers_.ranks() : ranks + trainers_.ranks() <= kMostRanks) return;
    }
  }

  void draw_options() {
    engine_words_ = {"--moe-layout", dice_.pick<std::string>({"triton", "triton", "cutlass"})};
    stream_words_ = {"--bucket-size", dice_.pick<std::string>({"64KiB", "200KiB", "8MiB"}), "--buffers",
                     std::to_string(1 + dice_.below(3))};
    if (dice_.one_in(4)) stream_words_ = stream_words_ + Words{"--fan-out", "all"};
    if (colocated_) stream_words_ = stream_words_ + Words{"--colocate"};
    const std::string inference =
        "sglang:" +
        spell({{'d', inference_.d}, {'p', inference_.p}, {'t', inference_.t}, {'e', inference_.e}});
    trainer_allocation_ = "megatron:" + spell_trainers();
    allocation_words_ = dice_.one_in(2)
                            ? Words{"--alloc", inference + "+" + trainer_allocation_}
                            : Words{"--inference-alloc", inference, "--trainer-alloc", trainer_allocation_};
  }

  /// In any order, with and without letters that say 1.
  std::string spell(std::vector<std::pair<char, std::int64_t>> sizes) {
    dice_.shuffle(sizes);
    const auto kept = sizes.front();
    std::erase_if(sizes, [&](const auto& size) { return size.second == 1 && dice_.one_in(2); });
    if (sizes.empty()) sizes.push_back(kept);
    return letters(sizes);
  }

  std::string spell_trainers() {
    const MegatronLayout& l = trainers_;
    if (l.etp == 1 && dice_.one_in(2)) {
      return spell({{'d', l.d}, {'p', l.p}, {'t', l.t}, {'c', l.c}, {'e', l.e}});
    }
    std::vector<std::pair<char, std::int64_t>> ffn{{'t', l.etp}, {'e', l.e}};
    // What is left out follows from the attention's letters.
    if (dice_.one_in(2)) ffn.emplace_back('d', l.d * l.t * l.c / (l.etp * l.e));
    if (dice_.one_in(2)) ffn.emplace_back('p', l.p);
    std::string both = "attn:" + spell({{'d', l.d}, {'p', l.p}, {'t', l.t}, {'c', l.c}});
    both += "|ffn:" + spell(ffn);
    return dice_.one_in(2) ? "(" + both + ")" : both;
  }

  Dice dice_;
  SmallModel model_;
  MegatronLayout trainers_;
  Inference inference_;
  bool colocated_ = false;
  std::string extension_;
  Words engine_words_;
  Words stream_words_;
  Words allocation_words_;
  std::string trainer_allocation_;
};

class TrainerLayouts : public CliTest, public ::testing::WithParamInterface<int> {};

TEST_P(TrainerLayouts, ShardsAreThoseOfTheCheckpoint) {
  const Draw draw(static_cast<std::uint64_t>(GetParam()));
  SCOPED_TRACE(draw.text());
  const std::string whole = dir_ / "whole";
  const std::string trainers = dir_ / "trainers";
  make_checkpoint(draw.model(), whole);
  write_trainer_shards(shards_of(whole, draw.trainers()), read_json(whole + "/config.json"), trainers,
                       draw.extension());

  const std::string json = dir_ / "report.json";
  EXPECT_TRUE(done(run_job(
      draw.job_ranks(), Words{"sync", "--source", trainers, "--sink", "hdf5:" + sink_, "--json", json} +
                            draw.allocation_words() + trainer_words(draw.trainers()) + draw.engine_words() +
                            draw.stream_words())));
  ASSERT_TRUE(std::filesystem::exists(json));
  EXPECT_TRUE(read_json(json).at("verified").get<bool>());
  const std::string expected = dir_ / "expected";
  EXPECT_TRUE(done(run_job(1 + static_cast<int>(draw.inference().ranks()),
                           Words{"sync", "--source", whole, "--inference", draw.inference().layout(),
                                 "--sink", "hdf5:" + expected} +
                               draw.engine_words())));
  EXPECT_TRUE(same(shard_contents(sink_), shard_contents(expected)));

  const Words source = Words{"--source", trainers, "--trainer-alloc", draw.trainer_allocation()} +
                       trainer_words(draw.trainers());
  EXPECT_TRUE(done(run_plain(Words{"verify", sink_} + source)));
  EXPECT_TRUE(done(run_plain(Words{"convert", "--to", "hf", "--output", dir_ / "back"} + source)));
  EXPECT_TRUE(same(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors,
                   SafetensorsFile::read(whole + "/model.safetensors").tensors));
}

/// WEIGHTCAST_TEST_DRAWS is for a long search: `WEIGHTCAST_TEST_DRAWS=500 cli_trainers
/// --gtest_filter=Draws*`.
int draws() {
  const char* wanted = std::getenv("WEIGHTCAST_TEST_DRAWS");
  return wanted == nullptr ? 16 : std::atoi(wanted);
}
/// The draws from this one on are of all kinds: cut heads, interleaved stages, both orders, each group size.
constexpr int kFirstDraw = 3464;
INSTANTIATE_TEST_SUITE_P(Draws, TrainerLayouts, ::testing::Range(kFirstDraw, kFirstDraw + draws()));

/// The real model with a fourth layer, which is the third of another version, so that no two are alike.
void make_four_layers(const std::string& folder) {
  auto config = read_json(trained(0) + "/config.json");
  config["num_hidden_layers"] = 4;
  SafetensorsFile file = SafetensorsFile::read(trained(0) + "/model.safetensors");
  const std::string third = "model.layers.2.";
  for (const auto& [name, tensor] : SafetensorsFile::read(trained(181) + "/model.safetensors").tensors) {
    if (name.starts_with(third)) file.tensors["model.layers.3." + name.substr(third.size())] = tensor;
  }
  put_file(folder + "/config.json", config.dump());
  file.write(folder + "/model.safetensors");
}

MegatronLayout full_trainers() {
  MegatronLayout layout;
  layout.p = 4;
  layout.t = 2;
  layout.c = 2;
  layout.etp = 2;
  layout.e = 2;
  return layout;
}

constexpr const char* kFullAllocation = "sglang:d4p1t4+megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)";

class FullAllocation : public CliTest {
 protected:
  FullAllocation() {
    make_four_layers(whole_);
    write_trainer_shards(shards_of(whole_, full_trainers()), read_json(whole_ + "/config.json"), trainers_,
                         ".safetensors");
  }

  /// What the test engine computes with four ranks.
  engine::Matrix logits(
      const std::function<engine::MemorySource(const engine::RankLayout&)>& parameters_of) const {
    const auto config = engine::parse_model_config(engine::read_text(whole_ + "/config.json"));
    const auto prompt = engine::read_reference(trained(0) + "/reference.safetensors").prompts.front();
    const engine::ThreadedReplica replica(config, 4, 1, false, parameters_of);
    return replica.run([&](const engine::Model& model) { return model.logits(prompt); });
  }

  engine::Matrix logits_of_replica(std::int64_t replica) const {
    return logits([&](const engine::RankLayout& layout) {
      const engine::FileSource shard(sink_ + "/rank-" + std::to_string(replica * 4 + layout.tp_rank) + ".h5");
      std::map<std::string, engine::Tensor> tensors;
      for (const std::string& name : shard.names()) tensors[name] = shard.read(name);
      return engine::MemorySource(std::move(tensors));
    });
  }

  std::string whole_ = dir_ / "whole";
  std::string trainers_ = dir_ / "trainers";
};

TEST_F(FullAllocation, SixteenTrainersToFourReplicas) {
  const std::string json = dir_ / "report.json";
  CommandLine command =
      job_command(32, {"sync", "--source", trainers_, "--alloc", kFullAllocation, "--bucket-size", "64KiB",
                       "--sink", "hdf5:" + sink_, "--json", json});
  command.timeout = std::chrono::seconds(150);
  ASSERT_TRUE(done(run(command)));
  EXPECT_TRUE(read_json(json).at("verified").get<bool>());
  EXPECT_EQ(folder_contents(sink_).size(), 16);
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", whole_})));
  EXPECT_TRUE(done(run_plain(
      {"verify", sink_, "--source", trainers_, "--trainer-alloc", allocation_of(full_trainers())})));

  const auto config = engine::parse_model_config(engine::read_text(whole_ + "/config.json"));
  const engine::FileSource checkpoint(whole_ + "/model.safetensors");
  const engine::Matrix expected = logits([&](const engine::RankLayout& layout) {
    return engine::MemorySource(engine::cut_rank(config, layout, checkpoint));
  });
  for (std::int64_t replica = 0; replica < 4; ++replica) {
    EXPECT_TRUE(logits_of_replica(replica).values == expected.values) << "replica " << replica;
  }
}

/// Every element has a number of its own in place of its value; the numbers count through the tensors.
struct Numbered {
  explicit Numbered(const SafetensorsFile& checkpoint) : file(checkpoint) {
    for (auto& [name, tensor] : file.tensors) {
      const std::size_t elements = tensor.data.size() / 2;
      first[name] = count;
      tensor.dtype = "I64";
      tensor.data.resize(elements * sizeof(std::int64_t));
      std::vector<std::int64_t> numbers(elements);
      std::iota(numbers.begin(), numbers.end(), count);
      std::memcpy(tensor.data.data(), numbers.data(), tensor.data.size());
      count += static_cast<std::int64_t>(elements);
    }
  }

  SafetensorsFile file;
  std::map<std::string, std::int64_t> first;
  std::int64_t count = 0;
};

/// For each trainer, whether it holds the element of that number.
std::vector<std::vector<char>> holdings(const Numbered& numbered, const nlohmann::json& config,
                                        MegatronLayout layout) {
  layout.junk = '\xff';  // a number of no element
  std::vector<std::vector<char>> held;
  for (const SafetensorsFile& shard : trainer_shards(numbered.file, config, layout)) {
    auto& mine = held.emplace_back(static_cast<std::size_t>(numbered.count));
    for (const auto& [name, tensor] : shard.tensors) {
      std::vector<std::int64_t> numbers(tensor.data.size() / sizeof(std::int64_t));
      std::memcpy(numbers.data(), tensor.data.data(), tensor.data.size());
      for (const std::int64_t number : numbers) {
        if (number >= 0) mine.at(static_cast<std::size_t>(number)) = 1;
      }
    }
  }
  return held;
}

class TrainerPlan : public FullAllocation {
 protected:
  nlohmann::json plan(const Words& more) const {
    EXPECT_TRUE(done(run_plain(Words{"plan", "--json", dir_ / "plan.json"} + more)));
    return read_json(dir_ / "plan.json");
  }
};

TEST_F(TrainerPlan, EveryElementIsSentOnceByOneThatHoldsIt) {
  const auto json = plan({"--source", trainers_, "--alloc", kFullAllocation, "--segments"});
  const SafetensorsFile checkpoint = SafetensorsFile::read(whole_ + "/model.safetensors");
  const Numbered numbered(checkpoint);
  const auto held = holdings(numbered, read_json(whole_ + "/config.json"), full_trainers());
  std::vector<char> sent(static_cast<std::size_t>(numbered.count));
  std::map<std::string, std::size_t> foreign;
  for (const auto& bucket : json.at("buckets")) {
    const auto& mine = held.at(bucket.at("root"));
    for (const auto& segment : bucket.at("segments")) {
      const std::string name = segment.at("tensor");
      const std::int64_t cols = checkpoint.tensors.at(name).shape.back();
      const std::int64_t last_row = segment.at("rows")[1];
      const std::int64_t first_col = segment.at("columns")[0];
      const std::int64_t last_col = segment.at("columns")[1];
      for (std::int64_t row = segment.at("rows")[0]; row < last_row; ++row) {
        for (std::int64_t col = first_col; col < last_col; ++col) {
          const auto number = static_cast<std::size_t>(numbered.first.at(name) + row * cols + col);
          ++sent.at(number);
          foreign[name] += mine.at(number) == 0 ? 1 : 0;
        }
      }
    }
  }
  std::erase_if(foreign, [](const auto& entry) { return entry.second == 0; });
  EXPECT_EQ(foreign, (std::map<std::string, std::size_t>{}));
  EXPECT_TRUE(std::all_of(sent.begin(), sent.end(), [](char count) { return count == 1; }));
}

TEST_F(TrainerPlan, RanksThatHoldTheSameShareTheSending) {
  const auto json = plan({"--model", whole_, "--alloc", kFullAllocation});
  EXPECT_EQ(json.at("trainers"), 16);
  EXPECT_EQ(json.at("inference").at("replicas"), 4);
  ASSERT_EQ(json.at("ranks").size(), 32);
  const auto sent = [&](std::size_t rank) { return json.at("ranks")[rank].at("sent").get<double>(); };
  // Context-parallel ranks hold the same attention, and experts of the same size.
  for (const std::size_t rank : {0, 1, 4, 5, 8, 9, 12, 13}) {
    EXPECT_GT(sent(rank), 0);
    EXPECT_LT(sent(rank), 1.2 * sent(rank + 2)) << rank;
    EXPECT_LT(sent(rank + 2), 1.2 * sent(rank)) << rank;
  }
}

TEST_F(TrainerPlan, TextSaysHowTheAllocationIsRead) {
  const Outcome outcome = run_plain({"plan", "--source", trainers_, "--alloc", kFullAllocation});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(
      has(outcome.out, {"16 ranks: 4 stages × dp 1 × cp 2 × tp 2", "edp 1 × ep 2 × etp 2", "tp, cp, dp, pp",
                        "0..0 | 1..1 | 2..2 | 3..3", "16 ranks: 4 replicas × pp 1 × tp 4, ep 1"}));
  const Outcome other = run_plain({"plan", "--model", whole_, "--alloc", "sglang:t2+megatron:d2p2t2",
                                   "--trainer-order", "tp-pp-dp", "--stage-layers", "1,0,1,2"});
  EXPECT_TRUE(refused(other, 64, {"tp-pp-dp"}));
  const Outcome chunks = run_plain({"plan", "--model", whole_, "--alloc", "sglang:t2+megatron:d2p2",
                                    "--trainer-order", "tp-pp-dp", "--stage-layers", "1,0,1,2"});
  EXPECT_TRUE(done(chunks));
  EXPECT_TRUE(has(chunks.out, {"tp, cp, pp, dp"}));
}

using TrainersOfACheckpoint = CliTest;

TEST_F(TrainersOfACheckpoint, ReadWhatTheyWouldHold) {
  EXPECT_TRUE(
      done(run_job(6, {"sync", "--source", trained(0), "--alloc", "sglang:t2+megatron:(attn:p2c2|ffn:e2)",
                       "--stage-layers", "2,1", "--sink", "hdf5:" + sink_})));
  EXPECT_TRUE(done(run_job(
      3, {"sync", "--source", trained(0), "--inference", "tp=2", "--sink", "hdf5:" + (dir_ / "expected")})));
  EXPECT_TRUE(same(shard_contents(sink_), shard_contents(dir_ / "expected")));
}

TEST_F(TrainersOfACheckpoint, AreMeasuredByBench) {
  const std::string json = dir_ / "bench.json";
  EXPECT_TRUE(done(run_job(6, {"bench", "--model", model_folder("tiny-qwen3-moe"), "--alloc",
                               "sglang:t2e2+megatron:t2c2e2", "--iterations", "2", "--json", json})));
  EXPECT_TRUE(std::filesystem::exists(json));
}

}  // namespace
}  // namespace weightcast::test_support
