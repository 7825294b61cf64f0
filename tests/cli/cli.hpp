#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "storage/checkpoint.hpp"
#include "storage/file_kind.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"
#include "support/files.hpp"
#include "support/process.hpp"
#include "support/safetensors_file.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::test_support {

using Words = std::vector<std::string>;
using Variables = std::map<std::string, std::string>;

inline constexpr const char* kData = WEIGHTCAST_TEST_DATA;

/// The real checkpoint (Qwen3-MoE, 3 layers, 8 experts, 8 heads, 2 kv heads) of one of its versions: 0, 1 or
/// 181.
inline std::string trained(int step) {
  return std::string(kData).append("/python-coder-qwen3-moe/step").append(std::to_string(step));
}

inline std::string model_folder(const std::string& name) {
  return std::string(kData) + "/models/" + name;
}

inline Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// `weightcast WORDS…` without a launcher.
inline CommandLine plain_command(const Words& words, const Variables& environment = {}) {
  return {Words{WEIGHTCAST_BINARY} + words, environment};
}
inline Outcome run_plain(const Words& words, const Variables& environment = {}) {
  return run(plain_command(words, environment));
}

/// `mpirun -n RANKS weightcast WORDS…`.
inline CommandLine job_command(int ranks, const Words& words, const Variables& environment = {}) {
  CommandLine command = mpirun(ranks, Words{WEIGHTCAST_BINARY} + words);
  command.environment.insert(environment.begin(), environment.end());
  return command;
}
inline Outcome run_job(int ranks, const Words& words, const Variables& environment = {}) {
  return run(job_command(ranks, words, environment));
}

/// Succeeds when the text contains every one of the words.
inline ::testing::AssertionResult has(const std::string& text, const Words& words) {
  for (const std::string& word : words) {
    if (text.find(word) == std::string::npos) {
      return ::testing::AssertionFailure() << "'" << word << "' is not in:\n" << text;
    }
  }
  return ::testing::AssertionSuccess();
}

/// The lines of a text that are longer than 80 characters.
inline std::string too_wide(const std::string& text) {
  std::istringstream lines(text);
  std::string wide;
  for (std::string line; std::getline(lines, line);) {
    const auto width = std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; });
    if (width > 80) wide += line + "\n";
  }
  return wide;
}

/// Succeeds when the command ended well and reported no error.
inline ::testing::AssertionResult done(const Outcome& outcome) {
  if (outcome.exit_code == 0 && error_lines(outcome.err).empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << describe(outcome);
}

/// Succeeds when the command ended with that code and exactly one error line, which contains every one of the
/// words: the culprit and the remedy.
inline ::testing::AssertionResult refused(const Outcome& outcome, int code, const Words& words) {
  const auto lines = error_lines(outcome.err);
  if (outcome.exit_code != code || lines.size() != 1) {
    return ::testing::AssertionFailure() << "expected exit code " << code << " and one error line, not "
                                         << lines.size() << ": " << describe(outcome);
  }
  return has(lines.front(), words);
}

inline nlohmann::json read_json(const std::string& path) {
  return nlohmann::json::parse(get_file(path));
}

/// Dtype, shape and bytes of every dataset of every shard, by `rank-0.h5: NAME`.
inline std::map<std::string, std::string> shard_contents(const std::string& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const Checkpoint file = read_checkpoint(entry.path().string());
    const CheckpointReader reader(file);
    for (const StoredTensor& tensor : file.tensors) {
      std::string bytes(static_cast<std::size_t>(tensor.bytes()), '\0');
      reader.read(tensor, Box::whole(tensor.shape), std::as_writable_bytes(std::span(bytes)));
      contents[entry.path().filename().string() + ": " + tensor.name] =
          std::string(dtype_name(tensor.dtype)) + tensor.shape.to_string() + bytes;
    }
  }
  return contents;
}

/// A folder for each test.
class CliTest : public ::testing::Test {
 protected:
  /// The words that sync a source to two inference ranks and write their shards to `shards`: for jobs of
  /// three ranks.
  Words sync_words(const std::string& source) const {
    return {"sync", "--source", source, "--inference", "tp=2,ep=2", "--sink", "hdf5:" + sink_};
  }

  /// Shards of an earlier version in the sink, without any weights.
  void put_old_shards() const {
    for (const char* name : {"/rank-0.h5", "/rank-1.h5"}) {
      create_hdf5(sink_ + name, {{"kind", std::string(kShardKind)}}, {})->commit();
    }
  }

  TempDir dir_;
  std::string sink_ = dir_ / "shards";
};

}  // namespace weightcast::test_support
