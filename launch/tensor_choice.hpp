#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/options.hpp"
#include "model/family.hpp"
#include "source/binding.hpp"

namespace weightcast {

/// Which tensors `--include` and `--exclude` choose, by the names that the model gives them.
class TensorPatterns {
 public:
  /// None: all tensors are sent.
  TensorPatterns() = default;
  /// Throws UsageError for a pattern that cannot be read, naming it.
  explicit TensorPatterns(const Options& options);

  bool any() const { return !patterns_.empty(); }

  /// Whether a tensor that is called so is not sent: no pattern includes it where there are such, or one
  /// excludes it.
  bool leave_out(std::string_view name) const;

  /// The model with only what is chosen of it. Throws UsageError for a pattern that fits nothing, naming one
  /// that may have been meant, and when nothing is left. What fits no tensor of the model may still fit what
  /// sources have beside it: unmatched() says which patterns these are.
  std::unique_ptr<Family> choose(std::unique_ptr<Family> family);
  std::vector<std::string> unmatched() const;

  /// Throws UsageError for the first of unmatched() that does not fit anything that is left out either:
  /// `fits`, in the order of these, says what does.
  void require_matched(const Catalog& catalog, std::span<const std::int64_t> fits) const;

 private:
  struct Pattern {
    std::string option;  ///< as messages name it
    std::string glob;
    bool excludes = false;
    bool matched = false;
  };

  [[noreturn]] static void refuse(const Pattern& pattern, const Catalog& catalog);

  std::vector<Pattern> patterns_;
  bool includes_ = false;
};

/// Whether each of the patterns fits one of the tensors.
std::vector<std::int64_t> fits_any(std::span<const std::string> globs, std::span<const LeftOut> tensors);

/// `12 of 400 tensors, 3.1 MiB; the others, 59 GiB, stay as they are`
std::string choice_text(const Choice& choice);

/// Behind a line of what was compared, `: 12 of 400 tensors`, and the same for programs; empty, and null, for
/// all of the model.
std::string compared_text(const Family& family);
nlohmann::ordered_json choice_json_of(const Family& family);

/// What of a source is no tensor of the model: `15 tensors, 1.2 GiB: mtp.* (14), model.visual.* (1)`.
std::string left_out_text(std::span<const LeftOut> tensors);

/// Throws UsageError for a sink of files, which are whole, where only some tensors are sent.
void require_no_files(const Options& options, const Family& family);

}  // namespace weightcast
