#include "client/gpu_memory.hpp"

#include <dlfcn.h>
#include <fcntl.h>

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
using Allocation = unsigned long long;
constexpr int kAttributeContext = 1;
constexpr int kAttributeMemoryType = 2;
constexpr int kAttributeDeviceOrdinal = 9;
constexpr unsigned kTypeDevice = 2;
constexpr int kHandleOfFile = 1;

struct Driver {
  Result (*pointer_attribute)(void*, int, Address) = nullptr;
  Result (*address_range)(Address*, std::size_t*, Address) = nullptr;
  Result (*ipc_handle)(IpcHandle*, Address) = nullptr;
  Result (*retain)(Allocation*, void*) = nullptr;
  Result (*export_allocation)(void*, Allocation, int, unsigned long long) = nullptr;
  Result (*release)(Allocation) = nullptr;
  Result (*device_uuid)(Uuid*, Device) = nullptr;
  Result (*primary_context)(Context*, Device) = nullptr;
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
    fail(WEIGHTCAST_REFUSED, "memory on a GPU: CUDA's driver cannot be loaded; run where it is installed: %s",
         ::dlerror());
    return nullptr;
  }
  if (!find(library, "cuPointerGetAttribute", &found.pointer_attribute) ||
      !find(library, "cuMemGetAddressRange_v2", &found.address_range) ||
      !find(library, "cuIpcGetMemHandle", &found.ipc_handle) ||
      !find(library, "cuMemRetainAllocationHandle", &found.retain) ||
      !find(library, "cuMemExportToShareableHandle", &found.export_allocation) ||
      !find(library, "cuMemRelease", &found.release) ||
      !find(library, "cuDeviceGetUuid_v2", &found.device_uuid) ||
      !find(library, "cuDevicePrimaryCtxRetain", &found.primary_context) ||
      !find(library, "cuCtxPushCurrent_v2", &found.push_context) ||
      !find(library, "cuCtxPopCurrent_v2", &found.pop_context) ||
      !find(library, "cuCtxSynchronize", &found.synchronize) ||
      !find(library, "cuGetErrorString", &found.error_string)) {
    found.error_string = nullptr;
    fail(WEIGHTCAST_REFUSED, "memory on a GPU: CUDA's driver is too old; update it: %s", ::dlerror());
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

int find_gpu_allocation(std::uint64_t address, GpuAllocation* found) {
  const Driver* cuda = driver();
  if (cuda == nullptr) return WEIGHTCAST_REFUSED;
  unsigned type = 0;
  Result result = cuda->pointer_attribute(&type, kAttributeMemoryType, address);
  if (result != 0)
    return fail_with_cuda(
        *cuda, result, "memory on a GPU: its address is not known to CUDA; give one that this process has");
  if (type != kTypeDevice) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "memory on a GPU: the address is of the host's memory; publish the host's memory as such");
  }
  Device device = 0;
  Uuid uuid{};
  result = cuda->pointer_attribute(&device, kAttributeDeviceOrdinal, address);
  if (result == 0) result = cuda->device_uuid(&uuid, device);
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its device is not known");
  print_uuid(uuid, found->device, sizeof found->device);
  // Physical memory that was mapped belongs to no context: the device's own is the one that frameworks use.
  if (cuda->pointer_attribute(&found->context, kAttributeContext, address) != 0 || found->context == nullptr)
    result = cuda->primary_context(&found->context, device);
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its device has no context");
  Address base = 0;
  std::size_t size = 0;
  IpcHandle handle{};
  // The thread may have none: the driver asks for one.
  result = cuda->push_context(found->context);
  if (result == 0) {
    Context popped = nullptr;
    result = cuda->address_range(&base, &size, address);
    found->has_handle = result == 0 && cuda->ipc_handle(&handle, base) == 0;
    cuda->pop_context(&popped);
  }
  if (result != 0) return fail_with_cuda(*cuda, result, "memory on a GPU: its allocation is not known");
  found->address = base;
  found->bytes = size;
  std::memcpy(found->handle, handle.bytes, sizeof found->handle);
  return WEIGHTCAST_OK;
}

int export_gpu_allocation(const GpuAllocation& allocation, int* file) {
  const Driver* cuda = driver();
  if (cuda == nullptr) return WEIGHTCAST_REFUSED;
  Allocation handle = 0;
  // The driver takes the device's address as a pointer here.
  void* const address = reinterpret_cast<void*>(allocation.address);  // NOLINT(performance-no-int-to-ptr)
  Result result = cuda->retain(&handle, address);
  if (result == 0) {
    result = cuda->export_allocation(file, handle, kHandleOfFile, 0);
    cuda->release(handle);
  }
  if (result == 0) {
    ::fcntl(*file, F_SETFD, FD_CLOEXEC);
    return WEIGHTCAST_OK;
  }
  return fail(WEIGHTCAST_REFUSED,
              "memory on %s that no other process can open (CUDA error %d): its allocator has made it so; "
              "switch off a sleep mode (vLLM's enable_sleep_mode) or torch_memory_saver for the weights, and "
              "where there are many gigabytes in expandable segments raise ulimit -n",
              allocation.device, result);
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
