#include "model/experts.hpp"

#include <fmt/format.h>

#include <charconv>

namespace weightcast {

std::optional<StoredForm> stacked_expert_form(const Tensor& tensor, std::int64_t experts) {
  constexpr std::string_view kMarker = ".experts.";
  const std::string_view name = tensor.name;
  const std::size_t marker = name.find(kMarker);
  if (marker == std::string_view::npos) return std::nullopt;
  const std::string_view prefix = name.substr(0, marker + kMarker.size());
  const std::string_view rest = name.substr(prefix.size());
  std::int64_t expert = 0;
  const auto [end, status] = std::from_chars(rest.data(), rest.data() + rest.size(), expert);
  if (status != std::errc()) return std::nullopt;
  const std::string_view matrix(end, static_cast<std::size_t>(rest.data() + rest.size() - end));

  const std::int64_t rows = tensor.shape.rows();
  const std::int64_t cols = tensor.shape.cols();
  const auto gate_up = [&](std::int64_t half) {
    return StoredForm{
        fmt::format("{}gate_up_proj", prefix), {experts, 2 * rows, cols}, (2 * expert + half) * rows};
  };
  if (matrix == ".gate_proj.weight") return gate_up(0);
  if (matrix == ".up_proj.weight") return gate_up(1);
  if (matrix == ".down_proj.weight") {
    return StoredForm{fmt::format("{}down_proj", prefix), {experts, rows, cols}, expert * rows};
  }
  return std::nullopt;
}

}  // namespace weightcast
