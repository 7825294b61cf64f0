#pragma once

#include <stdlib.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "client/control_block.h"
#include "client/entry_rules.h"
#include "client/expert_table.h"
#include "client/gpu_memory.hpp"
#include "client/weightcast/client.h"
#include "client/window_list.h"

namespace weightcast::client {

/// A growing list. Nothing here may use the C++ library: the client is loaded into other people's images.
template <typename Item>
struct List {
  Item* items = nullptr;
  int size = 0;
};

/// One more item at the end; null when there is no memory.
template <typename Item>
Item* append(List<Item>& list) {
  auto* items =
      static_cast<Item*>(::realloc(list.items, sizeof(Item) * static_cast<std::size_t>(list.size + 1)));
  if (items == nullptr) return nullptr;
  list.items = items;
  items[list.size] = Item();
  return &items[list.size++];
}

/// A piece of physical memory on a GPU.
struct Piece {
  std::uint64_t address = 0;
  std::int64_t bytes = 0;
  int file = -1;  ///< stands for it; several segments may have the same
};

/// Shared memory that the client has made, or memory on a GPU that its owner has.
struct Segment {
  char name[64] = "";  ///< of shared memory; empty on a GPU
  void* memory = nullptr;
  std::int64_t bytes = 0;
  std::int64_t limit = 0;  ///< of a window: bytes that may be in it at once; 0: it is none
  bool kept = false;       ///< stays mapped when the export is closed
  GpuAllocation gpu;       ///< that of the first byte
  List<Piece> pieces;      ///< on a GPU, where there is no handle: one behind the other
};

/// The calls that wait.
enum class Call { kNone, kPause, kLanded, kOffer, kSettle, kClose };

/// A wait that is under way, also while its call has come back to be made again.
struct Wait {
  Call call = Call::kNone;
  double until = 0;      ///< when its time is over
  double slice_end = 0;  ///< when its call comes back
  bool begun = false;    ///< an engine has paused in it, or a trainer offered
};

struct Alias {
  char* name = nullptr;
};

struct Entry {
  char* name = nullptr;
  char dtype[16] = "";
  int dims = 0;
  std::int64_t shape[WEIGHTCAST_MOST_DIMS] = {};
  std::int64_t strides[WEIGHTCAST_MOST_DIMS] = {};
  int segment = 0;
  std::int64_t offset = 0;
  bool landed = false;  ///< in a window: given to the caller in this update
  bool is_box = false;  ///< of a tensor of shape `whole`, from element `start` on
  std::int64_t whole[WEIGHTCAST_MOST_DIMS] = {};
  std::int64_t start[WEIGHTCAST_MOST_DIMS] = {};
  List<Alias> aliases;
};

}  // namespace weightcast::client

struct weightcast_export {
  char folder[4096] = "";
  bool engine = false;
  int rank = 0;
  int ranks = 0;
  char layout[512] = "";
  pid_t process = 0;  ///< that may use it
  std::uint64_t generation = 0;
  bool published = false;
  dev_t manifest_device = 0;  ///< of the file that is the manifest
  ino_t manifest_inode = 0;

  double slice = 0;  ///< seconds after which a call that waits comes back; 0: not before its wait ends
  weightcast::client::Wait wait;
  bool left_while_written = false;  ///< an engine, whose job step may not have ended since

  int block_file = -1;
  char block_name[64] = "";
  weightcast_block* block = nullptr;
  weightcast::client::List<weightcast::client::Segment> segments;
  int shared_segments = 0;  ///< made by the client, named by their numbers among themselves
  int window = -1;          ///< the segment that is one
  char list_name[64] = "";
  weightcast_window_list* list = nullptr;  ///< the window's, once it is published
  std::uint32_t handed = 0;                ///< numbers of the list that the caller has been given
  char experts_name[64] = "";
  weightcast_expert_table* experts = nullptr;  ///< an engine's that has said where its experts sit
  /// Another number whenever weights have got another form or place: what references are compared with.
  std::uint64_t form = 0;
  weightcast::client::List<weightcast::client::Entry> entries;
  void* names = nullptr;  ///< of the entries, aliases too: a tree of tsearch()
};

namespace weightcast::client {

/// Seconds after which a wait looks whether the job step is still there.
constexpr double kLook = 0.05;

/// Fails unless the export may be used here: it is there, published where `published`, and of that role.
int require_usable(const weightcast_export* e, bool published);
int require_engine(const weightcast_export* e);
int require_trainer(const weightcast_export* e);

/// Begins a wait of `seconds`, or a time slice more of the one that is under way. True where it is a new one.
bool begin_wait(weightcast_export& e, Call call, double seconds);

/// Sleeps until the word is not `word` any more, but no longer than until it is time to look whether the job
/// step is still there, and to the end of the slice.
void await_in_piece(const weightcast_export& e, std::uint64_t word, double seconds = kLook);

/// What the call returns, `code`; unless it comes back to be made again, the wait is over.
int end_wait(weightcast_export& e, int code);

/// Settles what a job step that is gone has left, of an engine whose word was `word`. A folder that does not
/// say whether the version was committed is looked at again until the time `until`.
void settle_if_dead(weightcast_export& e, std::uint64_t word, double until);

/// Fails for an engine that has not been given a version: why, by its state.
int not_paused(const weightcast_export& e, weightcast_state state);

/// Makes the list of the window's tensors, where there is a window; fails when the system refuses.
int make_window_list(weightcast_export& e);

/// Unmaps and removes it, where there is one.
void drop_window_list(weightcast_export& e);

/// Ends the engine's part in an update, wherever that is, for that reason.
void leave_update(weightcast_export& e, const char* reason);

/// Gives all memory of the window back, and empties its list. Only while no job step writes. False, with
/// errno, when the system does not take it back.
bool clear_window(weightcast_export& e);

/// Takes back what a trainer offers; fails while it is being read.
int abandon_offer(weightcast_export& e);

/// Fails for entries that lie in one another's memory.
int require_apart(const weightcast_export& e);

/// The number of the entry that has that name; -1, having called fail(), where none has.
int number_of_entry(const weightcast_export& e, const char* name);

/// Unmaps and removes the table of experts, where there is one.
void drop_experts(weightcast_export& e);

/// Of its elements.
std::int64_t bytes_of_entry(const Entry& entry);

/// Frees what an export knows of its entries.
void free_entries(weightcast_export& e);

/// Closes the descriptors of pieces, each once though several segments may have it.
void close_pieces(weightcast_export& e);

/// Waits until the GPUs have done all that was asked of them in the contexts that hold published memory.
int synchronize_gpus(const weightcast_export& e);

/// `FOLDER/engine-3.json`
void manifest_path(const weightcast_export& e, char* path, std::uint64_t size);

/// Which publication a manifest is of, and where its exporter sees shared memory.
struct Publication {
  std::uint64_t generation = 0;
  char host[256] = "";
  char boot_id[64] = "";
  unsigned long long shm = 0;  ///< the device of /dev/shm
};

/// Of the manifest at `path`; fails when it cannot be read or is none.
int read_publication(const char* path, Publication* publication);

/// What a manifest says that this process writes, less the generation.
Publication publication_from_here();

/// Fails when the rank has been published by somebody who lives, or of whom nobody here can see whether he
/// does; otherwise what a dead one has left goes.
int clear_place(const weightcast_export& e);

/// Writes the manifest beside its name, which it gets whole; fails when there is one by now.
int write_manifest(weightcast_export& e);

/// Takes the manifest away, and not one that a successor has put in its place. Fails when it stays.
int remove_manifest(const weightcast_export& e);

/// Removes manifests of that rank that dead exporters of this user have begun, and that never got their name.
void remove_unfinished(const weightcast_export& e);

}  // namespace weightcast::client
