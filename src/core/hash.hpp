#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>

namespace weightcast {

/// A running 64-bit hash (XXH3) of everything that must be equal on all ranks, in the order it is added.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  /// Adds a text with its length, so that neighbouring texts cannot run together.
  Hasher& add(std::string_view text);

  template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T> Hasher& add(T value) {
    add_bytes(&value, sizeof value);
    return *this;
  }

  std::uint64_t digest() const;

 private:
  void add_bytes(const void* data, std::size_t bytes);

  struct State;
  std::unique_ptr<State> state_;
};

/// The hash of one text (XXH3, 64 bits).
std::uint64_t hash_text(std::string_view text);

}  // namespace weightcast
