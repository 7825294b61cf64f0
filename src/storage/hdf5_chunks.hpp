#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/shape.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// Extents of a dataset that is read, or a place in it.
using Hdf5Extents = std::array<hsize_t, Shape::kMaxDims>;

/// The chunks of a dataset with filters, of which each must prove that it holds as many bytes as it should.
/// The library takes what comes out of a chunk's filters for the whole chunk and goes on behind its end. So a
/// chunk is not read where it lies: it is put into a dataset of one chunk in memory, which has the same
/// filters and one more that sees the length. Use and destroy under an Hdf5Lock.
class Hdf5Chunks {
 public:
  /// `dataset` has filters and outlives this. `subject` is what to call it in messages; no chunk takes more
  /// than the `file_bytes` of its file.
  Hdf5Chunks(hid_t dataset, std::string subject, std::int64_t file_bytes);

  /// Reads the rectangle of `count` elements from `start` on, row-major without gaps, as `memory_type`.
  /// Throws InputError naming dataset and chunk when a chunk that it needs is damaged.
  void read(const Hdf5Extents& start, const Hdf5Extents& count, hid_t memory_type, std::byte* to);

  /// Looks up where every chunk is, as reading it does. Throws InputError naming dataset and chunk when one
  /// is nowhere. What the library does not survive there it should meet in a child (storage/hdf5_trial.hpp).
  void find_all();

  /// Looks at every chunk. Throws as `read` does.
  void check_all();

 private:
  /// Calls `visit` with the first element of each chunk that a rectangle touches.
  template <typename Visit>
  void visit_chunks(const Hdf5Extents& start, const Hdf5Extents& count, Visit visit) const;

  /// The dataset of one chunk in memory for chunks that went through all filters but those of a mask.
  hid_t copy_for(std::uint32_t mask);
  Hdf5Properties properties_of_copy(std::uint32_t mask) const;
  /// Whether it went through filters.
  bool is_filtered(const Hdf5Extents& chunk) const;
  hsize_t stored_bytes(const Hdf5Extents& chunk) const;
  /// Puts a chunk into the copy, unless it is there.
  void load(const Hdf5Extents& chunk);
  void read_copy(const Hdf5Space& memory, const Hdf5Space& selected, hid_t memory_type, std::byte* to,
                 const Hdf5Extents& chunk);
  std::string describe(const Hdf5Extents& chunk) const;

  hid_t dataset_;
  std::string subject_;
  hsize_t file_bytes_;
  std::size_t dims_ = 0;
  Hdf5Extents extents_{};
  Hdf5Extents chunk_{};
  hsize_t chunk_bytes_ = 0;
  std::size_t element_bytes_ = 0;
  Hdf5Properties creation_;
  unsigned filters_ = 0;
  bool edges_unfiltered_ = false;
  Hdf5File file_;
  std::map<std::uint32_t, Hdf5Dataset> copies_;  ///< by mask
  hid_t copy_ = H5I_INVALID_HID;                 ///< that holds the chunk which was loaded last
  bool loaded_ = false;
  Hdf5Extents loaded_chunk_{};
  std::vector<std::byte> raw_;
};

/// Whether a dataset is kept in chunks that go through filters.
bool has_filters(hid_t dataset, const std::string& subject);

}  // namespace weightcast
