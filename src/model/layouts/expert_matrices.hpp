#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/matrix_layout.hpp"
#include "core/shape.hpp"
#include "model/catalog.hpp"
#include "model/engine.hpp"
#include "model/parameter.hpp"
#include "model/quantization.hpp"

namespace weightcast {

/// The three matrices of one gated expert: gate [I, H], up [I, H], down [H, I], as catalog indices.
struct ExpertTensors {
  std::uint32_t gate = 0;
  std::uint32_t up = 0;
  std::uint32_t down = 0;
};

/// The experts that one rank holds of one layer, in the order of its slots.
struct LocalExperts {
  std::string prefix;                    ///< `model.layers.0.mlp.experts`, or a module in it
  std::span<const ExpertTensors> slots;  ///< contiguous placement: slot e holds expert ep_rank × slots + e
  std::int64_t inner_parts = 1;  ///< each expert's inner size is cut this many ways, a divisor (tp/ep)
  std::int64_t inner_rank = 0;   ///< and this rank holds this part
  const Quantization* quantization = nullptr;  ///< none: their values
  ActivationScales activations = {};
};

/// A plane (values, codes, scales) of gate, up or down of one expert on one rank, padding included.
struct PlaneMatrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;     ///< in elements of the plane
  std::int64_t element = 0;  ///< bytes
};

/// Where a plane of w13 or of w2 lies in the slab of one expert. Slabs lie one behind the other.
struct SlabLayout {
  Shape shape = {};          ///< of a slab: the parameter is [El, …shape]
  MatrixLayout layout = {};  ///< of each matrix; unset: its rows lie one behind the other
  std::int64_t rows = 0;     ///< of each matrix, with what this layout pads beyond PlaneMatrix
  std::int64_t cols = 0;
  std::int64_t gate = 0;  ///< of w13: the bytes of the slab before gate's row 0, and before up's
  std::int64_t up = 0;
};

/// Says where a matrix lies in its slab. For w13 the argument is one half, and the result is for both.
using Placing = SlabLayout (*)(const PlaneMatrix& matrix);

/// Names of the parameters [El] of float32 by which kernels multiply an expert's products. a and b are the
/// scales of what goes into w13 and into w2, s13 and s2 those of the weights.
struct OutputScalars {
  const char* gate = nullptr;   ///< a · s13
  const char* inner = nullptr;  ///< (1/b) · a · s13
  const char* down = nullptr;   ///< b · s2
};

/// Everything that a layout does with a layer's experts.
struct ExpertMatrices {
  Placing w13 = nullptr;         ///< values, or codes
  Placing w2 = nullptr;          ///< as above
  Placing w13_scales = nullptr;  ///< of blocks; unused where the quantiser has none
  Placing w2_scales = nullptr;   ///< as above
  /// The part I/T of a rank is padded to a multiple of this, Ip. Rank t has [t·Ip, (t+1)·Ip) of the inner
  /// size, zeros from I on: the padded size is the stride.
  std::int64_t inner_unit = 1;
  /// The inner size is cut before it is padded: rank t has [t·I/T, (t+1)·I/T), zeros behind.
  bool padded_after_cut = false;
  /// Scales are kept as exponent bytes (float8_e8m0fnu), one for each row of a block.
  bool scale_for_each_row = false;
  OutputScalars scalars = {};  ///< unset: the kernels have none
};

/// Appends `.w13_weight` and `.w2_weight` of a layer's experts and behind each of them what its quantiser
/// keeps beside the codes: scales of blocks, and one scale for an expert, which gate and up share. Throws
/// UsageError where a rank's part cuts a block in two, InputError where a checkpoint lacks stored scales.
void add_experts(const Catalog& catalog, const LocalExperts& experts, const ExpertMatrices& matrices,
                 std::vector<Parameter>& parameters);

// Placings of more than one layout.

/// [gate ; up], rows in their order: [2·rows, cols].
SlabLayout gate_first(const PlaneMatrix& half);

/// [up ; gate].
SlabLayout up_first(const PlaneMatrix& half);

/// One matrix, row by row.
SlabLayout row_major(const PlaneMatrix& matrix);

}  // namespace weightcast
