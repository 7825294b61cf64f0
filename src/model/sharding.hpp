#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/catalog.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// How weights are cut over a tensor-parallel group, by the rules of engines like SGLang and vLLM
/// (column-parallel, row-parallel, fused qkv, fused gate_up, vocabulary) and, where trainers cut differently,
/// by theirs. Every function returns the parameter of rank `tp_rank` of `tp_size`; a size that does
/// not divide is a UsageError that names the tensor, `option` and in it `size_name`.
class TensorParallel {
 public:
  TensorParallel(const Catalog& catalog, std::int64_t tp_size, std::int64_t tp_rank,
                 std::string option = "--inference", std::string size_name = "tp");

  /// The whole tensor, of its own type or widened to `type`. Throws InputError for a type that it cannot be
  /// widened to.
  Parameter replicated(const std::string& name, const std::string& tensor,
                       std::optional<DType> type = {}) const;

  /// The tensors whole, one behind the other.
  Parameter stacked(const std::string& name, const std::vector<std::string>& tensors) const;

  /// Of each section its part [t·count/T, (t+1)·count/T), one behind the other: gate and up, the heads' rows
  /// of several projections, the parts of one tensor that was fused.
  struct Section {
    std::string tensor;
    std::int64_t first = 0;  ///< elements of the outermost dimension
    std::int64_t count = 0;
    bool whole = false;  ///< every rank has all of it
  };
  Parameter sections(const std::string& name, const std::vector<Section>& sections) const;

  /// A vector of `heads` × `head_dim` elements, of which a rank has those of its heads. With more ranks than
  /// heads each is held by T/heads neighbouring ones.
  Parameter of_heads(const std::string& name, const std::string& tensor, std::int64_t heads,
                     std::int64_t head_dim) const;

  /// Rows [t·R/T, (t+1)·R/T) of a tensor whose rows are those of `units` units, `unit_name` of which are cut
  /// between ranks.
  Parameter column_parallel(const std::string& name, const std::string& tensor, std::int64_t units,
                            const std::string& unit_name) const;

  /// Columns [t·in/T, (t+1)·in/T) of `o_proj` or `down_proj`.
  Parameter row_parallel(const std::string& name, const std::string& tensor) const;

  /// `[gate slice ; up slice]`, each rows [t·I/T, (t+1)·I/T) of its tensor.
  Parameter gate_up(const std::string& name, const std::string& gate, const std::string& up) const;

  /// The same of one tensor that is gate and, behind it, up.
  Parameter gate_up(const std::string& name, const std::string& both) const;

  /// Rows [q | k | v]: this rank's query heads, then its key and value heads. With more ranks than kv heads
  /// each kv head is held by T/kv_heads neighbouring ranks. Weights and biases alike.
  Parameter fused_qkv(const std::string& name, const std::string& q, const std::string& k,
                      const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                      std::int64_t head_dim) const;

  /// Rows [t·R/T, (t+1)·R/T) of the R rows that Megatron-Core's linear_qkv has: of every kv head in turn its
  /// query heads, then its key head, then its value head. A rank's rows may begin or end within a head.
  /// Weights and biases alike. `gated`: q has a gate behind each head; here the gates of a group follow on
  /// its query heads.
  Parameter interleaved_qkv(const std::string& name, const std::string& q, const std::string& k,
                            const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                            std::int64_t head_dim, bool gated = false) const;

  /// Rows [t·Vp/T, (t+1)·Vp/T) of an embedding whose vocabulary is padded with zero rows to `padded` = Vp; by
  /// default to a multiple of 64.
  Parameter vocabulary(const std::string& name, const std::string& tensor, std::int64_t padded = 0) const;

  /// How many of the kv heads of `of` this rank has. Throws UsageError where they cannot be shared evenly.
  std::int64_t heads_of_rank(const std::string& of, std::int64_t heads) const {
    return rank_heads(of, heads).count;
  }

  const Catalog& catalog() const { return catalog_; }
  std::int64_t size() const { return tp_size_; }
  std::int64_t rank() const { return tp_rank_; }
  const std::string& option() const { return option_; }
  /// What the option calls the size.
  const std::string& size_name() const { return size_name_; }

 private:
  /// The heads of `of` that this rank has, in full or with others.
  struct Heads {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };
  Heads rank_heads(const std::string& of, std::int64_t heads) const;

  /// Elements [start, start + count) of the outermost dimension.
  TensorBox outer(std::uint32_t tensor, std::int64_t start, std::int64_t count) const;

  const Catalog& catalog_;
  std::int64_t tp_size_;
  std::int64_t tp_rank_;
  std::string option_;
  std::string size_name_;
};

/// Every tensor whole, under its own name.
std::vector<Parameter> canonical_parameters(const Catalog& catalog);

/// Throws UsageError naming `option` unless `parts` (of its value `what`) divides `total` (`of` says of
/// what).
void require_divides(const std::string& option, const std::string& what, std::int64_t parts,
                     const std::string& of, std::int64_t total);

}  // namespace weightcast
