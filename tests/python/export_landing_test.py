"""Models that only a landing map knows, from a trainer with tensors of its own into vLLM's: both sides learned, nothing described."""

import os
import pathlib
import subprocess
import tempfile
import unittest

import job_step
import landing_test
import torch
import transformers
import weightcast.torch
from transformers.core_model_loading import revert_weight_conversion
from weightcast import _landing, learn

PATIENCE = 240  # seconds, on a machine that has other work


class Learned(unittest.TestCase):
    def test_both_sides(self):
        for architecture in ("Qwen2MoeForCausalLM", "GptOssForCausalLM"):
            with self.subTest(architecture), tempfile.TemporaryDirectory() as directory:
                self.check(pathlib.Path(directory), architecture)

    def check(self, directory, architecture):
        model_folder, folder, shards = (directory / name for name in ("model", "weights", "shards"))
        landing_test.make_checkpoint(model_folder, architecture, landing_test.random.Random(5))
        landing = str(directory / "landing.json")
        _landing.write(learn.learn(model_folder, tp=2), landing)
        model = getattr(transformers, architecture).from_pretrained(model_folder, dtype="auto")
        exporter = lambda: revert_weight_conversion(model, model.state_dict())
        with weightcast.torch.publish(folder, 0, 1, model, exporter=exporter) as trainer:
            trainer.offer(1, wait=False)
            self.run_job(3, "sync", "--source", f"live:{folder}", "--landing", landing, "--sink", f"hdf5:{shards}")
            trainer.settle(PATIENCE)
            said = self.run_job(1, "plan", "--source", f"live:{folder}", "--landing", landing)
            self.assertIn("trainer 0", said)
        self.run_job(1, "verify", str(shards), "--source", str(model_folder), "--landing", landing)

    def run_job(self, ranks, *words):
        program = job_step.program(ranks) if ranks > 1 else [os.environ["WEIGHTCAST_BINARY"]]
        done = subprocess.run([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout


if __name__ == "__main__":
    unittest.main()
