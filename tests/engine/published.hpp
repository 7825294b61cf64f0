#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "engine/parameters.hpp"
#include "storage/checkpoint.hpp"
#include "weightcast/client.h"

namespace weightcast::engine {

/// Which of the exporters of a folder a process is.
struct Exporter {
  std::string folder;
  const char* role = "engine";
  int rank = 0;
  int ranks = 1;
};

/// Which experts sit in which slots of an engine.
struct ExpertSlots {
  std::int64_t epoch = 0;
  std::int64_t experts = 0;
  std::vector<std::vector<std::int64_t>> experts_of_slots;  ///< by layer

  /// One layer after the other, as the client takes it.
  std::vector<std::int64_t> flat() const;
};

/// Parameters in shared memory that this process has published through the client library, as a process
/// would that has nothing else of weightcast. What is read is what lies there at that moment.
class Published final : public ParameterSource {
 public:
  /// Has every tensor of the checkpoint, with its values. An engine serves them as version `version`. Throws
  /// IoError with the client's words. An engine says where its experts sit, where `slots` is given.
  Published(const Exporter& exporter, const Checkpoint& checkpoint, std::int64_t version,
            const ExpertSlots* slots = nullptr);
  ~Published() override;
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  std::vector<std::string> names() const override;
  Tensor read(const std::string& name) const override;

  /// Overwrites all values with those of another checkpoint of the same tensors.
  void load(const Checkpoint& checkpoint);

  weightcast_export* handle() const { return export_; }

 private:
  struct Place {
    DType dtype = DType::kBF16;
    Shape shape;
    std::byte* data = nullptr;
  };

  weightcast_export* export_ = nullptr;
  std::map<std::string, Place> places_;
};

}  // namespace weightcast::engine
