#include "session/cuda/direct_stage.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "session/direct_programs.hpp"

namespace weightcast {

DirectStage::DirectStage(const Plan& plan, const RankPlan& rank_plan, const Family& family,
                         const Schedule& schedule, const UpdateMemory& memory,
                         std::unique_ptr<PeerMemory> peers, std::vector<std::byte*> parameters,
                         StageClock& clock, const ThreadBlocks& blocks)
    : plan_(plan),
      rank_plan_(rank_plan),
      family_(family),
      schedule_(schedule),
      memory_(memory),
      peers_(std::move(peers)),
      own_parameters_(std::move(parameters)),
      clock_(clock),
      thread_blocks_(blocks) {
  open_lanes();
}

void DirectStage::open_lanes() {
  // What goes to other ranks is written at the same time: each of them gets its share of the link all along.
  std::map<std::uint32_t, std::size_t> sets;
  std::vector<std::size_t> mine;
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    if (!schedule_.direct(k) || !rank_plan_.buckets[k].root) continue;
    mine.push_back(k);
    sets.try_emplace(plan_.buckets[rank_plan_.buckets[k].bucket].destinations, sets.size());
  }
  lane_of_.resize(rank_plan_.buckets.size(), 0);
  if (mine.empty()) return;
  constexpr std::size_t kLeast = 2;
  constexpr std::size_t kMost = 8;
  for (std::size_t lane = 0; lane < std::clamp(sets.size(), kLeast, kMost); ++lane) {
    lanes_.emplace_back(CudaStream::Priority::kNormal);
  }
  for (std::size_t i = 0; i < mine.size(); ++i) {
    const std::uint32_t set = plan_.buckets[rank_plan_.buckets[mine[i]].bucket].destinations;
    lane_of_[mine[i]] = (sets.size() == 1 ? i : sets.at(set)) % lanes_.size();
  }
  unpublished_.reserve(mine.size());
}

void DirectStage::prepare(const ResidentSource& source) {
  if (!writes() || source.number() == source_) return;
  // The root itself is its own destination where it has its part of a bucket.
  std::map<std::int64_t, std::pair<RankPlan, std::uint32_t>> others;
  std::vector<std::byte*> buffers;
  std::vector<DirectDestination> destinations;
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    const RankBucket& bucket = rank_plan_.buckets[k];
    if (!schedule_.direct(k) || !bucket.root) continue;
    for (const std::int64_t rank : plan_.destination_ranks(plan_.buckets[bucket.bucket].destinations)) {
      if (others.contains(rank)) continue;
      const auto first = static_cast<std::uint32_t>(buffers.size());
      const bool own = !peers_->reaches(static_cast<int>(rank));
      others.emplace(rank, std::pair(own ? rank_plan_ : make_rank_plan(plan_, family_, rank), first));
      const std::vector<std::byte*>& parameters =
          own ? own_parameters_ : peers_->parameters(static_cast<int>(rank));
      buffers.insert(buffers.end(), parameters.begin(), parameters.end());
    }
  }
  for (const auto& [rank, of] : others) destinations.push_back({&of.first, of.second});
  DirectPrograms programs = compile_direct(plan_, family_.catalog(), rank_plan_, schedule_, destinations,
                                           {[&](std::uint32_t segment) { return source.places(segment); },
                                            source.code_moves(), source.code_programs()});
  std::vector<std::byte*> weights;
  for (const std::span<std::byte> buffer : source.buffers()) weights.push_back(buffer.data());
  moves_ = CudaMovePrograms(programs.moves, programs.move_programs, buffers);
  codes_ = CudaQuantPrograms(programs.codes, programs.code_programs, weights, buffers);
  quants_ = CudaQuantPrograms(programs.quants, programs.quant_programs, weights, buffers);
  weights_ = &source;
  source_ = source.number();
}

void DirectStage::begin(bool verifies) {
  ++update_;
  unpublished_.clear();
  if (writes()) blocks_ = thread_blocks_.of_direct(lanes_.size(), verifies || !own_parameters_.empty());
}

cudaStream_t DirectStage::enqueue(std::size_t k, std::uint64_t* digests) {
  const cudaStream_t stream = lanes_[lane_of_[k]].get();
  clock_.begin(TraceStage::kTransport, k, stream);
  moves_.unpack(k, weights_->buffers().front().data(), blocks_, stream);
  codes_.run(k, nullptr, memory_.scales(), digests == nullptr ? nullptr : weights_->code_digests(digests),
             quantizer_blocks(blocks_), stream);
  quants_.run(k, nullptr, memory_.scales(), nullptr, quantizer_blocks(blocks_), stream);
  clock_.end(TraceStage::kTransport, k, stream);
  unpublished_.push_back(k);
  return stream;
}

void DirectStage::publish() {
  std::erase_if(unpublished_, [&](std::size_t k) {
    if (!clock_.ended(TraceStage::kTransport, k).reached()) return false;
    peers_->words()[rank_plan_.buckets[k].bucket].store(update_, std::memory_order_release);
    return true;
  });
}

bool DirectStage::arrived(std::size_t k) const {
  return peers_->words()[rank_plan_.buckets[k].bucket].load(std::memory_order_acquire) == update_;
}

}  // namespace weightcast
