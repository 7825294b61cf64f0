#include "session/binding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

namespace {

/// The tensors of a checkpoint by the names that the model gives them.
class StoredNames {
 public:
  explicit StoredNames(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {
    for (std::uint32_t i = 0; i < checkpoint.tensors.size(); ++i) {
      const std::string& stored = checkpoint.tensors[i].name;
      if (const std::string why = adapter_part(stored); !why.empty()) {
        throw InputError(fmt::format("{}: tensor {} {}", checkpoint.path, stored, why));
      }
      names_.push_back(canonical_name(stored));
      const auto [first, fresh] = numbers_.emplace(names_.back(), i);
      if (!fresh) twice_.emplace(names_.back(), i);
    }
  }

  /// Its number in the checkpoint, or nothing. Throws InputError when two stored tensors have that name.
  std::optional<std::uint32_t> find(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) return std::nullopt;
    if (const auto other = twice_.find(name); other != twice_.end()) {
      throw InputError(fmt::format("{}: {} and {} are both the model's {}; remove the one that is not meant",
                                   checkpoint_.path, checkpoint_.tensors[found->second].name,
                                   checkpoint_.tensors[other->second].name, name));
    }
    return found->second;
  }

  const std::string& name_of(std::size_t stored) const { return names_[stored]; }

 private:
  const Checkpoint& checkpoint_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::unordered_map<std::string, std::uint32_t> twice_;
};

void require_shape(const Checkpoint& checkpoint, const StoredTensor& stored, const Shape& shape) {
  // A scale for a whole tensor is a scalar to some and a vector of one to others.
  if (stored.shape == shape || (stored.shape.elements() == 1 && shape.elements() == 1)) return;
  if (stored.shape.elements() == 0) {
    throw InputError(
        fmt::format("{}: tensor {} has shape {} and no values: it was saved while its values lay on other "
                    "ranks (as ZeRO-3 "
                    "and FSDP leave them); gather the weights before they are saved, with ZeRO-3 by "
                    "stage3_gather_16bit_weights_on_model_save or zero_to_fp32.py",
                    checkpoint.path, stored.name, stored.shape.to_string()));
  }
  throw InputError(
      fmt::format("{}: tensor {} has shape {} but the model's config wants {}; is --model the right "
                  "config.json?",
                  checkpoint.path, stored.name, stored.shape.to_string(), shape.to_string()));
}

[[noreturn]] void throw_missing(const Checkpoint& checkpoint, const Tensor& tensor, bool first) {
  const std::string example = first && !checkpoint.tensors.empty()
                                  ? fmt::format(" (its first tensor is {})", checkpoint.tensors.front().name)
                                  : "";
  throw InputError(
      fmt::format("{}: tensor {} {} is missing{}; the checkpoint is incomplete or --model is not its "
                  "config.json",
                  checkpoint.path, tensor.name, tensor.shape.to_string(), example));
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
        names_(checkpoint),
        used_(checkpoint.tensors.size(), false) {}

  Binding bind() {
    for (const Tensor& tensor : family_.catalog().tensors()) {
      const Bound bound = bind_tensor(tensor);
      binding_.cast_tensors += bound.cast == Cast::kRound ? 1 : 0;
      used_[bound.stored] = true;
      binding_.starts.push_back(static_cast<std::uint32_t>(binding_.bounds.size()));
      binding_.bounds.push_back(bound);
    }
    binding_.starts.push_back(static_cast<std::uint32_t>(binding_.bounds.size()));
    for (std::uint32_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) leave_out(i);
    }
    return std::move(binding_);
  }

 private:
  Bound bind_tensor(const Tensor& tensor) const {
    if (const auto stored = names_.find(tensor.name)) return bound_to(*stored, tensor, tensor.shape, 0);
    if (const auto form = family_.other_stored_form(tensor)) {
      if (const auto stored = names_.find(form->name))
        return bound_to(*stored, tensor, form->shape, form->row);
    }
    throw_missing(checkpoint_, tensor, binding_.bounds.empty());
  }

  Bound bound_to(std::uint32_t number, const Tensor& tensor, const Shape& shape, std::int64_t row) const {
    const StoredTensor& stored = checkpoint_.tensors[number];
    checkpoint_.require_readable(stored);
    require_codes(stored, tensor);
    require_shape(checkpoint_, stored, shape);
    return {number, cast_for(checkpoint_.path, stored, tensor.dtype), Box::whole(tensor.shape), row, 0};
  }

  /// Throws InputError for values in place of codes: the other tensors say which of them and the config is
  /// wrong.
  void require_codes(const StoredTensor& stored, const Tensor& tensor) const {
    if (!holds_codes(tensor.dtype) || dtype_bytes(stored.dtype) == 1) return;
    const bool some = std::ranges::any_of(checkpoint_.tensors,
                                          [](const StoredTensor& other) { return holds_codes(other.dtype); });
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    throw InputError(fmt::format(
        "{}: tensor {} is {} but config.json's quantization_config says that it holds codes of {}; {}",
        checkpoint_.path, stored.name, dtype_name(stored.dtype), dtype_name(tensor.dtype),
        some ? fmt::format("list {} among the modules that are not quantised", module)
             : "no tensor does: remove quantization_config"));
  }

  /// A stored tensor that the model has no place for.
  void leave_out(std::uint32_t number) {
    const StoredTensor& stored = checkpoint_.tensors[number];
    const std::string& name = names_.name_of(number);
    if (const auto original = family_.copy_of(name)) {
      binding_.copies.push_back({number, family_.catalog().at(*original)});
      return;
    }
    if (stored.obstacle != nullptr || family_.may_ignore(name) || repeats_used(stored)) return;
    throw InputError(fmt::format("{}: tensor {} {} is not part of the model; is --model its config.json?",
                                 checkpoint_.path, stored.name, stored.shape.to_string()));
  }

  /// Whether it is another name of a tensor that the model has.
  bool repeats_used(const StoredTensor& stored) const {
    for (std::size_t i = 0; i < used_.size(); ++i) {
      const StoredTensor& other = checkpoint_.tensors[i];
      if (used_[i] && !stored.through_library() && other.file == stored.file &&
          other.offset == stored.offset && other.shape == stored.shape && other.dtype == stored.dtype) {
        return true;
      }
    }
    return false;
  }

  const Family& family_;
  const Checkpoint& checkpoint_;
  StoredNames names_;
  std::vector<bool> used_;
  Binding binding_;
};

/// What would make one dtype of the other, as the end of a sentence.
std::string dtype_remedy(DType stored, DType wanted) {
  if (is_integer(stored) && dtype_bytes(stored) == dtype_bytes(wanted)) {
    return fmt::format(
        "if its elements are the bits of {0}, set the attribute weightcast.dtype of the HDF5 dataset to "
        "{0}",
        dtype_name(wanted));
  }
  if (dtype_bytes(stored) == 1 && dtype_bytes(wanted) > 1) {
    return "codes need a quantization_config in config.json that says what they are";
  }
  return fmt::format(
      "set \"dtype\" to \"{}\" in config.json if the weights are meant as they are (only float32 to "
      "bfloat16, and scales in bfloat16 to float32, are converted)",
      dtype_name(stored));
}

}  // namespace

std::string Binding::note() const {
  if (cast_tensors == 0) return "";
  return fmt::format("{} tensors are stored as float32 and cast to bfloat16, rounded to nearest even",
                     cast_tensors);
}

Cast cast_for(const std::string& path, const StoredTensor& stored, DType wanted) {
  if (stored.dtype == wanted) return Cast::kNone;
  if (stored.dtype == DType::kF32 && wanted == DType::kBF16) return Cast::kRound;
  const bool scale = stored.name.ends_with("_scale") || stored.name.ends_with("_scale_inv");
  if (scale && stored.dtype == DType::kBF16 && wanted == DType::kF32) return Cast::kWiden;
  const bool opaque = wanted == DType::kF8E8M0 || wanted == DType::kF4E2M1x2;
  if (stored.dtype == DType::kU8 && opaque) return Cast::kNone;
  throw InputError(fmt::format("{}: tensor {} is {} but the model's config says {}; {}", path, stored.name,
                               dtype_name(stored.dtype), dtype_name(wanted),
                               dtype_remedy(stored.dtype, wanted)));
}

Binding bind(const Family& family, const Checkpoint& checkpoint) {
  return Binder(family, checkpoint).bind();
}

}  // namespace weightcast
