#include "session/cuda/cuda_pipeline.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nvtx3/nvtx3.hpp>

#include "plan/groups.hpp"
#include "sys/backoff.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kDigestBytes = sizeof(std::uint64_t);

/// The share's buckets cut where the plan's groups begin.
std::vector<std::size_t> share_groups(const Plan& plan, const Share& share) {
  const std::vector<std::uint32_t> starts = concurrent_groups(plan);
  std::vector<std::size_t> groups;
  std::size_t group = 0;
  for (std::size_t k = 0; k < share.buckets.size(); ++k) {
    const std::uint32_t bucket = share.buckets[k].bucket;
    const bool fresh = k == 0 || bucket >= starts[group + 1];
    while (bucket >= starts[group + 1]) ++group;
    if (fresh) groups.push_back(k);
  }
  groups.push_back(share.buckets.size());
  return groups;
}

}  // namespace

CudaPipeline::CudaPipeline(const Plan& plan, const Share& share, std::vector<std::size_t> routes,
                           std::vector<std::byte*> parameters, std::unique_ptr<NcclTransport> transport,
                           Control& control, int blocks)
    : plan_(plan),
      share_(share),
      routes_(std::move(routes)),
      transport_(std::move(transport)),
      control_(control),
      blocks_(blocks > 0 ? blocks : default_blocks()),
      whole_device_(4 * multiprocessors()),
      groups_(share_groups(plan, share)),
      ring_(plan.staging_bytes_per_rank(), "the staging buffers"),
      scales_(static_cast<std::int64_t>(plan.scopes.size() * sizeof(GlobalScale)), "scales"),
      written_results_((static_cast<std::int64_t>(share.checks.size()) + 1) * kDigestBytes, "digests"),
      pack_stream_(CudaStream::Priority::kNormal),
      unpack_stream_(CudaStream::Priority::kNormal),
      local_stream_(CudaStream::Priority::kNormal),
      verify_stream_(CudaStream::Priority::kNormal),
      begun_(CudaEvent::Kind::kOrder),
      unpacked_(CudaEvent::Kind::kOrder),
      joined_(CudaEvent::Kind::kOrder),
      ended_(CudaEvent::Kind::kOrder),
      clock_(share.buckets.size()),
      parameters_(std::move(parameters)) {
  for (const ShareBucket& bucket : share.buckets) {
    // What is packed as codes goes through staging even from here to here.
    const Bucket& planned = plan.buckets[bucket.bucket];
    const auto segments = std::span(plan.segments).subspan(planned.first_segment, planned.segments);
    local_only_.push_back(!plan.travels(planned) &&
                          std::none_of(segments.begin(), segments.end(),
                                       [&](const auto& s) { return plan.wire[s.tensor].codes_travel; }));
  }
  positions_.resize(share.buckets.size());
  in_position_.reserve(share.buckets.size());
  std::vector<Move> moves = share.moves;
  std::vector<ProgramRange> programs;
  std::vector<ProgramRange> checks;
  std::vector<ProgramRange> quants;
  for (const ShareBucket& bucket : share.buckets) {
    programs.push_back({bucket.first_move, bucket.moves});
    checks.push_back({bucket.first_check, bucket.checks});
    quants.push_back({bucket.first_quant, bucket.quants});
  }
  quants_ = CudaQuantPrograms(share.quants, quants, {}, parameters_);
  checks_ = CudaDigestPrograms(share.checks, checks, parameters_);
  programs.push_back(
      {static_cast<std::uint32_t>(moves.size()), static_cast<std::uint32_t>(share.padding.size())});
  moves.insert(moves.end(), share.padding.begin(), share.padding.end());
  unpack_ = CudaMovePrograms(moves, programs, parameters_);
  std::int64_t segments = 0;
  for (const ShareBucket& bucket : share.buckets) {
    if (bucket.root) segments += plan.buckets[bucket.bucket].segments;
  }
  // A quantised segment has two.
  sent_results_ = DeviceBuffer((plan.topology.engine.quantizer ? 2 : 1) * segments * kDigestBytes, "digests");
  host_results_ = PinnedBuffer(sent_results_.bytes() + written_results_.bytes(), "digests");
  wires_.resize(static_cast<std::size_t>(plan.limits.buffers));
  streams_ = {pack_stream_.get(), unpack_stream_.get(), local_stream_.get()};
  for (const CudaStream& lane : transport_->streams()) streams_.push_back(lane.get());
  for (std::int64_t slot = 0; slot < plan.limits.buffers; ++slot) {
    packed_.emplace_back(CudaEvent::Kind::kOrder);
    free_.emplace_back(CudaEvent::Kind::kOrder);
  }
}

CudaPipeline::~CudaPipeline() = default;

int CudaPipeline::default_blocks() {
  constexpr int kShare = 4;
  return std::max(1, multiprocessors() / kShare);
}

void CudaPipeline::prepare(const Source* source) {
  if (source == nullptr) return;
  const ResidentSource* resident = source->resident();
  if (resident == nullptr) {
    if (!feed_) feed_ = std::make_unique<FileFeed>(plan_, share_);
  } else if (resident->number() != local_number_) {
    compile_local(*resident);
  }
}

std::exception_ptr CudaPipeline::run(Source* source, std::span<const GlobalScale> scales,
                                     std::span<std::uint64_t> sent, std::span<std::uint64_t> written,
                                     Progress& progress) {
  const nvtx3::scoped_range range("weightcast update");
  source_ = source;
  sent_ = sent;
  written_ = written;
  roots_done_ = 0;
  agreed_scales_ = scales;
  control_.call_off.begin();
  if (from_host()) feed_->begin(*source->on_host(), sent);
  assign_slots();
  try {
    enqueue_all();
    ended_.record(verify_stream_.get());
    wait_for_the_end(progress);
  } catch (const NcclError&) {
    control_.call_off.announce();
    break_off();
    return std::current_exception();
  } catch (const CalledOff&) {
    // The rank that has called the update off says why.
    break_off();
    return nullptr;
  }
  std::exception_ptr failure = from_host() ? feed_->finish() : nullptr;
  if (!failure) collect_results();
  return failure;
}

void CudaPipeline::poll() {
  transport_->check();
  control_.deadline.poll();
  if (control_.call_off.heard()) throw CalledOff();
}

void CudaPipeline::break_off() {
  broken_ = true;
  transport_->abort();
  if (!from_host()) return;
  feed_->abandon();
  static_cast<void>(feed_->finish());
}

void CudaPipeline::reopen_wire() {
  control_.call_off.begin();
  transport_->reopen();
  broken_ = false;
}

void CudaPipeline::assign_slots() {
  in_position_.clear();
  for (std::size_t k = 0; k < share_.buckets.size(); ++k) {
    positions_[k] = is_local(k) ? -1 : std::ssize(in_position_);
    if (!is_local(k)) in_position_.push_back(k);
  }
}

void CudaPipeline::compile_local(const ResidentSource& source) {
  std::vector<Move> moves;
  std::vector<ProgramRange> programs;
  std::vector<QuantMove> quants;
  std::vector<ProgramRange> quant_programs;
  for (std::size_t k = 0; k < share_.buckets.size(); ++k) {
    const ShareBucket& bucket = share_.buckets[k];
    const auto first_quant = static_cast<std::uint32_t>(quants.size());
    for (const QuantMove& quant : share_.quant_program(bucket)) {
      if (!local_only_[k]) break;
      const Move& place = source.place(quant.segment);
      quants.push_back(quant);
      quants.back().values = {Space::kSource, 0, place.offset, place.pitch};
    }
    quant_programs.push_back({first_quant, static_cast<std::uint32_t>(quants.size()) - first_quant});
    const auto first = static_cast<std::uint32_t>(moves.size());
    for (std::uint32_t i = 0; local_only_[k] && i < bucket.moves; ++i) {
      // The weights themselves stand in for staging.
      const Move& place = source.place(share_.checks[bucket.first_check + i].segment);
      Move move = share_.moves[bucket.first_move + i];
      move.staging = place.offset;
      move.staging_pitch = place.pitch;
      moves.push_back(move);
    }
    programs.push_back({first, static_cast<std::uint32_t>(moves.size()) - first});
  }
  local_ = CudaMovePrograms(moves, programs, parameters_);
  std::byte* const weights = source.data();
  local_quants_ = CudaQuantPrograms(quants, quant_programs, {&weights, 1}, parameters_);
  local_number_ = source.number();
}

void CudaPipeline::enqueue_all() {
  const nvtx3::scoped_range range("enqueue");
  clock_.start(verify_stream_.get());
  const auto clear = [&](const DeviceBuffer& buffer, int value) {
    if (buffer.bytes() == 0) return;
    WEIGHTCAST_CUDA(cudaMemsetAsync(buffer.data(), value, static_cast<std::size_t>(buffer.bytes()),
                                    verify_stream_.get()));
  };
  clear(sent_results_, 0);
  clear(written_results_, 0);
  if (!agreed_scales_.empty()) {
    WEIGHTCAST_CUDA(cudaMemcpyAsync(scales_.data(), agreed_scales_.data(), agreed_scales_.size_bytes(),
                                    cudaMemcpyHostToDevice, verify_stream_.get()));
  }
  begun_.record(verify_stream_.get());
  for (const cudaStream_t stream : streams_) begun_.hold(stream);
  unpack_.unpack(share_.buckets.size(), nullptr, blocks_, unpack_stream_.get());
  for (std::size_t group = 0; group + 1 < groups_.size(); ++group) {
    enqueue_group(groups_[group], groups_[group + 1]);
  }
  if (!tracing_ && !from_host() && !in_position_.empty()) {
    const cudaStream_t last = transport_->streams().front().get();
    for (const CudaStream& lane : transport_->streams().subspan(1)) {
      joined_.record(lane.get());
      joined_.hold(last);
    }
    clock_.end(TraceStage::kTransport, in_position_.front(), last);
  }
  enqueue_results();
}

void CudaPipeline::enqueue_group(std::size_t first, std::size_t last) {
  for (std::size_t k = first; k < last; ++k) {
    if (is_local(k)) {
      enqueue_local(k);
      continue;
    }
    wires_[slot_number(k)] = transport_->next_stream(routes_[share_.buckets[k].bucket]);
    if (share_.buckets[k].root) {
      enqueue_pack(k);
      packed_[slot_number(k)].hold(wire(k));
    } else if (slot_used(k)) {
      slot_free(k).hold(wire(k));
    }
  }
  // Every event between two transfers is a gap between them: without a trace only the whole is timed, except
  // from the host, where most of the whole is reading.
  const bool each = tracing_ || from_host();
  for (std::size_t k = first; k < last; ++k) {
    if (!is_local(k) && (each || positions_[k] == 0)) {
      clock_.begin(TraceStage::kTransport, k, wire(k));
    }
  }
  NcclTransport::Group group(*transport_);
  for (std::size_t k = first; k < last; ++k) {
    if (is_local(k)) continue;
    const std::uint32_t bucket = share_.buckets[k].bucket;
    const std::span<std::byte> run(slot(k), static_cast<std::size_t>(plan_.buckets[bucket].bytes));
    transport_->start(slot_number(k), routes_[bucket], {&run, 1});
  }
  group.start_all();
  for (std::size_t k = first; k < last; ++k) {
    if (is_local(k)) continue;
    if (each) clock_.end(TraceStage::kTransport, k, wire(k));
    if (share_.buckets[k].destination) enqueue_arrival(k);
  }
}

const CudaEvent& CudaPipeline::slot_free(std::size_t k) const {
  // What was sent from there has left, what arrived there has been unpacked.
  const std::size_t before = in_position_[static_cast<std::size_t>(positions_[k]) - free_.size()];
  const bool unpacked = share_.buckets[before].destination;
  return unpacked ? free_[slot_number(k)] : transport_->end(slot_number(k));
}

void CudaPipeline::enqueue_pack(std::size_t k) {
  const cudaStream_t stream = pack_stream_.get();
  const std::uint32_t bucket = share_.buckets[k].bucket;
  if (slot_used(k)) slot_free(k).hold(stream);
  const ResidentSource* resident = source_->resident();
  clock_.begin(TraceStage::kPack, k, stream);
  if (resident == nullptr) {
    // What waits here is the reading; the device goes on with what it has.
    feed_->copy(roots_done_++, slot(k), stream, [&] { poll(); });
  }
  if (resident != nullptr) {
    auto* results = sent_.empty() ? nullptr : reinterpret_cast<std::uint64_t*>(sent_results_.data());
    resident->enqueue_pack(bucket, slot(k), scales(), results, pack_blocks(k), stream);
  }
  clock_.end(TraceStage::kPack, k, stream);
  packed_[slot_number(k)].record(stream);
  if (resident != nullptr) enqueue_source_digests(k);
}

void CudaPipeline::enqueue_source_digests(std::size_t k) {
  if (sent_.empty()) return;
  const cudaStream_t verify = verify_stream_.get();
  const bool lane_is_free = !share_.buckets[k].destination;
  if (lane_is_free) clock_.begin(TraceStage::kVerify, k, verify);
  source_->resident()->enqueue_digests(share_.buckets[k].bucket, scales(),
                                       reinterpret_cast<std::uint64_t*>(sent_results_.data()), !is_local(k),
                                       blocks_, verify);
  if (lane_is_free) clock_.end(TraceStage::kVerify, k, verify);
}

void CudaPipeline::enqueue_arrival(std::size_t k) {
  const cudaStream_t stream = unpack_stream_.get();
  transport_->end(slot_number(k)).hold(stream);
  clock_.begin(TraceStage::kUnpack, k, stream);
  enqueue_unpack(k, slot(k), arrival_blocks(k), stream);
  clock_.end(TraceStage::kUnpack, k, stream);
  free_[slot_number(k)].record(stream);
  enqueue_check(k, stream);
}

void CudaPipeline::enqueue_unpack(std::size_t k, const std::byte* staging, int blocks,
                                  cudaStream_t stream) const {
  unpack_.unpack(k, staging, blocks, stream);
  // An unpack kernel only reads staging.
  quants_.run(k, const_cast<std::byte*>(staging), scales(), nullptr, quantizer_blocks(blocks), stream);
}

void CudaPipeline::enqueue_local(std::size_t k) {
  const cudaStream_t stream = local_stream_.get();
  clock_.begin(TraceStage::kUnpack, k, stream);
  local_.unpack(k, source_->resident()->data(), arrival_blocks(k), stream);
  local_quants_.run(k, nullptr, scales(), nullptr, quantizer_blocks(arrival_blocks(k)), stream);
  clock_.end(TraceStage::kUnpack, k, stream);
  enqueue_source_digests(k);
  enqueue_check(k, stream);
}

void CudaPipeline::enqueue_check(std::size_t k, cudaStream_t writer) {
  if (written_.empty()) return;
  const cudaStream_t verify = verify_stream_.get();
  unpacked_.record(writer);
  unpacked_.hold(verify);
  clock_.begin(TraceStage::kVerify, k, verify);
  checks_.run(k, reinterpret_cast<std::uint64_t*>(written_results_.data()), arrival_blocks(k), verify);
  clock_.end(TraceStage::kVerify, k, verify);
}

void CudaPipeline::enqueue_results() {
  const cudaStream_t stream = verify_stream_.get();
  // Whatever the other streams still do comes before the end.
  for (const cudaStream_t other : streams_) {
    joined_.record(other);
    joined_.hold(stream);
  }
  if (!written_.empty()) {
    auto* dirty =
        reinterpret_cast<unsigned*>(written_results_.data() + written_results_.bytes() - kDigestBytes);
    WEIGHTCAST_CUDA(cudaMemsetAsync(dirty, 0xff, kDigestBytes, stream));
    unpack_.find_not_zero(share_.buckets.size(), dirty, blocks_, stream);
  }
  const auto copy = [&](const DeviceBuffer& from, std::byte* to) {
    if (from.bytes() == 0) return;
    WEIGHTCAST_CUDA(cudaMemcpyAsync(to, from.data(), static_cast<std::size_t>(from.bytes()),
                                    cudaMemcpyDeviceToHost, stream));
  };
  if (!sent_.empty() || !written_.empty()) {
    copy(sent_results_, host_results_.data());
    copy(written_results_, host_results_.data() + sent_results_.bytes());
  }
}

void CudaPipeline::wait_for_the_end(Progress& progress) {
  // The one wait of an update.
  const nvtx3::scoped_range range("wait");
  Backoff backoff;
  std::size_t done = 0;
  while (!ended_.reached()) {
    for (; done < share_.buckets.size() && last_stage(done).reached(); ++done) {
      progress.advance(share_.buckets[done].progress_bytes);
    }
    progress.advance(0);
    poll();
    backoff.pause();
  }
  for (; done < share_.buckets.size(); ++done) {
    progress.advance(share_.buckets[done].progress_bytes);
  }
}

const CudaEvent& CudaPipeline::last_stage(std::size_t k) const {
  return clock_.ended(share_.buckets[k].destination ? TraceStage::kUnpack : TraceStage::kPack, k);
}

void CudaPipeline::collect_results() {
  const auto* sent = reinterpret_cast<const std::uint64_t*>(host_results_.data());
  if (source_ != nullptr && source_->resident() != nullptr && !sent_.empty()) {
    const std::vector<std::uint32_t>& numbers = source_->resident()->digest_numbers();
    // Digests of the parts of a segment add up to that of the whole.
    for (const std::uint32_t number : numbers) sent_[number] = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) sent_[numbers[i]] += sent[i];
  }
  if (written_.empty()) return;
  const std::byte* written = host_results_.data() + sent_results_.bytes();
  std::memcpy(written_.data(), written, written_.size_bytes());
  unsigned dirty = 0;
  std::memcpy(&dirty, written + written_.size_bytes(), sizeof dirty);
  dirty_ = dirty == std::numeric_limits<unsigned>::max()
               ? -1
               : std::int64_t{dirty} - static_cast<std::int64_t>(share_.moves.size());
}

std::int64_t CudaPipeline::first_dirty_padding() {
  return dirty_;
}

void CudaPipeline::enqueue_digests(const ResidentSource* source, int blocks, cudaStream_t stream) const {
  for (std::size_t k = 0; k < share_.buckets.size(); ++k) {
    const ShareBucket& bucket = share_.buckets[k];
    if (bucket.root && source != nullptr) {
      source->enqueue_digests(bucket.bucket, scales(), reinterpret_cast<std::uint64_t*>(sent_results_.data()),
                              true, blocks, stream);
    }
    if (bucket.destination) {
      checks_.run(k, reinterpret_cast<std::uint64_t*>(written_results_.data()), blocks, stream);
    }
  }
}

StageSeconds CudaPipeline::stage_seconds() {
  StageSeconds seconds;
  double transported = 0;
  for (const TraceSlice& slice : clock_.slices()) {
    const double end = slice.start + slice.seconds;
    switch (slice.stage) {
      case TraceStage::kPack:
        if (!from_host()) seconds.pack += slice.seconds;
        break;
      case TraceStage::kTransport:
        // Those that travel at once count once. A receiver's also waits for what the root has yet to send.
        if (source_ != nullptr) seconds.transport += std::max(0.0, end - std::max(slice.start, transported));
        transported = std::max(transported, end);
        break;
      case TraceStage::kUnpack:
        seconds.unpack += slice.seconds;
        break;
      case TraceStage::kVerify:
        seconds.verify += slice.seconds;
        break;
    }
  }
  if (from_host()) seconds.pack = feed_->reading_seconds();
  return seconds;
}

std::vector<TraceSlice> CudaPipeline::slices() {
  std::vector<TraceSlice> slices = clock_.slices();
  for (TraceSlice& slice : slices) {
    slice.bucket = share_.buckets[static_cast<std::size_t>(slice.bucket)].bucket;
  }
  return slices;
}

void CudaPipeline::poison(std::byte value) {
  WEIGHTCAST_CUDA(cudaMemset(ring_.data(), static_cast<int>(value), static_cast<std::size_t>(ring_.bytes())));
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

std::byte* CudaPipeline::buffer(std::size_t number) const {
  return ring_.data() + static_cast<std::int64_t>(number % free_.size()) * plan_.slot_bytes;
}

}  // namespace weightcast
