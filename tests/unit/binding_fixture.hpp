#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.hpp"
#include "model/family.hpp"
#include "model/stored_names.hpp"
#include "source/binding.hpp"
#include "source/bound_reader.hpp"
#include "source/copies.hpp"
#include "storage/checkpoint.hpp"
#include "support/files.hpp"
#include "support/safetensors_file.hpp"
#include "support/temp_dir.hpp"

namespace weightcast {

using test_support::SafetensorsFile;

inline const nlohmann::json kConfig = {{"architectures", {"Qwen3ForCausalLM"}},
                                       {"model_type", "qwen3"},
                                       {"dtype", "bfloat16"},
                                       {"hidden_size", 128},
                                       {"intermediate_size", 128},
                                       {"num_hidden_layers", 2},
                                       {"num_attention_heads", 2},
                                       {"num_key_value_heads", 1},
                                       {"head_dim", 64},
                                       {"vocab_size", 40},
                                       {"tie_word_embeddings", false}};

inline nlohmann::json config_with(const nlohmann::json& changes) {
  nlohmann::json config = kConfig;
  config.merge_patch(changes);
  return config;
}

inline std::string kind_of(DType dtype) {
  return std::string(dtype_safetensors_name(dtype));
}

inline std::string bytes_of(const std::string& name, std::int64_t count) {
  std::string bytes(static_cast<std::size_t>(count), '\0');
  std::uint32_t state = static_cast<std::uint32_t>(std::hash<std::string>{}(name)) | 1U;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    state = state * 1664525 + 1013904223;
    // Of two bytes, no exponent of a value that is no number.
    bytes[i] = static_cast<char>(state >> 24U & (i % 2 == 1 ? 0xbfU : 0xffU));
  }
  return bytes;
}

class BindingTest : public ::testing::Test {
 protected:
  /// A checkpoint with exactly the tensors of a config's model.
  static SafetensorsFile tensors_of(const nlohmann::json& config) {
    SafetensorsFile file;
    const auto family = make_family(ModelConfig(config.dump(), "config.json"));
    for (const Tensor& tensor : family->catalog().tensors()) {
      const auto extents = tensor.shape.extents();
      file.tensors[tensor.name] = {
          kind_of(tensor.dtype), {extents.begin(), extents.end()}, bytes_of(tensor.name, tensor.bytes())};
    }
    return file;
  }

  /// The same file under other names.
  static SafetensorsFile renamed(const SafetensorsFile& file,
                                 const std::function<std::string(const std::string&)>& rename) {
    SafetensorsFile result;
    for (const auto& [name, tensor] : file.tensors) result.tensors[rename(name)] = tensor;
    return result;
  }

  /// Binds a file and, when all is well, expects every tensor of the model to hold what `expected` has under
  /// its name.
  void expect_holds(const nlohmann::json& config, const SafetensorsFile& file,
                    const SafetensorsFile& expected) {
    file.write(path_);
    expect_holds(config, path_, expected);
  }

  /// The same of the checkpoint at a path.
  static void expect_holds(const nlohmann::json& config, const std::string& path,
                           const SafetensorsFile& expected) {
    const auto family = make_family(ModelConfig(config.dump(), "config.json"));
    const Checkpoint checkpoint = deserialize_checkpoint(serialize(read_checkpoint(path)));
    const Binding binding = bind(*family, checkpoint);
    const BoundReader reader(family->catalog(), checkpoint, binding.held);
    for (std::uint32_t i = 0; i < family->catalog().size(); ++i) {
      const Tensor& tensor = family->catalog()[i];
      std::string bytes(static_cast<std::size_t>(tensor.bytes()), '\0');
      reader.read(i, Box::whole(tensor.shape), reinterpret_cast<std::byte*>(bytes.data()));
      EXPECT_TRUE(bytes == expected.tensors.at(tensor.name).data) << tensor.name;
    }
  }

  void expect_refused(const nlohmann::json& config, const SafetensorsFile& file,
                      std::initializer_list<std::string_view> words) {
    file.write(path_);
    const auto family = make_family(ModelConfig(config.dump(), "config.json"));
    expect_error([&] { bind(*family, read_checkpoint(path_)); }, words);
  }

  static void expect_error(const std::function<void()>& action,
                           std::initializer_list<std::string_view> words) {
    try {
      action();
    } catch (const InputError& error) {
      for (const std::string_view word : words) {
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
            << word << " is not in: " << error.what();
      }
      return;
    }
    ADD_FAILURE() << "accepted";
  }

  test_support::TempDir dir_;
  std::string path_ = dir_ / "x.safetensors";
  SafetensorsFile file_ = tensors_of(kConfig);
};

}  // namespace weightcast
