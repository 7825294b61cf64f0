#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "memory/device_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/sending.hpp"
#include "source/source.hpp"

namespace weightcast {

/// A trainer rank's weights in the memory of its GPU, wherever they lie there.
class ResidentSource : public Source {
 public:
  /// `buffers[b]` is the device memory of buffer number b of `held`. `plan` and `catalog` must outlive the
  /// source, and so must the memory. Throws as compile_sending().
  ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
                 std::vector<std::span<std::byte>> buffers);

  const ResidentSource* resident() const final { return this; }
  /// No other source of this process has or will have it, unlike the address; never 0.
  std::uint64_t number() const { return number_; }
  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override;

  /// Puts plan bucket `bucket` into `staging`; `scales` are those of the plan's scopes, in device memory.
  /// Unless `results` is null, what is quantised and what can be read 16 bytes at once have their digests
  /// made on the way, which are added there.
  void enqueue_pack(std::uint32_t bucket, std::byte* staging, const GlobalScale* scales,
                    std::uint64_t* results, int blocks, cudaStream_t stream) const;
  /// Which digests of a bucket are wanted beside those that are made on the way.
  enum class Digests : std::uint8_t {
    kAll,          ///< but those of what packing quantises
    kNotPacked,    ///< those that packing does not make
    kOfQuantized,  ///< those of what is not quantised until it has arrived
  };
  /// Adds digests of what is sent in a bucket to `results`, one for each of sent_digests().
  void enqueue_digests(std::uint32_t bucket, const GlobalScale* scales, std::uint64_t* results,
                       Digests digests, int blocks, cudaStream_t stream) const;
  /// Where segment number `segment` of the plan lies, if its values travel: its pack move, with the offset
  /// from the first buffer on. Throws UsageError naming the tensor when it lies in several pieces.
  Move place(std::uint32_t segment) const;
  /// The same of a segment in any number of pieces.
  std::vector<Move> places(std::uint32_t segment) const;
  /// What is not quantised: the boxes whose digests are the first of sent_digests(), which of them are in
  /// each bucket of the plan, and the one that a move with place() reads; −1: none.
  const std::vector<DigestBox>& boxes() const { return boxes_; }
  ProgramRange boxes_of(std::uint32_t bucket) const { return box_programs_[bucket]; }
  std::int64_t box_of(std::uint32_t segment) const;
  /// Whether something is quantised here, and the moves that do that: Sending::quants, with their ranges by
  /// plan bucket and the digests among `results` that they make. None where nothing is.
  bool packs_codes() const { return packs_codes_; }
  std::span<const QuantMove> code_moves() const { return code_moves_; }
  std::span<const ProgramRange> code_programs() const { return code_programs_; }
  std::uint64_t* code_digests(std::uint64_t* results) const { return results + boxes_.size(); }
  /// What digest result number i is the digest of.
  const std::vector<SentDigest>& sent_digests() const { return sent_digests_; }

  std::span<const std::span<std::byte>> buffers() const { return buffers_; }

 private:
  static std::uint64_t next_number();
  /// The box that each move reads; −1: none.
  std::vector<std::int64_t> boxes_of_moves(const Sending& programs) const;
  Move from_first_buffer(Move move) const;

  const Plan& plan_;
  const Catalog& catalog_;
  std::uint64_t number_ = next_number();
  std::vector<std::span<std::byte>> buffers_;
  CudaMovePrograms moves_;
  CudaDigestedMoves digested_moves_;
  CudaDigestPrograms digests_;
  CudaQuantPrograms quants_;  ///< of all that anybody quantises; what is not quantised here for digests alone
  bool packs_codes_ = false;  ///< something is quantised here
  std::vector<QuantMove> code_moves_;
  std::vector<ProgramRange> code_programs_;
  std::vector<DigestBox> boxes_;
  std::vector<ProgramRange> box_programs_;
  std::vector<SentDigest> sent_digests_;
  std::unordered_map<std::uint32_t, std::vector<Move>> places_;  ///< by segment: a move for each piece
  std::unordered_map<std::uint32_t, std::vector<std::uint32_t>> boxes_of_segment_;
};

/// Such weights in memory of their own, filled with synthetic values.
class SyntheticSource final : public ResidentSource {
 public:
  /// `plan` and `catalog` must outlive the source. Waits until the values are there.
  SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

 private:
  SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version,
                  const OwnWeights& weights, DeviceBuffer memory);

  DeviceBuffer memory_;
};

}  // namespace weightcast
