#include "launch/files/parameter_verifier.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/files/tensor_copy.hpp"
#include "model/quantization.hpp"
#include "model/stored_quantization.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

namespace {

constexpr const char* kNotCompared = "not all was compared";

/// Bytes of the source's values behind one element.
std::int64_t bytes_read(const Part& part, std::int64_t element) {
  return part.form.plane == Plane::kValues ? element : part.form.block_rows * part.form.block_cols * 2;
}

}  // namespace

ReferenceWeights::ReferenceWeights(const Options& options, const std::shared_ptr<const LandingMap>& landing,
                                   std::optional<TrainerLayout>& trainers,
                                   const std::optional<Quantizer>& quantizer, const std::string& kept_in)
    : model_(load_model(options, landing, trainers)) {
  const auto stored = model_.config ? StoredQuantization::of(*model_.config) : std::nullopt;
  if (stored && quantizer) {
    throw InputError(fmt::format(
        "{}: holds {} made from values, but {} holds {} itself; name the checkpoint that "
        "they were made from",
        kept_in, quantizer_name(*quantizer), options.sources.front(), quantizer_name(stored->quantizer())));
  }
  ThreadPool readers(1);
  const BoundCheckpoint& from = model_.sources.front();
  require_equal_copies(options, *model_.family, from, readers, {}, [] {});
  reader_.emplace(model_.family->catalog(), from.checkpoint, from.binding.held);
  planes_.emplace(model_.family->catalog(), *reader_, quantizer);
}

std::int64_t unwritten_bytes(const std::vector<Parameter>& parameters) {
  std::int64_t bytes = 0;
  for (const Parameter& parameter : parameters) bytes += parameter.bytes() - parameter.written_bytes();
  return bytes;
}

std::string unwritten_text(std::int64_t bytes) {
  return fmt::format("{} of the parameters no update writes, and they are not compared", format_bytes(bytes));
}

void Differences::add(const std::string& tensor, const std::string& line) {
  if (tensors_.empty()) first_ = line;
  tensors_.insert(tensor);
}

void Differences::require_none(const Catalog& catalog) const {
  if (tensors_.empty()) return;
  throw VerifyError(fmt::format("{}; {} of {} tensors differ; run the update again", first_, tensors_.size(),
                                catalog.size()));
}

ParameterVerifier::ParameterVerifier(const Catalog& catalog, const KeptParameters& kept, PlaneReader& source,
                                     Differences& differences)
    : catalog_(catalog),
      kept_(kept),
      source_(source),
      differences_(differences),
      piece_(static_cast<std::size_t>(kCopyBytes)),
      kept_piece_(static_cast<std::size_t>(kCopyBytes)) {}

void ParameterVerifier::keep_difference(const std::string& tensor, const std::function<void()>& compare) {
  try {
    compare();
  } catch (const VerifyError& error) {
    differences_.add(tensor, error.what());
  }
}

std::int64_t ParameterVerifier::verify(const std::vector<Parameter>& parameters) {
  source_.add(parameters);
  std::int64_t bytes = 0;
  for (const Parameter& parameter : parameters) {
    kept_.require(parameter);
    for (const Part& part : parameter.parts) {
      keep_difference(catalog_[part.tensor].name, [&] {
        part.layout.plain() ? verify_part(parameter, part) : verify_placed(parameter, part);
      });
    }
    if (!parameter.scalars.empty()) verify_scalars(parameter);
    for (const Padding& padding : parameter.padding) {
      keep_difference(parameter.name, [&] {
        padding.layout.plain() ? verify_padding(parameter, padding) : verify_placed(parameter, padding);
      });
    }
    bytes += parameter.written_bytes();
  }
  return bytes;
}

void ParameterVerifier::verify_part(const Parameter& parameter, const Part& part) {
  const std::int64_t element = dtype_bytes(parameter.dtype);
  const Box box = part.form.of(part.box);
  for_each_box({box.rows, box.cols}, bytes_read(part, element), [&](const Box& inner) {
    require_no_signal(kNotCompared);
    const Box piece{box.row + inner.row, inner.rows, box.col + inner.col, inner.cols};
    const auto bytes = static_cast<std::size_t>(piece.area() * element);
    source_.read(part, piece, element, piece_.data());
    kept_.read(parameter, place_in(parameter, part, piece), std::span(kept_piece_).first(bytes));
    require_equal(parameter, part, piece);
  });
}

void ParameterVerifier::verify_scalars(const Parameter& parameter) {
  std::vector<std::byte> held(static_cast<std::size_t>(parameter.bytes()));
  kept_.read(parameter, Box::whole(parameter.shape), held);
  for (const Scalar& scalar : parameter.scalars) {
    const float value = scalar.value(source_.scale(scalar.scope));
    std::uint32_t bits = 0;
    std::memcpy(&bits, held.data() + scalar.offset, sizeof bits);
    if (bits == std::bit_cast<std::uint32_t>(value)) continue;
    const std::string& tensor = catalog_[scalar.scope].name;
    differences_.add(tensor, fmt::format("{}: {} differs from the scale of tensor {}", kept_.name(),
                                         parameter.name, tensor));
  }
}

/// Throws VerifyError unless both pieces hold the same.
void ParameterVerifier::require_equal(const Parameter& parameter, const Part& part, const Box& piece) const {
  const auto bytes = static_cast<std::size_t>(piece.area() * dtype_bytes(parameter.dtype));
  if (std::memcmp(piece_.data(), kept_piece_.data(), bytes) == 0) return;
  const std::string& tensor = catalog_[part.tensor].name;
  throw VerifyError(fmt::format("{}: {} differs from {} ({})", kept_.name(), parameter.name,
                                tensor == parameter.name ? "the source's" : "tensor " + tensor,
                                piece.to_string()));
}

void ParameterVerifier::verify_padding(const Parameter& parameter, const Padding& padding) {
  const std::int64_t element = dtype_bytes(parameter.dtype);
  const std::int64_t cols = parameter.shape.cols();
  const std::int64_t row_bytes = cols * element;
  // The padding may begin and end inside rows.
  const std::int64_t end = padding.offset + padding.bytes;
  const std::int64_t first = padding.offset / row_bytes;
  const std::int64_t rows = (end + row_bytes - 1) / row_bytes - first;
  for_each_box({rows, cols}, element, [&](const Box& inner) {
    require_no_signal(kNotCompared);
    const auto bytes = std::span(kept_piece_).first(static_cast<std::size_t>(inner.area() * element));
    kept_.read(parameter, {first + inner.row, inner.rows, inner.col, inner.cols}, bytes);
    const std::int64_t width = inner.cols * element;
    for (std::int64_t row = 0; row < inner.rows; ++row) {
      const std::int64_t start = (first + inner.row + row) * row_bytes + inner.col * element;
      const std::int64_t from = std::clamp<std::int64_t>(padding.offset - start, 0, width);
      const std::int64_t to = std::clamp<std::int64_t>(end - start, from, width);
      const auto part =
          bytes.subspan(static_cast<std::size_t>(row * width + from), static_cast<std::size_t>(to - from));
      if (std::any_of(part.begin(), part.end(), [](std::byte b) { return b != std::byte{0}; })) {
        throw_dirty(parameter);
      }
    }
  });
}

void ParameterVerifier::throw_dirty(const Parameter& parameter) const {
  throw VerifyError(fmt::format("{}: the padding of {} is not zero", kept_.name(), parameter.name));
}

/// The same of a part that a layout has placed, through the layout.
void ParameterVerifier::verify_placed(const Parameter& parameter, const Part& part) {
  const std::int64_t element = dtype_bytes(parameter.dtype);
  const Box box = part.form.of(part.box);
  const std::byte* const matrix =
      read_matrix(parameter, part.offset, part.layout, box.rows, box.cols * element);
  for_each_box({box.rows, box.cols}, bytes_read(part, element), [&](const Box& inner) {
    require_no_signal(kNotCompared);
    const Box piece{box.row + inner.row, inner.rows, box.col + inner.col, inner.cols};
    source_.read(part, piece, element, piece_.data());
    Move gather{0, 0, 0, inner.rows, inner.cols * element, 0, MoveOp::kCopy};
    gather.layout = part.layout;
    gather.row = inner.row;
    gather.byte = inner.col * element;
    executor_->pack({&gather, 1}, {&matrix, 1}, kept_piece_.data());
    require_equal(parameter, part, piece);
  });
}

void ParameterVerifier::verify_placed(const Parameter& parameter, const Padding& padding) {
  const std::byte* const matrix = read_matrix(parameter, padding.offset, padding.layout,
                                              padding.row + padding.rows, padding.byte + padding.bytes);
  Move zero{0, 0, 0, padding.rows, padding.bytes, 0, MoveOp::kZero};
  zero.layout = padding.layout;
  zero.row = padding.row;
  zero.byte = padding.byte;
  if (executor_->first_not_zero({&zero, 1}, {&matrix, 1}) >= 0) throw_dirty(parameter);
}

/// What lies where a layout places `rows` × `bytes` from byte `offset` of a parameter on, in memory.
const std::byte* ParameterVerifier::read_matrix(const Parameter& parameter, std::int64_t offset,
                                                const MatrixLayout& layout, std::int64_t rows,
                                                std::int64_t bytes) {
  const std::int64_t row_bytes = parameter.shape.cols() * dtype_bytes(parameter.dtype);
  const std::int64_t first = offset / row_bytes;
  const std::int64_t end = (offset + layout.extent(rows, bytes) + row_bytes - 1) / row_bytes;
  matrix_.resize(static_cast<std::size_t>((end - first) * row_bytes));
  kept_.read(parameter, {first, end - first, 0, parameter.shape.cols()}, matrix_);
  return matrix_.data() + (offset - first * row_bytes);
}

}  // namespace weightcast
