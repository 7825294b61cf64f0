#include "engine/files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "engine/laid_out_source.hpp"
#include "storage/attributes.hpp"

namespace weightcast::engine {
namespace {

const StoredTensor& find_tensor(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor* tensor = checkpoint.find(name);
  if (tensor == nullptr) throw InputError(fmt::format("{}: parameter {} is missing", checkpoint.path, name));
  return *tensor;
}

template <typename T>
std::vector<T> read_elements(const CheckpointReader& reader, const StoredTensor& tensor) {
  std::vector<T> values(static_cast<std::size_t>(tensor.shape.elements()));
  reader.read(tensor, Box::whole(tensor.shape), std::as_writable_bytes(std::span(values)));
  return values;
}

InputError wrong_dtype(const Checkpoint& checkpoint, const StoredTensor& tensor) {
  return InputError(fmt::format("{}: {} has the unexpected dtype {}", checkpoint.path, tensor.name,
                                dtype_name(tensor.dtype)));
}

std::vector<float> read_floats(const Checkpoint& checkpoint, const CheckpointReader& reader,
                               const StoredTensor& tensor) {
  if (tensor.dtype == DType::kF32) return read_elements<float>(reader, tensor);
  if (tensor.dtype != DType::kBF16) throw wrong_dtype(checkpoint, tensor);
  const auto bits = read_elements<std::uint16_t>(reader, tensor);
  std::vector<float> values(bits.size());
  std::ranges::transform(bits, values.begin(), bf16_value);
  return values;
}

/// Sequences of equal length.
std::vector<std::vector<std::int64_t>> read_ids(const Checkpoint& checkpoint, const CheckpointReader& reader,
                                                const std::string& name) {
  const StoredTensor& tensor = find_tensor(checkpoint, name);
  if (tensor.dtype != DType::kI64) throw wrong_dtype(checkpoint, tensor);
  if (tensor.shape.dims() != 2 || tensor.shape.elements() == 0) {
    throw InputError(fmt::format("{}: {} has shape {}, which is of no sequences", checkpoint.path, name,
                                 tensor.shape.to_string()));
  }
  const auto ids = read_elements<std::int64_t>(reader, tensor);
  std::vector<std::vector<std::int64_t>> sequences;
  for (auto at = ids.begin(); at != ids.end(); at += tensor.shape[1]) {
    sequences.emplace_back(at, at + tensor.shape[1]);
  }
  return sequences;
}

std::int64_t require_integer(const Attributes& attributes, const std::string& path, const char* name) {
  const auto value = integer_in(attributes, name);
  if (value) return *value;
  throw InputError(fmt::format("{}: attribute weightcast.{} is missing or no integer", path, name));
}

std::string require_text(const Attributes& attributes, const std::string& path, const char* name) {
  std::string text = text_in(attributes, name);
  if (!text.empty()) return text;
  throw InputError(fmt::format("{}: attribute weightcast.{} is missing", path, name));
}

}  // namespace

FileSource::FileSource(const std::string& path) : checkpoint_(read_checkpoint(path)), reader_(checkpoint_) {}

std::vector<std::string> FileSource::names() const {
  std::vector<std::string> names;
  for (const StoredTensor& tensor : checkpoint_.tensors) names.push_back(tensor.name);
  return names;
}

Tensor FileSource::read(const std::string& name) const {
  const StoredTensor& tensor = find_tensor(checkpoint_, name);
  return {tensor.shape, read_floats(checkpoint_, reader_, tensor)};
}

ShardFacts read_shard_facts(const std::string& path) {
  const Attributes attributes = read_attributes(path);
  const auto number = [&](const char* name) { return require_integer(attributes, path, name); };
  const auto text = [&](const char* name) { return require_text(attributes, path, name); };
  if (text("kind") != "shard") throw InputError(fmt::format("{}: not a shard file", path));
  if (number("pp_size") != 1 || number("pp_rank") != 0) {
    throw InputError(fmt::format("{}: pipeline stages are not computed", path));
  }
  const std::string experts = text("moe_layout");
  if (!is_known_layout(experts)) {
    throw InputError(fmt::format("{}: expert layout {} is not computed", path, experts));
  }
  ShardFacts facts;
  facts.layout.tp_rank = number("tp_rank");
  facts.layout.tp_size = number("tp_size");
  facts.layout.ep_rank = number("ep_rank");
  facts.layout.ep_size = number("ep_size");
  facts.layout.up_first = experts == "cutlass";
  facts.layout.inner_unit = inner_unit(experts);
  facts.moe_layout = experts;
  facts.rank = number("rank");
  facts.replica = number("replica");
  facts.replicas = number("replicas");
  facts.weight_version = number("weight_version");
  facts.expert_epoch = integer_in(attributes, "expert_epoch").value_or(0);  // of none: without a map
  if (facts.replica < 0 || facts.replica >= facts.replicas) {
    throw InputError(fmt::format("{}: replica {} of {}", path, facts.replica, facts.replicas));
  }
  if (facts.rank != facts.replica * facts.layout.tp_size + facts.layout.tp_rank) {
    throw InputError(fmt::format("{}: rank {} is not tp rank {} of replica {}", path, facts.rank,
                                 facts.layout.tp_rank, facts.replica));
  }
  return facts;
}

std::vector<std::vector<std::int64_t>> read_experts_of_slots(const std::string& path, std::int64_t epoch) {
  const auto map = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!map.is_object() || map.value("epoch", std::int64_t{-1}) != epoch) {
    throw InputError(fmt::format("{}: is no expert map of epoch {}, which the shards say", path, epoch));
  }
  return map.at("experts_of_slots").get<std::vector<std::vector<std::int64_t>>>();
}

std::int64_t Reference::appended() const {
  return greedy.empty() ? 0 : static_cast<std::int64_t>(greedy.size() - prompts.front().size());
}

Reference read_reference(const std::string& path) {
  const Checkpoint checkpoint = read_checkpoint(path);
  const CheckpointReader reader(checkpoint);
  Reference reference;
  reference.path = path;
  reference.prompts = read_ids(checkpoint, reader, "input_ids");
  const StoredTensor& logits = find_tensor(checkpoint, "logits");
  const auto prompts = static_cast<std::int64_t>(reference.prompts.size());
  const std::vector<std::int64_t>& first = reference.prompts.front();
  const auto tokens = static_cast<std::int64_t>(first.size());
  if (logits.shape.dims() != 3 || logits.shape[0] != prompts || logits.shape[1] != tokens) {
    throw InputError(fmt::format("{}: logits {} do not belong to {} × {} input_ids", path,
                                 logits.shape.to_string(), prompts, tokens));
  }
  if (checkpoint.find("greedy_ids") != nullptr) {
    reference.greedy = read_ids(checkpoint, reader, "greedy_ids").front();
    if (reference.greedy.size() < first.size() ||
        !std::equal(first.begin(), first.end(), reference.greedy.begin())) {
      throw InputError(fmt::format("{}: greedy_ids do not start with input_ids", path));
    }
  }
  reference.logits.rows = prompts * tokens;
  reference.logits.cols = logits.shape[2];
  reference.logits.values = read_floats(checkpoint, reader, logits);
  return reference;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError(fmt::format("{}: cannot be opened", path));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw IoError(fmt::format("{}: cannot be read", path));
  return text;
}

}  // namespace weightcast::engine
