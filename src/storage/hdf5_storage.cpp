#include "storage/hdf5_storage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <system_error>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/hdf5_chunks.hpp"
#include "storage/hidden_names.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

/// Finds the place of one dataset. What stands in the way ends the search.
class DatasetBytes {
 public:
  DatasetBytes(const FoundDataset& found, Checkpoint& checkpoint, OtherFiles other_files, DatasetForm& form)
      : found_(found),
        checkpoint_(checkpoint),
        other_files_(other_files),
        form_(form),
        tensor_(form.tensor),
        creation_(WEIGHTCAST_HDF5(H5Dget_create_plist(found.dataset), found.subject)) {}

  /// Why there is none, or nothing.
  std::optional<std::string> find() {
    tensor_.file = found_.number;
    if (tensor_.bytes() == 0) return std::nullopt;
    tensor_.offset = StoredTensor::kThroughLibrary;
    switch (H5Pget_layout(creation_.get())) {
      case H5D_CONTIGUOUS:
        return WEIGHTCAST_HDF5(H5Pget_external_count(creation_.get()), subject()) > 0 ? external()
                                                                                      : contiguous();
      case H5D_CHUNKED:
        return chunked();
      case H5D_COMPACT:
        require_storage();
        return std::nullopt;  // in the header itself
      case H5D_VIRTUAL:
        return virtual_sources();
      default:
        return "is stored in a way that is not known; write the file again";
    }
  }

 private:
  const std::string& subject() const { return found_.subject; }
  const std::string& path() const { return found_.file.input.path(); }

  void require_storage() const {
    const hsize_t stored = H5Dget_storage_size(found_.dataset);
    if (stored >= static_cast<hsize_t>(tensor_.bytes())) return;
    throw InputError(fmt::format("{} has {} bytes in place of {}; the file is damaged, copy it again",
                                 subject(), stored, tensor_.bytes()));
  }

  using ChunkShape = std::array<hsize_t, H5S_MAX_RANK>;

  /// The number of the chunk that begins at that element; nothing where none begins.
  std::optional<hsize_t> chunk_number(const ChunkShape& at, const ChunkShape& chunk) const {
    hsize_t number = 0;
    for (std::size_t i = 0; i < tensor_.shape.dims(); ++i) {
      const auto extent = static_cast<hsize_t>(tensor_.shape[i]);
      if (at.at(i) >= extent || at.at(i) % chunk.at(i) != 0) return std::nullopt;
      number = number * (extent / chunk.at(i) + (extent % chunk.at(i) != 0 ? 1 : 0)) + at.at(i) / chunk.at(i);
    }
    return number;
  }

  /// Of chunks without filters the library reads as many bytes as they should have, whatever they say, and
  /// zeros where none is.
  void require_whole_chunks(hsize_t chunks, hsize_t chunk_bytes, const ChunkShape& chunk) const {
    // To find one by its number the library counts through all before it.
    constexpr hsize_t kMostOneByOne = 2000;
    bool whole = H5Dget_storage_size(found_.dataset) == chunks * chunk_bytes;
    std::unordered_set<hsize_t> there;
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(found_.dataset), subject()));
    for (hsize_t i = 0; i < chunks && chunks <= kMostOneByOne; ++i) {
      ChunkShape at{};
      unsigned mask = 0;
      haddr_t address = 0;
      hsize_t bytes = 0;
      WEIGHTCAST_HDF5(H5Dget_chunk_info(found_.dataset, space.get(), i, at.data(), &mask, &address, &bytes),
                      subject());
      const std::optional<hsize_t> number = chunk_number(at, chunk);
      whole = whole && bytes == chunk_bytes && number && there.insert(*number).second;
    }
    if (whole) return;
    throw InputError(fmt::format(
        "{}: not all of its {} chunks have {} bytes and a place of their own; the file is damaged, copy it "
        "again",
        subject(), chunks, chunk_bytes));
  }

  std::optional<std::string> contiguous() {
    // The offset does not tell whether there are bytes: that of a dataset without space may be "undefined"
    // plus the size of the user's block.
    H5D_space_status_t status = H5D_SPACE_STATUS_ERROR;
    WEIGHTCAST_HDF5(H5Dget_space_status(found_.dataset, &status), subject());
    const haddr_t offset = H5Dget_offset(found_.dataset);
    if (status != H5D_SPACE_STATUS_ALLOCATED || offset == HADDR_UNDEF)
      return "was created and never written; write it, or remove it";
    require_storage();
    const std::int64_t file_bytes = found_.file.input.size();
    if (offset > static_cast<haddr_t>(file_bytes) ||
        tensor_.bytes() > file_bytes - static_cast<std::int64_t>(offset)) {
      throw InputError(
          fmt::format("{}: {} bytes from byte {} reach past the file's {} bytes; the file is truncated or "
                      "damaged, copy it again",
                      subject(), tensor_.bytes(), offset, file_bytes));
    }
    if (form_.little_endian) tensor_.offset = static_cast<std::int64_t>(offset);
    return std::nullopt;
  }

  std::optional<std::string> chunked() {
    for (unsigned i = 0; i < static_cast<unsigned>(std::max(0, H5Pget_nfilters(creation_.get()))); ++i) {
      std::array<char, 64> name{};
      std::size_t parameters = 0;
      const H5Z_filter_t filter =
          WEIGHTCAST_HDF5(H5Pget_filter2(creation_.get(), i, nullptr, &parameters, nullptr, name.size() - 1,
                                         name.data(), nullptr),
                          subject());
      unsigned can = 0;
      const bool there = H5Zfilter_avail(filter) > 0 && H5Zget_filter_info(filter, &can) >= 0 &&
                         (can & H5Z_FILTER_CONFIG_DECODE_ENABLED) != 0;
      if (there) continue;
      return fmt::format(
          "is packed by the filter {} (number {} of HDF5), which is not installed; install its plugin and "
          "set "
          "HDF5_PLUGIN_PATH, or write the file again without it, for example with h5repack",
          name[0] == '\0' ? "without a name" : name.data(), filter);
    }
    // The library holds a whole chunk in memory, however little of it the dataset has.
    constexpr std::int64_t kMostChunkBytes = std::int64_t{16} << 20;
    ChunkShape chunk{};
    const int dims = WEIGHTCAST_HDF5(H5Pget_chunk(creation_.get(), H5S_MAX_RANK, chunk.data()), subject());
    hsize_t expected = 1;
    auto chunk_bytes = static_cast<double>(dtype_bytes(tensor_.dtype));
    for (std::size_t i = 0; i < static_cast<std::size_t>(dims) && i < tensor_.shape.dims(); ++i) {
      const auto extent = static_cast<hsize_t>(tensor_.shape[i]);
      chunk_bytes *= static_cast<double>(chunk.at(i));
      expected *= extent / chunk.at(i) + (extent % chunk.at(i) != 0 ? 1 : 0);
    }
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(found_.dataset), subject()));
    if (chunk_bytes > static_cast<double>(kMostChunkBytes + 4 * tensor_.bytes())) {
      return fmt::format("is kept in chunks of {:.0f} bytes, far more than it has; write the file again",
                         chunk_bytes);
    }
    hsize_t written = 0;
    WEIGHTCAST_HDF5(H5Dget_num_chunks(found_.dataset, space.get(), &written), subject());
    if (written == 0) return "was created and never written; write it, or remove it";
    if (written < expected)
      return fmt::format(
          "was written only in part: {} of {} chunks are there; write the rest, or copy the file again",
          written, expected);
    const bool filtered = has_filters(found_.dataset, subject());
    if (!filtered) require_whole_chunks(written, static_cast<hsize_t>(chunk_bytes), chunk);
    Hdf5Chunks chunks(found_.dataset, subject(), found_.file.input.size());
    chunks.find_all();
    // Of a virtual dataset the library itself reads the sources.
    if (filtered && found_.level > 0) chunks.check_all();
    return std::nullopt;
  }

  std::optional<std::string> external() {
    constexpr std::size_t kMostName = 4096;
    if (H5Pget_external_count(creation_.get()) != 1) {
      return "has its data in several external files, which are not read; write the file again in one piece";
    }
    std::string name(kMostName, '\0');
    off_t begin = 0;
    hsize_t size = 0;
    WEIGHTCAST_HDF5(H5Pget_external(creation_.get(), 0, kMostName - 1, name.data(), &begin, &size),
                    subject());
    name.resize(name.find('\0'));
    if (!form_.little_endian)
      return "has its data in an external file in big-endian order, which is not read; write it in "
             "little-endian order";
    std::string other;
    if (auto why = find_other_file(path(), name, other_files_, other)) return why;
    const InputFile file(other);
    const std::int64_t room = file.size() - begin;
    if (begin < 0 || tensor_.bytes() > room ||
        (size != H5F_UNLIMITED && static_cast<hsize_t>(tensor_.bytes()) > size)) {
      return fmt::format(
          "has its data in {}, which is too short for it ({} bytes from byte {} on of {}); copy that file "
          "again",
          other, tensor_.bytes(), static_cast<std::int64_t>(begin), file.size());
    }
    tensor_.file = number_of(checkpoint_, file);
    tensor_.offset = begin;
    return std::nullopt;
  }

  std::optional<std::string> virtual_sources() {
    constexpr int kMostLevels = 8;
    constexpr std::size_t kMostSources = 2'000;
    if (found_.level == kMostLevels)
      return "is a virtual dataset of virtual datasets without end; write it as a plain one";
    if (std::getenv("HDF5_VDS_PREFIX") != nullptr) {
      return "is a virtual dataset, whose sources HDF5_VDS_PREFIX would move; unset that variable";
    }
    std::size_t count = 0;
    WEIGHTCAST_HDF5(H5Pget_virtual_count(creation_.get(), &count), subject());
    found_.sources.count += count;
    if (count > kMostSources || found_.sources.count > kMostSources) {
      return fmt::format(
          "is a virtual dataset in a file with more than {} sources, which are not read; write it as a plain "
          "one",
          kMostSources);
    }
    tensor_.offset = StoredTensor::kVirtual;
    Hdf5Space covered;
    for (std::size_t i = 0; i < count; ++i) {
      if (auto why = virtual_source(i)) return why;
      Hdf5Space part(WEIGHTCAST_HDF5(H5Pget_virtual_vspace(creation_.get(), i), subject()));
      if (covered && H5Sget_select_type(part.get()) == H5S_SEL_HYPERSLABS &&
          H5Sget_select_type(covered.get()) == H5S_SEL_HYPERSLABS) {
        covered = Hdf5Space(
            WEIGHTCAST_HDF5(H5Scombine_select(covered.get(), H5S_SELECT_OR, part.get()), subject()));
      } else if (!covered || H5Sget_select_type(part.get()) == H5S_SEL_ALL) {
        covered = std::move(part);
      }
    }
    const std::int64_t elements = covered ? H5Sget_select_npoints(covered.get()) : 0;
    if (elements != tensor_.shape.elements()) {
      return fmt::format(
          "is a virtual dataset whose sources cover {} of its {} elements; write it as a plain one", elements,
          tensor_.shape.elements());
    }
    return std::nullopt;
  }

  using NameGetter = ssize_t (*)(hid_t, std::size_t, char*, std::size_t);
  std::string source_name(NameGetter get, std::size_t i) const {
    const auto length =
        static_cast<std::size_t>(WEIGHTCAST_HDF5(get(creation_.get(), i, nullptr, 0), subject()));
    std::string name(length + 1, '\0');
    WEIGHTCAST_HDF5(get(creation_.get(), i, name.data(), name.size()), subject());
    name.resize(length);
    return name;
  }

  std::optional<std::string> virtual_source(std::size_t i) {
    const std::string file_name = source_name(&H5Pget_virtual_filename, i);
    const std::string dataset_name = source_name(&H5Pget_virtual_dsetname, i);
    if (file_name.find('%') != std::string::npos || dataset_name.find('%') != std::string::npos) {
      return "is a virtual dataset over a pattern of names, which is not read; write it as a plain one";
    }
    if (file_name == ".") return source_in(found_.file, found_.number, dataset_name, i);
    std::string other;
    if (auto why = find_other_file(path(), file_name, other_files_, other)) return why;
    const OpenHdf5 file = open_hdf5(other);
    return source_in(file, number_of(checkpoint_, file.input), dataset_name, i);
  }

  std::optional<std::string> source_in(const OpenHdf5& file, std::uint32_t number, const std::string& name,
                                       std::size_t i) {
    const std::string what =
        fmt::format("is a virtual dataset whose source {} of {}", excerpt(name), file.input.path());
    const Hdf5Properties access = dataset_access(directory_of(file.input.path()));
    const Hdf5Dataset source(H5Dopen2(file.file.get(), name.c_str(), access.get()));
    if (!source) return what + " is not there; copy the file again";
    const std::string source_subject = fmt::format("{}: dataset '{}'", file.input.path(), excerpt(name));
    // The types of HDF5, whatever attributes say: between different ones the library converts numbers.
    const Hdf5Type source_type(WEIGHTCAST_HDF5(H5Dget_type(source.get()), source_subject));
    const Hdf5Type own_type(WEIGHTCAST_HDF5(H5Dget_type(found_.dataset), subject()));
    if (H5Tequal(source_type.get(), own_type.get()) <= 0)
      return what + " has another HDF5 type; write it as a plain one";
    DatasetForm form = describe_dataset(source.get(), source_subject);
    if (form.tensor.obstacle != nullptr) return what + " " + form.tensor.obstacle->why;
    if (!within(source, i)) return what + " has not the shape that is taken from it; write it as a plain one";
    H5O_info_t info;
    WEIGHTCAST_HDF5(H5Oget_info2(source.get(), &info, H5O_INFO_BASIC), subject());
    auto [known, fresh] = found_.sources.seen.try_emplace({file.input.path(), info.addr});
    if (fresh) {
      // Until it is known: a dataset that leads to itself.
      known->second = "is a virtual dataset of virtual datasets without end; write it as a plain one";
      place_dataset({source.get(), file, number, source_subject, found_.sources, found_.level + 1},
                    checkpoint_, other_files_, form);
      known->second =
          form.tensor.obstacle != nullptr ? form.tensor.obstacle->why
          : form.tensor.file != number
              ? "has its own data in another file, which is not read through it; write it as a plain one"
              : "";
    }
    if (!known->second.empty()) return what + " " + known->second;
    return std::nullopt;
  }

  /// Whether a source has all that its mapping takes from it.
  bool within(const Hdf5Dataset& source, std::size_t i) const {
    const Hdf5Space taken(WEIGHTCAST_HDF5(H5Pget_virtual_srcspace(creation_.get(), i), subject()));
    const Hdf5Space given(WEIGHTCAST_HDF5(H5Pget_virtual_vspace(creation_.get(), i), subject()));
    const Hdf5Space there(WEIGHTCAST_HDF5(H5Dget_space(source.get()), subject()));
    if (H5Sget_select_type(taken.get()) == H5S_SEL_ALL) {
      // The extent that the file gives for all of a source is none.
      return H5Sget_simple_extent_npoints(there.get()) == H5Sget_select_npoints(given.get());
    }
    const int dims = H5Sget_simple_extent_ndims(there.get());
    std::array<hsize_t, H5S_MAX_RANK> extents{};
    std::array<hsize_t, H5S_MAX_RANK> first{};
    std::array<hsize_t, H5S_MAX_RANK> last{};
    H5Sget_simple_extent_dims(there.get(), extents.data(), nullptr);
    // An unlimited selection has no bounds.
    if (H5Sget_select_type(taken.get()) != H5S_SEL_HYPERSLABS ||
        H5Sget_simple_extent_ndims(taken.get()) != dims ||
        H5Sget_select_npoints(taken.get()) != H5Sget_select_npoints(given.get()) ||
        H5Sget_select_bounds(taken.get(), first.data(), last.data()) < 0) {
      return false;
    }
    for (std::size_t dim = 0; dim < static_cast<std::size_t>(std::max(0, dims)); ++dim) {
      if (last.at(dim) >= extents.at(dim)) return false;
    }
    return true;
  }

  const FoundDataset& found_;
  Checkpoint& checkpoint_;
  OtherFiles other_files_;
  DatasetForm& form_;
  StoredTensor& tensor_;
  Hdf5Properties creation_;
};

}  // namespace

std::optional<std::string> find_other_file(const std::string& path, const std::string& name,
                                           OtherFiles other_files, std::string& found) {
  std::error_code ignored;
  if (!std::filesystem::exists(std::filesystem::path(directory_of(path)) / name, ignored)) {
    return fmt::format("has its data in {}, which is not there; copy it beside {}", excerpt(name), path);
  }
  if (other_files == OtherFiles::kRefused) {
    return fmt::format(
        "has its data in another file ({}), which a file from elsewhere could choose freely; add "
        "--external-data to "
        "read it, provided that it lies below the folder of {}",
        excerpt(name), path);
  }
  const auto there = path_below_folder(path, name);
  if (!there)
    return fmt::format("has its data in {}, which is no regular file below the folder of {}; copy it there",
                       excerpt(name), path);
  found = *there;
  return std::nullopt;
}

std::uint32_t number_of(Checkpoint& checkpoint, const InputFile& file) {
  const auto known = std::ranges::find(checkpoint.files, file.path(), &CheckpointFile::path);
  const auto number = static_cast<std::uint32_t>(known - checkpoint.files.begin());
  if (known == checkpoint.files.end()) checkpoint.files.push_back(describe_file(file));
  return number;
}

void place_dataset(const FoundDataset& found, Checkpoint& checkpoint, OtherFiles other_files,
                   DatasetForm& form) {
  StoredTensor& tensor = form.tensor;
  auto why = DatasetBytes(found, checkpoint, other_files, form).find();
  if (!why) return;
  tensor.obstacle = std::make_shared<const Obstacle>(Obstacle{
      fmt::format("{} {}", dtype_name(tensor.dtype), tensor.shape.to_string()), *std::move(why), true});
}

}  // namespace weightcast
