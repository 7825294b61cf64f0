#include "storage/safetensors_header.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"
#include "storage/foreign_file.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

static_assert(std::endian::native == std::endian::little,
              "files hold little-endian numbers and are read as they are");

using nlohmann::json;

constexpr std::size_t kMostName = 4096;

json parse_header(const std::string& text, const std::string& path) {
  const JsonLimits limits = safetensors_limits(kMostSafetensorsHeader);
  return parse_json(text, path + ": the safetensors header", limits);
}

// What a file is instead of a safetensors file, as the end of a sentence.
std::string instead(const InputFile& file, const std::string& otherwise) {
  const std::string what = describe_no_weights(first_bytes(file, kForeignBytes));
  return what.empty() ? otherwise : what;
}

std::string read_header_text(const InputFile& file) {
  if (file.size() < kSafetensorsLengthBytes) {
    throw InputError(fmt::format("{}: {} bytes are too few for a safetensors file; {}", file.path(),
                                 file.size(), instead(file, "it starts with 8 bytes of header length")));
  }
  std::uint64_t length = 0;
  file.read_at(0, std::as_writable_bytes(std::span(&length, 1)), "the header length");
  const std::int64_t room = file.size() - kSafetensorsLengthBytes;
  if (length > static_cast<std::uint64_t>(room)) {
    if (const std::string what = instead(file, ""); !what.empty()) {
      throw InputError(fmt::format("{} is no safetensors file: {}", file.path(), what));
    }
    throw InputError(fmt::format(
        "{}: the header is said to be {} bytes long but only {} bytes follow; the file is truncated or no "
        "safetensors file; copy it again",
        file.path(), length, room));
  }
  if (length == 0) {
    throw InputError(fmt::format("{} is no safetensors file: {}", file.path(),
                                 instead(file, "its header is empty; copy it again")));
  }
  if (length > static_cast<std::uint64_t>(kMostSafetensorsHeader)) {
    throw InputError(fmt::format("{}: a header of {} bytes; the format allows {}", file.path(), length,
                                 kMostSafetensorsHeader));
  }
  std::string text(length, '\0');
  file.read_at(kSafetensorsLengthBytes, std::as_writable_bytes(std::span(text)), "the header");
  return text;
}

// A number that fits 63 bits, or nothing.
std::optional<std::int64_t> size_of(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

std::optional<std::vector<std::int64_t>> sizes_of(const json& entry, const char* member) {
  const auto found = entry.find(member);
  if (found == entry.end() || !found->is_array()) return std::nullopt;
  std::vector<std::int64_t> sizes;
  for (const json& value : *found) {
    const auto size = size_of(value);
    if (!size) return std::nullopt;
    sizes.push_back(*size);
  }
  return sizes;
}

// The product of a shape's extents and a factor, or nothing when it does not fit 63 bits.
std::optional<std::int64_t> checked_product(const std::vector<std::int64_t>& extents, std::int64_t factor) {
  for (const std::int64_t extent : extents) {
    if (__builtin_mul_overflow(factor, extent, &factor)) return std::nullopt;
  }
  return factor;
}

// Types that the format has and this program does not read, with the bits of an element.
struct ForeignType {
  std::string_view name;
  std::int64_t bits;
};
constexpr std::array<ForeignType, 5> kForeignTypes{
    {{"C64", 64}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}}};

std::int64_t bits_of_foreign(std::string_view name) {
  const auto* const found = std::ranges::find(kForeignTypes, name, &ForeignType::name);
  return found == kForeignTypes.end() ? 0 : found->bits;
}

// One entry of a header, as far as it is well formed.
struct Entry {
  std::string type;
  std::vector<std::int64_t> extents;  // as the header counts them
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

Entry parse_entry(const json& entry, std::int64_t data_bytes,
                  const std::function<void(const std::string&)>& refuse) {
  if (!entry.is_object()) refuse("its entry is no JSON object; the file is damaged, copy it again");
  Entry result;
  const auto type = entry.find("dtype");
  if (type == entry.end() || !type->is_string())
    refuse("its entry has no dtype; the file is damaged, copy it again");
  result.type = type->get<std::string>();
  auto extents = sizes_of(entry, "shape");
  if (!extents) refuse("its shape is no list of sizes; the file is damaged, copy it again");
  result.extents = std::move(*extents);
  const auto offsets = sizes_of(entry, "data_offsets");
  if (!offsets || offsets->size() != 2)
    refuse("its data_offsets are no pair of sizes; the file is damaged, copy it again");
  result.begin = offsets->front();
  result.end = offsets->back();
  if (result.begin > result.end) {
    refuse(fmt::format("data_offsets [{}, {}] are out of range; the file is damaged, copy it again",
                       result.begin, result.end));
  }
  if (result.end > data_bytes) {
    refuse(fmt::format(
        "data_offsets [{}, {}] reach past the {} bytes of data in the file; the file is truncated or "
        "damaged, copy it again",
        result.begin, result.end, data_bytes));
  }
  return result;
}

// A tensor that is listed and not read: to the rest of the program some bytes.
void make_foreign(StoredTensor& tensor, const Entry& entry, std::string why) {
  tensor.dtype = DType::kU8;
  tensor.shape = Shape{entry.end - entry.begin};
  tensor.obstacle = std::make_shared<const Obstacle>(
      Obstacle{fmt::format("{} [{}]", entry.type, fmt::join(entry.extents, ", ")), std::move(why), false});
}

StoredTensor parse_tensor(const std::string& path, const std::string& name, const json& json_entry,
                          std::int64_t data_bytes) {
  const auto refuse = [&](const std::string& why) {
    throw InputError(fmt::format("{}: tensor '{}': {}", path, excerpt(name), why));
  };
  if (name.find('\0') != std::string::npos) refuse("its name holds a byte 0; rename it");
  if (name.size() > kMostName)
    refuse(fmt::format("its name has {} bytes, more than {}; rename it", name.size(), kMostName));
  Entry entry = parse_entry(json_entry, data_bytes, refuse);
  StoredTensor tensor;
  tensor.name = name;
  tensor.offset = entry.begin;
  const auto dtype = dtype_from_safetensors(entry.type);
  const std::int64_t bits = dtype ? dtype_bytes(*dtype) * 8 : bits_of_foreign(entry.type);
  if (bits == 0)
    refuse(fmt::format("unknown dtype '{}'; write it in one that safetensors knows", excerpt(entry.type)));
  const bool packed = dtype == DType::kF4E2M1x2;
  // The header counts 4-bit codes; here a packed byte of two codes is the element.
  if (packed && (entry.extents.empty() || entry.extents.back() % 2 != 0)) {
    refuse("packed 4-bit codes need an even last extent; write the checkpoint again");
  }
  const auto bits_in_all = checked_product(entry.extents, packed ? bits / 2 : bits);
  const std::int64_t held = entry.end - entry.begin;
  if (!bits_in_all || *bits_in_all % 8 != 0 || *bits_in_all / 8 != held) {
    refuse(fmt::format(
        "{} [{}] takes {} bytes but data_offsets [{}, {}] hold {}; the file is damaged, copy it again",
        entry.type, fmt::join(entry.extents, ", "),
        bits_in_all ? std::to_string(*bits_in_all / 8) : "too many", entry.begin, entry.end, held));
  }
  if (!dtype) {
    make_foreign(
        tensor, entry,
        fmt::format("has elements of {}, which are not read; write it in a dtype of the model", entry.type));
  } else if (entry.extents.size() > Shape::kMaxDims) {
    make_foreign(tensor, entry,
                 fmt::format("has {} dimensions, more than the {} that are read; write it with fewer",
                             entry.extents.size(), Shape::kMaxDims));
  } else {
    if (packed) entry.extents.back() /= 2;
    tensor.dtype = *dtype;
    tensor.shape = Shape(std::span<const std::int64_t>(entry.extents));
  }
  return tensor;
}

// Every byte of the data belongs to exactly one tensor. `tensors` have offsets relative to the data.
void check_coverage(const std::string& path, std::vector<const StoredTensor*> tensors,
                    std::int64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::pair(a->offset, a->bytes()) < std::pair(b->offset, b->bytes());
  });
  std::int64_t covered = 0;
  const StoredTensor* before = nullptr;
  for (const StoredTensor* tensor : tensors) {
    if (tensor->offset < covered) {
      throw InputError(
          fmt::format("{}: tensors '{}' and '{}' overlap at data byte {}; the file is damaged, copy it again",
                      path, excerpt(before->name), excerpt(tensor->name), tensor->offset));
    }
    if (tensor->offset > covered) {
      throw InputError(
          fmt::format("{}: data bytes {} to {} before tensor '{}' belong to no tensor; the file is damaged, "
                      "copy it again",
                      path, covered, tensor->offset, excerpt(tensor->name)));
    }
    covered = tensor->offset + tensor->bytes();
    before = tensor;
  }
  if (covered != data_bytes) {
    throw InputError(fmt::format(
        "{}: {} bytes of data, of which the last {} belong to no tensor; the file is damaged, copy it again",
        path, data_bytes, data_bytes - covered));
  }
}

// Metadata belongs to whoever wrote the file: only what this program would have written is judged.
std::optional<std::int64_t> version_in(const json& header, const std::string& path) {
  const auto metadata = header.find(kSafetensorsMetadata);
  if (metadata == header.end() || !metadata->is_object()) return std::nullopt;
  const auto entry = metadata->find(kSafetensorsVersion);
  if (entry == metadata->end()) return std::nullopt;
  std::int64_t version = 0;
  const std::string text = entry->is_string() ? entry->get<std::string>() : "";
  const char* end = text.data() + text.size();
  const auto [rest, status] = std::from_chars(text.data(), end, version);
  if (status != std::errc() || rest != end || version < 0) {
    throw InputError(
        fmt::format("{}: {} in {} is not the text of an integer of at least 0; remove or correct it", path,
                    kSafetensorsVersion, kSafetensorsMetadata));
  }
  return version;
}

std::string conversion_in(const json& header) {
  const auto metadata = header.find(kSafetensorsMetadata);
  if (metadata == header.end() || !metadata->is_object()) return "";
  const auto entry = metadata->find(std::string(kAttributePrefix) + kConversionAttribute);
  return entry != metadata->end() && entry->is_string() ? entry->get<std::string>() : "";
}

// Tensors that share memory are saved once; the metadata says under which other names. `first` is the number
// of the file's first tensor.
void add_aliases(const json& header, std::size_t first, std::vector<StoredTensor>& tensors) {
  const auto metadata = header.find(kSafetensorsMetadata);
  if (metadata == header.end() || !metadata->is_object()) return;
  std::unordered_map<std::string, std::size_t> numbers;
  for (std::size_t i = first; i < tensors.size(); ++i) numbers.emplace(tensors[i].name, i);
  for (const auto& [name, value] : metadata->items()) {
    // What this program says of a file is no tensor, whatever it says.
    if (name.starts_with(kAttributePrefix)) continue;
    if (!value.is_string() || numbers.contains(name) || name.find('\0') != std::string::npos) continue;
    const auto meant = numbers.find(value.get<std::string>());
    if (meant == numbers.end()) continue;
    StoredTensor alias = tensors[meant->second];
    alias.name = name;
    tensors.push_back(std::move(alias));
  }
}

}  // namespace

SavingLabels read_safetensors_header(const std::string& path, Checkpoint& checkpoint) {
  const InputFile file(path);
  const std::string text = read_header_text(file);
  const json header = parse_header(text, path);
  const std::int64_t data_start = kSafetensorsLengthBytes + static_cast<std::int64_t>(text.size());
  const std::int64_t data_bytes = file.size() - data_start;

  const auto number = static_cast<std::uint32_t>(checkpoint.files.size());
  std::vector<StoredTensor>& tensors = checkpoint.tensors;
  const std::size_t first = tensors.size();
  for (const auto& [name, entry] : header.items()) {
    if (name == kSafetensorsMetadata) continue;
    tensors.push_back(parse_tensor(path, name, entry, data_bytes));
    tensors.back().file = number;
  }
  std::vector<const StoredTensor*> mine;
  for (std::size_t i = first; i < tensors.size(); ++i) mine.push_back(&tensors[i]);
  check_coverage(path, std::move(mine), data_bytes);
  for (std::size_t i = first; i < tensors.size(); ++i) tensors[i].offset += data_start;
  add_aliases(header, first, tensors);
  checkpoint.files.push_back(describe_file(file));
  require_same_file(file.identity_now(), checkpoint.files.back());
  return {version_in(header, path), conversion_in(header)};
}

Attributes read_safetensors_attributes(const std::string& path) {
  const json header = parse_header(read_header_text(InputFile(path)), path);
  const auto metadata = header.find(kSafetensorsMetadata);
  Attributes attributes;
  if (metadata == header.end() || !metadata->is_object()) return attributes;
  for (const auto& [name, value] : metadata->items()) {
    if (!name.starts_with(kAttributePrefix) || !value.is_string()) continue;
    attributes[name.substr(kAttributePrefix.size())] = value.get<std::string>();
  }
  return attributes;
}

}  // namespace weightcast
