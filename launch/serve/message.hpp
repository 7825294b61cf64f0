#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/error.hpp"

namespace weightcast {

// What a trigger and a server say to each other: a line of JSON each way.

/// The longest line of each side, in bytes.
inline constexpr std::size_t kMostRequestBytes = 4096;
inline constexpr std::size_t kMostAnswerBytes = 65536;

/// What a trigger asks for.
struct UpdateRequest {
  std::optional<std::int64_t> version;  ///< which engines are to have afterwards; nothing: the one offered
  bool queue = true;                    ///< whether it waits for the end of another update
};

/// How the update has ended.
struct UpdateAnswer {
  ExitCode code = ExitCode::kDone;
  std::string report;                                  ///< lines for stdout
  std::string note;                                    ///< a line for the log
  std::string error;                                   ///< the line of a failure
  std::optional<std::int64_t> version = std::nullopt;  ///< what all engines have; nothing after a failure
  bool was_there = false;                              ///< before the request already
};

/// With the line break. Texts that are too long for a line of an answer are cut.
std::string line_of(const UpdateRequest& request);
std::string line_of(const UpdateAnswer& answer);

/// Throw InputError that says what is wrong.
UpdateRequest parse_request(const std::string& line);
UpdateAnswer parse_answer(const std::string& line);

}  // namespace weightcast
