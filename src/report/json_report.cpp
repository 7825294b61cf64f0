#include "report/json_report.hpp"

#include <nlohmann/json.hpp>

namespace weightcast {

std::string json_report(const nlohmann::ordered_json& report, int indent) {
  return report.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace weightcast
