#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// A box of an exported tensor in a tensor of a trainer: element (r, c) of the box is element
/// `from + r × pitch + c` there, row by row.
struct ExportedBox {
  std::uint32_t tensor = 0;  ///< index into ExportMap::tensors
  Box box;
  std::int64_t from = 0;
  std::int64_t pitch = 0;  ///< elements; at least box.cols where there are several rows

  friend auto operator<=>(const ExportedBox& a, const ExportedBox& b) = default;
};

/// A tensor that a trainer has published under its own name.
struct OwnTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::vector<ExportedBox> boxes;
};

/// A tensor by Hugging Face's name.
struct ExportedTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::uint32_t same_as =
      0;  ///< the first tensor that is the same elements of trainers; itself where none is
};

/// What one trainer has of them.
struct ExportingRank {
  std::vector<OwnTensor> tensors;
  std::set<std::string> left;  ///< tensors of which nothing is exported
};

/// Which box of which trainer's own tensor each tensor of Hugging Face's is, as the trainers' own exporter
/// has shown (launch/python/weightcast/export_map.py, which has the format). Several trainers may have a box.
struct ExportMap {
  std::string origin;  ///< the file
  std::string key;
  std::vector<ExportedTensor> tensors;
  std::vector<ExportingRank> ranks;
};

/// Reads and proves a map. Throws InputError that names `origin` and what is wrong where: fields that are
/// missing or of another type, names that are there twice or cannot be printed, boxes beyond their tensor on
/// either side or of another type, two boxes of one rank with a common element, tensors of which nobody has
/// some element. The work is bounded by the length of the text.
ExportMap parse_export_map(const std::string& text, const std::string& origin);

/// Throws UsageError unless the map is of so many trainers.
void require_trainers(const ExportMap& map, std::int64_t trainers);

}  // namespace weightcast
