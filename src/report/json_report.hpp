#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace weightcast {

/// A report as the text of a JSON file. JSON is UTF-8, but a path or a dataset's name may be any bytes: those
/// that are no UTF-8 appear as `\xff`, control characters and what nobody sees as `\u009b`. `indent` as in
/// nlohmann-json; negative: one line.
std::string json_report(const nlohmann::ordered_json& report, int indent = 2);

}  // namespace weightcast
