// The lines that a trigger and a server send each other.

#include "fuzz/refusal.hpp"
#include "launch/serve/message.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string line = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("", [&] {
    const UpdateRequest request = parse_request(line);
    const UpdateRequest again = parse_request(line_of(request));
    if (again.version != request.version || again.queue != request.queue)
      fuzz::broken("a request is what it was", line);
  });
  fuzz::accept_or_refuse("", [&] {
    const UpdateAnswer answer = parse_answer(line);
    const std::string sent = line_of(answer);
    if (sent.size() > kMostAnswerBytes) fuzz::broken("an answer has room in a line", sent);
    if (parse_answer(sent).code != answer.code) fuzz::broken("an answer is what it was", line);
  });
  return 0;
}
