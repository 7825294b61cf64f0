#include "live/gpu_live.hpp"

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "live/cuda/fd_mapping.hpp"
#include "live/cuda/ipc_mapping.hpp"
#include "live/live_weights.hpp"
#include "memory/device_memory.hpp"
#include "source/cuda/resident_source.hpp"

namespace weightcast {

namespace {

/// Memory of another process, with what keeps it mapped.
template <typename Mapping>
class MappedDeviceMemory final : public DeviceMemory {
 public:
  /// `handle`: what its exporter has published.
  MappedDeviceMemory(Mapping mapping, std::int64_t bytes, const PeerHandle& handle)
      : DeviceMemory(mapping.data(), bytes), mapping_(std::move(mapping)), handle_(handle) {}

  PeerHandle peer_handle() const override { return handle_; }

 private:
  Mapping mapping_;
  PeerHandle handle_;
};

class LiveGpuSource final : public ResidentSource {
 public:
  LiveGpuSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
                std::vector<std::span<std::byte>> buffers, const Exporter& exporter)
      : ResidentSource(plan, catalog, trainer, held, std::move(buffers)), exporter_(exporter) {}

  void require_unchanged() const override { require_being_read(exporter_); }

 private:
  const Exporter& exporter_;
};

}  // namespace

std::shared_ptr<Memory> open_gpu_segment(const Manifest& manifest, const LiveSegment& segment) {
  if (segment.kind == SegmentKind::kCudaFd) {
    return std::make_shared<MappedDeviceMemory<FdMapping>>(FdMapping(manifest, segment), segment.bytes,
                                                           PeerHandle{PeerHandle::Kind::kPieces, 0, {}});
  }
  PeerHandle handle{PeerHandle::Kind::kIpc, 0, {}};
  static_assert(LiveSegment::kHandleBytes == sizeof handle.ipc);
  std::memcpy(handle.ipc.data(), segment.handle.data(), handle.ipc.size());
  return std::make_shared<MappedDeviceMemory<IpcMapping>>(IpcMapping(manifest, segment), segment.bytes,
                                                          handle);
}

std::unique_ptr<Source> make_live_gpu_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             const HeldWeights& held, const Exporter& exporter) {
  std::vector<std::span<std::byte>> buffers;
  for (const auto& segment : exporter.segments()) {
    buffers.emplace_back(segment->data(), static_cast<std::size_t>(segment->bytes()));
  }
  return std::make_unique<LiveGpuSource>(plan, catalog, trainer, held, std::move(buffers), exporter);
}

}  // namespace weightcast
