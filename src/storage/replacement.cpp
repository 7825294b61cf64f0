#include "storage/replacement.hpp"

#include <cstddef>
#include <optional>
#include <string>

namespace weightcast {

void take_back_together(std::span<Replacement* const> parts) {
  std::optional<NotPutBack> first;
  for (; !parts.empty(); parts = parts.first(parts.size() - 1)) {
    try {
      parts.back()->take_back();
    } catch (const NotPutBack& error) {
      if (!first) first = error;
    }
  }
  if (first) throw NotPutBack(*first);
}

void place_together(std::span<Replacement* const> parts) {
  for (const Replacement* part : parts) part->check();
  std::size_t placed = 0;
  try {
    for (; placed < parts.size(); ++placed) parts[placed]->place();
  } catch (const IoError&) {
    take_back_together(parts.first(placed));
    throw;
  }
}

void keep_together(std::span<Replacement* const> parts) {
  std::optional<IoError> first;
  for (Replacement* part : parts) {
    try {
      part->keep();
    } catch (const IoError& error) {
      if (!first) first = error;
    }
  }
  if (first) throw IoError(*first);
}

void replace_together(std::span<Replacement* const> parts) {
  const auto say_intact = [](const IoError& error) {
    return std::string(error.what()) + "; what was there before is intact";
  };
  try {
    place_together(parts);
  } catch (const NotPutBack&) {
    throw;
  } catch (const SystemRefusal& error) {
    throw SystemRefusal(say_intact(error), error.number());
  } catch (const IoError& error) {
    throw IoError(say_intact(error));
  }
  keep_together(parts);
}

}  // namespace weightcast
