#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "model/engine.hpp"

namespace weightcast {

/// A box of a tensor that lands in a parameter, its first element at (`row`, `col`) of the parameter's matrix
/// view. Turned, element (r, c) of the box lies c rows and r columns from there.
struct Landing {
  std::uint32_t tensor = 0;  ///< index into LandingMap::tensors
  Box box;
  std::int64_t row = 0;
  std::int64_t col = 0;
  bool turned = false;

  /// What it fills of the parameter.
  Box place() const { return turned ? Box{row, box.cols, col, box.rows} : Box{row, box.rows, col, box.cols}; }
};

/// Which of its experts' matrices a parameter [experts, rows, columns] holds, as an engine's loader has left
/// them: gate's rows above up's, or down.
enum class ExpertWeights : std::uint8_t { kNone, kW13, kW2 };

/// A parameter of one rank. Each element is in one landing or in one box of `zero` or `left`; of a loaded
/// parameter none is.
struct LandedParameter {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  ExpertWeights experts = ExpertWeights::kNone;
  std::vector<Landing> landings;
  std::vector<Box> zero;             ///< what the loader sets to zero
  std::vector<Box> left;             ///< what it leaves as it is
  std::vector<std::string> aliases;  ///< other names of the same memory
  bool loaded = false;               ///< the engine's loader writes it
};

/// A tensor that no boxes describe, because the engine's loader computes with it.
struct LoadedTensor {
  std::uint32_t tensor = 0;
  std::vector<std::string> parameters;
  std::string why;
};

struct LandingRank {
  std::vector<LandedParameter> parameters;
  std::vector<std::string> left;  ///< parameters that no tensor feeds: the engine makes them itself
  std::vector<LoadedTensor> loader;
  std::int64_t skipped = 0;  ///< tensors that this rank does not read
};

/// A tensor of the checkpoint, and what all ranks together do with it.
struct LandedTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  bool read = false;            ///< some rank reads it
  DType wanted = DType::kBF16;  ///< of the parameters that do, into which values are widened or rounded
  std::int64_t unread = 0;      ///< elements that no rank reads
};

/// Where an engine's own loader puts every element of a checkpoint, on every rank of one replica: what
/// `weightcast learn` has found out, in place of a family's rules. The file is JSON; README.md
/// beside this has its format.
struct LandingMap {
  std::string origin;  ///< the file
  Engine engine = Engine::kVllm;
  std::string engine_version;
  std::string architecture;
  std::int64_t tp = 1;
  std::int64_t pp = 1;
  std::int64_t ep = 1;
  std::vector<std::int64_t> stage_layers;
  std::vector<LandedTensor> tensors;
  std::vector<LandingRank> ranks;  ///< pp rank × tp + tp rank
  std::string hash;                ///< of the file's text, 16 hexadecimal digits

  /// `a.json, learned from vllm 0.32.0`
  std::string title() const;
};

/// Reads and proves a map. Throws InputError that names `origin` and what is wrong where: no JSON, fields
/// that are missing or of another type, names that are there twice or cannot be printed, boxes beyond their
/// tensor or parameter, elements of a parameter in two boxes or in none, a tensor that a rank both reads and
/// skips. The work is bounded by the length of the text.
LandingMap parse_landing_map(const std::string& text, const std::string& origin);

/// The layout of the map's engine, of one replica, experts as the loader leaves them.
EngineLayout layout_of(const LandingMap& map);

/// Throws UsageError, naming the layout's option, unless the map is of an engine that is cut like that. How
/// many replicas there are is not compared.
void require_layout(const LandingMap& map, const EngineLayout& layout);

}  // namespace weightcast
