#include "live/live_window.hpp"

#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <utility>

#include "client/control_block.h"
#include "core/error.hpp"

namespace weightcast {

namespace {

const LiveSegment& segment_of(const Exporter& exporter) {
  return exporter.manifest().segments.at(exporter.manifest().window().value());
}

}  // namespace

LiveWindow::LiveWindow(std::shared_ptr<Exporter> exporter, std::chrono::seconds patience)
    : exporter_(std::move(exporter)), patience_(patience) {
  const Manifest& manifest = exporter_->manifest();
  const SharedFile file(manifest, segment_of(*exporter_).list, Access::kWrite);
  list_ = file.map(manifest, WEIGHTCAST_LIST_BYTES(manifest.entries.size()));
  if (list().magic != WEIGHTCAST_LIST_MAGIC || list().generation != manifest.generation) {
    throw InputError(
        fmt::format("{}: its list {} is none of this publication; let the engine publish anew with a client "
                    "of this version",
                    manifest.path, segment_of(*exporter_).list));
  }
  for (std::uint32_t number = 0; number < manifest.entries.size(); ++number) {
    const LiveEntry& entry = manifest.entries[number];
    if (entry.segment == manifest.window() && entry.shape.elements() > 0)
      entries_.emplace(entry.offset, number);
  }
}

weightcast_window_list& LiveWindow::list() const {
  return *reinterpret_cast<weightcast_window_list*>(list_->data());
}

std::int64_t LiveWindow::limit() const {
  const LiveSegment& segment = segment_of(*exporter_);
  return std::min(segment.limit, segment.bytes);
}

std::optional<std::uint32_t> LiveWindow::tensor_at(const std::byte* address) const {
  const SharedMemory& memory = *exporter_->window();
  // As numbers: the address may be of other memory.
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  if (at < begin || at >= begin + static_cast<std::uintptr_t>(memory.bytes())) return std::nullopt;
  const auto behind = entries_.upper_bound(static_cast<std::int64_t>(at - begin));
  if (behind == entries_.begin()) return std::nullopt;
  return std::prev(behind)->second;
}

void LiveWindow::begin() {
  // The exporter has emptied it before it paused.
  __atomic_store_n(&list().landed, 0, __ATOMIC_RELEASE);
  handed_ = 0;
  taken_ = 0;
  since_ = Clock::now();
}

void LiveWindow::reserve(std::byte* address, std::int64_t bytes) {
  exporter_->window()->reserve(address - exporter_->window()->data(), bytes);
}

void LiveWindow::hand_over(std::uint32_t tensor) {
  const std::uint32_t number = handed_;
  WEIGHTCAST_LIST_ENTRIES(&list())[number] = tensor;
  handed_ = number + 1;
  __atomic_store_n(&list().landed, number + 1, __ATOMIC_RELEASE);
  ::syscall(SYS_futex, &list().landed, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

std::size_t LiveWindow::taken() {
  const std::uint32_t taken = __atomic_load_n(&list().taken, __ATOMIC_ACQUIRE);
  const std::uint32_t handed = handed_;
  const bool possible = taken >= taken_ && taken <= handed;
  const auto now = Clock::now();
  if (taken != taken_ || taken == handed) since_ = now;
  // It asks the system several times.
  constexpr auto kPeriod = std::chrono::milliseconds(2);
  if (!possible || now - looked_ >= kPeriod) {
    looked_ = now;
    look_at_exporter(handed - taken);
  }
  if (!possible) {
    throw InputError(fmt::format("{}: its list says that {} tensors were taken, of {}; let it publish anew",
                                 exporter_->manifest().path, taken, handed));
  }
  taken_ = taken;
  return taken;
}

void LiveWindow::look_at_exporter(std::size_t waiting) {
  const std::string& path = exporter_->manifest().path;
  exporter_->require_there();
  require_whole(exporter_->manifest(), *list_);
  const BlockState state = exporter_->look();
  if (state.state != WEIGHTCAST_WRITING) {
    throw IoError(fmt::format("{}: {} has given up amid the update: {}; run the update again", path,
                              exporter_->name(), state.cause));
  }
  if (Clock::now() - since_ <= patience_) return;
  throw TimeoutError(
      fmt::format("{}: {} has taken none of {} tensors that lie in its window within {} s; look what its "
                  "loader does, or raise --timeout",
                  path, exporter_->name(), waiting, patience_.count()));
}

}  // namespace weightcast
