#include "launch/serve/message.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/json_text.hpp"
#include "report/json_report.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr int kMessageFormat = 1;

/// The object of a line. Throws InputError.
json object_of(const std::string& line, const char* origin, std::size_t most_bytes) {
  constexpr std::size_t kMostDepth = 2;
  constexpr std::size_t kMostValues = 32;
  json object = parse_json(
      line, origin, {.bytes = most_bytes, .depth = kMostDepth, .values = kMostValues, .unique_names = true});
  const auto format = object.find("weightcast");
  if (format == object.end() || *format != kMessageFormat) {
    throw InputError(fmt::format("{}: 'weightcast' is not {}; use one version of the program on both sides",
                                 origin, kMessageFormat));
  }
  return object;
}

[[noreturn]] void refuse(const char* origin, const char* name, const char* expected) {
  throw InputError(fmt::format("{}: '{}' is not {}; use one version of the program on both sides", origin,
                               name, expected));
}

/// A text, empty where there is none.
std::string text(const json& object, const char* origin, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return {};
  if (!found->is_string()) refuse(origin, name, "a text");
  return found->get<std::string>();
}

/// `otherwise` where it is not said.
bool truth(const json& object, const char* origin, const char* name, bool otherwise) {
  const auto found = object.find(name);
  if (found == object.end()) return otherwise;
  if (!found->is_boolean()) refuse(origin, name, "true or false");
  return found->get<bool>();
}

/// A number of a version, nothing where there is none.
std::optional<std::int64_t> version_in(const json& object, const char* origin) {
  const auto found = object.find("version");
  if (found == object.end() || found->is_null()) return std::nullopt;
  const bool whole = found->is_number_unsigned() && found->get<std::uint64_t>() <= INT64_MAX;
  if (!whole) refuse(origin, "version", "a whole number of at least 0");
  return found->get<std::int64_t>();
}

/// Texts of an answer have a share each of its line, in which a byte may take six.
std::string cut(const std::string& text) {
  return text.substr(0, kMostAnswerBytes / 24);
}

}  // namespace

std::string line_of(const UpdateRequest& request) {
  nlohmann::ordered_json object{
      {"weightcast", kMessageFormat}, {"request", "update"}, {"version", nullptr}, {"queue", request.queue}};
  if (request.version) object["version"] = *request.version;
  return json_report(object, -1);
}

std::string line_of(const UpdateAnswer& answer) {
  nlohmann::ordered_json object{{"weightcast", kMessageFormat}, {"code", static_cast<int>(answer.code)},
                                {"version", nullptr},           {"was_there", answer.was_there},
                                {"report", cut(answer.report)}, {"note", cut(answer.note)},
                                {"error", cut(answer.error)}};
  if (answer.version) object["version"] = *answer.version;
  return json_report(object, -1);
}

UpdateRequest parse_request(const std::string& line) {
  constexpr const char* kOrigin = "request";
  const json object = object_of(line, kOrigin, kMostRequestBytes);
  if (text(object, kOrigin, "request") != "update") refuse(kOrigin, "request", "update");
  UpdateRequest request;
  request.version = version_in(object, kOrigin);
  request.queue = truth(object, kOrigin, "queue", true);
  return request;
}

UpdateAnswer parse_answer(const std::string& line) {
  constexpr const char* kOrigin = "the server's answer";
  const json object = object_of(line, kOrigin, kMostAnswerBytes);
  constexpr std::array kCodes{
      ExitCode::kDone,     ExitCode::kUsage,       ExitCode::kBadInput, ExitCode::kVerificationFailed,
      ExitCode::kInternal, ExitCode::kInputOutput, ExitCode::kStopped,  ExitCode::kTimeout};
  const auto code = object.find("code");
  const auto* const known = code == object.end() || !code->is_number_integer()
                                ? kCodes.end()
                                : std::find_if(kCodes.begin(), kCodes.end(),
                                               [&](ExitCode one) { return *code == static_cast<int>(one); });
  if (known == kCodes.end()) refuse(kOrigin, "code", "an exit code of this program");
  return {*known,
          text(object, kOrigin, "report"),
          text(object, kOrigin, "note"),
          text(object, kOrigin, "error"),
          version_in(object, kOrigin),
          truth(object, kOrigin, "was_there", false)};
}

}  // namespace weightcast
