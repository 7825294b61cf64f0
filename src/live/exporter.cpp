#include "live/exporter.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "client/block.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "live/gpu_live.hpp"

namespace weightcast {

namespace {

/// A file of shared memory that somebody else has made.
class SharedFile {
 public:
  /// Throws IoError naming the manifest.
  SharedFile(const Manifest& manifest, const std::string& name)
      : fd_(::shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0)) {
    if (fd_ >= 0) return;
    throw IoError(fmt::format(
        "{}: its shared memory {} cannot be opened ({}); its exporter is gone, or has published anew",
        manifest.path, name, std::strerror(errno)));
  }
  ~SharedFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  /// Throws InputError when the file is shorter, IoError when the system refuses.
  std::byte* map(const Manifest& manifest, std::int64_t bytes) const {
    struct stat status = {};
    if (::fstat(fd_, &status) != 0 || status.st_size < bytes) {
      throw InputError(fmt::format("{}: its shared memory has {} bytes and not {}; publish again",
                                   manifest.path, status.st_size, bytes));
    }
    void* memory =
        ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (memory == MAP_FAILED) {
      throw IoError(fmt::format("{}: {} bytes of its shared memory cannot be mapped: {}", manifest.path,
                                bytes, std::strerror(errno)));
    }
    return static_cast<std::byte*>(memory);
  }

  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

/// Memory of another process.
class MappedMemory final : public Memory {
 public:
  MappedMemory(std::byte* data, std::int64_t bytes) : data_(data), bytes_(bytes) {}
  ~MappedMemory() override { ::munmap(data_, static_cast<std::size_t>(bytes_)); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  std::byte* data() const override { return data_; }
  std::int64_t bytes() const override { return bytes_; }
  bool on_host() const override { return true; }
  void read(std::int64_t offset, std::span<std::byte> to) const override {
    std::memcpy(to.data(), data_ + offset, to.size());
  }
  void write(std::int64_t offset, std::span<const std::byte> from) override {
    std::memcpy(data_ + offset, from.data(), from.size());
  }
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override {
    std::fill_n(data_ + offset, bytes, value);
  }

 private:
  std::byte* data_;
  std::int64_t bytes_;
};

std::shared_ptr<Memory> map_shared(const Manifest& manifest, const LiveSegment& segment) {
  const SharedFile file(manifest, segment.name);
  return std::make_shared<MappedMemory>(file.map(manifest, segment.bytes), segment.bytes);
}

std::string process_of(int pid) {
  return pid > 0 ? fmt::format("process {}", pid) : "a process of another container";
}

}  // namespace

Exporter::Exporter(Manifest manifest) : manifest_(std::move(manifest)) {
  require_reachable(manifest_);
  SharedFile control(manifest_, manifest_.control);
  block_ = reinterpret_cast<weightcast_block*>(control.map(manifest_, WEIGHTCAST_BLOCK_BYTES));
  file_ = control.release();
  try {
    if (block_->magic != WEIGHTCAST_BLOCK_MAGIC || block_->generation != manifest_.generation) {
      throw IoError(manifest_.path +
                    ": its control block is of another publication or client; publish again");
    }
    // Before the look at the exporter: from here on it keeps its memory.
    if (!client::take_lock(file_, WEIGHTCAST_LOCK_MAPPED, true)) {
      throw IoError(manifest_.path + ": its exporter is closing; wait until it has published again");
    }
    if (!lives()) {
      throw IoError(fmt::format("{}: its exporter, process {}, is gone; start it again", manifest_.path,
                                manifest_.pid));
    }
    for (const LiveSegment& segment : manifest_.segments) {
      segments_.push_back(segment.kind == SegmentKind::kCudaIpc ? open_gpu_segment(manifest_, segment)
                                                                : map_shared(manifest_, segment));
    }
  } catch (...) {
    ::munmap(block_, WEIGHTCAST_BLOCK_BYTES);
    ::close(file_);
    throw;
  }
}

Exporter::~Exporter() {
  segments_.clear();
  ::munmap(block_, WEIGHTCAST_BLOCK_BYTES);
  // Drops its locks, too.
  ::close(file_);
}

bool Exporter::take(const std::string& owner) {
  if (!client::take_lock(file_, WEIGHTCAST_LOCK_UPDATE)) {
    // Nobody by now, or the exporter itself, which looks for a moment whether a job step is gone.
    const int holder = client::holder_of_lock(file_, WEIGHTCAST_LOCK_UPDATE);
    if (holder == 0 || holder == manifest_.pid) return false;
    const std::string_view said(block_->owner, ::strnlen(block_->owner, sizeof block_->owner));
    throw IoError(fmt::format("{}: is in an update of another job ({}, {}); wait for its end", manifest_.path,
                              process_of(holder), printable(said)));
  }
  taken_ = true;
  // An engine whose other ranks a dead job step has not asked any more may never look at its question.
  change(WEIGHTCAST_ASKED, static_cast<weightcast_state>(block_->rest));
  switch (state()) {
    case WEIGHTCAST_ASKED:
    case WEIGHTCAST_PAUSED:
    case WEIGHTCAST_WRITING:
    case WEIGHTCAST_WRITTEN:
    case WEIGHTCAST_BEING_READ:
      give_back();
      return false;
    default:
      client::put_text(block_->owner, sizeof block_->owner, owner.c_str());
      return true;
  }
}

void Exporter::give_back() noexcept {
  if (!std::exchange(taken_, false)) return;
  client::drop_lock(file_, WEIGHTCAST_LOCK_UPDATE);
}

weightcast_state Exporter::state() const {
  return WEIGHTCAST_STATE_OF(client::load_word(*block_));
}

std::uint64_t Exporter::update() const {
  return WEIGHTCAST_UPDATE_OF(client::load_word(*block_));
}

std::string Exporter::reason() const {
  return printable(std::string_view(block_->reason, ::strnlen(block_->reason, sizeof block_->reason)));
}

bool Exporter::lives() const {
  return client::holder_of_lock(file_, WEIGHTCAST_LOCK_EXPORTER) != 0;
}

std::string Exporter::name() const {
  return fmt::format("{} {} (process {})", role_name(manifest_.role), manifest_.rank, manifest_.pid);
}

bool Exporter::change(weightcast_state from, weightcast_state to) {
  const std::uint64_t word = client::load_word(*block_);
  if (WEIGHTCAST_STATE_OF(word) != from) return false;
  return client::change_word(*block_, word, WEIGHTCAST_WORD(to, WEIGHTCAST_UPDATE_OF(word)));
}

bool Exporter::ask(weightcast_state from, std::uint64_t update, std::int64_t version) {
  const std::uint64_t word = client::load_word(*block_);
  if (WEIGHTCAST_STATE_OF(word) != from) return false;
  block_->asked = version;
  block_->rest = from;
  block_->reason[0] = '\0';
  return client::change_word(*block_, word, WEIGHTCAST_WORD(WEIGHTCAST_ASKED, update));
}

bool Exporter::invalidate(weightcast_state from, weightcast_written written, const std::string& reason) {
  if (state() != from) return false;
  give_reason(reason);
  block_->written = written;
  return change(from, WEIGHTCAST_INVALID);
}

void Exporter::give_reason(const std::string& reason) {
  client::put_text(block_->reason, sizeof block_->reason, reason.c_str());
}

void Exporter::await_change() const {
  constexpr double kLook = 0.002;
  client::await_change(*block_, client::load_word(*block_), kLook);
}

}  // namespace weightcast
