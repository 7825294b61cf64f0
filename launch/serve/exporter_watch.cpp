#include "launch/serve/exporter_watch.hpp"

#include <algorithm>
#include <utility>

#include "control/signals.hpp"
#include "live/dead_exporters.hpp"

namespace weightcast {

namespace {

/// Between two looks at the files.
constexpr std::chrono::milliseconds kPeriod{500};

std::int64_t stop_signal() {
  return std::max(soft_stop_signal(), hard_stop_signal());
}

std::optional<FileIdentity> identity_at(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return identity_of(status);
}

}  // namespace

ExporterWatch::ExporterWatch(const std::optional<std::string>& trainer,
                             const std::optional<std::string>& engine) {
  for (const auto& [role, manifest] : {std::pair(Role::kTrainer, trainer), {Role::kEngine, engine}}) {
    if (!manifest) continue;
    published_.emplace_back();
    published_.back().role = role;
    published_.back().manifest = *manifest;
  }
}

void ExporterWatch::note() {
  for (Published& published : published_) {
    published.mapped = identity_at(published.manifest);
    published.dead = false;
    published.looked_at.reset();
    published.block.reset();
  }
  blocks_are_open_ = false;
  // What was seen before says nothing of what is mapped now.
  next_ = Clock::now();
}

void ExporterWatch::open_blocks() {
  blocks_are_open_ = true;
  for (Published& published : published_) {
    const std::optional<FileIdentity> now = identity_at(published.manifest);
    if (now == published.looked_at) continue;
    published.looked_at = now;
    published.block.reset();
    published.was_dead = false;
    try {
      const Manifest manifest = read_manifest(published.manifest);
      published.was_dead = is_dead(manifest);
      published.block = std::make_unique<OpenBlock>(manifest, Access::kRead);
    } catch (const Error&) {
      // Whoever asks for an update hears what is wrong with it.
    }
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
  if (Clock::now() >= next_) {
    last_ = exporters(ends);
    blocks_are_open_ = false;
    next_ = Clock::now() + kPeriod;
  }
  Sight sight;
  sight.exporters = last_;
  sight.signal = stop_signal();
  if (ends != nullptr) {
    if (ends->trainer() != nullptr) sight.offers = ends->trainer()->offered_version().value_or(Sight::kNone);
    if (ends->engine() != nullptr) sight.serves = ends->engine()->current_version().value_or(Sight::kNone);
    return sight;
  }
  if (!blocks_are_open_) open_blocks();
  for (const Published& published : published_) {
    const OpenBlock* const block =
        published.block && published.block->lives() ? published.block.get() : nullptr;
    if (published.role == Role::kTrainer) {
      sight.offers = block == nullptr ? Sight::kNone : block->offered_version().value_or(Sight::kNone);
    } else {
      sight.serves = block == nullptr ? Sight::kNone : block->current_version().value_or(Sight::kNone);
    }
  }
  return sight;
}

Sight ExporterWatch::look_for_publications() {
  if (Clock::now() >= next_) {
    open_blocks();
    next_ = Clock::now() + kPeriod;
  }
  Sight sight;
  sight.signal = stop_signal();
  for (const Published& published : published_) {
    std::int64_t& its = published.role == Role::kTrainer ? sight.trainer : sight.engine;
    if (!published.looked_at) {
      its = Sight::kUnpublished;
    } else if (published.was_dead || (published.block && !published.block->lives())) {
      its = Sight::kDead;
    }
  }
  return sight;
}

Sight ExporterWatch::look_now(const LiveEnds* ends) {
  next_ = Clock::now();
  return look(ends);
}

}  // namespace weightcast
