// Behind gpu_gauges.hpp in a build without CUDA: there is never a GPU, so nobody asks for more.

#include "core/error.hpp"
#include "measure/gpu_gauges.hpp"

namespace weightcast {

namespace {

[[noreturn]] void refuse() {
  throw InternalError("this program was built without a GPU path");
}

}  // namespace

std::unique_ptr<GpuGauges> make_gpu_gauges(Pipeline& /*pipeline*/, const RankPlan& /*rank_plan*/,
                                           Memory& /*parameters*/, Source* /*source*/, bool /*own_wire*/) {
  refuse();
}
std::unique_ptr<Unpacking> make_gpu_unpacking(const RankPlan& /*rank_plan*/, UnpackBuffers /*buffers*/,
                                              const std::vector<GlobalScale>& /*scales*/,
                                              std::vector<IndexedMatrix> /*matrices*/) {
  refuse();
}
std::function<double()> make_plain_nccl(Control& /*control*/,
                                        std::vector<std::vector<PlainMessage>> /*rounds*/,
                                        std::int64_t /*ring_bytes*/) {
  refuse();
}

}  // namespace weightcast
