// Fully sharded trainers: each publishes boxes of tensors, and an engine receives the whole.

#include <algorithm>
#include <thread>

#include "cli/cli.hpp"
#include "support/child.hpp"
#include "weightcast/client.h"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

constexpr double kPatience = 100;

/// Which box of a tensor trainer `rank` of `ranks` holds.
struct Cut {
  const char* name;
  /// The dimension that is cut into equal parts, rounded up, so that the last ones may be empty.
  std::size_t (*dimension)(const Shape& shape);
};

/// The box of a matrix: rows or columns.
Box box_of(const Shape& shape, std::size_t dimension, std::int64_t rank, std::int64_t ranks) {
  const std::int64_t extent = shape[dimension];
  const std::int64_t each = (extent + ranks - 1) / ranks;
  const std::int64_t first = std::min(rank * each, extent);
  const std::int64_t count = std::min(each, extent - first);
  if (shape.dims() == 1) return {0, 1, first, count};
  return dimension == 0 ? Box{first, count, 0, shape[1]} : Box{0, shape[0], first, count};
}

class LiveBoxes : public CliTest, public ::testing::WithParamInterface<Cut> {
 protected:
  int train(std::int64_t rank, std::int64_t ranks, bool forget) const {
    const Checkpoint checkpoint = read_checkpoint(trained(181));
    const CheckpointReader reader(checkpoint);
    weightcast_export* e = nullptr;
    if (weightcast_open(folder_.c_str(), "trainer", static_cast<int>(rank), static_cast<int>(ranks), "hf",
                        &e) != 0)
      return 1;
    std::int64_t bytes = 0;
    for (const StoredTensor& tensor : checkpoint.tensors) bytes += tensor.bytes() + 64;
    void* memory = nullptr;
    int segment = 0;
    if (weightcast_add_segment(e, bytes, &memory, &segment) != 0) return 1;
    std::int64_t offset = 0;
    for (const StoredTensor& tensor : checkpoint.tensors) {
      const std::size_t dimension = GetParam().dimension(tensor.shape);
      Box box = box_of(tensor.shape, dimension, rank, ranks);
      if (forget && rank == 1 && tensor.name == "model.norm.weight") box.cols -= 1;
      const std::int64_t size = box.area() * dtype_bytes(tensor.dtype);
      if (!box.empty())
        reader.read(tensor, box, {static_cast<std::byte*>(memory) + offset, static_cast<std::size_t>(size)});
      const std::int64_t matrix[] = {box.rows, box.cols};
      const std::int64_t start[] = {box.row, box.col};
      const bool vector = tensor.shape.dims() == 1;
      const std::int64_t* shape = vector ? matrix + 1 : matrix;
      if (weightcast_add_entry(e, tensor.name.c_str(),
                               std::string(dtype_safetensors_name(tensor.dtype)).c_str(), vector ? 1 : 2,
                               shape, nullptr, segment, offset) != 0)
        return 1;
      if (weightcast_set_box(e, tensor.name.c_str(), tensor.shape.extents().data(),
                             vector ? start + 1 : start) != 0)
        return 1;
      offset += (size + 63) / 64 * 64;
    }
    if (weightcast_publish(e) != 0 || weightcast_offer(e, 1, kPatience) != 0) return 1;
    return weightcast_close(e, kPatience);
  }

  /// An engine that, when it was written, has what the shard of the reference has.
  int serve(const std::string& reference, int rank, int ranks) const {
    const Checkpoint shard = read_checkpoint(reference + "/rank-" + std::to_string(rank) + ".h5");
    const CheckpointReader reader(shard);
    weightcast_export* e = nullptr;
    if (weightcast_open(folder_.c_str(), "engine", rank, ranks, nullptr, &e) != 0) return 1;
    std::vector<std::pair<const StoredTensor*, std::byte*>> places;
    for (const StoredTensor& tensor : shard.tensors) {
      void* memory = nullptr;
      int segment = 0;
      if (weightcast_add_segment(e, tensor.bytes(), &memory, &segment) != 0) return 1;
      const auto extents = tensor.shape.extents();
      if (weightcast_add_entry(e, tensor.name.c_str(),
                               std::string(dtype_safetensors_name(tensor.dtype)).c_str(),
                               static_cast<int>(extents.size()), extents.data(), nullptr, segment, 0) != 0)
        return 1;
      places.emplace_back(&tensor, static_cast<std::byte*>(memory));
    }
    std::int64_t version = 0;
    if (weightcast_publish(e) != 0 || weightcast_pause(e, kPatience, &version) != 0 || version != 1) return 1;
    for (const auto& [tensor, data] : places) {
      std::vector<std::byte> expected(static_cast<std::size_t>(tensor->bytes()));
      reader.read(*tensor, Box::whole(tensor->shape), expected);
      if (!std::equal(expected.begin(), expected.end(), data)) return 2;
    }
    if (weightcast_resume(e) != 0) return 1;
    return weightcast_close(e, kPatience);
  }

  void wait_for_manifest(const std::string& name) const {
    while (!std::filesystem::exists(folder_ + "/" + name)) std::this_thread::sleep_for(5ms);
  }

  std::string folder_ = dir_ / "weights";
};

TEST_P(LiveBoxes, OfThreeTrainersMakeTheEnginesWhole) {
  ASSERT_TRUE(done(run_job(3, sync_words(trained(181)))));
  Child first([&] { return train(0, 3, false); });
  Child second([&] { return train(1, 3, false); });
  Child third([&] { return train(2, 3, false); });
  Child engine([&] { return serve(sink_, 0, 2); });
  Child other([&] { return serve(sink_, 1, 2); });
  for (const char* name :
       {"trainer-0.json", "trainer-1.json", "trainer-2.json", "engine-0.json", "engine-1.json"})
    wait_for_manifest(name);
  EXPECT_TRUE(done(
      run_job(5, {"sync", "--source", "live:" + folder_, "--sink", "live:" + folder_, "--model", trained(181),
                  "--trainers", "3", "--inference", "tp=2,ep=2", "--bucket-size", "128KiB"})));
  for (Child* child : {&first, &second, &third, &engine, &other}) EXPECT_EQ(child->wait(), 0);
}

TEST_P(LiveBoxes, ThatDoNotMakeTheWholeAreRefusedByName) {
  Child first([&] { return train(0, 2, true); });
  Child second([&] { return train(1, 2, true); });
  for (const char* name : {"trainer-0.json", "trainer-1.json"}) wait_for_manifest(name);
  const Words words{"sync",    "--source",   "live:" + folder_, "--sink", "hdf5:" + sink_,
                    "--model", trained(181), "--inference",     "tp=1"};
  EXPECT_TRUE(
      refused(run_job(3, words + Words{"--trainers", "2"}), 65, {"model.norm.weight", "no trainer has"}));
  EXPECT_TRUE(refused(run_job(3, words + Words{"--trainer-alloc", "megatron:(attn:t2|ffn:t2)"}), 65,
                      {"trainer-0.json", "boxes", "--trainer-alloc"}));
}

INSTANTIATE_TEST_SUITE_P(
    Cuts, LiveBoxes,
    ::testing::Values(Cut{"Rows", [](const Shape&) -> std::size_t { return 0; }},
                      Cut{"Columns", [](const Shape& shape) -> std::size_t { return shape.dims() - 1; }}),
    [](const auto& of) { return std::string(of.param.name); });

}  // namespace
}  // namespace weightcast::test_support
