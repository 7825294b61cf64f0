#include "kernels/cuda/cuda_synthetic.hpp"

#include "core/float_bits.hpp"
#include "model/synthetic.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

struct MakeBF16 {
  __device__ std::uint16_t operator()(std::uint64_t mixed) const { return bf16_bits(synthetic_value(mixed)); }
};
struct MakeF16 {
  __device__ std::uint16_t operator()(std::uint64_t mixed) const { return f16_bits(synthetic_value(mixed)); }
};
template <typename Float>
struct MakeFloat {
  __device__ Float operator()(std::uint64_t mixed) const { return Float{synthetic_value(mixed)}; }
};
template <typename Integer>
struct MakeInteger {
  __device__ Integer operator()(std::uint64_t mixed) const { return static_cast<Integer>(mixed); }
};

template <typename Element, typename Make>
__global__ void fill(Element* to, std::uint64_t seed, std::int64_t elements, Make make) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += step) {
    to[i] = make(mix64(seed + static_cast<std::uint64_t>(i)));
  }
}

template <typename Element, typename Make>
void launch(std::byte* to, std::uint64_t seed, std::int64_t elements, Make make, cudaStream_t stream) {
  constexpr int kThreads = 256;
  constexpr std::int64_t kMostBlocks = 2048;
  if (elements == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (elements + kThreads - 1) / kThreads));
  fill<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<Element*>(to), seed, elements, make);
  WEIGHTCAST_CUDA(cudaGetLastError());
}

}  // namespace

void fill_synthetic_on_device(const Tensor& tensor, std::int64_t version, std::int64_t first_element,
                              std::int64_t elements, std::byte* to, cudaStream_t stream) {
  const std::uint64_t seed = synthetic_seed(tensor, version) + static_cast<std::uint64_t>(first_element);
  switch (tensor.dtype) {
    case DType::kBF16:
      return launch<std::uint16_t>(to, seed, elements, MakeBF16{}, stream);
    case DType::kF16:
      return launch<std::uint16_t>(to, seed, elements, MakeF16{}, stream);
    case DType::kF32:
      return launch<float>(to, seed, elements, MakeFloat<float>{}, stream);
    case DType::kF64:
      return launch<double>(to, seed, elements, MakeFloat<double>{}, stream);
    default:
      break;
  }
  switch (dtype_bytes(tensor.dtype)) {
    case 1:
      return launch<std::uint8_t>(to, seed, elements, MakeInteger<std::uint8_t>{}, stream);
    case 2:
      return launch<std::uint16_t>(to, seed, elements, MakeInteger<std::uint16_t>{}, stream);
    case 4:
      return launch<std::uint32_t>(to, seed, elements, MakeInteger<std::uint32_t>{}, stream);
    default:
      return launch<std::uint64_t>(to, seed, elements, MakeInteger<std::uint64_t>{}, stream);
  }
}

}  // namespace weightcast
