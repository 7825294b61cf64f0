#include "session/binding.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::uint32_t number_of(const Checkpoint& checkpoint, const StoredTensor* stored) {
  return static_cast<std::uint32_t>(stored - checkpoint.tensors.data());
}

void require_shape(const Checkpoint& checkpoint, const StoredTensor& stored, const Shape& shape) {
  // A scale for a whole tensor is a scalar to some and a vector of one to others.
  if (stored.shape == shape || (stored.shape.elements() == 1 && shape.elements() == 1)) return;
  throw InputError(
      fmt::format("{}: tensor {} has shape {} but the model's config wants {}; is --model the right "
                  "config.json?",
                  checkpoint.path, stored.name, stored.shape.to_string(), shape.to_string()));
}

Bound bind_tensor(const Family& family, const Checkpoint& checkpoint, const Tensor& tensor) {
  if (const StoredTensor* stored = checkpoint.find(tensor.name)) {
    require_shape(checkpoint, *stored, tensor.shape);
    return {number_of(checkpoint, stored), Cast::kNone, Box::whole(tensor.shape), 0, 0};
  }
  if (const auto form = family.other_stored_form(tensor)) {
    if (const StoredTensor* stored = checkpoint.find(form->name)) {
      require_shape(checkpoint, *stored, form->shape);
      return {number_of(checkpoint, stored), Cast::kNone, Box::whole(tensor.shape), form->row, 0};
    }
  }
  throw InputError(
      fmt::format("{}: tensor {} {} is missing; the checkpoint is incomplete or --model is not its "
                  "config.json",
                  checkpoint.path, tensor.name, tensor.shape.to_string()));
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
  const bool codes = dtype_bytes(stored.dtype) == 1 && dtype_bytes(wanted) > 1;
  throw InputError(
      fmt::format("{}: tensor {} is {} but the model's config says {}; {}", path, stored.name,
                  dtype_name(stored.dtype), dtype_name(wanted),
                  codes ? "codes need a quantization_config in config.json that says what they are"
                        : "only float32 to bfloat16 (and scales in bfloat16 to float32) are converted"));
}

Binding bind(const Family& family, const Checkpoint& checkpoint) {
  Binding binding;
  std::vector<bool> used(checkpoint.tensors.size(), false);
  for (const Tensor& tensor : family.catalog().tensors()) {
    Bound bound = bind_tensor(family, checkpoint, tensor);
    const StoredTensor& stored = checkpoint.tensors[bound.stored];
    bound.cast = cast_for(checkpoint.path, stored, tensor.dtype);
    binding.cast_tensors += bound.cast == Cast::kRound ? 1 : 0;
    used[bound.stored] = true;
    binding.starts.push_back(static_cast<std::uint32_t>(binding.bounds.size()));
    binding.bounds.push_back(bound);
  }
  binding.starts.push_back(static_cast<std::uint32_t>(binding.bounds.size()));
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (!used[i] && !family.may_ignore(checkpoint.tensors[i].name)) {
      throw InputError(fmt::format("{}: tensor {} {} is not part of the model; is --model its config.json?",
                                   checkpoint.path, checkpoint.tensors[i].name,
                                   checkpoint.tensors[i].shape.to_string()));
    }
  }
  return binding;
}

}  // namespace weightcast
