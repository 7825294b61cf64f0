#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"

namespace weightcast {

enum class Role : std::uint8_t { kTrainer, kEngine };

/// `trainer` or `engine`, as in a manifest and its name.
const char* role_name(Role role);

enum class SegmentKind : std::uint8_t {
  kShared,   ///< shared memory of the system
  kWindow,   ///< the same, through which tensors come that the engine's own loader takes
  kCudaIpc,  ///< an allocation on a GPU, opened by a handle of CUDA's
  kCudaFd,   ///< pieces of physical memory on a GPU, each behind a file descriptor of the exporter's process
};

/// One of them.
struct LivePiece {
  int file = 0;  ///< number in the exporter's process
  std::int64_t bytes = 0;
};

/// Memory of an exporter that a rank of its host can map.
struct LiveSegment {
  static constexpr std::size_t kHandleBytes = 64;

  SegmentKind kind = SegmentKind::kShared;
  std::string name;  ///< of shared memory: `/weightcast-…`
  std::int64_t bytes = 0;
  std::int64_t limit = 0;                        ///< of a window: bytes that are to be in it at once
  std::string list;                              ///< of a window: the shared memory of its list
  std::array<std::byte, kHandleBytes> handle{};  ///< of an allocation on a GPU
  std::vector<LivePiece> pieces;                 ///< on a GPU, one behind the other
  std::string device;                            ///< its GPU: `GPU-` and a UUID

  bool on_host() const { return kind == SegmentKind::kShared || kind == SegmentKind::kWindow; }
};

/// Where an entry lies in a tensor that is cut among trainers.
struct LiveBox {
  Shape whole;                      ///< of the tensor
  std::vector<std::int64_t> start;  ///< of the entry in it, in elements, of each dimension
};

/// A tensor in a segment, or a trainer's box of one.
struct LiveEntry {
  std::string name;
  std::vector<std::string> aliases;  ///< other names of the same memory
  DType dtype = DType::kBF16;
  Shape shape;
  std::vector<std::int64_t> strides;  ///< in elements, of each dimension
  std::uint32_t segment = 0;
  std::int64_t offset = 0;  ///< bytes
  std::optional<LiveBox> box;

  /// Whether its elements lie row by row without gaps.
  bool contiguous() const;
};

/// What a trainer or an engine process has published of itself.
struct Manifest {
  std::string path;
  std::string client;  ///< the version of the library that wrote it; empty: not said
  Role role = Role::kTrainer;
  std::int64_t rank = 0;
  std::int64_t ranks = 0;
  std::string host;
  std::string boot_id;
  std::int64_t shm_device = 0;  ///< of its /dev/shm: another one in another container
  std::int64_t pid = 0;
  std::int64_t uid = 0;
  std::uint64_t generation = 0;  ///< another one after each publication
  std::string folder;            ///< the inode of the folder where it looks for records; empty: not said
  std::string job;               ///< of Slurm; empty outside
  std::string restart;           ///< how often Slurm has started that job anew; empty: never
  std::string layout;            ///< empty: as the job's options say
  std::string control;           ///< the shared memory of its control block
  std::string expert_table;      ///< an engine's shared memory of where its experts sit; empty: not said
  std::array<std::int64_t, 3> expert_slots{};  ///< of that: layers, slots and experts of a layer
  std::vector<LiveSegment> segments;
  std::vector<LiveEntry> entries;

  /// The GPU on which it has segments; empty when it has none there.
  std::string device() const;

  /// The number of the segment that is a window, if there is one.
  std::optional<std::uint32_t> window() const;
};

/// The name that shared memory of an exporter has, after what it is: its number, or `control`.
/// `/weightcast-1000-00ff00ff00ff00ff-control`
std::string name_of_memory(std::int64_t uid, std::uint64_t generation, std::string_view what);

/// `DIR/engine-3.json`
std::string manifest_path(const std::string& directory, Role role, std::int64_t rank);

/// Whose manifest it is and whose this program is, for one that it does not understand, and what to do:
/// `it was published by client 0.2.0, and this is weightcast 0.1.0: use one version on both sides`
std::string versions_of(const Manifest& manifest);

/// Reads one. Nothing in it is trusted: sizes, bounds and overlaps are checked. Throws InputError naming the
/// file and the field or entry that is wrong, IoError when there is no such file.
Manifest read_manifest(const std::string& path);

/// Where an exporter is, as this process sees it.
enum class Reach : std::uint8_t {
  kHere,       ///< its memory can be mapped
  kOtherHost,  ///< another host's
  kOtherBoot,  ///< this host's, before it was started anew
  kOtherUser,  ///< another user's
  kOtherShm,   ///< another container's, with a /dev/shm of its own
  kCopy,       ///< the manifest is a copy in a folder that the exporter does not look into
};
Reach reach_of(const Manifest& manifest);

/// Throws IoError unless this process can map what the exporter has published: the same host, boot, /dev/shm,
/// user and folder. Names the one that differs, and what to do.
void require_reachable(const Manifest& manifest);

}  // namespace weightcast
