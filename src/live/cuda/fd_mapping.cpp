#include "live/cuda/fd_mapping.hpp"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.hpp"
#include "live/cuda/driver.hpp"

namespace weightcast {

namespace {

/// What maps physical memory. All of it came with CUDA 10.2.
struct MappingDriver {
  static constexpr unsigned kSince = 10020;

  decltype(&cuMemAddressReserve) reserve =
      driver_function<decltype(&cuMemAddressReserve)>("cuMemAddressReserve", kSince);
  decltype(&cuMemAddressFree) free = driver_function<decltype(&cuMemAddressFree)>("cuMemAddressFree", kSince);
  decltype(&cuMemImportFromShareableHandle) import =
      driver_function<decltype(&cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle", kSince);
  decltype(&cuMemMap) map = driver_function<decltype(&cuMemMap)>("cuMemMap", kSince);
  decltype(&cuMemUnmap) unmap = driver_function<decltype(&cuMemUnmap)>("cuMemUnmap", kSince);
  decltype(&cuMemRelease) release = driver_function<decltype(&cuMemRelease)>("cuMemRelease", kSince);
  decltype(&cuMemSetAccess) set_access = driver_function<decltype(&cuMemSetAccess)>("cuMemSetAccess", kSince);
};

const MappingDriver& driver() {
  static const MappingDriver found;
  return found;
}

/// A file descriptor of this process.
class OwnFile {
 public:
  explicit OwnFile(long number) : number_(static_cast<int>(number)) {}
  ~OwnFile() {
    if (number_ >= 0) ::close(number_);
  }
  OwnFile(const OwnFile&) = delete;
  OwnFile& operator=(const OwnFile&) = delete;

  int number() const { return number_; }

 private:
  int number_;
};

void check(CUresult result, const Manifest& manifest, const char* what) {
  if (result == CUDA_SUCCESS) return;
  throw IoError(
      fmt::format("{}: its memory on the GPU cannot be {} (CUDA error {}); let its exporter publish again",
                  manifest.path, what, static_cast<int>(result)));
}

}  // namespace

FdMapping::FdMapping(const Manifest& manifest, const LiveSegment& segment) {
  try {
    map(manifest, segment);
  } catch (...) {
    release();
    throw;
  }
}

FdMapping::~FdMapping() {
  release();
}

void FdMapping::map(const Manifest& manifest, const LiveSegment& segment) {
  CUdeviceptr address = 0;
  const auto bytes = static_cast<std::size_t>(segment.bytes);
  check(driver().reserve(&address, bytes, 0, 0, 0), manifest, "given addresses");
  address_ = static_cast<std::uintptr_t>(address);
  reserved_ = bytes;
  const OwnFile process(::syscall(SYS_pidfd_open, static_cast<pid_t>(manifest.pid), 0));
  if (process.number() < 0) {
    throw IoError(
        fmt::format("{}: process {} cannot be reached: {}; run the rank where its exporter runs, in the "
                    "same process namespace",
                    manifest.path, manifest.pid, std::strerror(errno)));
  }
  for (const LivePiece& piece : segment.pieces) map_piece(manifest, piece, process.number());
  CUmemAccessDesc access{};
  int device = 0;
  WEIGHTCAST_CUDA(cudaGetDevice(&device));
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check(driver().set_access(address, bytes, &access, 1), manifest, "made accessible");
}

void FdMapping::map_piece(const Manifest& manifest, const LivePiece& piece, int process) {
  const OwnFile file(::syscall(SYS_pidfd_getfd, process, piece.file, 0));
  if (file.number() < 0) {
    throw IoError(fmt::format(
        "{}: file descriptor {} of process {} cannot be taken: {}; switch off "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in its exporter, or allow ranks to trace "
        "it (kernel.yama.ptrace_scope, SYS_PTRACE of a container)",
        manifest.path, piece.file, manifest.pid, std::strerror(errno)));
  }
  CUmemGenericAllocationHandle handle = 0;
  // CUDA's interface takes a descriptor as a pointer.
  const auto value = static_cast<std::uintptr_t>(file.number());
  void* const number = reinterpret_cast<void*>(value);  // NOLINT(performance-no-int-to-ptr)
  check(driver().import(&handle, number, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), manifest, "opened");
  const auto bytes = static_cast<std::size_t>(piece.bytes);
  const CUresult mapped = driver().map(address_ + mapped_, bytes, 0, handle, 0);
  driver().release(handle);
  if (mapped == CUDA_ERROR_INVALID_VALUE) {
    throw InputError(fmt::format("{}: a piece of its memory on the GPU has not {} bytes; publish again",
                                 manifest.path, piece.bytes));
  }
  check(mapped, manifest, "mapped");
  mapped_ += bytes;
}

void FdMapping::release() noexcept {
  if (mapped_ > 0) driver().unmap(address_, mapped_);
  if (reserved_ > 0) driver().free(address_, reserved_);
  mapped_ = reserved_ = 0;
}

}  // namespace weightcast
