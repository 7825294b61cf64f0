#include "storage/removal.hpp"

#include <unistd.h>

#include <cerrno>

#include "storage/hidden_names.hpp"

namespace weightcast {

Removal::Removal(const std::string& path, const std::string& id) : FileReplacement(path, id) {
  // Empty: it only says that this one has not had its turn.
  ::close(create_partial());
}

void Removal::prepare() {
  promise(std::nullopt);
}

void Removal::place() {
  try {
    if (!is_promised()) prepare();
    move_away();
    if (::unlink(partial_path().c_str()) != 0) fail_at("remove", partial_path(), errno);
    sync_directory(directory_of(final_path()));
  } catch (const IoError&) {
    take_back();
    throw;
  }
}

}  // namespace weightcast
