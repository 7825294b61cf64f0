"""A Qwen3-MoE of Hugging Face so small that a step takes milliseconds, and what two processes compare of it."""

import hashlib

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

PROMPT = torch.arange(1, 17).reshape(2, 8)


def write_config(folder, dtype, tied, hidden, vocabulary):
    """Writes `folder`/config.json, for both processes and the job step."""
    config = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        dtype=dtype,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        tie_word_embeddings=tied,
    )
    config.save_pretrained(folder)


def make_model(folder, seed):
    # Sums of the same terms in the same order in every process.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = Qwen3MoeConfig.from_pretrained(folder)
    return Qwen3MoeForCausalLM(config).to(config.dtype)


def logits_digest(model):
    """Of every bit of the logits of the fixed prompt."""
    model.eval()
    with torch.no_grad():
        logits = model(PROMPT).logits
    if not logits.isfinite().all():
        raise RuntimeError("the logits are no numbers")
    return hashlib.sha256(logits.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def next_token(model, tokens):
    """The tokens with the likeliest one behind them."""
    with torch.no_grad():
        logits = model(tokens).logits
    return torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
