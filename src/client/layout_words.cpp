#include "client/layout_words.hpp"

#include <cstring>

#include "client/error.hpp"
#include "client/weightcast/client.h"

namespace weightcast::client {

namespace {

/// Goes on behind `word` where the text begins with it.
bool take(const char*& at, const char* word) {
  const std::size_t length = std::strlen(word);
  if (std::strncmp(at, word, length) != 0) return false;
  at += length;
  return true;
}

/// `d4p1t4`: some of `letters`, each once, with a size of 1 to 1048576.
bool take_sizes(const char*& at, const char* letters) {
  constexpr long kMost = 1L << 20;
  const char* const start = at;
  while (*at != '\0' && std::strchr(letters, *at) != nullptr) {
    if (std::memchr(start, *at, static_cast<std::size_t>(at - start)) != nullptr) return false;
    long size = 0;
    const char* digit = ++at;
    for (; *digit >= '0' && *digit <= '9' && size <= kMost; ++digit) size = 10 * size + (*digit - '0');
    if (size < 1 || size > kMost) return false;
    at = digit;
  }
  return at != start;
}

bool take_experts(const char*& at) {
  return take(at, "|") && take(at, "ffn:") && take_sizes(at, "dpte");
}

bool take_engine(const char*& at) {
  const bool parentheses = take(at, "(");
  if (!take(at, "attn:")) return !parentheses && take_sizes(at, "dpte");
  return take_sizes(at, "dpt") && take_experts(at) && (!parentheses || take(at, ")"));
}

bool take_megatron(const char*& at) {
  const bool parentheses = take(at, "(");
  if (take(at, "attn:")) {
    if (!take_sizes(at, "dptc")) return false;
    if (*at == '|' && !take_experts(at)) return false;
  } else if (!take_sizes(at, "dptce")) {
    return false;
  }
  return !parentheses || take(at, ")");
}

/// The job step's options that say of trainers what an allocation cannot, such as ` --stage-layers 2,1`.
bool take_trainer_options(const char*& at) {
  for (;;) {
    if (take(at, " --trainer-order ")) {
      if (!take(at, "tp-dp-pp") && !take(at, "tp-pp-dp")) return false;
    } else if (take(at, " --trainer-names ")) {
      if (!take(at, "local") && !take(at, "global")) return false;
    } else if (take(at, " --stage-layers ")) {
      const std::size_t length = std::strspn(at, "0123456789,");
      if (length == 0) return false;
      at += length;
    } else {
      return true;
    }
  }
}

/// The SHA-256 of an export map.
bool take_key(const char*& at) {
  constexpr std::size_t kDigits = 64;
  const std::size_t length = std::strspn(at, "0123456789abcdef");
  at += length;
  return length == kDigits;
}

bool is_layout(const char* at, bool engine) {
  bool taken = false;
  if (take(at, "hf")) {
    taken = !take(at, ":") || take_sizes(at, "d");
  } else if (engine) {
    taken = (take(at, "sglang:") || take(at, "vllm:")) && take_engine(at);
  } else if (take(at, "map:")) {
    taken = take_key(at);
  } else {
    taken = take(at, "megatron:") && take_megatron(at) && take_trainer_options(at);
  }
  return taken && *at == '\0';
}

}  // namespace

int require_layout(const char* layout, bool engine) {
  if (is_layout(layout, engine)) return WEIGHTCAST_OK;
  return fail(
      WEIGHTCAST_BAD_ARGUMENT, "layout '%s' is none of %s; write for example %s, or give none", layout,
      engine ? "an engine" : "a trainer",
      engine ? "sglang:t2e2, vllm:t4, vllm:(attn:d8|ffn:e8) or hf" : "megatron:(attn:p4t2|ffn:p4e2) or hf");
}

}  // namespace weightcast::client
