#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "kernels/executor.hpp"
#include "launch/commands.hpp"
#include "launch/files/plane_reader.hpp"
#include "launch/files/tensor_copy.hpp"
#include "launch/layouts.hpp"
#include "launch/model.hpp"
#include "model/layer_counts.hpp"
#include "model/stored_quantization.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "source/bound_reader.hpp"
#include "storage/input_file.hpp"
#include "storage/reader.hpp"
#include "storage/shard_name.hpp"
#include "storage/writer.hpp"
#include "sys/team.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr const char* kNotCompared = "not all was compared";

/// A shard file and what its attributes say.
struct Shard {
  std::string path;
  FileIdentity identity;  ///< of the file whose attributes these are
  Attributes attributes;

  std::int64_t integer(const std::string& name) const {
    const auto found = attributes.find(name);
    const auto* value = found == attributes.end() ? nullptr : std::get_if<std::int64_t>(&found->second);
    if (value == nullptr) throw unfit(name, "one integer");
    return *value;
  }
  std::string text(const std::string& name) const {
    const auto found = attributes.find(name);
    const auto* value = found == attributes.end() ? nullptr : std::get_if<std::string>(&found->second);
    if (value == nullptr) throw unfit(name, "one text");
    return *value;
  }
  /// Empty when it is not there.
  std::string optional_text(const std::string& name) const {
    return attributes.contains(name) ? text(name) : std::string();
  }

 private:
  InputError unfit(const std::string& name, const char* expected) const {
    const bool there = attributes.contains(name);
    return InputError(
        fmt::format("{}: attribute weightcast.{} is {}; is it a shard file of this program? run "
                    "the update again",
                    path, name, there ? std::string("not ") + expected : "missing"));
  }
};

std::vector<Shard> read_shards(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw IoError(fmt::format("{}: no such directory of shard files", directory));
  std::vector<Shard> shards;
  fs::directory_iterator entries(directory, error);
  if (error) throw IoError(fmt::format("{}: {}", directory, error.message()));
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (!rank_of_shard(name)) continue;
    const std::string path = entry.path().string();
    const FileIdentity identity = InputFile(path).identity();
    shards.push_back({path, identity, read_attributes(path)});
  }
  if (shards.empty()) throw InputError(fmt::format("{}: no shard files (rank-<n>.h5)", directory));
  std::sort(shards.begin(), shards.end(),
            [](const Shard& a, const Shard& b) { return a.integer("rank") < b.integer("rank"); });
  return shards;
}

/// Throws InputError unless a file's name and attributes agree on which rank's it is.
void require_own_place(const EngineLayout& layout, const Shard& shard) {
  const std::int64_t rank = shard.integer("rank");
  const EngineRank place = engine_rank(layout, rank);
  if (fs::path(shard.path).filename() != shard_name(rank) || shard.integer("replica") != place.replica ||
      shard.integer("pp_rank") != place.pp || shard.integer("tp_rank") != place.tp ||
      shard.integer("ep_rank") != place.ep) {
    throw InputError(
        fmt::format("{}: its attributes say rank {} (replica {}, pp {}, tp {}, ep {}), which its name or "
                    "the layout contradicts; was it renamed?",
                    shard.path, rank, shard.integer("replica"), shard.integer("pp_rank"),
                    shard.integer("tp_rank"), shard.integer("ep_rank")));
  }
}

/// Throws InputError unless the files are all ranks of one update.
EngineLayout common_layout(const std::string& directory, const std::vector<Shard>& shards) {
  const Shard& first = shards.front();
  for (const Shard& shard : shards) {
    if (shard.text("kind") != "shard") throw InputError(fmt::format("{}: is no shard file", shard.path));
    for (const char* name : {"weight_version", "replicas", "pp_size", "tp_size", "ep_size"}) {
      if (shard.integer(name) != first.integer(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} has {} {}, {} has {}; run the update again",
                                     directory, fs::path(first.path).filename().string(), name,
                                     first.integer(name), fs::path(shard.path).filename().string(),
                                     shard.integer(name)));
      }
    }
    for (const char* name :
         {"parameters", "quantizer", "activation_scales", "stage_layers", "expert_placement"}) {
      if (shard.optional_text(name) != first.optional_text(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} '{}' and '{}'", directory, name,
                                     first.optional_text(name), shard.optional_text(name)));
      }
    }
    if (shard.text("moe_layout") != first.text("moe_layout")) {
      throw InputError(fmt::format("{}: mixed shards: MoE layouts {} and {}", directory,
                                   first.text("moe_layout"), shard.text("moe_layout")));
    }
    if (shard.optional_text("update") != first.optional_text("update")) {
      throw InputError(
          fmt::format("{}: mixed shards: {} and {} are of different updates; run the update again", directory,
                      fs::path(first.path).filename().string(), fs::path(shard.path).filename().string()));
    }
  }
  EngineLayout layout;
  layout.replicas = first.integer("replicas");
  layout.pp = first.integer("pp_size");
  layout.tp = first.integer("tp_size");
  layout.ep = first.integer("ep_size");
  layout.moe_layout = first.text("moe_layout");
  layout.canonical = first.optional_text("parameters") == "canonical";
  if (const std::string name = first.optional_text("quantizer"); !name.empty()) {
    try {
      layout.quantizer = parse_quantizer(name);
      layout.activations = parse_activation_scales(first.text("activation_scales"));
    } catch (const UsageError& error) {
      throw InputError(fmt::format("{}: attributes of its quantiser: {}", first.path, error.what()));
    }
  }
  if (const std::string placement = first.optional_text("expert_placement");
      !placement.empty() && placement != layout.experts.fingerprint()) {
    throw InputError(
        fmt::format("{}: its experts were placed by map {}, which is not known here", first.path, placement));
  }
  if (const std::string stages = first.optional_text("stage_layers"); !stages.empty()) {
    try {
      layout.stage_layers = parse_layer_counts("attribute stage_layers", stages);
    } catch (const UsageError& error) {
      throw InputError(fmt::format("{}: {}", first.path, error.what()));
    }
  }
  // As large as options may name them: products of the three stay numbers.
  constexpr std::int64_t kMost = 1 << 20;
  const auto possible = [](std::int64_t size) { return size >= 1 && size <= kMost; };
  if (!possible(layout.replicas) || !possible(layout.pp) || !possible(layout.tp) || !possible(layout.ep) ||
      layout.tp % layout.ep != 0) {
    throw InputError(fmt::format("{}: impossible layout tp={} ep={} pp={} replicas={}", first.path, layout.tp,
                                 layout.ep, layout.pp, layout.replicas));
  }
  for (const Shard& shard : shards) require_own_place(layout, shard);
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    if (at >= shards.size() || shards[at].integer("rank") != rank) {
      throw InputError(fmt::format("{}: {} of {} is missing", directory, shard_name(rank), layout.ranks()));
    }
  }
  if (static_cast<std::int64_t>(shards.size()) != layout.ranks()) {
    throw InputError(fmt::format("{}: {} shard files for {} ranks; remove those of an earlier layout",
                                 directory, shards.size(), layout.ranks()));
  }
  return layout;
}

class ShardVerifier {
 public:
  ShardVerifier(const Model& model, const Shard& shard, PlaneReader& source)
      : catalog_(model.family->catalog()),
        shard_(shard),
        source_(source),
        file_(read_checkpoint(shard.path)),
        reader_(file_),
        piece_(static_cast<std::size_t>(kCopyBytes)),
        stored_piece_(static_cast<std::size_t>(kCopyBytes)) {
    // What the attributes say holds for no other file of that name.
    if (file_.files.front().identity != shard.identity) {
      throw IoError(
          fmt::format("{}: was replaced or written to while it was compared; run verify again", shard.path));
    }
  }

  /// Bytes compared.
  std::int64_t verify(const std::vector<Parameter>& parameters) {
    std::int64_t bytes = 0;
    for (const Parameter& parameter : parameters) {
      const StoredTensor* stored = file_.find(parameter.name);
      if (stored == nullptr) {
        throw InputError(fmt::format("{}: {} is missing; run the update again", shard_.path, parameter.name));
      }
      file_.require_readable(*stored);
      if (stored->shape != parameter.shape || stored->dtype != parameter.dtype) {
        throw InputError(fmt::format("{}: {} is {} {} but its layout wants {} {}", shard_.path,
                                     parameter.name, dtype_name(stored->dtype), stored->shape.to_string(),
                                     dtype_name(parameter.dtype), parameter.shape.to_string()));
      }
      for (const Part& part : parameter.parts) {
        part.layout.plain() ? verify_part(parameter, *stored, part) : verify_placed(parameter, *stored, part);
      }
      if (!parameter.scalars.empty()) verify_scalars(parameter, *stored);
      for (const Padding& padding : parameter.padding) {
        padding.layout.plain() ? verify_padding(parameter, *stored, padding)
                               : verify_placed(parameter, *stored, padding);
      }
      bytes += parameter.bytes();
    }
    if (file_.tensors.size() != parameters.size()) {
      std::set<std::string_view> others;
      for (const StoredTensor& tensor : file_.tensors) others.insert(tensor.name);
      for (const Parameter& parameter : parameters) others.erase(parameter.name);
      throw InputError(fmt::format("{}: holds {}, which is no parameter of this rank; run the update again",
                                   shard_.path, others.empty() ? "a dataset twice" : *others.begin()));
    }
    reader_.require_unchanged();
    return bytes;
  }

 private:
  void verify_part(const Parameter& parameter, const StoredTensor& stored, const Part& part) {
    const std::int64_t element = dtype_bytes(parameter.dtype);
    const Box box = part.form.of(part.box);
    for_each_box({box.rows, box.cols}, bytes_read(part, element), [&](const Box& inner) {
      require_no_signal(kNotCompared);
      const Box piece{box.row + inner.row, inner.rows, box.col + inner.col, inner.cols};
      const auto bytes = static_cast<std::size_t>(piece.area() * element);
      source_.read(part, piece, element, piece_.data());
      reader_.read(stored, place_in(parameter, part, piece), std::span(stored_piece_).first(bytes));
      require_equal(parameter, part, piece);
    });
  }

  /// Bytes of the source's values behind one element.
  static std::int64_t bytes_read(const Part& part, std::int64_t element) {
    return part.form.plane == Plane::kValues ? element : part.form.block_rows * part.form.block_cols * 2;
  }

  void verify_scalars(const Parameter& parameter, const StoredTensor& stored) {
    std::vector<std::byte> held(static_cast<std::size_t>(parameter.bytes()));
    reader_.read(stored, Box::whole(parameter.shape), held);
    for (const Scalar& scalar : parameter.scalars) {
      const float value = scalar.value(source_.scale(scalar.scope));
      std::uint32_t bits = 0;
      std::memcpy(&bits, held.data() + scalar.offset, sizeof bits);
      if (bits == std::bit_cast<std::uint32_t>(value)) continue;
      throw VerifyError(fmt::format("{}: {} does not hold the scale of tensor {}", shard_.path,
                                    parameter.name, catalog_[scalar.scope].name));
    }
  }

  /// Throws VerifyError unless both pieces hold the same.
  void require_equal(const Parameter& parameter, const Part& part, const Box& piece) const {
    const auto bytes = static_cast<std::size_t>(piece.area() * dtype_bytes(parameter.dtype));
    if (std::memcmp(piece_.data(), stored_piece_.data(), bytes) == 0) return;
    throw VerifyError(fmt::format("{}: {} does not hold tensor {} ({})", shard_.path, parameter.name,
                                  catalog_[part.tensor].name, piece.to_string()));
  }

  void verify_padding(const Parameter& parameter, const StoredTensor& stored, const Padding& padding) {
    const std::int64_t element = dtype_bytes(parameter.dtype);
    const std::int64_t cols = parameter.shape.cols();
    const std::int64_t row_bytes = cols * element;
    // The padding may begin and end inside rows.
    const std::int64_t end = padding.offset + padding.bytes;
    const std::int64_t first = padding.offset / row_bytes;
    const std::int64_t rows = (end + row_bytes - 1) / row_bytes - first;
    for_each_box({rows, cols}, element, [&](const Box& inner) {
      require_no_signal(kNotCompared);
      const auto bytes = std::span(stored_piece_).first(static_cast<std::size_t>(inner.area() * element));
      reader_.read(stored, {first + inner.row, inner.rows, inner.col, inner.cols}, bytes);
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

  [[noreturn]] void throw_dirty(const Parameter& parameter) const {
    throw VerifyError(fmt::format("{}: the padding of {} is not zero", shard_.path, parameter.name));
  }

  /// The same of a part that a layout has placed, through the layout.
  void verify_placed(const Parameter& parameter, const StoredTensor& stored, const Part& part) {
    const std::int64_t element = dtype_bytes(parameter.dtype);
    const Box box = part.form.of(part.box);
    const std::byte* const matrix =
        read_matrix(stored, part.offset, part.layout, box.rows, box.cols * element);
    for_each_box({box.rows, box.cols}, bytes_read(part, element), [&](const Box& inner) {
      require_no_signal(kNotCompared);
      const Box piece{box.row + inner.row, inner.rows, box.col + inner.col, inner.cols};
      source_.read(part, piece, element, piece_.data());
      Move gather{0, 0, 0, inner.rows, inner.cols * element, 0, MoveOp::kCopy};
      gather.layout = part.layout;
      gather.row = inner.row;
      gather.byte = inner.col * element;
      executor_->pack({&gather, 1}, {&matrix, 1}, stored_piece_.data());
      require_equal(parameter, part, piece);
    });
  }

  void verify_placed(const Parameter& parameter, const StoredTensor& stored, const Padding& padding) {
    const std::byte* const matrix = read_matrix(stored, padding.offset, padding.layout,
                                                padding.row + padding.rows, padding.byte + padding.bytes);
    Move zero{0, 0, 0, padding.rows, padding.bytes, 0, MoveOp::kZero};
    zero.layout = padding.layout;
    zero.row = padding.row;
    zero.byte = padding.byte;
    if (executor_->first_not_zero({&zero, 1}, {&matrix, 1}) >= 0) throw_dirty(parameter);
  }

  /// What lies where a layout places `rows` × `bytes` from byte `offset` of a parameter on, in memory.
  const std::byte* read_matrix(const StoredTensor& stored, std::int64_t offset, const MatrixLayout& layout,
                               std::int64_t rows, std::int64_t bytes) {
    const std::int64_t row_bytes = stored.shape.cols() * dtype_bytes(stored.dtype);
    const std::int64_t first = offset / row_bytes;
    const std::int64_t end = (offset + layout.extent(rows, bytes) + row_bytes - 1) / row_bytes;
    matrix_.resize(static_cast<std::size_t>((end - first) * row_bytes));
    reader_.read(stored, {first, end - first, 0, stored.shape.cols()}, matrix_);
    return matrix_.data() + (offset - first * row_bytes);
  }

  const Catalog& catalog_;
  const Shard& shard_;
  PlaneReader& source_;
  Checkpoint file_;
  CheckpointReader reader_;
  std::vector<std::byte> piece_;
  std::vector<std::byte> stored_piece_;
  std::vector<std::byte> matrix_;
  std::unique_ptr<Executor> executor_ = make_host_executor();
};

}  // namespace

void run_verify(const Options& options, OutputFile* json) {
  if (options.arguments.size() != 1 || options.sources.size() != 1) {
    throw UsageError("write weightcast verify DIR --source PATH, one of each");
  }
  const std::string& directory = options.arguments.front();
  const std::vector<Shard> shards = read_shards(directory);
  const EngineLayout layout = common_layout(directory, shards);
  const std::int64_t version = shards.front().integer("weight_version");
  if (options.has_weight_version && options.weight_version != version) {
    throw VerifyError(fmt::format("{}: holds version {}, not {}; the shards are stale", directory, version,
                                  options.weight_version));
  }
  std::optional<TrainerLayout> trainers = trainer_layout_of(options);
  const Model model = load_model(options, trainers);
  if (const auto stored = StoredQuantization::of(*model.config); stored && layout.quantizer) {
    throw InputError(
        fmt::format("{}: holds {} made from values, but {} holds {} itself; name the checkpoint that "
                    "the shards were made from",
                    directory, quantizer_name(*layout.quantizer), options.sources.front(),
                    quantizer_name(stored->quantizer())));
  }
  Team readers(1);
  const BoundCheckpoint& from = model.sources.front();
  require_equal_copies(options, *model.family, from, readers, {}, [] {});
  BoundReader source(model.family->catalog(), from.checkpoint, from.binding.held);
  PlaneReader planes(model.family->catalog(), source, layout.quantizer);
  std::int64_t bytes = 0;
  for (const Shard& shard : shards) {
    std::vector<Parameter> parameters;
    try {
      parameters = model.family->parameters(layout, engine_rank(layout, shard.integer("rank")));
    } catch (const UsageError& error) {
      // The layout comes from the file, not from an option.
      throw InputError(fmt::format("{}: {}", shard.path, error.what()));
    }
    planes.add(parameters);
    bytes += ShardVerifier(model, shard, planes).verify(parameters);
  }
  source.require_unchanged();
  print_line(fmt::format("{}: {} shards of version {} hold {}{} exactly, {} compared", directory,
                         shards.size(), version, options.sources.front(),
                         layout.quantizer ? " quantised to " + quantizer_name(*layout.quantizer) : "",
                         format_bytes(bytes)));
  if (json != nullptr) {
    const nlohmann::ordered_json report = {
        {"weightcast", "verify"},  {"status", "done"}, {"weight_version", version},
        {"shards", shards.size()}, {"bytes", bytes},   {"error", nullptr}};
    json->write(json_report(report));
  }
}

}  // namespace weightcast
