#pragma once

#include <string>

#include "model/landing/landing_map.hpp"

namespace weightcast {

/// Of how many tensors that some rank reads elements land on no rank, as a sentence with the rows of one of
/// them; empty where all of every such tensor lands. An engine drops them without a word, where its config
/// and the checkpoint do not fit together for example.
std::string unread_text(const LandingMap& map);

}  // namespace weightcast
