#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace weightcast {

/// Words in memory that processes of one host share: one makes it, the others open it by its name. It has no
/// file that could stay behind.
class SharedWords {
 public:
  /// By what another process finds it, as long as it is published.
  struct Name {
    std::int64_t process = 0;
    std::int64_t file = -1;
    std::uint64_t key = 0;
    std::int64_t words = 0;
  };

  SharedWords() = default;
  /// All zero. Throws IoError when the system refuses.
  explicit SharedWords(std::size_t words);
  /// Throws IoError when this process cannot reach that one's memory.
  explicit SharedWords(const Name& name);
  ~SharedWords();
  SharedWords(SharedWords&& other) noexcept { swap(other); }
  SharedWords& operator=(SharedWords&& other) noexcept {
    swap(other);
    return *this;
  }
  SharedWords(const SharedWords&) = delete;
  SharedWords& operator=(const SharedWords&) = delete;

  explicit operator bool() const { return data_ != nullptr; }
  const Name& name() const { return name_; }
  /// Nobody opens it any more.
  void unpublish();

  std::atomic_ref<std::uint32_t> operator[](std::size_t word) const {
    return std::atomic_ref(static_cast<std::uint32_t*>(data_)[kHead + word]);
  }

 private:
  static constexpr std::size_t kHead = 2;  ///< words of the key

  void map(int file);
  void swap(SharedWords& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(data_, other.data_);
    std::swap(own_file_, other.own_file_);
  }
  std::size_t bytes() const {
    return (kHead + static_cast<std::size_t>(name_.words)) * sizeof(std::uint32_t);
  }

  Name name_;
  void* data_ = nullptr;
  int own_file_ = -1;
};

}  // namespace weightcast
