#include "storage/dataset_specs.hpp"

#include <fmt/format.h>

#include <string_view>
#include <unordered_set>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

bool add_checked(const DatasetSpec& spec, std::int64_t& total) {
  std::int64_t bytes = dtype_bytes(spec.dtype);
  for (const std::int64_t extent : spec.shape.extents()) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) return false;
  }
  return !__builtin_add_overflow(total, bytes, &total);
}

void check_name(const std::string& path, const std::string& name) {
  // HDF5 keeps names in messages of at most 64 KiB; no model comes near this.
  constexpr std::size_t kLongest = 4096;
  if (name.empty())
    throw InputError(fmt::format("{}: a dataset without a name; name the tensor in the source", path));
  if (name.size() > kLongest) {
    throw InputError(fmt::format("{}: the name of dataset '{}…' has {} bytes, more than {}; shorten it", path,
                                 printable(name.substr(0, 64)), name.size(), kLongest));
  }
  if (name.find('\0') != std::string::npos) {
    throw InputError(
        fmt::format("{}: the name of dataset '{}' contains a zero byte; rename it", path, excerpt(name)));
  }
}

}  // namespace

std::int64_t check_dataset_specs(const std::string& path, const std::vector<DatasetSpec>& datasets) {
  std::unordered_set<std::string_view> names;
  std::int64_t total = 0;
  for (const DatasetSpec& spec : datasets) {
    check_name(path, spec.name);
    if (!names.insert(spec.name).second) {
      throw InputError(fmt::format("{}: two datasets are named '{}'; rename one of them in the source", path,
                                   excerpt(spec.name)));
    }
    if (!add_checked(spec, total)) {
      throw InputError(fmt::format(
          "{}: dataset '{}': the shape {} is negative or too large; is the source's header damaged?", path,
          excerpt(spec.name), spec.shape.to_string()));
    }
  }
  return total;
}

void check_write_range(const std::string& path, const std::vector<DatasetSpec>& datasets, std::size_t index,
                       std::int64_t offset, std::size_t bytes) {
  if (index >= datasets.size()) {
    throw InternalError(fmt::format("{}: dataset {} of {} written", path, index, datasets.size()));
  }
  const std::int64_t room = datasets[index].bytes();
  if (offset < 0 || offset > room || bytes > static_cast<std::uint64_t>(room - offset)) {
    throw InternalError(fmt::format("{}: dataset '{}': {} bytes written at byte {} of {}", path,
                                    datasets[index].name, bytes, offset, room));
  }
}

}  // namespace weightcast
