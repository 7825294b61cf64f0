#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/executor.hpp"
#include "launch/files/plane_reader.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "model/parameter.hpp"
#include "source/bound_reader.hpp"

namespace weightcast {

/// An engine rank's parameters, wherever they are kept.
class KeptParameters {
 public:
  virtual ~KeptParameters() = default;

  /// What to call them: `shards/rank-0.h5`.
  virtual const std::string& name() const = 0;

  /// Throws InputError unless the parameter is there in its shape and type; before any of it is read.
  virtual void require(const Parameter& parameter) const = 0;

  /// Reads a box of the parameter's matrix view, row-major without gaps.
  virtual void read(const Parameter& parameter, const Box& box, std::span<std::byte> to) const = 0;
};

/// The weights of the only source of a command, to compare parameters with.
class ReferenceWeights {
 public:
  /// Reads the headers, and compares copies (require_equal_copies()). `quantizer` is what the parameters,
  /// those of `kept_in`, are quantised with. Throws UsageError, InputError.
  ReferenceWeights(const Options& options, const std::shared_ptr<const LandingMap>& landing,
                   std::optional<TrainerLayout>& trainers, const std::optional<Quantizer>& quantizer,
                   const std::string& kept_in);

  const Model& model() const { return model_; }
  const Family& family() const { return *model_.family; }
  PlaneReader& planes() { return *planes_; }

  /// After the last comparison. Throws IoError when the source has changed.
  void require_unchanged() const { reader_->require_unchanged(); }

 private:
  Model model_;
  std::optional<BoundReader> reader_;
  std::optional<PlaneReader> planes_;
};

/// Bytes of parameters that no tensor of the source feeds and no update writes, as rows of keys and values in
/// layers that use others': they are not compared.
std::int64_t unwritten_bytes(const std::vector<Parameter>& parameters);

/// `1.25 MiB of the parameters no update writes, and they are not compared`
std::string unwritten_text(std::int64_t bytes);

/// What differs, over all parameters that a command compares.
class Differences {
 public:
  /// `line` says where; the first one's is shown.
  void add(const std::string& tensor, const std::string& line);

  /// Throws VerifyError with the first line, and how many of the model's tensors differ, if any.
  void require_none(const Catalog& catalog) const;

 private:
  std::set<std::string> tensors_;
  std::string first_;
};

/// Compares parameters with a source, byte for byte, through their layout.
class ParameterVerifier {
 public:
  /// All must outlive the verifier.
  ParameterVerifier(const Catalog& catalog, const KeptParameters& kept, PlaneReader& source,
                    Differences& differences);

  /// Adds what does not hold what the source has to the differences. Throws InputError for a parameter that
  /// is not there, StoppedError after a signal. Returns the bytes compared.
  std::int64_t verify(const std::vector<Parameter>& parameters);

 private:
  /// Runs `compare`, and keeps what it throws as a difference of the tensor.
  void keep_difference(const std::string& tensor, const std::function<void()>& compare);
  void verify_part(const Parameter& parameter, const Part& part);
  void verify_scalars(const Parameter& parameter);
  void verify_padding(const Parameter& parameter, const Padding& padding);
  void verify_placed(const Parameter& parameter, const Part& part);
  void verify_placed(const Parameter& parameter, const Padding& padding);
  void require_equal(const Parameter& parameter, const Part& part, const Box& piece) const;
  [[noreturn]] void throw_dirty(const Parameter& parameter) const;
  const std::byte* read_matrix(const Parameter& parameter, std::int64_t offset, const MatrixLayout& layout,
                               std::int64_t rows, std::int64_t bytes);

  const Catalog& catalog_;
  const KeptParameters& kept_;
  PlaneReader& source_;
  Differences& differences_;
  std::vector<std::byte> piece_;
  std::vector<std::byte> kept_piece_;
  std::vector<std::byte> matrix_;
  std::unique_ptr<Executor> executor_ = make_host_executor();
};

}  // namespace weightcast
