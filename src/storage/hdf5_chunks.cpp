#include "storage/hdf5_chunks.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <utility>

#include "core/error.hpp"
#include "storage/hdf5_length_filter.hpp"

namespace weightcast {

namespace {

constexpr const char* kRemedy = "the file is damaged, copy it again";

/// A selection of a rectangle in a space of those extents.
Hdf5Space rectangle(std::size_t dims, const Hdf5Extents& extents, const Hdf5Extents& start,
                    const Hdf5Extents& count, const std::string& subject) {
  Hdf5Space space(
      WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(dims), extents.data(), nullptr), subject));
  WEIGHTCAST_HDF5(
      H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
      subject);
  return space;
}

}  // namespace

bool has_filters(hid_t dataset, const std::string& subject) {
  const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Dget_create_plist(dataset), subject));
  return H5Pget_layout(creation.get()) == H5D_CHUNKED && H5Pget_nfilters(creation.get()) > 0;
}

Hdf5Chunks::Hdf5Chunks(hid_t dataset, std::string subject, std::int64_t file_bytes)
    : dataset_(dataset), subject_(std::move(subject)), file_bytes_(static_cast<hsize_t>(file_bytes)) {
  creation_ = Hdf5Properties(WEIGHTCAST_HDF5(H5Dget_create_plist(dataset), subject_));
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(dataset), subject_));
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset), subject_));
  const int dims = WEIGHTCAST_HDF5(H5Sget_simple_extent_ndims(space.get()), subject_);
  if (dims > static_cast<int>(Shape::kMaxDims))
    throw InternalError(fmt::format("{}: {} dimensions", subject_, dims));
  dims_ = static_cast<std::size_t>(dims);
  WEIGHTCAST_HDF5(H5Sget_simple_extent_dims(space.get(), extents_.data(), nullptr), subject_);
  WEIGHTCAST_HDF5(H5Pget_chunk(creation_.get(), dims, chunk_.data()), subject_);
  chunk_bytes_ = element_bytes_ = H5Tget_size(type.get());
  for (std::size_t dim = 0; dim < dims_; ++dim) chunk_bytes_ *= chunk_.at(dim);
  unsigned options = 0;
  WEIGHTCAST_HDF5(H5Pget_chunk_opts(creation_.get(), &options), subject_);
  edges_unfiltered_ = (options & H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) != 0;
  filters_ = static_cast<unsigned>(WEIGHTCAST_HDF5(H5Pget_nfilters(creation_.get()), subject_));
}

Hdf5Properties Hdf5Chunks::properties_of_copy(std::uint32_t mask) const {
  Hdf5Properties copy(WEIGHTCAST_HDF5(H5Pcopy(creation_.get()), subject_));
  WEIGHTCAST_HDF5(H5Pset_chunk_opts(copy.get(), 0), subject_);
  // Nothing is written but what is put into it.
  WEIGHTCAST_HDF5(H5Pset_alloc_time(copy.get(), H5D_ALLOC_TIME_INCR), subject_);
  WEIGHTCAST_HDF5(H5Pset_fill_time(copy.get(), H5D_FILL_TIME_NEVER), subject_);
  WEIGHTCAST_HDF5(H5Premove_filter(copy.get(), H5Z_FILTER_ALL), subject_);
  add_length_filter(copy.get(), chunk_bytes_);
  for (unsigned i = 0; i < filters_; ++i) {
    if ((mask >> i & 1U) != 0) continue;
    unsigned flags = 0;
    std::size_t given = 0;
    WEIGHTCAST_HDF5(H5Pget_filter2(creation_.get(), i, &flags, &given, nullptr, 0, nullptr, nullptr),
                    subject_);
    std::vector<unsigned> values(given);
    const H5Z_filter_t filter = WEIGHTCAST_HDF5(
        H5Pget_filter2(creation_.get(), i, &flags, &given, values.data(), 0, nullptr, nullptr), subject_);
    // One that can only decode will do. There is no other flag, whatever the file says.
    WEIGHTCAST_HDF5(H5Pset_filter(copy.get(), filter, H5Z_FLAG_OPTIONAL, given, values.data()), subject_);
    if (filter == H5Z_FILTER_SCALEOFFSET)
      add_scale_offset_guard(copy.get(), chunk_bytes_ / element_bytes_, element_bytes_);
  }
  return copy;
}

hid_t Hdf5Chunks::copy_for(std::uint32_t mask) {
  Hdf5Dataset& copy = copies_[mask];
  if (copy) return copy.get();
  if (!file_) {
    constexpr std::size_t kGrowth = std::size_t{1} << 20;
    static unsigned made = 0;  // the library takes files of one name for one; guarded by the Hdf5Lock
    const Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), subject_));
    WEIGHTCAST_HDF5(H5Pset_fapl_core(access.get(), kGrowth, false), subject_);
    const std::string name = fmt::format("weightcast chunk {}", made++);
    file_ = Hdf5File(
        WEIGHTCAST_HDF5(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), subject_));
  }
  const Hdf5Properties properties = properties_of_copy(mask);
  const Hdf5Space space(
      WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(dims_), chunk_.data(), nullptr), subject_));
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset_), subject_));
  const Hdf5Properties cache(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_ACCESS), subject_));
  WEIGHTCAST_HDF5(H5Pset_chunk_cache(cache.get(), 1, chunk_bytes_, 1), subject_);
  copy = Hdf5Dataset(H5Dcreate2(file_.get(), fmt::format("{}", mask).c_str(), type.get(), space.get(),
                                H5P_DEFAULT, properties.get(), cache.get()));
  if (copy) return copy.get();
  // It is in memory: nothing but what the file says of its filters stands in the way.
  require_hdf5_memory();
  throw InputError(
      fmt::format("{}: its chunks cannot be unpacked ({}); {}", subject_, hdf5_error_text(), kRemedy));
}

template <typename Visit>
void Hdf5Chunks::visit_chunks(const Hdf5Extents& start, const Hdf5Extents& count, Visit visit) const {
  Hdf5Extents first{};
  for (std::size_t dim = 0; dim < dims_; ++dim) {
    if (count.at(dim) == 0) return;
    first.at(dim) = start.at(dim) / chunk_.at(dim) * chunk_.at(dim);
  }
  Hdf5Extents at = first;
  for (std::size_t dim = dims_; dim > 0;) {
    visit(at);
    // The next one, as in counting.
    for (dim = dims_; dim > 0; --dim) {
      hsize_t& place = at.at(dim - 1);
      place += chunk_.at(dim - 1);
      if (place < start.at(dim - 1) + count.at(dim - 1)) break;
      place = first.at(dim - 1);
    }
  }
}

void Hdf5Chunks::read(const Hdf5Extents& start, const Hdf5Extents& count, hid_t memory_type, std::byte* to) {
  visit_chunks(start, count, [&](const Hdf5Extents& chunk) {
    Hdf5Extents in_chunk{};
    Hdf5Extents in_box{};
    Hdf5Extents common{};
    for (std::size_t dim = 0; dim < dims_; ++dim) {
      const hsize_t begin = std::max(start.at(dim), chunk.at(dim));
      const hsize_t end = std::min(start.at(dim) + count.at(dim), chunk.at(dim) + chunk_.at(dim));
      in_chunk.at(dim) = begin - chunk.at(dim);
      in_box.at(dim) = begin - start.at(dim);
      common.at(dim) = end - begin;
    }
    load(chunk);
    read_copy(rectangle(dims_, count, in_box, common, subject_),
              rectangle(dims_, chunk_, in_chunk, common, subject_), memory_type, to, chunk);
  });
}

void Hdf5Chunks::find_all() {
  visit_chunks(Hdf5Extents{}, extents_, [&](const Hdf5Extents& chunk) {
    if (stored_bytes(chunk) > 0) return;
    throw InputError(fmt::format("{} is not there; {}", describe(chunk), kRemedy));
  });
}

void Hdf5Chunks::check_all() {
  Hdf5Extents one{};
  one.fill(1);
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset_), subject_));
  std::vector<std::byte> element(element_bytes_);
  visit_chunks(Hdf5Extents{}, extents_, [&](const Hdf5Extents& chunk) {
    load(chunk);
    read_copy(rectangle(dims_, one, Hdf5Extents{}, one, subject_),
              rectangle(dims_, chunk_, Hdf5Extents{}, one, subject_), type.get(), element.data(), chunk);
  });
}

bool Hdf5Chunks::is_filtered(const Hdf5Extents& chunk) const {
  if (!edges_unfiltered_) return true;
  for (std::size_t dim = 0; dim < dims_; ++dim) {
    if (chunk.at(dim) + chunk_.at(dim) > extents_.at(dim)) return false;
  }
  return true;
}

hsize_t Hdf5Chunks::stored_bytes(const Hdf5Extents& chunk) const {
  hsize_t bytes = 0;
  WEIGHTCAST_HDF5(H5Dget_chunk_storage_size(dataset_, chunk.data(), &bytes), subject_);
  return bytes;
}

void Hdf5Chunks::load(const Hdf5Extents& chunk) {
  if (loaded_ && loaded_chunk_ == chunk) return;
  loaded_ = false;
  const hsize_t bytes = stored_bytes(chunk);
  // What cannot be compressed grows by little, whatever the filters. More would unpack to any size.
  constexpr hsize_t kGrowth = 4096;
  if (bytes > chunk_bytes_ + chunk_bytes_ / 8 + kGrowth) {
    throw InputError(
        fmt::format("{} takes {} bytes for {}; {}", describe(chunk), bytes, chunk_bytes_, kRemedy));
  }
  if (bytes == 0 || bytes > file_bytes_) {
    throw InputError(fmt::format("{} is said to take {} bytes of a file of {}; {}", describe(chunk), bytes,
                                 file_bytes_, kRemedy));
  }
  raw_.resize(bytes);
  std::uint32_t mask = 0;
  WEIGHTCAST_HDF5(H5Dread_chunk(dataset_, H5P_DEFAULT, chunk.data(), &mask, raw_.data()), subject_);
  const auto all = static_cast<std::uint32_t>((std::uint64_t{1} << filters_) - 1);
  mask = is_filtered(chunk) ? mask & all : all;
  copy_ = copy_for(mask);
  const Hdf5Extents only{};
  WEIGHTCAST_HDF5(H5Dwrite_chunk(copy_, H5P_DEFAULT, 0, only.data(), bytes, raw_.data()), subject_);
  loaded_chunk_ = chunk;
  loaded_ = true;
}

void Hdf5Chunks::read_copy(const Hdf5Space& memory, const Hdf5Space& selected, hid_t memory_type,
                           std::byte* to, const Hdf5Extents& chunk) {
  take_refused_length();
  if (H5Dread(copy_, memory_type, memory.get(), selected.get(), H5P_DEFAULT, to) >= 0) return;
  require_hdf5_memory();
  const auto length = take_refused_length();
  if (length) {
    throw InputError(fmt::format("{} is of another length than it should: {} bytes for {}; {}",
                                 describe(chunk), *length, chunk_bytes_, kRemedy));
  }
  throw InputError(
      fmt::format("{} cannot be unpacked ({}); {}", describe(chunk), hdf5_error_text(), kRemedy));
}

std::string Hdf5Chunks::describe(const Hdf5Extents& chunk) const {
  return fmt::format("{}: its chunk at [{}]", subject_, fmt::join(std::span(chunk).first(dims_), ", "));
}

}  // namespace weightcast
