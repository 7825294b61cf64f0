#include "storage/writer.hpp"

namespace weightcast {

void TensorFileWriter::commit() {
  flush();
  Replacement* all = this;
  replace_together({&all, 1});
}

}  // namespace weightcast
