"""A trainer that drives vLLM through vLLM's own trainer API, with weightcast as the backend.

    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from weightcast import vllm_trainer

    export = weightcast.torch.publish("run/weights", rank=rank, ranks=ranks, module=model, dtype=torch.bfloat16, layout="hf")
    engine = WeightTransferTrainerFactory.trainer_init(
        vllm_trainer.InitInfo("run/weights", rank=rank),
        client=HTTPVLLMWeightSyncClient("http://localhost:8000"), source=vllm_trainer.Source(export, model))
    engine.send_weights()    # on all ranks, while vLLM is paused: the next version is in its workers' memory

Importing this module registers the backend. vLLM sends nothing itself: a job step, which weightcast's server is, moves the weights.
"""

import collections.abc
import concurrent.futures
import contextlib
import dataclasses
import threading
import typing

import vllm
from vllm.distributed.weight_transfer.base import ModuleSource, TrainerInitInfo, TrainerWeightTransferEngine

from ._library import Error, path, seconds, shown, whole
from ._server import trigger
from ._tested import require_tested

_TESTED = ("0.32.0",)
_OTHERS = "WEIGHTCAST_VLLM_VERSION"

# Seconds within which a server that is gone, or refuses, has said so.
_SOON = 0.5


@dataclasses.dataclass
class InitInfo(TrainerInitInfo):
    """`folder` is where trainers and vLLM's workers publish; `version` what both have already; `workers` more of vLLM's
    init_info, such as {"timeout": 60}. `timeout` is how many seconds an update may take. With `triggers` False nobody asks
    the server of the folder: one with --on-offer, or another job step, comes by itself."""

    backend: typing.ClassVar[str] = "weightcast"
    folder: str
    version: int = 0
    timeout: float = 600.0
    triggers: bool = True
    workers: dict = dataclasses.field(default_factory=dict)


class Source(ModuleSource):
    """A module of which `export` is what weightcast.publish or weightcast.torch.publish has returned."""

    def __init__(self, export, module):
        super().__init__(module)
        self.export = export


class TrainerEngine(TrainerWeightTransferEngine[InitInfo]):
    """Of one trainer rank. `version` is what was sent last, `answer` what the server has said of it on the sending rank,
    weightcast.Answer, or None."""

    init_info_cls = InitInfo

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        """The sending rank lets vLLM's workers publish their parameters. Raises weightcast.Error, and what `client` raises."""
        require_tested("vLLM", vllm.__version__.split("+")[0], _TESTED, _OTHERS)
        if not isinstance(source, Source):
            raise Error(64, f"source is a {type(source).__name__}; give a weightcast.vllm_trainer.Source")
        _require_sound(init_info)
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        engine._info = init_info
        engine.version = init_info.version
        engine.answer = None
        if engine.is_sender:
            client.init_weight_transfer_engine({"folder": init_info.folder, "version": init_info.version, **init_info.workers})
        return engine

    def send_weights(self):
        """Offers the next version on this rank; the sending rank has it written into vLLM's workers. Returns when the
        parameters may change. Where it raises, the version was not sent, and the next call sends it."""
        version = self.version + 1
        export = self.source.export
        export.offer(version, wait=False)
        if self.is_sender:
            try:
                self._update(version)
            except BaseException:
                with contextlib.suppress(Error):
                    export.settle(0)
                raise
        export.settle(self._info.timeout)
        self.version = version

    def _update(self, version):
        self.client.start_weight_update()
        answer = self._ask(version)
        # What goes through vLLM's own loader is taken in update_weights alone, and the server answers when all is.
        concurrent.futures.wait([answer], _SOON if self._info.workers.get("landing") == "loader" else None)
        if answer.done() and answer.exception() is not None:
            # vLLM waits for a job step that does not come.
            with contextlib.suppress(Exception):
                self.client.update_weights({"timeout": 0})
            raise answer.exception()
        try:
            self.client.update_weights({"version": version, "timeout": self._info.timeout})
            self.client.finish_weight_update(str(version))
        except Exception as error:
            if answer.exception() is not None:  # when nobody reads the parameters any more
                raise answer.exception() from error
            raise
        self.answer = answer.result()

    def _ask(self, version):
        """What the server will say, a Future: a thread waits for it."""
        answer = concurrent.futures.Future()

        def ask():
            try:
                answer.set_result(trigger(self._info.folder, version, timeout=self._info.timeout))
            except Exception as error:
                answer.set_exception(error)

        if self._info.triggers:
            threading.Thread(target=ask, name="weightcast trigger", daemon=True).start()
        else:
            answer.set_result(None)
        return answer


def _require_sound(info):
    """Before vLLM's workers publish."""
    path(info.folder)
    whole(info.version, "version of InitInfo is")
    seconds(info.timeout)
    if not isinstance(info.workers, collections.abc.Mapping):
        raise Error(64, f"workers of InitInfo is {shown(info.workers)}; give a dict of vLLM's init_info")


def _register():
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    with contextlib.suppress(ValueError):  # another copy of this module has
        WeightTransferTrainerFactory.register_engine(InitInfo.backend, TrainerEngine)


_register()
