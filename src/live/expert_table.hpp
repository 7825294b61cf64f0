#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/expert_table.h"
#include "live/manifest.hpp"
#include "live/shared_memory.hpp"
#include "model/expert_map.hpp"
#include "sys/file_mapping.hpp"

namespace weightcast {

/// The table in which a running engine says which experts sit in its expert slots (client/expert_table.h).
class ExpertTable {
 public:
  /// `manifest` has such a table, and must outlive this. Throws IoError, InputError naming the manifest where
  /// the table cannot be reached or is none of this publication.
  explicit ExpertTable(const Manifest& manifest);

  /// The map that the engine has now, of one rank. Throws InputError naming the manifest for what is no map,
  /// IoError where the engine does not come to an end of writing it.
  ExpertMap read() const;

  /// Says in place of the engine, whose parameters are a job step's and have been written so, that its
  /// experts sit as `map` has them, a map of the table's sizes. Throws IoError as the constructor.
  void write(const ExpertMap& map) const;

 private:
  const weightcast_expert_table& table() const;
  /// The numbers of the table and its epoch, all of one moment. Throws IoError.
  std::vector<std::int64_t> numbers(std::int64_t& epoch) const;

  const Manifest& manifest_;
  std::unique_ptr<FileMapping> mapping_;
};

/// A number that two maps have in common where they have the epoch and the slots in common.
std::int64_t key_of(const ExpertMap& map);

}  // namespace weightcast
