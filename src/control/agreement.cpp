#include "control/agreement.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "report/log.hpp"
#include "sys/backoff.hpp"

namespace weightcast {

Agreement::Agreement(const ThisRank& self, Deadline& deadline, LastWords& last_words, std::size_t piece)
    : self_(self), deadline_(deadline), last_words_(last_words), piece_(piece) {}

void Agreement::together(const std::function<void()>& local) {
  std::array<int, 2> mine{self_.size, 0};  // lowest failing rank, its code
  std::string line;
  try {
    local();
  } catch (const std::exception& exception) {
    const Error error = deadline_.in_phase(exception);
    mine = {self_.rank, static_cast<int>(error.code())};
    line = last_words_.line_of(error);
  }
  std::array<int, 2> first{};
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(mine.data(), first.data(), 1, MPI_2INT, MPI_MINLOC, comm(), &request));
  wait(request);
  if (first[0] == self_.size) return;
  // Printed when all have it: a broadcast that fails ends the job with a line of its own.
  line = broadcast(line, first[0]);
  if (first[0] == self_.rank && !said_.contains(line)) log_error(line);
  throw AgreedFailure(static_cast<ExitCode>(first[1]), line);
}

bool Agreement::is_same(std::uint64_t hash) {
  // Equal on all ranks when the greatest is also the least: the maximum of the hash and of its complement.
  std::array<std::int64_t, 2> extremes{static_cast<std::int64_t>(hash), ~static_cast<std::int64_t>(hash)};
  maximum(std::span<std::int64_t>(extremes));
  return extremes[0] == ~extremes[1];
}

void Agreement::require_same(std::uint64_t hash, const Error& otherwise) {
  const bool same = is_same(hash);
  together([&] {
    if (!same) throw Error(otherwise);
  });
}

void Agreement::wait(MPI_Request& request) {
  Backoff backoff;
  try {
    for (;;) {
      int done = 0;
      WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      deadline_.poll();
      backoff.pause();
    }
  } catch (const Error& error) {
    last_words_.abort_all(error);
  }
}

template <typename Start>
void Agreement::in_pieces(std::size_t total, Start start) {
  for (std::size_t offset = 0; offset < total; offset += piece_) {
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(start(offset, mpi_count(std::min(piece_, total - offset)), &request));
    wait(request);
  }
}

template <typename Value>
void Agreement::reduce(std::span<Value> values, MPI_Datatype type, MPI_Op operation) {
  in_pieces(values.size(), [&](std::size_t offset, int count, MPI_Request* request) {
    return MPI_Iallreduce(MPI_IN_PLACE, values.data() + offset, count, type, operation, comm(), request);
  });
}

void Agreement::sum(std::span<std::uint64_t> values) {
  reduce(values, MPI_UINT64_T, MPI_SUM);
}

void Agreement::maximum(std::span<double> values) {
  reduce(values, MPI_DOUBLE, MPI_MAX);
}

void Agreement::maximum(std::span<std::int64_t> values) {
  reduce(values, MPI_INT64_T, MPI_MAX);
}

std::vector<std::byte> Agreement::broadcast(std::vector<std::byte> bytes) {
  return broadcast_from(0, std::move(bytes));
}

std::vector<std::byte> Agreement::broadcast_from(int root, std::vector<std::byte> bytes) {
  auto size = static_cast<std::int64_t>(bytes.size());
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Ibcast(&size, 1, MPI_INT64_T, root, comm(), &request));
  wait(request);
  bytes.resize(static_cast<std::size_t>(size));
  in_pieces(bytes.size(), [&](std::size_t offset, int count, MPI_Request* piece) {
    return MPI_Ibcast(bytes.data() + offset, count, MPI_BYTE, root, comm(), piece);
  });
  return bytes;
}

std::string Agreement::broadcast(const std::string& text, int root) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  const std::vector<std::byte> bytes =
      broadcast_from(root, std::vector<std::byte>(first, first + text.size()));
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string> Agreement::gather(const std::string& text) {
  const auto ranks = static_cast<std::size_t>(self_.size);
  const std::uint64_t size = text.size();
  std::vector<std::uint64_t> sizes(ranks, 0);
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallgather(&size, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, comm(), &request));
  wait(request);
  // One message of each rank and round; all of a round together are one piece.
  const std::size_t share = piece_ / ranks;
  const std::uint64_t longest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<std::string> texts(self_.rank == 0 ? ranks : 0);
  for (std::size_t offset = 0; offset < longest; offset += share) {
    const auto in_round = [&](std::size_t bytes) {
      return mpi_count(std::min(share, bytes - std::min(bytes, offset)));
    };
    std::vector<int> counts(ranks, 0);
    std::vector<int> starts(ranks, 0);
    std::transform(sizes.begin(), sizes.end(), counts.begin(), in_round);
    std::exclusive_scan(counts.begin(), counts.end(), starts.begin(), 0);
    std::string all(self_.rank == 0 ? static_cast<std::size_t>(starts.back() + counts.back()) : 0, ' ');
    const char* const mine = text.data() + std::min(offset, text.size());
    WEIGHTCAST_MPI(MPI_Igatherv(mine, in_round(text.size()), MPI_CHAR, all.data(), counts.data(),
                                starts.data(), MPI_CHAR, 0, comm(), &request));
    wait(request);
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      texts[rank].append(all, static_cast<std::size_t>(starts[rank]), static_cast<std::size_t>(counts[rank]));
    }
  }
  return texts;
}

}  // namespace weightcast
