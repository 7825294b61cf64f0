"""An unmodified vLLM or SGLang on GPUs, with CUDA graphs, takes the weights of two running trainers in place.

The trainers hold a small trained Qwen3-MoE on a GPU each and take turns between two of its versions; jobs bring each version into
the engine's ranks, one of them is killed while it writes. After each update `weightcast verify` reads the engine's memory; after
the first version has come back, every parameter has the SHA-256 that it had after the engine's own load, lies where it lay, and
the engine generates the same ids.

    python3 gpu_engines.py sglang|vllm --tp N --weightcast PATH [--colocate] [--updates N] [--stop-at-state LIBRARY]

Needs N + 2 GPUs, with --colocate N, where each of the engine's ranks has a trainer beside it;
the engine, torch, safetensors, mpirun, and the client library (WEIGHTCAST_CLIENT).
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import job_step

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "data" / "python-coder-qwen3-moe"
PROMPT = [103, 104, 105, 35, 98]  # "def _"
PATIENCE = 120  # seconds


# What runs inside of an engine's rank.


def look(model, rank, path):
    """Writes where a rank's parameters lie and their SHA-256."""
    import hashlib

    import torch

    torch.cuda.synchronize()
    seen = {}
    for name, parameter in model.named_parameters():
        data = parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
        seen[name] = [parameter.data_ptr(), hashlib.sha256(data).hexdigest()]
    pathlib.Path(f"{path}-{rank}.json").write_text(json.dumps(seen))


def look_in_sglang(model, named_tensors):
    from sglang.srt.distributed.parallel_state import get_world_group

    look(model, get_world_group().rank_in_group, bytes(named_tensors[0][1].cpu().tolist()).decode())


def look_in_vllm(worker, path):
    look(worker.model_runner.model, worker.rank, path)


def wide_checkpoint(folder):
    """The small trained model of that name, such as step0, with heads as engines have them."""
    import wide_heads

    wide_heads.widen_checkpoint(MODELS / folder.name, folder)


class SGLang:
    def __init__(self, model, tp):
        import sglang

        self.tp = tp
        self.engine = sglang.Engine(
            model_path=str(model), tp_size=tp, skip_tokenizer_init=True, mem_fraction_static=0.3, context_length=256,
            attention_backend="triton", sampling_backend="pytorch", moe_runner_backend="triton", log_level=os.environ.get("SGLANG_LOG_LEVEL", "warning"),
            disable_custom_all_reduce=True, custom_weight_loader=["weightcast.sglang.load", "gpu_engines.look_in_sglang"],
        )  # fmt: skip
        self.allocation = f"sglang:t{tp}"

    def _request(self, load_format, tensors):
        return self.engine.update_weights_from_tensor(tensors, load_format=load_format, flush_cache=True)

    def attach(self, folder):
        from weightcast import sglang

        self.folder = folder
        self._request("weightcast.sglang.load", sglang.tensors(folder, attach=True, holds=0))

    def update(self, version):
        from weightcast import sglang

        said = self._request("weightcast.sglang.load", sglang.tensors(self.folder, version=version, timeout=PATIENCE))
        assert said[0], said

    def generate(self):
        parameters = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}
        return self.engine.generate(input_ids=PROMPT, sampling_params=parameters)["output_ids"]

    def look(self, path):
        import torch

        said = torch.frombuffer(bytearray(str(path).encode()), dtype=torch.uint8)
        self._request("gpu_engines.look_in_sglang", [("path", said)])

    def end(self):
        self.engine.shutdown()


class Vllm:
    def __init__(self, model, tp, **more):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # functions of this file go to workers
        from vllm import LLM

        self.tp = tp
        self.llm = LLM(
            str(model), tensor_parallel_size=tp, skip_tokenizer_init=True, max_model_len=256, dtype="bfloat16",
            gpu_memory_utilization=0.3, moe_backend="triton", weight_transfer_config={"backend": "weightcast"}, **more,
        )  # fmt: skip
        self.allocation = f"vllm:t{tp}"

    def attach(self, folder, **more):
        info = {"folder": str(folder), "version": 0, "timeout": PATIENCE, **more}
        self.llm.init_weight_transfer_engine({"init_info": info})

    def update(self, version):
        self.llm.start_weight_update()
        try:
            self.llm.update_weights({"update_info": {"version": version, "timeout": PATIENCE}})
        except Exception as error:  # a job step died: another one comes
            print("refused:", str(error).splitlines()[-1][:160], flush=True)
            self.llm.start_weight_update()
            self.llm.update_weights({"update_info": {"version": version, "timeout": PATIENCE}})
        self.llm.finish_weight_update()

    def generate(self):
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0, max_tokens=48, detokenize=False, ignore_eos=True)
        (result,) = self.llm.generate({"prompt_token_ids": PROMPT}, parameters, use_tqdm=False)
        self.llm.reset_prefix_cache()
        return list(result.outputs[0].token_ids)

    def look(self, path):
        self.llm.collective_rpc(look_in_vllm, args=(str(path),))

    def end(self):
        del self.llm


def train(folder, rank, ranks, device, checkpoints):
    """A trainer that takes the weights of the checkpoint that a line of its input names, and offers them as the version there."""
    import torch
    from safetensors.torch import load_file

    import weightcast

    torch.cuda.set_device(device)
    versions = [load_file(pathlib.Path(path) / "model.safetensors", device=f"cuda:{device}") for path in checkpoints]
    tensors = {name: tensor.clone() for name, tensor in versions[0].items()}
    export = weightcast.publish(folder, role="trainer", rank=rank, ranks=ranks, tensors=tensors, layout="hf")
    print("published", flush=True)
    for line in sys.stdin:
        version, step = map(int, line.split())
        with contextlib.suppress(weightcast.Error):  # what nobody has read is withdrawn
            export.settle(timeout=0.1)
        for name, tensor in tensors.items():
            tensor.copy_(versions[step][name])
        export.offer(version, wait=False)
        print("offered", version, flush=True)
    export.close()


class Trainer:
    def __init__(self, folder, rank, ranks, device, checkpoints):
        command = [sys.executable, __file__, "--train", str(rank), "--trainers", str(ranks), "--device", str(device), "--folder", str(folder)]
        command += [word for checkpoint in checkpoints for word in ("--checkpoint", str(checkpoint))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.hear("published")

    def hear(self, word):
        line = self.process.stdout.readline()
        assert line.startswith(word), f"a trainer said {line!r}, not {word}"

    def offer(self, version, step):
        self.process.stdin.write(f"{version} {step}\n")
        self.process.stdin.flush()
        self.hear("offered")


class Jobs:
    def __init__(self, weightcast, folder, model, engine, trainers, stop_at_state):
        """Without `trainers` each of the engine's ranks has one beside it."""
        self.weightcast, self.folder, self.stop_at_state = weightcast, folder, stop_at_state
        self.ranks = (trainers or 0) + engine.tp
        live = f"live:{folder}"
        self.layout = ["--inference-alloc", engine.allocation]
        split = ["--trainers", str(trainers)] if trainers else ["--colocate"]
        self.words = ["sync", "--source", live, "--sink", live, "--model", model, *split, *self.layout, "--transport", "nccl", "-q"]

    def start(self, **environment):
        command = ["mpirun", "-n", str(self.ranks), self.weightcast, *self.words]
        return subprocess.Popen(
            list(map(str, command)), env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def kill_while_it_writes(self):
        """Its last rank stops itself where it may write; then all of it is killed."""
        job = self.start(LD_PRELOAD=str(self.stop_at_state), STOP_RANK=str(self.ranks - 1), STOP_AT="5")
        until = time.monotonic() + PATIENCE
        while not any(map(job_step.is_stopped, job_step.ranks_of(job))):
            assert time.monotonic() < until and job.poll() is None, "no rank has stopped"
            time.sleep(0.01)
        job_step.kill(job)

    def verify(self, step):
        command = [self.weightcast, "verify", f"live:{self.folder}", "--source", step, *self.layout, "-q"]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout


def try_engine(options):
    directory = pathlib.Path(tempfile.mkdtemp())
    folder = directory / "weights"
    steps = [directory / "step0", directory / "step181"]
    for step in steps:
        wide_checkpoint(step)
    began = time.monotonic()
    engine = {"sglang": SGLang, "vllm": Vllm}[options.engine](steps[0], options.tp)
    print(f"{options.engine} started in {time.monotonic() - began:.0f} s", flush=True)

    def seen(name):
        engine.look(directory / name)
        return [json.loads((directory / f"{name}-{rank}.json").read_text()) for rank in range(options.tp)]

    loaded, ids = seen("loaded"), {0: engine.generate()}
    engine.attach(folder)
    count = options.tp if options.colocate else options.trainers
    devices = range(count) if options.colocate else range(options.tp, options.tp + count)
    trainers = [Trainer(folder, rank, count, device, steps) for rank, device in enumerate(devices)]
    jobs = Jobs(options.weightcast, folder, steps[0], engine, None if options.colocate else count, options.stop_at_state)
    for version in range(1, options.updates + 1):
        step = version % 2
        for trainer in trainers:
            trainer.offer(version, step)
        kill = version == options.updates // 2 and options.stop_at_state
        bringing = threading.Thread(target=bring, args=(jobs, trainers, version, step, kill))
        bringing.start()
        engine.update(version)
        bringing.join(PATIENCE)
        jobs.verify(steps[step])
        assert ids.setdefault(step, engine.generate()) == engine.generate(), "other ids than before"
        if step == 0:
            assert seen(f"version{version}") == loaded, "not what the engine had loaded"
        print(f"version {version} (weights of {steps[step].name}) is served, verified", flush=True)
    assert ids[0] != ids[1]
    for trainer in trainers:
        trainer.process.stdin.close()
        trainer.process.wait()
    engine.end()
    print(f"{options.engine} tp={options.tp}: {options.updates} versions in place: SHA-256 and addresses of {sum(map(len, loaded))} parameters, ids")


def bring(jobs, trainers, version, step, kill):
    """The job that brings a version, if asked to behind one that is killed."""
    if kill:
        jobs.kill_while_it_writes()
        print("a job was killed while it wrote", flush=True)
        for trainer in trainers:
            trainer.offer(version, step)
    for _ in range(5):  # the engine may still be about to notice the death
        job = jobs.start()
        said = job.communicate(timeout=PATIENCE)[0]
        if job.returncode == 0:
            return
        print(said, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", nargs="?", choices=["sglang", "vllm"])
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--trainers", type=int, default=2)
    parser.add_argument("--colocate", action="store_true", help="a trainer on each GPU of the engine")
    parser.add_argument("--weightcast")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--stop-at-state", help="libweightcast_stop_at_state.so of tests/engine, to kill a job with")
    parser.add_argument("--train", type=int)
    parser.add_argument("--device", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--checkpoint", action="append")
    options = parser.parse_args()
    if options.train is not None:
        train(options.folder, options.train, options.trainers, options.device, options.checkpoint)
    else:
        try_engine(options)


if __name__ == "__main__":
    main()
