#include "engine/parameters.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast::engine {

std::vector<std::string> MemorySource::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

Tensor MemorySource::read(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw InputError(fmt::format("parameter {} is missing", name));
  return found->second;
}

}  // namespace weightcast::engine
