#include <gtest/gtest.h>

#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sys/mpi.hpp"
#include "world.hpp"

namespace weightcast::mpi_test {

void on_ranks(int ranks, const std::function<void(MPI_Comm)>& body) {
  int rank = 0;
  int size = 0;
  WEIGHTCAST_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  WEIGHTCAST_MPI(MPI_Comm_size(MPI_COMM_WORLD, &size));
  ASSERT_LE(ranks, size) << "declare more ranks for this test";
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_split(MPI_COMM_WORLD, rank < ranks ? 0 : MPI_UNDEFINED, rank, &comm));
  if (comm == MPI_COMM_NULL) return;
  WEIGHTCAST_MPI(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
  body(comm);
  WEIGHTCAST_MPI(MPI_Comm_free(&comm));
}

bool meet(MPI_Comm comm) {
  using namespace std::chrono_literals;
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Ibarrier(comm, &request));
  const auto give_up = std::chrono::steady_clock::now() + 200s;
  for (int done = 0; done == 0;) {
    WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
    if (done != 0) break;
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

namespace {

/// Keeps the ranks in step and makes their failures one: at the end of each test rank 0 reports what failed
/// on the others as failures of its own.
class Gatherer final : public ::testing::EmptyTestEventListener {
 public:
  Gatherer() : comm_(Communicator::duplicate(MPI_COMM_WORLD)) {}

  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    text_ << (result.file_name() != nullptr ? result.file_name() : "unknown file") << ":"
          << result.line_number() << ": " << result.message() << "\n";
  }

  void OnTestEnd(const ::testing::TestInfo& test) override {
    const std::string mine = std::exchange(text_, {}).str();
    if (!meet(comm_.get())) {
      // The others may wait for this rank inside a collective: no way back.
      std::cerr << "rank " << comm_.rank() << " waits in vain at the end of " << test.test_suite_name() << "."
                << test.name() << "; its failures:\n"
                << (mine.empty() ? "none\n" : mine) << std::flush;
      MPI_Abort(comm_.get(), EXIT_FAILURE);
    }
    const int size = static_cast<int>(mine.size());
    std::vector<int> sizes(static_cast<std::size_t>(comm_.size()), 0);
    WEIGHTCAST_MPI(MPI_Gather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, 0, comm_.get()));
    if (comm_.rank() != 0) {
      if (size > 0) WEIGHTCAST_MPI(MPI_Send(mine.data(), size, MPI_CHAR, 0, 0, comm_.get()));
      return;
    }
    for (int rank = 1; rank < comm_.size(); ++rank) {
      const int length = sizes[static_cast<std::size_t>(rank)];
      if (length == 0) continue;
      std::string text(static_cast<std::size_t>(length), ' ');
      WEIGHTCAST_MPI(MPI_Recv(text.data(), length, MPI_CHAR, rank, 0, comm_.get(), MPI_STATUS_IGNORE));
      ADD_FAILURE() << "on rank " << rank << ":\n" << text;
    }
    // Rank 0's own report of the others is no news.
    text_ = {};
  }

 private:
  Communicator comm_;
  std::ostringstream text_;
};

int run_all() {
  int rank = 0;
  WEIGHTCAST_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
  }
  auto gatherer = std::make_unique<Gatherer>();
  Gatherer* const raw = gatherer.get();
  listeners.Append(gatherer.release());
  int mine = RUN_ALL_TESTS();
  // Its communicator ends before MPI does.
  delete listeners.Release(raw);
  int agreed = 0;
  WEIGHTCAST_MPI(MPI_Allreduce(&mine, &agreed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD));
  return agreed;
}

}  // namespace

}  // namespace weightcast::mpi_test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const weightcast::MpiEnvironment mpi;
  return weightcast::mpi_test::run_all();
}
