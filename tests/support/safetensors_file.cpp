#include "support/safetensors_file.hpp"

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "support/files.hpp"

namespace weightcast::test_support {

namespace {

constexpr std::size_t kLengthBytes = 8;

}  // namespace

std::string safetensors_bytes(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  bytes += header;
  bytes += data;
  return bytes;
}

SafetensorsFile SafetensorsFile::read(const std::string& path) {
  const std::string bytes = get_file(path);
  std::uint64_t length = 0;
  if (bytes.size() < kLengthBytes) throw std::runtime_error(path + " is too short");
  std::memcpy(&length, bytes.data(), kLengthBytes);
  const auto header = nlohmann::json::parse(bytes.substr(kLengthBytes, length));
  SafetensorsFile file;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto offsets = entry.at("data_offsets").get<std::vector<std::size_t>>();
    file.tensors[name] = {entry.at("dtype"), entry.at("shape"),
                          bytes.substr(kLengthBytes + length + offsets.at(0), offsets.at(1) - offsets.at(0))};
  }
  return file;
}

std::string SafetensorsFile::bytes() const {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.data.size()}}};
    data += tensor.data;
  }
  return safetensors_bytes(header.dump(), data);
}

void SafetensorsFile::write(const std::string& path) const {
  put_file(path, bytes());
}

SafetensorsFile::Tensor widened(const SafetensorsFile::Tensor& tensor) {
  SafetensorsFile::Tensor wide{"F32", tensor.shape, std::string(2 * tensor.data.size(), '\0')};
  // A bfloat16 is the upper half of a float32.
  for (std::size_t i = 0; i < tensor.data.size(); i += 2) {
    wide.data[2 * i + 2] = tensor.data[i];
    wide.data[2 * i + 3] = tensor.data[i + 1];
  }
  return wide;
}

}  // namespace weightcast::test_support
