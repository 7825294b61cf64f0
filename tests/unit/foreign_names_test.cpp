// Checkpoints of programs that call tensors otherwise or put something beside them.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "binding_fixture.hpp"
#include "model/beside_weights.hpp"
#include "storage_hdf5_files.hpp"

namespace weightcast {
namespace {

class ForeignNames : public BindingTest {
 protected:
  static std::function<std::string(const std::string&)> with(const std::string& prefix) {
    return [prefix](const std::string& name) { return fmt::format("{}{}", prefix, name); };
  }
  /// `prefix` in place of `model.`, and the head as it is.
  static std::function<std::string(const std::string&)> body_at(const std::string& prefix) {
    return [prefix](const std::string& name) {
      return name.starts_with("model.") ? prefix + name.substr(6) : name;
    };
  }
  /// Writes a file with those texts in its metadata.
  void write_with_aliases(const SafetensorsFile& file, const nlohmann::json& aliases) const {
    file.write(path_);
    const std::string bytes = test_support::get_file(path_);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    auto header = nlohmann::json::parse(bytes.substr(8, length));
    header["__metadata__"] = aliases;
    test_support::put_file(path_, test_support::safetensors_bytes(header.dump(), bytes.substr(8 + length)));
  }
  void expect_binds() const {
    const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
    EXPECT_NO_THROW(bind(*family, read_checkpoint(path_)));
  }
};

TEST_F(ForeignNames, OneWordMoreInFrontOfAllNames) {
  for (const char* prefix : {"pretrained_model.", "text_model.", "state_dict.", "actor.", "policy.", "llm.",
                             "model.model.", "_ddp_module.", "a.b.c.", "transformer."}) {
    SCOPED_TRACE(prefix);
    expect_holds(kConfig, renamed(file_, with(prefix)), file_);
  }
  for (const char* prefix : {"model.text_model.", "actor.", "model.language_model.model.", "backbone."}) {
    SCOPED_TRACE(prefix);
    expect_holds(kConfig, renamed(file_, body_at(prefix)), file_);
  }
}

TEST_F(ForeignNames, WhatHasNoPlaceUnderAPrefixIsNamed) {
  SafetensorsFile file = renamed(file_, with("actor."));
  file.tensors["critic.value"] = {"BF16", {1}, "xx"};
  expect_refused(kConfig, file, {path_, "critic.value", "not part of the model"});
  file = renamed(file_, with("actor."));
  file.tensors.erase("actor.model.norm.weight");
  expect_refused(kConfig, file, {path_, "model.norm.weight [128] is missing"});
}

TEST_F(ForeignNames, AModelThatAnAdapterWasAround) {
  const SafetensorsFile around = renamed(file_, with("base_model.model."));
  expect_refused(kConfig, around, {path_, "base_model.model.", "with an adapter", "nothing says whether"});
  SafetensorsFile file = around;
  file.tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] = {"BF16", {1}, "xx"};
  expect_refused(kConfig, file, {path_, "merge_and_unload"});
  file = file_;
  file.tensors["model.layers.0.mlp.up_proj.lora_A.weight"] = {"BF16", {1}, "xx"};
  expect_refused(kConfig, file, {path_, "lora_A", "was not merged"});
}

TEST_F(ForeignNames, TwoModelsAreNamed) {
  SafetensorsFile file = renamed(file_, with("actor."));
  for (const auto& [name, tensor] : file_.tensors) file.tensors[fmt::format("ref.{}", name)] = tensor;
  expect_refused(kConfig, file, {path_, "several models", "'actor.model.'", "'ref.model.'", "alone"});
}

TEST_F(ForeignNames, APrefixIsOnAllNamesOrOnNone) {
  for (const std::string bare : {"model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.",
                                 "model.layers.0.mlp.down_proj.weight", "model.norm.weight",
                                 "model.embed_tokens.weight", "lm_head.weight"}) {
    SCOPED_TRACE(bare);
    const auto but_for_one = [&](const std::string& name) {
      return name.starts_with(bare) ? name : "critic." + name;
    };
    expect_refused(kConfig, renamed(file_, but_for_one), {path_, bare, "'critic.'", "alone"});
  }
  // Where the prefix takes the body's place, too.
  expect_refused(kConfig,
                 renamed(file_,
                         [](const std::string& name) {
                           if (name == "model.norm.weight" || name == "lm_head.weight") return name;
                           return "actor." + name.substr(6);
                         }),
                 {path_, "model.norm.weight", "'actor.'"});
}

TEST_F(ForeignNames, WhatLiesInThePlaceOfAMissingTensorIsNamed) {
  SafetensorsFile file = renamed(file_, [](const std::string& name) {
    const std::size_t at = name.find("gate_proj");
    return at == std::string::npos ? name : std::string(name).replace(at, 9, "gate_up_proj");
  });
  expect_refused(kConfig, file,
                 {path_,
                  "model.layers.0.mlp.gate_proj.weight [128, 128] is missing, and there is "
                  "'model.layers.0.mlp.gate_up_proj.weight' [128, 128], which the model does not have",
                  "--model"});
}

TEST_F(ForeignNames, AMissingHeadMayBeTied) {
  SafetensorsFile file = file_;
  file.tensors.erase("lm_head.weight");
  expect_refused(kConfig, file, {path_, "lm_head.weight [40, 128] is missing", "tie_word_embeddings"});
}

TEST_F(ForeignNames, ATiedModelWhoseHeadAloneWasKept) {
  const auto tied = config_with({{"tie_word_embeddings", true}});
  const SafetensorsFile expected = tensors_of(tied);
  const auto head = [](const std::string& name) {
    return name == "model.embed_tokens.weight" ? "lm_head.weight" : name;
  };
  expect_holds(tied, renamed(expected, head), expected);
  expect_holds(tied, renamed(renamed(expected, head), with("actor.")), expected);
}

TEST_F(ForeignNames, AnAliasMaySpellATensorAnotherWay) {
  write_with_aliases(file_, {{"module.model.norm.weight", "model.norm.weight"}});
  expect_binds();
  write_with_aliases(file_, {{"module.model.norm.weight", "model.layers.0.input_layernorm.weight"}});
  const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
  expect_error([&] { bind(*family, read_checkpoint(path_)); }, {"both the model's model.norm.weight"});
}

TEST_F(ForeignNames, AnAliasCountsThoughAnIndexDoesNotListIt) {
  const std::string folder = dir_ / "indexed";
  std::filesystem::create_directory(folder);
  SafetensorsFile file = file_;
  file.tensors["model.tied"] = file.tensors.at("model.norm.weight");
  file.tensors.erase("model.norm.weight");
  path_ = folder + "/model-00001-of-00001.safetensors";
  write_with_aliases(file, {{"model.norm.weight", "model.tied"}, {"model.old", "model.dropped"}});
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  for (const auto& [name, tensor] : file.tensors)
    index["weight_map"][name] = "model-00001-of-00001.safetensors";
  test_support::put_file(folder + "/model.safetensors.index.json", index.dump());
  expect_holds(kConfig, folder, file_);
  // Also where the index itself is named.
  expect_holds(kConfig, folder + "/model.safetensors.index.json", file_);
  // What the index does not list is no tensor, whatever names it has.
  index["weight_map"].erase("model.tied");
  test_support::put_file(folder + "/model.safetensors.index.json", index.dump());
  const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
  expect_error([&] { bind(*family, read_checkpoint(folder)); }, {"model.norm.weight [128] is missing"});
}

class ForeignNamesInHdf5 : public ForeignNames {
 protected:
  /// Makes a file of chunks with the model's tensors, by the names that `name_of` gives, and what `more`
  /// adds.
  void write_hdf5(const std::function<std::string(const std::string&)>& name_of,
                  const std::function<void(const Hdf5File&)>& more) {
    const Hdf5Lock lock;
    path_ = dir_ / "x.h5";
    const Hdf5File file = testing_files::create_file(path_);
    for (const auto& [name, tensor] : file_.tensors) {
      const std::vector<hsize_t> extents(tensor.shape.begin(), tensor.shape.end());
      const std::vector<hsize_t> chunk(extents.size(), 32);
      testing_files::put_dataset(file, name_of(name), H5T_STD_U16LE, H5T_NATIVE_UINT16, extents,
                                 tensor.data.data(), chunk);
      testing_files::name_dtype(file, name_of(name), "bfloat16");
    }
    more(file);
  }
  static void link(const Hdf5File& file, const std::string& name, const std::string& other) {
    const Hdf5Properties properties(WEIGHTCAST_HDF5(H5Pcreate(H5P_LINK_CREATE), other));
    WEIGHTCAST_HDF5(H5Pset_create_intermediate_group(properties.get(), 1), other);
    WEIGHTCAST_HDF5(
        H5Lcreate_hard(file.get(), name.c_str(), file.get(), other.c_str(), properties.get(), H5P_DEFAULT),
        other);
  }
};

TEST_F(ForeignNamesInHdf5, OtherLinksToADatasetOfChunksAreTheSameTensor) {
  write_hdf5([](const std::string& name) { return name; },
             [&](const Hdf5File& file) {
               for (const auto& [name, tensor] : file_.tensors) {
                 link(file, name, "module." + name);
                 link(file, name, "again/" + name);
               }
               WEIGHTCAST_HDF5(
                   H5Lcreate_soft("/model.norm.weight", file.get(), "soft", H5P_DEFAULT, H5P_DEFAULT), path_);
             });
  expect_holds(kConfig, path_, file_);
}

TEST_F(ForeignNamesInHdf5, ADatasetThatSaysAsMuchIsAnotherTensor) {
  write_hdf5([](const std::string& name) { return name; },
             [&](const Hdf5File& file) {
               const SafetensorsFile::Tensor& norm = file_.tensors.at("model.norm.weight");
               testing_files::put_dataset(file, "module.model.norm.weight", H5T_STD_U16LE, H5T_NATIVE_UINT16,
                                          {128}, norm.data.data(), {32});
               testing_files::name_dtype(file, "module.model.norm.weight", "bfloat16");
             });
  const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
  expect_error([&] { bind(*family, read_checkpoint(path_)); }, {"both the model's model.norm.weight"});
}

TEST_F(ForeignNamesInHdf5, WhatVirtualDatasetsAreReadFromIsNoOtherTensor) {
  const auto part = [](const std::string& name) { return "part-of-" + name; };
  write_hdf5(part, [&](const Hdf5File& file) {
    for (const auto& [name, tensor] : file_.tensors) {
      const std::vector<hsize_t> extents(tensor.shape.begin(), tensor.shape.end());
      const Hdf5Space space(
          WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), name));
      const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), name));
      WEIGHTCAST_HDF5(H5Pset_virtual(creation.get(), space.get(), ".", part(name).c_str(), space.get()),
                      name);
      const Hdf5Dataset made(WEIGHTCAST_HDF5(H5Dcreate2(file.get(), name.c_str(), H5T_STD_U16LE, space.get(),
                                                        H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                                             name));
      testing_files::name_dtype(file, name, "bfloat16");
    }
  });
  expect_holds(kConfig, path_, file_);
}

TEST_F(ForeignNames, ManyAliasesTakeNoLonger) {
  nlohmann::json aliases = nlohmann::json::object();
  for (int i = 0; i < 200'000; ++i) aliases[fmt::format("a{}", i)] = "model.norm.weight";
  write_with_aliases(file_, aliases);
  const auto start = std::chrono::steady_clock::now();
  expect_binds();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(ForeignNames, StateBesideWeightsIsLeftOut) {
  SafetensorsFile file = file_;
  const std::string layer = "model.layers.0.";
  for (const char* name :
       {"self_attn.core_attention._extra_state", "mlp.linear_fc1._extra_state3", "mlp._extra_state/shard_0_1",
        "self_attn.q_proj.weight_quantizer._amax", "self_attn.k_bmm_quantizer._amax",
        "self_attn.k_cache.scale", "self_attn.v_cache.zero_point", "self_attn.masked_bias",
        "self_attn.causal_mask", "self_attn.q_proj.weight_fake_quant.scale"}) {
    file.tensors[layer + name] = {"BF16", {1}, "xx"};
  }
  file.tensors[layer + "self_attn.bias"] = {"BOOL", {1, 1, 2, 2}, "abcd"};
  file.tensors["model.position_ids"] = {"I64", {1}, "12345678"};
  file.tensors["some.buffer"] = {"I32", {1}, "1234"};
  file.tensors["nothing.at_all"] = {"BF16", {0, 3}, ""};
  expect_holds(kConfig, file, file_);
}

TEST_F(ForeignNames, IntegersOfAQuantisedModelAreNoBuffers) {
  const nlohmann::json config =
      config_with({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}});
  SafetensorsFile file = tensors_of(config);
  file.tensors["model.layers.2.mlp.up_proj.weight"] = {"U8", {1}, "x"};
  expect_refused(config, file, {path_, "model.layers.2.mlp.up_proj.weight", "not part of the model"});
}

TEST_F(ForeignNames, AFactorOfWeightsIsNoBuffer) {
  SafetensorsFile file = file_;
  file.tensors["model.layers.0.mlp.up_proj.input_quantizer._pre_quant_scale"] = {"BF16", {1}, "xx"};
  expect_refused(kConfig, file, {path_, "_pre_quant_scale", "not part of the model"});
}

TEST_F(ForeignNames, TheStateOfATrainingRunIsCalledSo) {
  const std::vector<std::pair<const char*, const char*>> cases{
      {"v_head.summary.weight", "a value head"},
      {"optimizer.state.exp_avg.model.norm.weight", "an optimizer's state"},
      {"model.norm.weight.exp_avg", "an optimizer's state"},
      {"ema.model.norm.weight", "a moving average"},
      {"global_step", "a training run"},
      {"rng_state", "a training run"},
      {"iteration", "a training run"}};
  for (const auto& [name, what] : cases) {
    SafetensorsFile file = file_;
    file.tensors[name] = {"I64", {1}, "12345678"};
    expect_refused(kConfig, file,
                   {path_, name, what, "write the weights alone", "of safetensors, list them in"});
  }
  EXPECT_EQ(training_state("model.layers.0.mlp.gate.weight"), "");
}

TEST_F(ForeignNames, AStackOfExpertsBesideOneOfThem) {
  const auto config = config_with({{"architectures", {"Qwen3MoeForCausalLM"}},
                                   {"model_type", "qwen3_moe"},
                                   {"num_experts", 2},
                                   {"num_experts_per_tok", 1},
                                   {"moe_intermediate_size", 64}});
  SafetensorsFile file = tensors_of(config);
  const std::string experts = "model.layers.0.mlp.experts.";
  const std::string stacked = experts + "down_proj";
  const std::string single = experts + "1.down_proj.weight";
  SafetensorsFile::Tensor stack{"BF16", {2, 128, 64}, {}};
  for (const char* expert : {"0", "1"}) {
    stack.data += file.tensors.at(fmt::format("{}{}.down_proj.weight", experts, expert)).data;
    file.tensors.erase(fmt::format("{}{}.down_proj.weight", experts, expert));
  }
  file.tensors[stacked] = stack;
  expect_holds(config, file, tensors_of(config));
  file.tensors[single] = {"BF16", {128, 64}, std::string(128 * 64 * 2, 'x')};
  expect_refused(config, file, {path_, single, stacked, "remove the one"});
}

}  // namespace
}  // namespace weightcast
