#include "session/gpu.hpp"

#include <fmt/format.h>

#include <chrono>

#include "core/error.hpp"
#include "session/cuda/cuda_pipeline.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"
#include "sys/nccl.hpp"

namespace weightcast {

namespace {

/// Takes the routes that go directly out of `routes`; the buckets of these have any number there.
DirectParts open_direct(const Plan& plan, Routes& routes, std::span<std::byte* const> parameters,
                        const DirectRequest& request, Control& control, std::optional<DirectWays>& ways) {
  DirectParts parts;
  if (request.direct == Direct::kNever) return parts;
  parts.peers = std::make_unique<PeerMemory>(control, routes.routes, request.allocations, parameters,
                                             plan.buckets.size());
  const std::vector<bool> chosen = parts.peers->choose(routes.routes, request.direct, ways.emplace());
  std::vector<std::size_t> numbers;
  std::vector<Route> over_nccl;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    numbers.push_back(over_nccl.size());
    if (!chosen[i]) over_nccl.push_back(std::move(routes.routes[i]));
  }
  for (std::size_t& route : routes.of_bucket) {
    parts.buckets.push_back(chosen[route]);
    route = numbers[route];
  }
  routes.routes = std::move(over_nccl);
  return parts;
}

}  // namespace

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

std::unique_ptr<Pipeline> make_gpu_pipeline(const Plan& plan, const RankPlan& rank_plan, Routes routes,
                                            std::vector<std::byte*> parameters, const DirectRequest& direct,
                                            Control& control, int blocks,
                                            const std::vector<std::uint32_t>& rounds, GpuStart& start) {
  DirectParts parts;
  // What a rank writes in a round it may still have to send, which only that rank knows.
  if (rounds.empty()) parts = open_direct(plan, routes, parameters, direct, control, start.ways);
  std::unique_ptr<NcclTransport> transport;
  try {
    transport = std::make_unique<NcclTransport>(control.comm(), routes.routes,
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
    pipeline = std::make_unique<CudaPipeline>(plan, rank_plan, direct.family, std::move(routes.of_bucket),
                                              std::move(parameters), std::move(transport), std::move(parts),
                                              control, blocks, rounds);
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
