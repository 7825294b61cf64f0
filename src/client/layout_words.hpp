#pragma once

namespace weightcast::client {

/// Fails for what is no layout of an engine (`sglang:d2p1t4e4`, `vllm:(attn:d8t1|ffn:e8)`, `hf`, `hf:d2`) or
/// of a trainer
/// (`megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)`, `megatron:d2t2`, `hf`, `map:` and an export map's key): its
/// words, letters and sizes. Whether the sizes fit together a job step says, which knows the model.
int require_layout(const char* layout, bool engine);

}  // namespace weightcast::client
