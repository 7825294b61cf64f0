#include "client/gpu_memory.hpp"

#include <dlfcn.h>

#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "client/error.hpp"

namespace weightcast::client {

namespace {

// What is used of CUDA's driver interface (cuda.h), whose binary form does not change.
using Result = int;
using Device = int;
using Context = void*;
using Address = unsigned long long;
struct Uuid {
  unsigned char bytes[16];
};
struct IpcHandle {
  unsigned char bytes[64];
};
constexpr int kAttributeContext = 1;
constexpr int kAttributeMemoryType = 2;
constexpr int kAttributeDeviceOrdinal = 9;
constexpr unsigned kTypeDevice = 2;

struct Driver {
  Result (*pointer_attribute)(void*, int, Address) = nullptr;
  Result (*address_range)(Address*, std::size_t*, Address) = nullptr;
  Result (*ipc_handle)(IpcHandle*, Address) = nullptr;
  Result (*device_uuid)(Uuid*, Device) = nullptr;
  Result (*push_context)(Context) = nullptr;
  Result (*pop_context)(Context*) = nullptr;
  Result (*synchronize)() = nullptr;
  Result (*error_string)(Result, const char**) = nullptr;
};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(::dlsym(library, name));
  return *function != nullptr;
}

/// Null, having called fail(), in a process without a driver.
const Driver* driver() {
  static Driver found;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
  if (found.error_string != nullptr) return &found;
  // Never unloaded: whoever has GPU memory has it loaded anyway.
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(WEIGHTCAST_REFUSED, "memory on a GPU: CUDA's driver cannot be loaded: %s", ::dlerror());
    return nullptr;
  }
  if (!find(library, "cuPointerGetAttribute", &found.pointer_attribute) ||
      !find(library, "cuMemGetAddressRange_v2", &found.address_range) ||
      !find(library, "cuIpcGetMemHandle", &found.ipc_handle) ||
      !find(library, "cuDeviceGetUuid_v2", &found.device_uuid) ||
      !find(library, "cuCtxPushCurrent_v2", &found.push_context) ||
      !find(library, "cuCtxPopCurrent_v2", &found.pop_context) ||
      !find(library, "cuCtxSynchronize", &found.synchronize) ||
      !find(library, "cuGetErrorString", &found.error_string)) {
    found.error_string = nullptr;
    fail(WEIGHTCAST_REFUSED, "memory on a GPU: CUDA's driver is too old: %s", ::dlerror());
    return nullptr;
  }
  return &found;
}

int fail_with_cuda(const Driver& cuda, Result result, const char* what) {
  const char* text = nullptr;
  if (cuda.error_string(result, &text) != 0 || text == nullptr) text = "an unknown error";
  return fail(WEIGHTCAST_REFUSED, "%s: %s (CUDA error %d)", what, text, result);
}

/// `GPU-9832eea0-ced8-8bb0-9a41-9e53e9d09023`
void print_uuid(const Uuid& uuid, char* text, std::size_t size) {
  int length = std::snprintf(text, size, "GPU-");
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    const bool dash = i == 4 || i == 6 || i == 8 || i == 10;
    length += std::snprintf(text + length, size - static_cast<std::size_t>(length), "%s%02x", dash ? "-" : "",
                            uuid.bytes[i]);
  }
}

}  // namespace

int find_gpu_allocation(const void* address, std::int64_t bytes, GpuAllocation* found) {
  const Driver* cuda = driver();
  if (cuda == nullptr) return WEIGHTCAST_REFUSED;
  const auto at = static_cast<Address>(reinterpret_cast<std::uintptr_t>(address));
  unsigned type = 0;
  Result result = cuda->pointer_attribute(&type, kAttributeMemoryType, at);
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its address is not known to CUDA");
  if (type != kTypeDevice) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "memory on a GPU: the address is of the host's memory; publish the host's memory as such");
  }
  Device device = 0;
  Uuid uuid{};
  result = cuda->pointer_attribute(&device, kAttributeDeviceOrdinal, at);
  if (result == 0) result = cuda->pointer_attribute(&found->context, kAttributeContext, at);
  if (result == 0) result = cuda->device_uuid(&uuid, device);
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its device is not known");
  print_uuid(uuid, found->device, sizeof found->device);
  Address base = 0;
  std::size_t size = 0;
  result = cuda->address_range(&base, &size, at);
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its allocation is not known");
  found->address = base;
  found->bytes = size;
  IpcHandle handle{};
  result = cuda->push_context(found->context);
  if (result == 0) {
    Context popped = nullptr;
    result = cuda->ipc_handle(&handle, base);
    cuda->pop_context(&popped);
  }
  const std::uint64_t end = at - base + static_cast<std::uint64_t>(bytes);
  if (result != 0 || end > size) {
    return fail(
        WEIGHTCAST_REFUSED,
        "memory on %s that no other process can open: its allocator maps physical memory piece by piece; "
        "switch off PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, a sleep mode (vLLM's "
        "enable_sleep_mode) or torch_memory_saver for the weights",
        found->device);
  }
  std::memcpy(found->handle, handle.bytes, sizeof found->handle);
  return WEIGHTCAST_OK;
}

int synchronize_context(void* context) {
  const Driver* cuda = driver();
  if (cuda == nullptr) return WEIGHTCAST_REFUSED;
  Result result = cuda->push_context(context);
  if (result == 0) {
    Context popped = nullptr;
    result = cuda->synchronize();
    cuda->pop_context(&popped);
  }
  return result == 0 ? WEIGHTCAST_OK : fail_with_cuda(*cuda, result, "waiting for the device");
}

}  // namespace weightcast::client
