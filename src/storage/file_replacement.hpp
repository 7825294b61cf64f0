#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "storage/input_file.hpp"
#include "storage/replacement.hpp"
#include "storage/unfinished.hpp"

namespace weightcast {

/// What every replacement of one file has in common: a hidden file that stands for it until it is placed, a
/// journal beside that, and the way back. Errors are IoErrors that name the final path.
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
  /// Says by which descriptor the hidden file is found, where its folder is moved, until `abandon`.
  void keep_in_sight(int descriptor);
  /// Undoes what has not ended.
  void abandon() noexcept;
  /// Looks at what has the final name, creates the hidden file and its journal, and returns a descriptor for
  /// the former: nobody may do with it what others may not do with the file that it replaces.
  int create_partial();
  /// What has the final name now. Throws IoError unless that is nothing, or the very file that was there when
  /// `create_partial` looked: what has come since, or was written into it, is somebody else's.
  std::optional<struct stat> require_as_seen() const;
  /// The file that was there then. Of none it equals no file's.
  FileIdentity seen() const { return seen_ ? identity_of(*seen_) : FileIdentity{}; }
  /// Throws the error for somebody else's file under the final name.
  [[noreturn]] void fail_for_other() const;
  /// Moves the old file, if it is still there, to its hidden name. What somebody else has put there gets its
  /// name back, with IoError.
  void move_away();
  /// Says so in the journal, once. `fresh` is the new file, if there is one. Throws as `require_as_seen`
  /// does.
  void promise(const std::optional<FileIdentity>& fresh);
  bool is_promised() const { return state_.promised; }
  const std::string& old_path() const { return state_.old_path; }

 private:
  enum class Stage { kOpen, kTakenBack, kSettled, kEnded };

  void end(Stage stage) noexcept;

  UnfinishedFile state_;
  std::optional<struct stat> seen_;
  Stage stage_ = Stage::kOpen;
};

/// Puts a folder's names on the disk (fsync). Throws IoError.
void sync_directory(const std::string& directory);

/// Throws SystemRefusal: `cannot WHAT PATH: …`.
[[noreturn]] void fail_at(std::string_view what, const std::string& path, int error);

}  // namespace weightcast
