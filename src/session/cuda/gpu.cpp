#include "session/gpu.hpp"

#include <fmt/format.h>

#include <chrono>

#include "core/error.hpp"
#include "session/cuda/cuda_pipeline.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"
#include "sys/nccl.hpp"

namespace weightcast {

std::string gpu_versions() {
  return fmt::format(" · {} · {}", cuda_version(), nccl_version());
}

VisibleGpus visible_gpus() {
  VisibleGpus visible;
  const int count = visible_devices(&visible.why_none);
  for (int device = 0; device < count; ++device) {
    visible.gpus.push_back({device, device_identity(device), device_uuid(device)});
  }
  return visible;
}

std::string use_gpu(const VisibleGpu& gpu) {
  WEIGHTCAST_CUDA(cudaSetDevice(gpu.device));
  // Makes the context, so that its time is start-up.
  WEIGHTCAST_CUDA(cudaFree(nullptr));
  return fmt::format("cuda:{} {}", gpu.device, device_name(gpu.device));
}

std::int64_t available_gpu_bytes() {
  std::size_t available = 0;
  std::size_t total = 0;
  WEIGHTCAST_CUDA(cudaMemGetInfo(&available, &total));
  return static_cast<std::int64_t>(available);
}

std::unique_ptr<Memory> make_gpu_memory(std::int64_t bytes, const char* purpose) {
  return make_device_memory(bytes, purpose);
}

std::unique_ptr<Pipeline> make_gpu_pipeline(const Plan& plan, const RankPlan& rank_plan,
                                            const std::vector<Route>& routes,
                                            std::vector<std::size_t> route_of_bucket,
                                            std::vector<std::byte*> parameters, Control& control, int blocks,
                                            const std::vector<std::uint32_t>& rounds, GpuStart& start) {
  std::unique_ptr<NcclTransport> transport;
  try {
    transport = std::make_unique<NcclTransport>(control.comm(), routes,
                                                static_cast<std::size_t>(plan.limits.buffers), [&control] {
                                                  try {
                                                    control.deadline.poll();
                                                  } catch (const Error& error) {
                                                    control.last_words.abort_all(error);
                                                  }
                                                  if (control.call_off.heard()) throw CalledOff();
                                                });
  } catch (const Error& error) {
    control.last_words.abort_all(error);
  }
  start.communicators = transport->opening_seconds();
  start.connections = transport->connecting_seconds();
  const auto begin = std::chrono::steady_clock::now();
  std::unique_ptr<Pipeline> pipeline;
  control.agreement.together([&] {
    pipeline =
        std::make_unique<CudaPipeline>(plan, rank_plan, std::move(route_of_bucket), std::move(parameters),
                                       std::move(transport), control, blocks, rounds);
  });
  start.programs = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return pipeline;
}

std::unique_ptr<Source> make_resident_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             std::int64_t version) {
  return std::make_unique<SyntheticSource>(plan, catalog, trainer, version);
}

std::unique_ptr<Source> make_held_gpu_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             const HeldWeights& held,
                                             std::vector<std::span<std::byte>> buffers) {
  return std::make_unique<ResidentSource>(plan, catalog, trainer, held, std::move(buffers));
}

}  // namespace weightcast
