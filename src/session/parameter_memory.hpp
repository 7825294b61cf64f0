#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "plan/rank_plan.hpp"
#include "session/parameter_window.hpp"

namespace weightcast {

/// Where the parameters of a rank are: memory that is given to a session, which writes it. Addresses never
/// change.
class ParameterMemory {
 public:
  virtual ~ParameterMemory() = default;

  /// Bytes that `open` takes from the system: all that a check of free memory has to count.
  virtual std::int64_t bytes_to_allocate(const RankPlan& rank_plan) const = 0;

  /// Allocates or finds the memory of every parameter of the rank plan; called once, before anything below.
  /// Throws IoError when the system refuses, InputError naming a parameter whose memory is missing or has
  /// another size.
  virtual void open(const RankPlan& rank_plan) = 0;

  /// `begin`: an update to `version` is about to write, and until `commit` the memory holds no version.
  /// `commit`: it holds `version`, on every rank. All ranks agree before and after each of the two; what one
  /// throws ends the update on every rank.
  virtual void begin(std::int64_t /*version*/) {}
  virtual void commit(std::int64_t /*version*/) {}

  /// The window that some of the parameters lie in, in place of memory that keeps them; null where there is
  /// none.
  ParameterWindow* window() const { return window_.get(); }

  /// Throws IoError when some of it is lost, as Memory::require_whole().
  void require_whole() const;

  /// The memory of parameter p, on the host or on the GPU.
  std::span<std::byte> parameter(std::size_t p) const { return places_.at(p).bytes; }

  /// True when the host may follow those addresses.
  bool on_host() const;

  /// Copies from or to byte `offset` of parameter p. Waits. Reading is callable from several threads.
  void read(std::size_t p, std::int64_t offset, std::span<std::byte> to) const;
  void write(std::size_t p, std::int64_t offset, std::span<const std::byte> from);

  /// Sets every byte of all parameters. Waits.
  void fill(std::byte value);

  /// The allocations that the parameters lie in.
  std::span<const std::shared_ptr<Memory>> allocations() const { return allocations_; }

 protected:
  /// Says that the next parameter lies in allocation `number` from byte `offset` on.
  void place(std::size_t number, std::int64_t offset, std::int64_t bytes);

  std::vector<std::shared_ptr<Memory>> allocations_;
  std::shared_ptr<ParameterWindow> window_;

 private:
  struct Place {
    Memory* memory = nullptr;
    std::int64_t offset = 0;
    std::span<std::byte> bytes;
  };

  std::vector<Place> places_;
};

/// One allocation that `make` makes, with the parameters one behind the other as the rank plan places them.
std::unique_ptr<ParameterMemory> own_parameter_memory(std::unique_ptr<Memory> (*make)(std::int64_t,
                                                                                      const char*));

/// A parameter in memory that somebody else has: byte `offset` of allocation number `allocation`.
struct GivenParameter {
  std::string name;
  std::size_t allocation = 0;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};

/// Parameters in such memory, found by their names. It is never freed here, and what lies between them is
/// never touched. Throws InternalError for one that is not within its allocation, or one that overlaps
/// another. One of the allocations may be `window`.
std::unique_ptr<ParameterMemory> given_parameter_memory(std::vector<std::shared_ptr<Memory>> allocations,
                                                        std::vector<GivenParameter> parameters,
                                                        std::shared_ptr<ParameterWindow> window = nullptr);

}  // namespace weightcast
