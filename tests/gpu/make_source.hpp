#pragma once

#include <cstdint>
#include <memory>

#include "model/catalog.hpp"
#include "session/gpu.hpp"
#include "session/session.hpp"
#include "source/memory_source.hpp"

namespace weightcast::session_cases {

enum class Where : std::uint8_t { kHost, kGpu };

/// The synthetic weights of a version, where that rank is a trainer.
inline std::unique_ptr<Source> make_source(const Session& session, const Catalog& catalog, std::int64_t rank,
                                           std::int64_t version, Where where) {
  if (!session.plan().topology.trainer(rank)) return nullptr;
  if (where == Where::kGpu) return make_resident_source(session.plan(), catalog, rank, version);
  return std::make_unique<MemorySource>(session.plan(), catalog, rank, version);
}

}  // namespace weightcast::session_cases
