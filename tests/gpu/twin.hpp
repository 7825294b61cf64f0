#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <utility>
#include <vector>

#include "memory/device_buffer.hpp"
#include "sys/cuda.hpp"

namespace weightcast::gpu_test {

using Bytes = std::vector<std::byte>;

class Random {
 public:
  explicit Random(std::uint64_t seed) : random_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool one_in(std::int64_t n) { return between(1, n) == 1; }
  Bytes bytes(std::int64_t count) {
    Bytes result(static_cast<std::size_t>(count));
    std::generate(result.begin(), result.end(), [&] { return static_cast<std::byte>(random_() >> 56); });
    return result;
  }

 private:
  std::mt19937_64 random_;
};

/// Host bytes and their twin on the device.
class Twin {
 public:
  explicit Twin(Bytes bytes) : host(std::move(bytes)), device_(std::ssize(host) + 1, "a test") { upload(); }
  void upload() { WEIGHTCAST_CUDA(cudaMemcpy(device(), host.data(), host.size(), cudaMemcpyHostToDevice)); }
  Bytes download() const {
    Bytes bytes(host.size());
    WEIGHTCAST_CUDA(cudaMemcpy(bytes.data(), device(), bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }
  std::byte* device() const { return device_.data(); }

  Bytes host;

 private:
  DeviceBuffer device_;
};

inline std::vector<std::byte*> device_pointers(const std::vector<Twin>& twins) {
  std::vector<std::byte*> pointers;
  for (const Twin& twin : twins) pointers.push_back(twin.device());
  return pointers;
}

}  // namespace weightcast::gpu_test
