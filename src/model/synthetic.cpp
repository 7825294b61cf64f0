#include "model/synthetic.hpp"

#include <cstring>

#include "core/float_bits.hpp"
#include "core/hash.hpp"

namespace weightcast {

namespace {

template <typename Element, typename Make>
void fill(std::span<std::byte> to, std::uint64_t seed, std::int64_t first, Make make) {
  const std::size_t count = to.size() / sizeof(Element);
  for (std::size_t i = 0; i < count; ++i) {
    const Element element = make(mix64(seed + static_cast<std::uint64_t>(first) + i));
    std::memcpy(to.data() + i * sizeof(Element), &element, sizeof(Element));
  }
}

}  // namespace

std::uint64_t synthetic_seed(const Tensor& tensor, std::int64_t version) {
  return hash_text(tensor.name) + static_cast<std::uint64_t>(version) * 0x9e3779b97f4a7c15ull;
}

void fill_synthetic(const Tensor& tensor, std::int64_t version, std::int64_t first_element,
                    std::span<std::byte> to) {
  const std::uint64_t seed = synthetic_seed(tensor, version);
  switch (tensor.dtype) {
    case DType::kBF16:
      return fill<std::uint16_t>(to, seed, first_element,
                                 [](std::uint64_t m) { return bf16_bits(synthetic_value(m)); });
    case DType::kF16:
      return fill<std::uint16_t>(to, seed, first_element,
                                 [](std::uint64_t m) { return f16_bits(synthetic_value(m)); });
    case DType::kF32:
      return fill<float>(to, seed, first_element, [](std::uint64_t m) { return synthetic_value(m); });
    case DType::kF64:
      return fill<double>(to, seed, first_element,
                          [](std::uint64_t m) { return double{synthetic_value(m)}; });
    default:
      break;
  }
  switch (dtype_bytes(tensor.dtype)) {
    case 1:
      return fill<std::uint8_t>(to, seed, first_element, [](auto m) { return static_cast<std::uint8_t>(m); });
    case 2:
      return fill<std::uint16_t>(to, seed, first_element,
                                 [](auto m) { return static_cast<std::uint16_t>(m); });
    case 4:
      return fill<std::uint32_t>(to, seed, first_element,
                                 [](auto m) { return static_cast<std::uint32_t>(m); });
    default:
      return fill<std::uint64_t>(to, seed, first_element, [](auto m) { return m; });
  }
}

}  // namespace weightcast
