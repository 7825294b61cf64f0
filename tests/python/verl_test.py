"""verl, as it is installed, updates what plays its vLLM servers through weightcast.verl: its manager, its rollout workers and its
adapter of vLLM are its own, in processes of Ray."""

import asyncio
import os
import pathlib
import shutil
import tempfile
import time
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

import job_step
import ray
import tiny_model
import torch
import verl_actors
import weightcast.verl
from verl.checkpoint_engine import CheckpointEngineManager, CheckpointEngineRegistry
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.workers.config import CheckpointEngineConfig, RolloutConfig

PATIENCE = 120  # seconds, on a machine that has other work
TRAINERS = 2
REPLICAS = 2


class Replica:
    """What the manager asks of a replica."""

    def __init__(self, workers):
        self.workers = workers

    async def _nothing(self, **_):
        pass

    abort_all_requests = release_kv_cache = resume_kv_cache = resume_generation = _nothing


def group_of(cls, size, prefix, **arguments):
    pool = RayResourcePool([size], use_gpu=False, max_colocate_count=1)
    return RayWorkerGroup(pool, RayClassWithInitArgs(ray.remote(cls), **arguments), name_prefix=prefix, use_gpu=False, device_name="cpu")


class Verl(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        cls.folder = str(cls.directory / "weights")
        cls.model = cls.directory / "model"
        tiny_model.write_config(cls.model, "bfloat16", False, hidden=32, vocabulary=100)
        os.environ["RAY_AUTH_MODE"] = "disabled"  # which would leave a file in the home folder
        ray_files = tempfile.mkdtemp(dir="/tmp", prefix="ray")  # sockets have short names
        cls.addClassCleanup(shutil.rmtree, ray_files, ignore_errors=True)
        processes = TRAINERS + 2 * REPLICAS
        ray.init(num_cpus=processes, num_gpus=0, include_dashboard=False, log_to_driver=False,
                 object_store_memory=80 << 20, _temp_dir=ray_files)  # fmt: skip
        cls.addClassCleanup(ray.shutdown)
        cls.config = CheckpointEngineConfig(
            backend="weightcast",
            engine_kwargs={"weightcast": {"folder": cls.folder, "timeout": PATIENCE}},
            custom_backend_module="weightcast.verl",
        )

    def run_job(self):
        """A job step as soon as all have published."""
        names = ["trainer-0.json", *(f"engine-{rank}.json" for rank in range(REPLICAS))]
        until = time.monotonic() + PATIENCE
        while not all(pathlib.Path(self.folder, name).exists() for name in names):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.05)
        job = job_step.start(self.folder, self.model, 1 + REPLICAS, "--inference-alloc", f"hf:d{REPLICAS}")
        said = job.communicate(timeout=PATIENCE)[0]
        self.assertEqual(job.returncode, 0, said)

    def test_an_update(self):
        trainers = group_of(verl_actors.Trainer, TRAINERS, "trainer", config=self.config, model=self.model)
        rollout = RolloutConfig(name="vllm", checkpoint_engine=self.config, tensor_model_parallel_size=1)
        servers = [
            ray.remote(verl_actors.Server).options(name=f"vllm_server_{rank}_0").remote(self.model) for rank in range(REPLICAS)
        ]
        replicas = [
            Replica(group_of(verl_actors.RolloutWorker, 1, f"replica{rank}", rollout_config=rollout, replica_rank=rank).workers)
            for rank in range(REPLICAS)
        ]
        manager = CheckpointEngineManager(self.config, trainers, replicas)
        for version, step in [(1, 17), (2, 18)]:
            with ThreadPoolExecutor(1) as thread:
                job = thread.submit(self.run_job)
                manager.update_weights(global_steps=step)
                job.result()
            expected = tiny_model.logits_digest(tiny_model.make_model(self.model, seed=step))
            for server in servers:
                state = ray.get(server.state.remote())
                self.assertEqual((state["version"], state["steps"], state["logits"]), (version, step, expected))
                update = ["start_weight_update", "update_weights", "finish_weight_update", "clear_kv_cache"]
                self.assertEqual(state["calls"], ["init_weight_transfer_engine", *update * version])


class Refusals(unittest.TestCase):
    def engine(self, **more):
        return CheckpointEngineRegistry.new("weightcast", bucket_size=1, folder="nowhere", **more)

    def test_a_version_that_was_never_tried(self):
        with unittest.mock.patch("importlib.metadata.version", lambda _: "0.10.0"):
            with self.assertRaisesRegex(weightcast.Error, "verl 0.10.0 was never tried .*WEIGHTCAST_VERL_VERSION=0.10.0"):
                self.engine()

    def test_a_type_that_torch_does_not_have(self):
        for name in ("bf16", "nn"):
            with self.subTest(name=name), self.assertRaisesRegex(weightcast.Error, f"dtype '{name}'; give"):
                self.engine(dtype=name)

    def test_all_bring_the_version_behind_the_latest(self):
        engine = weightcast.verl.WeightcastCheckpointEngine
        # A worker that has come later knows of no version.
        trainers, workers = engine.build_topology(1, 2, [{"version": 4}, {"version": 4}, {"version": 0}])
        self.assertEqual(trainers, {"version": [5], "drives": [False]})
        self.assertEqual(workers, {"version": [5, 5], "drives": [True, False]})

    def test_servers_that_cannot_be_updated(self):
        for actors, said in [
            (["sglang_server_0_0"], "verl has no vLLM server"),
            (["vllm_server_0_0", "vllm_server_decode_0_0"], "switch off rollout.disaggregation"),
        ]:
            engine = self.engine()
            engine.init_process_group(version=1, drives=True)
            with self.subTest(actors=actors), unittest.mock.patch("ray.util.list_named_actors", lambda actors=actors: actors):
                with self.assertRaisesRegex(weightcast.Error, said):
                    asyncio.run(anext(engine.receive_weights()))

    def test_other_tensors_than_were_published(self):
        with tempfile.TemporaryDirectory() as folder:
            engine = CheckpointEngineRegistry.new("weightcast", bucket_size=1, folder=folder, is_master=True, timeout=0.01)
            engine.init_process_group(version=1, drives=False)

            def send(**tensors):
                asyncio.run(engine.send_weights(iter(tensors.items())))

            with self.assertRaises(weightcast.NoAnswer):  # it is published, and no job step comes
                send(a=torch.zeros(2), b=torch.zeros(3))
            with self.assertRaisesRegex(weightcast.Error, "tensor b does not come any more"):
                send(a=torch.zeros(2))
            for tensors in ({"a": torch.zeros(3)}, {"c": torch.zeros(2)}):
                with self.assertRaisesRegex(weightcast.Error, "was not published so; start verl anew"):
                    send(**tensors)
            engine.close()


if __name__ == "__main__":
    unittest.main()
