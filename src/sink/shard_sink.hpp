#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "session/session.hpp"
#include "sink/output_claim.hpp"
#include "storage/file_format.hpp"
#include "storage/folder_place.hpp"
#include "storage/left_overs.hpp"
#include "storage/replacement.hpp"
#include "storage/tentative_folder.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

/// Where shard files go, and in which format, as `--sink hdf5:DIR` and `--sink safetensors:DIR` say it.
struct ShardPlace {
  FileFormat format = FileFormat::kHdf5;
  std::string directory;  ///< `{version}` in it stands for the number of a version

  /// The folder of a version.
  std::string folder(std::int64_t version) const;
  /// What names a folder of this sink in messages: `--sink hdf5:shards`.
  std::string option(const std::string& folder) const;
};

/// Throws UsageError when the folders of different versions are one, through links.
void require_folders_apart(const ShardPlace& place, const std::set<std::string>& folders);

/// Throws UsageError where the shard at `path`, if there is one, was placed by an expert map of a later
/// epoch: its engine has moved experts since, and is not to be given them by an older map.
void require_no_later_map(const std::string& path, const ExpertPlacement& experts);

/// Writes each inference rank's parameters as `DIRECTORY/rank-<inference rank>.h5` or `.safetensors`. All
/// ranks write beside the final names, flush, agree, and only then rename; the old files are kept until all
/// have: a failure of any rank leaves every old file as it was. Shards of an earlier, larger layout go with
/// the same renames, and so do those of an update in the other format.
class ShardSink {
 public:
  /// `control` must outlive the sink. `writers` writes for it alone; unused on a rank that is no inference
  /// rank. `topology` says which ranks write.
  ShardSink(Control& control, Topology topology, ThreadPool& writers, ShardPlace to);
  /// The same for all versions of a session, which must outlive the sink.
  ShardSink(Control& control, const Session& session, ThreadPool& writers, ShardPlace to);

  /// What is written from now on: the parameters of a session, which must outlive the sink, as those of
  /// `topology`, in which the same ranks write.
  void hold(const Session& session, const Topology& topology);

  /// To be called before anything of a version moves: locks its folder for as long as the sink lives, and
  /// clears it of what broken runs left. Throws (by agreement) IoError when another job writes there, when
  /// the folder is no longer the one that was locked, and for files of others that shards would replace, and
  /// UsageError when ranks of one host do not mean one folder, or two versions do; it may be called again
  /// then. `command` is what that job is told. Collective.
  void begin(std::int64_t version, const std::string& command);

  /// After `begin` of that version. Collective.
  void write(std::int64_t version);

 private:
  /// What a rank has of a folder.
  struct Folder {
    FolderPlace where;
    std::optional<OutputClaim> claim;     ///< on the first inference rank
    std::optional<LeftOvers> left_overs;  ///< of its own files, on the others while the first holds the lock
    std::optional<TentativeFolder> made;  ///< on the others
  };

  /// Throws (by agreement) UsageError when the folder is another one for some ranks of a host. Collective.
  void require_one_folder(const std::string& directory, const FolderPlace& where);
  /// Locks a folder, and clears it. Collective.
  void claim(Folder& folder, const std::string& directory, const std::string& command);
  /// Clears a folder of what broken runs left, on all nodes alike. Collective.
  void clear(const Folder& folder);
  /// The files of a folder that have to go when this rank's new one takes its name: on the first inference
  /// rank also those of ranks that the layout has not. Throws IoError for one that cannot be read, because it
  /// may be this program's.
  std::vector<std::string> surplus_files(const std::string& directory, std::int64_t inference_rank) const;
  /// All ranks' files take their names, or none do. Collective.
  void place_everywhere(std::span<Replacement* const> parts);

  Control& control_;
  const Session* session_ = nullptr;
  ThreadPool& writers_;
  ShardPlace to_;
  Topology topology_;
  std::map<std::string, Folder> folders_;  ///< by path
};

}  // namespace weightcast
