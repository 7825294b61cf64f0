#include "source/binding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/beside_weights.hpp"
#include "source/checkpoint_names.hpp"
#include "storage/model_files.hpp"

namespace weightcast {

namespace {

void require_shape(const Checkpoint& checkpoint, const StoredTensor& stored, const Shape& shape,
                   std::string_view doubt) {
  // A scale for a whole tensor is a scalar to some and a vector of one to others.
  if (stored.shape == shape || (stored.shape.elements() == 1 && shape.elements() == 1)) return;
  if (stored.shape.elements() == 0) {
    throw InputError(
        fmt::format("{}: tensor {} has shape {} and no values: it was saved while its values lay on other "
                    "ranks (as ZeRO-3 "
                    "and FSDP leave them); gather the weights before they are saved, with ZeRO-3 by "
                    "stage3_gather_16bit_weights_on_model_save or zero_to_fp32.py",
                    checkpoint.path, excerpt(stored.name), stored.shape.to_string()));
  }
  throw InputError(fmt::format("{}: tensor {} has shape {} but the model has {}; {}", checkpoint.path,
                               excerpt(stored.name), stored.shape.to_string(), shape.to_string(), doubt));
}

/// How much of two names is the same, from the front and from the back.
std::size_t likeness(std::string_view a, std::string_view b) {
  const auto front = std::ranges::mismatch(a, b).in1 - a.begin();
  const auto back = std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first - a.rbegin();
  return static_cast<std::size_t>(front + back);
}

bool holds_codes(DType dtype) {
  return dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2 || dtype == DType::kF4E2M1x2;
}

/// Finds the model's tensors one after the other.
class Binder {
 public:
  Binder(const Family& family, const Checkpoint& checkpoint)
      : family_(family),
        checkpoint_(checkpoint),
        runs_(checkpoint.files.empty()),
        names_(family.whole_catalog(), checkpoint),
        used_(checkpoint.tensors.size(), false),
        coded_(std::ranges::any_of(family.catalog().tensors(), is_coded)) {}

  Binding bind() {
    const Catalog& catalog = family_.catalog();
    std::vector<HeldBox> boxes;
    boxes.reserve(catalog.size());
    for (std::uint32_t number = 0; number < catalog.size(); ++number) {
      const HeldBox& box = boxes.emplace_back(bind_tensor(number));
      const DType stored = checkpoint_.tensors[box.buffer].dtype;
      binding_.cast_tensors += cast_between(stored, catalog[number].dtype) == Cast::kRound ? 1 : 0;
      used_[box.buffer] = true;
    }
    binding_.held = HeldWeights(std::move(boxes), catalog.size());
    note_places();
    for (std::uint32_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) leave_out(i);
    }
    return std::move(binding_);
  }

 private:
  HeldBox bind_tensor(std::uint32_t number) const {
    const Tensor& tensor = family_.catalog()[number];
    const auto stored = names_.find(tensor.name);
    if (const auto form = family_.other_stored_form(tensor); form && form->name != tensor.name) {
      if (const auto other = names_.find(form->name)) {
        if (stored) throw_twice(tensor, *stored, *other);
        return held_by(*other, number, form->shape, form->row);
      }
    }
    if (stored) {
      const bool as_in_model = checkpoint_.tensors[*stored].shape == tensor.shape;
      return held_by(*stored, number, as_in_model ? tensor.shape : shape_in_files(tensor), 0);
    }
    // Of two tensors that share their memory a saver keeps either.
    for (std::uint32_t i = 0; i < used_.size(); ++i) {
      const std::string& name = names_.name_of(i);
      if (family_.copy_of(name) == tensor.name)
        return held_by(names_.find(name).value(), number, tensor.shape, 0);
    }
    throw_missing(tensor);
  }

  /// As those who publish models write a tensor; it may also be stored as the model has it.
  Shape shape_in_files(const Tensor& tensor) const {
    const auto form = family_.other_stored_form(tensor);
    return form && form->name == tensor.name ? form->shape : tensor.shape;
  }

  [[noreturn]] void throw_twice(const Tensor& tensor, std::uint32_t one, std::uint32_t other) const {
    throw InputError(fmt::format("{}: {} and {} both hold the model's {}; {} the one that is not meant",
                                 checkpoint_.path, excerpt(checkpoint_.tensors[one].name),
                                 excerpt(checkpoint_.tensors[other].name), tensor.name,
                                 runs_ ? "do not publish" : "remove"));
  }

  /// Names what lies in its place.
  [[noreturn]] void throw_missing(const Tensor& tensor) const {
    const std::string subject = fmt::format("{}: tensor {} {} is missing", checkpoint_.path, tensor.name,
                                            shape_in_files(tensor).to_string());
    if (const std::string file = missing_file(); !file.empty()) {
      throw InputError(fmt::format("{}, and so is the file {}; copy it to the others", subject, file));
    }
    if (names_.find(tensor.name + "_blocks")) {
      throw InputError(
          fmt::format("{}, and there is {}_blocks, which holds codes of MXFP4; let config.json say so with a "
                      "quantization_config, or name a checkpoint in {}",
                      subject, tensor.name, dtype_name(tensor.dtype)));
    }
    const StoredTensor* closest = nullptr;
    std::size_t most = 0;
    for (std::uint32_t i = 0; i < used_.size(); ++i) {
      const std::string& name = names_.name_of(i);
      if (family_.catalog().find(name) || may_leave_out(i)) continue;
      const std::size_t like = likeness(name, tensor.name);
      if (closest == nullptr || like > most) closest = &checkpoint_.tensors[i];
      most = std::max(most, like);
    }
    if (closest != nullptr) {
      throw InputError(
          fmt::format("{}, and there is '{}' {}, which the model does not have; {}, or name its own "
                      "config.json with --model",
                      subject, excerpt(closest->name), closest->shape.to_string(),
                      runs_ ? "publish tensors by transformers' names"
                            : "write the checkpoint as transformers does (save_pretrained)"));
    }
    const bool head = tensor.name == "lm_head.weight";
    throw InputError(fmt::format(
        "{}; {}{} or --model is not its config.json", subject,
        head ? "if the embedding is the head, set tie_word_embeddings to true in config.json; otherwise "
             : "",
        runs_ ? "it has not been published" : "the checkpoint is incomplete"));
  }

  /// A file of the checkpoint that is missing, as the numbers of the others tell; where there is an index
  /// that names them all, none is.
  std::string missing_file() const {
    std::vector<std::string> paths;
    for (const CheckpointFile& file : checkpoint_.files) paths.push_back(file.path);
    const bool is_folder = !paths.empty() && paths.front() != checkpoint_.path;
    return is_folder && checkpoint_.texts.empty() ? missing_of_saving(paths) : "";
  }

  /// The tensor in a stored one, which must be of `shape`, from row `row` on.
  HeldBox held_by(std::uint32_t buffer, std::uint32_t number, const Shape& shape, std::int64_t row) const {
    const StoredTensor& stored = checkpoint_.tensors[buffer];
    const Tensor& tensor = family_.catalog()[number];
    checkpoint_.require_readable(stored);
    require_codes(stored, tensor);
    require_values(stored, tensor);
    require_shape(checkpoint_, stored, shape, family_.doubt());
    require_castable(checkpoint_, stored, tensor.dtype, tensor.widened);
    HeldBox held = held_in(stored, buffer, number, Box::whole(tensor.shape), row * stored.shape.cols());
    if (stored.shape.elements() == tensor.shape.elements()) {
      require_as_rows(stored, tensor);
      held.pitch = tensor.shape.cols() * dtype_bytes(stored.dtype);
    }
    return held;
  }

  /// Throws InputError for a tensor that would have to be read in other rows than those it is stored in, and
  /// whose bytes do not lie one behind the other.
  void require_as_rows(const StoredTensor& stored, const Tensor& tensor) const {
    if (stored.shape.cols() == tensor.shape.cols() || !stored.through_library()) return;
    throw InputError(
        fmt::format("{}: tensor {} {} is stored in chunks, or compressed, and is read only where its bytes "
                    "lie one behind "
                    "the other; write it contiguous, or as safetensors",
                    checkpoint_.path, excerpt(stored.name), stored.shape.to_string()));
  }

  /// Throws InputError for values in place of codes: the other tensors say which of them and the config is
  /// wrong.
  void require_codes(const StoredTensor& stored, const Tensor& tensor) const {
    if (!holds_codes(tensor.dtype) || dtype_bytes(stored.dtype) == 1) return;
    const bool some = std::ranges::any_of(checkpoint_.tensors,
                                          [](const StoredTensor& other) { return holds_codes(other.dtype); });
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    const QuantizationPlace place = family_.quantization_place();
    throw InputError(fmt::format(
        "{}: tensor {} is {} but field '{}' of {} says that it holds codes of {}; {}", checkpoint_.path,
        excerpt(stored.name), dtype_name(stored.dtype), place.field, place.file, dtype_name(tensor.dtype),
        some ? fmt::format("list {} among the modules that are not quantised", module)
             : "no tensor does: " + place.removal));
  }

  /// Throws InputError for codes in place of values where the config says which tensors hold codes.
  void require_values(const StoredTensor& stored, const Tensor& tensor) const {
    if (!holds_codes(stored.dtype) || holds_codes(tensor.dtype)) return;
    const QuantizationPlace place = family_.quantization_place();
    if (place.field.empty()) return;
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    throw InputError(fmt::format(
        "{}: tensor {} is {} but field '{}' of {} says that {} holds values; if a name or a pattern in its "
        "list of modules that are not quantised fits {}, take it off, otherwise write the tensor as {}",
        checkpoint_.path, excerpt(stored.name), dtype_name(stored.dtype), place.field, place.file, module,
        module, dtype_name(tensor.dtype)));
  }

  /// A stored tensor that the model has no place for.
  void leave_out(std::uint32_t number) {
    const StoredTensor& stored = checkpoint_.tensors[number];
    const std::string& name = names_.name_of(number);
    if (const auto original = family_.copy_of(name)) {
      binding_.copies.push_back({number, family_.catalog().at(*original)});
      return;
    }
    if (stored.feeds_virtual) return;  // what the model has of it is a virtual dataset
    const std::string what = family_.may_ignore(name) ? "" : training_state(name);
    if (stored.obstacle == nullptr && !what.empty()) {
      throw InputError(fmt::format(
          "{}: tensor {} {} {}; {}", checkpoint_.path, excerpt(stored.name), stored.shape.to_string(), what,
          runs_
              ? "publish the weights alone"
              : "write the weights alone, or, of safetensors, list them in a model.safetensors.index.json"));
    }
    const bool repeats = repeats_used(number);
    if (may_leave_out(number) || repeats) {
      require_beside(number);
      if (!repeats && !family_.stays(name)) binding_.left_out.push_back({name, stored.bytes()});
      return;
    }
    throw InputError(fmt::format("{}: tensor {} {} is not part of the model; {} If it is, {} the tensor",
                                 checkpoint_.path, excerpt(stored.name), stored.shape.to_string(),
                                 family_.doubt(), runs_ ? "do not publish" : "remove"));
  }

  /// Throws InputError when a tensor is left out as a draft's that is none.
  void require_beside(std::uint32_t number) const {
    const auto beside = family_.ignored_beside(names_.name_of(number));
    if (!beside || names_.find(*beside)) return;
    throw InputError(
        fmt::format("{}: tensor {} is of a layer behind the model's last one, and that layer has no {} as a "
                    "draft's would; "
                    "correct num_hidden_layers in the config",
                    checkpoint_.path, excerpt(checkpoint_.tensors[number].name), *beside));
  }

  /// Whether the model can do without it, whatever it is.
  bool may_leave_out(std::uint32_t number) const {
    const StoredTensor& stored = checkpoint_.tensors[number];
    const std::string& name = names_.name_of(number);
    if (stored.obstacle != nullptr || family_.may_ignore(name) || is_state_beside_weights(name)) return true;
    const bool counts = is_integer(stored.dtype) || stored.dtype == DType::kBool;
    return stored.shape.elements() == 0 || (counts && (!coded_ || dtype_bytes(stored.dtype) != 1));
  }

  using Place = std::tuple<std::uint32_t, std::int64_t, std::int64_t>;

  static Place place_of(const StoredTensor& stored) {
    return {stored.file, stored.offset, stored.through_library() ? stored.object : 0};
  }

  void note_places() {
    for (std::uint32_t i = 0; i < used_.size(); ++i) {
      if (used_[i]) places_.emplace(place_of(checkpoint_.tensors[i]), i);
    }
  }

  /// Whether it is another name of a tensor that the model has.
  bool repeats_used(std::uint32_t number) const {
    const StoredTensor& stored = checkpoint_.tensors[number];
    const auto place = places_.find(place_of(stored));
    return place != places_.end() && same_bytes(stored, checkpoint_.tensors[place->second]);
  }

  static bool is_coded(const Tensor& tensor) {
    return holds_codes(tensor.dtype) || tensor.dtype == DType::kF8E8M0 || is_integer(tensor.dtype);
  }

  const Family& family_;
  const Checkpoint& checkpoint_;
  bool runs_;  ///< a running process has published it, and it is in no file
  CheckpointNames names_;
  std::vector<bool> used_;
  bool coded_ = false;  ///< the model has tensors whose bytes a checkpoint may call integers
  std::map<Place, std::uint32_t> places_;  ///< of used tensors in files
  Binding binding_;
};

/// What would make one dtype of the other, as the end of a sentence.
std::string dtype_remedy(DType stored, DType wanted, bool hdf5) {
  if (is_integer(stored) && dtype_bytes(stored) == dtype_bytes(wanted)) {
    return fmt::format(
        "if its elements are the bits of {}, {}", dtype_name(wanted),
        hdf5 ? fmt::format("set the attribute weightcast.dtype of the HDF5 dataset to {}", dtype_name(wanted))
             : fmt::format("write them as {}", dtype_safetensors_name(wanted)));
  }
  if (dtype_bytes(stored) == 1 && dtype_bytes(wanted) > 1) {
    return "codes need a quantization_config in config.json that says what they are";
  }
  constexpr const char* kConversions =
      "(only float32 to bfloat16, and scales in bfloat16 to float32, are converted)";
  const bool of_models = stored == DType::kBF16 || stored == DType::kF16 || stored == DType::kF32;
  if (!of_models) return fmt::format("write it as {} {}", dtype_name(wanted), kConversions);
  return fmt::format("write it as {}, or set \"dtype\" to \"{}\" in config.json if all weights are {} {}",
                     dtype_name(wanted), dtype_name(stored), dtype_name(stored), kConversions);
}

}  // namespace

std::string Binding::note() const {
  if (cast_tensors == 0) return "";
  return fmt::format("{} tensors are stored as float32 and cast to bfloat16, rounded to nearest even",
                     cast_tensors);
}

Cast cast_between(DType stored, DType wanted) {
  if (stored == DType::kF32 && wanted == DType::kBF16) return Cast::kRound;
  if (stored == DType::kBF16 && wanted == DType::kF32) return Cast::kWiden;
  return Cast::kNone;
}

void require_castable(const Checkpoint& checkpoint, const StoredTensor& stored, DType wanted, bool widened) {
  const Cast cast = cast_between(stored.dtype, wanted);
  const bool scale = stored.name.ends_with("_scale") || stored.name.ends_with("_scale_inv");
  const bool opaque = wanted == DType::kF8E8M0 || wanted == DType::kF4E2M1x2;
  if (stored.dtype == wanted || (stored.dtype == DType::kU8 && opaque) || cast == Cast::kRound ||
      (cast == Cast::kWiden && (scale || widened))) {
    return;
  }
  if (widened) {
    throw InputError(
        fmt::format("{}: tensor {} is {}, but models of its family have it in {} whatever their type; "
                    "{} it in that or in {}",
                    checkpoint.path, excerpt(stored.name), dtype_name(stored.dtype), dtype_name(wanted),
                    checkpoint.files.empty() ? "publish" : "write", dtype_name(DType::kBF16)));
  }
  // What a running process has published is in no file.
  const std::string remedy =
      checkpoint.files.empty()
          ? fmt::format("publish the copy that is {}", dtype_name(wanted))
          : dtype_remedy(stored.dtype, wanted, ends_as_hdf5(checkpoint.files[stored.file].path));
  throw InputError(fmt::format("{}: tensor {} is {} but the model's config says {}; {}", checkpoint.path,
                               excerpt(stored.name), dtype_name(stored.dtype), dtype_name(wanted), remedy));
}

HeldBox held_in(const StoredTensor& stored, std::uint32_t buffer, std::uint32_t tensor, const Box& box,
                std::int64_t first) {
  const std::int64_t element = dtype_bytes(stored.dtype);
  return {tensor, box, buffer, first * element, stored.shape.cols() * element};
}

Binding bind(const Family& family, const Checkpoint& checkpoint) {
  return Binder(family, checkpoint).bind();
}

}  // namespace weightcast
