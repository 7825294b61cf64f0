#include "sys/mpi.hpp"

#include <array>
#include <chrono>
#include <string_view>

#include "core/error.hpp"

namespace weightcast {

void check_mpi(int status, const char* call, std::source_location where) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  throw InternalError(std::string(call) + ": " + std::string(text.data(), static_cast<std::size_t>(length)),
                      where);
}

namespace {

double start_seconds_of_process =
    0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): MPI is one

}  // namespace

MpiEnvironment::MpiEnvironment() {
  const auto start = std::chrono::steady_clock::now();
  int provided = 0;
  WEIGHTCAST_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
  if (provided < MPI_THREAD_FUNNELED) throw InternalError("this MPI library was built without threads");
  WEIGHTCAST_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  start_seconds_of_process = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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

Communicator::Communicator(MPI_Comm comm) : comm_(comm) {
  WEIGHTCAST_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
}

Communicator Communicator::duplicate(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_dup(parent, &comm));
  return Communicator(comm);
}

Communicator Communicator::same_node(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_split_type(parent, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm));
  return Communicator(comm);
}

Communicator Communicator::of_ranks(MPI_Comm parent, const int* ranks, int count, int tag) {
  MPI_Group all = MPI_GROUP_NULL;
  MPI_Group some = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  WEIGHTCAST_MPI(MPI_Comm_group(parent, &all));
  WEIGHTCAST_MPI(MPI_Group_incl(all, count, ranks, &some));
  WEIGHTCAST_MPI(MPI_Comm_create_group(parent, some, tag, &comm));
  WEIGHTCAST_MPI(MPI_Group_free(&some));
  WEIGHTCAST_MPI(MPI_Group_free(&all));
  return Communicator(comm);
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
