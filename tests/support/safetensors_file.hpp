#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast::test_support {

/// The bytes of a safetensors file: header length, header, data. Nothing is checked: tests write broken ones
/// too.
std::string safetensors_bytes(std::string_view header, std::string_view data);

/// The tensors of one safetensors file in memory, to be changed and written again. An implementation apart
/// from the program's own, so that the two check each other.
class SafetensorsFile {
 public:
  struct Tensor {
    std::string dtype;  ///< as the format spells it: BF16, F32, …
    std::vector<std::int64_t> shape;
    std::string data;

    bool operator==(const Tensor&) const = default;
  };

  SafetensorsFile() = default;
  /// Throws std::runtime_error when the file is not well formed.
  static SafetensorsFile read(const std::string& path);

  std::string bytes() const;
  void write(const std::string& path) const;

  std::map<std::string, Tensor> tensors;
};

/// Every number of a BF16 tensor as float32.
SafetensorsFile::Tensor widened(const SafetensorsFile::Tensor& tensor);

}  // namespace weightcast::test_support
