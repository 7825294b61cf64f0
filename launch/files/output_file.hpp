#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

namespace weightcast {

/// A file that an option names for a report. There is one only once what lies there has been looked at, and
/// it alone writes: so nothing is written over a file that was refused.
class OutputFile {
 public:
  /// Takes the path of `--option` for this run, `-` for stdout, and puts `first` there at once, because what
  /// an earlier run left must not pass for this one's, and so that a file that cannot be written shows before
  /// anything is done. A file is taken when it is empty or an earlier one of the kind that `first` is of (a
  /// report, a trace, a picture, …); pipes and terminals are taken as they are. Throws UsageError for
  /// anything else, and IoError, when the system refuses; nothing was changed then.
  OutputFile(std::string option, const std::string& path, const std::string& first);

  /// Throws what taking the path would throw, as far as a look can tell, and changes nothing.
  static void look(const std::string& option, const std::string& path, const std::string& first);

  /// Replaces the text, whole or not at all; appends to what is no file. A file in a folder that lets nobody
  /// replace it is written in place. Throws IoError, also when somebody has put another file there meanwhile,
  /// which stays.
  void write(const std::string& text);

  /// Whether `write` has put a text there. A pipe that did not take it counts: who waited for its reader once
  /// must not do so again.
  bool written() const { return written_; }

 private:
  struct Look {};
  /// Looks at what is there, and puts nothing.
  OutputFile(std::string option, const std::string& path, std::string first, Look alone);
  std::string subject() const;
  /// What lies there, nothing when there is nothing.
  std::optional<struct stat> there_now() const;
  void require_report(const struct stat& there) const;
  /// Throws IoError unless there is still what was looked at, or nothing.
  void require_mine() const;
  void put(const std::string& text);
  void append(const std::string& text) const;
  void replace(const std::string& text);

  std::string option_;
  std::string path_;   ///< of a file, behind all links
  std::string first_;  ///< says by its beginning of which kind the file is
  bool stdout_ = false;
  bool stream_ = false;  ///< a pipe or a terminal, or stdout whatever it is
  bool written_ = false;
  std::optional<struct stat> mine_;  ///< what is known to lie there
};

/// Throws UsageError when two options name one file, of which the second would replace what the first has
/// written. Both may name one pipe or terminal. To be called when what the first names is there.
void require_other_file(const std::string& option, const std::string& path, const std::string& other_option,
                        const std::string& other);

/// For an option that may not have been given: nothing when the path is empty.
std::optional<OutputFile> begin_output(const std::string& option, const std::string& path,
                                       const std::string& first);

}  // namespace weightcast
