#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "model/engine.hpp"
#include "model/family.hpp"
#include "naive_quantizer.hpp"

/// What the product must come to, said a second time and as plainly as possible: which tensors a Qwen3 or
/// Qwen3-MoE model has and which element of which tensor stands where in every parameter of an engine rank,
/// element by element, from the formulas of the engines. Nothing here uses the product's catalog, layouts or
/// plan.
namespace weightcast::naive {

/// A model in the words of its config.json.
struct Model {
  bool moe = false;
  std::int64_t hidden = 16;
  std::int64_t layers = 2;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t head_dim = 4;
  std::int64_t vocabulary = 100;
  std::int64_t inner = 24;
  std::int64_t experts = 4;
  std::int64_t expert_inner = 8;
  std::int64_t sparse_step = 1;
  std::vector<std::int64_t> mlp_only_layers;
  bool tied = false;
  bool bias = false;
  DType dtype = DType::kBF16;

  bool is_moe_layer(std::int64_t layer) const;

  /// Its config.json.
  std::string config_text() const;

  /// The product's family for it.
  std::unique_ptr<Family> family() const;
};

struct Entry {
  std::string name;
  Shape shape;
};

/// Every tensor of the model, in network order.
std::vector<Entry> tensors(const Model& model);

/// Row-major bytes of whole tensors, by name.
using Weights = std::map<std::string, std::vector<std::byte>>;

/// Pseudo-random bytes for every tensor; another version, other bytes.
Weights random_weights(const Model& model, std::uint64_t version);

/// Values as trained weights have them: rows and tensors of unlike sizes, zeros, now and then one that is
/// infinite or no number. For bfloat16 models.
Weights random_values(const Model& model, std::uint64_t version);

/// The tensors of linear layers and experts, by name. Those that an engine fuses, and gate and up of one
/// expert, share the scale over all where there is one.
using Quantized = std::map<std::string, QuantizedTensor>;
Quantized quantize(const Model& model, Quantizer quantizer, const Weights& weights);

/// A parameter as an engine rank must find it.
struct Parameter {
  std::string name;
  Shape shape;
  std::vector<std::byte> bytes;
  DType dtype = DType::kBF16;
};

/// All parameters of the rank at (pp, tp) of a replica, in network order. `quantized`: what a layout with a
/// quantiser takes linear layers and experts from.
std::vector<Parameter> parameters(const Model& model, const EngineLayout& layout, const EngineRank& rank,
                                  const Weights& weights, const Quantized& quantized = {});

}  // namespace weightcast::naive
