"""An engine that has a model's tensors whole and under Hugging Face's names, and job steps that write it."""

import json
import os
import pathlib
import re
import struct
import subprocess
import tempfile
import unittest

import weightcast
from weightcast import Memory

CHECKPOINT = pathlib.Path(os.environ["WEIGHTCAST_CHECKPOINT"])
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stored_tensors():
    """By name the dtype, shape and bytes of the checkpoint's tensors."""
    data = (CHECKPOINT / "model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        tensors[name] = (tensor["dtype"], tuple(tensor["shape"]), data[8 + size + begin : 8 + size + end])
    return tensors


def stacked(tensors):
    """The same with experts as transformers 5 has them: gate_up_proj [E, 2I, H] and down_proj [E, H, I]."""
    result = {name: tensor for name, tensor in tensors.items() if not EXPERT.fullmatch(name)}
    layers = {}
    for name in tensors:
        if match := EXPERT.fullmatch(name):
            layers.setdefault(match[1], set()).add(int(match[2]))
    for at, experts in layers.items():
        for stack, matrices in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            parts = [tensors[f"{at}.{e}.{m}_proj.weight"] for e in sorted(experts) for m in matrices]
            dtype, (rows, columns), _ = parts[0]
            shape = (len(experts), len(matrices) * rows, columns)
            result[f"{at}.{stack}"] = (dtype, shape, b"".join(part[2] for part in parts))
    return result


class HuggingFaceEngine(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.folder = str(self.directory / "weights")

    def publish(self, tensors, layout="hf"):
        own = {name: Memory(dtype, shape) for name, (dtype, shape, _) in tensors.items()}
        return self.publish_as_it_is(own, layout)

    def publish_as_it_is(self, own, layout="hf"):
        export = weightcast.publish(self.folder, "engine", 0, 1, tensors=own, layout=layout)
        self.addCleanup(export.close)
        return export

    def job(self, *more, model=CHECKPOINT, layout=("--inference-alloc", "hf")):
        command = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", "2"]
        command += [os.environ["WEIGHTCAST_BINARY"], "sync", "--source", CHECKPOINT, "--model", model, *layout]
        command += ["--sink", f"live:{self.folder}", *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def expect_written(self, tensors):
        export = self.publish(tensors)
        with self.job("--weight-version", "3") as job:
            with export.pause(timeout=60) as update:
                self.assertEqual(update.version, 3)
            said = job.communicate()[0]
        self.assertEqual(job.returncode, 0, said)
        for name, (_, _, values) in tensors.items():
            self.assertEqual(bytes(export.memory(name)), values, name)

    def expect_refused(self, code, says, job):
        with job:
            said = job.communicate(timeout=60)[0]
        self.assertEqual(job.returncode, code, said)
        lines = [line for line in said.splitlines() if line.startswith("weightcast: error:")]
        self.assertEqual(len(lines), 1, said)
        self.assertRegex(lines[0], says)

    def config_with(self, **fields):
        config = json.loads((CHECKPOINT / "config.json").read_text())
        path = self.directory / "config.json"
        path.write_text(json.dumps({**config, **fields}))
        return path

    def test_experts_one_by_one(self):
        self.expect_written(stored_tensors())

    def test_experts_stacked(self):
        self.expect_written(stacked(stored_tensors()))

    def test_what_does_not_fit_is_refused(self):
        tensors = stored_tensors()
        name = "model.layers.1.mlp.experts.2.up_proj.weight"
        with self.publish({n: t for n, t in tensors.items() if n != name}):
            self.expect_refused(65, f"engine-0.json: tensor {name} .*is missing", self.job())
        with self.publish({**tensors, "model.layers.0.extra": ("BF16", (2,), b"")}):
            self.expect_refused(65, "model.layers.0.extra .* is not part of the model", self.job())
        with self.publish({**tensors, name: ("F32", tensors[name][1], b"")}):
            self.expect_refused(65, f"{name} is float32, but the model has bfloat16", self.job())
        with self.publish({**tensors, name: ("BF16", (3, 5), b"")}):
            self.expect_refused(65, f"{name} has shape", self.job())
        with self.publish(tensors):
            hf = ("--inference-alloc", "hf", "--moe-layout", "cutlass")
            self.expect_refused(64, "leave --moe-layout", self.job(layout=hf))
            self.expect_refused(64, "published with layout hf", self.job(layout=("--inference", "tp=1")))
        with self.publish(tensors, "sglang:t1"):
            self.expect_refused(64, "published with layout sglang:t1", self.job())

    def test_tensors_of_one_memory(self):
        tensors = stored_tensors()
        embedding = Memory(*tensors["model.embed_tokens.weight"][:2])
        own = {name: Memory(dtype, shape) for name, (dtype, shape, _) in tensors.items()}
        tied = {**own, "model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
        with self.publish_as_it_is(tied):
            self.expect_refused(65, "lm_head.weight.* one memory", self.job())
        # A head that the model ties would be written by nobody.
        with self.publish_as_it_is(own):
            job = self.job("--tied-head", "embedding", model=self.config_with(tie_word_embeddings=True))
            self.expect_refused(65, "lm_head.weight is tied to model.embed_tokens.weight, but has memory", job)


if __name__ == "__main__":
    unittest.main()
