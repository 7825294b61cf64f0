#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/shape.hpp"
#include "model/catalog.hpp"

namespace weightcast {

/// Where a canonical tensor lies inside a larger stored one: its rows begin at `row` of the stored matrix
/// view.
struct StoredForm {
  std::string name;
  Shape shape;
  std::int64_t row = 0;
};

/// The stacked form of one expert's matrix `PREFIX.experts.X.gate_proj.weight` (or up_proj, down_proj): rows
/// of `PREFIX.experts.gate_up_proj` [E, 2I, H] (gate rows first) or of `PREFIX.experts.down_proj` [E, H, I],
/// as transformers 5 keeps experts. Nothing for any other name.
std::optional<StoredForm> stacked_expert_form(const Tensor& tensor, std::int64_t experts);

}  // namespace weightcast
