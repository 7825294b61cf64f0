#include "session/cuda/stage_clock.hpp"

namespace weightcast {

StageClock::StageClock(std::size_t buckets) {
  for (Lane& lane : lanes_) lane.resize(buckets);
}

void StageClock::start(cudaStream_t stream) {
  start_.record(stream);
  for (Lane& lane : lanes_) {
    for (Pair& pair : lane) pair.noted = false;
  }
}

void StageClock::begin(TraceStage stage, std::size_t bucket, cudaStream_t stream) {
  pair(stage, bucket).begin.record(stream);
}

void StageClock::end(TraceStage stage, std::size_t bucket, cudaStream_t stream) {
  Pair& noted = pair(stage, bucket);
  noted.end.record(stream);
  noted.noted = true;
}

const CudaEvent& StageClock::ended(TraceStage stage, std::size_t bucket) const {
  return lanes_.at(static_cast<std::size_t>(stage)).at(bucket).end;
}

std::vector<TraceSlice> StageClock::slices() const {
  std::vector<TraceSlice> slices;
  for (std::size_t stage = 0; stage < lanes_.size(); ++stage) {
    const Lane& lane = lanes_.at(stage);
    for (std::size_t bucket = 0; bucket < lane.size(); ++bucket) {
      const Pair& pair = lane[bucket];
      if (!pair.noted) continue;
      slices.push_back({static_cast<TraceStage>(stage), static_cast<std::int64_t>(bucket),
                        pair.begin.seconds_since(start_), pair.end.seconds_since(pair.begin)});
    }
  }
  return slices;
}

}  // namespace weightcast
