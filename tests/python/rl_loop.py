"""Reinforcement learning with a vLLM server, as it is installed, and a torch trainer, on a CPU.

A server of vLLM with two workers generates; a Qwen3-MoE that was really trained takes policy-gradient steps on what comes back; a
server of weightcast moves the weights of each step from the trainer's memory into the workers', in place. In one iteration that
server is killed while it writes. After each iteration every parameter on every worker has the SHA-256 that it has in the shards
which `weightcast sync` writes from a checkpoint of the trainer.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

import h5py
import job_step
import requests
import torch
import transformers
import weightcast
import weightcast.torch
import wide_heads
from transformers import Qwen3MoeForCausalLM
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm_setup import SETTINGS, install_package, vllm_segments
from weightcast import vllm_trainer

transformers.logging.disable_progress_bar()
MODEL = pathlib.Path(__file__).parents[1] / "data" / "python-coder-qwen3-moe" / "step181"
PATIENCE = 300  # seconds, on a machine that has other work
ITERATIONS = 10
KILLED = 6  # the iteration in which the job step dies
SAMPLES = 32
LENGTH = 32  # tokens of a sample
WORKERS = 2
LAYOUT = ["--inference-alloc", f"vllm:t{WORKERS}", "--moe-layout", "vllm-cpu"]
CONTEXT = 16384  # tokens that vLLM takes: more than the model was trained with, so that a kept request outlives an iteration
BLOCK = 32  # tokens of a block of vLLM's cache


def tokens_of(text):
    """The model's: a byte is one, behind three special ones."""
    return [byte + 3 for byte in text.encode()]


PROMPT = tokens_of("def _")
LONG = tokens_of("import os\n\n\nclass Reader:\n    def read(self, name):\n        return open(name)\n\n    def ")
VOWELS = set(tokens_of("aeiou"))
OTHER = tokens_of("# Another program, which is still being written.\n")


def reward_of(tokens):
    """The share of vowels."""
    return sum(token in VOWELS for token in tokens) / len(tokens)


class Server:
    """vLLM over HTTP."""

    def __init__(self, model, package):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-B", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--host", "127.0.0.1", "--port", str(port), "--tensor-parallel-size", str(WORKERS)]
        command += ["--skip-tokenizer-init", "--enable-scale-out", "--dtype", "bfloat16"]
        command += ["--enforce-eager", "--block-size", str(BLOCK), "--enable-prompt-tokens-details"]
        command += ["--weight-transfer-config", '{"backend": "weightcast"}']
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(package), "VLLM_SERVER_DEV_MODE": "1"}
        before = vllm_segments()
        self.log = tempfile.TemporaryFile("w+")
        # A process group of its own, to be ended with all workers.
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True)
        until = time.monotonic() + PATIENCE
        started = False
        while not started and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
            started = self.answers()
        self.segments = vllm_segments() - before
        if not started:
            self.log.seek(0)
            said = self.log.read()[-8000:]
            self.end()
            raise RuntimeError(f"vLLM does not start:\n{said}")

    def answers(self):
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=5).ok
        return False

    def get(self, path):
        answer = requests.get(f"{self.url}/{path}", timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def post(self, path, **body):
        answer = requests.post(f"{self.url}/{path}", json=body or None, timeout=PATIENCE)
        if not answer.ok:
            raise RuntimeError(f"/{path}: {answer.status_code} {answer.text}")
        return answer.json()

    def generate(self, prompt, length, timeout=PATIENCE, **sampling):
        """What the server says of one completion."""
        body = {"token_ids": prompt, "sampling_params": {"max_tokens": length, "ignore_eos": True, **sampling}}
        answer = requests.post(f"{self.url}/inference/v1/generate", json=body, timeout=timeout)
        answer.raise_for_status()
        return answer.json()

    def checksums(self):
        return self.post("weight_checker", action="checksum")["checksums"]

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        for segment in self.segments:
            segment.unlink(missing_ok=True)


class Running:
    """A request that the server is answering, and that is longer than any test."""

    def __init__(self, server):
        self._server = server
        self._tokens = 0
        self._last = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.go_on(1)

    def _run(self):
        sampling = {"max_tokens": CONTEXT - len(OTHER), "ignore_eos": True, "seed": 1}
        body = {"token_ids": OTHER, "sampling_params": sampling, "stream": True}
        with requests.post(f"{self._server.url}/inference/v1/generate", json=body, timeout=PATIENCE, stream=True) as answer:
            for line in answer.iter_lines():
                text = line.decode().removeprefix("data: ")
                if text and text != "[DONE]":
                    (self._last,) = json.loads(text)["choices"]
                    self._tokens += len(self._last["token_ids"] or [])

    def go_on(self, tokens):
        """Waits for so many more tokens."""
        until, enough = time.monotonic() + PATIENCE, self._tokens + tokens
        while self._tokens < enough:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise RuntimeError(f"no more tokens behind {self._tokens}")
            time.sleep(0.005)

    def end(self):
        """Ends it in the middle: which token is of which version."""
        self._server.post("abort_requests", request_ids=[])
        self._thread.join(PATIENCE)
        spans = self._last["weight_versions"]
        if spans[-1]["end"] != self._tokens:
            raise RuntimeError(f"{self._tokens} tokens, but {spans}")
        return [int(span["version"]) for span in spans]


class Trainer:
    """A module in float32, published in bfloat16."""

    def __init__(self, folder, model):
        torch.manual_seed(1)
        torch.set_num_threads(1)  # as vLLM's workers
        self.module = Qwen3MoeForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=3e-4, weight_decay=0.0)
        self.export = weightcast.torch.publish(folder, 0, 1, self.module, torch.bfloat16, layout="hf")

    def step(self, completions, rewards):
        """REINFORCE: what was rewarded above the batch's mean becomes likelier."""
        rewards = torch.tensor(rewards)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        tokens = torch.tensor([PROMPT + completion for completion in completions])
        logits = self.module(tokens[:, :-1]).logits[:, len(PROMPT) - 1 :]
        chosen = tokens[:, len(PROMPT) :, None]
        likelihoods = torch.log_softmax(logits, dim=-1).gather(2, chosen)[..., 0]
        loss = -(advantages[:, None] * likelihoods).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save(self, folder):
        """A checkpoint, in the type that is published."""
        whole = Qwen3MoeForCausalLM(self.module.config).to(torch.bfloat16)
        whole.load_state_dict(self.module.state_dict())
        whole.save_pretrained(folder)


class ReinforcementLearning(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.model = self.directory / "model"
        self.folder = str(self.directory / "weights")
        wide_heads.widen_checkpoint(MODEL, self.model)
        config = json.loads((self.model / "config.json").read_text())
        (self.model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
        package = self.directory / "package"
        install_package(package)
        self.server = Server(self.model, package)
        self.addCleanup(self.server.end)
        self.trainer = Trainer(self.folder, self.model)
        self.addCleanup(self.trainer.export.close)
        info = vllm_trainer.InitInfo(self.folder, timeout=PATIENCE, workers={"timeout": PATIENCE}, rank=0)
        client = HTTPVLLMWeightSyncClient(self.server.url, PATIENCE)
        source = vllm_trainer.Source(self.trainer.export, self.trainer.module)
        self.sender = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
        self.server.post("update_weight_version", new_version="0")
        self.pauses, self.updates = [], []  # seconds

    def start_job(self, **environment):
        """A server of weightcast that takes requests."""
        file = pathlib.Path(self.folder, "server.json")
        file.unlink(missing_ok=True)  # of one that was killed
        job = job_step.start(self.folder, self.model, 1 + WORKERS, *LAYOUT, command="serve", **environment)
        self.addCleanup(job.stdout.close)
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        until = time.monotonic() + PATIENCE
        while not file.exists():
            if job.poll() is not None:
                self.fail(job.stdout.read())
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        return job

    def end_job(self, job):
        job.terminate()
        job.communicate(timeout=PATIENCE)

    def expected(self):
        """SHA-256 of every parameter on every worker, in shards that are made of a checkpoint of the trainer."""
        checkpoint, shards = self.directory / "checkpoint", self.directory / "shards"
        self.trainer.save(checkpoint)
        command = [*job_step.program(1 + WORKERS), "sync", "--source", checkpoint, "--trainers", "1", *LAYOUT]
        done = subprocess.run([*command, "--sink", f"hdf5:{shards}"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        found = {}
        for worker in range(WORKERS):
            path = shards / f"rank-{worker}.h5"
            with h5py.File(path) as file, open(path, "rb") as data:
                for name, tensor in file.items():
                    data.seek(tensor.id.get_offset())
                    digest = hashlib.sha256(data.read(tensor.id.get_storage_size()))
                    found[f"dp0:pp0:pcp0:tp{worker}:{name}"] = digest.hexdigest()
        return found

    def rollout(self, version):
        """Completions of the prompt, which are all of that version."""
        with ThreadPoolExecutor(SAMPLES) as threads:
            answers = threads.map(lambda seed: self.server.generate(PROMPT, LENGTH, seed=SAMPLES * version + seed), range(SAMPLES))
            choices = [answer["choices"][0] for answer in answers]
        for choice in choices:
            self.assertEqual(choice["weight_versions"], [{"version": str(version), "start": 0, "end": LENGTH}])
        return [choice["token_ids"] for choice in choices]

    def cached(self):
        """How many tokens of the long prompt were in vLLM's cache."""
        usage = self.server.generate(LONG, 1, temperature=0)["usage"]
        return (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    def send(self):
        """With a request that is kept, which it gives. How long that waits is in self.pauses, and in self.updates how long of it
        the job step takes."""
        running = Running(self.server)
        began = time.monotonic()
        self.server.post("pause?mode=keep")
        with unittest.mock.patch.object(vllm_trainer, "trigger", self.timed_trigger):
            self.sender.send_weights()
        self.resume()
        self.pauses.append(time.monotonic() - began)
        return running

    def timed_trigger(self, *arguments, **more):
        began = time.monotonic()
        answer = weightcast.trigger(*arguments, **more)
        self.updates.append(time.monotonic() - began)
        return answer

    def resume(self):
        # A request that is kept computes what it has in the cache anew, which is of old weights.
        self.assertTrue(self.server.post("reset_prefix_cache?reset_running_requests=true")["success"])
        self.server.post("resume")

    def send_in_vain(self):
        """The same, where the job step is killed when it may write the last worker's memory; vLLM stays paused."""
        stop = {"LD_PRELOAD": os.environ["WEIGHTCAST_STOP_AT_STATE"], "STOP_RANK": str(WORKERS), "STOP_AT": "5"}
        job = self.start_job(**stop)
        running = Running(self.server)
        self.server.post("pause?mode=keep")
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(self.sender.send_weights)
            until = time.monotonic() + PATIENCE
            while not any(map(job_step.is_stopped, job_step.ranks_of(job))):
                self.assertLess(time.monotonic(), until)
                self.assertFalse(sent.done())
                time.sleep(0.01)
            job_step.kill(job)
            with self.assertRaises(weightcast.Error) as caught:
                sent.result()
        self.assertEqual(caught.exception.code, 74)
        return running

    def require_refused(self, version):
        """No version is in memory, and vLLM takes what it has for none: neither for the one before nor for the one after."""
        command = [os.environ["WEIGHTCAST_BINARY"], "inspect", f"live:{self.folder}"]
        state = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.assertEqual(state.count("invalid"), WORKERS, state)
        self.assertEqual(self.server.get("weight_info")["weight_version"], str(version))
        self.server.post("start_weight_update")
        with self.assertRaisesRegex(RuntimeError, "no job step has asked"):
            self.server.post("finish_weight_update", weight_version=str(version + 1))
        with self.assertRaises(requests.Timeout):
            self.server.generate(PROMPT, 1, timeout=1)

    def test_what_is_generated_follows_the_trainer(self):
        job = self.start_job()
        rewards = []
        checksums = self.server.checksums()
        self.assertEqual(checksums, self.expected())
        for version in range(1, ITERATIONS + 1):
            completions = self.rollout(version - 1)
            of_samples = [reward_of(completion) for completion in completions]
            rewards.append(statistics.mean(of_samples))
            self.trainer.step(completions, of_samples)
            self.cached()
            self.assertGreaterEqual(self.cached(), BLOCK)
            if version == KILLED:
                self.end_job(job)
                running = self.send_in_vain()
                self.require_refused(version - 1)
                job = self.start_job()
                self.sender.send_weights()
                self.resume()
                took = "a job step was killed, another one came"
            else:
                running = self.send()
                took = f"{self.pauses[-1]:.3f} s from pause to resume, {self.updates[-1]:.3f} s of them the update"
            self.assertEqual(self.server.get("weight_info")["weight_version"], str(version))
            self.assertEqual(self.cached(), 0)
            running.go_on(16)
            self.assertEqual(running.end(), [version - 1, version])
            now = self.server.checksums()
            self.assertEqual(now, self.expected())
            changed = sum(now[name] != checksums[name] for name in now)
            self.assertGreater(changed, 0)
            checksums = now
            print(f"iteration {version}: reward {rewards[-1]:.3f}, version {version}, {took}; "
                  f"{changed} of {len(now)} parameters are others", flush=True)  # fmt: skip
        self.end_job(job)
        print(f"from pause to resume: median {statistics.median(self.pauses):.3f} s, at most {max(self.pauses):.3f} s, "
              f"{sum(self.updates) / sum(self.pauses):.0%} of it updates")  # fmt: skip
        self.assertGreater(statistics.mean(rewards[-3:]), statistics.mean(rewards[:3]))


if __name__ == "__main__":
    unittest.main()
