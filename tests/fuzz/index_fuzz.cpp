// model.safetensors.index.json beside a file that is well.

#include <fstream>

#include "fuzz/refusal.hpp"
#include "fuzz/written_file.hpp"
#include "storage/checkpoint.hpp"

namespace {

/// A file with the tensors `a` and `b`, of two and three elements.
void write_data(const std::string& path) {
  const std::string header = R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[4,10]}})";
  std::ofstream file(path, std::ios::binary);
  for (int byte = 0; byte < 8; ++byte) file.put(static_cast<char>(byte == 0 ? header.size() : 0));
  file << header << "0123456789";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  static const fuzz::WrittenFile index("model.safetensors.index.json");
  static const bool written = (write_data(index.folder() + "/model-00001-of-00001.safetensors"), true);
  static_cast<void>(written);
  index.write(fuzz::text_of(data, size));
  fuzz::accept_or_refuse(index.folder(), [&] { static_cast<void>(read_checkpoint(index.folder())); });
  return 0;
}
