#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "control/control.hpp"
#include "control_world.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using mpi_test::under_control;
using Clock = std::chrono::steady_clock;

constexpr int kRanks = 4;

/// What `together` does with that action: the failure that all agreed on, and what this rank printed.
struct Agreed {
  bool failed = false;
  ExitCode code = ExitCode::kDone;
  std::string line;
  std::string printed;
};

Agreed run_together(Control& control, const std::function<void()>& action) {
  Agreed agreed;
  ::testing::internal::CaptureStderr();
  try {
    control.agreement.together(action);
  } catch (const AgreedFailure& failure) {
    agreed = {true, failure.code(), failure.what(), ""};
  }
  agreed.printed = ::testing::internal::GetCapturedStderr();
  return agreed;
}

TEST(Together, GoesOnWhenNobodyFails) {
  under_control(kRanks, [](Control& control) {
    int runs = 0;
    for (int i = 0; i < 100; ++i) control.agreement.together([&] { ++runs; });
    EXPECT_EQ(runs, 100);
  });
}

TEST(Together, TheLowestFailingRankSpeaksForAll) {
  under_control(kRanks, [](Control& control) {
    const Agreed agreed = run_together(control, [&] {
      if (control.rank() == 3) throw VerifyError("tensor c differs");
      if (control.rank() == 2) throw IoError("disk b is full");
    });
    EXPECT_TRUE(agreed.failed);
    EXPECT_EQ(agreed.code, ExitCode::kInputOutput);
    EXPECT_EQ(agreed.line, "rank 2 (" + control.agreement.broadcast(control.host(), 2) + "): disk b is full");
    EXPECT_EQ(agreed.printed, control.rank() == 2 ? "weightcast: error: " + agreed.line + "\n" : "");
    // The ranks are still in step.
    EXPECT_FALSE(run_together(control, [] {}).failed);
  });
}

TEST(Together, EachRankAloneIsHeardByAll) {
  under_control(kRanks, [](Control& control) {
    for (int failing = 0; failing < kRanks; ++failing) {
      const Agreed agreed = run_together(control, [&] {
        if (control.rank() == failing) throw InternalError("rank " + std::to_string(failing) + " is wrong");
      });
      EXPECT_EQ(agreed.code, ExitCode::kInternal);
      EXPECT_NE(agreed.line.find("rank " + std::to_string(failing) + " is wrong"), std::string::npos);
      EXPECT_EQ(agreed.printed.empty(), control.rank() != failing);
    }
  });
}

TEST(Together, TheSameMistakeEverywhereIsOneLineWithoutARank) {
  under_control(kRanks, [](Control& control) {
    const Agreed usage = run_together(control, [] { throw UsageError("--bucket-size 1: too small"); });
    EXPECT_EQ(usage.code, ExitCode::kUsage);
    EXPECT_EQ(usage.line, "--bucket-size 1: too small");
    EXPECT_EQ(usage.printed, control.rank() == 0 ? "weightcast: error: --bucket-size 1: too small\n" : "");
    const Agreed input = run_together(control, [] { throw InputError("x.h5: tensor t is missing"); });
    EXPECT_EQ(input.code, ExitCode::kBadInput);
    EXPECT_EQ(input.line, "x.h5: tensor t is missing");
  });
}

TEST(Together, LinesOfSeveralLinesBecomeOne) {
  under_control(kRanks, [](Control& control) {
    const Agreed agreed = run_together(control, [&] {
      if (control.rank() == 1) throw InputError("a\nb");
    });
    const auto newlines = std::count(agreed.printed.begin(), agreed.printed.end(), '\n');
    EXPECT_EQ(newlines, control.rank() == 1 ? 1 : 0);
  });
}

TEST(Together, OutOfMemoryIsTheSystemsRefusal) {
  under_control(kRanks, [](Control& control) {
    control.deadline.begin_phase("opening");
    const Agreed agreed = run_together(control, [&] {
      if (control.rank() == 1) throw std::bad_alloc();
    });
    EXPECT_EQ(agreed.code, ExitCode::kInputOutput);
    EXPECT_NE(agreed.line.find("opening"), std::string::npos) << agreed.line;
    EXPECT_NE(agreed.line.find("memory"), std::string::npos) << agreed.line;
  });
}

/// Polls until another rank has called the update off, or for as long as a call may take.
bool hears(CallOff& call_off) {
  const auto give_up = Clock::now() + 2s;
  while (Clock::now() < give_up) {
    if (call_off.heard()) return true;
  }
  return false;
}

TEST(CallOff, IsHeardByAllOthersAndOverWithTheUpdate) {
  under_control(kRanks, [](Control& control) {
    CallOff& call_off = control.call_off;
    for (int update = 0; update < 2 * kRanks; ++update) {
      SCOPED_TRACE(update);
      call_off.begin();
      // Now and then two ranks at once.
      const int first = update % kRanks;
      const int second = update < kRanks ? first : (first + 1) % kRanks;
      const bool calls = control.rank() == first || control.rank() == second;
      if (calls) call_off.announce();
      const bool others_call = !calls || first != second;
      EXPECT_TRUE(!others_call || hears(call_off));
      control.agreement.together([] {});
    }
    // The last words may still be on their way.
    call_off.begin();
    for (int look = 0; look < 1000; ++look) EXPECT_FALSE(call_off.heard());
  });
}

TEST(Deadline, EndsTheWaitForARankThatDoesNotCome) {
  under_control(
      2,
      [](Control& control) {
        control.deadline.begin_phase("update to version 7");
        constexpr int kLate = 5;
        constexpr int kGo = 6;
        if (control.rank() == 1) {
          // Sends only when rank 0 has given up, so that nothing is left open.
          int go = 0;
          WEIGHTCAST_MPI(MPI_Recv(&go, 1, MPI_INT, 0, kGo, control.comm(), MPI_STATUS_IGNORE));
          WEIGHTCAST_MPI(MPI_Send(&go, 1, MPI_INT, 0, kLate, control.comm()));
          return;
        }
        int value = 0;
        MPI_Request request = MPI_REQUEST_NULL;
        WEIGHTCAST_MPI(MPI_Irecv(&value, 1, MPI_INT, 1, kLate, control.comm(), &request));
        const auto start = Clock::now();
        try {
          // Not Agreement::wait, which ends the job.
          for (int done = 0; done == 0; control.deadline.poll()) {
            WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
          }
          ADD_FAILURE() << "nothing was sent";
        } catch (const TimeoutError& error) {
          EXPECT_EQ(error.code(), ExitCode::kTimeout);
          EXPECT_NE(std::string(error.what()).find("update to version 7"), std::string::npos) << error.what();
          EXPECT_NE(std::string(error.what()).find("1 s"), std::string::npos) << error.what();
        }
        EXPECT_GE(Clock::now() - start, 900ms);
        EXPECT_LT(Clock::now() - start, 10s);
        const int go = 42;
        WEIGHTCAST_MPI(MPI_Send(&go, 1, MPI_INT, 1, kGo, control.comm()));
        WEIGHTCAST_MPI(MPI_Wait(&request, MPI_STATUS_IGNORE));
        EXPECT_EQ(value, go);
      },
      1s);
}

TEST(Deadline, CountsFromTheBeginningOfThePhase) {
  under_control(
      1,
      [](Control& control) {
        for (int phase = 0; phase < 3; ++phase) {
          const auto start = Clock::now();
          control.deadline.begin_phase("phase");
          std::this_thread::sleep_for(600ms);
          // On a busy machine a sleep may last long.
          if (Clock::now() - start < 950ms) {
            EXPECT_NO_THROW(control.deadline.poll());
          }
        }
        std::this_thread::sleep_for(600ms);
        EXPECT_THROW(control.deadline.poll(), TimeoutError);
      },
      1s);
}

/// How many elements a message may have, from all at once to as few as there are ranks.
class Exchange : public ::testing::TestWithParam<std::size_t> {};

TEST_P(Exchange, SumsMaximaBroadcastsAndGathers) {
  const auto exchange = [](Control& control) {
    const int rank = control.rank();
    std::vector<std::uint64_t> sums(1000, 0);
    for (std::size_t i = 0; i < sums.size(); ++i)
      sums[i] = 0x8000000000000000ull + i * static_cast<unsigned>(rank);
    control.agreement.sum(sums);
    for (std::size_t i = 0; i < sums.size(); ++i) EXPECT_EQ(sums[i], i * (0 + 1 + 2 + 3));

    std::array<double, 2> seconds{0.5 * rank, -1.0 * rank};
    control.agreement.maximum(std::span<double>(seconds));
    EXPECT_EQ(seconds[0], 1.5);
    EXPECT_EQ(seconds[1], 0);
    std::array<std::int64_t, 2> hashes{rank - 10, -rank};
    control.agreement.maximum(std::span<std::int64_t>(hashes));
    EXPECT_EQ(hashes[0], -7);
    EXPECT_EQ(hashes[1], 0);

    EXPECT_EQ(control.agreement.broadcast(rank == 0 ? "from zero" : "other"), "from zero");
    EXPECT_EQ(control.agreement.broadcast(rank == 2 ? "from two" : "", 2), "from two");
    EXPECT_EQ(control.agreement.broadcast(""), "");
    std::vector<std::byte> expected(5000);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<std::byte>(i % 251);
    EXPECT_EQ(control.agreement.broadcast(rank == 0 ? expected : std::vector<std::byte>(3)), expected);

    const std::vector<std::string> texts =
        control.agreement.gather(std::string(static_cast<std::size_t>(rank), 'x'));
    EXPECT_EQ(texts,
              rank == 0 ? (std::vector<std::string>{"", "x", "xx", "xxx"}) : std::vector<std::string>{});
    // Of the ranks with the shortest and the longest text each comes first once.
    for (const int longest : {0, 2}) {
      const std::string mine(rank == longest ? 1001 : 3, static_cast<char>('a' + rank));
      const std::vector<std::string> all = control.agreement.gather(mine);
      ASSERT_EQ(all.size(), rank == 0 ? kRanks : 0);
      for (std::size_t from = 0; from < all.size(); ++from) {
        EXPECT_EQ(all[from], std::string(static_cast<int>(from) == longest ? 1001 : 3,
                                         static_cast<char>('a' + static_cast<int>(from))));
      }
    }
  };
  under_control(kRanks, exchange, 60s, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Pieces, Exchange, ::testing::Values(Agreement::kMostElements, 1000, 7, kRanks));

TEST(Together, LinesAreFitForATerminal) {
  under_control(kRanks, [](Control& control) {
    const Agreed agreed = run_together(control, [&] {
      if (control.rank() == 1) throw InputError("t\x1b[2J\r\nweightcast: error: forged");
    });
    EXPECT_EQ(agreed.line, R"(t\x1b[2J\r\nweightcast: error: forged)");
  });
}

TEST(Together, WhatLibrariesThrowIsAgreedOnToo) {
  under_control(kRanks, [](Control& control) {
    control.deadline.begin_phase("opening");
    const Agreed agreed = run_together(control, [&] {
      if (control.rank() == 2) {
        throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
      }
    });
    EXPECT_EQ(agreed.code, ExitCode::kInputOutput);
    EXPECT_NE(agreed.line.find("opening: the system gives no more threads"), std::string::npos)
        << agreed.line;
  });
}

}  // namespace

}  // namespace weightcast
