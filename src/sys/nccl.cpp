#include "sys/nccl.hpp"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "sys/backoff.hpp"

namespace weightcast {

void check_nccl(ncclResult_t status, const char* call, std::source_location where) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  const std::string_view detail = ncclGetLastError(nullptr);
  const std::string text =
      fmt::format("{}: {} ({}); NCCL_DEBUG=WARN says more", call, ncclGetErrorString(status), detail);
  if (detail.find("out of memory") != std::string_view::npos) throw IoError(text);
  throw NcclError(text, where);
}

std::string nccl_version() {
  int version = 0;
  WEIGHTCAST_NCCL(ncclGetVersion(&version));
  return fmt::format("NCCL {}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

ncclUniqueId make_nccl_id() {
  ncclUniqueId id{};
  WEIGHTCAST_NCCL(ncclGetUniqueId(&id));
  return id;
}

NcclGroup::NcclGroup() {
  WEIGHTCAST_NCCL(ncclGroupStart());
}

NcclGroup::~NcclGroup() {
  if (open_) ncclGroupEnd();
}

void NcclGroup::close() {
  open_ = false;
  WEIGHTCAST_NCCL(ncclGroupEnd());
}

void NcclCommunicator::open(const ncclUniqueId& id, int rank, int size) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  WEIGHTCAST_NCCL(ncclCommInitRankConfig(&comm_, size, id, rank, &config));
}

NcclCommunicator::~NcclCommunicator() {
  // Nothing is under way when an owner goes in good order; otherwise waiting for others would be for ever.
  abort();
}

void NcclCommunicator::abort() {
  if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
}

void NcclCommunicator::settle(const std::function<void()>& poll) const {
  Backoff backoff;
  while (state() == ncclInProgress) {
    poll();
    backoff.pause();
  }
}

void NcclCommunicator::check() const {
  static_cast<void>(state());
}

ncclResult_t NcclCommunicator::state() const {
  ncclResult_t state = ncclSuccess;
  WEIGHTCAST_NCCL(ncclCommGetAsyncError(comm_, &state));
  check_nccl(state, "NCCL, asynchronously");
  return state;
}

}  // namespace weightcast
