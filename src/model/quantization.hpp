#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/quantizer.hpp"
#include "model/catalog.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// How the weights of linear layers and experts are quantised in an engine: what planes they have, what those
/// are called, and which boxes of which tensors feed them. Two origins: tensors that are quantised on the
/// way, and checkpoints that hold codes and scales already.
class Quantization {
 public:
  enum class Origin : std::uint8_t {
    kComputed,  ///< the model's tensors are values; parts name the plane
    kStored,    ///< the model's tensors are codes; scales are tensors of their own
  };

  /// `catalog` must outlive it.
  Quantization(const Catalog& catalog, Quantizer quantizer, Origin origin = Origin::kComputed);

  Quantizer quantizer() const { return quantizer_; }
  Origin origin() const { return origin_; }

  /// Whether there are scales of blocks, and one scale for a whole tensor.
  bool has_scales() const { return block_scale_bytes(quantizer_.scheme) > 0; }
  bool has_global() const { return weightcast::has_global(quantizer_.scheme); }

  /// How a plane (codes or scales) divides a matrix of `cols` columns.
  PlaneForm form(Plane plane, std::int64_t cols) const;
  /// The type of its elements: float8_e4m3fn, e2m1x2; float32, float8_e4m3fn or float8_e8m0.
  DType dtype(Plane plane) const;

  /// What `stack` and `place` need to make a parameter of the plane. Stored codes and scales are tensors of
  /// their own, of which every element stands for itself.
  PlaneType type(Plane plane, std::int64_t cols) const;

  /// Rows and columns of the matrix that a tensor stands for, in values, and `box` of its elements likewise.
  Shape shape(std::uint32_t tensor) const;
  Box values(const Box& box) const;

  /// What feeds the plane of `box`, a box of the values of `tensor`. Throws UsageError, naming `option`, when
  /// the box cuts a block in two (it may end with the tensor), InputError when a stored tensor has no scales,
  /// or such as do not fit it.
  TensorBox box(Plane plane, std::uint32_t tensor, const Box& box, std::uint32_t scope,
                const std::string& option) const;

  /// The tensor whose single element is the stored scale of all of `tensor`; InputError when there is none.
  std::uint32_t stored_global(std::uint32_t tensor) const;

  /// Behind the name of a weight: `_scale_inv` or `_scale`, and `_scale` or `_scale_2`.
  const char* scales_suffix() const;
  const char* global_suffix() const;

 private:
  std::uint32_t companion(std::uint32_t tensor, const char* suffix) const;

  const Catalog& catalog_;
  Quantizer quantizer_;
  Origin origin_;
};

/// The parameter of the fp32 scales of n groups of m tensors. Computed scales are one for each group, [n].
/// Stored scales are one for each tensor, as engines keep them until they merge the tensors: [n, m], or [m]
/// for one group, [n] where m is 1. Throws InputError for a stored tensor without such a scale.
Parameter global_scales(const Catalog& catalog, std::string name,
                        const std::vector<std::vector<std::uint32_t>>& groups,
                        const Quantization& quantization);

/// What an engine keeps of a matrix of stacked parts (qkv, gate_up, …) when its tensors are quantised: the
/// codes under its own name, and scales stacked in the same order, those of 4-bit codes in tiles of 128 × 4
/// as kernels for them read. The parts share a global scale. Throws UsageError naming `option` for a part
/// that cuts a block or a tile in two.
std::vector<Parameter> quantized_stack(const Catalog& catalog, const Parameter& values,
                                       const Quantization& quantization, const std::string& option);

}  // namespace weightcast
