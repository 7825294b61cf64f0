#include "launch/job/shard_place.hpp"

#include <fmt/format.h>

#include <string_view>

#include "core/error.hpp"
#include "core/text.hpp"
#include "launch/job/live_ends.hpp"

namespace weightcast {

namespace {

/// Throws UsageError for a folder in whose name something like `{step}` is left: all versions would take the
/// same name.
void require_known_braces(const std::string& sink, std::string_view folder) {
  for (std::size_t at = folder.find('{'); at != std::string_view::npos; at = folder.find('{', at + 1)) {
    const std::string_view braces = folder.substr(at, folder.find('}', at) - at + 1);
    if (!braces.ends_with('}') || braces == "{version}") continue;
    throw UsageError(fmt::format(
        "--sink {}: nothing takes the place of {}; write {{version}} for the weight version, or a "
        "name without braces",
        excerpt(sink), excerpt(braces)));
  }
}

}  // namespace

std::optional<ShardPlace> shard_place(const std::string& sink) {
  if (sink == "none" || live_directory(sink)) return std::nullopt;
  for (const FileFormat format : {FileFormat::kHdf5, FileFormat::kSafetensors}) {
    const std::string prefix = fmt::format("{}:", file_format_name(format));
    if (sink.starts_with(prefix) && sink.size() > prefix.size()) {
      require_known_braces(sink, std::string_view(sink).substr(prefix.size()));
      return ShardPlace{format, sink.substr(prefix.size())};
    }
  }
  throw UsageError(
      fmt::format("--sink {}: write none, hdf5:DIR, safetensors:DIR or live:DIR", excerpt(sink)));
}

}  // namespace weightcast
