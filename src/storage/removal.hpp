#pragma once

#include <string>

#include "storage/file_replacement.hpp"

namespace weightcast {

/// A file that goes when others are replaced, because it would be read beside them: it is hidden together
/// with their renames, and comes back with the old ones.
class Removal final : public FileReplacement {
 public:
  /// `id` is that of the files that are replaced. Who judges whether this one may go does so afterwards: what
  /// comes later stays.
  Removal(const std::string& path, const std::string& id);

  void prepare() override;
  void place() override;
};

}  // namespace weightcast
