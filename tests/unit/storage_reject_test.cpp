// Damaged files, missing files and full disks: the error names the file, the tensor and what to do.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>

#include "core/error.hpp"
#include "storage_files.hpp"

namespace weightcast {
namespace {

using namespace testing_files;
namespace fs = std::filesystem;

class StorageReject : public ::testing::Test {
 protected:
  // What reading a checkpoint of that name says when its content is wrong.
  std::string refused(const std::string& name) const {
    return message_of<InputError>([&] { read_checkpoint(dir_ / name); });
  }
  // The same for a safetensors file with that header and so many bytes of data.
  std::string refused_header(std::string_view header, std::size_t data_bytes) const {
    put_file(dir_ / "x.safetensors", safetensors_bytes(header, data_bytes));
    return refused("x.safetensors");
  }

  TempDir dir_;
};

TEST_F(StorageReject, PathsThatCannotBeRead) {
  const auto unreadable = [&](const std::string& name) {
    return message_of<IoError>([&] { read_checkpoint(dir_ / name); });
  };
  EXPECT_TRUE(has(unreadable("none"), {dir_ / "none", "is not there", "name a checkpoint"}));
  put_file(dir_ / "file", "x");
  EXPECT_TRUE(has(unreadable("file/none"), {"file/none"}));
  fs::create_symlink("nowhere", dir_ / "model.safetensors");
  EXPECT_TRUE(has(unreadable(""), {"model.safetensors", "No such file"}));
  fs::create_symlink("nowhere", dir_ / "model.safetensors.index.json");
  EXPECT_TRUE(has(unreadable(""), {"model.safetensors.index.json", "No such file"}));
  EXPECT_TRUE(
      has(message_of<IoError>([] { read_checkpoint("/dev/null"); }), {"/dev/null", "no regular file"}));
}

TEST_F(StorageReject, NoConfig) {
  put_file(dir_ / "x.safetensors", safetensors_bytes("{}", 0));
  create_hdf5(dir_ / "x.h5", {}, {{"w", DType::kU8, Shape{1}}})->commit();
  for (const char* name : {"x.safetensors", "x.h5", ""}) {
    EXPECT_TRUE(has(message_of<IoError>([&] { read_config_text(dir_ / name); }),
                    {dir_ / name, "config.json", "--model"}));
  }
}

TEST_F(StorageReject, HeadersThatDoNotFit) {
  put_file(dir_ / "short", "1234567");
  EXPECT_TRUE(has(refused("short"), {dir_ / "short", "7 bytes", "too few"}));
  put_file(dir_ / "empty", "");
  EXPECT_TRUE(has(refused("empty"), {dir_ / "empty", "0 bytes"}));
  const std::uint64_t length = 1000;
  put_file(dir_ / "long", std::string(reinterpret_cast<const char*>(&length), 8) + "{}   ");
  EXPECT_TRUE(has(refused("long"), {dir_ / "long", "1000 bytes", "5 bytes", "truncated"}));
  put_file(dir_ / "huge", std::string(8, '\xff') + "{}");
  EXPECT_TRUE(has(refused("huge"), {dir_ / "huge", "18446744073709551615", "2 bytes"}));
  const std::uint64_t sparse = 200'000'000;
  put_file(dir_ / "sparse", std::string(reinterpret_cast<const char*>(&sparse), 8) + "{}");
  fs::resize_file(dir_ / "sparse", sparse + 8);
  EXPECT_TRUE(has(refused("sparse"), {dir_ / "sparse", "200000000", "100000000"}));
}

TEST_F(StorageReject, HeadersThatAreNoJson) {
  EXPECT_TRUE(has(refused_header("{\"a\":", 0), {"x.safetensors", "not JSON"}));
  EXPECT_TRUE(has(refused_header("", 0), {"x.safetensors", "zeros"}));
  EXPECT_TRUE(has(refused_header("", 8), {"x.safetensors", "header is empty"}));
  EXPECT_TRUE(has(refused_header("\n\n{\"\xff\": 1}", 0), {"x.safetensors", "not JSON"}));
  EXPECT_TRUE(has(refused_header("[1]", 0), {"x.safetensors", "no JSON object"}));
  EXPECT_TRUE(has(refused_header(R"({"w":1})", 0), {"x.safetensors", "'w'"}));
  EXPECT_TRUE(has(refused_header(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                                     "w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                 1),
                  {"x.safetensors", "'w'", "twice"}));
}

TEST_F(StorageReject, NamesThatSafetensorsCannotHave) {
  const std::vector<DatasetSpec> specs{{"good", DType::kU8, Shape{1}}, {"bad\xff", DType::kU8, Shape{1}}};
  EXPECT_TRUE(has(message_of<InputError>([&] { create_safetensors(dir_ / "x", "{}", specs, 1 << 20); }),
                  {dir_ / "x", "bad\\xff", "no UTF-8", "rename"}));
}

TEST_F(StorageReject, WeightVersionsThatAreNone) {
  for (const char* version : {R"("seven")", R"("")", R"("7 ")", R"("9223372036854775808")", "7"}) {
    EXPECT_TRUE(has(
        refused_header(fmt::format(R"({{"__metadata__":{{"weightcast.weight_version":{}}}}})", version), 0),
        {"x.safetensors", "weightcast.weight_version", "integer"}))
        << version;
  }
}

TEST_F(StorageReject, FilesOfSeveralWeightVersions) {
  const auto put = [&](const std::string& name, std::string_view metadata) {
    put_file(dir_ / name, safetensors_bytes(fmt::format(R"({{"__metadata__":{{{}}}}})", metadata), 0));
  };
  put("model-a.safetensors", R"("weightcast.weight_version":"5")");
  put("model-b.safetensors", R"("weightcast.weight_version":"5")");
  EXPECT_EQ(read_checkpoint(dir_.string()).weight_version, 5);
  put("model-c.safetensors", R"("weightcast.weight_version":"6")");
  EXPECT_TRUE(has(refused(""), {"model-c.safetensors", "version 6", "version 5", "again"}));
  // What another program has written is of no version: half of a checkpoint was replaced.
  put("model-c.safetensors", R"("format":"pt")");
  EXPECT_TRUE(has(refused(""), {"model-c.safetensors", "no weight version", "version 5"}));
  put("model-a.safetensors", R"("format":"pt")");
  EXPECT_TRUE(has(refused(""), {"model-b.safetensors", "version 5", "no weight version"}));
}

TEST_F(StorageReject, FilesOfSeveralConversions) {
  const auto put = [&](const std::string& name, std::string_view metadata) {
    put_file(dir_ / name, safetensors_bytes(fmt::format(R"({{"__metadata__":{{{}}}}})", metadata), 0));
  };
  put("model-a.safetensors", R"("weightcast.conversion":"1")");
  put("model-b.safetensors", R"("weightcast.conversion":"1")");
  EXPECT_EQ(read_checkpoint(dir_.string()).conversion, "1");
  for (const char* other : {R"("weightcast.conversion":"2")", R"("format":"pt")",
                            R"("weightcast.conversion":1)", R"("weightcast.conversion":"")"}) {
    put("model-b.safetensors", other);
    EXPECT_TRUE(has(refused(""), {"model-a.safetensors", "model-b.safetensors", "different conversions",
                                  "write the checkpoint again"}))
        << other;
  }
  put("model-a.safetensors", R"("format":"pt")");
  put("model-b.safetensors", R"("weightcast.conversion":"1")");
  EXPECT_TRUE(has(refused(""), {"different conversions"}));
}

TEST_F(StorageReject, AFolderThatIsBeingReplaced) {
  const auto put = [&](const std::string& name) { put_file(dir_ / name, safetensors_bytes("{}", 0)); };
  put("model-00001-of-00002.safetensors");
  put("model-00002-of-00002.safetensors");
  read_checkpoint(dir_.string());
  // All old, with new files beside; all new, with an old file beside.
  put(".model-00002-of-00002.safetensors.0123456789abcdef.partial");
  read_checkpoint(dir_.string());
  put(".model-00001-of-00002.safetensors.0123456789abcdee.old");
  read_checkpoint(dir_.string());  // of another replacement, which has ended
  put(".model-00001-of-00002.safetensors.0123456789abcdef.old");
  EXPECT_TRUE(
      has(refused(""), {dir_.string(), "files of two checkpoints", "run the job that writes it again"}));
  fs::remove(dir_ / ".model-00002-of-00002.safetensors.0123456789abcdef.partial");
  read_checkpoint(dir_.string());
  // Hidden files of other programs mean nothing.
  put(".other.0123456789abcdef.partial");
  read_checkpoint(dir_.string());
}

TEST_F(StorageReject, TwoSavingsInOneFolder) {
  const auto put = [&](const std::string& name, const std::string& tensor) {
    put_file(dir_ / name,
             safetensors_bytes(
                 fmt::format(R"({{"{}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}})", tensor), 2));
  };
  put("model-00001-of-00002.safetensors", "a");
  put("model-00002-of-00002.safetensors", "b");
  read_checkpoint(dir_.string());
  put("model-00003-of-00003.safetensors", "c");
  EXPECT_TRUE(has(refused(""), {dir_.string(), "2 savings", "model-*-of-00002.safetensors",
                                "model-*-of-00003.safetensors", "remove"}));
  fs::rename(dir_ / "model-00003-of-00003.safetensors", dir_ / "model.safetensors");
  EXPECT_TRUE(has(refused(""), {"2 savings", "model.safetensors", "model-*-of-00002.safetensors"}));
  // Beside an index that does not name it, too, whether the index's own files are there or not.
  put_file(
      dir_ / "model.safetensors.index.json",
      R"({"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}})");
  EXPECT_TRUE(has(refused(""), {"model.safetensors and", "does not name it", "remove"}));
  fs::remove(dir_ / "model-00001-of-00002.safetensors");
  EXPECT_TRUE(has(refused(""), {"model.safetensors and", "does not name it", "remove"}));
  put_file(dir_ / "model.safetensors.index.json", R"({"weight_map":{"c":"model.safetensors"}})");
  EXPECT_EQ(read_checkpoint(dir_.string()).tensors.size(), 1U);
}

TEST_F(StorageReject, HeadersThatCostMuch) {
  EXPECT_TRUE(has(refused_header(std::string(5'000'000, '['), 0), {"x.safetensors", "levels deep"}));
  std::string wide = R"({"w":{"dtype":"U8","shape":[1)";
  while (wide.size() < 20'000'000) wide += ",1";
  EXPECT_TRUE(has(refused_header(wide + R"(],"data_offsets":[0,1]}})", 1), {"x.safetensors", "values"}));
}

TEST_F(StorageReject, IndexesSayWhatCounts) {
  const auto put = [&](const std::string& name, const std::string& header, std::size_t bytes) {
    put_file(dir_ / name, safetensors_bytes(header, bytes));
  };
  // The base has an older copy of v, and a tensor that the index does not list.
  put("base.safetensors",
      R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"v":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},)"
      R"("old":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
      6);
  put("overlay.safetensors", R"({"v":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", 3);
  put("model-unnamed.safetensors", R"({"w":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 9);
  put_file(dir_ / "model.safetensors.index.json",
           R"({"weight_map":{"w":"base.safetensors","v":"overlay.safetensors"}})");
  const Checkpoint checkpoint = read_checkpoint(dir_.string());
  ASSERT_EQ(checkpoint.tensors.size(), 2U);
  EXPECT_EQ(checkpoint.find("v")->bytes(), 3);
  EXPECT_EQ(checkpoint.find("w")->bytes(), 2);
}

TEST_F(StorageReject, TensorsThatContradictThemselves) {
  const auto refused_entry = [&](const std::string& entry) {
    return refused_header(fmt::format("{{\"layer.w\":{{{}}}}}", entry), 100);
  };
  const auto expect = [&](const std::string& entry, std::string_view why) {
    EXPECT_TRUE(has(refused_entry(entry), {"x.safetensors", "'layer.w'", why}));
  };
  expect(R"("dtype":"F7","shape":[25],"data_offsets":[0,100])", "unknown dtype 'F7'");
  expect(R"("shape":[25],"data_offsets":[0,100])", "no dtype");
  expect(R"("dtype":"F32","data_offsets":[0,100])", "shape");
  expect(R"("dtype":"F32","shape":[-25],"data_offsets":[0,100])", "shape");
  expect(R"("dtype":"F32","shape":[2.5],"data_offsets":[0,100])", "shape");
  expect(R"("dtype":"F32","shape":[25])", "data_offsets");
  expect(R"("dtype":"F32","shape":[25],"data_offsets":[100])", "data_offsets");
  expect(R"("dtype":"F32","shape":[25],"data_offsets":[100,0])", "[100, 0] are out of range");
  expect(R"("dtype":"F32","shape":[26],"data_offsets":[0,104])", "[0, 104] reach past the 100 bytes");
  expect(R"("dtype":"F32","shape":[24],"data_offsets":[0,100])", "F32 [24] takes 96 bytes");
  expect(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,100])", "too many bytes");
  expect(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,100])", "shape");
  expect(R"("dtype":"F32","shape":[1,1,1,1,24],"data_offsets":[0,100])", "takes 96 bytes");
  expect(R"("dtype":"F6_E2M3","shape":[133],"data_offsets":[0,100])", "F6_E2M3 [133] takes 99 bytes");
  expect(R"("dtype":"C64","shape":[4611686018427387904,4],"data_offsets":[0,100])", "too many bytes");
  expect(R"("dtype":"F4","shape":[201],"data_offsets":[0,100])", "even");
}

TEST_F(StorageReject, TensorsThatDoNotCoverTheData) {
  const auto two = [](int a, int b, int c, int d) {
    return fmt::format(R"({{"one":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                       R"("two":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                       b - a, a, b, d - c, c, d);
  };
  EXPECT_TRUE(
      has(refused_header(two(0, 60, 50, 100), 100), {"x.safetensors", "'one'", "'two'", "overlap", "50"}));
  EXPECT_TRUE(has(refused_header(two(50, 100, 0, 60), 100), {"x.safetensors", "'one'", "'two'", "overlap"}));
  EXPECT_TRUE(has(refused_header(two(0, 40, 50, 100), 100), {"x.safetensors", "40 to 50", "'two'"}));
  EXPECT_TRUE(has(refused_header(two(10, 50, 50, 100), 100), {"x.safetensors", "0 to 10", "'one'"}));
  EXPECT_TRUE(has(refused_header(two(0, 50, 50, 100), 103), {"x.safetensors", "103 bytes", "last 3"}));
  EXPECT_TRUE(
      has(refused_header(two(0, 50, 50, 100), 99), {"x.safetensors", "'two'", "truncated", "99 bytes"}));
}

TEST_F(StorageReject, TensorsInTwoFiles) {
  const std::string bytes = safetensors_bytes(R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2);
  put_file(dir_ / "model-1.safetensors", bytes);
  put_file(dir_ / "model-2.safetensors", bytes);
  EXPECT_TRUE(has(refused(""), {"'w'", "model-1.safetensors", "model-2.safetensors"}));
}

TEST_F(StorageReject, IndexesThatAreWrong) {
  const auto refused_index = [&](std::string_view text) {
    put_file(dir_ / "model.safetensors.index.json", text);
    return refused("");
  };
  constexpr std::string_view kName = "model.safetensors.index.json";
  put_file(dir_ / "a.safetensors",
           safetensors_bytes(R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2));
  put_file(dir_ / "b.safetensors",
           safetensors_bytes(R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2));
  EXPECT_TRUE(has(refused_index("no"), {kName, "not JSON"}));
  EXPECT_TRUE(has(refused_index("{}"), {kName, "weight_map"}));
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{}})"), {kName, "lists nothing"}));
  for (const char* elsewhere : {"/etc/passwd", "..", "a/../..", "", "."}) {
    EXPECT_TRUE(has(refused_index(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", elsewhere)),
                    {kName, "'w'", "beside the index", "write the file's name alone"}));
  }
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{"w":3}})"), {kName, "'w'"}));
  EXPECT_TRUE(
      has(refused_index(R"({"weight_map":{"w":"../a.safetensors"}})"), {kName, "'w'", "../a.safetensors"}));
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{"w":"none.safetensors"}})"),
                  {kName, "none.safetensors", "not there"}));
  const std::string endless(5000, 'n');
  const std::string said = refused_index(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", endless));
  EXPECT_TRUE(has(said, {kName, "not there"}));
  EXPECT_EQ(said.find(endless), std::string::npos);
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{"u":"a.safetensors"}})"), {kName, "'u'", "a.safetensors"}));
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{"v":"a.safetensors","w":"b.safetensors"}})"),
                  {kName, "'v'", "a.safetensors"}));
  put_file(dir_ / "none.safetensors.incomplete", "x");
  EXPECT_TRUE(has(refused_index(R"({"weight_map":{"w":"none.safetensors"}})"),
                  {kName, "none.safetensors", "download is unfinished (none.safetensors.incomplete)"}));
  fs::create_directory(dir_ / "sub");
  fs::copy(dir_ / "b.safetensors", dir_ / "sub/b.safetensors");
  for (const std::string& name : {std::string("./b.safetensors"), std::string("sub/../b.safetensors"),
                                  std::string("sub/b.safetensors"), dir_ / "b.safetensors"}) {
    put_file(dir_ / "model.safetensors.index.json", fmt::format(R"({{"weight_map":{{"v":"{}"}}}})", name));
    EXPECT_EQ(read_checkpoint(dir_.string()).tensors.size(), 1U) << name;
  }
  put_file(dir_ / "model.safetensors.index.json", R"({"weight_map":{"v":"b.safetensors"}})");
  EXPECT_EQ(paths_of(read_checkpoint(dir_.string())), std::vector<std::string>{dir_ / "b.safetensors"});
}

TEST_F(StorageReject, FilesThatShrinkWhileTheyAreRead) {
  const std::string bytes =
      safetensors_bytes(R"({"layer.w":{"dtype":"U8","shape":[100],"data_offsets":[0,100]}})", 100);
  put_file(dir_ / "x.safetensors", bytes);
  const Checkpoint checkpoint = read_checkpoint(dir_ / "x.safetensors");
  const CheckpointReader reader(checkpoint);
  read_whole(reader, checkpoint.tensors.front());
  fs::resize_file(dir_ / "x.safetensors", bytes.size() - 10);
  EXPECT_TRUE(has(message_of<IoError>([&] { read_whole(reader, checkpoint.tensors.front()); }),
                  {dir_ / "x.safetensors", "layer.w", "10 bytes"}));
  // Of several parts the one that is cut short.
  std::vector<std::byte> room(100);
  const std::vector<ReadPart> parts{{std::span(room).first(60), "the first"},
                                    {std::span(room).subspan(70, 25), "the second"},
                                    {std::span(room).subspan(60, 10), "the third"}};
  EXPECT_TRUE(has(message_of<IoError>([&] {
                    reader.read(FilePlace{0, checkpoint.tensors.front().offset + 10}, parts);
                  }),
                  {dir_ / "x.safetensors", "5 bytes", "the second"}));
  EXPECT_TRUE(
      has(message_of<IoError>([&] { reader.require_unchanged(); }), {dir_ / "x.safetensors", "changed"}));
  const CheckpointReader late(checkpoint);
  EXPECT_TRUE(has(message_of<IoError>([&] { read_whole(late, checkpoint.tensors.front()); }),
                  {dir_ / "x.safetensors", "changed"}));
  fs::remove(dir_ / "x.safetensors");
  const CheckpointReader latest(checkpoint);
  EXPECT_TRUE(has(message_of<IoError>([&] { read_whole(latest, checkpoint.tensors.front()); }),
                  {dir_ / "x.safetensors", "No such file"}));
}

TEST_F(StorageReject, DatasetsThatCannotBeWritten) {
  const auto hdf5 = [&](const std::vector<DatasetSpec>& datasets) {
    return message_of<InputError>([&] { create_hdf5(dir_ / "a.h5", {}, datasets); });
  };
  EXPECT_TRUE(has(hdf5({{"a/b", DType::kU8, Shape{1}}}), {"a.h5", "'a/b'"}));
  EXPECT_TRUE(has(hdf5({{".", DType::kU8, Shape{1}}}), {"a.h5", "'.'"}));
  EXPECT_TRUE(has(hdf5({{"", DType::kU8, Shape{1}}}), {"a.h5", "without a name"}));
  EXPECT_TRUE(has(hdf5({{"w", DType::kU8, Shape{1}}, {"w", DType::kU8, Shape{1}}}), {"a.h5", "'w'"}));
  EXPECT_TRUE(has(hdf5({{"w", DType::kU8, Shape{-1}}}), {"a.h5", "'w'", "[-1]"}));
  EXPECT_TRUE(has(hdf5({{"w", DType::kF64, Shape{std::int64_t{1} << 62}}}), {"a.h5", "'w'", "too large"}));
  EXPECT_TRUE(has(message_of<InputError>([&] {
                    create_safetensors(dir_.string(), "", {{"\xff", DType::kU8, Shape{1}}}, 100);
                  }),
                  {"name"}));
  // HDF5 would cut the name there, and two tensors might become one.
  const std::string zero("w\0eight", 7);
  const std::string longest(4096, 'w');
  EXPECT_TRUE(has(hdf5({{zero, DType::kU8, Shape{1}}}), {"a.h5", "'w\\x00eight'", "zero byte", "rename it"}));
  EXPECT_TRUE(
      has(hdf5({{longest + "w", DType::kU8, Shape{1}}}), {"a.h5", "'www", "4097 bytes", "shorten it"}));
  EXPECT_TRUE(has(message_of<InputError>([&] {
                    create_safetensors(dir_.string(), "", {{zero, DType::kU8, Shape{1}}}, 100);
                  }),
                  {"zero byte"}));
  EXPECT_TRUE(names_in(dir_.string()).empty());
  create_hdf5(dir_ / "long.h5", {}, {{longest, DType::kU8, Shape{1}}})->commit();
  EXPECT_EQ(read_checkpoint(dir_ / "long.h5").tensors.front().name, longest);

  const auto writer = create_hdf5(dir_ / "a.h5", {}, {{"w", DType::kU8, Shape{10}}});
  const std::vector<std::byte> data(5);
  EXPECT_TRUE(has(message_of<InternalError>([&] { writer->write(0, 6, data); }), {"a.h5", "'w'"}));
  EXPECT_TRUE(has(message_of<InternalError>([&] { writer->write(0, -1, data); }), {"a.h5", "'w'"}));
  EXPECT_TRUE(has(message_of<InternalError>([&] { writer->write(1, 0, data); }), {"a.h5"}));
}

TEST_F(StorageReject, FoldersThatCannotBeMade) {
  put_file(dir_ / "file", "x");
  EXPECT_TRUE(
      has(message_of<IoError>([&] { create_hdf5(dir_ / "file/a.h5", {}, {}); }), {dir_ / "file/a.h5"}));
  EXPECT_TRUE(
      has(message_of<IoError>([&] { create_safetensors(dir_ / "file/a", "", {}, 1); }), {dir_ / "file/a"}));
  EXPECT_TRUE(has(message_of<IoError>([&] { create_hdf5(dir_.string(), {}, {}); }),
                  {dir_.string(), "Is a directory"}));
}

// A file system of 1 MiB.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& path) : path_(path) {
    fs::create_directory(path_);
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount(path_.c_str());
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST_F(StorageReject, AFullDiskShowsBeforeAnythingIsWritten) {
  const SmallDisk disk(dir_ / "small");
  if (!disk.mounted()) GTEST_SKIP() << "mounting is not permitted here";
  const std::vector<DatasetSpec> large{{"w", DType::kF32, Shape{4, 1024, 1024}}};
  EXPECT_TRUE(has(message_of<IoError>([&] { create_hdf5(dir_ / "small/a.h5", {}, large); }),
                  {dir_ / "small/a.h5", "No space left on device", "16.0 MiB"}));
  EXPECT_TRUE(has(message_of<IoError>([&] { create_safetensors(dir_ / "small", "", large, 1 << 30); }),
                  {dir_ / "small", "No space left on device", "16.0 MiB"}));
  // The data would just fit, but not beside the headers, or not into what a neighbour has left.
  const std::vector<DatasetSpec> tight{{"w", DType::kU8, Shape{1 << 20}}};
  EXPECT_TRUE(has(message_of<IoError>([&] { create_hdf5(dir_ / "small/a.h5", {}, tight); }),
                  {dir_ / "small/a.h5", "No space left on device", "MiB"}));
  EXPECT_TRUE(has(message_of<IoError>([&] { create_safetensors(dir_ / "small", "", tight, 1 << 30); }),
                  {"small/model.safetensors", "No space left on device", "MiB"}));
  const std::vector<DatasetSpec> half{{"w", DType::kU8, Shape{600'000}}};
  {
    const auto writer = create_hdf5(dir_ / "small/a.h5", {}, half);
    EXPECT_TRUE(has(message_of<IoError>([&] { create_hdf5(dir_ / "small/b.h5", {}, half); }),
                    {dir_ / "small/b.h5", "No space left on device"}));
    write_all(*writer, half);
    writer->commit();
  }
  EXPECT_EQ(names_in(dir_ / "small"), std::vector<std::string>{"a.h5"});
  expect_holds(read_checkpoint(dir_ / "small"), half);
  // Not even room for the names: the library fails to close its file, and takes that to its grave.
  put_file(dir_ / "small/rest", std::string((1 << 20) - 4096 - 602'112, 'x'));
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(has(message_of<IoError>([&] {
                      create_hdf5(dir_ / "small/b.h5", {}, {{"w", DType::kU8, Shape{1}}});
                    }),
                    {dir_ / "small/b.h5", "No space left on device"}));
  }
}

TEST_F(StorageReject, AFileSizeLimitShowsBeforeAnythingIsWritten) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 1 << 20, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of<IoError>([&] {
    create_safetensors(dir_.string(), "", {{"w", DType::kU8, Shape{1 << 21}}}, 1 << 30);
  });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(has(message, {"model.safetensors", "File too large", "2.00 MiB"}));
  EXPECT_TRUE(names_in(dir_.string()).empty());
}

}  // namespace
}  // namespace weightcast
