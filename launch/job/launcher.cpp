#include "launch/job/launcher.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

/// Value of the first of the variables that is set.
template <std::size_t N>
const char* first_set(const std::array<const char*, N>& names) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name)) return value;
  }
  return nullptr;
}

// What Open MPI's mpirun and a PMIx-speaking srun give every task.
constexpr std::array<const char*, 2> kMpiRank{"OMPI_COMM_WORLD_RANK", "PMIX_RANK"};
// What srun gives every task of a step, with or without PMIx.
constexpr std::array<const char*, 1> kStepTasks{"SLURM_STEP_NUM_TASKS"};
// What the launchers of other MPI libraries (Hydra and its relatives) give.
constexpr std::array<const char*, 3> kForeign{"PMI_RANK", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_RANK"};
constexpr std::array<const char*, 3> kTasks{"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"};

void require_launcher() {
  if (has_mpi_launcher()) return;
  if (first_set(kStepTasks) != nullptr && std::getenv("SLURM_PROCID") != nullptr) {
    throw UsageError(
        "srun started this task without PMIx, so the ranks cannot find each other; use srun --mpi=pmix");
  }
  if (first_set(kForeign) != nullptr) {
    throw UsageError(
        "the launcher belongs to another MPI than Open MPI, so each process would be alone; use Open "
        "MPI's mpirun or srun --mpi=pmix");
  }
  throw UsageError("started without a launcher; use mpirun -n N weightcast … or srun --mpi=pmix");
}

/// This process's number among those of the job, as the launcher says it; 0 where there is none.
int rank_by_launcher() {
  constexpr std::array<const char*, 4> kRanks{"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID",
                                              "PMI_RANK"};
  const char* const text = first_set(kRanks);
  int rank = 0;
  if (text != nullptr) std::from_chars(text, text + std::string_view(text).size(), rank);
  return rank;
}

/// A launcher of another MPI version leaves each process in a world of one.
bool is_alone(int size) {
  const char* tasks = first_set(kTasks);
  return tasks != nullptr && size == 1 && std::string_view(tasks) != "1";
}

}  // namespace

bool has_mpi_launcher() {
  return first_set(kMpiRank) != nullptr;
}

bool speaks_for_all() {
  return rank_by_launcher() == 0;
}

bool others_have_ended() {
  using namespace std::chrono_literals;
  watch_signals();
  const auto give_up = std::chrono::steady_clock::now() + 2s;
  while (hard_stop_signal() == 0 && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(10ms);
  }
  return hard_stop_signal() != 0;
}

int run_as_rank(const std::function<void(Control&)>& job, std::chrono::seconds timeout) {
  require_launcher();
  // MPI waits for ever for a task that hangs or died before it got there, be it the first one.
  Watchdog watchdog("starting MPI", timeout, rank_by_launcher());
  const MpiEnvironment mpi;
  Control control(MPI_COMM_WORLD, timeout, watchdog);
  if (is_alone(control.size())) {
    // Each process is rank 0 of its own world, so the environment says who speaks.
    if (speaks_for_all()) {
      log_error(fmt::format(
          "the launcher started {} tasks but MPI sees a world of one: it belongs to another MPI than "
          "this program's Open MPI; use the mpirun that it was built with",
          first_set(kTasks)));
    }
    return static_cast<int>(ExitCode::kUsage);
  }
  try {
    job(control);
    end_by_oneself();
    return static_cast<int>(ExitCode::kDone);
  } catch (const AgreedFailure& failure) {
    end_by_oneself();
    return static_cast<int>(failure.code());
  } catch (const std::exception& error) {
    control.last_words.abort_all(error_of(error));
  }
}

}  // namespace weightcast
