// Reading and writing whole checkpoints: what is written comes back, whichever way it is read.

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.hpp"
#include "storage/attributes.hpp"
#include "storage_files.hpp"

namespace weightcast {
namespace {

using namespace testing_files;
namespace fs = std::filesystem;

constexpr const char* kStep0 = WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/step0";

TEST(Storage, RealModelHasItsTensors) {
  const Checkpoint checkpoint = read_checkpoint(kStep0);
  const std::string file = std::string(kStep0) + "/model.safetensors";
  EXPECT_EQ(paths_of(checkpoint), std::vector<std::string>{file});
  EXPECT_EQ(checkpoint.tensors.size(), 102U);
  EXPECT_EQ(checkpoint.weight_version, std::nullopt);
  for (const StoredTensor& tensor : checkpoint.tensors) EXPECT_EQ(tensor.dtype, DType::kBF16) << tensor.name;
  const StoredTensor* head = checkpoint.find("lm_head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->shape, (Shape{259, 128}));
  EXPECT_EQ(checkpoint.find("lm_head"), nullptr);
  EXPECT_EQ(nlohmann::json::parse(read_config_text(kStep0)).at("vocab_size"), 259);
  EXPECT_EQ(read_config_text(file), read_config_text(kStep0));
}

TEST(Storage, RealModelIsReadWhereItLies) {
  const Checkpoint checkpoint = read_checkpoint(kStep0);
  const std::string file = get_file(checkpoint.files.front().path);
  const CheckpointReader reader(checkpoint);
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const auto data = read_whole(reader, tensor);
    ASSERT_EQ(std::string_view(file).substr(static_cast<std::size_t>(tensor.offset), data.size()),
              std::string_view(reinterpret_cast<const char*>(data.data()), data.size()))
        << tensor.name;
  }
}

TEST(Storage, SafetensorsRoundTrip) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  auto writer = create_safetensors(dir / "a/b", "{\"model_type\": \"x\"}", datasets, std::int64_t{1} << 40);
  write_all(*writer, datasets);
  writer->commit();
  EXPECT_EQ(names_in(dir / "a/b"), (std::vector<std::string>{"config.json", "model.safetensors"}));
  EXPECT_EQ(read_config_text(dir / "a/b"), "{\"model_type\": \"x\"}");
  expect_holds(read_checkpoint(dir / "a/b"), datasets);
  // Every tensor starts at a multiple of its element's size, as those want who map the file.
  for (const StoredTensor& tensor : read_checkpoint(dir / "a/b").tensors) {
    EXPECT_EQ(tensor.offset % dtype_bytes(tensor.dtype), 0) << tensor.name;
  }
}

TEST(Storage, SafetensorsInSeveralFiles) {
  const TempDir dir;
  const std::vector<DatasetSpec> datasets{{"a", DType::kF32, Shape{10}},
                                          {"b", DType::kF32, Shape{10}},
                                          {"larger", DType::kU8, Shape{1000}},
                                          {"c", DType::kBF16, Shape{10}}};
  auto writer = create_safetensors(dir.string(), "{}", datasets, 80);
  write_all(*writer, datasets);
  writer->commit();
  EXPECT_EQ(names_in(dir.string()),
            (std::vector<std::string>{"config.json", "model-00001-of-00003.safetensors",
                                      "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
                                      "model.safetensors.index.json"}));
  const auto index = nlohmann::json::parse(get_file(dir / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 1100);
  EXPECT_EQ(index["weight_map"]["larger"], "model-00002-of-00003.safetensors");
  expect_holds(read_checkpoint(dir.string()), datasets);
  // Without the index the files are found by their names.
  fs::remove(dir / "model.safetensors.index.json");
  expect_holds(read_checkpoint(dir.string()), datasets);
}

TEST(Storage, WeightVersionIsInEverySafetensorsFile) {
  const TempDir dir;
  const std::vector<DatasetSpec> datasets{{"a", DType::kF32, Shape{10}}, {"b", DType::kF32, Shape{10}}};
  for (const std::int64_t max_file_bytes : {40, 1000}) {
    for (const std::int64_t version : {std::int64_t{0}, std::int64_t{5}, std::int64_t{1} << 60}) {
      create_safetensors(dir.string(), "{}", datasets, max_file_bytes, version)->commit();
      const Checkpoint checkpoint = read_checkpoint(dir.string());
      EXPECT_EQ(checkpoint.files.size(), max_file_bytes == 40 ? 2U : 1U);
      EXPECT_EQ(checkpoint.weight_version, version);
      EXPECT_FALSE(checkpoint.conversion.empty());
      for (const auto& [file, identity, hash] : checkpoint.files) {
        EXPECT_EQ(read_checkpoint(file).weight_version, version) << file;
        const std::string bytes = get_file(file);
        std::uint64_t length = 0;
        std::memcpy(&length, bytes.data(), sizeof length);
        const auto header = nlohmann::json::parse(bytes.substr(sizeof length, length));
        const nlohmann::json expected{{"format", "pt"},
                                      {"weightcast.weight_version", std::to_string(version)},
                                      {"weightcast.conversion", checkpoint.conversion}};
        EXPECT_EQ(header.at("__metadata__"), expected) << file;
      }
    }
  }
  create_safetensors(dir.string(), "{}", datasets, 40)->commit();
  EXPECT_EQ(read_checkpoint(dir.string()).weight_version, std::nullopt);
}

TEST(Storage, SafetensorsReplaceAnEarlierCheckpoint) {
  const TempDir dir;
  const std::vector<DatasetSpec> datasets{{"a", DType::kF32, Shape{10}}, {"b", DType::kF32, Shape{10}}};
  for (const std::int64_t max_file_bytes : {40, 1000, 40}) {
    put_file(dir / "unrelated.safetensors", "kept");
    auto writer = create_safetensors(dir.string(), "{}", datasets, max_file_bytes);
    write_all(*writer, datasets);
    writer->commit();
    EXPECT_EQ(names_in(dir.string()).size(), max_file_bytes == 40 ? 5U : 3U);
    expect_holds(read_checkpoint(dir.string()), datasets);
  }
  EXPECT_EQ(get_file(dir / "unrelated.safetensors"), "kept");
}

TEST(Storage, NoTensorsAtAll) {
  const TempDir dir;
  create_safetensors(dir.string(), "", {}, 1)->commit();
  EXPECT_TRUE(read_checkpoint(dir.string()).tensors.empty());
}

TEST(Storage, PackedCodesCountTwiceInSafetensors) {
  const TempDir dir;
  put_file(dir / "x.safetensors",
           safetensors_bytes(R"({"w":{"dtype":"F4","shape":[3,8],"data_offsets":[0,12]}})", 12));
  const Checkpoint checkpoint = read_checkpoint(dir / "x.safetensors");
  EXPECT_EQ(checkpoint.find("w")->shape, (Shape{3, 4}));
  EXPECT_EQ(checkpoint.find("w")->bytes(), 12);
}

TEST(Storage, WhatSafetensorsCannotSayIsRefused) {
  const TempDir dir;
  const auto refusal = [&](const DatasetSpec& spec) {
    return message_of<InputError>([&] { create_safetensors_file(dir / "x.safetensors", {}, {spec}); });
  };
  EXPECT_TRUE(
      has(refusal({"__metadata__", DType::kBF16, Shape{2}}), {"x.safetensors", "__metadata__", "rename"}));
  EXPECT_TRUE(
      has(refusal({"code", DType::kF4E2M1x2, Shape{}}), {"x.safetensors", "code", "F4", "write HDF5"}));
  EXPECT_TRUE(names_in(dir.string()).empty());
}

TEST(Storage, AttributesSayTheSameInBothFormats) {
  const TempDir dir;
  const Attributes attributes{
      {"kind", std::string("shard")}, {"rank", std::int64_t{-3}}, {"text", std::string("7b")}};
  for (const FileFormat format : {FileFormat::kHdf5, FileFormat::kSafetensors}) {
    const std::string path = dir / std::string(file_format_name(format));
    create_tensor_file(format, path, attributes, {{"7b", DType::kBF16, Shape{2}}})->commit();
    const Attributes read = read_attributes(path);
    EXPECT_EQ(integer_in(read, "rank"), -3);
    EXPECT_EQ(text_in(read, "rank"), "-3");
    EXPECT_EQ(integer_in(read, "text"), std::nullopt);
    EXPECT_EQ(integer_in(read, "absent"), std::nullopt);
    EXPECT_EQ(text_in(read, "absent"), "");
    // What an attribute says is no other name of a tensor.
    EXPECT_EQ(read_checkpoint(path).tensors.size(), 1);
  }
}

TEST(Storage, AFileIsKnownByItsContent) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  auto writer = create_hdf5(dir / "weights.bin", {}, datasets);
  write_all(*writer, datasets);
  writer->commit();
  expect_holds(read_checkpoint(dir / "weights.bin"), datasets);
  put_file(dir / "other.bin", safetensors_bytes("{}", 0));
  EXPECT_TRUE(read_checkpoint(dir / "other.bin").tensors.empty());
}

// Boxes of all kinds of three tensors: narrow rows, which go through the scratch buffer; wide rows of which
// little is wanted; rows longer than the scratch buffer.
TEST(Storage, BoxesOfEveryKind) {
  const TempDir dir;
  const std::int64_t long_row = CheckpointReader::kScratchBytes + 12;
  const std::vector<DatasetSpec> datasets{{"narrow", DType::kBF16, Shape{4000, 1000}},
                                          {"wide", DType::kF32, Shape{40, 20000}},
                                          {"long", DType::kU8, Shape{3, long_row}},
                                          {"stack", DType::kI16, Shape{3, 5, 7, 11}}};
  auto writer = create_safetensors(dir.string(), "", datasets, std::int64_t{1} << 30);
  write_all(*writer, datasets);
  writer->commit();
  const Checkpoint checkpoint = read_checkpoint(dir.string());
  const CheckpointReader reader(checkpoint);
  for (const DatasetSpec& dataset : datasets) {
    const StoredTensor& tensor = *checkpoint.find(dataset.name);
    const auto whole = data_of(dataset);
    const std::int64_t rows = tensor.shape.rows();
    const std::int64_t cols = tensor.shape.cols();
    for (const Box& box :
         {Box{0, rows, 0, cols}, Box{1, rows - 2, 0, cols}, Box{rows - 1, 1, cols - 1, 1},
          Box{0, rows, 1, cols - 2}, Box{1, rows - 1, cols / 4, cols / 4}, Box{0, rows, cols - 3, 3},
          Box{0, rows, 0, cols / 2}, Box{0, 0, 0, cols}, Box{rows, 0, cols, 0}}) {
      EXPECT_EQ(read_box(reader, tensor, box), cut(whole, tensor.shape, dtype_bytes(tensor.dtype), box))
          << dataset.name << ": " << box.to_string();
    }
  }
}

// More parts than a system call takes; some behind each other in memory, some apart, some empty.
TEST(Storage, NeighboursAreReadAtOnce) {
  const Checkpoint checkpoint = read_checkpoint(kStep0);
  const std::string file = get_file(checkpoint.files.front().path);
  const CheckpointReader reader(checkpoint);
  const StoredTensor& tensor = *checkpoint.find("lm_head.weight");
  const FilePlace place{tensor.file, tensor.offset + std::int64_t{3} * 256};

  std::vector<std::byte> room(100'000, std::byte{0xee});
  std::vector<ReadPart> parts;
  std::string expected(room.size(), '\xee');
  std::size_t at = 0;
  std::size_t from = static_cast<std::size_t>(place.offset);
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t bytes = i * 7 % 50;
    parts.push_back({std::span(room).subspan(at, bytes), tensor.name});
    expected.replace(at, bytes, file, from, bytes);
    from += bytes;
    at += bytes + (i % 3 == 0 ? 0 : 13);
  }
  reader.read(place, parts);
  EXPECT_TRUE(std::string_view(reinterpret_cast<const char*>(room.data()), room.size()) == expected);
}

TEST(Storage, BoxesOutsideAreTheProgramsMistake) {
  const Checkpoint checkpoint = read_checkpoint(kStep0);
  const CheckpointReader reader(checkpoint);
  const StoredTensor& head = *checkpoint.find("lm_head.weight");
  std::vector<std::byte> room(std::size_t{2} * 128);
  for (const Box& box : {Box{259, 1, 0, 128}, Box{0, 1, 1, 128}, Box{-1, 1, 0, 128}, Box{2, -1, 0, -128}}) {
    EXPECT_TRUE(has(message_of<InternalError>([&] { reader.read(head, box, room); }),
                    {"lm_head.weight", "[259, 128]"}));
  }
  EXPECT_TRUE(has(message_of<InternalError>([&] {
                    reader.read(head, Box{0, 1, 0, 127}, room);
                  }),
                  {"lm_head.weight", "256", "254"}));
}

TEST(Storage, FourThreadsReadAtOnce) {
  const Checkpoint checkpoint = read_checkpoint(kStep0);
  const CheckpointReader sequential(checkpoint);
  std::vector<std::vector<std::byte>> expected;
  for (const StoredTensor& tensor : checkpoint.tensors) expected.push_back(read_whole(sequential, tensor));

  const CheckpointReader reader(checkpoint);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t i = 0; i < checkpoint.tensors.size(); ++i) {
        const std::size_t mine = (i + thread * 25) % checkpoint.tensors.size();
        if (read_whole(reader, checkpoint.tensors[mine]) != expected[mine]) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Storage, FourThreadsWriteAtOnce) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  auto writer = create_hdf5(dir / "a.h5", {}, datasets);
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t i = thread; i < datasets.size(); i += 4) writer->write(i, 0, data_of(datasets[i]));
    });
  }
  for (std::thread& thread : threads) thread.join();
  writer->flush();
  writer->commit();
  expect_holds(read_checkpoint(dir / "a.h5"), datasets);
}

TEST(Storage, NothingHappensWithoutCommit) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  put_file(dir / "a.h5", "what was there");
  const std::string old = safetensors_bytes(R"({"__metadata__":{"weightcast.conversion":"1"}})", 0);
  put_file(dir / "model.safetensors", old);
  for (const bool flushed : {false, true}) {
    auto hdf5 = create_hdf5(dir / "a.h5", {}, datasets);
    auto safetensors = create_safetensors(dir.string(), "{}", datasets, 100);
    write_all(*hdf5, datasets);
    write_all(*safetensors, datasets);
    if (flushed) hdf5->flush();
    if (flushed) safetensors->flush();
    EXPECT_GT(names_in(dir.string()).size(), 2U);
  }
  EXPECT_EQ(names_in(dir.string()), (std::vector<std::string>{"a.h5", "model.safetensors"}));
  EXPECT_EQ(get_file(dir / "a.h5"), "what was there");
  EXPECT_EQ(get_file(dir / "model.safetensors"), old);
}

TEST(Storage, HeadersTravelAsBytes) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  create_hdf5(dir / "a.h5", {{"weight_version", std::int64_t{41}}}, datasets)->commit();
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5");
  const auto bytes = serialize(checkpoint);
  const Checkpoint copy = deserialize_checkpoint(bytes);
  EXPECT_EQ(copy.path, checkpoint.path);
  EXPECT_EQ(copy.files, checkpoint.files);
  EXPECT_EQ(copy.weight_version, 41);
  ASSERT_EQ(copy.tensors.size(), checkpoint.tensors.size());
  for (std::size_t i = 0; i < copy.tensors.size(); ++i) {
    EXPECT_EQ(copy.tensors[i].name, checkpoint.tensors[i].name);
    EXPECT_EQ(copy.tensors[i].dtype, checkpoint.tensors[i].dtype);
    EXPECT_EQ(copy.tensors[i].shape, checkpoint.tensors[i].shape);
    EXPECT_EQ(copy.tensors[i].file, checkpoint.tensors[i].file);
    EXPECT_EQ(copy.tensors[i].offset, checkpoint.tensors[i].offset);
  }
  EXPECT_EQ(serialize(copy), bytes);
  for (std::size_t length = 0; length < bytes.size(); length += 13) {
    EXPECT_THROW(deserialize_checkpoint(std::span(bytes).first(length)), InternalError);
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_THROW(deserialize_checkpoint(longer), InternalError);
}

}  // namespace
}  // namespace weightcast
