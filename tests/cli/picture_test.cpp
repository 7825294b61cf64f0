// --picture: what is drawn is what the report says, and nothing else is written over.

#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <sstream>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class Picture : public CliTest {
 protected:
  /// The texts of a picture, tooltips included, one a line. Fails where it is no XML.
  static std::string texts_of(const std::string& path) {
    std::istringstream stream(get_file(path));
    boost::property_tree::ptree tree;
    boost::property_tree::read_xml(stream, tree);
    std::string texts;
    add_texts(tree.get_child("svg"), texts);
    return texts;
  }

  std::string svg_ = dir_ / "picture.svg";

 private:
  static void add_texts(const boost::property_tree::ptree& tree, std::string& texts) {
    for (const auto& [name, below] : tree) {
      if (name == "text" || name == "title" || name == "desc") texts += below.data() + "\n";
      if (name == "rect") add_texts(below, texts);
    }
  }
};

TEST_F(Picture, OfAPlanNamesRanksSizesAndSteps) {
  const std::string json = dir_ / "plan.json";
  const Words words{"plan",      "--source",      trained(0), "--trainers", "2",  "--inference",
                    "tp=2,ep=2", "--bucket-size", "64KiB",    "--json",     json, "--picture",
                    svg_};
  EXPECT_TRUE(done(run_plain(words)));
  const std::string texts = texts_of(svg_);
  const nlohmann::json plan = read_json(json);
  EXPECT_TRUE(
      has(texts, {"weightcast plan: ", "2 trainers → 1 replica of 2 engine ranks (tp 2, ep 2, pp 1)",
                  "trainer 1 to engine rank 0: ", "the busiest link carries ",
                  std::to_string(plan.at("steps").at("count").get<int>()) + " steps, of which the busiest"}));
  // An earlier picture is one's own.
  EXPECT_TRUE(done(run_plain(words)));
  EXPECT_EQ(texts_of(svg_), texts);
}

TEST_F(Picture, OfManyRanksPutsThemTogether) {
  EXPECT_TRUE(done(run_plain({"plan", "--model", model_folder("Qwen3-235B-A22B"), "--trainers", "256",
                              "--inference", "tp=32,ep=32,replicas=16", "--picture", svg_})));
  EXPECT_TRUE(
      has(texts_of(svg_), {"256 trainers → 16 replicas of 32 engine ranks", "all replicas are served alike",
                           "trainers 0–7", "trainers 248–255", "engine rank 31", "trainers 240–255"}));
  EXPECT_LT(get_file(svg_).size(), 1'000'000);
}

TEST_F(Picture, OfAPlanInWhichNothingTravels) {
  EXPECT_TRUE(done(run_plain({"plan", "--source", trained(0), "--colocate", "--picture", svg_})));
  EXPECT_TRUE(has(texts_of(svg_), {"no link carries anything"}));
}

TEST_F(Picture, OfABenchHasBarsBesideTheWire) {
  EXPECT_TRUE(done(
      run_job(2, {"bench", "--model", model_folder("tiny-qwen3"), "--iterations", "1", "--picture", svg_})));
  EXPECT_TRUE(
      has(texts_of(svg_), {"weightcast bench: ", "\nupdate\n", "\nupdate, verified\n",
                           "\nbound: the busiest link\n", "MPI_Ibcast", " GB/s · ", "\ntransport\n"}));
}

TEST_F(Picture, ReplacesNothingOfOthers) {
  const Words plan{"plan", "--source", trained(0), "--picture"};
  for (const char* text : {"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "a text"}) {
    put_file(svg_, text);
    EXPECT_TRUE(refused(run_plain(plan + Words{svg_}), 64, {"--picture " + svg_, "no report", "remove it"}));
    EXPECT_TRUE(refused(run_job(2, {"bench", "--model", model_folder("tiny-qwen3"), "--picture", svg_}), 64,
                        {"--picture " + svg_, "no report"}));
    EXPECT_EQ(get_file(svg_), text);
  }
  std::filesystem::create_directory(dir_ / "folder");
  EXPECT_TRUE(refused(run_plain(plan + Words{dir_ / "folder"}), 74, {"--picture", "Is a directory"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{""}), 64, {"--picture", "is empty"}));
  const std::string json = dir_ / "plan.json";
  EXPECT_TRUE(refused(run_plain(plan + Words{json, "--json", json}), 64,
                      {"--picture " + json, "the file of --json, too"}));
  EXPECT_TRUE(refused(
      run_job(1, {"bench", "--layouts", "--model", model_folder("block-qwen3-moe"), "--picture", svg_}), 64,
      {"--picture", "--layouts"}));
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--picture", svg_}), 64, {"--picture"}));
}

TEST_F(Picture, OfAModelWhoseNameIsNoText) {
  const std::string folder = dir_ / "<script>\x1b[2J&\"";
  std::filesystem::create_directory(folder);
  std::filesystem::copy(trained(0) + "/config.json", folder + "/config.json");
  EXPECT_TRUE(done(run_plain({"plan", "--model", folder, "--picture", svg_})));
  EXPECT_EQ(get_file(svg_).find('\x1b'), std::string::npos);
  EXPECT_EQ(get_file(svg_).find("<script"), std::string::npos);
  EXPECT_TRUE(has(texts_of(svg_), {R"(<script>\x1b[2J&")"}));
}

}  // namespace
}  // namespace weightcast::test_support
