#include "naive_model.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "model/config.hpp"

namespace weightcast::naive {

namespace {

/// A whole tensor; a vector is a column here: its element i is row i.
struct Whole {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const std::vector<std::byte>* bytes = nullptr;
  const QuantizedTensor* quantized = nullptr;
};

struct Element {
  const Whole* tensor = nullptr;
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// Stands for padding.
constexpr Element kZero;

std::string layer_name(std::int64_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

/// The tensors that share a scale over all with this one; empty where it is never quantised: routers, norms,
/// biases, embedding and head.
std::string sharers_of(const std::string& name) {
  const std::size_t projection = name.rfind("_proj.weight");
  if (projection == std::string::npos) return "";
  const std::size_t start = name.rfind('.', projection) + 1;
  const std::string before = name.substr(0, start);
  const std::string which = name.substr(start, projection - start);
  if (which == "q" || which == "k" || which == "v") return before + "qkv";
  if (which == "gate" || which == "up") return before + "gate_up";
  return name;
}

/// `count` matrices of rows × cols elements that an engine stacks.
struct Stack {
  std::int64_t count = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

std::int64_t up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// How kernels want one matrix of each expert beside the order of its halves.
struct Order {
  /// The row that stands at row n.
  std::function<std::int64_t(std::int64_t)> row = [](std::int64_t n) { return n; };
  /// Scales lie in tiles of 128 × 4, in the same order of rows; the matrix is this many halves, each of which
  /// begins with a tile. 0: they lie row by row.
  std::int64_t tiled_halves = 0;
};

/// How kernels want quantised experts.
struct ExpertOrder {
  bool up_first = false;
  std::int64_t unit = 1;  ///< the inner size of a rank is padded to a multiple
  Order w13;
  Order w2;
};

/// `half`: rows of gate or up on a rank, padding included.
ExpertOrder expert_order(const std::string& moe_layout, QuantScheme scheme, std::int64_t half) {
  // One byte for each block: tensor cores read these scales themselves.
  const bool micro = format_of(scheme).scale_bytes == 1;
  ExpertOrder order;
  if (moe_layout == "cutlass") {
    order.up_first = true;
    if (micro) order.w13.tiled_halves = 2;
    if (micro) order.w2.tiled_halves = 1;
  }
  if (moe_layout == "trtllm") {
    order.up_first = true;
    order.unit = 128;
    if (scheme != QuantScheme::kFp8Block) {
      order.w13.row = [half](std::int64_t n) { return trtllm_w13_row(n, half); };
      order.w2.row = trtllm_w2_row;
    }
    if (micro) order.w13.tiled_halves = order.w2.tiled_halves = 1;
  }
  return order;
}

/// Builds the parameters of one rank, one element at a time.
class Rank {
 public:
  Rank(const Model& model, const EngineLayout& layout, const EngineRank& rank, const Weights& weights,
       const Quantized& quantized)
      : model_(model), layout_(layout), rank_(rank), t_(rank.tp) {
    const Group all{rank.tp, layout.tp};
    // Each whole attention is on neighbouring ranks. vLLM's processes of data parallelism know of one another
    // only for experts.
    const std::int64_t size = layout.tp / layout.attention_dp;
    attention_ = {rank.tp % size, size};
    embedding_ = attention_;
    dense_ = head_ = layout.engine == Engine::kVllm ? attention_ : all;
    for (const Entry& entry : tensors(model)) {
      const bool vector = entry.shape.dims() == 1;
      tensors_[entry.name] = {entry.shape[0], vector ? 1 : entry.shape[1], &weights.at(entry.name), nullptr};
      if (layout.quantizer && !sharers_of(entry.name).empty()) {
        tensors_[entry.name].quantized = &quantized.at(entry.name);
      }
    }
  }

  std::vector<Parameter> all() {
    const bool first = rank_.pp == 0;
    const bool last = rank_.pp == layout_.pp - 1;
    if (first) vocabulary("model.embed_tokens.weight", embedding_);
    for (std::int64_t layer = 0; layer < model_.layers; ++layer) {
      if (stage_of(layer) != rank_.pp) continue;
      const std::string at = layer_name(layer);
      replicated(at + "input_layernorm.weight");
      qkv(at + "self_attn.", ".weight");
      row_parallel(at + "self_attn.o_proj.weight", attention_);
      if (model_.bias) {
        qkv(at + "self_attn.", ".bias");
        replicated(at + "self_attn.o_proj.bias");
      }
      replicated(at + "self_attn.q_norm.weight");
      replicated(at + "self_attn.k_norm.weight");
      replicated(at + "post_attention_layernorm.weight");
      if (model_.is_moe_layer(layer)) {
        replicated(at + "mlp.gate.weight");
        experts(at + "mlp.experts.", layer);
      } else {
        gate_up(at + "mlp.");
        row_parallel(at + "mlp.down_proj.weight", dense_);
      }
    }
    if (last) {
      replicated("model.norm.weight");
      if (!model_.tied) vocabulary("lm_head.weight", head_);
      if (model_.tied && !first) vocabulary("model.embed_tokens.weight", embedding_);
    }
    return std::move(parameters_);
  }

 private:
  /// Ranks that cut something, and this rank's number among them.
  struct Group {
    std::int64_t rank = 0;
    std::int64_t size = 1;
  };

  std::int64_t stage_of(std::int64_t layer) const {
    if (layout_.stage_layers.empty()) return layer / (model_.layers / layout_.pp);
    std::int64_t stage = 0;
    for (; layer >= layout_.stage_layers.at(static_cast<std::size_t>(stage)); ++stage) {
      layer -= layout_.stage_layers[static_cast<std::size_t>(stage)];
    }
    return stage;
  }

  /// `gather(r, c)` says which element stands at row r, column c of the parameter's matrix view.
  template <typename Gather>
  void build(const std::string& name, const Shape& shape, Gather gather) {
    const std::int64_t element = dtype_bytes(model_.dtype);
    Parameter parameter{name, shape,
                        std::vector<std::byte>(static_cast<std::size_t>(shape.elements() * element)),
                        model_.dtype};
    const std::int64_t cols = shape.dims() == 1 ? 1 : shape.cols();
    for (std::int64_t i = 0; i < shape.elements(); ++i) {
      const Element from = gather(i / cols, i % cols);
      if (from.tensor == nullptr) continue;
      if (from.row >= from.tensor->rows || from.col >= from.tensor->cols) throw std::out_of_range(name);
      const std::int64_t index = from.row * from.tensor->cols + from.col;
      std::memcpy(parameter.bytes.data() + i * element, from.tensor->bytes->data() + index * element,
                  static_cast<std::size_t>(element));
    }
    parameters_.push_back(std::move(parameter));
  }

  /// What an engine keeps of quantised matrices; `gather(e, r, c)` says which element stands at row r, column
  /// c of matrix e before `order` is applied, `owners[e]` is a tensor of matrix e.
  template <typename Gather>
  void build_quantized(const std::string& name, bool stacked, const Stack& stack,
                       const std::vector<const Whole*>& owners, const Order& order, Gather gather) {
    const QuantFormat format = owners.front()->quantized->format;
    add_codes(name, stacked, stack, format, order, gather);
    if (format.scale_bytes > 0)
      add_scales(name + format.scales_suffix, stacked, stack, format, order, gather);
    if (!format.global) return;
    Parameter& scales = add(name + format.global_suffix, {stack.count}, DType::kF32);
    for (std::size_t e = 0; e < owners.size(); ++e) {
      std::memcpy(scales.bytes.data() + e * 4, &owners[e]->quantized->global.stored, 4);
    }
  }

  /// A parameter of zeros.
  Parameter& add(const std::string& name, const Shape& shape, DType dtype) {
    const auto bytes = static_cast<std::size_t>(shape.elements() * dtype_bytes(dtype));
    return parameters_.emplace_back(Parameter{name, shape, std::vector<std::byte>(bytes), dtype});
  }

  static Shape shape_of(bool stacked, std::int64_t count, std::int64_t rows, std::int64_t cols) {
    return stacked ? Shape{count, rows, cols} : Shape{rows, cols};
  }

  template <typename Gather>
  void add_codes(const std::string& name, bool stacked, const Stack& stack, const QuantFormat& format,
                 const Order& order, Gather gather) {
    const std::int64_t row_bytes = (stack.cols + format.codes_per_byte - 1) / format.codes_per_byte;
    Parameter& codes = add(name, shape_of(stacked, stack.count, stack.rows, row_bytes), format.codes);
    for (std::int64_t i = 0; i < stack.count * stack.rows * stack.cols; ++i) {
      const std::int64_t col = i % stack.cols;
      const std::int64_t n = i / stack.cols % stack.rows;
      const std::int64_t e = i / stack.cols / stack.rows;
      const Element from = gather(static_cast<std::size_t>(e), order.row(n), col);
      if (from.tensor == nullptr) continue;
      const std::uint8_t code = from.tensor->quantized->code(from.row, from.col);
      // Of two codes in a byte the one of the even column is in the lower half.
      const int shift = format.codes_per_byte == 2 && col % 2 == 1 ? 4 : 0;
      codes.bytes[static_cast<std::size_t>((e * stack.rows + n) * row_bytes + col / format.codes_per_byte)] |=
          static_cast<std::byte>(code << shift);
    }
  }

  /// Every scale is that of the first element of the block that a kernel multiplies with it.
  template <typename Gather>
  void add_scales(const std::string& name, bool stacked, const Stack& stack, const QuantFormat& format,
                  const Order& order, Gather gather) {
    const std::int64_t rows = (stack.rows + format.block_rows - 1) / format.block_rows;
    const std::int64_t cols = (stack.cols + format.block_cols - 1) / format.block_cols;
    const std::int64_t halves = order.tiled_halves;
    const std::int64_t placed_rows = halves == 0 ? rows : up(rows / halves, 128) * halves;
    const std::int64_t placed_cols = halves == 0 ? cols : up(cols, 4);
    Parameter& scales = add(name, shape_of(stacked, stack.count, placed_rows, placed_cols), format.scales);
    const auto place = [&](std::int64_t row, std::int64_t col) {
      if (halves == 0) return row * cols + col;
      const std::int64_t half = rows / halves;
      return tile_offset(row / half * (placed_rows / halves) + row % half, col, cols);
    };
    for (std::int64_t i = 0; i < stack.count * rows * cols; ++i) {
      const std::int64_t col = i % cols;
      const std::int64_t row = i / cols % rows;
      const std::int64_t e = i / cols / rows;
      const Element from =
          gather(static_cast<std::size_t>(e), order.row(row * format.block_rows), col * format.block_cols);
      if (from.tensor == nullptr) continue;
      const std::uint32_t scale = from.tensor->quantized->scale(from.row, from.col);
      const std::int64_t at = e * placed_rows * placed_cols + place(row, col);
      std::memcpy(scales.bytes.data() + at * format.scale_bytes, &scale,
                  static_cast<std::size_t>(format.scale_bytes));
    }
  }

  /// A weight of a linear layer, which may be quantised.
  template <typename Gather>
  void build_linear(const std::string& name, std::int64_t rows, std::int64_t cols, const Whole* owner,
                    Gather gather) {
    if (owner->quantized == nullptr) {
      build(name, {rows, cols}, gather);
      return;
    }
    Order order;
    // Kernels of FP4 read scales in tiles, in linear layers, too.
    if (owner->quantized->format.codes_per_byte == 2) order.tiled_halves = 1;
    build_quantized(name, false, {1, rows, cols}, {owner}, order,
                    [&](std::size_t, auto r, auto c) { return gather(r, c); });
  }

  const Whole* tensor(const std::string& name) const { return &tensors_.at(name); }

  void replicated(const std::string& name) {
    const Whole* whole = tensor(name);
    const bool vector = name.ends_with("norm.weight") || name.ends_with(".bias");
    build(name, vector ? Shape{whole->rows} : Shape{whole->rows, whole->cols}, [&](auto r, auto c) {
      return Element{whole, r, c};
    });
  }

  /// Columns [t·in/T, (t+1)·in/T).
  void row_parallel(const std::string& name, const Group& group) {
    const Whole* whole = tensor(name);
    const std::int64_t cols = whole->cols / group.size;
    build_linear(name, whole->rows, cols, whole, [&](auto r, auto c) {
      return Element{whole, r, group.rank * cols + c};
    });
  }

  /// Rows [q | k | v]; with T ≥ kv heads every kv head serves T/kv neighbouring ranks.
  void qkv(const std::string& at, const std::string& kind) {
    const std::int64_t d = model_.head_dim;
    const auto [t, size] = attention_;
    const std::int64_t nq = model_.heads / size;
    const std::int64_t kv_local = size >= model_.kv_heads ? 1 : model_.kv_heads / size;
    const std::int64_t first = (size >= model_.kv_heads ? t / (size / model_.kv_heads) : t) * kv_local * d;
    const std::int64_t first_q = t * nq * d;
    const std::int64_t rows = (nq + 2 * kv_local) * d;
    const Whole* q = tensor(at + "q_proj" + kind);
    const Whole* k = tensor(at + "k_proj" + kind);
    const Whole* v = tensor(at + "v_proj" + kind);
    const auto gather = [&](std::int64_t r, std::int64_t c) {
      if (r < nq * d) return Element{q, first_q + r, c};
      r -= nq * d;
      if (r < kv_local * d) return Element{k, first + r, c};
      return Element{v, first + r - kv_local * d, c};
    };
    if (kind == ".bias") {
      build(at + "qkv_proj" + kind, {rows}, gather);
    } else {
      build_linear(at + "qkv_proj" + kind, rows, model_.hidden, q, gather);
    }
  }

  /// [gate slice ; up slice].
  void gate_up(const std::string& at) {
    const std::int64_t t = dense_.rank;
    const std::int64_t rows = model_.inner / dense_.size;
    const Whole* gate = tensor(at + "gate_proj.weight");
    const Whole* up = tensor(at + "up_proj.weight");
    build_linear(at + "gate_up_proj.weight", 2 * rows, model_.hidden, gate, [&](auto r, auto c) {
      return r < rows ? Element{gate, t * rows + r, c} : Element{up, t * rows + r - rows, c};
    });
  }

  /// Vp = up(V, 64); rows [t·Vp/T, (t+1)·Vp/T), zero from V on.
  void vocabulary(const std::string& name, const Group& group) {
    const Whole* whole = tensor(name);
    const std::int64_t padded = (model_.vocabulary + 63) / 64 * 64;
    const std::int64_t rows = padded / group.size;
    const std::int64_t start = group.rank * rows;
    build(name, {rows, model_.hidden}, [&](auto r, auto c) {
      return start + r >= model_.vocabulary ? kZero : Element{whole, start + r, c};
    });
  }

  /// The three matrices of every expert of a rank: tp rank = ep rank × (tp/ep) + rank inside the expert.
  struct Experts {
    std::int64_t count = 0;
    std::int64_t moe_tp = 0;
    std::int64_t inner_rank = 0;
    std::vector<const Whole*> gates;
    std::vector<const Whole*> ups;
    std::vector<const Whole*> downs;
  };

  void experts(const std::string& at, std::int64_t layer) {
    Experts experts;
    experts.moe_tp = layout_.tp / layout_.ep;
    experts.inner_rank = t_ % experts.moe_tp;
    const auto& map = layout_.experts.experts_of_slots;
    const std::vector<std::int64_t>* placed =
        map.empty() ? nullptr : &map.at(static_cast<std::size_t>(layer));
    const std::int64_t slots = placed != nullptr ? static_cast<std::int64_t>(placed->size()) : model_.experts;
    experts.count = slots / layout_.ep;
    for (std::int64_t e = 0; e < experts.count; ++e) {
      const std::int64_t slot = t_ / experts.moe_tp * experts.count + e;
      const std::int64_t number = placed != nullptr ? placed->at(static_cast<std::size_t>(slot)) : slot;
      const std::string expert = at + std::to_string(number) + ".";
      experts.gates.push_back(tensor(expert + "gate_proj.weight"));
      experts.ups.push_back(tensor(expert + "up_proj.weight"));
      experts.downs.push_back(tensor(expert + "down_proj.weight"));
    }
    const std::string weights = at + (layout_.engine == Engine::kVllm ? "routed_experts." : "");
    if (layout_.quantizer) {
      quantized_experts(weights, experts);
    } else if (layout_.moe_layout == "trtllm") {
      shuffled_in_blocks(weights, experts);
    } else if (layout_.moe_layout == "vllm-cpu") {
      blocks_of_rows(weights, experts);
    } else {
      stacked(weights, experts);
    }
  }

  /// [gate ; up] or [up ; gate] of each expert, and down, as the kernels of the layout want them. With
  /// padding, rank t has rows [t·Ip, (t+1)·Ip), as in shuffled_in_blocks().
  void quantized_experts(const std::string& at, const Experts& experts) {
    const std::int64_t rank_plan = model_.expert_inner / experts.moe_tp;
    const QuantScheme scheme = layout_.quantizer->scheme;
    const std::int64_t half = up(rank_plan, expert_order(layout_.moe_layout, scheme, 0).unit);
    const ExpertOrder order = expert_order(layout_.moe_layout, scheme, half);
    const std::int64_t start = experts.inner_rank * half;
    build_quantized(at + "w13_weight", true, {experts.count, 2 * half, model_.hidden}, experts.gates,
                    order.w13, [&](std::size_t e, auto r, auto h) {
                      if (start + r % half >= model_.expert_inner) return kZero;
                      const bool gate = (r < half) != order.up_first;
                      return Element{gate ? experts.gates[e] : experts.ups[e], start + r % half, h};
                    });
    build_quantized(
        at + "w2_weight", true, {experts.count, model_.hidden, half}, experts.downs, order.w2,
        [&](std::size_t e, auto h, auto j) {
          return start + j >= model_.expert_inner ? kZero : Element{experts.downs[e], h, start + j};
        });
    if (layout_.moe_layout == "trtllm") output_scalars(at, experts);
  }

  /// What TRT-LLM-gen multiplies with, LAYOUTS.md 3.6 and 4.4: a·s13, (1/b)·(a·s13) and b·s2.
  void output_scalars(const std::string& at, const Experts& experts) {
    const QuantScheme scheme = layout_.quantizer->scheme;
    if (scheme != QuantScheme::kNvfp4 && scheme != QuantScheme::kFp8Tensor) return;
    const bool nvfp4 = scheme == QuantScheme::kNvfp4;
    const float a = layout_.activations.input;
    const float b = layout_.activations.inner;
    const auto scalars = [&](const std::string& name, const std::vector<const Whole*>& owners, auto value) {
      Parameter& all = add(at + name, {experts.count}, DType::kF32);
      for (std::size_t e = 0; e < owners.size(); ++e) {
        const float scalar = value(owners[e]->quantized->global.stored);
        std::memcpy(all.bytes.data() + e * 4, &scalar, 4);
      }
    };
    scalars(nvfp4 ? "g1_alphas" : "output1_scales_gate_scalar", experts.gates,
            [&](float s) { return a * s; });
    scalars(nvfp4 ? "g1_scale_c" : "output1_scales_scalar", experts.gates,
            [&](float s) { return 1 / b * (a * s); });
    scalars(nvfp4 ? "g2_alphas" : "output2_scales_scalar", experts.downs, [&](float s) { return b * s; });
  }

  /// triton stacks gate first, cutlass up first; triton-kernels has the matrices of triton transposed.
  void stacked(const std::string& at, const Experts& experts) {
    const bool transposed = layout_.moe_layout == "triton-kernels";
    const std::int64_t it = model_.expert_inner / experts.moe_tp;
    const std::int64_t start = experts.inner_rank * it;
    const bool up_first = layout_.moe_layout == "cutlass";
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols, auto element) {
      if (transposed) {
        build(name, {experts.count, cols, rows},
              [&](auto r, auto c) { return element(static_cast<std::size_t>(r / cols), c, r % cols); });
      } else {
        build(name, {experts.count, rows, cols},
              [&](auto r, auto c) { return element(static_cast<std::size_t>(r / rows), r % rows, c); });
      }
    };
    add(at + "w13_weight", 2 * it, model_.hidden, [&](std::size_t e, auto i, auto h) {
      const bool gate = (i < it) != up_first;
      return Element{gate ? experts.gates[e] : experts.ups[e], start + i % it, h};
    });
    add(at + "w2_weight", model_.hidden, it, [&](std::size_t e, auto h, auto j) {
      return Element{experts.downs[e], h, start + j};
    });
  }

  /// Of a matrix [N, K] element (n, k) lies at n/16·16K + 16k + n%16. w13 is [gate ; up] of Ip rows each,
  /// Ip = up(I/T, 32), zero from I/T on.
  void blocks_of_rows(const std::string& at, const Experts& experts) {
    const std::int64_t rank_plan = model_.expert_inner / experts.moe_tp;
    const std::int64_t start = experts.inner_rank * rank_plan;
    const std::int64_t ip = up(rank_plan, 32);
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols, auto element) {
      build(name, {experts.count, rows, cols}, [&](auto r, auto c) {
        const std::int64_t place = r % rows * cols + c;
        const std::int64_t in_block = place % (16 * cols);
        return element(static_cast<std::size_t>(r / rows), place / (16 * cols) * 16 + in_block % 16,
                       in_block / 16);
      });
    };
    add(at + "w13_weight", 2 * ip, model_.hidden, [&](std::size_t e, auto n, auto h) {
      if (n % ip >= rank_plan) return kZero;
      return Element{n < ip ? experts.gates[e] : experts.ups[e], start + n % ip, h};
    });
    add(at + "w2_weight", model_.hidden, ip, [&](std::size_t e, auto h, auto j) {
      return j >= rank_plan ? kZero : Element{experts.downs[e], h, start + j};
    });
  }

  /// `w13[e,kb,n,c] = (p even ? up : gate)[s'(p/2), 64·kb + c]`, `w2[e,kb,n,c] = down[p, s'(64·kb + c)]` with
  /// p = 32·(n/32) + 4·(q%8) + q/8, q = n%32; s'(i) = t·Ip + i, zero from I on; Ip = up(I/T, 128).
  void shuffled_in_blocks(const std::string& at, const Experts& experts) {
    const std::int64_t ip = (model_.expert_inner / experts.moe_tp + 127) / 128 * 128;
    const std::int64_t start = experts.inner_rank * ip;
    const auto p32 = [](std::int64_t n) { return n / 32 * 32 + 4 * (n % 32 % 8) + n % 32 / 8; };
    build(at + "w13_weight", {experts.count, model_.hidden / 64, 2 * ip, 64}, [&](auto r, auto c) {
      const std::int64_t p = p32(r % (2 * ip));
      const std::int64_t kb = r / (2 * ip) % (model_.hidden / 64);
      const auto e = static_cast<std::size_t>(r / (2 * ip) / (model_.hidden / 64));
      if (start + p / 2 >= model_.expert_inner) return kZero;
      return Element{p % 2 == 0 ? experts.ups[e] : experts.gates[e], start + p / 2, 64 * kb + c};
    });
    build(at + "w2_weight", {experts.count, ip / 64, model_.hidden, 64}, [&](auto r, auto c) {
      const std::int64_t kb = r / model_.hidden % (ip / 64);
      const auto e = static_cast<std::size_t>(r / model_.hidden / (ip / 64));
      const std::int64_t j = start + 64 * kb + c;
      return j >= model_.expert_inner ? kZero : Element{experts.downs[e], p32(r % model_.hidden), j};
    });
  }

  const Model& model_;
  const EngineLayout& layout_;
  const EngineRank& rank_;
  std::int64_t t_;
  Group attention_;
  Group embedding_;
  Group dense_;
  Group head_;
  std::map<std::string, Whole> tensors_;
  std::vector<Parameter> parameters_;
};

}  // namespace

bool Model::is_moe_layer(std::int64_t layer) const {
  return moe && std::count(mlp_only_layers.begin(), mlp_only_layers.end(), layer) == 0 &&
         (layer + 1) % sparse_step == 0;
}

std::string Model::config_text() const {
  nlohmann::json json = {{"architectures", {moe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM"}},
                         {"torch_dtype", dtype_name(dtype)},
                         {"hidden_size", hidden},
                         {"num_hidden_layers", layers},
                         {"num_attention_heads", heads},
                         {"num_key_value_heads", kv_heads},
                         {"head_dim", head_dim},
                         {"vocab_size", vocabulary},
                         {"intermediate_size", inner},
                         {"tie_word_embeddings", tied},
                         {"attention_bias", bias}};
  if (moe) {
    json["num_experts"] = experts;
    json["moe_intermediate_size"] = expert_inner;
    json["decoder_sparse_step"] = sparse_step;
    json["mlp_only_layers"] = mlp_only_layers;
  }
  return json.dump();
}

std::unique_ptr<Family> Model::family() const {
  return make_family(ModelConfig(config_text(), "naive/config.json"));
}

std::vector<Entry> tensors(const Model& model) {
  const std::int64_t h = model.hidden;
  std::vector<Entry> list{{"model.embed_tokens.weight", {model.vocabulary, h}}};
  const auto mlp = [&](const std::string& at, std::int64_t inner) {
    list.push_back({at + "gate_proj.weight", {inner, h}});
    list.push_back({at + "up_proj.weight", {inner, h}});
    list.push_back({at + "down_proj.weight", {h, inner}});
  };
  const auto projection = [&](const std::string& at, std::int64_t out, std::int64_t in) {
    list.push_back({at + ".weight", {out, in}});
    if (model.bias) list.push_back({at + ".bias", {out}});
  };
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string at = layer_name(layer);
    list.push_back({at + "input_layernorm.weight", {h}});
    projection(at + "self_attn.q_proj", model.heads * model.head_dim, h);
    projection(at + "self_attn.k_proj", model.kv_heads * model.head_dim, h);
    projection(at + "self_attn.v_proj", model.kv_heads * model.head_dim, h);
    projection(at + "self_attn.o_proj", h, model.heads * model.head_dim);
    list.push_back({at + "self_attn.q_norm.weight", {model.head_dim}});
    list.push_back({at + "self_attn.k_norm.weight", {model.head_dim}});
    list.push_back({at + "post_attention_layernorm.weight", {h}});
    if (model.is_moe_layer(layer)) {
      list.push_back({at + "mlp.gate.weight", {model.experts, h}});
      for (std::int64_t expert = 0; expert < model.experts; ++expert) {
        mlp(at + "mlp.experts." + std::to_string(expert) + ".", model.expert_inner);
      }
    } else {
      mlp(at + "mlp.", model.inner);
    }
  }
  list.push_back({"model.norm.weight", {h}});
  if (!model.tied) list.push_back({"lm_head.weight", {model.vocabulary, h}});
  return list;
}

Weights random_weights(const Model& model, std::uint64_t version) {
  std::mt19937_64 random(version);
  Weights weights;
  for (const Entry& entry : tensors(model)) {
    std::vector<std::byte>& bytes = weights[entry.name];
    bytes.resize(static_cast<std::size_t>(entry.shape.elements() * dtype_bytes(model.dtype)));
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random() >> 56); });
  }
  return weights;
}

Weights random_values(const Model& model, std::uint64_t version) {
  std::mt19937_64 random(version);
  const auto one_in = [&](std::uint64_t n) { return random() % n == 0; };
  Weights weights;
  for (const Entry& entry : tensors(model)) {
    const std::int64_t cols = entry.shape.cols();
    std::vector<std::byte>& bytes = weights[entry.name];
    bytes.resize(static_cast<std::size_t>(entry.shape.elements() * 2));
    // Exponents of bfloat16, biased. Some tensors are so small that the floors of amax matter.
    const std::uint64_t base = one_in(16) ? 20 : 112 + random() % 12;
    std::uint64_t exponent = base;
    const auto set = [&](std::int64_t i, std::uint64_t bits) {
      const auto stored = static_cast<std::uint16_t>(bits);
      std::memcpy(bytes.data() + 2 * i, &stored, 2);
    };
    for (std::int64_t i = 0; i < entry.shape.elements(); ++i) {
      if (i % cols % 16 == 0) exponent = base + random() % 7;
      const std::uint64_t dice = random();
      const std::uint64_t sign = dice >> 63 << 15;
      const std::uint64_t smaller = (dice >> 48) % 5;
      set(i, dice % 64 == 0 ? sign : sign | (exponent - smaller) << 7 | (dice >> 8 & 0x7f));
    }
    const auto somewhere = [&] {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(entry.shape.elements()));
    };
    if (one_in(16)) set(somewhere(), 0xffc1);  // no number
    if (one_in(64)) set(somewhere(), 0x7f80);  // infinite
  }
  return weights;
}

Quantized quantize(const Model& model, Quantizer quantizer, const Weights& weights) {
  std::map<std::string, float> largest;
  for (const Entry& entry : tensors(model)) {
    const std::string sharers = sharers_of(entry.name);
    if (!sharers.empty()) {
      largest[sharers] = std::max(largest[sharers], largest_magnitude(weights.at(entry.name)));
    }
  }
  Quantized quantized;
  for (const Entry& entry : tensors(model)) {
    const std::string sharers = sharers_of(entry.name);
    if (sharers.empty()) continue;
    quantized.emplace(entry.name, quantize_tensor(quantizer, weights.at(entry.name), entry.shape[0],
                                                  entry.shape[1], largest[sharers]));
  }
  return quantized;
}

std::vector<Parameter> parameters(const Model& model, const EngineLayout& layout, const EngineRank& rank,
                                  const Weights& weights, const Quantized& quantized) {
  return Rank(model, layout, rank, weights, quantized).all();
}

}  // namespace weightcast::naive
