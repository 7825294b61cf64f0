"""Megatron-Core trains on four processes, an engine of Hugging Face takes what they offer, and both compute the same.

The engine's logits are, bit for bit, those of a module that has loaded the same weights; and Megatron's own, over its tensor,
pipeline and expert parallelism, are near those of Hugging Face's module in float32.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import unittest

import tiny_model
import torch
import weightcast
from live_pair_test import PATIENCE, Program
from safetensors.torch import load_file
from transformers import Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).parent
TRAINED = HERE.parent / "data/python-coder-qwen3-moe/step0"
RANKS = 4


def command(*words):
    """Runs the program on one process; returns what it says."""
    ran = subprocess.run([os.environ["WEIGHTCAST_BINARY"], *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
    if ran.returncode != 0:
        raise AssertionError(f"{words}: {ran.returncode}: {ran.stderr}")
    return ran.stdout


def logits_in_float32(checkpoint):
    with torch.no_grad():
        return Qwen3MoeForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(tiny_model.PROMPT).logits


class Megatron(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.folder = str(self.directory / "weights")
        self.saved = self.directory / "saved"
        self.saved.mkdir()

    def start(self, way, config, options, versions):
        """The trainers, with the weights of the checkpoint `config`."""
        shards = self.directory / "shards"
        command("convert", "--source", config, "--to", "megatron", *shlex.split(options), "--output", shards)
        words = [sys.executable, "-B", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", RANKS]
        words += [HERE / "megatron_trainer.py", way, config, shards, self.folder, self.saved, versions]
        self.trainers = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end)
        self.config = str(config)

    def end(self):
        self.trainers.terminate()  # torchrun ends its ranks
        self.trainers.wait(PATIENCE)
        self.trainers.stdout.close()
        # What killed exporters have left goes with the next of their ranks.
        for rank in range(RANKS):
            weightcast.publish(self.folder, "trainer", rank, RANKS, tensors={"a": weightcast.Memory("U8", (1,))}).close()

    def offered(self):
        line = self.trainers.stdout.readline()
        self.assertTrue(line, "the trainers have ended")
        return json.loads(line)

    def sync(self, engines, options, *more):
        words = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", str(RANKS + engines)]
        words += [os.environ["WEIGHTCAST_BINARY"], "sync", "--source", f"live:{self.folder}", "--model", self.config]
        return subprocess.run(
            [*words, *shlex.split(options), *map(str, more)], capture_output=True, text=True, timeout=PATIENCE
        )

    def checkpoint_of(self, version):
        """Hugging Face's, of what the trainers have saved."""
        shards, checkpoint = self.saved / str(version), self.directory / f"hf-{version}"
        options = ["--model", self.config, *shlex.split(self.options)]
        command("convert", "--source", shards, *options, "--to", "hf", "--output", checkpoint)
        return checkpoint

    def expect_near_megatrons(self, checkpoint, version):
        """The logits of the checkpoint's module and of the trainers, in float32: sums of the same terms in another order."""
        logits = logits_in_float32(checkpoint)
        own = load_file(self.saved / f"logits-{version}.safetensors")["logits"]
        self.assertLess((logits - own).abs().max().item(), 1e-5 * logits.abs().max().item())

    def expect_served(self, engine, version):
        checkpoint = self.checkpoint_of(version)
        model = tiny_model.make_model(self.config, seed=9)
        model.load_state_dict(Qwen3MoeForCausalLM.from_pretrained(checkpoint, dtype=model.dtype).state_dict())
        expected = {"in_place": True, "version": version, "logits": tiny_model.logits_digest(model)}
        self.assertEqual(engine.ask(), expected)
        self.expect_near_megatrons(checkpoint, version)
        return expected["logits"]

    def expect_updates(self, versions):
        engine = Program("engine.py", self.config, self.folder, 0, 1)
        self.addCleanup(engine.end, kill=False)
        engine.ask()
        served = []
        for version in range(1, versions + 1):
            said = self.offered()
            self.assertEqual(said["version"], version)
            self.options = said["options"]
            done = self.sync(1, self.options, "--sink", f"live:{self.folder}", "--inference-alloc", "hf")
            self.assertEqual(done.returncode, 0, done.stderr)
            served.append(self.expect_served(engine, version))
        self.assertEqual(len(set(served)), versions, "training has changed nothing")

    def test_tensors_layers_and_experts_are_cut(self):
        options = "--trainer-alloc 'megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)' --stage-layers 2,1"
        self.start("cut", TRAINED, options, versions=3)
        self.expect_updates(2)
        self.assertEqual(self.options, options)
        # The first version is the checkpoint that the trainers have loaded.
        self.expect_near_megatrons(TRAINED, 1)
        # The shards of an engine, of which every parameter is compared.
        self.offered()
        wrong = self.sync(2, options.replace("2,1", "1,2"), "--inference", "tp=2,ep=2", "--sink", f"hdf5:{self.directory}/out")
        self.assertEqual(wrong.returncode, 64, wrong.stderr)
        self.assertIn("--stage-layers 2,1, but --trainer-alloc says", wrong.stderr)
        done = self.sync(2, options, "--inference", "tp=2,ep=2", "--sink", f"hdf5:{self.directory}/out")
        self.assertEqual(done.returncode, 0, done.stderr)
        command("verify", self.directory / "out", "--source", self.saved / "3", "--model", self.config, *shlex.split(options))
        self.assertEqual(self.trainers.wait(PATIENCE), 0)

    def test_chunks_of_a_virtual_pipeline_with_a_tied_head(self):
        config = self.directory / "model"
        tiny_model.write_config(config, "bfloat16", tied=True, hidden=32, vocabulary=100)
        path = config / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}))
        tiny_model.make_model(config, seed=3).save_pretrained(config)
        options = "--trainer-alloc 'megatron:(attn:d2p2t1c1|ffn:d2p2t1e1)' --trainer-order tp-pp-dp --stage-layers 1,1,1,1"
        self.start("interleaved", config, options, versions=2)
        self.expect_updates(2)
        self.assertEqual(self.options, options)
        self.assertEqual(self.trainers.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
