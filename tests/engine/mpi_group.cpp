#include "engine/mpi_group.hpp"

#include <fmt/format.h>

#include <array>
#include <limits>

#include "core/error.hpp"

namespace weightcast::engine {
namespace {

int narrow(std::size_t count) {
  if (count > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw InternalError(fmt::format("{} values are too many for one MPI call", count));
  }
  return static_cast<int>(count);
}

}  // namespace

void MpiGroup::sum(std::span<float> values) {
  WEIGHTCAST_MPI(MPI_Allreduce(MPI_IN_PLACE, values.data(), narrow(values.size()), MPI_FLOAT, MPI_SUM,
                               communicator_.get()));
}

std::vector<float> MpiGroup::gather(std::span<const float> values) {
  std::vector<float> all(values.size() * static_cast<std::size_t>(size()));
  const int count = narrow(values.size());
  WEIGHTCAST_MPI(
      MPI_Allgather(values.data(), count, MPI_FLOAT, all.data(), count, MPI_FLOAT, communicator_.get()));
  return all;
}

bool MpiGroup::same_everywhere(std::int64_t value) const {
  // The greatest value and the greatest negated value meet only when all are equal.
  std::array<std::int64_t, 2> bounds = {value, -value};
  WEIGHTCAST_MPI(MPI_Allreduce(MPI_IN_PLACE, bounds.data(), 2, MPI_INT64_T, MPI_MAX, communicator_.get()));
  return bounds[0] == -bounds[1];
}

}  // namespace weightcast::engine
