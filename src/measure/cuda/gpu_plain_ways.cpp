#include <array>
#include <chrono>
#include <memory>
#include <utility>

#include "measure/gpu_gauges.hpp"
#include "memory/device_buffer.hpp"
#include "sys/backoff.hpp"
#include "sys/cuda.hpp"
#include "sys/mpi.hpp"
#include "sys/nccl.hpp"

namespace weightcast {

namespace {

/// A communicator of all ranks, and what is sent and received over it.
class NcclWays {
 public:
  NcclWays(Control& control, std::vector<std::vector<PlainMessage>> rounds, std::int64_t ring_bytes)
      : control_(control),
        rounds_(std::move(rounds)),
        ring_(ring_bytes, "what is sent and received plainly") {
    ncclUniqueId id{};
    if (control.rank() == 0) id = make_nccl_id();
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(MPI_Ibcast(&id, sizeof id, MPI_BYTE, 0, control.comm(), &request));
    control.agreement.wait(request);
    communicator_.open(id, control.rank(), control.size());
    communicator_.settle([this] { control_.deadline.poll(); });
  }

  double seconds() {
    using Clock = std::chrono::steady_clock;
    control_.agreement.together([] {});
    const auto start = Clock::now();
    for (const std::vector<PlainMessage>& round : rounds_) {
      if (round.empty()) continue;
      NcclGroup group;
      for (const PlainMessage& message : round) {
        std::byte* const data = ring_.data() + message.offset;
        const auto bytes = static_cast<std::size_t>(message.bytes);
        if (message.send) {
          WEIGHTCAST_NCCL(ncclSend(data, bytes, ncclInt8, message.peer, communicator_.get(), stream_.get()));
        } else {
          WEIGHTCAST_NCCL(ncclRecv(data, bytes, ncclInt8, message.peer, communicator_.get(), stream_.get()));
        }
      }
      group.close();
      communicator_.settle([this] { control_.deadline.poll(); });
    }
    ended_.record(stream_.get());
    for (Backoff backoff; !ended_.reached(); backoff.pause()) {
      communicator_.check();
      control_.deadline.poll();
    }
    std::array<double, 1> slowest{std::chrono::duration<double>(Clock::now() - start).count()};
    control_.agreement.maximum(std::span<double>(slowest));
    return slowest[0];
  }

 private:
  Control& control_;
  std::vector<std::vector<PlainMessage>> rounds_;
  DeviceBuffer ring_;
  CudaStream stream_;
  CudaEvent ended_{CudaEvent::Kind::kOrder};
  NcclCommunicator communicator_;
};

}  // namespace

std::function<double()> make_plain_nccl(Control& control, std::vector<std::vector<PlainMessage>> rounds,
                                        std::int64_t ring_bytes) {
  const auto ways = std::make_shared<NcclWays>(control, std::move(rounds), ring_bytes);
  return [ways] { return ways->seconds(); };
}

}  // namespace weightcast
