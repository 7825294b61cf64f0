#include "storage/hdf5_header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_file.hpp"
#include "storage/hdf5_storage.hpp"
#include "storage/hdf5_trial.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

struct Link {
  std::string name;
  H5L_type_t type = H5L_TYPE_HARD;
};

// The bound of what a path may lead through, so that no file can make the walk endless.
constexpr std::size_t kMostLevels = 64;
constexpr std::size_t kMostObjects = 4'000'000;

constexpr std::int64_t kAnySize = std::int64_t{1} << 50;

// Called by C code, which no exception may cross. Ends the walk when there are too many.
herr_t collect_link(hid_t /*group*/, const char* name, const H5L_info_t* info, void* data) {
  auto& links = *static_cast<std::vector<Link>*>(data);
  if (links.size() > kMostObjects) return 1;
  try {
    links.push_back({name, info->type});
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return 0;
}

/// An object of a file, wherever a walk has come to.
struct Visit {
  hid_t parent = H5I_INVALID_HID;
  std::string link;  ///< its name there
  std::string path;  ///< in the file, with slashes
  std::string name;  ///< in the checkpoint, with dots
  std::size_t level = 0;
};

/// Where an object lies. Looks at all that belongs to it on the way, as programs that list a file do: what
/// they cannot list is damaged.
haddr_t address_of(hid_t object, const std::string& subject) {
  H5O_info_t info;
  WEIGHTCAST_HDF5(H5Oget_info2(object, &info, H5O_INFO_ALL), subject);
  return info.addr;
}

/// Walks through the groups of one file.
class Walk {
 public:
  Walk(OpenHdf5 file, Checkpoint& checkpoint, OtherFiles other_files)
      : file_(std::move(file)),
        checkpoint_(checkpoint),
        other_files_(other_files),
        number_(static_cast<std::uint32_t>(checkpoint.files.size())),
        access_(dataset_access(directory_of(path()))) {
    checkpoint_.files.push_back(describe_file(file_.input));
  }

  void visit_all() {
    groups_.insert(address_of(file_.file.get(), path()));
    visit_group(file_.file.get(), {});
    for (StoredTensor& tensor : checkpoint_.tensors) {
      const auto address = static_cast<haddr_t>(tensor.object);
      tensor.feeds_virtual = sources_.seen.contains({checkpoint_.files[tensor.file].path, address});
    }
  }

  std::optional<std::int64_t> version() const {
    const auto version = read_hdf5_attribute(file_.file.get(), kVersionAttribute, path());
    if (!version) return std::nullopt;
    const auto* number = std::get_if<std::int64_t>(&*version);
    if (number == nullptr || *number < 0) {
      throw InputError(fmt::format(
          "{}: attribute weightcast.weight_version is no integer of at least 0; remove or correct it",
          path()));
    }
    return *number;
  }

  void require_unchanged() const {
    require_same_file(file_.input.identity_now(), checkpoint_.files[number_]);
  }

 private:
  const std::string& path() const { return file_.input.path(); }

  void visit_group(hid_t group, const Visit& at) {
    if (at.level == kMostLevels) {
      throw InputError(
          fmt::format("{}: its groups are more than {} levels deep at {}; write the weights into fewer",
                      path(), kMostLevels, excerpt(at.path)));
    }
    std::vector<Link> links;
    hsize_t position = 0;
    WEIGHTCAST_HDF5(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, &position, collect_link, &links), path());
    objects_ += links.size();
    if (objects_ > kMostObjects)
      throw InputError(
          fmt::format("{}: more than {} objects; write the weights alone into a file of their own", path(),
                      kMostObjects));
    // A group or dataset is called by its own name, not by that of a link to it.
    std::ranges::stable_partition(links, [](const Link& link) { return link.type == H5L_TYPE_HARD; });
    for (const Link& link : links) {
      Visit next{group, link.name, at.path, at.name, at.level + 1};
      next.path += (at.path.empty() ? "" : "/") + link.name;
      next.name += (at.name.empty() ? "" : ".") + link.name;
      visit(next, link.type);
    }
  }

  void visit(const Visit& at, H5L_type_t type) {
    if (type == H5L_TYPE_EXTERNAL) return visit_other_file(at);
    const std::string subject = fmt::format("{}: dataset '{}'", path(), excerpt(at.path));
    const Hdf5Object object(H5Oopen(at.parent, at.link.c_str(), access_.get()));
    if (!object) {
      require_hdf5_memory();
      if (type != H5L_TYPE_HARD)
        return add_obstacle(
            at, "is a link to nothing that this file holds itself; write the dataset in its place");
      return add_obstacle(at, fmt::format("cannot be opened ({}): it is damaged, or of a newer HDF5 than "
                                          "{}.{}.{}; copy it again, or write it anew",
                                          hdf5_error_text(), H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE));
    }
    const H5I_type_t kind = H5Iget_type(object.get());
    if (kind == H5I_GROUP) {
      // A group that is there under two names is walked through once; so a circle ends.
      if (groups_.insert(address_of(object.get(), subject)).second) visit_group(object.get(), at);
    } else if (kind == H5I_DATASET) {
      add_dataset({object.get(), file_, number_, subject, sources_}, at.name, at.path);
    }
  }

  /// A link to an object of another file: that file is opened here, never by the library.
  void visit_other_file(const Visit& at) {
    H5L_info_t info;
    WEIGHTCAST_HDF5(H5Lget_info(at.parent, at.link.c_str(), &info, H5P_DEFAULT), path());
    std::vector<char> value(info.u.val_size);
    WEIGHTCAST_HDF5(H5Lget_val(at.parent, at.link.c_str(), value.data(), value.size(), H5P_DEFAULT), path());
    const char* file_name = nullptr;
    const char* object_path = nullptr;
    WEIGHTCAST_HDF5(H5Lunpack_elink_val(value.data(), value.size(), nullptr, &file_name, &object_path),
                    path());
    std::string other;
    if (auto why = find_other_file(path(), file_name, other_files_, other))
      return add_obstacle(at, *std::move(why));
    const OpenHdf5 file = open_hdf5(other);
    const Hdf5Properties access = dataset_access(directory_of(other));
    const Hdf5Object object(H5Oopen(file.file.get(), object_path, access.get()));
    if (!object || H5Iget_type(object.get()) != H5I_DATASET) {
      return add_obstacle(at, fmt::format("is a link to {} in {}, where no dataset is; copy that file again",
                                          excerpt(object_path), other));
    }
    add_dataset({object.get(), file, number_of(checkpoint_, file.input),
                 fmt::format("{}: dataset '{}'", other, excerpt(object_path)), sources_},
                at.name, object_path);
  }

  void add_obstacle(const Visit& at, std::string why) {
    StoredTensor tensor;
    tensor.name = at.name;
    tensor.shape = Shape{0};
    tensor.file = number_;
    tensor.obstacle = std::make_shared<const Obstacle>(Obstacle{"link", std::move(why), true});
    checkpoint_.tensors.push_back(std::move(tensor));
  }

  void add_dataset(const FoundDataset& found, const std::string& name, const std::string& object_path) {
    const haddr_t address = address_of(found.dataset, found.subject);
    DatasetForm form = describe_dataset(found.dataset, found.subject);
    StoredTensor& tensor = form.tensor;
    tensor.name = name;
    tensor.file = found.number;
    tensor.object = static_cast<std::int64_t>(address);
    if (object_path != name) tensor.path = object_path;
    if (tensor.obstacle == nullptr) place_dataset(found, checkpoint_, other_files_, form);
    checkpoint_.tensors.push_back(std::move(tensor));
  }

  OpenHdf5 file_;
  Checkpoint& checkpoint_;
  OtherFiles other_files_;
  std::uint32_t number_;
  Hdf5Properties access_;
  std::size_t objects_ = 0;
  std::set<haddr_t> groups_;
  VirtualSources sources_;
};

}  // namespace

bool has_hdf5_signature(const std::string& path) {
  constexpr std::array<unsigned char, 8> kSignature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  const InputFile file(path);
  // At the start, or after a block that belongs to the user, whose size is a power of two from 512 on.
  for (std::int64_t offset = 0; offset + 8 <= file.size(); offset = offset == 0 ? 512 : offset * 2) {
    std::array<std::byte, kSignature.size()> start{};
    file.read_at(offset, start, "its first bytes");
    if (std::memcmp(start.data(), kSignature.data(), start.size()) == 0) return true;
  }
  return false;
}

std::optional<std::int64_t> read_hdf5_header(const std::string& path, Checkpoint& checkpoint,
                                             OtherFiles other_files) {
  const auto read = [&] {
    Walk walk(open_hdf5(path), checkpoint, other_files);
    walk.visit_all();
    const auto version = walk.version();
    walk.require_unchanged();
    return version;
  };
  const Hdf5Lock lock;
  // Other files may be as large as they like.
  const std::int64_t bytes = other_files == OtherFiles::kRefused ? InputFile(path).size() : kAnySize;
  // What it adds to the checkpoint is added in the child alone.
  require_survivable(path, bytes, read);
  return read();
}

}  // namespace weightcast
