"""Python's own reader of safetensors reads the shards that `--sink safetensors:DIR` has written."""

import os
import pathlib
import subprocess
import tempfile
import unittest

import safetensors
import torch

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"


class Shards(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def run_command(self, *words, ranks=0):
        launcher = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        command = [*(launcher if ranks else []), os.environ["WEIGHTCAST_BINARY"], *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def shard(self, source, *options, ranks):
        """What the first rank's file says of itself, and its tensors."""
        self.run_command("sync", "--source", source, "--sink", f"safetensors:{self.directory}", *options, ranks=ranks)
        with safetensors.safe_open(self.directory / "rank-0.safetensors", framework="pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}

    def test_the_tensors_of_a_whole_model(self):
        source = DATA / "python-coder-qwen3-moe" / "step181"
        options = ["--inference-alloc", "hf", "--trainer-alloc", "megatron:(attn:d1p1t1c1|ffn:d1p1t1e1)"]
        metadata, tensors = self.shard(source, *options, "--weight-version", 181, ranks=2)
        self.assertEqual(metadata["format"], "pt")
        expected = {"kind": "shard", "rank": "0", "weight_version": "181", "tp_size": "1", "engine": "hf"}
        self.assertEqual({name: metadata["weightcast." + name] for name in expected}, expected)
        with safetensors.safe_open(source / "model.safetensors", framework="pt") as file:
            whole = {name: file.get_tensor(name) for name in file.keys()}
        self.assertGreater(len(whole), 70)
        for name, tensor in whole.items():
            self.assertTrue(torch.equal(tensors[name], tensor), name)

    def test_the_types_of_codes_and_scales(self):
        source = self.directory / "model"
        self.run_command("synth", "--model", DATA / "models" / "block-qwen3-moe", "--output", source)
        for options, types in [
            (["fp8-block", "--moe-layout", "triton"], {torch.float8_e4m3fn, torch.float32}),
            (["mxfp8", "--moe-layout", "triton"], {torch.float8_e4m3fn, torch.float8_e8m0fnu}),
            (["nvfp4", "--moe-layout", "cutlass"], {torch.float4_e2m1fn_x2, torch.float8_e4m3fn, torch.float32}),
        ]:
            _, tensors = self.shard(source, "--inference", "tp=2", "--quantize", *options, ranks=3)
            found = {tensor.dtype for tensor in tensors.values()}
            self.assertEqual(types | {torch.bfloat16}, found, options)


if __name__ == "__main__":
    unittest.main()
