#pragma once

#include <string>

namespace weightcast {

/// A script that makes bash complete commands, their options and paths: `source <(weightcast completion
/// bash)`. It is made of the option table, so that it knows what this version takes.
std::string bash_completion();

}  // namespace weightcast
