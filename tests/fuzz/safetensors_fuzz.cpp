// One safetensors file as a checkpoint, and as a shard whose attributes are asked for.

#include "fuzz/refusal.hpp"
#include "fuzz/written_file.hpp"
#include "storage/checkpoint.hpp"
#include "storage/safetensors_header.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  static const fuzz::WrittenFile file("model.safetensors");
  file.write(fuzz::text_of(data, size));
  fuzz::accept_or_refuse(file.path(), [&] {
    const Checkpoint checkpoint = read_checkpoint(file.path());
    for (const StoredTensor& tensor : checkpoint.tensors) {
      if (tensor.obstacle) continue;
      const bool inside = tensor.offset >= 0 && tensor.bytes() >= 0 &&
                          tensor.offset + tensor.bytes() <= static_cast<std::int64_t>(size);
      if (!inside) fuzz::broken("a tensor that is accepted lies in its file", tensor.name);
    }
    const Checkpoint copy = deserialize_checkpoint(serialize(checkpoint));
    if (copy.tensors.size() != checkpoint.tensors.size())
      fuzz::broken("a broadcast loses nothing", file.path());
  });
  fuzz::accept_or_refuse(file.path(), [&] { static_cast<void>(read_safetensors_attributes(file.path())); });
  return 0;
}
