#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// A stored name without what wrappers of modules put into it, wherever they do: torch.compile
/// (`_orig_mod.`), DDP (`module.`), FSDP (`_fsdp_wrapped_module.`, `_fpw_module.`), activation checkpointing
/// (`_checkpoint_wrapped_module.`), DeepSpeed (`_forward_module.`). `module.model.layers.0._orig_mod.mlp.…`
/// is `model.layers.0.mlp.…`.
std::string without_wrappers(std::string_view stored);

/// The name that a tensor of a whole checkpoint has in Hugging Face's causal language model: without
/// wrappers, with `model.` in front of what belongs to the model's body and once only, without the
/// `language_model.` of a model of several parts. `layers.0.mlp.…` and `model.language_model.layers.0.mlp.…`
/// are `model.layers.0.mlp.…`.
std::string canonical_name(std::string_view stored);

/// What a name says that is an adapter's, or of a model that has one around it and may not have been merged
/// with it, as the end of a sentence; empty for any other name.
std::string adapter_part(std::string_view stored);

}  // namespace weightcast
