"""How long an update of an unmodified vLLM or SGLang takes: through this package, and as the engine itself does it.

A trainer on one GPU has a Qwen3-MoE of full width with random weights, an engine on another one has dummy ones. In one run, in turn:
updates through `weightcast serve` (verified), updates in the engine's own way (vLLM: its packed NCCL backend; SGLang: flattened buckets),
and `weightcast bench` of the same model, which has no engine at all. Prints medians.

    python3 gpu_update_times.py sglang|vllm --weightcast PATH --config CONFIG_JSON [--layers N] [--updates N]

vLLM chooses its backend when it starts, so that its own way is another engine: --own runs that one. Needs two GPUs, the engine,
torch, mpirun, and the client library (WEIGHTCAST_CLIENT).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PATIENCE = 120  # seconds
BUCKET = 1 << 30  # bytes, of the engines' own ways
GROUP = "weight_update_group"


def tensors_of(config):
    """Names and shapes of a Qwen3-MoE's checkpoint."""
    hidden, head = config["hidden_size"], config["head_dim"]
    rows = {"q_proj": config["num_attention_heads"] * head, "k_proj": config["num_key_value_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    inner = config["moe_intermediate_size"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}.weight": (count, hidden) for name, count in rows.items()}
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, rows["q_proj"])
        shapes |= {f"{at}self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")}
        shapes |= {f"{at}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{at}mlp.gate.weight"] = (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            shapes |= {f"{at}mlp.experts.{expert}.{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
            shapes[f"{at}mlp.experts.{expert}.down_proj.weight"] = (hidden, inner)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def buckets_of(shapes):
    """Lists of names whose tensors are about as large as a bucket together."""
    buckets, size = [[]], 0
    for name, shape in shapes.items():
        size += 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if size > BUCKET and buckets[-1]:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
    return buckets


def train(folder, device, config):
    """The trainer: does what each line of its input says, and answers when it is done."""
    import torch

    import weightcast

    torch.cuda.set_device(device)
    shapes = tensors_of(config)
    tensors = {name: torch.randn(shape, device="cuda", dtype=torch.bfloat16) for name, shape in shapes.items()}
    export = weightcast.publish(folder, role="trainer", rank=0, ranks=1, tensors=tensors, layout="hf")
    group = None
    print("published", flush=True)
    for line in sys.stdin:
        what, *words = line.split()
        if what == "offer":
            export.offer(int(words[0]), wait=False)
        elif what == "settle":
            export.settle()
        elif what == "join":
            engine, port = words[0], int(words[1])
            group = join_vllm(port) if engine == "vllm" else join_sglang(port)
        elif what == "send":
            send_to_vllm(group, tensors) if words[0] == "vllm" else send_to_sglang(group, tensors, shapes)
            torch.cuda.synchronize()
        print("done", flush=True)
    export.close()


def join_vllm(port):
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    return NCCLWeightTransferEngine.trainer_init({"master_address": "127.0.0.1", "master_port": port, "world_size": 2})


def send_to_vllm(group, tensors):
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

    NCCLWeightTransferEngine.trainer_send_weights(iter(tensors.items()), NCCLTrainerSendWeightsArgs(group=group, packed=True))


def join_sglang(port):
    from sglang.srt.utils import init_custom_process_group

    return init_custom_process_group(backend="nccl", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=0, group_name=GROUP)


def send_to_sglang(group, tensors, shapes):
    import torch

    for names in buckets_of(shapes):
        flat = torch.cat([tensors[name].flatten().view(torch.uint8) for name in names])
        torch.distributed.broadcast(flat, src=0, group=group)


class Trainer:
    def __init__(self, folder, device, config):
        command = [sys.executable, __file__, "--train", str(folder), "--device", str(device), "--config", str(config)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear("published")

    def hear(self, word):
        while (line := self.process.stdout.readline()).strip() != word:  # engines' packages log there, too
            assert line, f"the trainer has ended before it said {word}"

    def ask(self, *words):
        """Returns at once; `hear("done")` waits."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def do(self, *words):
        self.ask(*words)
        self.hear("done")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class SGLang:
    allocation = "sglang:t1"

    def __init__(self, model, own):
        import sglang

        self.engine = sglang.Engine(
            model_path=str(model), load_format="dummy", skip_tokenizer_init=True, mem_fraction_static=0.5, context_length=256,
            attention_backend="triton", sampling_backend="pytorch", moe_runner_backend="triton", log_level="warning",
            disable_cuda_graph=True, custom_weight_loader=["weightcast.sglang.load"],
        )  # fmt: skip
        self.both = True

    def _take(self, **request):
        from weightcast import sglang

        said = self.engine.update_weights_from_tensor(
            sglang.tensors(self.folder, timeout=PATIENCE, **request), load_format="weightcast.sglang.load", flush_cache=True
        )
        assert said[0], said

    def attach(self, folder):
        self.folder = folder
        self._take(attach=True, holds=0)

    def update(self, version):
        self._take(version=version)

    def join(self, port):
        return self.engine.init_weights_update_group("127.0.0.1", port, 1, 2, GROUP)

    def update_own(self, shapes):
        for names in buckets_of(shapes):
            said = self.engine.update_weights_from_distributed(
                names, ["bfloat16"] * len(names), [list(shapes[name]) for name in names], GROUP, flush_cache=False,
                load_format="flattened_bucket",
            )  # fmt: skip
            assert said[0], said

    def end(self):
        self.engine.shutdown()


class Vllm:
    allocation = "vllm:t1"

    def __init__(self, model, own):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.llm = LLM(
            str(model), load_format="dummy", skip_tokenizer_init=True, max_model_len=256, dtype="bfloat16", enforce_eager=True,
            gpu_memory_utilization=0.6, moe_backend="triton", weight_transfer_config={"backend": "nccl" if own else "weightcast"},
        )  # fmt: skip
        self.both = False

    def attach(self, folder):
        self.llm.init_weight_transfer_engine({"init_info": {"folder": str(folder), "version": 0, "timeout": PATIENCE}})

    def _update(self, info):
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": info})
        self.llm.finish_weight_update()

    def update(self, version):
        self._update({"version": version, "timeout": PATIENCE})

    def join(self, port):
        self.llm.init_weight_transfer_engine(
            {"init_info": {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2}}
        )

    def update_own(self, shapes):
        forms = {"names": list(shapes), "dtype_names": ["bfloat16"] * len(shapes), "shapes": [list(shape) for shape in shapes.values()]}
        self._update({**forms, "packed": True})

    def end(self):
        del self.llm


def timed(call):
    began = time.monotonic()
    call()
    return time.monotonic() - began


def aside(call):
    """Runs it in a thread, and raises here what it raises."""
    failures = []

    def run():
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        for failure in failures:
            raise failure

    return join


def bench(weightcast, config, updates):
    """Seconds of each verified update of the same model between two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "bench.json"
        command = ["mpirun", "-n", "2", weightcast, "bench", "--model", config, "--inference", "tp=1", "--transport", "nccl",
                   "--iterations", updates, "--json", report, "-q"]  # fmt: skip
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return [update["seconds"]["update"] for update in json.loads(report.read_text())["updates"] if update["verified"]]


def through_package(weightcast, folder, config, engine, trainer, updates):
    """Seconds of each verified update as the server reports it, and of the engine's whole call."""
    import weightcast as package

    server = subprocess.Popen(
        ["mpirun", "-n", "2", weightcast, "serve", "--source", f"live:{folder}", "--sink", f"live:{folder}", "--model", str(config),
         "--inference-alloc", engine.allocation, "--transport", "nccl", "-q"],
    )  # fmt: skip
    until = time.monotonic() + PATIENCE
    while not (folder / "server.json").exists():
        assert server.poll() is None and time.monotonic() < until, "the server does not come"
        time.sleep(0.05)
    reported, calls = [], []
    for version in range(1, updates + 2):
        trainer.do("offer", version)
        answers = []
        join = aside(lambda: answers.append(package.trigger(folder, version=version, timeout=PATIENCE)))
        calls.append(timed(lambda: engine.update(version)))
        join()
        trainer.do("settle")
        row = [line.split() for line in answers[0].report.splitlines() if line.split() and line.split()[0] == str(version)][-1]
        assert row[-1] == "yes", row
        reported.append(float(row[6]))
    server.terminate()
    server.wait()
    return reported[1:], calls[1:]  # the first one opens memory and connections


def own_way(engine, trainer, shapes, updates, name):
    """Seconds of the engine's whole calls."""
    port = 20000 + os.getpid() % 20000
    trainer.ask("join", name, port)
    engine.join(port)
    trainer.hear("done")
    calls = []
    for _ in range(updates + 1):
        trainer.ask("send", name)
        calls.append(timed(lambda: engine.update_own(shapes)))
        trainer.hear("done")
    return calls[1:]


def line(name, seconds, size, base=None):
    median = statistics.median(seconds)
    ratio = f"{median / base:7.3f} x bench" if base else ""
    print(f"{name:44s} {median:8.4f} s {size / median / 1e9:7.1f} GB/s  {ratio}  ({min(seconds):.4f} to {max(seconds):.4f})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", nargs="?", choices=["sglang", "vllm"])
    parser.add_argument("--weightcast")
    parser.add_argument("--config")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--own", action="store_true", help="vLLM with its own backend")
    parser.add_argument("--train")
    parser.add_argument("--device", type=int)
    options = parser.parse_args()
    config = json.loads(pathlib.Path(options.config).read_text())
    if options.train:
        return train(pathlib.Path(options.train), options.device, config)
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        config["num_hidden_layers"] = options.layers
        path = directory / "model" / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(config))
        shapes = tensors_of(config)
        size = sum(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
        began = time.monotonic()
        engine = {"sglang": SGLang, "vllm": Vllm}[options.engine](path.parent, options.own)
        print(f"{options.engine} started in {time.monotonic() - began:.0f} s; {size / 1e9:.2f} GB, {len(shapes)} tensors", flush=True)
        trainer = Trainer(directory / "weights", 1, path)
        base = statistics.median(before := bench(options.weightcast, path, options.updates))
        line("bench, verified", before, size)
        if not options.own:
            engine.attach(directory / "weights")
            reported, calls = through_package(options.weightcast, directory / "weights", path, engine, trainer, options.updates)
            line("through the package, update, verified", reported, size, base)
            line("through the package, the engine's whole call", calls, size, base)
        if options.own or engine.both:
            line(f"{options.engine}'s own way, its whole call", own_way(engine, trainer, shapes, options.updates, options.engine), size, base)
        line("bench, verified, again", bench(options.weightcast, path, options.updates), size, base)
        trainer.end()
        engine.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
