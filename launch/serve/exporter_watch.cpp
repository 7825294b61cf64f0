#include "launch/serve/exporter_watch.hpp"

#include <algorithm>

#include "control/signals.hpp"

namespace weightcast {

namespace {

std::optional<FileIdentity> identity_at(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return identity_of(status);
}

}  // namespace

ExporterWatch::ExporterWatch(std::vector<std::string> manifests) {
  for (std::string& manifest : manifests) published_.push_back({std::move(manifest), std::nullopt, false});
}

void ExporterWatch::note() {
  for (Published& published : published_) {
    published.mapped = identity_at(published.manifest);
    published.dead = false;
  }
}

Sight::Exporters ExporterWatch::exporters(const LiveEnds* ends) {
  Sight::Exporters seen = Sight::kMapped;
  for (Published& published : published_) {
    const std::optional<FileIdentity> now = identity_at(published.manifest);
    const bool same = now == published.mapped;
    if (ends != nullptr && same) {
      for (const Exporter* exporter : {ends->trainer(), ends->engine()}) {
        const bool is_its = exporter != nullptr && exporter->manifest().path == published.manifest;
        if (is_its && !exporter->lives()) published.dead = true;
      }
    }
    if (!now || (same && published.dead)) return Sight::kGone;
    if (!same || ends == nullptr) seen = Sight::kThere;
  }
  return seen;
}

Sight ExporterWatch::look(const LiveEnds* ends) {
  constexpr std::chrono::milliseconds kPeriod{500};
  if (Clock::now() >= next_) {
    last_ = exporters(ends);
    next_ = Clock::now() + kPeriod;
  }
  Sight sight;
  sight.exporters = last_;
  sight.signal = std::max(soft_stop_signal(), hard_stop_signal());
  if (ends == nullptr) return sight;
  if (const Exporter* const trainer = ends->trainer(); trainer != nullptr) {
    sight.offers = trainer->state() == WEIGHTCAST_OFFERS ? trainer->version() : Sight::kNone;
  }
  if (const Exporter* const engine = ends->engine(); engine != nullptr) {
    sight.serves = engine->state() == WEIGHTCAST_SERVING ? engine->version() : Sight::kNone;
  }
  return sight;
}

Sight ExporterWatch::look_now(const LiveEnds* ends) {
  next_ = Clock::now();
  return look(ends);
}

}  // namespace weightcast
