#include "engine/blocks/gated_mlp.hpp"

#include <algorithm>
#include <utility>

namespace weightcast::engine {

std::vector<float> GatedMlp::run(std::span<const float> token) const {
  std::vector<float> inner = multiply(gate, token);
  const std::vector<float> factor = multiply(up, token);
  for (std::size_t i = 0; i < inner.size(); ++i) inner[i] = silu(inner[i]) * factor[i];
  return multiply(down, inner);
}

GatedMlp halves(const Tensor& fused, std::int64_t first, std::int64_t inner, std::int64_t hidden,
                bool up_first) {
  GatedMlp mlp;
  mlp.gate = cut_rows(fused, first + (up_first ? inner : 0), inner, hidden);
  mlp.up = cut_rows(fused, first + (up_first ? 0 : inner), inner, hidden);
  return mlp;
}

GatedMlp load_gated_mlp(const BlockSite& site, const std::string& module, std::int64_t inner) {
  const std::int64_t hidden = site.config.hidden;
  const std::int64_t rows = divide(inner, site.layout.tp_size, "rows of a dense MLP");
  const Tensor fused = site.load.tensor(module + ".gate_up_proj.weight", {2 * rows, hidden});
  GatedMlp mlp = halves(fused, 0, rows, hidden, false);  // a dense MLP has its gate first in every engine
  mlp.down = site.load.matrix(module + ".down_proj.weight", hidden, rows);
  return mlp;
}

namespace {

class DenseMlp : public Block {
 public:
  explicit DenseMlp(GatedMlp mlp) : mlp_(std::move(mlp)) {}

  Matrix run(const Matrix& input) const override {
    Matrix result(input.rows, input.cols);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      std::ranges::copy(mlp_.run(input.row(token)), result.row(token).begin());
    }
    return result;
  }

 private:
  GatedMlp mlp_;
};

}  // namespace

std::unique_ptr<Block> dense_mlp(const BlockSite& site) {
  return std::make_unique<DenseMlp>(load_gated_mlp(site, site.layer + "mlp", site.config.dense_width));
}

}  // namespace weightcast::engine
