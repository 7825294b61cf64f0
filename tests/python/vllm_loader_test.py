"""vLLM, as it is installed, takes the weights of a running trainer through its own loader: dense models on a CPU, with one worker
and with two; and of a model with Mamba's layers what the loader computes with, the rest in place.

After an update every parameter's SHA-256, as vLLM computes it, and the ids that it generates are those of a vLLM that has loaded
the same weights from a file.
"""

import json
import os
import pathlib
import tempfile
import time
import unittest

import job_step
import torch
import transformers
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm_case import PATIENCE, EngineCase, Trainer, Vllm
from vllm_setup import install_package
from weightcast import vllm_trainer

WINDOW = 200_000  # bytes, a part of each model

# Of those whose layers are not all alike.
SIZES = {
    "NemotronH": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp"],
        "num_nextn_predict_layers": 0,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 3,  # of 4 vLLM packs them for some CPUs
    }
}


def write_model(folder, kind, seed):
    """A dense model so small that a step takes milliseconds, with heads that vLLM's attention on a CPU knows."""
    config = getattr(transformers, f"{kind}Config")(
        architectures=[f"{kind}ForCausalLM"],
        dtype="bfloat16",
        vocab_size=330,
        hidden_size=128,
        intermediate_size=192,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=kind == "Qwen3",
        **SIZES.get(kind, {"num_hidden_layers": 3}),
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # so that two seeds say something else, and biases and norms differ, too
    model.save_pretrained(folder)


class Loader(EngineCase):
    kind = None
    ranks = 1
    landing = "loader"

    @classmethod
    def setUpClass(cls):
        if cls.kind is None:
            raise unittest.SkipTest("of no model")
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        for seed in (0, 1):
            write_model(cls.model(seed), cls.kind, seed)
        cls.package = cls.directory / "package"
        install_package(cls.package)
        cls.folder = str(cls.directory / "weights")
        cls.engine = cls.start_engine(0)
        cls.engine.ask("init", {"folder": cls.folder, "version": 0, "timeout": PATIENCE, "landing": cls.landing, "window": WINDOW})
        cls.trainer = Trainer(cls.folder, cls.model(0))
        cls.addClassCleanup(cls.trainer.export.close)
        cls.version = 0

    @classmethod
    def model(cls, seed):
        return cls.directory / f"seed{seed}"

    @classmethod
    def start_engine(cls, seed):
        engine = Vllm(cls.model(seed), {"tensor_parallel_size": cls.ranks}, cls.package)
        cls.addClassCleanup(engine.end)
        return engine

    @staticmethod
    def state_of(engine):
        return {"checksums": engine.ask("checksums"), "ids": engine.ask("generate")}

    def words_of_job(self):
        return *self.layout(), "--bucket-size", "64KiB"

    def layout(self):
        return "--inference-alloc", f"hf:d{self.ranks}"

    def test_what_comes_is_what_a_file_would_have_brought(self):
        loaded = self.state_of(self.engine)
        places = self.engine.ask("places")
        fresh = self.start_engine(1)
        expected = self.state_of(fresh)
        fresh.end()
        self.assertNotEqual(expected, loaded)
        self.assertIn("through the engines' own loaders", self.update(1))
        self.assertEqual(self.state_of(self.engine), expected)
        self.update(0)
        self.assertEqual(self.state_of(self.engine), loaded)
        self.assertEqual(self.engine.ask("places"), places)


class Failures(Loader):
    def test_a_loader_that_raises_on_one_rank(self):
        before = self.state_of(self.engine)
        version = self.offer(1)
        self.engine.ask("start")
        self.engine.ask("hinder", self.ranks - 1)
        job = self.start_job()
        self.assertIn("a test wants it so", self.refused("update", {"version": version}))
        said = job.communicate(timeout=PATIENCE)[0]
        self.assertEqual(job.returncode, 74, said)
        self.assertIn("has given up amid the update", said)
        self.update(0)
        self.assertEqual(self.state_of(self.engine), before)

    def test_a_job_step_that_dies_while_it_writes(self):
        before = self.state_of(self.engine)
        version = self.offer(1)
        self.engine.ask("start")
        job = self.start_job(LD_PRELOAD=os.environ["WEIGHTCAST_STOP_AT_STATE"], STOP_RANK=str(self.ranks), STOP_AT="5")
        until = time.monotonic() + PATIENCE
        while not any(map(job_step.is_stopped, job_step.ranks_of(job))):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        job_step.kill(job)
        self.assertIn("no version is in memory: the job step died", self.refused("update", {"version": version}))
        self.update(0)
        self.assertEqual(self.state_of(self.engine), before)


class Qwen3(Failures):
    kind = "Qwen3"


class Qwen3OfTwo(Failures):
    kind = "Qwen3"
    ranks = 2


class Client:
    """vLLM's, of an engine that has published already."""

    def __init__(self, engine):
        self._ask = engine.ask

    def init_weight_transfer_engine(self, info):
        pass

    def start_weight_update(self):
        self._ask("start")

    def update_weights(self, info):
        self._ask("update", info)

    def finish_weight_update(self, version):
        self._ask("finish")


class Llama(Loader):
    kind = "Llama"

    def test_a_trainer_that_uses_vllms_trainer_api(self):
        words = ["--inference-alloc", f"hf:d{self.ranks}", "--bucket-size", "64KiB"]
        server = job_step.start(self.folder, self.model(0), 1 + self.ranks, *words, command="serve")
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        until = time.monotonic() + PATIENCE
        while not pathlib.Path(self.folder, "server.json").exists():
            self.assertIsNone(server.poll())
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        info = vllm_trainer.InitInfo(self.folder, rank=0, version=self.version, timeout=PATIENCE, workers={"landing": "loader"})
        source = vllm_trainer.Source(self.trainer.export, torch.nn.Module())
        sender = WeightTransferTrainerFactory.trainer_init(info, client=Client(self.engine), source=source)
        states = []
        for seed in (1, 0):
            self.trainer.fill(self.model(seed))
            sender.send_weights()
            type(self).version = sender.version
            self.assertEqual(sender.answer.version, sender.version)
            states.append(self.state_of(self.engine))
        self.assertNotEqual(*states)
        server.terminate()
        server.communicate(timeout=PATIENCE)
        self.update(1)
        self.assertEqual(self.state_of(self.engine), states[0])
        self.update(0)
        self.assertEqual(self.state_of(self.engine), states[1])


class Qwen2OfTwo(Loader):
    kind = "Qwen2"
    ranks = 2


class NemotronHOfTwo(Failures):
    """What the loader computes with (A_log) comes through a window, beside what a job step writes in place."""

    kind = "NemotronH"
    ranks = 2
    landing = "learn"

    def layout(self):
        (path,) = pathlib.Path(self.folder).glob("landing-*.json")
        return "--inference-alloc", f"vllm:t{self.ranks}", "--landing", path

    def test_the_window_has_what_the_loader_computes_with(self):
        (path,) = pathlib.Path(self.folder).glob("landing-*.json")
        landing = json.loads(path.read_text())
        loaded = {landing["tensors"][of["tensor"]]["name"] for rank in landing["ranks"] for of in rank["loader"]}
        self.assertEqual(loaded, {"backbone.layers.0.mixer.A_log"})
        for rank in range(self.ranks):
            manifest = json.loads(pathlib.Path(self.folder, f"engine-{rank}.json").read_text())
            (window,) = [number for number, of in enumerate(manifest["segments"]) if of["kind"] == "window"]
            self.assertEqual({of["name"] for of in manifest["entries"] if of["segment"] == window}, loaded)


if __name__ == "__main__":
    unittest.main()
