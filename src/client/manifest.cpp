#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"
#include "client/version.hpp"

namespace weightcast::client {

namespace {

/// A JSON string with its quotes. Bytes that are no ASCII are passed on: names are UTF-8.
void put_string(FILE* out, const char* text) {
  std::fputc('"', out);
  for (; *text != '\0'; ++text) {
    const auto byte = static_cast<unsigned char>(*text);
    if (byte == '"' || byte == '\\') {
      std::fprintf(out, "\\%c", byte);
    } else if (byte < 0x20) {
      std::fprintf(out, "\\u%04x", byte);
    } else {
      std::fputc(byte, out);
    }
  }
  std::fputc('"', out);
}

void put_field(FILE* out, const char* name, const char* value) {
  std::fprintf(out, ", \"%s\": ", name);
  put_string(out, value);
}

void put_list(FILE* out, const std::int64_t* numbers, int count) {
  std::fputc('[', out);
  for (int i = 0; i < count; ++i) std::fprintf(out, "%s%" PRId64, i == 0 ? "" : ", ", numbers[i]);
  std::fputc(']', out);
}

void put_numbers(FILE* out, const char* name, const std::int64_t* numbers, int count) {
  std::fprintf(out, ", \"%s\": ", name);
  put_list(out, numbers, count);
}

void put_link(FILE* out, const char* name, const char* path) {
  char text[128] = "";
  const ssize_t length = ::readlink(path, text, sizeof text - 1);
  if (length >= 0) text[length] = '\0';
  put_field(out, name, text);
}

void put_variable(FILE* out, const char* name, const char* variable) {
  const char* value = ::getenv(variable);
  if (value != nullptr) put_field(out, name, value);
}

/// `list` is the name of the window's.
void put_segment(FILE* out, const Segment& segment, const char* list) {
  if (segment.memory != nullptr) {
    std::fprintf(out, "{\"kind\": \"%s\"", segment.limit > 0 ? "window" : "shm");
    put_field(out, "name", segment.name);
    if (segment.limit > 0) {
      put_field(out, "list", list);
      std::fprintf(out, ", \"limit\": %" PRId64, segment.limit);
    }
  } else if (segment.gpu.has_handle) {
    std::fputs("{\"kind\": \"cuda_ipc\", \"handle\": \"", out);
    for (const unsigned char byte : segment.gpu.handle) std::fprintf(out, "%02x", byte);
    std::fputc('"', out);
    put_field(out, "device", segment.gpu.device);
  } else {
    std::fputs("{\"kind\": \"cuda_fd\"", out);
    put_field(out, "device", segment.gpu.device);
    std::fputs(", \"pieces\": [", out);
    for (int i = 0; i < segment.pieces.size; ++i) {
      std::fprintf(out, "%s{\"fd\": %d, \"bytes\": %" PRId64 "}", i == 0 ? "" : ", ",
                   segment.pieces.items[i].file, segment.pieces.items[i].bytes);
    }
    std::fputc(']', out);
  }
  std::fprintf(out, ", \"bytes\": %" PRId64 "}", segment.bytes);
}

void put_entry(FILE* out, const Entry& entry) {
  std::fputs("{\"name\": ", out);
  put_string(out, entry.name);
  std::fputs(", \"aliases\": [", out);
  for (int i = 0; i < entry.aliases.size; ++i) {
    if (i > 0) std::fputs(", ", out);
    put_string(out, entry.aliases.items[i].name);
  }
  std::fputc(']', out);
  put_field(out, "dtype", entry.dtype);
  put_numbers(out, "shape", entry.shape, entry.dims);
  put_numbers(out, "strides", entry.strides, entry.dims);
  if (entry.is_box) {
    std::fputs(", \"box\": {\"shape\": ", out);
    put_list(out, entry.whole, entry.dims);
    put_numbers(out, "offset", entry.start, entry.dims);
    std::fputc('}', out);
  }
  std::fprintf(out, ", \"segment\": %d, \"offset\": %" PRId64 "}", entry.segment, entry.offset);
}

void put_manifest(FILE* out, const weightcast_export& e) {
  const Publication here = publication_from_here();
  std::fprintf(out, "{\"weightcast\": 1, \"role\": \"%s\", \"rank\": %d, \"ranks\": %d",
               e.engine ? "engine" : "trainer", e.rank, e.ranks);
  put_field(out, "client", version());
  put_field(out, "host", here.host);
  put_field(out, "boot_id", here.boot_id);
  std::fprintf(out, ", \"namespaces\": {\"shm\": %llu", here.shm);
  put_link(out, "pid", "/proc/self/ns/pid");
  put_link(out, "ipc", "/proc/self/ns/ipc");
  std::fprintf(out, "}, \"pid\": %ld, \"uid\": %ld", static_cast<long>(::getpid()),
               static_cast<long>(::getuid()));
  put_variable(out, "job", "SLURM_JOB_ID");
  put_variable(out, "restart", "SLURM_RESTART_COUNT");
  std::fprintf(out, ", \"generation\": \"%016" PRIx64 "\"", e.generation);
  // By which a copy of the folder is known: records of commits are looked for in this one.
  struct stat folder = {};
  if (::stat(e.folder, &folder) == 0)
    std::fprintf(out, ", \"folder\": \"%llu\"", static_cast<unsigned long long>(folder.st_ino));
  if (e.layout[0] != '\0') put_field(out, "layout", e.layout);
  put_field(out, "control", e.block_name);
  if (e.experts != nullptr) {
    put_field(out, "experts", e.experts_name);
    std::fprintf(out, ", \"expert_slots\": [%" PRId64 ", %" PRId64 ", %" PRId64 "]", e.experts->layers,
                 e.experts->slots, e.experts->experts);
  }
  std::fputs(",\n\"segments\": [", out);
  for (int i = 0; i < e.segments.size; ++i) {
    std::fputs(i == 0 ? "\n" : ",\n", out);
    put_segment(out, e.segments.items[i], e.list_name);
  }
  std::fputs("],\n\"entries\": [", out);
  for (int i = 0; i < e.entries.size; ++i) {
    std::fputs(i == 0 ? "\n" : ",\n", out);
    put_entry(out, e.entries.items[i]);
  }
  std::fputs("]}\n", out);
}

/// Gives a file a second name. Where an answer of NFS is lost, what has succeeded is done again, and says
/// that the name is taken.
bool link_to(const char* file, const char* name) {
  if (::link(file, name) == 0) return true;
  const int error = errno;
  struct stat of_file = {};
  struct stat of_name = {};
  const bool same = error == EEXIST && ::stat(file, &of_file) == 0 && ::stat(name, &of_name) == 0 &&
                    of_file.st_dev == of_name.st_dev && of_file.st_ino == of_name.st_ino;
  errno = error;
  return same;
}

int cannot_write(const weightcast_export& e) {
  return fail_with_errno(
      "%s: the manifest of this rank cannot be written there; let this user write there, make "
      "room, or name another folder",
      e.folder);
}

/// What stands behind `field` in a line, up to the next quote: nothing where there is no such field.
void get_text(const char* line, const char* field, char* text, std::size_t size) {
  const char* at = std::strstr(line, field);
  if (at == nullptr) return;
  at += std::strlen(field);
  std::snprintf(text, size, "%.*s", static_cast<int>(std::strcspn(at, "\"")), at);
}

}  // namespace

Publication publication_from_here() {
  Publication here;
  ::gethostname(here.host, sizeof here.host - 1);
  if (FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "re"); file != nullptr) {
    if (std::fgets(here.boot_id, sizeof here.boot_id, file) != nullptr)
      here.boot_id[std::strcspn(here.boot_id, "\n")] = '\0';
    std::fclose(file);
  }
  struct stat shm = {};
  if (::stat("/dev/shm", &shm) == 0) here.shm = shm.st_dev;
  return here;
}

int read_publication(const char* path, Publication* publication) {
  // Somebody else may have made what has the name: a pipe would be waited for, a link leads to another file.
  const int file = ::open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  const bool is_link = file < 0 && errno == ELOOP;
  if (file < 0 && !is_link) return fail_with_errno("%s: cannot be read; let its owner remove it", path);
  struct stat status = {};
  if (is_link || ::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    if (file >= 0) ::close(file);
    return fail(WEIGHTCAST_REFUSED, "%s: is no file; remove it", path);
  }
  // All of it is on the first line, which this library has written.
  char line[4096] = "";
  const ssize_t got = ::read(file, line, sizeof line - 1);
  const int error = errno;
  ::close(file);
  errno = error;
  if (got < 0) return fail_with_errno("%s: cannot be read; let its owner remove it", path);
  line[std::strcspn(line, "\n")] = '\0';
  *publication = Publication();
  char generation[32] = "";
  get_text(line, "\"generation\": \"", generation, sizeof generation);
  get_text(line, "\"host\": \"", publication->host, sizeof publication->host);
  get_text(line, "\"boot_id\": \"", publication->boot_id, sizeof publication->boot_id);
  const char* shm = std::strstr(line, "\"shm\": ");
  if (std::sscanf(generation, "%16" SCNx64, &publication->generation) != 1 || shm == nullptr ||
      std::sscanf(shm, "\"shm\": %llu", &publication->shm) != 1) {
    return fail(WEIGHTCAST_REFUSED, "%s: is no manifest; remove it", path);
  }
  return WEIGHTCAST_OK;
}

void manifest_path(const weightcast_export& e, char* path, std::uint64_t size) {
  std::snprintf(path, size, "%s/%s-%d.json", e.folder, e.engine ? "engine" : "trainer", e.rank);
}

int write_manifest(weightcast_export& e) {
  char path[4200];
  char beside[4300];
  manifest_path(e, path, sizeof path);
  std::snprintf(beside, sizeof beside, "%s.%016" PRIx64, path, e.generation);
  const int file = ::open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return cannot_write(e);
  FILE* out = ::fdopen(file, "w");
  if (out == nullptr) {
    const int code = cannot_write(e);
    ::close(file);
    ::unlink(beside);
    return code;
  }
  put_manifest(out, e);
  struct stat status = {};
  bool written = std::ferror(out) == 0 && std::fflush(out) == 0 && ::fsync(file) == 0;
  written = ::fstat(file, &status) == 0 && written;
  written = std::fclose(out) == 0 && written;
  e.manifest_device = status.st_dev;
  e.manifest_inode = status.st_ino;
  // Not a rename, which would take the place of somebody who has just published.
  int code = WEIGHTCAST_OK;
  if (!written) {
    code = cannot_write(e);
  } else if (!link_to(beside, path)) {
    code = errno == EEXIST ? fail(WEIGHTCAST_REFUSED,
                                  "%s: somebody else has just published this rank, or something else lies "
                                  "there; give each process a rank of its own, or another folder",
                                  path)
                           : cannot_write(e);
  }
  ::unlink(beside);
  return code;
}

int remove_manifest(const weightcast_export& e) {
  if (!e.published) return WEIGHTCAST_OK;
  char path[4200];
  manifest_path(e, path, sizeof path);
  struct stat status = {};
  if (::lstat(path, &status) != 0 && errno == ENOENT) return WEIGHTCAST_OK;
  Publication there;
  // Where it cannot be read, for want of descriptors for example, it is known by its file.
  const bool is_own = read_publication(path, &there) == WEIGHTCAST_OK
                          ? there.generation == e.generation
                          : status.st_dev == e.manifest_device && status.st_ino == e.manifest_inode;
  if (!is_own || ::unlink(path) == 0 || errno == ENOENT) return WEIGHTCAST_OK;
  return fail_with_errno("%s: cannot be removed, do it by hand", path);
}

void remove_unfinished(const weightcast_export& e) {
  DIR* folder = ::opendir(e.folder);
  if (folder == nullptr) return;
  char manifest[4200];
  manifest_path(e, manifest, sizeof manifest);
  const char* name = std::strrchr(manifest, '/') + 1;
  const Publication here = publication_from_here();
  while (const dirent* entry = ::readdir(folder)) {
    // `engine-0.json.0123456789abcdef`
    if (std::strncmp(entry->d_name, name, std::strlen(name)) != 0) continue;
    const char* rest = entry->d_name + std::strlen(name);
    std::uint64_t generation = 0;
    if (std::strlen(rest) != 17 || std::sscanf(rest, ".%16" SCNx64, &generation) != 1) continue;
    char path[4300];
    std::snprintf(path, sizeof path, "%s%s", manifest, rest);
    struct stat status = {};
    if (::lstat(path, &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != ::getuid()) continue;
    Publication there;
    const bool is_elsewhere = read_publication(path, &there) == WEIGHTCAST_OK &&
                              (std::strcmp(there.host, here.host) != 0 ||
                               (std::strcmp(there.boot_id, here.boot_id) == 0 && there.shm != here.shm));
    if (!is_elsewhere && life_of(generation) == Life::kDead) ::unlink(path);
  }
  ::closedir(folder);
}

}  // namespace weightcast::client
