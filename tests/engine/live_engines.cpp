#include "engine/live_engines.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "client/block.hpp"
#include "engine/files.hpp"
#include "engine/model_config.hpp"
#include "engine/vocabulary.hpp"
#include "storage/reader.hpp"

namespace weightcast::engine {

using namespace test_support;

namespace {

using namespace std::chrono_literals;

/// Of a text: enough for the two versions to differ in nearly all.
constexpr std::int64_t kTokens = 8;

std::string step(std::int64_t version) {
  return std::string(WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/step") + (version % 2 == 0 ? "0" : "181");
}

/// What a model of that version says, as its reference implementation does.
std::string reference_text(int version) {
  const Reference reference = read_reference(step(version) + "/reference.safetensors");
  std::vector<std::int64_t> ids = reference.greedy;
  ids.resize(std::min(ids.size(), reference.prompts.front().size() + static_cast<std::size_t>(kTokens)));
  return printable_text(ids, parse_model_config(read_text(step(version) + "/config.json")).vocab);
}

/// Maps shared memory to be read; `file` stays open where it is asked for.
const std::byte* map_to_read(const std::string& name, std::size_t bytes, int* file = nullptr) {
  const int fd = ::shm_open(name.c_str(), O_RDONLY | O_CLOEXEC, 0);
  void* memory = fd < 0 ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (file != nullptr) *file = fd;
  if (file == nullptr && fd >= 0) ::close(fd);
  if (memory == MAP_FAILED) throw std::runtime_error(name + " cannot be mapped");
  return static_cast<const std::byte*>(memory);
}

/// `R`, `S`, `T` (stopped), … as the kernel says it; `-` of a process that is gone.
char process_state(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t close = text.rfind(')');
  return close == std::string::npos || close + 2 >= text.size() ? '-' : text[close + 2];
}

}  // namespace

Watched::Watched(const std::string& manifest_path) : manifest_(read_manifest(manifest_path)) {
  block_ = reinterpret_cast<const weightcast_block*>(
      map_to_read(manifest_.control, WEIGHTCAST_BLOCK_BYTES, &file_));
  for (const LiveSegment& segment : manifest_.segments) {
    const auto bytes = static_cast<std::size_t>(segment.bytes);
    segments_.emplace_back(map_to_read(segment.name, bytes), bytes);
  }
}

Watched::~Watched() {
  for (const auto& [data, bytes] : segments_) ::munmap(const_cast<std::byte*>(data), bytes);
  ::munmap(const_cast<weightcast_block*>(block_), WEIGHTCAST_BLOCK_BYTES);
  ::close(file_);
}

weightcast_state Watched::state() const {
  return WEIGHTCAST_STATE_OF(client::load_word(*block_));
}

std::uint64_t Watched::update() const {
  return WEIGHTCAST_UPDATE_OF(client::load_word(*block_));
}

bool Watched::at_rest() const {
  return client::is_at_rest(state());
}

bool Watched::lives() const {
  return client::holder_of_lock(file_, WEIGHTCAST_LOCK_EXPORTER) != 0;
}

std::string Watched::describe() const {
  constexpr const char* kStates[] = {"none",    "invalid",   "serving",  "asked",  "paused",     "writing",
                                     "written", "committed", "training", "offers", "being read", "read"};
  std::ostringstream text;
  const auto number = static_cast<std::size_t>(state());
  text << manifest_.path << ": process " << manifest_.pid << " is '" << process_state(process()) << "', "
       << (number < std::size(kStates) ? kStates[number] : "an unknown state") << " in update " << update()
       << ", version " << block_->version << ", asked " << block_->asked << ", lock of the update held by "
       << client::holder_of_lock(file_, WEIGHTCAST_LOCK_UPDATE) << ", reason: " << block_->reason;
  return text.str();
}

std::string Watched::difference_from(const Checkpoint& checkpoint) const {
  const CheckpointReader reader(checkpoint);
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const auto entry = std::ranges::find(manifest_.entries, tensor.name, &LiveEntry::name);
    if (entry == manifest_.entries.end()) return tensor.name + " is not published";
    std::vector<std::byte> expected(static_cast<std::size_t>(tensor.bytes()));
    reader.read(tensor, Box::whole(tensor.shape), expected);
    if (std::memcmp(segments_.at(entry->segment).first + entry->offset, expected.data(), expected.size()) !=
        0) {
      return tensor.name;
    }
  }
  return "";
}

LiveEngines::LiveEngines() {
  for (const int parity : {0, 1}) {
    const std::string shards = dir_ / ("shards" + std::to_string(parity));
    const Outcome cut = run(
        {{WEIGHTCAST_ENGINE_CUT, "--checkpoint", step(parity), "--out", shards, "--tp", std::to_string(kTp),
          "--ep", "2", "--replicas", std::to_string(kReplicas), "--moe-layout", "triton"},
         {}});
    if (cut.exit_code != 0) throw std::runtime_error(describe(cut));
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      shards_.emplace(2 * rank + parity, read_checkpoint(shards + "/rank-" + std::to_string(rank) + ".h5"));
    }
    texts_[parity] = reference_text(parity);
  }
  if (texts_[0] == texts_[1]) throw std::runtime_error("both versions say the same");
  engines_.resize(kReplicas);
  engine_ranks_.resize(kEngineRanks);
  for (int replica = 0; replica < kReplicas; ++replica) start_engine(replica);
}

LiveEngines::~LiveEngines() {
  engines_.clear();
  trainer_.reset();
  // What killed exporters have left: nobody publishes their ranks again.
  std::vector<const Watched*> all{trainer_rank_.get()};
  for (const auto& rank : engine_ranks_) all.push_back(rank.get());
  for (const Watched* watched : all) {
    if (watched == nullptr) continue;
    ::shm_unlink(watched->manifest().control.c_str());
    for (const LiveSegment& segment : watched->manifest().segments) ::shm_unlink(segment.name.c_str());
  }
}

CommandLine LiveEngines::own_mpirun(int ranks, const Words& words) const {
  CommandLine command = mpirun(ranks, words);
  // More processes than cores: those that wait have to make way.
  command.environment["OMPI_MCA_mpi_yield_when_idle"] = "1";
  command.environment["OMPI_MCA_btl_vader_backing_directory"] = mpi_dir_.string();
  return command;
}

std::unique_ptr<Watched> LiveEngines::published(Role role, int rank, const Watched* before,
                                                Process& process) const {
  const std::string path = manifest_path(folder_, role, rank);
  std::unique_ptr<Watched> found;
  const bool there = within(kPatience, [&] {
    if (!process.running()) throw std::runtime_error(describe(process.wait()));
    if (!std::filesystem::exists(path)) return false;
    try {
      found = std::make_unique<Watched>(path);
    } catch (const std::exception&) {
      return false;  // the dead one's, which is just being taken away
    }
    return before == nullptr || found->manifest().generation != before->manifest().generation;
  });
  if (!there) throw std::runtime_error(path + " does not come\n" + describe_all());
  return found;
}

void LiveEngines::start_engine(int replica, const Words& more) {
  auto& process = engines_.at(static_cast<std::size_t>(replica));
  Words words{WEIGHTCAST_LIVE_ENGINE,
              "--folder",
              folder_,
              "--shards",
              dir_ / "shards0",
              "--replica",
              std::to_string(replica),
              "--config",
              step(0) + "/config.json",
              "--reference",
              step(0) + "/reference.safetensors",
              "--tokens",
              std::to_string(kTokens)};
  words.insert(words.end(), more.begin(), more.end());
  CommandLine command = own_mpirun(kTp, words);
  command.timeout = 3600s;
  process = std::make_unique<Process>(command);
  for (int rank = kTp * replica; rank < kTp * (replica + 1); ++rank) {
    auto& watched = engine_ranks_.at(static_cast<std::size_t>(rank));
    watched = published(Role::kEngine, rank, watched.get(), *process);
  }
  if (!process->wait_for_output("version 0: ")) throw std::runtime_error(describe(process->wait()));
}

void LiveEngines::start_trainer(std::int64_t first, std::int64_t versions, const std::string& patience) {
  CommandLine command{
      {WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--checkpoint", step(0), "--checkpoint", step(1),
       "--first", std::to_string(first), "--versions", std::to_string(versions), "--patience", patience},
      {}};
  command.timeout = 3600s;
  trainer_ = std::make_unique<Process>(command);
  trainer_rank_ = published(Role::kTrainer, 0, trainer_rank_.get(), *trainer_);
}

void LiveEngines::bury_engine(int replica) {
  auto& process = engines_.at(static_cast<std::size_t>(replica));
  process->send_to_children(SIGKILL);
  process->send(SIGKILL);
  expect_true_texts(process->wait());
  process.reset();
}

CommandLine LiveEngines::sync_command(const Words& more, const std::string& command) const {
  Words words{WEIGHTCAST_BINARY, command,   "--source", "live:" + folder_, "--sink",
              "live:" + folder_, "--model", step(0),    "--inference",     "tp=2,ep=2,replicas=2",
              "--bucket-size",   "64KiB"};
  words.insert(words.end(), more.begin(), more.end());
  return own_mpirun(1 + kEngineRanks, words);
}

void LiveEngines::end_engines() {
  for (const auto& process : engines_) {
    process->send(SIGTERM);
    expect_true_texts(process->wait());
  }
}

void LiveEngines::expect_true_texts(const Outcome& outcome) {
  EXPECT_FALSE(outcome.timed_out) << describe(outcome);
  bool serves = true;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("paused ")) serves = line.find(" serves nothing") == std::string::npos;
    constexpr std::string_view kPrefix = "version ";
    const std::size_t colon = line.find(": ");
    if (!line.starts_with(kPrefix) || colon == std::string::npos) continue;
    const std::int64_t version = std::stoll(line.substr(kPrefix.size()));
    ++seen_[version];
    EXPECT_EQ(line.substr(colon + 2), texts_.at(static_cast<int>(version % 2))) << "of version " << version;
    EXPECT_TRUE(serves) << "a text from memory that holds no version:\n" << outcome.out;
  }
}

void LiveEngines::expect_true_memory(int rank) {
  const Watched& watched = engine(rank);
  if (watched.state() != WEIGHTCAST_SERVING) {
    EXPECT_EQ(watched.state(), WEIGHTCAST_INVALID) << describe_all();
    EXPECT_STRNE(watched.block().cause, "") << describe_all();
    return;
  }
  const std::int64_t version = watched.block().version;
  EXPECT_EQ(watched.difference_from(shards_.at(2 * rank + static_cast<int>(version % 2))), "")
      << "is not that of version " << version << '\n'
      << describe_all();
}

void LiveEngines::expect_all_serve(std::int64_t version) {
  for (int rank = 0; rank < kEngineRanks; ++rank) {
    ASSERT_TRUE(within(kPatience, [&] {
      return engine(rank).state() == WEIGHTCAST_SERVING && engine(rank).block().version == version;
    })) << describe_all();
    expect_true_memory(rank);
  }
  ASSERT_TRUE(within(kPatience, [&] {
    return trainer().state() == WEIGHTCAST_OFFERS && trainer().block().version > version;
  })) << describe_all();
}

void LiveEngines::expect_a_good_update() {
  ASSERT_TRUE(within(kPatience, [&] { return trainer().state() == WEIGHTCAST_OFFERS; })) << describe_all();
  const std::int64_t version = trainer().block().version;
  const Outcome outcome = run(sync_command());
  ASSERT_EQ(outcome.exit_code, 0) << describe(outcome) << describe_all();
  expect_all_serve(version);
}

std::string LiveEngines::describe_all() const {
  std::string text;
  for (const auto& rank : engine_ranks_) {
    if (rank) text += rank->describe() + '\n';
  }
  if (trainer_rank_) text += trainer_rank_->describe() + '\n';
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
    text += entry.path().filename().string() + ' ';
  }
  return text + '\n';
}

}  // namespace weightcast::engine
