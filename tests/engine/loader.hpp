#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/shape.hpp"
#include "engine/matrix.hpp"
#include "engine/parameters.hpp"

namespace weightcast::engine {

/// A projection with a bias or without.
struct Linear {
  Matrix weight;            ///< [out, in]
  std::vector<float> bias;  ///< [out] or empty
};

/// Reads parameters by name, insists on their shapes, and remembers which were asked for. Throws InputError
/// naming the parameter that is missing or has another shape.
class Loader {
 public:
  /// `source` must outlive it. `norms_add_one`: a norm multiplies with 1 + what is stored.
  Loader(const ParameterSource& source, bool norms_add_one)
      : source_(source), norms_add_one_(norms_add_one) {}

  Tensor tensor(const std::string& name, const Shape& shape);
  std::vector<float> vector(const std::string& name, std::int64_t size);
  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols);
  Linear linear(const std::string& module, std::int64_t out, std::int64_t in, bool bias);

  /// What a norm multiplies with.
  std::vector<float> norm(const std::string& name, std::int64_t size);

  /// Throws InputError for a parameter that was not asked for: nobody would check it.
  void expect_all_read() const;

 private:
  const ParameterSource& source_;
  bool norms_add_one_;
  std::set<std::string> read_;
};

/// Rows [first, first + rows) of a parameter with `cols` columns, as a matrix of its own.
Matrix cut_rows(const Tensor& tensor, std::int64_t first, std::int64_t rows, std::int64_t cols);

}  // namespace weightcast::engine
