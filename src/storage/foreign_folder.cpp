#include "storage/foreign_folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/text.hpp"
#include "storage/safetensors_index.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// Files of other programs, by how their names end or begin.
struct Kind {
  std::string_view begins;
  std::string_view ends;
  const char* what;
};

constexpr const char* kDistributed =
    "a distributed checkpoint of PyTorch; gather it with dcp_to_torch_save and save_pretrained, or export it "
    "with the trainer's own converter";
constexpr const char* kTorch =
    "PyTorch files; load them and write them with save_pretrained(…, safe_serialization=True)";

constexpr const char* kRankShards = "shards of inference ranks; name the checkpoint that they were made from";
constexpr const char* kShards = "trainers' shards; name one, or use them with --trainer-alloc";

constexpr const char* kDeepSpeed =
    "a checkpoint of DeepSpeed; gather it with DeepSpeed's zero_to_fp32.py and --safe_serialization";

constexpr std::array<Kind, 24> kKinds{{
    {"adapter_model", "", "an adapter without its model; merge it (merge_and_unload) and save the whole"},
    {"", ".distcp", kDistributed},
    // Parts of a model, which nothing loads alone.
    {"mp_rank_", ".pt", kDeepSpeed},
    {"zero_pp_rank_", ".pt", kDeepSpeed},
    {"bf16_zero_pp_rank_", ".pt", kDeepSpeed},
    {"model_optim_rng", ".pt", "a checkpoint of Megatron; export it with the trainer's own converter"},
    {"model_world_size_", ".pt",
     "shards of verl's FSDP workers; merge them with python -m verl.model_merger"},
    {"", ".pt", kTorch},
    {"", ".pth", kTorch},
    {"", ".bin", kTorch},
    {"", ".ckpt", kTorch},
    {"", ".pkl", kTorch},
    {"", ".gguf", "GGUF files; use the Hugging Face checkpoint that they were made from"},
    {"", ".ggml", "GGML files; use the Hugging Face checkpoint that they were made from"},
    {"", ".npz", "NumPy files; write safetensors or HDF5"},
    {"", ".npy", "NumPy files; write safetensors or HDF5"},
    {"", ".msgpack", "Flax files; load them and write them with save_pretrained(…, safe_serialization=True)"},
    {"", ".onnx", "an ONNX model; use the Hugging Face checkpoint that it was made from"},
    {"rank-", ".h5", kRankShards},
    {"rank-", ".safetensors", kRankShards},
    {"trainer-", ".safetensors", kShards},
    {"trainer-", ".h5", kShards},
    {"", ".dcp", kDistributed},
    {"", ".safetensors", "safetensors files under other names than model*.safetensors; name the file itself"},
}};

/// What programs that download call a file until it is whole.
constexpr std::array<std::string_view, 6> kUnfinished{".incomplete", ".part",     ".crdownload",
                                                      ".aria2",      ".download", ".filepart"};

/// Where the client of the Hugging Face hub downloads to.
constexpr const char* kHubDownloads = ".cache/huggingface/download";

bool is_unfinished(std::string_view name) {
  return std::ranges::any_of(kUnfinished, [&](std::string_view end) { return name.ends_with(end); });
}

/// What a folder holds, as paths from there on: its files, sorted, and folders with a checkpoint.
struct Listing {
  std::vector<std::string> files;
  std::vector<std::string> deeper_files;
  std::vector<std::string> checkpoints;
};

bool holds_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / kSafetensorsSingleName, ignored) ||
         fs::exists(folder / kSafetensorsIndexName, ignored);
}

void list(const fs::path& root, const fs::path& folder, int levels, Listing& listing) {
  constexpr std::size_t kMostEntries = 10'000;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (listing.deeper_files.size() > kMostEntries) return;
    std::error_code ignored;
    std::string name = entry->path().lexically_relative(root).string();
    if (!entry->is_directory(ignored)) {
      (folder == root ? listing.files : listing.deeper_files).push_back(std::move(name));
    } else if (holds_checkpoint(entry->path())) {
      listing.checkpoints.push_back(std::move(name));
    } else if (levels > 0 && !entry->path().filename().string().starts_with('.') &&
               !entry->is_symlink(ignored)) {
      list(root, entry->path(), levels - 1, listing);
    }
  }
}

/// The number at the end of a name: 500 of `checkpoint-500`.
std::int64_t number_of(std::string_view name) {
  std::int64_t number = -1;
  const std::size_t digits = name.find_last_not_of("0123456789") + 1;  // npos + 1 is 0
  std::from_chars(name.data() + digits, name.data() + name.size(), number);
  return number;
}

std::string describe_kind(const std::vector<std::string>& files) {
  for (const Kind& kind : kKinds) {
    const auto found = std::ranges::find_if(files, [&](const std::string& path) {
      const std::string name = fs::path(path).filename().string();
      return name.starts_with(kind.begins) && name.ends_with(kind.ends);
    });
    if (found != files.end()) return fmt::format("it holds {} ({})", kind.what, excerpt(*found));
  }
  return "";
}

}  // namespace

std::string describe_folder(const std::string& directory) {
  constexpr int kLevels = 2;
  Listing listing;
  list(directory, directory, kLevels, listing);
  std::ranges::sort(listing.files);
  std::ranges::sort(listing.deeper_files);
  std::ranges::sort(listing.checkpoints, [](const std::string& a, const std::string& b) {
    return std::pair(number_of(a), std::string_view(a)) < std::pair(number_of(b), std::string_view(b));
  });
  if (const std::string name = unfinished_download(directory, ""); !name.empty())
    return fmt::format("its download is unfinished ({}); finish it", excerpt(name));
  const auto& folders = listing.checkpoints;
  if (std::string what = describe_kind(listing.files); !what.empty()) {
    if (!folders.empty())
      what += fmt::format("; or name its folder {}, which holds one", excerpt(folders.back()));
    return what;
  }
  if (!folders.empty() && folders.back().starts_with("snapshots/")) {
    return fmt::format("it is a cache of the Hugging Face hub; name its folder {}", excerpt(folders.back()));
  }
  if (folders.size() == 1) return fmt::format("its folder {} holds one; name that", excerpt(folders.back()));
  if (!folders.empty()) {
    return fmt::format("{} of its folders hold one, {} as the last; name the one that is meant",
                       folders.size(), excerpt(folders.back()));
  }
  return describe_kind(listing.deeper_files);
}

std::string unfinished_download(const std::string& directory, const std::string& name) {
  for (const fs::path& folder : {fs::path(directory), fs::path(directory) / kHubDownloads}) {
    std::error_code error;
    fs::directory_iterator entry(folder, error);
    for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
      const std::string found = entry->path().filename().string();
      if (found.starts_with(name) && is_unfinished(found))
        return entry->path().lexically_relative(directory).string();
    }
  }
  return "";
}

}  // namespace weightcast
