"""A vLLM, a trainer and job steps between them, as tests of the two have them."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import job_step
import weightcast
from safetensors.torch import load_file
from vllm_setup import SETTINGS, vllm_segments

HERE = pathlib.Path(__file__).parent
PATIENCE = 180  # seconds, on a machine that has other work


class Refused(Exception):
    """What vLLM's call raised."""


class Vllm:
    """vllm_program.py, with pipes."""

    def __init__(self, model, options, package):
        environment = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": str(package)}
        command = [sys.executable, "-B", HERE / "vllm_program.py", model, json.dumps(options)]
        before = vllm_segments()
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.answer()
        self.segments = vllm_segments() - before

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM has ended with {self.process.wait()}:\n{self.logged()[-8000:]}")
        said = json.loads(line)
        if isinstance(said, dict) and "error" in said:
            raise Refused(said["error"])
        return said

    def ask(self, name, *arguments):
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def logged(self):
        self.log.seek(0)
        return self.log.read()

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
        for segment in self.segments:
            segment.unlink(missing_ok=True)


class Trainer:
    """Tensors of a checkpoint in live memory, of which a job step reads a version."""

    def __init__(self, folder, checkpoint):
        self.tensors = load_file(checkpoint / "model.safetensors")
        self.export = weightcast.publish(folder, role="trainer", rank=0, ranks=1, tensors=self.tensors, layout="hf")

    def offer(self, version, checkpoint):
        with contextlib.suppress(weightcast.Error):  # nothing was offered, or nobody has read it
            self.export.settle(timeout=0)
        self.fill(checkpoint)
        self.export.offer(version, wait=False)

    def fill(self, checkpoint):
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            self.tensors[name].copy_(tensor)


class EngineCase(unittest.TestCase):
    """Has an `engine` of so many `ranks` that has published in `folder`, and a `trainer` there, whose offers are numbered by
    `version`. `model(number)` is the folder of a checkpoint, `words_of_job()` what job steps need."""

    def start_job(self, **environment):
        job = job_step.start(self.folder, self.model(0), 1 + self.ranks, *self.words_of_job(), **environment)
        self.addCleanup(job.stdout.close)
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        return job

    def expect_done(self, job):
        """Returns what the job step has said."""
        said = job.communicate(timeout=PATIENCE)[0]
        self.assertEqual(job.returncode, 0, said)
        return said

    def offer(self, step):
        """A new version with the weights of that step."""
        type(self).version += 1
        self.trainer.offer(self.version, self.model(step))
        return self.version

    def update(self, step):
        """Returns what the job step has said."""
        version = self.offer(step)
        self.engine.ask("start")
        job = self.start_job()
        try:
            self.engine.ask("update", {"version": version, "timeout": PATIENCE})
        except Refused as error:
            job.kill()
            self.fail(f"{error}\n{job.communicate()[0]}")
        self.engine.ask("finish")
        return self.expect_done(job)

    def refused(self, name, *arguments):
        with self.assertRaises(Refused) as caught:
            self.engine.ask(name, *arguments)
        return str(caught.exception)
