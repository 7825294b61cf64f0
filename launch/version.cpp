#include "launch/version.hpp"

#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>

#include <boost/version.hpp>

#include "client/version.hpp"
#include "session/gpu.hpp"

namespace weightcast {

std::string version_line() {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  H5get_libversion(&major, &minor, &release);
  // What it was built with; an MPI library cannot be asked before it is started.
  return fmt::format("weightcast {} · Open MPI {}.{}.{} · HDF5 {}.{}.{} · Boost {}.{}{}", client::version(),
                     OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION, major, minor, release,
                     BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000, gpu_versions());
}

}  // namespace weightcast
