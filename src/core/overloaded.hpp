#pragma once

namespace weightcast {

/// One function object of several, for std::visit: one for each alternative, so that the compiler asks for a
/// new alternative's.
template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};

template <typename... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

}  // namespace weightcast
