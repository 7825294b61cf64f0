#include "session/file_source.hpp"

#include "core/hash.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

FileSource::FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint,
                       const Binding& binding)
    : plan_(plan), catalog_(catalog), reader_(catalog, checkpoint, binding) {}

void FileSource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  const Bucket& planned = plan_.buckets[bucket];
  for (std::uint32_t i = 0; i < planned.segments; ++i) {
    const std::uint32_t number = planned.first_segment + i;
    const Segment& segment = plan_.segments[number];
    const Tensor& tensor = catalog_[segment.tensor];
    std::byte* to = staging + segment.offset;
    reader_.read(segment.tensor, segment.box, to);
    if (digests.empty()) continue;
    const std::int64_t element = dtype_bytes(tensor.dtype);
    digests[number] =
        digest_box(to, segment.box.cols * element, segment.box, element, hash_text(tensor.name));
  }
}

}  // namespace weightcast
