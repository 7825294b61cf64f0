#include "storage/rank_file.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>

#include "core/error.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace fs = std::filesystem;

std::string rank_file_name(std::string_view stem, const RankFile& file) {
  return fmt::format("{}{}{}", stem, file.rank, file_extension(file.format));
}

std::optional<RankFile> parse_rank_file(std::string_view stem, std::string_view name) {
  if (!name.starts_with(stem)) return std::nullopt;
  RankFile file{
      -1, name.ends_with(file_extension(FileFormat::kHdf5)) ? FileFormat::kHdf5 : FileFormat::kSafetensors};
  std::from_chars(name.data() + stem.size(), name.data() + name.size(), file.rank);
  // Written in another way, such as with zeros in front, it is nobody's.
  return file.rank >= 0 && name == rank_file_name(stem, file) ? std::optional(file) : std::nullopt;
}

std::string existing_rank_file(const std::string& directory, std::string_view stem, std::int64_t rank) {
  const auto path_in = [&](FileFormat format) {
    return (fs::path(directory) / rank_file_name(stem, {rank, format})).string();
  };
  const std::string safetensors = path_in(FileFormat::kSafetensors);
  const std::string hdf5 = path_in(FileFormat::kHdf5);
  const bool has_safetensors = is_named(safetensors);
  const bool has_hdf5 = is_named(hdf5);
  if (has_safetensors && has_hdf5) {
    throw InputError(fmt::format("{}: {} is beside it; remove the one that is not meant", safetensors,
                                 fs::path(hdf5).filename().string()));
  }
  if (!has_safetensors && !has_hdf5) {
    throw IoError(fmt::format("{} is not there, nor with .h5; every rank needs its own file", safetensors));
  }
  return has_hdf5 ? hdf5 : safetensors;
}

}  // namespace weightcast
