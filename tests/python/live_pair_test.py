"""A Hugging Face model that trains in one process and generates in another, and job steps between them.

The logits of the engine are the trainer's, bit for bit, after every update.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import unittest

import job_step
import tiny_model
import torch
import weightcast

HERE = pathlib.Path(__file__).parent
PATIENCE = 120  # seconds, on a machine that has other work


class Program:
    """One of the programs beside this file, with pipes."""

    def __init__(self, name, *arguments):
        command = [sys.executable, "-B", HERE / name, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} has ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while "asked" in (answer := self.line()):
            pass
        return answer

    def end(self, kill):
        """Ends it: by the end of its input, or at once."""
        if kill:
            self.process.kill()
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code


class LivePair(unittest.TestCase):
    trainers = 1
    engines = 1
    window = ()  # of an engine that takes tensors through one: how many bytes may be in it at once

    def start(self, dtype="bfloat16", tied=False, hidden=32, vocabulary=100):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.config = directory.name + "/model"
        self.folder = directory.name + "/weights"
        tiny_model.write_config(self.config, dtype, tied, hidden, vocabulary)
        self.running_engines = [self.program("engine.py", i, self.engines) for i in range(self.engines)]
        self.running_trainers = [self.program("trainer.py", i, self.trainers) for i in range(self.trainers)]
        self.offered = {}
        for engine in self.running_engines:
            self.assertEqual(engine.ask()["version"], 0)
        for trainer in self.running_trainers:
            self.next_version(trainer)

    def program(self, name, rank, ranks):
        role = name.removesuffix(".py")
        program = Program(name, self.config, self.folder, rank, ranks, *(self.window if role == "engine" else ()))

        def end():
            program.end(kill=role == "trainer")
            # What a killed exporter has left goes with the next of its rank.
            weightcast.publish(self.folder, role, rank, ranks, tensors={"a": weightcast.Memory("U8", (1,))}).close()

        self.addCleanup(end)
        return program

    def next_version(self, trainer):
        """Waits until it offers another version."""
        said = trainer.line()
        # All trainers have the same weights.
        self.assertEqual(self.offered.setdefault(said["version"], said["logits"]), said["logits"])
        return said["version"]

    def job(self, *more):
        words = ["--trainers", str(self.trainers), "--inference-alloc", f"hf:d{self.engines}", *more]
        return job_step.start(self.folder, self.config, self.trainers + self.engines, *words)

    def update(self, *more):
        with self.job(*more) as job:
            said = job.communicate(timeout=PATIENCE)[0]
        return job.returncode, said

    def expect_served(self, version):
        for engine in self.running_engines:
            self.assertEqual(engine.ask(), {"in_place": True, "version": version, "logits": self.offered[version]})

    def expect_updates(self, count):
        for version in range(1, count + 1):
            code, said = self.update()
            self.assertEqual(code, 0, said)
            self.expect_served(version)
            for trainer in self.running_trainers:
                self.assertEqual(self.next_version(trainer), version + 1)
        self.assertEqual(len(set(self.offered.values())), count + 1, "training has changed nothing")

    def test_ten_updates_in_bfloat16(self):
        self.start()
        self.expect_updates(10)

    def test_a_tied_head_in_float32(self):
        self.start("float32", tied=True)
        self.expect_updates(3)


class TwoOfEach(LivePair):
    """Two data-parallel trainers, each of which sends a half, and two replicas."""

    trainers = 2
    engines = 2

    def test_ten_updates_in_bfloat16(self):
        self.start()
        self.expect_updates(3)

    test_a_tied_head_in_float32 = None


class Windows(TwoOfEach):
    """Tensors come through a window, experts stacked as the module has them, and the engines copy them."""

    window = (20_000,)

    def test_a_tied_head_in_float32(self):
        self.start("float32", tied=True)
        self.expect_updates(2)


class KilledJobSteps(LivePair):
    engines = 2
    test_ten_updates_in_bfloat16 = None
    test_a_tied_head_in_float32 = None

    def test_engines_serve_one_version_or_none(self):
        self.start(hidden=128, vocabulary=20000)  # 10 MB, which take a while to write
        generator = random.Random(5)
        served = 0
        version = 1  # that the trainer offers
        for kill in range(6):
            with self.subTest(kill=kill):
                job = self.job("--bucket-size", "64KiB", "--buffers", "1")
                while "asked" not in self.running_engines[0].line():
                    pass
                time.sleep(generator.uniform(0, 0.02))
                job_step.kill(job)
                answers = [engine.ask() for engine in self.running_engines]
                for answer in answers:
                    self.assertTrue(answer["in_place"])
                    if "version" in answer:
                        self.assertIn(answer["version"], (served, version))
                        if answer["version"] > 0:
                            self.assertEqual(answer["logits"], self.offered[answer["version"]])
                    else:
                        self.assertIn("job step", answer["invalid"])
                self.assertLessEqual(len({a["version"] for a in answers if "version" in a}), 1, answers)
                code, said = self.update()
                self.assertEqual(code, 0, said)
                served = self.running_engines[0].ask()["version"]
                while version <= served:
                    version = self.next_version(self.running_trainers[0])
                self.expect_served(served)


if __name__ == "__main__":
    unittest.main()
