#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "engine/files.hpp"

namespace weightcast::engine {

/// The greatest difference of logits, relative to the greatest logit, that still counts as the same weights.
/// It allows for another order of float32 sums and for nothing else.
constexpr double kLogitTolerance = 4e-4;

/// How far logits are from a reference's.
struct Difference {
  double greatest = 0;          ///< greatest absolute difference
  double greatest_logit = 0;    ///< greatest absolute logit of the reference
  double root_mean_square = 0;  ///< of the differences

  double relative() const { return greatest / greatest_logit; }
};

/// The model's logits of all the reference's prompts, row below row. Collective over the model's group.
Matrix logits_of(const Model& model, const Reference& reference);

/// Values that are not finite are infinitely far away. Throws InputError when the shapes differ.
Difference measure(const Matrix& logits, const Reference& reference);

/// What a model computes beside what references say it should.
struct Agreement {
  Difference own;                  ///< from the reference of the version that the model should hold
  std::vector<Difference> others;  ///< from the references of other versions
  std::vector<std::int64_t> generated;
};

/// Runs the model on the references' prompts and generates from the own one's first. Collective over the
/// model's group.
Agreement compare(const Model& model, const Reference& own, const std::vector<Reference>& others,
                  std::int64_t new_tokens);

/// Why the model does not hold the weights of `own`, a sentence each; nothing when it does: logits within
/// the tolerance, nearer to this reference than to any other (root mean square), the same greedy tokens.
std::vector<std::string> objections(const Agreement& agreement, const Reference& own,
                                    const std::vector<Reference>& others, double tolerance = kLogitTolerance);

}  // namespace weightcast::engine
