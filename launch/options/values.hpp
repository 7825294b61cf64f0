#pragma once

#include <boost/program_options/variables_map.hpp>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

/// Where values that are not from the command line come from, for messages: by option,
/// `WEIGHTCAST_BUCKET_SIZE` or `FILE:3: bucket-size`.
using Origins = std::map<std::string, std::string, std::less<>>;

/// The values of a command's options, wherever they come from. What is wrong with one is a UsageError that
/// calls the option as the user did.
class Values {
 public:
  Values(boost::program_options::variables_map map, Origins origins);

  /// What to call an option in a message.
  std::string label(const std::string& name) const;
  /// Whether the command line has given it.
  bool typed(const char* name) const;

  bool has(const char* name) const { return map_.count(name) != 0; }
  bool flag(const char* name) const;
  std::string text(const char* name, const std::string& fallback) const;
  std::int64_t integer(const char* name, std::int64_t fallback, std::int64_t least,
                       std::int64_t most = std::numeric_limits<std::int64_t>::max()) const;
  std::int64_t bytes(const char* name, std::int64_t fallback, std::int64_t least) const;
  /// A share of one, such as 0.95.
  double share(const char* name) const;
  /// A number above 0.
  double positive(const char* name) const;
  /// One of `choices`, the first of which is the default.
  std::string choice(const char* name, const std::vector<std::string>& choices) const;
  /// `2,1,1`; empty without the option.
  std::vector<std::int64_t> layer_counts(const char* name) const;
  /// Of an option that may repeat, or of the words behind the command (`argument`).
  std::vector<std::string> texts(const char* name) const;

  const Origins& origins() const { return origins_; }

  /// All that the ranks of a job must have been given alike, as Options::alike; ranks on several nodes may
  /// see different environments.
  std::map<std::string, std::string> alike(const std::string& command) const;

 private:
  boost::program_options::variables_map map_;
  Origins origins_;
};

}  // namespace weightcast
