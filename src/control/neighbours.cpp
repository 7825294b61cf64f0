#include "control/neighbours.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <system_error>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "sys/host.hpp"
#include "sys/process.hpp"

namespace weightcast {

namespace {

/// Hosts are told apart by their names and by when they were started; containers of one by their processes'
/// numbers.
std::uint64_t hash_of_host(const std::string& host) {
  std::error_code ignored;
  const std::string processes = std::filesystem::read_symlink("/proc/self/ns/pid", ignored).string();
  return Hasher().add(host).add(this_boot()).add(processes).digest();
}

}  // namespace

Neighbours::Neighbours(const ThisRank& self) : rank_(self.rank) {
  struct Who {
    std::uint64_t host = 0;
    SharedWords::Name words;  ///< of the process, too
  };
  static_assert(sizeof(Who) == 5 * sizeof(std::int64_t));
  const auto exchange = [&](const Who& mine) {
    constexpr int kFields = 5;
    std::vector<Who> all(static_cast<std::size_t>(self.size));
    WEIGHTCAST_MPI(
        MPI_Allgather(&mine, kFields, MPI_INT64_T, all.data(), kFields, MPI_INT64_T, self.comm.get()));
    return all;
  };
  Who mine{hash_of_host(self.host), {}};
  mine.words.process = ::getpid();
  std::vector<Who> all = exchange(mine);
  int first = self.rank;  // of this host
  for (int rank = 0; rank < self.size; ++rank) {
    const Who& who = all[static_cast<std::size_t>(rank)];
    if (who.host != mine.host || rank == self.rank || !is_running(who.words.process)) continue;
    processes_.push_back({rank, who.words.process});
    first = std::min(first, rank);
  }
  all_ = processes_.size() + 1 == all.size();
  const auto if_permitted = [](const auto& share) {
    try {
      share();
    } catch (const Error&) {
      // Then each host's ranks may say more than one line in rare cases, and nothing else changes.
    }
  };
  std::shared_ptr<SharedWords> own;  // of the first of the host
  if (first == self.rank) {
    if_permitted([&] {
      own = std::make_shared<SharedWords>(1);
      spoken_ = own;
      mine.words = own->name();
    });
  }
  all = exchange(mine);
  if (first != self.rank)
    if_permitted(
        [&] { spoken_ = std::make_shared<SharedWords>(all[static_cast<std::size_t>(first)].words); });
  // Whether one word stands for all of the job; and nobody opens it any more.
  const int mine_is_shared = all_ && spoken_ ? 1 : 0;
  int all_share = 0;
  WEIGHTCAST_MPI(MPI_Allreduce(&mine_is_shared, &all_share, 1, MPI_INT, MPI_MIN, self.comm.get()));
  all_ = all_share != 0;
  if (own) own->unpublish();
}

std::optional<int> Neighbours::dead() const {
  const auto found = std::find_if(processes_.begin(), processes_.end(),
                                  [](const Process& process) { return !is_running(process.id); });
  if (found == processes_.end()) return std::nullopt;
  return found->rank;
}

int Neighbours::alive_below() const {
  return static_cast<int>(std::count_if(processes_.begin(), processes_.end(), [&](const Process& process) {
    return process.rank < rank_ && is_running(process.id);
  }));
}

bool Neighbours::take_the_word() const {
  const std::function<bool()> may_speak = word();
  return !may_speak || may_speak();
}

std::function<bool()> Neighbours::word() const {
  if (!spoken_) return {};
  return [spoken = spoken_] { return (*spoken)[0].exchange(1) == 0; };
}

bool Neighbours::have_spoken() const {
  return spoken_ && (*spoken_)[0] != 0;
}

}  // namespace weightcast
