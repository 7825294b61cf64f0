#include <algorithm>
#include <iterator>

#include "kernels/cuda/quant_kernel.cuh"

namespace weightcast {

const QuantKernels* fp8_kernels(Quantizer quantizer) {
  static const QuantKernels kernels[] = {
      quant_kernels<QuantScheme::kFp8Tensor, QuantRule::kSglang>(),
      quant_kernels<QuantScheme::kFp8Tensor, QuantRule::kMiles>(),
      quant_kernels<QuantScheme::kFp8Channel, QuantRule::kDivide>(),
      quant_kernels<QuantScheme::kMxfp8, QuantRule::kRoundUp>(),
  };
  const auto* const found = std::find_if(std::begin(kernels), std::end(kernels),
                                         [&](const QuantKernels& one) { return one.quantizer == quantizer; });
  return found == std::end(kernels) ? nullptr : found;
}

}  // namespace weightcast
