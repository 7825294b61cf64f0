#include "session/host_pipeline.hpp"

#include <algorithm>
#include <chrono>

#include "sys/backoff.hpp"

namespace weightcast {

namespace {

void clear(std::vector<BegunBucket>& begun) {
  for (BegunBucket& bucket : begun) bucket.drop();
}

/// Leaves no bucket begun.
class EndsEmpty {
 public:
  explicit EndsEmpty(std::vector<BegunBucket>& begun) : begun_(begun) {}
  ~EndsEmpty() { clear(begun_); }
  EndsEmpty(const EndsEmpty&) = delete;
  EndsEmpty& operator=(const EndsEmpty&) = delete;

 private:
  std::vector<BegunBucket>& begun_;
};

}  // namespace

HostPipeline::HostPipeline(const Plan& plan, const RankPlan& rank_plan, std::vector<std::size_t> routes,
                           std::vector<std::byte*> parameters, std::unique_ptr<Transport> transport,
                           Control& control, Rounds rounds, std::unique_ptr<Handover> handover, bool windows)
    : plan_(plan),
      rank_plan_(rank_plan),
      routes_(std::move(routes)),
      parameters_(std::move(parameters)),
      written_parameters_(parameters_.begin(), parameters_.end()),
      transport_(std::move(transport)),
      control_(control),
      rounds_(std::move(rounds)),
      handover_(std::move(handover)),
      windows_(windows),
      executor_(make_host_executor()),
      ring_(plan.staging_bytes_per_rank(), "the staging buffers"),
      slots_(std::vector<bool>(rank_plan.buckets.size(), true),
             static_cast<std::size_t>(plan.limits.buffers)),
      started_(static_cast<std::size_t>(plan.limits.buffers)),
      begun_(static_cast<std::size_t>(plan.limits.buffers)),
      states_(rank_plan.buckets.size(), State::kDone) {
  const auto has = [&](bool RankBucket::*role) {
    return std::any_of(rank_plan.buckets.begin(), rank_plan.buckets.end(),
                       [&](const RankBucket& b) { return b.*role; });
  };
  const auto start = [&](void (HostPipeline::*stage)(const std::stop_token&)) {
    workers_.emplace_back([this, stage](const std::stop_token& stop) { worker(stop, stage); });
  };
  if (has(&RankBucket::root)) start(&HostPipeline::pack_all);
  if (has(&RankBucket::destination)) start(&HostPipeline::unpack_all);
}

HostPipeline::~HostPipeline() = default;

std::exception_ptr HostPipeline::run(Source* source, std::span<const GlobalScale> scales,
                                     std::span<std::uint64_t> sent, std::span<std::uint64_t> written,
                                     Progress& progress) {
  // After an update that failed.
  wait_for_workers();
  require_idle_transport();
  if (handover_) handover_->begin();
  if (windows_) arrived_.resize(plan_.digests());
  executor_->unpack(rank_plan_.padding, nullptr, parameters_);
  {
    const std::scoped_lock lock(mutex_);
    failure_ = nullptr;
    abandoned_ = false;
    source_ = source;
    scales_ = scales;
    sent_ = sent;
    written_ = written;
    seconds_ = {};
    start_ = Clock::now();
    slices_.clear();
    std::fill(states_.begin(), states_.end(), State::kWaiting);
    workers_busy_ = workers_.size();
    ++update_;
  }
  changed_.notify_all();
  try {
    transport_all(progress);
  } catch (...) {
    // The workers must not wait for buckets that nobody moves any more.
    {
      const std::scoped_lock lock(mutex_);
      abandoned_ = true;
    }
    changed_.notify_all();
    throw;
  }
  const std::scoped_lock lock(mutex_);
  return failure_;
}

std::int64_t HostPipeline::first_dirty_padding() {
  return executor_->first_not_zero(rank_plan_.padding, written_parameters_);
}

void HostPipeline::trace() {
  tracing_ = true;
  slices_.reserve(4 * rank_plan_.buckets.size());
}

void HostPipeline::poison(std::byte value) {
  std::ranges::fill(ring_.span(), value);
}

double HostPipeline::note(TraceStage stage, std::size_t k, Clock::time_point start) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (tracing_) {
    const std::scoped_lock lock(slices_mutex_);
    slices_.push_back({stage, rank_plan_.buckets[k].bucket,
                       std::chrono::duration<double>(start - start_).count(), seconds});
  }
  return seconds;
}

void HostPipeline::transport_all(Progress& progress) {
  std::size_t next = 0;   // first bucket that has not been started
  std::size_t first = 0;  // first bucket that has not ended
  Backoff backoff;
  Clock::time_point since = Clock::now();
  bool moving = false;
  while (first < states_.size()) {
    if (handover_) work([&] { handover_->look(); });
    std::unique_lock lock(mutex_);
    bool advanced = false;
    for (; first < states_.size() && states_[first] == State::kDone; ++first) {
      progress.advance(rank_plan_.buckets[first].progress_bytes);
      advanced = true;
    }
    while (next < states_.size() && may_start(next)) {
      states_[next] = State::kMoving;
      lock.unlock();
      start(next++);
      lock.lock();
      advanced = true;
    }
    bool any = false;
    for (std::size_t k = first; k < next; ++k) {
      if (states_[k] != State::kMoving) continue;
      lock.unlock();
      const bool finished = transport_->finished(slots_.slot(k));
      if (finished && tracing_) note(TraceStage::kTransport, k, started_[slots_.slot(k)]);
      lock.lock();
      if (finished) {
        states_[k] = rank_plan_.buckets[k].destination ? State::kArrived : State::kDone;
        changed_.notify_all();
        advanced = true;
      } else {
        // To wait for a trainer that still reads is no transport.
        any = any || rank_plan_.buckets[k].root;
      }
    }
    lock.unlock();
    const auto now = Clock::now();
    if (moving) seconds_.transport += std::chrono::duration<double>(now - since).count();
    since = now;
    moving = any;
    progress.advance(0);
    control_.deadline.poll();
    advanced ? backoff.reset() : backoff.pause();
  }
  wait_for_workers();
  wait_for_loader(progress);
}

bool HostPipeline::may_start(std::size_t k) const {
  if (!slot_free(k) || (rank_plan_.buckets[k].root && states_[k] != State::kPacked)) return false;
  // What has failed only passes.
  return !handover_ || failure_ || handover_->has_room(k);
}

void HostPipeline::start(std::size_t k) {
  if (tracing_) started_[slots_.slot(k)] = Clock::now();
  // Of an update that has failed nothing goes into a window any more.
  const bool in_place = rounds_.none() && (!handover_ || work([&] { handover_->start(k); }));
  transport_->start(slots_.slot(k), routes_[rank_plan_.buckets[k].bucket], runs(k, in_place));
}

void HostPipeline::wait_for_loader(Progress& progress) {
  if (!handover_) return;
  Backoff backoff;
  while (work([&] { handover_->look(); }) && !handover_->is_over()) {
    progress.advance(0);
    control_.deadline.poll();
    backoff.pause();
  }
}

void HostPipeline::wait_for_workers() {
  std::unique_lock lock(mutex_);
  using namespace std::chrono_literals;
  while (!changed_.wait_for(lock, 10ms, [&] { return workers_busy_ == 0; })) {
    lock.unlock();
    control_.deadline.poll();
    lock.lock();
  }
}

void HostPipeline::require_idle_transport() {
  for (std::size_t k = 0; k < states_.size(); ++k) {
    if (states_[k] != State::kMoving || transport_->finished(slots_.slot(k))) continue;
    throw InternalError("an earlier update broke off amid its messages; the ranks need a new session");
  }
}

template <typename Work>
bool HostPipeline::work(Work work) {
  {
    const std::scoped_lock lock(mutex_);
    if (failure_) return false;
  }
  try {
    work();
    return true;
  } catch (...) {
    const std::scoped_lock lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    return false;
  }
}

void HostPipeline::pack_all(const std::stop_token& stop) {
  HostSource& source = *source_->on_host();
  // By staging buffer. They go when the update ends, however it does.
  const EndsEmpty ends(begun_);
  std::size_t begun = 0;  // buckets before this one have been begun
  const auto has_room = [&](std::size_t k) {
    const std::scoped_lock lock(mutex_);
    return slot_free(k);
  };
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    if (!rank_plan_.buckets[k].root) continue;
    if (!wait_until(stop, [&] { return slot_free(k); })) return;
    const bool packed = work([&] {
      const auto start = Clock::now();
      for (begun = std::max(begun, k); begun < rank_plan_.buckets.size() && has_room(begun); ++begun) {
        const RankBucket& bucket = rank_plan_.buckets[begun];
        if (bucket.root) begun_[slots_.slot(begun)] = source.begin(bucket.bucket, slot(begun), sent_);
      }
      begun_[slots_.slot(k)].finish();
      seconds_.pack += note(TraceStage::kPack, k, start);
    });
    // Nothing may write any more to what is sent all the same.
    if (!packed) clear(begun_);
    set_state(k, State::kPacked);
  }
}

void HostPipeline::unpack_all(const std::stop_token& stop) {
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    const RankBucket& bucket = rank_plan_.buckets[k];
    if (!bucket.destination) continue;
    if (!wait_until(stop, [&] { return states_[k] == State::kArrived && round_is_sent(k); })) return;
    work([&] {
      const auto start = Clock::now();
      // In rounds nothing was received where it belongs.
      const auto program = rounds_.none()
                               ? rank_plan_.program(bucket)
                               : std::span(rank_plan_.moves).subspan(bucket.first_move, bucket.moves);
      executor_->unpack(program, slot(k), parameters_);
      executor_->quantize(rank_plan_.quant_program(bucket), {{}, slot(k), parameters_}, scales_, {});
      seconds_.unpack += note(TraceStage::kUnpack, k, start);
    });
    // The slot has been read; what follows looks at the parameters alone.
    set_state(k, State::kDone);
    std::span<std::uint64_t> written;
    if (!written_.empty()) {
      written = written_.subspan(bucket.first_check, bucket.checks);
      work([&] {
        const auto start = Clock::now();
        executor_->digest(rank_plan_.digest_program(bucket), written_parameters_, written);
        seconds_.verify += note(TraceStage::kVerify, k, start);
      });
    }
    if (handover_) work([&] { handover_->arrived(k, written, expected_of(bucket)); });
  }
}

std::span<const std::uint64_t> HostPipeline::expected_of(const RankBucket& bucket) const {
  return bucket.root ? std::span<const std::uint64_t>(sent_) : arrived_;
}

template <typename Ready>
bool HostPipeline::wait_until(const std::stop_token& stop, Ready ready) {
  std::unique_lock lock(mutex_);
  return changed_.wait(lock, stop, [&] { return ready() || abandoned_; }) && !abandoned_;
}

void HostPipeline::set_state(std::size_t k, State state) {
  {
    const std::scoped_lock lock(mutex_);
    states_[k] = state;
  }
  changed_.notify_all();
}

void HostPipeline::worker(const std::stop_token& stop, void (HostPipeline::*stage)(const std::stop_token&)) {
  for (std::uint64_t done = 0;;) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return update_ > done; })) return;
      done = update_;
    }
    (this->*stage)(stop);
    const std::scoped_lock lock(mutex_);
    --workers_busy_;
    changed_.notify_all();
  }
}

bool HostPipeline::slot_free(std::size_t k) const {
  const std::size_t before = slots_.before(k);
  return before == StagingSlots::kNone || states_[before] == State::kDone;
}

std::span<const std::span<std::byte>> HostPipeline::runs(std::size_t k, bool in_place) {
  const RankBucket& bucket = rank_plan_.buckets[k];
  runs_.clear();
  for (const Message& message : rank_plan_.messages_of(bucket)) {
    std::byte* data = slot(k) + message.staging;
    if (message.move != Message::kNone && in_place) {
      const Move& move = rank_plan_.moves[message.move];
      data = parameters_[move.buffer] + move.offset;
    } else if (bucket.root && message.segment != Message::kNone) {
      if (std::byte* held = source_->on_host()->in_place(message.segment)) data = held;
    }
    runs_.emplace_back(data, static_cast<std::size_t>(message.bytes));
  }
  if (windows_ && !sent_.empty()) {
    const Bucket& planned = plan_.buckets[bucket.bucket];
    const std::span<std::uint64_t> digests = bucket.root ? sent_ : std::span(arrived_);
    for (std::size_t plane = 0; plane < digests.size(); plane += plan_.segments.size()) {
      const auto of_bucket = digests.subspan(plane + planned.first_segment, planned.segments);
      runs_.push_back(std::as_writable_bytes(of_bucket));
    }
  }
  return runs_;
}

bool HostPipeline::round_is_sent(std::size_t k) const {
  if (rounds_.none()) return true;
  const auto [first, last] = rounds_.of(k);
  for (std::size_t other = first; other < last; ++other) {
    if (!rank_plan_.buckets[other].root) continue;
    if (states_[other] != State::kArrived && states_[other] != State::kDone) return false;
  }
  return true;
}

std::byte* HostPipeline::slot(std::size_t k) const {
  return ring_.data() + static_cast<std::int64_t>(slots_.slot(k)) * plan_.slot_bytes;
}

}  // namespace weightcast
