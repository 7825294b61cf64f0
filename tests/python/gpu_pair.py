"""Trainers and an engine in PyTorch, each on a GPU of its own, and jobs that bring the ones' weights into the other.

The trainer is transformers' Qwen3, which takes optimiser steps; with --sharded 2 it is two processes, between which FSDP
has cut it. The engine has the parameters that inference engines
have (fused projections) and generates with a CUDA graph that was captured once, before the first update. After each
update its weights are the trainer's bit for bit, at the addresses that they had; its logits from the graph are those
of a forward pass without one, and the trainer's but for rounding.

    python3 gpu_pair.py --weightcast PATH [--updates N] [--sharded N]

PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment is that of all of them.

Needs as many GPUs as processes, torch, transformers, mpirun, and the client library (WEIGHTCAST_CLIENT).
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import torch

import weightcast
from weightcast import _library

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCABULARY = 512, 4, 8, 4, 64, 1408, 4096
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN,
    "vocab_size": VOCABULARY, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "attention_bias": False,
}  # fmt: skip
PROMPT = [(7 * i + 3) % VOCABULARY for i in range(32)]


def exchange(folder, version):
    """Where the trainer says what it offers as a version."""
    return pathlib.Path(folder) / f"offered-{version}.pt"


def train(folder, updates, rank, ranks):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    torch.cuda.set_device(rank)
    config = Qwen3Config(**{key: value for key, value in CONFIG.items() if key != "architectures"})
    model = Qwen3ForCausalLM(config).to(device="cuda", dtype=torch.bfloat16)
    if ranks > 1:
        shard(model, rank, ranks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prompt = torch.tensor([PROMPT], device="cuda")
    addresses = {name: place_of(parameter) for name, parameter in model.named_parameters()}
    export = weightcast.publish(folder, role="trainer", rank=rank, ranks=ranks, module=model)
    for version in range(1, updates + 1):
        for _ in range(3):
            tokens = torch.randint(VOCABULARY, (8, 64), device="cuda")
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            logits = model(input_ids=prompt).logits[0].float().cpu()
        if ranks > 1:
            model.reshard()  # what the last forward pass has gathered goes; each has its own part again
        weights = {name: whole_of(parameter) for name, parameter in model.state_dict().items()}
        if rank == 0:
            beside = exchange(folder, version).with_suffix(".new")
            torch.save({"logits": logits, "weights": weights}, beside)
            beside.rename(exchange(folder, version))
        export.offer(version)
        print("read", version, flush=True)
    assert addresses == {name: place_of(parameter) for name, parameter in model.named_parameters()}
    export.close()


def shard(model, rank, ranks):
    """Cuts the model between the processes, each decoder layer by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    mesh = init_device_mesh("cuda", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def place_of(parameter):
    with torch.no_grad():
        return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).data_ptr()


def whole_of(parameter):
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).cpu()


class Engine:
    """The parameters of a rank with tp=1, and the forward pass of Qwen3 over a whole prompt."""

    def __init__(self):
        def weight(*shape):
            return torch.zeros(*shape, dtype=torch.bfloat16, device="cuda")

        self.parameters = {
            "model.embed_tokens.weight": weight(VOCABULARY, HIDDEN),
            "model.norm.weight": weight(HIDDEN),
            "lm_head.weight": weight(VOCABULARY, HIDDEN),
        }
        for layer in range(LAYERS):
            of_layer = {
                "input_layernorm.weight": weight(HIDDEN),
                "post_attention_layernorm.weight": weight(HIDDEN),
                "self_attn.qkv_proj.weight": weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
                "self_attn.q_norm.weight": weight(HEAD_DIM),
                "self_attn.k_norm.weight": weight(HEAD_DIM),
                "self_attn.o_proj.weight": weight(HIDDEN, HEADS * HEAD_DIM),
                "mlp.gate_up_proj.weight": weight(2 * FFN, HIDDEN),
                "mlp.down_proj.weight": weight(HIDDEN, FFN),
            }
            self.parameters |= {f"model.layers.{layer}.{name}": tensor for name, tensor in of_layer.items()}
        positions = torch.arange(len(PROMPT), device="cuda")
        frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens):
        def norm(x, name):
            y = x.float()
            return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])).bfloat16() * self.parameters[name]

        def rotate(x):
            low, high = x.chunk(2, -1)
            return (x * self.cos + torch.cat((-high, low), -1) * self.sin).bfloat16()

        x = self.parameters["model.embed_tokens.weight"][tokens]
        for layer in range(LAYERS):
            at = f"model.layers.{layer}."
            qkv = norm(x, at + "input_layernorm.weight") @ self.parameters[at + "self_attn.qkv_proj.weight"].T
            heads = qkv.view(len(PROMPT), -1, HEAD_DIM).transpose(0, 1)
            q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS))
            q = rotate(norm(q, at + "self_attn.q_norm.weight"))
            k = rotate(norm(k, at + "self_attn.k_norm.weight")).repeat_interleave(HEADS // KV_HEADS, 0)
            v = v.repeat_interleave(HEADS // KV_HEADS, 0)
            attended = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
            x = x + attended.transpose(0, 1).reshape(len(PROMPT), -1) @ self.parameters[at + "self_attn.o_proj.weight"].T
            gate, up = (norm(x, at + "post_attention_layernorm.weight") @ self.parameters[at + "mlp.gate_up_proj.weight"].T).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ self.parameters[at + "mlp.down_proj.weight"].T
        return norm(x, "model.norm.weight") @ self.parameters["lm_head.weight"].T

    def expected(self, weights):
        """What the parameters are when a trainer has those weights."""
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        found = {}
        for name in self.parameters:
            parts = next((whole for whole in fused if whole in name), None)
            found[name] = torch.cat([weights[name.replace(parts, part)] for part in fused[parts]]) if parts else weights[name]
        return found


def serve(folder, updates, device):
    torch.cuda.set_device(device)
    engine = Engine()
    tokens = torch.tensor(PROMPT, device="cuda")
    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        engine.forward(tokens)  # what is made at the first use is not in the graph
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        logits = engine.forward(tokens)
    addresses = {name: tensor.data_ptr() for name, tensor in engine.parameters.items()}
    export = weightcast.publish(folder, role="engine", rank=0, ranks=1, tensors=engine.parameters)
    print("published", flush=True)
    version = 0
    replays = 0
    while version < updates:
        graph.replay()
        replays += 1
        wanted = export.wanted()
        if wanted is None:
            continue
        with export.pause(wanted) as update:
            version = update.version
        graph.replay()
        torch.cuda.synchronize()
        offered = torch.load(exchange(folder, version))
        for name, expected in engine.expected(offered["weights"]).items():
            assert torch.equal(engine.parameters[name].cpu(), expected), name
        with torch.no_grad():
            assert torch.equal(logits, engine.forward(tokens)), "the graph has other weights"
        distance = (logits.float().cpu() - offered["logits"]).abs().max().item()
        scale = offered["logits"].abs().max().item()
        assert distance < 0.05 * scale, (distance, scale)
        print(f"version {version}: {replays} replays, logits {distance:.4f} of {scale:.2f} apart", flush=True)
    assert addresses == {name: tensor.data_ptr() for name, tensor in engine.parameters.items()}
    export.close()


class AllocationForm(ctypes.Structure):
    """CUmemAllocationProp of CUDA's driver."""

    _fields_ = [("type", ctypes.c_int), ("handle_types", ctypes.c_int), ("location_type", ctypes.c_int), ("device", ctypes.c_int),
                ("windows", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)]  # fmt: skip


def refuse_unexportable(folder):
    """Memory as sleep modes make it is refused, with what to switch off, and nothing is published."""
    torch.cuda.init()
    cuda = ctypes.CDLL("libcuda.so.1")
    size = 2 << 20
    form = AllocationForm(type=1, handle_types=0, location_type=1, device=0)
    handle, address = ctypes.c_ulonglong(), ctypes.c_ulonglong()
    assert cuda.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(size), ctypes.byref(form), ctypes.c_ulonglong(0)) == 0
    assert cuda.cuMemAddressReserve(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_size_t(0), ctypes.c_ulonglong(0), ctypes.c_ulonglong(0)) == 0
    assert cuda.cuMemMap(address, ctypes.c_size_t(size), ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0)) == 0
    access = (ctypes.c_int * 3)(1, 0, 3)  # the device 0, to be read and written
    assert cuda.cuMemSetAccess(address, ctypes.c_size_t(size), ctypes.byref(access), ctypes.c_size_t(1)) == 0
    export = _library.open_export(str(folder), "engine", 0, 1, None)
    try:
        _library.add_gpu_memory(export, address.value, size)
    except weightcast.Error as error:
        assert error.code == 74 and "sleep mode" in str(error), error
        print(error, flush=True)
        return
    raise AssertionError("published")


def start(options, role, folder, rank=0, **environment):
    words = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--updates", str(options.updates),
             "--sharded", str(options.sharded), "--rank", str(rank)]  # fmt: skip
    return subprocess.Popen(words, env={**os.environ, **environment})


def wait_for(path, *processes):
    while not path.exists():
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"a process ended with {process.returncode} before {path} was there")
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weightcast", default="weightcast")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--sharded", type=int, default=1)
    parser.add_argument("--role", default="pair")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.role == "trainer":
        return train(options.folder, options.updates, options.rank, options.sharded)
    if options.role == "engine":
        return serve(options.folder, options.updates, options.sharded)
    if options.role == "unexportable":
        return refuse_unexportable(options.folder)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        assert start(options, "unexportable", folder / "refused").wait() == 0
        assert not (folder / "refused" / "engine-0.json").exists()
        live = folder / "weights"
        (folder / "config.json").write_text(json.dumps(CONFIG))
        port = str(20000 + os.getpid() % 20000)
        processes = [start(options, "trainer", live, rank, MASTER_PORT=port) for rank in range(options.sharded)]
        processes.append(start(options, "engine", live))
        try:
            for name in [f"trainer-{rank}.json" for rank in range(options.sharded)] + ["engine-0.json"]:
                wait_for(live / name, *processes)
            for _ in range(options.updates):
                subprocess.run(["mpirun", "-n", str(options.sharded + 1), options.weightcast, "sync", "--source", f"live:{live}",
                                "--sink", f"live:{live}", "--model", str(folder / "config.json"), "--trainers", str(options.sharded),
                                "--inference", "tp=1"], check=True)  # fmt: skip
            for process in processes:
                if process.wait(timeout=60) != 0:
                    raise SystemExit(f"a process ended with {process.returncode}")
        finally:
            for process in processes:
                process.kill()
    print("the pair is as it should be")


if __name__ == "__main__":
    main()
