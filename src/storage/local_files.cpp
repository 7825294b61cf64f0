#include "storage/local_files.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <span>
#include <string_view>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "storage/safetensors_header.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

/// Bytes of a file that say where its tensors lie: the header of a safetensors file. Of other files the
/// beginning, which holds HDF5's superblock and mostly its root.
std::int64_t header_bytes(const InputFile& file) {
  constexpr std::int64_t kBeginning = 4096;
  if (file.size() < kSafetensorsLengthBytes) return file.size();
  std::uint64_t length = 0;
  file.read_at(0, std::as_writable_bytes(std::span(&length, 1)), "the header length");
  const std::int64_t room = file.size() - kSafetensorsLengthBytes;
  if (length > static_cast<std::uint64_t>(std::min(room, kMostSafetensorsHeader))) {
    return std::min(file.size(), kBeginning);
  }
  return kSafetensorsLengthBytes + static_cast<std::int64_t>(length);
}

std::uint64_t header_hash(const InputFile& file) {
  return hash_text(first_bytes(file, header_bytes(file)));
}

/// Many programs keep files open for writing that they have long finished. A single call that writes may take
/// seconds, and pages that a program has mapped get their file a new time within half a minute.
bool was_written_lately(const InputFile& file) {
  using namespace std::chrono;
  constexpr auto kLately = seconds(60);
  const auto changed = system_clock::time_point(
      duration_cast<system_clock::duration>(nanoseconds(file.identity_now().modified_ns)));
  return system_clock::now() - changed < kLately;
}

void require_no_writer(const InputFile& file) {
  if (!file.has_writer()) return;
  const bool lately = was_written_lately(file);
  // A download that stalls has reserved what it has yet to write, and a mapping of memory gives no new time.
  if (!lately && !file.has_holes() && file.keeps_time_of_mappings()) return;
  throw IoError(
      fmt::format("{} is being written: a process has it open for writing{}; wait until it is complete",
                  file.path(), lately ? " and has changed it within the last minute" : ""));
}

/// `what` of the file has been read.
void require_same(const FileIdentity& now, const CheckpointFile& described, std::string_view what) {
  if (now == described.identity) return;
  throw IoError(fmt::format(
      "{} changed after {} was read: it was replaced or written to; start again when nobody writes to it",
      described.path, what));
}

}  // namespace

CheckpointFile describe_text(const std::string& path) {
  return {path, InputFile(path).identity(), 0};
}

CheckpointFile describe_file(const InputFile& file) {
  require_no_writer(file);
  return {file.path(), file.identity(), header_hash(file)};
}

void require_same_file(const FileIdentity& now, const CheckpointFile& described) {
  require_same(now, described, "its header");
}

void require_still(const InputFile& file, const CheckpointFile& described) {
  require_same_file(file.identity_now(), described);
  require_no_writer(file);
}

void require_not_replaced(const CheckpointFile& described) {
  struct stat there {};
  if (::stat(described.path.c_str(), &there) != 0) return;
  require_same_file(identity_of(there), described);
}

void require_files_unchanged(const Checkpoint& checkpoint) {
  for (const CheckpointFile& file : checkpoint.files)
    require_same_file(InputFile(file.path).identity(), file);
  require_texts_unchanged(checkpoint);
}

void require_texts_unchanged(const Checkpoint& checkpoint) {
  for (const CheckpointFile& text : checkpoint.texts)
    require_same(InputFile(text.path).identity(), text, "it");
}

void adopt_local_files(Checkpoint& checkpoint) {
  if (checkpoint.host == this_host()) return;
  for (CheckpointFile& described : checkpoint.files) {
    const InputFile file(described.path);
    // One shared file system shows the same file everywhere: no need to open the others before they are read.
    if (file.identity() == described.identity) return;
    if (file.size() != described.identity.size || header_hash(file) != described.header_hash) {
      throw IoError(fmt::format(
          "{} is another file here than on {}, where its header was read; copy the same checkpoint "
          "to every node, or use a file system that all of them share",
          described.path, checkpoint.host));
    }
    described.identity = file.identity();
  }
}

}  // namespace weightcast
