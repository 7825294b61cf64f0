#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "client/window_list.h"
#include "live/exporter.hpp"
#include "session/parameter_window.hpp"
#include "sys/file_mapping.hpp"

namespace weightcast {

/// The window of a running engine, which takes out of it what is in the list that both have mapped
/// (client/window_list.h). A tensor's number is that of its entry in the manifest.
class LiveWindow final : public ParameterWindow {
 public:
  /// `exporter` has a window, and is kept. An engine that takes nothing for `patience` has had its time.
  /// Throws IoError, InputError naming the manifest when the list is not what it should be.
  LiveWindow(std::shared_ptr<Exporter> exporter, std::chrono::seconds patience);

  std::int64_t limit() const override;
  std::optional<std::uint32_t> tensor_at(const std::byte* address) const override;
  void begin() override;
  void reserve(std::byte* address, std::int64_t bytes) override;
  void hand_over(std::uint32_t tensor) override;
  std::size_t taken() override;

 private:
  using Clock = std::chrono::steady_clock;

  weightcast_window_list& list() const;
  /// Throws IoError when the exporter is dead or has given up, TimeoutError when it lets `waiting` tensors
  /// lie.
  void look_at_exporter(std::size_t waiting);

  std::shared_ptr<Exporter> exporter_;
  std::chrono::seconds patience_;
  std::unique_ptr<FileMapping> list_;
  std::map<std::int64_t, std::uint32_t> entries_;  ///< by offset in the window
  std::atomic<std::uint32_t> handed_ = 0;
  std::uint32_t taken_ = 0;
  Clock::time_point looked_;  ///< at the exporter
  Clock::time_point since_;   ///< when it took something, or had nothing to take
};

}  // namespace weightcast
