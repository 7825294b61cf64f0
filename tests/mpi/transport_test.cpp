#include <gtest/gtest.h>

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <optional>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "core/float_bits.hpp"
#include "core/units.hpp"
#include "memory/available.hpp"
#include "memory/host_buffer.hpp"
#include "sys/mpi.hpp"
#include "transport/transport.hpp"
#include "world.hpp"

namespace {

/// What this process asked of MPI: the profiling interface lets a program stand before the library's
/// functions.
struct Calls {
  int sends = 0;
  int broadcasts = 0;
  int communicators = 0;
};

Calls calls;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): MPI's names
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  ++calls.sends;
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}

extern "C" int MPI_Ibcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm,
                          MPI_Request* request) {
  ++calls.broadcasts;
  return PMPI_Ibcast(data, count, type, root, comm, request);
}

extern "C" int MPI_Comm_create_group(MPI_Comm comm, MPI_Group group, int tag, MPI_Comm* created) {
  ++calls.communicators;
  return PMPI_Comm_create_group(comm, group, tag, created);
}
// NOLINTEND(readability-identifier-naming)

namespace weightcast {

namespace {

using mpi_test::on_ranks;

struct Planned {
  std::size_t route = 0;
  std::int64_t bytes = 0;
};

int rank_in(MPI_Comm comm) {
  int rank = 0;
  WEIGHTCAST_MPI(MPI_Comm_rank(comm, &rank));
  return rank;
}

bool receives(const Route& route, int rank) {
  return rank != route.root &&
         std::find(route.destinations.begin(), route.destinations.end(), rank) != route.destinations.end();
}

/// The byte that bucket `bucket` has at `index`.
std::byte pattern(std::size_t bucket, std::size_t index) {
  return static_cast<std::byte>(mix64(bucket * 1'000'003 + index));
}

/// Bucket 0 travels in one run, bucket 1 in two, bucket 2 in three, and so on in turn.
std::size_t runs_of(std::size_t bucket) {
  return 1 + bucket % 3;
}

/// A bucket in its runs, some of them empty when it is short.
std::vector<std::span<std::byte>> cut(std::span<std::byte> bucket, std::size_t number) {
  std::vector<std::span<std::byte>> runs;
  const std::size_t count = runs_of(number);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t begin = bucket.size() * i / count;
    runs.push_back(bucket.subspan(begin, bucket.size() * (i + 1) / count - begin));
  }
  return runs;
}

void finish(Transport& transport, std::size_t slot) {
  while (!transport.finished(slot)) std::this_thread::yield();
}

/// Walks the buckets as a session does: each rank those of its routes, in the order of all, over a ring of
/// slots. Expects what arrives to be what was sent.
void walk(MPI_Comm comm, const std::vector<Route>& routes, const std::vector<Planned>& buckets,
          std::size_t slots) {
  const int rank = rank_in(comm);
  const auto transport = make_mpi_transport(comm, routes, slots);
  EXPECT_EQ(transport->name(), "mpi");
  std::vector<std::vector<std::byte>> ring(slots);
  std::vector<std::optional<std::size_t>> carries(slots);
  const auto settle = [&](std::size_t slot) {
    if (!carries[slot]) return;
    finish(*transport, slot);
    const std::size_t bucket = *carries[slot];
    for (std::size_t i = 0; i < ring[slot].size(); ++i) {
      if (ring[slot][i] == pattern(bucket, i)) continue;
      ADD_FAILURE() << "bucket " << bucket << " byte " << i << " of " << ring[slot].size();
      break;
    }
    carries[slot].reset();
  };
  std::size_t mine = 0;
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    const Route& route = routes[buckets[b].route];
    if (rank != route.root && !receives(route, rank)) continue;
    const std::size_t slot = mine++ % slots;
    settle(slot);
    ring[slot].assign(static_cast<std::size_t>(buckets[b].bytes), std::byte{0});
    if (rank == route.root) {
      for (std::size_t i = 0; i < ring[slot].size(); ++i) ring[slot][i] = pattern(b, i);
    }
    carries[slot] = b;
    transport->start(slot, buckets[b].route, cut(ring[slot], b));
  }
  for (std::size_t i = 0; i < slots; ++i) settle((mine + i) % slots);
}

TEST(MpiTransport, OneReceiverGetsASend) {
  on_ranks(2, [](MPI_Comm comm) {
    calls = {};
    walk(comm, {{0, {1}}}, {{0, 1000}, {0, 1}, {0, 300'000}}, 2);
    // The single byte of the second bucket is in one of its two runs.
    EXPECT_EQ(calls.sends, rank_in(comm) == 0 ? 1 + 1 + 3 : 0);
    EXPECT_EQ(calls.communicators, 0);
    EXPECT_EQ(calls.broadcasts, 0);
  });
}

TEST(MpiTransport, SeveralReceiversGetABroadcastOfTheirOwn) {
  on_ranks(5, [](MPI_Comm comm) {
    calls = {};
    walk(comm, {{0, {1, 2, 4}}, {3, {1, 4}}}, {{0, 1000}, {1, 70'000}, {0, 300'000}, {1, 1}}, 2);
    const int rank = rank_in(comm);
    const bool in_first = rank != 3;
    const bool in_second = rank == 1 || rank == 3 || rank == 4;
    EXPECT_EQ(calls.communicators, (in_first ? 1 : 0) + (in_second ? 1 : 0));
    EXPECT_EQ(calls.broadcasts, (in_first ? 1 + 3 : 0) + (in_second ? 2 + 1 : 0));
    EXPECT_EQ(calls.sends, 0);
  });
}

TEST(MpiTransport, ARootAmongTheDestinationsKeepsWhatItHas) {
  on_ranks(4, [](MPI_Comm comm) {
    // A route to all, one to the root and one other, one to the root alone.
    calls = {};
    const std::vector<Route> routes{{0, {0, 1, 2, 3}}, {1, {1, 2}}, {2, {2}}, {3, {0, 1, 2, 3}}};
    walk(comm, routes, {{0, 5000}, {1, 6000}, {2, 7000}, {3, 8000}, {2, 1}, {0, 90'000}, {1, 5}}, 1);
    EXPECT_EQ(calls.communicators, 2);
    EXPECT_EQ(calls.sends, rank_in(comm) == 1 ? 2 + 1 : 0);
  });
}

TEST(MpiTransport, EightCommunicatorsARankAreFine) {
  on_ranks(3, [](MPI_Comm comm) {
    calls = {};
    const std::vector<Route> routes(8, Route{0, {1, 2}});
    std::vector<Planned> buckets;
    for (std::size_t route = 0; route < routes.size(); ++route) buckets.push_back({route, 10'000});
    walk(comm, routes, buckets, 3);
    EXPECT_EQ(calls.communicators, 8);
    EXPECT_EQ(calls.broadcasts, 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2);
  });
}

TEST(MpiTransport, WhatIsBeyondThatBecomesSends) {
  on_ranks(4, [](MPI_Comm comm) {
    calls = {};
    // All ranks must decide alike: the ninth is sends, also for rank 3, which is in three alone.
    std::vector<Route> routes(9, Route{0, {1, 2}});
    for (Route& route : std::span(routes).first(3)) route.destinations.push_back(3);
    std::vector<Planned> buckets;
    for (std::size_t route = 0; route < routes.size(); ++route) buckets.push_back({route, 10'000});
    walk(comm, routes, buckets, 3);
    const bool in_few = rank_in(comm) == 3;
    EXPECT_EQ(calls.communicators, in_few ? 3 : 8);
    EXPECT_EQ(calls.broadcasts, in_few ? 1 + 2 + 3 : 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2);
    EXPECT_EQ(calls.sends, rank_in(comm) == 0 ? 2 * 3 : 0);
  });
}

TEST(MpiTransport, BroadcastsAreWhereTheySaveMost) {
  on_ranks(4, [](MPI_Comm comm) {
    calls = {};
    // What a broadcast saves are the bytes of all receivers but one: routes 3 and 7 have least, although 7 is
    // the longest of those to two receivers.
    std::vector<Route> routes(10, Route{0, {1, 2, 3}, 1000});
    routes[3].bytes = 900;
    routes[7] = {0, {1, 3}, 1900};
    std::vector<Planned> buckets;
    for (std::size_t route = 0; route < routes.size(); ++route) buckets.push_back({route, 10'000});
    walk(comm, routes, buckets, 2);
    const int rank = rank_in(comm);
    EXPECT_EQ(calls.communicators, 8);
    // Bucket 3 travels in one run to three receivers, bucket 7 in two to two.
    EXPECT_EQ(calls.sends, rank == 0 ? 3 + 2 * 2 : 0);
  });
}

TEST(MpiTransport, ManySmallBucketsArriveInOrder) {
  on_ranks(6, [](MPI_Comm comm) {
    // Equal lengths would hide a mix-up of lengths, unlike ones a mix-up of contents: both.
    const std::vector<Route> routes{{0, {2, 3, 4, 5}}, {1, {2, 3, 4, 5}}, {0, {2}}, {1, {3}},
                                    {0, {4, 5}},       {1, {5}},          {0, {1}}, {1, {0, 2}}};
    for (const std::size_t slots : {1, 3, 7}) {
      std::mt19937_64 random(slots);
      std::vector<Planned> buckets(600);
      for (Planned& bucket : buckets) {
        bucket.route = random() % routes.size();
        bucket.bytes = random() % 2 == 0 ? 512 : 1 + static_cast<std::int64_t>(random() % 20'000);
      }
      walk(comm, routes, buckets, slots);
    }
  });
}

TEST(MpiTransport, ABucketOfNothingIsOverAtOnce) {
  on_ranks(3, [](MPI_Comm comm) { walk(comm, {{0, {1, 2}}, {0, {1}}}, {{0, 0}, {1, 0}, {0, 10}}, 1); });
}

/// Fills or checks large memory a word at a time; every word says where it is.
void put_words(const HostBuffer& buffer) {
  auto* words = reinterpret_cast<std::uint64_t*>(buffer.data());
  for (std::int64_t i = 0; i < buffer.bytes() / 8; ++i)
    words[i] = static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u;
}
bool has_words(const HostBuffer& buffer) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(buffer.data());
  for (std::int64_t i = 0; i < buffer.bytes() / 8; ++i) {
    if (words[i] != static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u) return false;
  }
  return true;
}

/// One large bucket from rank 0 to all others.
void send_large(int ranks, std::int64_t bytes) {
  // Every rank must decide alike; memory for copies inside MPI is reckoned in.
  std::int64_t available = available_node_bytes();
  WEIGHTCAST_MPI(MPI_Bcast(&available, 1, MPI_INT64_T, 0, MPI_COMM_WORLD));
  if (available < std::int64_t{8} << 30) {
    std::cerr << "NOT TESTED: a transfer of " << format_bytes(bytes) << "; 8 GiB of memory are needed, "
              << format_bytes(available) << " are available\n";
    GTEST_SKIP();
  }
  on_ranks(ranks, [&](MPI_Comm comm) {
    const int rank = rank_in(comm);
    Route route{0, {}};
    for (int receiver = 1; receiver < ranks; ++receiver) route.destinations.push_back(receiver);
    const HostBuffer buffer(bytes, "a large transfer");
    if (rank == 0) put_words(buffer);
    const auto transport = make_mpi_transport(comm, {route}, 1);
    const std::span<std::byte> whole = buffer.span();
    transport->start(0, 0, {&whole, 1});
    finish(*transport, 0);
    EXPECT_TRUE(has_words(buffer));
  });
}

TEST(MpiTransport, MoreThanTwoGibibytesInOneBucket) {
  send_large(2, std::int64_t{2200} << 20);
}

TEST(MpiTransport, ABroadcastInSeveralMessages) {
  send_large(3, (std::int64_t{1100} << 20) + 8);
}

}  // namespace

}  // namespace weightcast
