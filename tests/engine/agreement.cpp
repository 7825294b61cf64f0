#include "engine/agreement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.hpp"

namespace weightcast::engine {

Matrix logits_of(const Model& model, const Reference& reference) {
  Matrix all;
  for (const std::vector<std::int64_t>& prompt : reference.prompts) {
    const Matrix logits = model.logits(prompt);
    all.rows += logits.rows;
    all.cols = logits.cols;
    all.values.insert(all.values.end(), logits.values.begin(), logits.values.end());
  }
  return all;
}

Difference measure(const Matrix& logits, const Reference& reference) {
  if (logits.rows != reference.logits.rows || logits.cols != reference.logits.cols) {
    throw InputError(fmt::format("{}: logits are {} × {}, the model's are {} × {}", reference.path,
                                 reference.logits.rows, reference.logits.cols, logits.rows, logits.cols));
  }
  Difference difference;
  double squares = 0;
  for (std::size_t i = 0; i < logits.values.size(); ++i) {
    const double expected = reference.logits.values[i];
    double distance = std::abs(double{logits.values[i]} - expected);
    if (!std::isfinite(distance)) distance = std::numeric_limits<double>::infinity();
    difference.greatest = std::max(difference.greatest, distance);
    difference.greatest_logit = std::max(difference.greatest_logit, std::abs(expected));
    squares += distance * distance;
  }
  difference.root_mean_square = std::sqrt(squares / static_cast<double>(logits.values.size()));
  return difference;
}

Agreement compare(const Model& model, const Reference& own, const std::vector<Reference>& others,
                  std::int64_t new_tokens) {
  Agreement agreement;
  agreement.own = measure(logits_of(model, own), own);
  for (const Reference& other : others) {
    agreement.others.push_back(measure(logits_of(model, other), other));
  }
  agreement.generated = model.generate(own.prompts.front(), new_tokens);
  return agreement;
}

std::vector<std::string> objections(const Agreement& agreement, const Reference& own,
                                    const std::vector<Reference>& others, double tolerance) {
  std::vector<std::string> result;
  if (!(agreement.own.relative() <= tolerance)) {
    result.push_back(
        fmt::format("the logits differ from {} by {:.3g} of the greatest logit, more than {:.3g}", own.path,
                    agreement.own.relative(), tolerance));
  }
  for (std::size_t i = 0; i < others.size(); ++i) {
    if (!(agreement.own.root_mean_square < agreement.others[i].root_mean_square)) {
      result.push_back(fmt::format("the logits are not nearer to {} (RMS {:.3g}) than to {} (RMS {:.3g})",
                                   own.path, agreement.own.root_mean_square, others[i].path,
                                   agreement.others[i].root_mean_square));
    }
  }
  const auto& generated = agreement.generated;
  const std::size_t common = std::min(generated.size(), own.greedy.size());
  const auto where = std::mismatch(generated.begin(), generated.begin() + static_cast<std::ptrdiff_t>(common),
                                   own.greedy.begin());
  if (where.second != own.greedy.begin() + static_cast<std::ptrdiff_t>(common)) {
    result.push_back(fmt::format("token {} generated is {}, {} says {}", where.first - generated.begin(),
                                 *where.first, own.path, *where.second));
  }
  return result;
}

}  // namespace weightcast::engine
