#pragma once

#include <string>

#include "storage/replacement.hpp"
#include "storage/unfinished.hpp"

namespace weightcast {

/// What every replacement of one file has in common: a hidden file that stands for it until it is placed, a
/// journal from its promise on, and the way back. Errors are IoErrors that name the final path.
class FileReplacement : public Replacement {
 public:
  FileReplacement(const std::string& final_path, const std::string& id);
  /// Undoes what has not ended.
  ~FileReplacement() override;
  FileReplacement(const FileReplacement&) = delete;
  FileReplacement& operator=(const FileReplacement&) = delete;

  const std::string& final_path() const { return state_.final_path; }
  const std::string& partial_path() const { return state_.partial_path; }

  void take_back() override;
  void give_up() noexcept override;
  void settle() noexcept override;
  void keep() noexcept override;

 protected:
  /// Creates the hidden file, and returns a descriptor for it.
  int create_partial();
  /// Writes the journal, once. `fresh` is the new file, if there is one.
  void promise(const std::optional<FileIdentity>& fresh);
  bool is_promised() const { return state_.promised; }
  const std::string& old_path() const { return state_.old_path; }

 private:
  enum class Stage { kOpen, kTakenBack, kSettled, kEnded };

  void end(Stage stage) noexcept;

  UnfinishedFile state_;
  Stage stage_ = Stage::kOpen;
};

/// Puts a folder's names on the disk (fsync). Throws IoError.
void sync_directory(const std::string& directory);

/// Throws SystemRefusal: `cannot WHAT PATH: …`.
[[noreturn]] void fail_at(std::string_view what, const std::string& path, int error,
                          std::source_location where = std::source_location::current());

}  // namespace weightcast
