// What checkpoints call their tensors, what they hold beside the model's, and what is wrong with them.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "binding_fixture.hpp"

namespace weightcast {
namespace {

using BindingNames = BindingTest;
using BindingExtras = BindingTest;
using BindingFaults = BindingTest;

TEST_F(BindingNames, WrappersAreStrippedWhereverTheyAre) {
  const std::vector<std::function<std::string(const std::string&)>> renames{
      [](const std::string& name) { return "_orig_mod." + name; },
      [](const std::string& name) { return "module." + name; },
      [](const std::string& name) { return "module._orig_mod.module." + name; },
      [](const std::string& name) { return "_fsdp_wrapped_module." + name; },
      [](const std::string& name) { return "_forward_module.module." + name; },
      [](const std::string& name) {
        const std::size_t layer = name.find("layers.");
        return layer == std::string::npos
                   ? name
                   : std::string(name).insert(layer + 9, "_checkpoint_wrapped_module.");
      },
      [](const std::string& name) {
        const std::size_t at = name.find("self_attn.");
        return at == std::string::npos ? name
                                       : std::string(name).insert(at + 10, "_fsdp_wrapped_module._orig_mod.");
      },
      [](const std::string& name) {
        const std::size_t dot = name.rfind('.');
        return std::string(name).insert(dot + 1, "_fpw_module.");
      }};
  for (const auto& rename : renames) {
    SCOPED_TRACE(rename("model.layers.0.self_attn.q_proj.weight"));
    expect_holds(kConfig, renamed(file_, rename), file_);
  }
}

TEST_F(BindingNames, ABodyWithoutOrWithMorePrefixes) {
  const auto bare = [](const std::string& name) {
    return name.starts_with("model.") ? name.substr(6) : name;
  };
  expect_holds(kConfig, renamed(file_, bare), file_);
  const std::vector<std::string> prefixes{"model.", "language_model.", "module.language_model."};
  for (const std::string& prefix : prefixes) {
    expect_holds(kConfig, renamed(file_, [&](const std::string& name) { return prefix + name; }), file_);
  }
  expect_holds(kConfig, renamed(file_, [&](const std::string& name) { return "_orig_mod." + bare(name); }),
               file_);
  expect_holds(kConfig,
               renamed(file_,
                       [&](const std::string& name) {
                         return name.starts_with("model.") ? "model.language_model." + bare(name) : name;
                       }),
               file_);
}

TEST_F(BindingNames, TwoNamesOfOneTensorAreRefused) {
  SafetensorsFile file = file_;
  file.tensors["_orig_mod.model.norm.weight"] = file.tensors.at("model.norm.weight");
  expect_refused(kConfig, file, {path_, "_orig_mod.model.norm.weight", "both the model's model.norm.weight"});
  file = file_;
  file.tensors["norm.weight"] = file.tensors.at("model.norm.weight");
  expect_refused(kConfig, file, {"norm.weight", "both the model's model.norm.weight"});
}

TEST_F(BindingNames, ABodyThatIsCalledBackboneInFilesAndModelInMemory) {
  const std::string folder = std::string(WEIGHTCAST_TEST_DATA) + "/vllm/nemotron-h";
  const auto config = nlohmann::json::parse(test_support::get_file(folder + "/config.json"));
  const auto family = make_family(ModelConfig(config.dump(), "config.json"));
  const SafetensorsFile file = tensors_of(config);
  // As the module has it: experts stacked, other names before the layers.
  const auto listed = nlohmann::json::parse(test_support::get_file(folder + "/memory.json"));
  SafetensorsFile memory;
  const std::map<std::string, std::string> types{{"bfloat16", "BF16"}, {"float32", "F32"}};
  for (const auto& [name, entry] : listed.items()) {
    SafetensorsFile::Tensor& tensor = memory.tensors[name];
    tensor.dtype = types.at(entry.at("dtype"));
    tensor.shape = entry.at("shape").get<std::vector<std::int64_t>>();
    const std::string stored = name.starts_with("model.") ? "backbone." + name.substr(6) : name;
    if (const auto found = file.tensors.find(stored); found != file.tensors.end()) {
      tensor = found->second;
      continue;
    }
    const std::size_t dot = stored.rfind('.');
    for (int expert = 0; expert < 6; ++expert) {
      tensor.data +=
          file.tensors.at(fmt::format("{}.{}{}.weight", stored.substr(0, dot), expert, stored.substr(dot)))
              .data;
    }
  }
  expect_holds(config, memory, file);
  expect_holds(config, renamed(file, [](const std::string& name) { return "module.language_model." + name; }),
               file);
}

TEST_F(BindingNames, TextModelsOfKimiInBothSpellings) {
  const auto text = nlohmann::json::parse(
      test_support::get_file(std::string(WEIGHTCAST_TEST_DATA) + "/vllm/deepseek-v3/config.json"));
  const nlohmann::json config{{"architectures", {"Kimi_K25ForConditionalGeneration"}},
                              {"model_type", "kimi_k25"},
                              {"text_config", text}};
  const SafetensorsFile file = tensors_of(config);
  // As the hub has it, and as transformers writes it; what sees stands beside the text model.
  for (const std::string layers : {"layers.", "blocks."}) {
    SafetensorsFile stored = renamed(file, [&](std::string name) {
      if (const std::size_t at = name.find(".layers."); at != std::string::npos)
        name.replace(at + 1, 7, layers);
      return "language_model." + name;
    });
    EXPECT_TRUE(stored.tensors.contains("language_model.model." + layers + "0.input_layernorm.weight"));
    for (const char* name : {"vision_tower.encoder.blocks.0.norm0.weight", "mm_projector.proj.0.weight",
                             "model.mm_projector.pre_norm.weight"}) {
      stored.tensors[name] = {"BF16", {1}, "xx"};
    }
    expect_holds(config, stored, file);
  }
  EXPECT_EQ(canonical_name("model.blocks.0.x"), "model.blocks.0.x");
}

TEST_F(BindingNames, AWordThatIsNoWrapperStays) {
  EXPECT_EQ(without_wrappers("model.modules.weight"), "model.modules.weight");
  EXPECT_EQ(without_wrappers("module"), "module");
  EXPECT_EQ(without_wrappers("a.module"), "a.module");
  EXPECT_EQ(without_wrappers(""), "");
  EXPECT_EQ(canonical_name("lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(canonical_name("model.lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(canonical_name("norm.weight"), "model.norm.weight");
  EXPECT_EQ(canonical_name("normal.weight"), "normal.weight");
}

TEST_F(BindingNames, AdaptersAreNamed) {
  for (const char* name :
       {"base_model.model.model.norm.weight", "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.0.self_attn.q_proj.lora_magnitude_vector"}) {
    SafetensorsFile file = file_;
    file.tensors[name] = {"BF16", {1}, "xx"};
    expect_refused(kConfig, file, {path_, name, "merge_and_unload"});
  }
}

TEST_F(BindingExtras, WhatCannotBeReadHarmsNobody) {
  SafetensorsFile file = file_;
  file.tensors["model.rotary_emb.frequencies"] = {"C64", {2}, std::string(16, 'x')};
  file.tensors["something.deep"] = {"U8", {1, 1, 1, 1, 1}, "x"};
  expect_holds(kConfig, file, file_);
}

TEST_F(BindingExtras, WhatIsNeededAndCannotBeReadIsNamed) {
  SafetensorsFile file = file_;
  file.tensors["model.norm.weight"] = {"C64", {128}, std::string(1024, 'x')};
  expect_refused(kConfig, file, {path_, "model.norm.weight", "C64"});
}

TEST_F(BindingExtras, AnotherNameOfATensorHarmsNobody) {
  file_.write(path_);
  std::string bytes = test_support::get_file(path_);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  auto header = nlohmann::json::parse(bytes.substr(8, length));
  header["__metadata__"] = {{"best", "model.norm.weight"}};
  test_support::put_file(path_, test_support::safetensors_bytes(header.dump(), bytes.substr(8 + length)));
  const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
  EXPECT_NO_THROW(bind(*family, read_checkpoint(path_)));
}

TEST_F(BindingExtras, ATensorOfNoModelIsNamed) {
  SafetensorsFile file = file_;
  file.tensors["model.layers.2.mlp.up_proj.weight"] = {"BF16", {1}, "xx"};
  expect_refused(kConfig, file, {path_, "model.layers.2.mlp.up_proj.weight", "not part of the model"});
}

TEST_F(BindingFaults, PlaceholdersOfShardedTraining) {
  SafetensorsFile file = file_;
  file.tensors["model.layers.1.mlp.up_proj.weight"] = {"BF16", {0}, ""};
  expect_refused(kConfig, file, {path_, "model.layers.1.mlp.up_proj.weight", "[0]", "gather the weights"});
}

TEST_F(BindingFaults, AFileOfASavingThatIsMissing) {
  SafetensorsFile file = file_;
  file.tensors.erase("model.norm.weight");
  const std::string folder = dir_ / "saving";
  std::filesystem::create_directory(folder);
  file.write(folder + "/model-00001-of-00002.safetensors");
  const auto family = make_family(ModelConfig(kConfig.dump(), "config.json"));
  expect_error([&] { bind(*family, read_checkpoint(folder)); },
               {folder, "model.norm.weight [128] is missing", "the file model-00002-of-00002.safetensors"});
  // Where all files are there it is not a file that is missing.
  SafetensorsFile rest;
  rest.write(folder + "/model-00002-of-00002.safetensors");
  expect_error([&] { bind(*family, read_checkpoint(folder)); }, {"the checkpoint is incomplete"});
}

TEST_F(BindingFaults, ALeftOverQuantizationConfig) {
  const nlohmann::json config =
      config_with({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}});
  expect_refused(config, file_,
                 {path_, "q_proj.weight is bfloat16", "field 'quantization_config' of", "holds codes",
                  "remove the field"});
  // All but one module are quantised.
  SafetensorsFile file = tensors_of(config);
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  file.tensors[name] = file_.tensors.at(name);
  expect_refused(config, file, {path_, name, "list model.layers.1.mlp.up_proj among the modules"});
}

TEST_F(BindingFaults, CodesWithoutAQuantizationConfig) {
  const nlohmann::json config =
      config_with({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}});
  expect_refused(kConfig, tensors_of(config), {path_, "float8_e4m3fn", "quantization_config"});
}

TEST_F(BindingFaults, CodesOfAModuleThatIsListedAsValues) {
  const nlohmann::json fp8{{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  const SafetensorsFile file = tensors_of(config_with({{"quantization_config", fp8}}));
  for (const char* listed : {"model.layers.1.mlp.up_proj", "re:.*up_proj"}) {
    nlohmann::json wrong = fp8;
    wrong["modules_to_not_convert"] = {listed};
    expect_refused(config_with({{"quantization_config", wrong}}), file,
                   {path_, "up_proj.weight is float8_e4m3fn but field 'quantization_config' of",
                    "list of modules that are not quantised", "take it off"});
  }
}

TEST_F(BindingFaults, AnotherDtypeThanTheConfigs) {
  SafetensorsFile file = file_;
  for (auto& [name, tensor] : file.tensors) tensor.dtype = "F16";
  expect_refused(kConfig, file,
                 {path_, "float16 but the model's config says bfloat16", "set \"dtype\" to \"float16\""});
  for (auto& [name, tensor] : file.tensors) tensor.dtype = "U16";
  expect_refused(kConfig, file, {path_, "is uint16", "write them as BF16"});
}

TEST_F(BindingFaults, NothingThatTheModelKnows) {
  const auto slashes = [](std::string name) {
    std::ranges::replace(name, '.', '/');
    return name;
  };
  expect_refused(kConfig, renamed(file_, slashes),
                 {path_, "model.embed_tokens.weight [40, 128] is missing",
                  "there is 'model/embed_tokens/weight'", "save_pretrained"});
}

class TiedHead : public BindingTest {
 protected:
  void compare(const SafetensorsFile& file) {
    file.write(path_);
    const auto family = make_family(ModelConfig(tied_.dump(), "config.json"));
    const Checkpoint checkpoint = read_checkpoint(path_);
    const Binding binding = bind(*family, checkpoint);
    ThreadPool readers(2);
    // However the work is divided.
    for (std::int64_t i = 0; i < 3; ++i) {
      require_equal_copies(family->catalog(), checkpoint, binding, readers, {i, 3}, [] {});
    }
  }
  void expect_differs(const SafetensorsFile& file, std::initializer_list<std::string_view> words) {
    expect_error([&] { compare(file); }, words);
  }

  nlohmann::json tied_ = config_with({{"tie_word_embeddings", true}});
  SafetensorsFile tied_file_ = tensors_of(tied_);
};

TEST_F(TiedHead, NoneAndAnEqualOneAreFine) {
  compare(tied_file_);
  SafetensorsFile file = tied_file_;
  file.tensors["lm_head.weight"] = file.tensors.at("model.embed_tokens.weight");
  compare(file);
  expect_holds(tied_, file, tied_file_);
  compare(renamed(file, [](const std::string& name) { return "_orig_mod." + name; }));
}

TEST_F(TiedHead, AnyRowThatDiffersIsNoticed) {
  for (const std::size_t row : {std::size_t{0}, std::size_t{13}, std::size_t{39}}) {
    SafetensorsFile file = tied_file_;
    auto& head = file.tensors["lm_head.weight"] = file.tensors.at("model.embed_tokens.weight");
    head.data[row * 256 + 100] = static_cast<char>(head.data[row * 256 + 100] ^ 1);
    expect_differs(file, {path_, "lm_head.weight", fmt::format("differs (from row {} on)", row),
                          "model.embed_tokens.weight", "tie_word_embeddings", "--tied-head embedding"});
  }
}

TEST_F(TiedHead, AnotherShapeOrPrecisionIsLookedAt) {
  SafetensorsFile file = tied_file_;
  auto& head = file.tensors["lm_head.weight"] = file.tensors.at("model.embed_tokens.weight");
  head.shape = {20, 256};
  // As a head of its own it would have the wrong shape, too.
  expect_differs(file, {"lm_head.weight", "[20, 256] has another shape than", "model.embed_tokens.weight",
                        "would drop it; keep the embedding with --tied-head embedding"});
  head.shape = {40, 128};
  // The same numbers in float32.
  head = test_support::widened(tied_file_.tensors.at("model.embed_tokens.weight"));
  compare(file);
}

}  // namespace
}  // namespace weightcast
