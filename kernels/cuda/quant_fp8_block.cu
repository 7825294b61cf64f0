#include <algorithm>
#include <iterator>

#include "kernels/cuda/quant_kernel.cuh"

namespace weightcast {

const QuantKernels* fp8_block_kernels(Quantizer quantizer) {
  static const QuantKernels kernels[] = {
      quant_kernels<QuantScheme::kFp8Block, QuantRule::kSlime>(),
      quant_kernels<QuantScheme::kFp8Block, QuantRule::kDeepGemm>(),
      quant_kernels<QuantScheme::kFp8Block, QuantRule::kFlashInfer>(),
      quant_kernels<QuantScheme::kFp8Block, QuantRule::kUe8m0>(),
  };
  const auto* const found = std::find_if(std::begin(kernels), std::end(kernels),
                                         [&](const QuantKernels& one) { return one.quantizer == quantizer; });
  return found == std::end(kernels) ? nullptr : found;
}

}  // namespace weightcast
