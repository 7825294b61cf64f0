#pragma once

#include <string>
#include <string_view>

namespace weightcast {

// While a file is being replaced, others lie beside it under hidden names: `.NAME.<id>.partial`, the new one
// as far as it is written, `.NAME.<id>.old`, the old one until its replacement is certain, and
// `.NAME.<id>.journal`, which says what replaces what. All files that are replaced together have one id: of a
// replacement that broke off amid its renames it tells which belong together.

inline constexpr std::string_view kPartial = "partial";
inline constexpr std::string_view kOld = "old";
inline constexpr std::string_view kJournal = "journal";

/// 16 hexadecimal digits that nobody can guess.
std::string fresh_id();

/// What stands for a file's name in its hidden names: the name itself or, where that leaves no room for the
/// rest, its beginning and a hash of the whole.
std::string hidden_stem(const std::string& name);

/// A hidden path beside `path`, with the id of its replacement.
std::string hidden_path(const std::string& path, std::string_view id, std::string_view kind);

/// What a hidden name says.
struct HiddenName {
  std::string_view stem;  ///< of the file that it belongs to
  std::string_view kind;  ///< one of those, empty for the name of another file, which is then the stem
  std::string_view id;    ///< of its replacement
};

/// Takes a name apart.
HiddenName parse_hidden(std::string_view name);

/// The folder of a path, `.` when it names none.
std::string directory_of(const std::string& path);

}  // namespace weightcast
