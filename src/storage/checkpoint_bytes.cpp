#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "core/error.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

namespace {

// The ranks of one launch run one program on machines of one kind, so the bytes are those of memory.
class ByteWriter {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    const auto* first = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), first, first + sizeof value);
  }
  void put_text(const std::string& text) {
    put(static_cast<std::uint64_t>(text.size()));
    const auto* first = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), first, first + text.size());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  requires std::is_trivially_copyable_v<T> T get() {
    T value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string get_text() {
    const auto text = take(get<std::uint64_t>());
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> take(std::uint64_t count) {
    if (count > bytes_.size()) throw InternalError("the bytes of a checkpoint's headers end early");
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

  std::span<const std::byte> bytes_;
};

void put_tensor(ByteWriter& to, const StoredTensor& tensor) {
  to.put_text(tensor.name);
  to.put(tensor.dtype);
  to.put(static_cast<std::uint8_t>(tensor.shape.dims()));
  for (const std::int64_t extent : tensor.shape.extents()) to.put(extent);
  to.put(tensor.file);
  to.put(tensor.offset);
  to.put_text(tensor.path);
  to.put(tensor.object);
  to.put(tensor.feeds_virtual);
  to.put(tensor.obstacle != nullptr);
  if (tensor.obstacle == nullptr) return;
  to.put_text(tensor.obstacle->form);
  to.put_text(tensor.obstacle->why);
  to.put(tensor.obstacle->lost);
}

StoredTensor get_tensor(ByteReader& from, std::size_t files) {
  StoredTensor tensor;
  tensor.name = from.get_text();
  tensor.dtype = from.get<DType>();
  std::vector<std::int64_t> extents(from.get<std::uint8_t>());
  for (std::int64_t& extent : extents) extent = from.get<std::int64_t>();
  tensor.shape = Shape(std::span<const std::int64_t>(extents));
  tensor.file = from.get<std::uint32_t>();
  tensor.offset = from.get<std::int64_t>();
  tensor.path = from.get_text();
  tensor.object = from.get<std::int64_t>();
  tensor.feeds_virtual = from.get<bool>();
  if (from.get<bool>()) {
    Obstacle obstacle;
    obstacle.form = from.get_text();
    obstacle.why = from.get_text();
    obstacle.lost = from.get<bool>();
    tensor.obstacle = std::make_shared<const Obstacle>(std::move(obstacle));
  }
  if (static_cast<std::size_t>(tensor.dtype) >= dtype_table().size() || tensor.file >= files) {
    throw InternalError("the bytes of a checkpoint's headers are damaged");
  }
  return tensor;
}

}  // namespace

std::vector<std::byte> serialize(const Checkpoint& checkpoint) {
  ByteWriter to;
  to.put_text(checkpoint.path);
  to.put_text(checkpoint.host);
  to.put(static_cast<std::uint64_t>(checkpoint.files.size()));
  for (const CheckpointFile& file : checkpoint.files) {
    to.put_text(file.path);
    to.put(file.identity);
    to.put(file.header_hash);
  }
  to.put(static_cast<std::uint64_t>(checkpoint.tensors.size()));
  for (const StoredTensor& tensor : checkpoint.tensors) put_tensor(to, tensor);
  to.put(static_cast<std::uint8_t>(checkpoint.weight_version.has_value()));
  to.put(checkpoint.weight_version.value_or(0));
  to.put_text(checkpoint.conversion);
  return to.take();
}

Checkpoint deserialize_checkpoint(std::span<const std::byte> bytes) {
  ByteReader from(bytes);
  Checkpoint checkpoint;
  checkpoint.path = from.get_text();
  checkpoint.host = from.get_text();
  const auto files = from.get<std::uint64_t>();
  for (std::uint64_t i = 0; i < files; ++i) {
    CheckpointFile& file = checkpoint.files.emplace_back();
    file.path = from.get_text();
    file.identity = from.get<FileIdentity>();
    file.header_hash = from.get<std::uint64_t>();
  }
  const auto tensors = from.get<std::uint64_t>();
  for (std::uint64_t i = 0; i < tensors; ++i)
    checkpoint.tensors.push_back(get_tensor(from, checkpoint.files.size()));
  const bool has_version = from.get<std::uint8_t>() != 0;
  const auto version = from.get<std::int64_t>();
  if (has_version) checkpoint.weight_version = version;
  checkpoint.conversion = from.get_text();
  if (!from.at_end()) throw InternalError("bytes are left over after a checkpoint's headers");
  return checkpoint;
}

}  // namespace weightcast
