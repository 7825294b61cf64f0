#include "support/process.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

namespace weightcast::test_support {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPollPeriod{5};

/// A file in memory: unlike a pipe it never fills, and can be looked at while the command runs.
int memory_file(const char* name) {
  const int fd = ::memfd_create(name, MFD_CLOEXEC);
  if (fd < 0) throw std::runtime_error("memfd_create failed");
  return fd;
}

std::string contents(int fd) {
  std::string text;
  std::array<char, 65536> piece{};
  for (;;) {
    const ssize_t got = ::pread(fd, piece.data(), piece.size(), static_cast<off_t>(text.size()));
    if (got <= 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
}

std::vector<std::string> environment_of(CommandLine command, const std::string& scratch) {
  std::vector<std::string> variables;
  command.environment.emplace("TMPDIR", scratch);
  // A machine's own settings of Open MPI are for the tests' jobs too; a launcher's are for its own job.
  const bool in_job = std::getenv("OMPI_COMM_WORLD_RANK") != nullptr;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view entry = *variable;
    constexpr std::array<std::string_view, 6> kDropped{"WEIGHTCAST_", "OMPI_", "PMIX_",
                                                       "PMI_",        "PRTE_", "SLURM_"};
    const bool setting = !in_job && entry.starts_with("OMPI_MCA_");
    const bool dropped =
        !setting && std::any_of(kDropped.begin(), kDropped.end(),
                                [&](std::string_view prefix) { return entry.starts_with(prefix); });
    const bool replaced = command.environment.contains(std::string(entry.substr(0, entry.find('='))));
    if (!dropped && !replaced) variables.emplace_back(entry);
  }
#ifdef __SANITIZE_ADDRESS__
  // Open MPI keeps what it allocates until the process ends, which the leak checker cannot know.
  variables.emplace_back("ASAN_OPTIONS=detect_leaks=0");
#endif
  for (const auto& [name, value] : command.environment) {
    variables.push_back(name);
    variables.back().append("=").append(value);
  }
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  result.reserve(words.size() + 1);
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

/// The parent of a process, or 0 when it is gone.
pid_t parent_of(pid_t id) {
  std::ifstream file("/proc/" + std::to_string(id) + "/stat");
  std::string text;
  std::getline(file, text);
  // The second field is the program's name in parentheses, which may hold anything.
  const std::size_t close = text.rfind(')');
  if (close == std::string::npos) return 0;
  std::istringstream rest(text.substr(close + 1));
  char state = ' ';
  pid_t parent = 0;
  rest >> state >> parent;
  return rest && state != 'Z' ? parent : 0;
}

}  // namespace

Process::Process(const CommandLine& command)
    : deadline_(Clock::now() + command.timeout), out_(memory_file("stdout")), err_(memory_file("stderr")) {
  // All memory is allocated before the fork.
  std::vector<std::string> words = command.words;
  std::vector<std::string> variables = environment_of(command, scratch_.string());
  const std::vector<char*> arguments = pointers(words);
  const std::vector<char*> environment = pointers(variables);
  id_ = ::fork();
  if (id_ < 0) throw std::runtime_error("fork failed");
  if (id_ > 0) return;
  ::setpgid(0, 0);
  // Whoever runs the tests may have blocked signals, and a launcher that has them blocked hands none on.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out_, STDOUT_FILENO);
  ::dup2(err_, STDERR_FILENO);
  ::execvpe(arguments.front(), arguments.data(), environment.data());
  constexpr int kNotFound = 127;
  ::_exit(kNotFound);
}

Process::~Process() {
  if (!ended()) {
    kill_all();
    ::waitpid(id_, &status_, 0);
  }
  ::close(out_);
  ::close(err_);
}

bool Process::ended() {
  if (!ended_) ended_ = ::waitpid(id_, &status_, WNOHANG) == id_;
  return ended_;
}

void Process::kill_all() const {
  // mpirun gives every rank a process group of its own.
  for (const pid_t child : children()) ::kill(child, SIGKILL);
  ::kill(-id_, SIGKILL);
}

bool Process::wait_for_output(std::string_view text) {
  while (contents(out_).find(text) == std::string::npos) {
    if (ended() || Clock::now() > deadline_) return contents(out_).find(text) != std::string::npos;
    std::this_thread::sleep_for(kPollPeriod);
  }
  return true;
}

bool Process::wait_until_it_catches(int signal) {
  const std::string path = "/proc/" + std::to_string(id_) + "/status";
  for (; running(); std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
    std::ifstream status(path);
    for (std::string line; std::getline(status, line);) {
      constexpr std::string_view kCaught = "SigCgt:";
      constexpr int kHex = 16;
      if (!line.starts_with(kCaught)) continue;
      if (std::stoull(line.substr(kCaught.size()), nullptr, kHex) >> (signal - 1) & 1) return true;
    }
  }
  return false;
}

std::vector<pid_t> Process::children() const {
  std::vector<pid_t> result;
  if (ended_) return result;  // its id may be another process's by now
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) continue;
    const auto id = static_cast<pid_t>(std::strtol(name.c_str(), nullptr, 10));
    if (parent_of(id) == id_) result.push_back(id);
  }
  std::sort(result.begin(), result.end());
  return result;
}

void Process::send(int signal) const {
  if (!ended_) ::kill(id_, signal);
}

void Process::send_to_children(int signal) const {
  for (const pid_t child : children()) ::kill(child, signal);
}

Outcome Process::wait() {
  Outcome outcome;
  while (!ended()) {
    if (Clock::now() > deadline_) {
      outcome.timed_out = true;
      kill_all();
      ::waitpid(id_, &status_, 0);
      ended_ = true;
      break;
    }
    std::this_thread::sleep_for(kPollPeriod);
  }
  if (WIFEXITED(status_)) outcome.exit_code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) outcome.signal = WTERMSIG(status_);
  outcome.out = contents(out_);
  outcome.err = contents(err_);
  return outcome;
}

Outcome run(const CommandLine& command) {
  return Process(command).wait();
}

CommandLine mpirun(int ranks, std::vector<std::string> words) {
  CommandLine command;
  command.words = {WEIGHTCAST_MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", std::to_string(ranks)};
  command.words.insert(command.words.end(), std::make_move_iterator(words.begin()),
                       std::make_move_iterator(words.end()));
  command.environment = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}};
  return command;
}

std::vector<std::string> error_lines(const std::string& err) {
  std::vector<std::string> lines;
  std::istringstream stream(err);
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("weightcast: error:")) lines.push_back(line);
  }
  return lines;
}

std::string describe(const Outcome& outcome) {
  std::ostringstream text;
  text << "exit code " << outcome.exit_code;
  if (outcome.signal != 0) text << ", ended by signal " << outcome.signal;
  if (outcome.timed_out) text << ", killed because it took too long";
  text << "\nstdout:\n" << outcome.out << "stderr:\n" << outcome.err;
  return text.str();
}

}  // namespace weightcast::test_support
