#include "model/allocation.hpp"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

/// Sizes by letter; nothing for a letter that was not written.
struct Sizes {
  std::optional<std::int64_t> d, p, t, c, e;

  std::optional<std::int64_t>* at(char letter) {
    switch (letter) {
      case 'd':
        return &d;
      case 'p':
        return &p;
      case 't':
        return &t;
      case 'c':
        return &c;
      case 'e':
        return &e;
      default:
        return nullptr;
    }
  }
};

/// Reads an allocation from left to right and knows where it is.
class Scanner {
 public:
  Scanner(const std::string& option, std::string_view text) : option_(option), text_(text) {}

  bool at_end() const { return at_ == text_.size(); }

  bool take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  /// `d4p1t4`: some of `letters`, each once, with a size.
  Sizes sizes(std::string_view letters, const char* of) {
    Sizes sizes;
    const std::size_t start = at_;
    while (!at_end() && std::string_view("+|)").find(text_[at_]) == std::string_view::npos) {
      const char letter = text_[at_];
      if (letters.find(letter) == std::string_view::npos) {
        fail(fmt::format("unknown letter; {} takes {}", of, listed(letters)));
      }
      const char* first = text_.data() + at_ + 1;
      const char* last = text_.data() + text_.size();
      std::int64_t size = 0;
      const auto [end, status] = std::from_chars(first, last, size);
      if (status != std::errc() || size < 1 || size > kMostRanks) {
        fail(fmt::format("write a size of 1 to {} behind {}", kMostRanks, letter));
      }
      std::optional<std::int64_t>& field = *sizes.at(letter);
      if (field) fail(fmt::format("{} a second time; write it once", letter));
      field = size;
      at_ = static_cast<std::size_t>(end - text_.data());
    }
    if (at_ == start) fail(fmt::format("sizes are missing; {} takes {}", of, listed(letters)));
    return sizes;
  }

  /// The place is where the scanner stands.
  [[noreturn]] void fail(const std::string& why) const {
    const std::string_view rest = text_.substr(at_);
    const std::string place =
        rest.empty() ? "at its end" : fmt::format("at '{}' (character {})", excerpt(rest), at_ + 1);
    throw UsageError(fmt::format("{} '{}': {}: {}", option_, excerpt(text_), place, why));
  }

  /// Of the whole.
  [[noreturn]] void refuse(const std::string& why) const {
    throw UsageError(fmt::format("{} '{}': {}", option_, excerpt(text_), why));
  }

  const std::string& option() const { return option_; }

 private:
  static std::string listed(std::string_view letters) {
    std::string text;
    for (const char letter : letters) text += fmt::format("{}{}", text.empty() ? "" : ", ", letter);
    return text;
  }

  const std::string& option_;
  std::string_view text_;
  std::size_t at_ = 0;
};

/// The product of sizes, which the scanner has kept small; refuses one that no machine has.
std::int64_t product(const Scanner& from, std::initializer_list<std::int64_t> sizes) {
  std::int64_t result = 1;
  for (const std::int64_t size : sizes) {
    result *= size;
    if (result > kMostRanks) from.refuse(fmt::format("more than {} ranks", kMostRanks));
  }
  return result;
}

EngineLayout canonical_sizes(Scanner& from) {
  EngineLayout layout;
  layout.option = from.option();
  layout.engine = Engine::kHf;
  if (from.take(":")) layout.replicas = from.sizes("d", "hf").d.value_or(1);
  return layout;
}

/// Of `attn:` what follows that: attention and experts over the same ranks.
void set_attention_and_experts(Scanner& from, EngineLayout& layout) {
  const Sizes attn = from.sizes("dpt", "attn");
  if (!from.take("|")) from.fail("the experts are missing; write |ffn: and their sizes");
  if (!from.take("ffn:")) from.fail("write ffn: and its sizes behind |");
  const Sizes ffn = from.sizes("dpte", "ffn");
  const std::int64_t dp = attn.d.value_or(1);
  const std::int64_t tp = attn.t.value_or(1);
  const std::int64_t inner = ffn.t.value_or(1);
  layout.replicas = ffn.d.value_or(1);
  layout.pp = attn.p.value_or(1);
  layout.ep = ffn.e.value_or(1);
  if (ffn.p && *ffn.p != layout.pp) {
    from.refuse(fmt::format("attn has p={} stages and ffn p={}; both must have the same", layout.pp, *ffn.p));
  }
  const std::int64_t ranks = product(from, {dp, tp, layout.pp}) / layout.pp;
  const std::int64_t expert_ranks = product(from, {layout.replicas, inner, layout.ep});
  if (ranks != expert_ranks) {
    from.refuse(
        fmt::format("attn d·t = {}·{} is {} ranks of a stage but ffn d·t·e = {}·{}·{} is {}; both must be "
                    "equal",
                    dp, tp, ranks, layout.replicas, inner, layout.ep, expert_ranks));
  }
  if (dp % layout.replicas != 0) {
    from.refuse(
        fmt::format("ffn's d={}, which is the replicas, does not divide attn's d={}; attention is not "
                    "cut across replicas",
                    layout.replicas, dp));
  }
  layout.attention_dp = dp / layout.replicas;
  layout.tp = tp * layout.attention_dp;
}

EngineLayout cut_sizes(Scanner& from, Engine engine) {
  EngineLayout layout;
  layout.engine = engine;
  layout.option = from.option();
  const bool parentheses = from.take("(");
  if (from.take("attn:")) {
    set_attention_and_experts(from, layout);
    if (parentheses && !from.take(")")) from.fail("the parenthesis is not closed");
    return layout;
  }
  if (parentheses) from.fail("write attn: and its sizes behind the parenthesis");
  const Sizes sizes = from.sizes("dpte", "the inference side");
  layout.replicas = sizes.d.value_or(1);
  layout.pp = sizes.p.value_or(1);
  layout.tp = sizes.t.value_or(1);
  layout.ep = sizes.e.value_or(1);
  product(from, {layout.replicas, layout.pp, layout.tp});
  if (layout.tp % layout.ep != 0) {
    from.refuse(
        fmt::format("e={} does not divide t={}; experts are cut e ways inside the tensor-parallel "
                    "group",
                    layout.ep, layout.tp));
  }
  return layout;
}

/// Nothing where no inference side begins.
std::optional<EngineLayout> take_inference(Scanner& from) {
  for (const Engine engine : {Engine::kSglang, Engine::kVllm}) {
    if (from.take(fmt::format("{}:", engine_name(engine)))) return cut_sizes(from, engine);
  }
  if (from.take("hf")) return canonical_sizes(from);
  return std::nullopt;
}

/// The expert side: `world` ranks in `p` stages.
void set_experts(const Scanner& from, const Sizes& ffn, std::int64_t world, TrainerLayout& layout) {
  layout.etp = ffn.t.value_or(1);
  layout.ep = ffn.e.value_or(1);
  const std::int64_t fewest = product(from, {layout.pp, layout.etp, layout.ep});
  if (ffn.p && *ffn.p != layout.pp) {
    from.refuse(fmt::format("attn has p={} stages and ffn p={}; both must have the same", layout.pp, *ffn.p));
  }
  if (!ffn.d && world % fewest != 0) {
    from.refuse(fmt::format("p·t·e = {} for experts does not divide the {} ranks", fewest, world));
  }
  layout.edp = ffn.d.value_or(world / fewest);
  const std::int64_t experts = product(from, {fewest, layout.edp});
  if (experts != world) {
    from.refuse(fmt::format(
        "attn d·p·t·c = {}·{}·{}·{} is {} ranks but ffn d·p·t·e = {}·{}·{}·{} is {}; both must be equal",
        layout.dp, layout.pp, layout.tp, layout.cp, world, layout.edp, layout.pp, layout.etp, layout.ep,
        experts));
  }
}

TrainerLayout trainer_sizes(Scanner& from) {
  TrainerLayout layout;
  layout.option = from.option();
  const bool parentheses = from.take("(");
  const auto set_dense = [&](const Sizes& sizes) {
    layout.dp = sizes.d.value_or(1);
    layout.pp = sizes.p.value_or(1);
    layout.tp = sizes.t.value_or(1);
    layout.cp = sizes.c.value_or(1);
    return product(from, {layout.dp, layout.pp, layout.tp, layout.cp});
  };
  if (from.take("attn:")) {
    const std::int64_t world = set_dense(from.sizes("dptc", "attn"));
    Sizes ffn;
    if (from.take("|")) {
      if (!from.take("ffn:")) from.fail("write ffn: and its sizes behind |");
      ffn = from.sizes("dpte", "ffn");
    }
    set_experts(from, ffn, world, layout);
  } else {
    if (from.take("ffn:")) from.fail("write attn: and its sizes before ffn:");
    const Sizes flat = from.sizes("dptce", "megatron");
    const std::int64_t world = set_dense(flat);
    Sizes ffn;
    ffn.e = flat.e;
    set_experts(from, ffn, world, layout);
  }
  if (parentheses && !from.take(")")) from.fail("the parenthesis is not closed");
  return layout;
}

void require_end(const Scanner& from) {
  if (!from.at_end()) from.fail("nothing more was expected here");
}

}  // namespace

EngineLayout parse_inference_allocation(const std::string& option, std::string_view text) {
  Scanner from(option, text);
  const std::optional<EngineLayout> layout = take_inference(from);
  if (!layout) from.fail("write for example sglang:d4p1t4, vllm:d4p1t4, vllm:(attn:d8t1|ffn:e8) or hf:d4");
  require_end(from);
  return *layout;
}

TrainerLayout parse_trainer_allocation(const std::string& option, std::string_view text) {
  Scanner from(option, text);
  if (!from.take("megatron:")) from.fail("write for example megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)");
  TrainerLayout layout = trainer_sizes(from);
  require_end(from);
  return layout;
}

Allocation parse_allocation(const std::string& option, std::string_view text) {
  Scanner from(option, text);
  std::optional<EngineLayout> inference;
  std::optional<TrainerLayout> trainers;
  do {
    if (!inference) {
      inference = take_inference(from);
      if (inference) continue;
    }
    if (!trainers && from.take("megatron:")) {
      trainers = trainer_sizes(from);
    } else {
      from.fail(
          "expected sglang:, vllm:, hf or megatron:, each side once, without spaces or quotes, for example "
          "sglang:d4p1t4+megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)");
    }
  } while (from.take("+"));
  require_end(from);
  if (!inference || !trainers) {
    from.fail(fmt::format("the {} side is missing; join both with +, or give one alone with {}",
                          inference ? "trainers'" : "inference",
                          inference ? "--inference-alloc" : "--trainer-alloc"));
  }
  return {*inference, *trainers};
}

}  // namespace weightcast
