#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "core/units.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"

/// What the tests of the plan share.
namespace weightcast::plan_cases {

inline naive::Model small_moe() {
  naive::Model model;
  model.moe = true;
  model.hidden = 96;
  model.layers = 2;
  model.heads = 8;
  model.kv_heads = 2;
  model.head_dim = 16;
  model.vocabulary = 1000;
  model.experts = 8;
  model.expert_inner = 64;
  return model;
}

/// Every quantiser takes it with tp=1 and tp=2.
inline naive::Model quantizable(bool moe) {
  naive::Model model;
  model.moe = moe;
  model.hidden = 256;
  model.layers = 2;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 128;
  model.vocabulary = 128;
  model.inner = 256;
  model.experts = 2;
  model.expert_inner = 256;
  model.bias = true;
  return model;
}

inline Topology topology_of(std::int64_t trainers, const char* engine, bool colocate = false) {
  Topology topology;
  topology.engine = parse_engine_layout(engine, "triton");
  topology.colocate = colocate;
  topology.trainers = colocate ? topology.engine.ranks() : trainers;
  return topology;
}

inline Limits capped(std::int64_t bucket_bytes, FanOut fan_out = FanOut::kNeeded) {
  Limits limits;
  limits.bucket_bytes = bucket_bytes;
  limits.fan_out = fan_out;
  return limits;
}

template <typename Each>
void for_each_segment(const Plan& plan, Each each) {
  for (const Bucket& bucket : plan.buckets) {
    for (std::uint32_t i = 0; i < bucket.segments; ++i) each(bucket, plan.segments[bucket.first_segment + i]);
  }
}

/// Segments lie in order, aligned, inside the cap, without gaps larger than the alignment wants.
inline void expect_sound_buckets(const Family& family, const Plan& plan) {
  std::int64_t largest = 0;
  std::size_t segments = 0;
  for (const Bucket& bucket : plan.buckets) {
    EXPECT_GT(bucket.segments, 0u);
    EXPECT_LE(bucket.bytes, plan.limits.bucket_bytes);
    EXPECT_LT(bucket.root, static_cast<std::uint32_t>(plan.topology.trainers));
    EXPECT_LT(bucket.destinations, plan.destinations.size());
    std::int64_t end = 0;
    for (std::uint32_t i = 0; i < bucket.segments; ++i, ++segments) {
      const Segment& segment = plan.segments.at(bucket.first_segment + i);
      EXPECT_EQ(segment.offset, round_up(end, kSegmentAlignment));
      EXPECT_FALSE(segment.box.empty());
      end = segment.offset + segment.box.area() * dtype_bytes(family.catalog()[segment.tensor].dtype);
    }
    EXPECT_EQ(bucket.bytes, end);
    largest = std::max(largest, bucket.bytes);
  }
  EXPECT_EQ(segments, plan.segments.size());
  EXPECT_EQ(plan.slot_bytes, round_up(largest, kSegmentAlignment));
  EXPECT_EQ(plan.staging_bytes_per_rank(), plan.limits.buffers * plan.slot_bytes);
}

}  // namespace weightcast::plan_cases
