#pragma once

#include <memory>
#include <optional>
#include <string>

#include "control/control.hpp"
#include "launch/options.hpp"
#include "model/landing/landing_map.hpp"

namespace weightcast {

/// The map that `--landing` names; null without the option. Throws IoError, InputError.
std::shared_ptr<const LandingMap> load_landing(const Options& options);

/// The same for a job: rank 0 reads the file for all. Throws by agreement. Collective.
std::shared_ptr<const LandingMap> load_landing(Control& control, const Options& options);

/// The map in a JSON file; nothing when it is another file. Throws IoError, InputError.
std::optional<LandingMap> find_landing(const std::string& path);

}  // namespace weightcast
