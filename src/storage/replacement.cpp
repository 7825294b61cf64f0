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

void prepare_together(std::span<Replacement* const> parts) {
  for (Replacement* part : parts) part->prepare();
}

void place_together(std::span<Replacement* const> parts) {
  std::size_t placed = 0;
  try {
    for (; placed < parts.size(); ++placed) parts[placed]->place();
  } catch (const IoError&) {
    take_back_together(parts.first(placed));
    throw;
  }
}

void replace_together(std::span<Replacement* const> parts) {
  const auto give_up = [&](const IoError& error) {
    for (Replacement* part : parts) part->give_up();
    return std::string(error.what()) + "; what was there before is intact";
  };
  try {
    prepare_together(parts);
    place_together(parts);
  } catch (const NotPutBack&) {
    throw;
  } catch (const SystemRefusal& error) {
    throw SystemRefusal(give_up(error), error.number());
  } catch (const IoError& error) {
    throw IoError(give_up(error));
  }
  for (Replacement* part : parts) part->settle();
  for (Replacement* part : parts) part->keep();
}

}  // namespace weightcast
