#include "sys/mpi.hpp"

#include <array>
#include <chrono>
#include <limits>
#include <string_view>

#include "core/error.hpp"

namespace weightcast {

void check_mpi(int status, const char* call, std::source_location where) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  const std::string line =
      std::string(call) + ": " + std::string(text.data(), static_cast<std::size_t>(length));
  int kind = MPI_ERR_UNKNOWN;
  MPI_Error_class(status, &kind);
  // Whether the network or a process failed, or the program asked for nonsense.
  if (kind == MPI_ERR_OTHER || kind == MPI_ERR_INTERN || kind == MPI_ERR_UNKNOWN || kind == MPI_ERR_NO_MEM)
    throw IoError("MPI failed: " + line + "; look at the network, and at what the launcher says");
  throw InternalError(line, where);
}

int mpi_count(std::size_t count, std::source_location where) {
  if (count <= static_cast<std::size_t>(std::numeric_limits<int>::max())) return static_cast<int>(count);
  throw InternalError(std::to_string(count) + " elements in one message are more than MPI takes", where);
}

namespace {

double start_seconds_of_process =
    0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): MPI is one

int initialise() {
  const auto start = std::chrono::steady_clock::now();
  int provided = 0;
  WEIGHTCAST_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
  start_seconds_of_process = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return provided;
}

/// Owns a group of ranks.
class Group {
 public:
  explicit Group(MPI_Group group) : group_(group) {}
  ~Group() { MPI_Group_free(&group_); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  MPI_Group get() const { return group_; }

 private:
  MPI_Group group_;
};

}  // namespace

MpiEnvironment::MpiEnvironment() : MpiEnvironment(initialise()) {
  // An owner by now: when this throws, MPI is finalised.
  if (threads_ < MPI_THREAD_FUNNELED) throw InternalError("this MPI library was built without threads");
  WEIGHTCAST_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
}

double MpiEnvironment::start_seconds() {
  return start_seconds_of_process;
}

MpiEnvironment::~MpiEnvironment() {
  MPI_Finalize();
}

std::string MpiEnvironment::library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  WEIGHTCAST_MPI(MPI_Get_library_version(text.data(), &length));
  const std::string_view line(text.data(), static_cast<std::size_t>(length));
  return std::string(line.substr(0, line.find_first_of(",\n")));
}

Communicator Communicator::adopt(MPI_Comm comm) {
  Communicator owner(comm);
  WEIGHTCAST_MPI(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
  return owner;
}

Communicator Communicator::duplicate(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_dup(parent, &comm));
  return adopt(comm);
}

Communicator Communicator::same_node(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_split_type(parent, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm));
  return adopt(comm);
}

Communicator Communicator::of_ranks(MPI_Comm parent, const std::vector<int>& ranks, int tag) {
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_group(parent, &group));
  const Group all(group);
  WEIGHTCAST_MPI(MPI_Group_incl(all.get(), mpi_count(ranks.size()), ranks.data(), &group));
  const Group some(group);
  WEIGHTCAST_MPI(MPI_Comm_create_group(parent, some.get(), tag, &comm));
  return adopt(comm);
}

Communicator::~Communicator() {
  if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
}

int Communicator::rank() const {
  int rank = 0;
  WEIGHTCAST_MPI(MPI_Comm_rank(comm_, &rank));
  return rank;
}

int Communicator::size() const {
  int size = 0;
  WEIGHTCAST_MPI(MPI_Comm_size(comm_, &size));
  return size;
}

}  // namespace weightcast
