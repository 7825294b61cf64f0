"""verl: a checkpoint engine that lets a job step write the trainers' weights into vLLM's workers, in place.

    actor_rollout_ref.rollout.checkpoint_engine.backend=weightcast
    +actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=weightcast.verl
    +actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.weightcast.folder=/shared/run/weights
    +actor_rollout_ref.rollout.engine_kwargs.vllm.weight_transfer_config.backend=weightcast
    actor_rollout_ref.rollout.free_cache_engine=False
    actor_rollout_ref.rollout.enable_sleep_mode=False

verl imports this module in each of its processes. It gives whole tensors to its engines: the first trainer keeps a copy of the
model, which is what it publishes. On the other side nothing comes through verl; it starts vLLM's updates, and waits for them.
"""

import asyncio
import importlib.metadata
import re

import ray
import torch
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from . import publish
from ._library import Error, path, seconds, shown
from ._tested import require_tested

_TESTED = ("0.9.1",)
_OTHERS = "WEIGHTCAST_VERL_VERSION"

# Actors of verl that have a vLLM engine: on a replica's first node.
_SERVER = re.compile(r"vllm_server_(\d+)_0")


@CheckpointEngineRegistry.register("weightcast")
class WeightcastCheckpointEngine(CheckpointEngine):
    """Of one trainer or one rollout worker. Raises weightcast.Error.

    `folder` is where the trainer and vLLM's workers publish, `timeout` how many seconds an update may take, `device` where
    the trainer's copy lies, `dtype` the engines' type, into which the trainer's is rounded."""

    # An update of such an engine may have brought nothing that verl has to load.
    wire_format = "delta_flush"

    def __init__(self, bucket_size, folder, is_master=False, timeout=600.0, device="cpu", dtype="bfloat16"):
        require_tested("verl", importlib.metadata.version("verl"), _TESTED, _OTHERS)
        self._folder = path(folder)
        self._is_master = is_master
        self._timeout = seconds(timeout)
        try:
            self._device = torch.device(device)
        except (RuntimeError, TypeError):
            raise Error(64, f"device {shown(device)}; give the name of one of torch, such as cpu") from None
        self._dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else None
        if not isinstance(self._dtype, torch.dtype):
            raise Error(64, f"dtype {shown(dtype)}; give the name of a type of torch, such as bfloat16")
        self._version = 0  # that was sent or received last
        self._coming = None
        self._drives = False
        self._tensors = {}
        self._export = None
        self._published = set()  # the servers whose workers have published

    def prepare(self):
        return {"version": self._version}

    @classmethod
    def build_topology(cls, actor_wg_world_size, rollout_world_size, metadata):
        """All bring the same version; one rollout worker drives vLLM."""
        coming = 1 + max(of["version"] for of in metadata)

        def arguments(size, drives):
            return {"version": [coming] * size, "drives": [drives and rank == 0 for rank in range(size)]}

        return arguments(actor_wg_world_size, False), arguments(rollout_world_size, True)

    def init_process_group(self, version, drives):
        self._coming = version
        self._drives = drives

    def finalize(self):
        self._version = self._coming

    async def send_weights(self, weights, global_steps=None):
        if not self._is_master:
            for _ in weights:  # all trainers gather
                pass
            return
        if self._export is None:
            self._tensors = {name: self._copy_of(tensor) for name, tensor in weights}
            self._export = publish(self._folder, "trainer", 0, 1, tensors=self._tensors, layout="hf")
        else:
            self._refill(weights)
        await asyncio.to_thread(self._export.offer, self._coming, self._timeout)

    def _copy_of(self, tensor):
        return tensor.detach().to(self._device, self._type_of(tensor), copy=True).contiguous()

    def _type_of(self, tensor):
        return self._dtype if tensor.is_floating_point() else tensor.dtype

    def _refill(self, weights):
        self._export.withdraw()  # what a failed update has left
        came = set()
        for name, tensor in weights:
            if name not in self._tensors or tensor.shape != self._tensors[name].shape:
                raise Error(64, f"tensor {name} of shape {tuple(tensor.shape)} was not published so; start verl anew")
            self._tensors[name].copy_(tensor)
            came.add(name)
        for name in self._tensors.keys() - came:
            raise Error(64, f"tensor {name} does not come any more; start verl anew")

    def close(self):
        """Withdraws what a trainer has published."""
        export, self._export = self._export, None
        if export is not None:
            export.close()

    async def receive_weights(self, global_steps=None):
        """Yields nothing: the weights come past verl."""
        if self._drives:
            await self._update()
        return
        yield

    async def _update(self):
        servers = {name: ray.get_actor(name) for name in _names_of_servers()}

        def call(method, **arguments):
            return asyncio.gather(*(server.collective_rpc.remote(method, kwargs=arguments) for server in servers.values()))

        await asyncio.gather(*(self._publish_once(name, server, len(servers)) for name, server in servers.items()))
        await call("start_weight_update")
        await call("update_weights", update_info={"version": self._coming, "timeout": self._timeout})
        await call("finish_weight_update")
        await asyncio.gather(*(server.clear_kv_cache.remote() for server in servers.values()))

    async def _publish_once(self, name, server, replicas):
        if name in self._published:
            return
        info = {"folder": self._folder, "timeout": self._timeout, "replica": int(_SERVER.fullmatch(name)[1]), "replicas": replicas}
        await server.collective_rpc.remote("init_weight_transfer_engine", kwargs={"init_info": info})
        self._published.add(name)


def _names_of_servers():
    actors = ray.util.list_named_actors()
    if any(name.startswith("vllm_server_decode_") for name in actors):
        raise Error(64, "verl's servers decode apart from prefill, and would be left out; switch off rollout.disaggregation")
    names = sorted(filter(_SERVER.fullmatch, actors))
    if not names:
        raise Error(64, "verl has no vLLM server; only its rollouts with vLLM can be updated so")
    return names
