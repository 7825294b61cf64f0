#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// A canonical weight: its Hugging Face name, global shape and dtype, and of which layer and which of its
/// routed experts it is.
struct Tensor {
  static constexpr std::int64_t kNone = -1;

  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::int64_t layer = kNone;   ///< none for embedding, head, …
  std::int64_t expert = kNone;  ///< none for weights that all tokens use
  std::int64_t unread = 0;      ///< elements that no rank of any replica reads
  bool widened = false;         ///< a checkpoint may have it in bfloat16, where `dtype` is float32

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
};

/// Throws InputError for a model of more tensors or bytes than the plan of any update can have: asked before
/// they are listed, with numbers that cannot overflow. `sizes` names the config and what it says.
void require_plausible(const std::string& sizes, double tensors, double bytes);

/// The ordered list of a model's tensors. A tensor's index is its identity everywhere else.
class Catalog {
 public:
  /// Appends a tensor; throws InternalError when the name is there already.
  std::uint32_t add(std::string name, DType dtype, Shape shape);

  /// Sets the layer and the expert that a tensor belongs to.
  void set_place(std::uint32_t index, std::int64_t layer, std::int64_t expert);

  /// Sets how many elements of a tensor no engine reads, and whether a checkpoint may have it in bfloat16.
  void set_reading(std::uint32_t index, std::int64_t unread, bool widened);

  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor& operator[](std::uint32_t index) const { return tensors_[index]; }
  std::size_t size() const { return tensors_.size(); }

  /// Index of the tensor of that name, or nothing.
  std::optional<std::uint32_t> find(std::string_view name) const;

  /// As find; throws InternalError for a name that the family did not list.
  std::uint32_t at(std::string_view name) const;

  /// Bytes of all tensors together.
  std::int64_t bytes() const;

  /// 16 hexadecimal digits, a hash of the names of all tensors.
  std::string hash_of_names() const;

 private:
  struct TextHash {
    using is_transparent = void;  // NOLINT(readability-identifier-naming): the standard's name
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, std::uint32_t, TextHash, std::equal_to<>> index_;
};

}  // namespace weightcast
