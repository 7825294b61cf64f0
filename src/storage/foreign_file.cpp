#include "storage/foreign_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

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

constexpr const char* kAnnex = "it is a pointer of git-annex, not the file itself; run git annex get";
constexpr const char* kLink =
    "it is the text of a link, not the file; copy it again with links followed (cp -L)";

constexpr std::array<Beginning, 37> kBeginnings{{
    {"version https://git-lfs"sv, "it is a Git LFS pointer, not the file itself; run git lfs pull"},
    {"# xet version"sv, "it is a pointer, not the file itself; download it again"},
    {"<!doctype"sv, kPage},
    {"<html"sv, kPage},
    {"<?xml"sv, kMessage},
    {"<error"sv, kMessage},
    {"entry not found"sv, kMessage},
    {"repository not found"sv, kMessage},
    {"invalid username or password"sv, kMessage},
    {"invalid credentials"sv, kMessage},
    {"access to model"sv, kMessage},
    {"unauthorized"sv, kMessage},
    {"forbidden"sv, kMessage},
    {"not found"sv, kMessage},
    {"internal server error"sv, kMessage},
    {"/annex/objects/"sv, kAnnex},
    {".git/annex/objects/"sv, kAnnex},
    {"../.git/annex/objects/"sv, kAnnex},
    {"../../.git/annex/objects/"sv, kAnnex},
    {"../../blobs/"sv, kLink},
    {"../blobs/"sv, kLink},
    {"!<symlink>"sv, kLink},
    {"XSym\n"sv, kLink},
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

/// `{ "error": …`, however it is laid out: what a server answers in place of a file.
bool is_message(std::string_view text) {
  if (!text.starts_with('{')) return false;
  text.remove_prefix(1);
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  return std::ranges::any_of(std::array<std::string_view, 5>{"error", "errors", "message", "detail", "code"},
                             [&](std::string_view key) {
                               return begins(text, "\"") && begins(text.substr(1), key) &&
                                      text.substr(1 + key.size()).starts_with('"');
                             });
}

bool is_text(std::string_view bytes) {
  return std::ranges::all_of(
      bytes, [](char c) { return (c >= ' ' && c <= '~') || c == '\t' || c == '\r' || c == '\n'; });
}

/// Text of two bytes a character, with or without a mark.
bool is_wide_text(std::string_view bytes) {
  constexpr std::size_t kEnough = 8;
  if (bytes.size() < kEnough) return false;
  if (bytes.starts_with("\xff\xfe") || bytes.starts_with("\xfe\xff")) bytes.remove_prefix(2);
  std::array<std::string, 2> halves;
  for (std::size_t i = 0; i < std::min(bytes.size(), 4 * kEnough); ++i) halves.at(i % 2) += bytes[i];
  const auto zeros = [](const std::string& half) {
    return half.find_first_not_of('\0') == std::string::npos;
  };
  return (is_text(halves[0]) && zeros(halves[1])) || (zeros(halves[0]) && is_text(halves[1]));
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
  if (is_message(text)) return kMessage;
  constexpr std::size_t kTarMark = 257;
  if (first_bytes.size() > kTarMark && first_bytes.substr(kTarMark).starts_with("ustar")) {
    return "it is a tar archive; unpack it";
  }
  return "";
}

std::string describe_no_weights(std::string_view first_bytes) {
  if (std::string what = describe_foreign(first_bytes); !what.empty()) return what;
  const std::size_t end = first_bytes.find_first_of("\r\n");
  if (is_text(first_bytes))
    return fmt::format("it is a text that begins '{}'; copy or download it again",
                       excerpt(first_bytes.substr(0, end)));
  if (is_wide_text(first_bytes)) return "it is a text in UTF-16; copy or download it again";
  return "";
}

std::string read_json_file(const std::string& path, std::size_t most_bytes) {
  const std::string beginning = first_bytes(InputFile(path), kForeignBytes);
  std::string what = describe_foreign(beginning);
  // A length of eight bytes and a header; or HDF5.
  if ((beginning.size() > 8 && beginning[7] == '\0' && beginning[8] == '{') ||
      beginning.starts_with("\x89HDF"))
    what = "it is a file of weights; name the config.json that belongs to it";
  if (!what.empty()) throw InputError(fmt::format("{} holds no JSON: {}", path, what));
  return read_text_file(path, static_cast<std::int64_t>(most_bytes));
}

}  // namespace weightcast
