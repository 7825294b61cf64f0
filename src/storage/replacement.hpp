#pragma once

#include <span>
#include <string>

#include "core/error.hpp"

namespace weightcast {

/// New content for one file or several, which lies beside the old until `place`. Destroyed between `prepare`
/// and `keep` or `give_up`, it takes back what it has placed and leaves what tells the next job to do the
/// same with all that belongs to it.
class Replacement {
 public:
  virtual ~Replacement() = default;

  /// Promises that `place` can be called: throws IoError unless the new content is still there, and nobody
  /// has put something else in its place, and notes on the disk what is about to be replaced. To be called on
  /// all that belong together before the first is placed, once nothing is written any more.
  virtual void prepare() = 0;

  /// Gives the new content its final names and keeps the old beside. When it throws IoError, everything is
  /// as before; NotPutBack when it is not.
  virtual void place() = 0;

  /// Undoes `place`. Throws NotPutBack.
  virtual void take_back() = 0;

  /// Lets the new content go, once all that belong together have taken back, or none was placed.
  virtual void give_up() noexcept = 0;

  /// Says that all that belong together are placed: from here on this process takes nothing back, however it
  /// ends. The old content stays until `keep`, for others who do not know it yet.
  virtual void settle() noexcept = 0;

  /// Lets the old content go, once all that belong together have settled.
  virtual void keep() noexcept = 0;
};

/// What the system refused, with its number.
class SystemRefusal : public IoError {
 public:
  SystemRefusal(const std::string& message, int number) : IoError(message), number_(number) {}
  int number() const { return number_; }

 private:
  int number_;
};

/// An old file could not get its name back.
class NotPutBack : public IoError {
 public:
  using IoError::IoError;
};

/// `prepare` of all.
void prepare_together(std::span<Replacement* const> parts);

/// Places all or none: when one throws, the others take back what they have done.
void place_together(std::span<Replacement* const> parts);

/// All take back, the last one first, whatever fails. Throws NotPutBack.
void take_back_together(std::span<Replacement* const> parts);

/// Replaces all from the promise to the end. The error says what became of the old files.
void replace_together(std::span<Replacement* const> parts);

}  // namespace weightcast
