// A checkpoint of a small Llama, whose tensors may have any names, types and shapes, as the model finds them
// in it.

#include "fuzz/refusal.hpp"
#include "fuzz/written_file.hpp"
#include "model/family.hpp"
#include "source/binding.hpp"
#include "storage/checkpoint.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  static const auto family = make_family(ModelConfig(
      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 2, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 3, "torch_dtype": "bfloat16",
          "tie_word_embeddings": true})",
      "config.json"));
  static const fuzz::WrittenFile file("model.safetensors");
  file.write(fuzz::text_of(data, size));
  fuzz::accept_or_refuse(file.path(), [&] {
    const Checkpoint checkpoint = read_checkpoint(file.path());
    const Binding binding = bind(*family, checkpoint);
    for (const HeldBox& held : binding.held.boxes()) {
      if (held.buffer >= checkpoint.tensors.size())
        fuzz::broken("what is held lies in a stored tensor", file.path());
    }
    static_cast<void>(binding.note());
  });
  return 0;
}
