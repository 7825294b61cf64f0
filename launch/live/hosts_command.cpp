#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "launch/commands.hpp"
#include "launch/files/output_file.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/process.hpp"
#include "live/dead_exporters.hpp"
#include "live/folder.hpp"
#include "live/manifest.hpp"
#include "live/slurm_run.hpp"
#include "report/log.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

/// Where a rank of a job has to run, and what for.
struct Place {
  std::string role;
  std::string host;
  std::string device;  ///< empty: on the host
  std::string origin;  ///< the manifest that says so
};

/// A host's name stands in a file that a launcher reads.
void require_plain_host(const Manifest& manifest) {
  const bool plain = std::all_of(manifest.host.begin(), manifest.host.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
  });
  if (plain && !manifest.host.empty() && manifest.host.front() != '-') return;
  throw InputError(fmt::format("{}: 'host' is no host's name; let it publish again", manifest.path));
}

Place place_of(const Manifest& manifest) {
  require_plain_host(manifest);
  return {fmt::format("{} {}{}", role_name(manifest.role), manifest.rank, is_dead(manifest) ? " (gone)" : ""),
          manifest.host, manifest.device(), manifest.path};
}

/// One rank for trainer number r and engine number r, which must be in one place.
Place place_of_both(const Manifest& trainer, const Manifest& engine) {
  Place place = place_of(trainer);
  const Place other = place_of(engine);
  if (place.host != other.host) {
    throw InputError(
        fmt::format("{}: is on host {}, {} on {}, but with --colocate one rank is for both; leave it out",
                    trainer.path, place.host, engine.path, other.host));
  }
  if (!place.device.empty() && !other.device.empty() && place.device != other.device) {
    throw InputError(
        fmt::format("{}: is on {}, {} on {}, but with --colocate one rank is for both; leave it out",
                    trainer.path, place.device, engine.path, other.device));
  }
  place.role += " + " + other.role;
  if (place.device.empty()) place.device = other.device;
  return place;
}

/// NCCL takes one rank a GPU.
void require_own_gpus(const std::vector<Place>& places) {
  std::map<std::pair<std::string, std::string>, const Place*> taken;
  for (const Place& place : places) {
    if (place.device.empty()) continue;
    const auto [found, is_new] = taken.emplace(std::pair(place.host, place.device), &place);
    if (is_new) continue;
    throw InputError(
        fmt::format("{}: {} is on {} of {}, and so is {}, but NCCL takes one rank a GPU; add --colocate "
                    "where trainers and "
                    "engines are on the same GPUs, else give each its own",
                    place.origin, place.role, place.device, place.host, found->second->role));
  }
}

/// In the order of a job's ranks: trainers, then engines. Trainers that are not live read files: `readers` of
/// them, which are put beside the engines, one after the other.
std::vector<Place> places_of(const std::string& directory, bool colocate, std::int64_t readers) {
  const std::vector<Manifest> trainers = read_manifests(directory, Role::kTrainer);
  const std::vector<Manifest> engines = read_manifests(directory, Role::kEngine);
  for (const auto* manifests : {&trainers, &engines}) {
    for (const Manifest& manifest : *manifests) {
      if (const std::string run = other_run(manifest); !run.empty()) log_note(manifest.path + ": is " + run);
      if (is_dead(manifest))
        log_note(fmt::format("{}: its exporter, process {}, is gone; start it again before a job",
                             manifest.path, manifest.pid));
    }
  }
  if (trainers.empty() && engines.empty()) refuse_empty(directory);
  std::vector<Place> places;
  if (colocate && !trainers.empty() && !engines.empty()) {
    if (trainers.size() != engines.size()) {
      throw InputError(
          fmt::format("{}: has {} trainers and {} engines, but with --colocate every rank is for one of "
                      "each; leave it out",
                      directory, trainers.size(), engines.size()));
    }
    for (std::size_t i = 0; i < trainers.size(); ++i)
      places.push_back(place_of_both(trainers[i], engines[i]));
    require_own_gpus(places);
    return places;
  }
  for (const Manifest& trainer : trainers) places.push_back(place_of(trainer));
  for (std::int64_t reader = 0; trainers.empty() && !colocate && reader < readers; ++reader) {
    const Manifest& beside = engines[static_cast<std::size_t>(reader) % engines.size()];
    places.push_back(
        {fmt::format("trainer {} (reads files)", reader), place_of(beside).host, "", beside.path});
  }
  for (const Manifest& engine : engines) places.push_back(place_of(engine));
  require_own_gpus(places);
  return places;
}

/// What OutputFile knows the file by.
std::string heading(const std::string& directory) {
  return "# ranks of a weightcast job with live:" + printable(directory) + "\n";
}

std::string rankfile(const std::string& directory, const std::vector<Place>& places) {
  std::string text = heading(directory);
  // All sockets: a rank is not bound to a core that this host does not know.
  for (std::size_t rank = 0; rank < places.size(); ++rank)
    text += fmt::format("rank {}={} slot=S*\n", rank, places[rank].host);
  return text;
}

std::string hostlist(const std::string& directory, const std::vector<Place>& places) {
  std::string text = heading(directory);
  for (const Place& place : places) text += place.host + "\n";
  return text;
}

void clean(const std::string& directory) {
  set_left_when_stopped("what was removed by then is gone; run it again for the rest");
  const Cleaning cleaning = remove_dead_exporters(directory);
  for (const std::string& line : cleaning.removed) print_line("removed " + line);
  for (const std::string& line : cleaning.kept) print_line("kept: " + line);
  if (!cleaning.removed.empty()) return;
  print_line(cleaning.kept.empty() ? "no exporter of this host and user is dead; nothing was removed"
                                   : "nothing was removed");
}

}  // namespace

void run_hosts(const Options& options, OutputFile* /*json*/) {
  if (options.arguments.size() != 1) {
    throw UsageError(
        fmt::format("write weightcast hosts {}DIR, with one folder", options.clean ? "--clean " : ""));
  }
  const std::string& named = options.arguments.front();
  const std::string directory = live_directory(named).value_or(named);
  if (options.clean) {
    if (options.format || !options.output.empty()) {
      throw UsageError("--clean: removes, and writes no file; leave --format and --output out");
    }
    return clean(directory);
  }
  if (!options.output.empty() && !options.format) {
    throw UsageError("--output: say with --format rankfile or --format hostlist what to write there");
  }
  const std::vector<Place> places = places_of(directory, options.colocate, options.trainers);
  require_no_signal("nothing was written");
  const std::string text = !options.format                 ? ""
                           : *options.format == "rankfile" ? rankfile(directory, places)
                                                           : hostlist(directory, places);
  if (options.format && options.output.empty()) return print_report(text);
  if (options.format) OutputFile("output", options.output, text).write(text);
  Table table({"rank", "role", "host", "device"});
  for (std::size_t rank = 0; rank < places.size(); ++rank) {
    const Place& place = places[rank];
    table.add({std::to_string(rank), place.role, place.host, place.device.empty() ? "cpu" : place.device});
  }
  print_report(table.text());
}

}  // namespace weightcast
