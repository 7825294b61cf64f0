#include <algorithm>
#include <iterator>

#include "kernels/cuda/quant_kernel.cuh"

namespace weightcast {

const QuantKernels* fp4_kernels(Quantizer quantizer) {
  static const QuantKernels kernels[] = {
      quant_kernels<QuantScheme::kNvfp4, QuantRule::kTe>(),
      quant_kernels<QuantScheme::kNvfp4, QuantRule::kUnit>(),
      quant_kernels<QuantScheme::kMxfp4, QuantRule::kRoundUp>(),
      quant_kernels<QuantScheme::kMxfp4, QuantRule::kRoundUpTiesDown>(),
      quant_kernels<QuantScheme::kMxfp4, QuantRule::kOcp>(),
  };
  const auto* const found = std::find_if(std::begin(kernels), std::end(kernels),
                                         [&](const QuantKernels& one) { return one.quantizer == quantizer; });
  return found == std::end(kernels) ? nullptr : found;
}

}  // namespace weightcast
