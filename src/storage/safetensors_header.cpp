#include "storage/safetensors_header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_set>

#include "core/error.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

static_assert(std::endian::native == std::endian::little,
              "files hold little-endian numbers and are read as they are");

using nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

// Looks for a name that occurs twice in one object: the parser would silently keep the last one. (A parser
// callback could do this too, but with one the parser's time grows with the square of the number of names.)
class DuplicateFinder final : public nlohmann::json_sax<json> {
 public:
  const std::string& duplicate() const { return duplicate_; }

  bool start_object(std::size_t /*elements*/) override {
    objects_.emplace_back();
    return true;
  }
  bool key(std::string& name) override {
    if (objects_.back().insert(name).second) return true;
    duplicate_ = name;
    return false;
  }
  bool end_object() override {
    objects_.pop_back();
    return true;
  }

  bool null() override { return true; }
  bool boolean(bool /*value*/) override { return true; }
  bool number_integer(json::number_integer_t /*value*/) override { return true; }
  bool number_unsigned(json::number_unsigned_t /*value*/) override { return true; }
  bool number_float(json::number_float_t /*value*/, const std::string& /*text*/) override { return true; }
  bool string(std::string& /*value*/) override { return true; }
  bool binary(json::binary_t& /*value*/) override { return true; }
  bool start_array(std::size_t /*elements*/) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const json::exception& /*error*/) override {
    return false;
  }

 private:
  std::vector<std::unordered_set<std::string>> objects_;
  std::string duplicate_;
};

json parse_object(const std::string& text, const std::string& path, std::string_view what) {
  json parsed;
  try {
    parsed = json::parse(text);
  } catch (const json::exception& error) {
    throw InputError(fmt::format("{}: {} is not JSON: {}", path, what, error.what()));
  }
  if (!parsed.is_object()) throw InputError(fmt::format("{}: {} is no JSON object", path, what));
  DuplicateFinder finder;
  if (!json::sax_parse(text, &finder)) {
    throw InputError(fmt::format("{}: '{}' occurs twice in {}", path, finder.duplicate(), what));
  }
  return parsed;
}

std::string read_header_text(const InputFile& file) {
  if (file.size() < kLengthBytes) {
    throw InputError(fmt::format(
        "{}: {} bytes are too few for a safetensors file, which starts with 8 bytes of header length",
        file.path(), file.size()));
  }
  std::uint64_t length = 0;
  file.read_at(0, std::as_writable_bytes(std::span(&length, 1)), "the header length");
  const std::int64_t room = file.size() - kLengthBytes;
  if (length > static_cast<std::uint64_t>(room)) {
    throw InputError(fmt::format(
        "{}: the header is said to be {} bytes long but only {} bytes follow; the file is truncated or no "
        "safetensors file",
        file.path(), length, room));
  }
  if (length > static_cast<std::uint64_t>(kMaxHeaderBytes)) {
    throw InputError(
        fmt::format("{}: a header of {} bytes; the format allows {}", file.path(), length, kMaxHeaderBytes));
  }
  std::string text(length, '\0');
  file.read_at(kLengthBytes, std::as_writable_bytes(std::span(text)), "the header");
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

// The bytes of a shape, or nothing when they do not fit 63 bits.
std::optional<std::int64_t> checked_bytes(const std::vector<std::int64_t>& extents,
                                          std::int64_t element_bytes) {
  std::int64_t bytes = element_bytes;
  for (const std::int64_t extent : extents) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

StoredTensor parse_tensor(const std::string& path, const std::string& name, const json& entry,
                          std::int64_t data_bytes) {
  const auto refuse = [&](const std::string& why) {
    throw InputError(fmt::format("{}: tensor '{}': {}", path, name, why));
  };
  if (!entry.is_object()) refuse("its entry is no JSON object");

  StoredTensor tensor;
  tensor.name = name;
  const auto type = entry.find("dtype");
  if (type == entry.end() || !type->is_string()) refuse("its entry has no dtype");
  const auto& type_name = type->get_ref<const std::string&>();
  const auto dtype = dtype_from_safetensors(type_name);
  if (!dtype) refuse(fmt::format("unknown dtype '{}'", type_name));
  tensor.dtype = *dtype;

  auto extents = sizes_of(entry, "shape");
  if (!extents) refuse("its shape is no list of sizes");
  if (extents->size() > Shape::kMaxDims) {
    refuse(fmt::format("{} dimensions; at most {} are supported", extents->size(), Shape::kMaxDims));
  }
  if (tensor.dtype == DType::kF4E2M1x2) {
    // The header counts 4-bit codes; here a packed byte of two codes is the element.
    if (extents->empty() || extents->back() % 2 != 0) refuse("packed 4-bit codes need an even last extent");
    extents->back() /= 2;
  }
  tensor.shape = Shape(std::span<const std::int64_t>(*extents));

  const auto offsets = sizes_of(entry, "data_offsets");
  if (!offsets || offsets->size() != 2) refuse("its data_offsets are no pair of sizes");
  const std::int64_t begin = offsets->front();
  const std::int64_t end = offsets->back();
  if (begin > end) refuse(fmt::format("data_offsets [{}, {}] are out of range", begin, end));
  if (end > data_bytes) {
    refuse(fmt::format(
        "data_offsets [{}, {}] reach past the {} bytes of data in the file; the file is truncated or "
        "damaged, copy it again",
        begin, end, data_bytes));
  }
  const auto bytes = checked_bytes(*extents, dtype_bytes(tensor.dtype));
  if (!bytes || *bytes != end - begin) {
    refuse(fmt::format("{} {} takes {} bytes but data_offsets [{}, {}] hold {}", type_name,
                       tensor.shape.to_string(), bytes ? std::to_string(*bytes) : "too many", begin, end,
                       end - begin));
  }
  tensor.offset = begin;
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
      throw InputError(fmt::format("{}: tensors '{}' and '{}' overlap at data byte {}", path, before->name,
                                   tensor->name, tensor->offset));
    }
    if (tensor->offset > covered) {
      throw InputError(fmt::format("{}: data bytes {} to {} before tensor '{}' belong to no tensor", path,
                                   covered, tensor->offset, tensor->name));
    }
    covered = tensor->offset + tensor->bytes();
    before = tensor;
  }
  if (covered != data_bytes) {
    throw InputError(fmt::format("{}: {} bytes of data, of which the last {} belong to no tensor", path,
                                 data_bytes, data_bytes - covered));
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
  if (status != std::errc() || rest != end) {
    throw InputError(fmt::format("{}: {} in {} is not the text of an integer", path, kSafetensorsVersion,
                                 kSafetensorsMetadata));
  }
  return version;
}

}  // namespace

std::optional<std::int64_t> read_safetensors_header(const std::string& path, std::uint32_t file_number,
                                                    std::vector<StoredTensor>& tensors) {
  const InputFile file(path);
  const std::string text = read_header_text(file);
  const json header = parse_object(text, path, "the safetensors header");
  const std::int64_t data_start = kLengthBytes + static_cast<std::int64_t>(text.size());
  const std::int64_t data_bytes = file.size() - data_start;

  const std::size_t first = tensors.size();
  for (const auto& [name, entry] : header.items()) {
    if (name == kSafetensorsMetadata) continue;
    tensors.push_back(parse_tensor(path, name, entry, data_bytes));
    tensors.back().file = file_number;
  }
  std::vector<const StoredTensor*> mine;
  for (std::size_t i = first; i < tensors.size(); ++i) mine.push_back(&tensors[i]);
  check_coverage(path, std::move(mine), data_bytes);
  for (std::size_t i = first; i < tensors.size(); ++i) tensors[i].offset += data_start;
  return version_in(header, path);
}

Attributes read_safetensors_attributes(const std::string& path) {
  const json header = parse_object(read_header_text(InputFile(path)), path, "the safetensors header");
  const auto metadata = header.find(kSafetensorsMetadata);
  Attributes attributes;
  if (metadata == header.end() || !metadata->is_object()) return attributes;
  for (const auto& [name, value] : metadata->items()) {
    if (!name.starts_with(kAttributePrefix) || !value.is_string()) continue;
    attributes[name.substr(kAttributePrefix.size())] = value.get<std::string>();
  }
  return attributes;
}

SafetensorsIndex read_safetensors_index(const std::string& path) {
  const json parsed = parse_object(read_text_file(path), path, "the index");
  const auto map = parsed.find("weight_map");
  if (map == parsed.end() || !map->is_object())
    throw InputError(fmt::format("{}: no object 'weight_map'", path));
  SafetensorsIndex index;
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string())
      throw InputError(fmt::format("{}: tensor '{}': its file is no text", path, tensor));
    const auto& name = file.get_ref<const std::string&>();
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
      throw InputError(
          fmt::format("{}: tensor '{}': '{}' does not name a file beside the index", path, tensor, name));
    }
    files.insert(name);
    index.tensors.emplace_back(tensor, name);
  }
  index.files.assign(files.begin(), files.end());
  return index;
}

}  // namespace weightcast
