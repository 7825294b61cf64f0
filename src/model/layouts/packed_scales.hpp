#pragma once

#include <cstdint>
#include <initializer_list>

#include "model/layouts/expert_matrices.hpp"
#include "model/layouts/row_digits.hpp"

namespace weightcast {

// Exponent bytes as DeepGEMM reads them on SM100: four of a row one behind the other in a word (int32, little
// endian), words of neighbouring rows one behind the other. With N rows of C scales and al = up(N,4) the
// scale of row m and column c lies at (c/4) · al · 4 + m · 4 + c%4, with zeros in what rounds rows and
// columns up to 4. The slab is [⌈C/4⌉, al, 4] bytes; DeepGEMM sees El of them as int32 [El, N, ⌈C/4⌉] with
// strides (al · ⌈C/4⌉, 1, al). (DeepGEMM's get_mn_major_tma_aligned_packed_ue8m0_tensor, SGLang's
// transform_scale_ue8m0.)

/// Bytes of a word, and so between a row and the next.
constexpr std::int64_t kScaleWord = 4;

/// The slab of `words` rows of words in all, for a matrix whose rows go where `digits` and `rest` say (in
/// bytes).
SlabLayout packed_scales(const PlaneMatrix& matrix, std::int64_t words,
                         std::initializer_list<RowDigit> digits, std::int64_t rest);

}  // namespace weightcast
