#include "launch/config_text.hpp"

#include <fmt/format.h>

#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "launch/files/source_files.hpp"
#include "launch/job/live_ends.hpp"
#include "storage/foreign_file.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

ConfigText with_modelopt(ConfigText config_text, const std::filesystem::path& folder) {
  const std::string path = folder / "hf_quant_config.json";
  // A link that leads nowhere is there, too, and not to be passed over.
  if (!is_named(path)) return config_text;
  config_text.files.push_back(describe_text(path));
  config_text.modelopt_path = path;
  config_text.modelopt = read_json_file(path, JsonLimits{}.bytes);
  return config_text;
}

/// What to call a config that was found for a source: its path, or the HDF5 file that carries it.
std::string config_name(const std::string& source, const std::string& file) {
  const bool carried = std::filesystem::path(file).filename() != "config.json";
  return carried ? fmt::format("{} (its own config.json)", file == source ? source : file) : file;
}

ConfigText read_named_config(const std::string& path) {
  try {
    const CheckpointFile file = describe_text(path);
    return {path, read_json_file(path, JsonLimits{}.bytes), {file}, "", ""};
  } catch (const IoError& error) {
    throw IoError(fmt::format("--model, the model's config.json: {}", error.what()));
  }
}

}  // namespace

ConfigText read_config(const Options& options) {
  const bool needed = options.landing.empty();
  if (options.model.empty()) {
    if (!needed && (options.sources.empty() || live_directory(options.sources.front()))) return {};
    if (options.sources.empty()) throw UsageError("--source PATH or --model CONFIG_JSON is needed");
    const std::string& source = options.sources.front();
    const std::string origin = source + " (config.json)";
    const std::filesystem::path path(source);
    std::error_code ignored;
    const bool folder = std::filesystem::is_directory(path, ignored);
    ConfigText config{origin, "", {}, "", ""};
    config.text = read_files_of(source, [&] {
      return needed ? read_config_text(source, &config.files)
                    : find_config_text(source, &config.files).value_or("");
    });
    if (config.text.empty() && !needed) return {};
    if (!config.files.empty()) config.origin = config_name(source, config.files.front().path);
    return with_modelopt(std::move(config), folder ? path : path.parent_path());
  }
  std::string path = options.model;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) path += "/config.json";
  return with_modelopt(read_named_config(path), std::filesystem::path(path).parent_path());
}

std::unique_ptr<ModelConfig> make_config(const ConfigText& text, const Options& options) {
  auto config = std::make_unique<ModelConfig>(text.text, text.origin);
  if (!text.modelopt_path.empty()) config->add_modelopt(text.modelopt, text.modelopt_path);
  if (options.layers) config->set_layers(*options.layers);
  if (options.mtp == "include") config->set_drafts(Drafts::kIncluded);
  if (options.target == "draft") config->set_drafts(Drafts::kAlone);
  return config;
}

std::unique_ptr<ModelConfig> load_config(const Options& options, std::vector<CheckpointFile>* files) {
  const ConfigText text = read_config(options);
  if (files != nullptr) *files = text.files;
  return make_config(text, options);
}

void add_texts(Checkpoint& checkpoint, const std::vector<CheckpointFile>& files) {
  checkpoint.texts.insert(checkpoint.texts.end(), files.begin(), files.end());
}

}  // namespace weightcast
