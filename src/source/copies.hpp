#pragma once

#include <cstdint>
#include <functional>

#include "model/catalog.hpp"
#include "source/binding.hpp"
#include "storage/checkpoint.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

/// A share of some work: number `index` of `count` equal ones.
struct WorkShare {
  std::int64_t index = 0;
  std::int64_t count = 1;
};

/// Reads what a checkpoint keeps of copies (Binding::copies), a share of their rows, and compares it with the
/// tensors that they must repeat. Engines drop the copies: a head that was trained apart from the embedding
/// it is said to be tied to would be lost. Calls `poll` again and again, which may throw. Throws InputError
/// naming checkpoint, both tensors and the first row that differs.
void require_equal_copies(const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding,
                          ThreadPool& readers, const WorkShare& share, const std::function<void()>& poll);

}  // namespace weightcast
