#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/executor.hpp"
#include "model/catalog.hpp"
#include "model/parameter.hpp"
#include "source/bound_reader.hpp"

namespace weightcast {

/// Reads what parameters hold of tensors from a source: values, or codes and scales, quantised as they are
/// read.
class PlaneReader {
 public:
  /// `catalog` and `source` must outlive the reader.
  PlaneReader(const Catalog& catalog, BoundReader& source, std::optional<Quantizer> quantizer);

  /// Learns which tensors share a scale; before any plane of these is read.
  void add(const std::vector<Parameter>& parameters);

  /// `piece`, elements of the part's plane that begin where a block begins, of `element_bytes` each,
  /// row-major without gaps.
  void read(const Part& part, const Box& piece, std::int64_t element_bytes, std::byte* to);

  /// The scale that the tensors of a scope share.
  float scale(std::uint32_t scope) { return scale_of(scope).stored; }

 private:
  /// Values as the source has them, or widened to elements of twice as many bytes.
  void read_values(std::uint32_t tensor, const Box& piece, std::int64_t element_bytes, std::byte* to);
  /// −e^x of values x, which the source has in float32 or widens to it.
  void read_negated_exp(std::uint32_t tensor, const Box& piece, std::byte* to);
  const GlobalScale& scale_of(std::uint32_t scope);

  const Catalog& catalog_;
  BoundReader& source_;
  std::optional<Quantizer> quantizer_;
  std::map<std::uint32_t, std::vector<std::uint32_t>> members_;  ///< tensors by scope
  std::map<std::uint32_t, GlobalScale> scales_;                  ///< by scope, once it was asked for
  std::vector<std::byte> values_;
  std::unique_ptr<Executor> executor_ = make_host_executor();
};

}  // namespace weightcast
