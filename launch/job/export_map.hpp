#pragma once

#include <memory>
#include <string>

#include "control/control.hpp"
#include "launch/options.hpp"
#include "live/manifest.hpp"
#include "model/export_map.hpp"

namespace weightcast {

/// The map that `--export-map` names, or that trainers have published with their tensors into the folder, as
/// the first one, `first`, says; null without either. Throws UsageError where it is of another number of
/// trainers; IoError, InputError.
std::shared_ptr<const ExportMap> load_export_map(const Options& options, const std::string& directory,
                                                 const Manifest& first, std::int64_t trainers);

/// The same for a job, whose rank 0 has the first trainer's manifest, and reads the file for all; the others'
/// `first` is null. Throws by agreement. Collective.
std::shared_ptr<const ExportMap> load_export_map(Control& control, const Options& options,
                                                 const std::string& directory, const Manifest* first,
                                                 std::int64_t trainers);

}  // namespace weightcast
