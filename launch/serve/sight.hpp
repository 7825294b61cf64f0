#pragma once

#include <cstdint>
#include <limits>

namespace weightcast {

/// What a rank sees of its exporters between updates. Travels between ranks as it is.
struct Sight {
  enum Exporters : std::int64_t {
    kMapped,  ///< all are those that are mapped
    kThere,   ///< all have published, but not all of it is what is mapped
    kGone,    ///< one is missing, or dead
  };
  /// Of one exporter.
  enum Publication : std::int64_t {
    kPublished,    ///< or there is no such exporter on this rank
    kUnpublished,  ///< there is no manifest
    kDead,         ///< there is one, of a process that is dead
  };
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();  ///< no version
  static constexpr std::int64_t kNobody = kNone + 1;                               ///< no such exporter

  std::int64_t round = 0;  ///< of the waits: what is seen in an earlier one says nothing any more
  std::int64_t exporters = kMapped;
  std::int64_t trainer = kPublished;
  std::int64_t engine = kPublished;
  std::int64_t offers = kNobody;  ///< version that the trainer offers
  std::int64_t serves = kNobody;  ///< version that the engine has
  std::int64_t signal = 0;        ///< that asks to stop

  friend bool operator==(const Sight& a, const Sight& b) = default;
};

}  // namespace weightcast
