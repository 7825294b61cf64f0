#include "engine/published.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/units.hpp"
#include "storage/reader.hpp"
#include "support/client_call.hpp"

namespace weightcast::engine {

using test_support::check;

std::vector<std::int64_t> ExpertSlots::flat() const {
  std::vector<std::int64_t> all;
  for (const auto& layer : experts_of_slots) all.insert(all.end(), layer.begin(), layer.end());
  return all;
}

Published::Published(const Exporter& exporter, const Checkpoint& checkpoint, std::int64_t version,
                     const ExpertSlots* slots) {
  constexpr std::int64_t kAlignment = 64;
  std::int64_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.tensors) bytes += round_up(tensor.bytes(), kAlignment);
  check(weightcast_open(exporter.folder.c_str(), exporter.role, exporter.rank, exporter.ranks, nullptr,
                        &export_));
  void* memory = nullptr;
  int segment = 0;
  check(weightcast_add_segment(export_, bytes, &memory, &segment));
  std::int64_t offset = 0;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const std::span<const std::int64_t> extents = tensor.shape.extents();
    check(weightcast_add_entry(export_, tensor.name.c_str(),
                               std::string(dtype_safetensors_name(tensor.dtype)).c_str(),
                               static_cast<int>(extents.size()), extents.data(), nullptr, segment, offset));
    places_[tensor.name] = {tensor.dtype, tensor.shape, static_cast<std::byte*>(memory) + offset};
    offset += round_up(tensor.bytes(), kAlignment);
  }
  load(checkpoint);
  if (std::string(exporter.role) == "engine") check(weightcast_serve(export_, version));
  if (slots != nullptr) {
    check(weightcast_add_experts(export_, std::ssize(slots->experts_of_slots),
                                 std::ssize(slots->experts_of_slots.front()), slots->experts));
    check(weightcast_place_experts(export_, slots->epoch, slots->flat().data()));
  }
  check(weightcast_publish(export_));
}

Published::~Published() {
  constexpr double kSeconds = 10;
  weightcast_close(export_, kSeconds);
}

void Published::load(const Checkpoint& checkpoint) {
  const CheckpointReader reader(checkpoint);
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const Place& place = places_.at(tensor.name);
    reader.read(tensor, Box::whole(tensor.shape), {place.data, static_cast<std::size_t>(tensor.bytes())});
  }
}

std::vector<std::string> Published::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

Tensor Published::read(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) throw InputError(fmt::format("parameter {} is missing", name));
  const Place& place = found->second;
  Tensor tensor{place.shape, std::vector<float>(static_cast<std::size_t>(place.shape.elements()))};
  if (place.dtype == DType::kF32) {
    std::memcpy(tensor.values.data(), place.data, tensor.values.size() * sizeof(float));
  } else if (place.dtype == DType::kBF16) {
    const auto* bits = reinterpret_cast<const std::uint16_t*>(place.data);
    std::transform(bits, bits + tensor.values.size(), tensor.values.begin(), bf16_value);
  } else {
    throw InputError(fmt::format("parameter {} is {}", name, dtype_name(place.dtype)));
  }
  return tensor;
}

}  // namespace weightcast::engine
