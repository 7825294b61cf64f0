#include "engine/layout.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast::engine {

std::int64_t divide(std::int64_t total, std::int64_t parts, const char* what) {
  if (parts <= 0 || total % parts != 0) {
    throw InputError(fmt::format("{} {} cannot be cut {} ways", total, what, parts));
  }
  return total / parts;
}

void check_layout(const RankLayout& layout, const Group& group) {
  if (layout.tp_size != group.size() || layout.tp_rank != group.rank()) {
    throw InputError(fmt::format("the shard is tp rank {} of {}, the process is rank {} of {}",
                                 layout.tp_rank, layout.tp_size, group.rank(), group.size()));
  }
  const std::int64_t inside = divide(layout.tp_size, layout.ep_size, "tensor-parallel ranks");
  if (layout.ep_rank != layout.tp_rank / inside) {
    throw InputError(fmt::format("tp rank {} of {} is ep rank {} of {}, not {}", layout.tp_rank,
                                 layout.tp_size, layout.tp_rank / inside, layout.ep_size, layout.ep_rank));
  }
}

}  // namespace weightcast::engine
