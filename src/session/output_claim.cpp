#include "session/output_claim.hpp"

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

void OutputClaim::clear(const std::set<std::string>& elsewhere) const {
  if (lock_.held()) left_overs_.clear_unfinished(elsewhere);
}

void OutputClaim::replaced() const {
  if (lock_.held()) left_overs_.clear_old();
}

}  // namespace weightcast
