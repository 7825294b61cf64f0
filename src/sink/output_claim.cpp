#include "sink/output_claim.hpp"

#include <utility>

#include "report/log.hpp"

namespace weightcast {

OutputClaim::OutputClaim(std::string lock_path, const std::string& option, const std::string& command,
                         LeftOvers left_overs)
    : lock_(std::move(lock_path), option, command), left_overs_(std::move(left_overs)) {
  if (!lock_.note().empty()) log_note(lock_.note());
}

std::set<std::string> OutputClaim::unfinished() const {
  return lock_.held() ? left_overs_.unfinished() : std::set<std::string>();
}

void OutputClaim::put_back(const std::set<std::string>& unfinished) const {
  if (!lock_.held()) return;
  left_overs_.put_back(unfinished);
  if (const std::string note = left_overs_.strangers(); !note.empty()) log_note(note);
}

void OutputClaim::remove_unfinished() const {
  if (lock_.held()) left_overs_.remove_unfinished();
}

void OutputClaim::clear() const {
  put_back(unfinished());
  remove_unfinished();
}

void OutputClaim::replaced() const {
  if (lock_.held()) left_overs_.clear_old();
}

}  // namespace weightcast
