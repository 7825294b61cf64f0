#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>
#include <random>

#include "control_world.hpp"
#include "core/float_bits.hpp"
#include "session_cases.hpp"
#include "shared_dir.hpp"
#include "source/binding.hpp"
#include "source/file_source.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::SharedDir;
using mpi_test::under_control;

/// A checkpoint as it is stored, and the weights that the engine must find of it.
struct Stored {
  std::vector<DatasetSpec> datasets;
  std::vector<std::vector<std::byte>> data;
  naive::Weights weights;
};

void write(TensorFileWriter& writer, const Stored& stored) {
  for (std::size_t i = 0; i < stored.data.size(); ++i) writer.write(i, 0, stored.data[i]);
  writer.commit();
}

/// One dataset a tensor, in the model's dtype.
Stored as_is(const naive::Model& model, std::uint64_t version) {
  Stored stored;
  stored.weights = naive::random_weights(model, version);
  for (const naive::Entry& entry : naive::tensors(model)) {
    stored.datasets.push_back({entry.name, model.dtype, entry.shape});
    stored.data.push_back(stored.weights.at(entry.name));
  }
  return stored;
}

/// float32 for a bfloat16 model, the experts of a layer stacked: gate and up as [E, 2I, H], down as [E, H,
/// I].
Stored stacked_floats(const naive::Model& model, std::uint64_t version) {
  Stored stored;
  std::mt19937_64 random(version);
  std::map<std::string, std::size_t> numbers;
  for (const naive::Entry& entry : naive::tensors(model)) {
    std::vector<float> values(static_cast<std::size_t>(entry.shape.elements()));
    auto& rounded = stored.weights[entry.name];
    for (float& value : values) {
      value = std::uniform_real_distribution<float>(-3, 3)(random);
      const std::uint16_t bits = bf16_bits(value);
      const auto* bytes = reinterpret_cast<const std::byte*>(&bits);
      rounded.insert(rounded.end(), bytes, bytes + 2);
    }
    std::string name = entry.name;
    Shape shape = entry.shape;
    const std::size_t marker = name.find(".experts.");
    if (marker != std::string::npos) {
      const bool down = name.ends_with("down_proj.weight");
      name = name.substr(0, marker) + (down ? ".experts.down_proj" : ".experts.gate_up_proj");
      shape = {model.experts, shape[0] * (down ? 1 : 2), shape[1]};
    }
    const auto [at, fresh] = numbers.emplace(name, stored.datasets.size());
    if (fresh) {
      stored.datasets.push_back({name, DType::kF32, shape});
      stored.data.emplace_back();
    }
    // The naive order is expert by expert, gate before up: appending stacks them.
    auto& data = stored.data[at->second];
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    data.insert(data.end(), bytes, bytes + values.size() * sizeof(float));
  }
  return stored;
}

void update_from(Control& control, Session& session, const Family& family, const std::string& path,
                 std::int64_t version) {
  const Checkpoint checkpoint = read_checkpoint(path);
  const Binding binding = bind(family, checkpoint);
  ThreadPool readers(3);
  std::optional<FileSource> source;
  if (session.plan().topology.trainer(control.rank())) {
    source.emplace(session.plan(), family.catalog(), checkpoint, binding.held, readers);
  }
  Progress progress(ProgressMode::kNever, false);
  const UpdateSeconds seconds = session.update(source ? &*source : nullptr, version, true, progress);
  EXPECT_GT(seconds.read, 0);
  EXPECT_EQ(seconds.pack, 0);
}

TEST(SessionFromFiles, VersionsInEveryFormOneAfterAnother) {
  naive::Model model = small_model(true);
  model.mlp_only_layers = {0};
  model.bias = true;
  const Topology topology = topology_of(2, "tp=2,ep=2,replicas=2");
  under_control(6, [&](Control& control) {
    const SharedDir dir(control);
    const std::vector<Stored> versions{as_is(model, 1), as_is(model, 2), stacked_floats(model, 3),
                                       stacked_floats(model, 4)};
    const std::vector<std::string> paths{dir / "one", dir / "two.h5", dir / "three", dir / "four.h5"};
    control.agreement.together([&] {
      if (control.rank() != 0) return;
      for (std::size_t i = 0; i < versions.size(); ++i) {
        const std::vector<DatasetSpec>& datasets = versions[i].datasets;
        write(*(paths[i].ends_with(".h5")
                    ? create_hdf5(paths[i], {{"kind", std::string("checkpoint")}}, datasets)
                    : create_safetensors(paths[i], model.config_text(), datasets, 300'000)),
              versions[i]);
      }
    });
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    Session session(control, *family, topology, limits);
    for (std::size_t i = 0; i < versions.size(); ++i) {
      SCOPED_TRACE(paths[i]);
      update_from(control, session, *family, paths[i], static_cast<std::int64_t>(i));
      expect_holds(session, control.rank(), model, versions[i].weights);
    }
  });
}

TEST(SessionFromFiles, ColocatedTrainersReadTheirShares) {
  const naive::Model model = small_model(false);
  const Topology topology = colocated("tp=2,pp=2");
  under_control(4, [&](Control& control) {
    const SharedDir dir(control);
    const Stored stored = stacked_floats(model, 9);
    control.agreement.together([&] {
      if (control.rank() == 0) {
        write(*create_safetensors(dir / "checkpoint", model.config_text(), stored.datasets, 1 << 30), stored);
      }
    });
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = 70'000;
    limits.buffers = 1;
    Session session(control, *family, topology, limits);
    update_from(control, session, *family, dir / "checkpoint", 9);
    expect_holds(session, control.rank(), model, stored.weights);
  });
}

}  // namespace

}  // namespace weightcast
