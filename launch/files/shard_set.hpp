#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/engine.hpp"
#include "storage/input_file.hpp"
#include "storage/rank_file.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// A shard file and what its attributes say. A text or number that is not there is an InputError.
struct Shard {
  std::string path;
  RankFile file;          ///< what its name says
  FileIdentity identity;  ///< of the file whose attributes these are
  Attributes attributes;

  std::int64_t integer(const std::string& name) const;
  std::int64_t integer_or(const std::string& name, std::int64_t absent) const;
  std::string text(const std::string& name) const;
  /// Empty when it is not there.
  std::string optional_text(const std::string& name) const;

 private:
  InputError unfit(const std::string& name, const char* expected) const;
};

/// How many files with a shard's name a folder has; 0 for what is no folder.
std::size_t count_shards(const std::string& directory);

/// The shard files of a folder, by rank. Throws IoError, InputError when there is none or they are of two
/// formats.
std::vector<Shard> read_shards(const std::string& directory);

/// By which expert map shards were written.
struct WrittenPlacement {
  std::int64_t epoch = 0;
  std::string fingerprint;  ///< as ExpertPlacement::fingerprint()

  /// Slot e of every layer holds expert e, and nobody has said otherwise.
  bool none() const { return fingerprint == ExpertPlacement().fingerprint() && epoch == 0; }
};

/// As a shard says; contiguous for those of before it was recorded. Throws InputError.
WrittenPlacement placement_of(const Shard& shard);

/// The layout that they were written for, but for the experts' placement: placement_of(). Throws InputError
/// unless the files are all ranks of one update.
EngineLayout common_layout(const std::string& directory, const std::vector<Shard>& shards);

}  // namespace weightcast
