#pragma once

#include <source_location>
#include <span>
#include <string>

#include "core/error.hpp"

namespace weightcast {

/// New content for one file or several, which lies beside the old until `place`. Destroyed between `place`
/// and `keep`, it takes back.
class Replacement {
 public:
  virtual ~Replacement() = default;

  /// Throws IoError unless the new content is still there, and nobody has put something else in its place.
  virtual void check() const = 0;

  /// Gives the new content its final names and keeps the old beside. When it throws IoError, everything is
  /// as before; NotPutBack when it is not.
  virtual void place() = 0;

  /// Undoes `place`. Throws NotPutBack.
  virtual void take_back() = 0;

  /// Lets the old content go. Nothing is taken back afterwards. Throws IoError when something old that would
  /// be read beside the new content cannot be removed.
  virtual void keep() = 0;
};

/// What the system refused, with its number.
class SystemRefusal : public IoError {
 public:
  SystemRefusal(const std::string& message, int number,
                std::source_location where = std::source_location::current())
      : IoError(message, where), number_(number) {}
  int number() const { return number_; }

 private:
  int number_;
};

/// An old file could not get its name back.
class NotPutBack : public IoError {
 public:
  using IoError::IoError;
};

/// Places all or none: when one throws, the others take back what they have done.
void place_together(std::span<Replacement* const> parts);

/// All take back, the last one first, whatever fails. Throws NotPutBack.
void take_back_together(std::span<Replacement* const> parts);

/// All keep, whatever fails. Throws the first IoError.
void keep_together(std::span<Replacement* const> parts);

/// As `place_together`, and then keeps all. The error says what became of the old files.
void replace_together(std::span<Replacement* const> parts);

}  // namespace weightcast
