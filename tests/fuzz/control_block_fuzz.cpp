// A control block, which any process of the user can write to, as plain commands look at it.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz/refusal.hpp"
#include "live/open_block.hpp"
#include "sys/host.hpp"

namespace {

/// An engine of this host whose control block is shared memory of its own, gone at the end.
class Publication {
 public:
  Publication() {
    struct stat shm = {};
    ::stat("/dev/shm", &shm);
    manifest.path = "engine-0.json";
    manifest.role = weightcast::Role::kEngine;
    manifest.ranks = 1;
    manifest.host = weightcast::this_host();
    manifest.boot_id = weightcast::this_boot();
    manifest.shm_device = static_cast<std::int64_t>(shm.st_dev);
    manifest.pid = ::getpid();
    manifest.uid = ::getuid();
    manifest.generation = 0x40f9c8781e0b2131;  // of the seed
    manifest.control = weightcast::name_of_memory(manifest.uid, manifest.generation, "control");
  }
  ~Publication() { ::shm_unlink(manifest.control.c_str()); }
  Publication(const Publication&) = delete;
  Publication& operator=(const Publication&) = delete;

  void write_block(const std::uint8_t* data, std::size_t size) const {
    const int block = ::shm_open(manifest.control.c_str(), O_CREAT | O_RDWR | O_TRUNC, S_IRUSR | S_IWUSR);
    if (block < 0 || ::write(block, data, size) != static_cast<ssize_t>(size)) std::abort();
    ::close(block);
  }

  weightcast::Manifest manifest;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  static const Publication publication;
  publication.write_block(data, size);
  fuzz::accept_or_refuse(publication.manifest.path, [&] {
    const OpenBlock block(publication.manifest, Access::kRead);
    const BlockState state = block.look();
    for (const std::string& text :
         {in_words(state), state.owner, state.reason, state.cause, block.reason()}) {
      if (printable(text) != text) fuzz::broken("what a block says can be printed", text);
    }
    static_cast<void>(block.current_version());
    static_cast<void>(block.offered_version());
  });
  return 0;
}
