#include "storage/foreign_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/input_file.hpp"
#include "storage/safetensors_header.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

/// How a kind of file begins.
struct Beginning {
  std::string_view bytes;
  const char* what;
};

constexpr const char* kPage =
    "it is a web page, not the file; download it again, and log in first if that is needed";
constexpr const char* kPickle =
    "it is a file of torch.save; load it and write it with save_pretrained(…, safe_serialization=True)";
constexpr const char* kMessage = "it is a server's message, not the file; download it again";

constexpr std::array<Beginning, 21> kBeginnings{{
    {"version https://git-lfs"sv, "it is a Git LFS pointer, not the file itself; run git lfs pull"},
    {"# xet version"sv, "it is a pointer, not the file itself; download it again"},
    {"<!doctype"sv, kPage},
    {"<html"sv, kPage},
    {"<?xml"sv, kMessage},
    {"{\"error\":"sv, kMessage},
    {"{\"message\":"sv, kMessage},
    {"PK\x03\x04"sv, kPickle},
    {"\x80\x02"sv, kPickle},
    {"\x80\x03"sv, kPickle},
    {"\x80\x04"sv, kPickle},
    {"\x80\x05"sv, kPickle},
    {"GGUF"sv, "it is a GGUF file; use the Hugging Face checkpoint that it was made from"},
    {"ggml"sv, "it is a GGML file; use the Hugging Face checkpoint that it was made from"},
    {"\x93NUMPY"sv, "it is a NumPy array, not a checkpoint; write safetensors or HDF5"},
    {"\x89HDF\r\n\x1a\n"sv, "it is an HDF5 file; name it .h5"},
    {"\x1f\x8b"sv, "it is compressed with gzip; unpack it"},
    {"\x28\xb5\x2f\xfd"sv, "it is compressed with zstd; unpack it"},
    {"BZh"sv, "it is compressed with bzip2; unpack it"},
    {"\xfd"
     "7zXZ"sv,
     "it is compressed with xz; unpack it"},
    {"7z\xbc\xaf"sv, "it is a 7z archive; unpack it"},
}};

bool begins(std::string_view text, std::string_view with) {
  return text.size() >= with.size() && std::equal(with.begin(), with.end(), text.begin(), [](char a, char b) {
           const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
           return lower(a) == lower(b);
         });
}

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

constexpr std::array<Kind, 15> kKinds{{
    {"adapter_model", "", "an adapter without its model; merge it (merge_and_unload) and save the whole"},
    {"", ".distcp", kDistributed},
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
    {"rank-", ".h5", "shards of inference ranks; name the checkpoint that they were made from"},
    {"", ".safetensors", "safetensors files under other names than model*.safetensors; name the file itself"},
}};

/// The files of a folder, sorted, and the folders in it that hold a checkpoint.
struct Listing {
  std::vector<std::string> files;
  std::vector<std::string> checkpoints;
};

bool holds_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / "model.safetensors", ignored) ||
         fs::exists(folder / kSafetensorsIndexName, ignored);
}

Listing list(const std::string& directory) {
  Listing listing;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    std::string name = entry->path().filename().string();
    const bool folder = entry->is_directory(ignored);
    if (!folder)
      listing.files.push_back(std::move(name));
    else if (holds_checkpoint(entry->path()))
      listing.checkpoints.push_back(std::move(name));
  }
  std::ranges::sort(listing.files);
  std::ranges::sort(listing.checkpoints);
  return listing;
}

}  // namespace

std::string describe_foreign(std::string_view first_bytes) {
  if (first_bytes.empty()) return "it is empty; copy it again";
  if (first_bytes.size() >= 8 && first_bytes.find_first_not_of('\0') == std::string_view::npos) {
    return "it begins with zeros; it was never written or only reserved, copy it again";
  }
  const std::size_t start = first_bytes.find_first_not_of(" \t\r\n\xef\xbb\xbf");
  const std::string_view text = first_bytes.substr(start == std::string_view::npos ? 0 : start);
  for (const Beginning& beginning : kBeginnings) {
    if (begins(text, beginning.bytes)) return beginning.what;
  }
  constexpr std::size_t kTarMark = 257;
  if (first_bytes.size() > kTarMark && first_bytes.substr(kTarMark).starts_with("ustar")) {
    return "it is a tar archive; unpack it";
  }
  return "";
}

std::string read_json_file(const std::string& path, std::size_t most_bytes) {
  std::string text = read_text_file(path, static_cast<std::int64_t>(most_bytes));
  const std::string what = describe_foreign(std::string_view(text).substr(0, kForeignBytes));
  if (!what.empty()) throw InputError(fmt::format("{} holds no JSON: {}", path, what));
  return text;
}

std::string describe_folder(const std::string& directory) {
  const Listing listing = list(directory);
  for (const Kind& kind : kKinds) {
    const auto found = std::ranges::find_if(listing.files, [&](const std::string& name) {
      return name.starts_with(kind.begins) && name.ends_with(kind.ends);
    });
    if (found == listing.files.end()) continue;
    return fmt::format("it holds {} ({})", kind.what, printable(*found));
  }
  if (!listing.checkpoints.empty()) {
    return fmt::format("its folder {} holds one; name that", printable(listing.checkpoints.back()));
  }
  return "";
}

}  // namespace weightcast
