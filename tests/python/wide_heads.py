"""A Qwen3-MoE with wider attention heads that computes what the given one computes.

vLLM's attention on a CPU knows heads of 32, 64, 80, 96, 112 and 128; the small trained models have 16. Heads are filled up with
zeros, and what depends on their size is balanced by factors of two, which lose no bit:

    mean of squares   over 4 times as many: q and k are doubled, q_norm and k_norm halved
    1 / sqrt(size)    half of what it was: q_norm is doubled
    rotary pairs      (i, i + size / 2) of angle base^(-2i / size) lie at (4i, 4i + size / 2) of the wider head
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

HEAD = 64


def _places(head):
    """Where a head's elements lie in one of HEAD."""
    if HEAD != 4 * head:
        raise ValueError(f"heads of {head} are not a quarter of {HEAD}")
    half = torch.arange(head // 2) * 4
    return torch.cat([half, half + HEAD // 2])


def _spread(tensor, dim, places):
    """Every `len(places)` elements along a dimension, at those places of HEAD."""
    head = len(places)
    heads = tensor.unflatten(dim, (-1, head))
    dim = dim % tensor.dim()
    shape = list(heads.shape)
    shape[dim + 1] = HEAD
    wide = tensor.new_zeros(shape)
    wide.index_copy_(dim + 1, places, heads)
    return wide.flatten(dim, dim + 1).contiguous()


def widen(tensors, head):
    """The weights of the model with wide heads, by name."""
    places = _places(head)
    wide = {}
    for name, tensor in tensors.items():
        part = name.rpartition("self_attn.")[2]
        if part in ("q_proj.weight", "k_proj.weight"):
            tensor = _spread(tensor * 2, 0, places)
        elif part == "v_proj.weight":
            tensor = _spread(tensor, 0, places)
        elif part == "o_proj.weight":
            tensor = _spread(tensor, 1, places)
        elif part == "q_norm.weight":
            tensor = _spread(tensor, 0, places)
        elif part == "k_norm.weight":
            tensor = _spread(tensor / 2, 0, places)
        wide[name] = tensor
    return wide


def widen_checkpoint(source, target):
    """Writes config.json and model.safetensors of `source` with wide heads into the folder `target`."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    config = json.loads((source / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    save_file(widen(load_file(source / "model.safetensors"), config["head_dim"]), target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({**config, "head_dim": HEAD}, indent=2))
