#pragma once

#include <nccl.h>

#include <functional>
#include <source_location>
#include <string>

#include "core/error.hpp"

namespace weightcast {

/// What NCCL says when a communicator or what it stands on has failed: it is of no use any more, and only
/// aborting it ends what the device still works on for it.
class NcclError : public InternalError {
 public:
  using InternalError::InternalError;
};

/// Throws NcclError (IoError where memory ran out) with NCCL's own text unless `status` is ncclSuccess or
/// ncclInProgress.
void check_nccl(ncclResult_t status, const char* call,
                std::source_location where = std::source_location::current());

// A macro, because the text of the call belongs into the message.
#define WEIGHTCAST_NCCL(call) \
  ::weightcast::check_nccl((call), #call)  // NOLINT(cppcoreguidelines-macro-usage)

/// `NCCL 2.28.3`
std::string nccl_version();

/// A new identity for a communicator, to be given to all its members.
ncclUniqueId make_nccl_id();

/// Calls of NCCL between its making and `close` travel at once. Gone without that, because something threw,
/// it is closed all the same: a group that stays open would swallow whatever is called later.
class NcclGroup {
 public:
  NcclGroup();
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  void close();

 private:
  bool open_ = true;
};

/// Owns a communicator, in its place for good because NCCL knows its address while it is being opened, whose
/// calls never block: what is under way is polled for, with `poll` between looks, which may throw to give up.
/// Its members call the same things in the same order.
class NcclCommunicator {
 public:
  NcclCommunicator() = default;
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Begins to open it: member `rank` of `size`, on the current device; `settle` sees it through.
  void open(const ncclUniqueId& id, int rank, int size);

  /// Ends whatever is under way, on this rank; it can then be opened again. May wait for the device, and so
  /// for other communicators whose members wait for one another: those are to be aborted at the same time, by
  /// other threads.
  void abort();

  ncclComm_t get() const { return comm_; }
  explicit operator bool() const { return comm_ != nullptr; }

  /// Polls until the last call has been handed to the device.
  void settle(const std::function<void()>& poll) const;

  /// Throws NcclError when something went wrong since the last look.
  void check() const;

 private:
  /// ncclSuccess or ncclInProgress; throws otherwise.
  ncclResult_t state() const;

  ncclComm_t comm_ = nullptr;
};

}  // namespace weightcast
