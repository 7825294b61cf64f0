"""An unmodified vLLM on GPUs takes versions through its own loader: a job step brings the tensors of checkpoints through a window of
host memory, and vLLM repacks what its kernels want, quantised or not.

After each of the versions every parameter has the SHA-256 that it has in a vLLM that has loaded that checkpoint itself, lies where
it lay, and the same ids are generated.

    python3 gpu_loader.py --tp N --weightcast PATH [--quantization fp8] [--updates N] [--quick]

With --quick there is no vLLM to compare with, and no CUDA graph: the checkpoint that it has loaded itself must come back as it was.

Needs N GPUs, vLLM, torch, safetensors, mpirun, and the client library (WEIGHTCAST_CLIENT).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading

import gpu_engines

WINDOW = 1 << 20  # bytes: less than the model has


def see(engine, directory, name):
    engine.look(directory / name)
    return [json.loads((directory / f"{name}-{rank}.json").read_text()) for rank in range(engine.tp)]


def digests(seen):
    return [{name: digest for name, (_, digest) in of_rank.items()} for of_rank in seen]


def addresses(seen):
    return [{name: address for name, (address, _) in of_rank.items()} for of_rank in seen]


def load_alone(options, step, directory):
    """What a vLLM of its own makes of a checkpoint: SHA-256 of each parameter of each rank, and ids."""
    path = directory / f"alone-{step.name}"
    words = [sys.executable, __file__, "--tp", options.tp, "--alone", step, "--answer", path]
    words += ["--quantization", options.quantization] if options.quantization else []
    subprocess.run(list(map(str, words)), check=True)
    return json.loads(path.read_text())


def alone(options):
    engine = gpu_engines.Vllm(options.alone, options.tp, quantization=options.quantization)
    with tempfile.TemporaryDirectory() as directory:
        answer = [digests(see(engine, pathlib.Path(directory), "loaded")), engine.generate()]
    pathlib.Path(options.answer).write_text(json.dumps(answer))


def bring(options, folder, step, version):
    words = ["mpirun", "-n", 1 + options.tp, options.weightcast, "sync", "--source", step, "--sink", f"live:{folder}", "--weight-version",
             version, "--inference-alloc", f"hf:d{options.tp}", "--transport", "mpi", "-q"]  # fmt: skip
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout.strip().splitlines()[-1], flush=True)
    assert done.returncode == 0, done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--weightcast")
    parser.add_argument("--quantization")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone")
    parser.add_argument("--answer")
    options = parser.parse_args()
    if options.alone:
        return alone(options)
    directory = pathlib.Path(tempfile.mkdtemp())
    steps = [directory / "step0", directory / "step181"]
    for step in steps:
        gpu_engines.wide_checkpoint(step)
    expected = [None, None] if options.quick else [load_alone(options, step, directory) for step in steps]
    engine = gpu_engines.Vllm(steps[0], options.tp, quantization=options.quantization, enforce_eager=options.quick)
    before = see(engine, directory, "loaded")
    if options.quick:
        expected[0] = digests(before), engine.generate()
    assert digests(before) == expected[0][0]
    folder = directory / "weights"
    engine.attach(folder, landing="loader", window=WINDOW)
    for version in range(1, options.updates + 1):
        step = version % 2
        thread = threading.Thread(target=bring, args=(options, folder, steps[step], version))
        thread.start()
        engine.update(version)
        thread.join()
        seen = see(engine, directory, f"version{version}")
        if expected[step] is None:
            expected[step] = digests(seen), engine.generate()
            assert expected[step] != expected[0], "nothing has changed"
        for rank, (now, then) in enumerate(zip(digests(seen), expected[step][0])):
            for name in then:
                assert now.get(name) == then[name], f"rank {rank}: {name} is not as after a load"
        assert addresses(seen) == addresses(before), "a parameter lies elsewhere"
        assert engine.generate() == expected[step][1], "other ids than after a load"
        print(f"version {version} (weights of {steps[step].name}) is served", flush=True)
    engine.end()
    count = sum(map(len, before))
    print(f"vllm tp={options.tp} {options.quantization or 'bfloat16'}: {options.updates} versions through its loader: SHA-256 and addresses of {count} parameters, ids")
    return 0


if __name__ == "__main__":
    sys.exit(main())
