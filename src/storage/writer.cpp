#include "storage/writer.hpp"

namespace weightcast {

void TensorFileWriter::commit() {
  flush();
  Replacement* all = this;
  replace_together({&all, 1});
}

std::unique_ptr<TensorFileWriter> create_tensor_file(FileFormat format, const std::string& path,
                                                     const Attributes& attributes,
                                                     const std::vector<DatasetSpec>& datasets,
                                                     const std::string& id) {
  return format == FileFormat::kHdf5 ? create_hdf5(path, attributes, datasets, id)
                                     : create_safetensors_file(path, attributes, datasets, id);
}

}  // namespace weightcast
