"""The backend "weightcast" of vLLM's weight transfer. Each worker publishes its parameters; an update is

    start_weight_update     answers the job step that asks, now or later
    update_weights          returns when the version is in the memory of every worker
    finish_weight_update    rebuilds what follows from the weights; from here on the engine serves the version

What a job step cannot lay out as vLLM's kernels read it goes another way: the model's own tensors come through a window, and
update_weights gives them to the model's load_weights as they come, on each worker. With "landing": "loader" that is all of them,
with "learn" those that the loader computes with.

vLLM's executor of several processes reads the workers' answers in order and stops at the first failure; answers behind it would
be taken for those of the next call. So what fails on any rank is made every rank's failure, and the last one alone raises it.
"""

import dataclasses
import functools
import inspect

import torch
import vllm
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_worker import Worker

import weightcast

try:
    from vllm.model_executor.layers.attention import is_deferred_attention_layer
except ImportError:  # 0.26
    from vllm.model_executor.layers.attention import Attention, MLAAttention

    def is_deferred_attention_layer(module):
        return isinstance(module, (Attention, MLAAttention))


from . import _headers, _landing, _vllm_refusals
from ._joint_update import JointUpdate, Ranks, gather_objects
from ._library import seconds, whole
from ._tested import require_tested
from .learn import vllm_learner

logger = init_logger("vllm.weightcast")

# vLLM's whose interface was read and which were run; README.md says with what.
_TESTED = ("0.26.0", "0.32.0")
_OTHERS = "WEIGHTCAST_VLLM_VERSION"

# Executors of which each worker's failure reaches the caller by itself.
_SEPARATE_ANSWERS = ("uni", "ray", "external_launcher")


@dataclasses.dataclass
class InitInfo(WeightTransferInitInfo):
    """`folder` is where all publish; `timeout` how many seconds an update may take once it has been asked for; `layout` how
    the parameters are cut, None: as this engine's configuration says; `version` what its memory holds already. Where
    several servers are replicas of one engine, this one is number `replica` of `replicas`. `landing` says how weights get
    there: "direct", a job step writes the parameters in place; "learn", too, by a map of what vLLM's loader does with the
    checkpoint, which is put into the folder, for a model that job steps do not know; "loader", tensors come through a window,
    in which `window` bytes may be at once on each worker. What the map says the loader computes with comes through one, too."""

    folder: str
    timeout: float = 600.0
    layout: str | None = None
    version: int | None = None
    replica: int = 0
    replicas: int = 1
    landing: str = "direct"
    window: int = 2**30


@dataclasses.dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """`version` is which one must come, None: whichever comes. `timeout` is how many seconds a job step may take to ask."""

    version: int | None = None
    timeout: float = 600.0


class WeightcastEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Of one worker. Raises weightcast.Error."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config, vllm_config, device, model):
        _require_tested_version()
        super().__init__(config, vllm_config, device, model)
        _vllm_refusals.require_in_use(vllm_config, model)
        self._vllm_config = vllm_config
        self._world = self.parallel_config.world_size
        self._ranks = Ranks(self.parallel_config.rank, gather_objects(self._world)) if self._world > 1 else Ranks()
        self._export = None
        self._update = None
        self._version = None  # that this worker's memory holds
        self._load = None  # takes the tensors of an Update, where they come through a window
        self._kept = None  # a failure of the start that the next step answers
        self._timeout = InitInfo.timeout

    def parse_init_info(self, init_dict):
        # A failure here would be raised on every rank.
        try:
            return super().parse_init_info(init_dict)
        except ValueError as error:
            return error

    def init_transfer_engine(self, init_info):
        """Publishes the worker's parameters and persistent buffers under vLLM's names."""
        before = self._export
        try:
            self._require_no_update()
            self._ranks.together(lambda: self._require_publishable(init_info))
            landing = self._learn(init_info)
            needed = self._ranks.together(lambda: self._publish(init_info, landing))
        except weightcast.Error as error:
            if before is None:
                self._close()
            self._raise(error)
            return
        logger.info(
            "Parameters are published in %s. A job step needs --model %s --inference-alloc %s%s",
            init_info.folder,
            self.model_config.model,
            needed,
            f" --landing {landing}" if landing else "",
        )

    def _require_publishable(self, info):
        if isinstance(info, ValueError):
            raise weightcast.Error(64, str(info))
        if self._export is not None:
            raise weightcast.Error(64, "the parameters are published already; call /shutdown_weight_transfer_engine first")
        for name in ("replica", "replicas", "window"):
            whole(getattr(info, name), f"{name} of init_info is")
        seconds(info.timeout)
        replica = self._replica_of(info)
        if not 0 <= replica < info.replicas:
            raise weightcast.Error(
                64, f"this is replica {replica} of {info.replicas}; let 'replica' and 'replicas' of init_info count servers, and "
                "data-parallel ranks inside them")  # fmt: skip
        if info.landing not in ("direct", "learn", "loader"):
            raise weightcast.Error(64, f"landing {info.landing!r} of init_info; write direct, learn or loader")
        if info.landing == "loader":
            _vllm_refusals.require_loadable(self._vllm_config, self.model)
        else:
            _vllm_refusals.require_writable(self._vllm_config, self.model)
        if info.landing == "learn":
            _vllm_refusals.require_learnable(self.model)

    def _replica_of(self, info):
        return info.replica + self.parallel_config.data_parallel_index

    def _publish(self, info, landing):
        """Returns what a job step needs behind --inference-alloc. `landing` is the file of the map, None without."""
        place = {
            "role": "engine",
            "rank": self._replica_of(info) * self._world + self.parallel_config.rank,
            "ranks": info.replicas * self._world,
            "version": info.version,
        }
        if info.landing == "loader":
            needed = self._publish_window(info, place)
        else:
            needed = self._publish_module(info, place, _landing.read(landing) if landing else None)
        self._timeout = info.timeout
        self._version = info.version
        return needed

    def _publish_module(self, info, place, landing):
        """The same. Beside the parameters there is a window for the tensors that the loader computes with on this rank."""
        entries = [rank.get("loader", []) for rank in landing["ranks"]] if landing else []
        own = entries[self._ranks.index] if entries else []
        fed = {name for of in own for name in of.get("parameters", [])}
        tensors = [landing["tensors"][of["tensor"]] for of in own]
        window = {of["name"]: weightcast.Memory(of["dtype"], of["shape"]) for of in tensors}
        _vllm_refusals.require_loader_beside(self.model, window, fed)
        layout = info.layout or _layout_of(self.parallel_config, info.replicas)
        self._export = weightcast.publish(
            info.folder, module=self.model, layout=layout, window=window, limit=info.window, **place
        )
        self._load = None
        if any(entries):  # on other ranks, too, which wait for this one
            self._load = functools.partial(self._load_landed, fed=fed) if window else lambda update: None
        return " --moe-layout ".join([layout, *_vllm_refusals.moe_layouts(self.model)])

    def _publish_window(self, info, place):
        """The same. Each worker takes the whole model, of which its loader keeps its part: to the job step it is a replica."""
        tensors = _headers.of_folder(self.model_config.model)
        self._export = weightcast.publish(info.folder, window=tensors, limit=info.window, layout=info.layout or "hf", **place)
        self._load = self._load_landed
        return f"hf:d{place['ranks']}"

    def _load_landed(self, update, fed=None):
        """Gives the model what comes, of which the parameters named `fed` are made; None: all that it has. On a GPU layer by
        layer as vLLM's own engines do, which repacks what kernels have repacked; on a CPU layers read their weights as they are."""
        if current_platform.is_cpu():
            loaded = _load_batches(self.model, update.batches())
        else:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

            torch.accelerator.set_device_index(self.device)  # of this thread
            initialize_layerwise_reload(self.model)
            try:
                # It keeps tensors until their layer is complete, and those of the window do not last so long.
                on_device = ([(name, tensor.to(self.device)) for name, tensor in batch] for batch in update.batches())
                loaded = _load_batches(self.model, on_device)
            finally:
                finalize_layerwise_reload(self.model, self.model_config)
                torch.accelerator.synchronize()
        wanted = {name for name, _ in self.model.named_parameters() if fed is None or name in fed}
        said = None if loaded is None else {_without_module_of_experts(name) for name in loaded}
        missing = [] if said is None else sorted(name for name in wanted if _without_module_of_experts(name) not in said)
        if missing and not self.model_config.quantization:
            raise weightcast.Error(65, f"parameter {missing[0]} and {len(missing) - 1} others got nothing from the model's tensors")

    def _learn(self, info):
        """The file of the landing map that is asked for, None without."""
        if info.landing != "learn":
            return None
        self._ranks.together(lambda: vllm_learner() is None)  # all of them can
        return vllm_learner().learn_together(self._vllm_config, self.model, self._ranks, info.folder)

    def reload(self, load):
        """vLLM's own loader writes where the parameters are: what comes of it is no version of a job step's."""
        try:
            self._require_no_update()
            self._ranks.together(self._forget_version)
        except weightcast.Error as error:
            self._raise(error)
        else:
            load()

    def _require_no_update(self):
        """Of all ranks alike, and nothing that needs the others: their update's thread talks to them."""
        if self._update is not None:
            raise weightcast.Error(64, "an update is under way; call /update_weights and /finish_weight_update first")

    def _forget_version(self):
        if self._export is not None:
            self._decline("vLLM loads weights of its own")
            self._export.invalidate("vLLM has loaded weights of its own")
        self._version = None

    def start_weight_update(self):
        """From here on a job step that asks is answered: nothing may be generated until the update is over."""
        self._kept = None
        try:
            self._ranks.together(self._require_ready)
        except weightcast.Error as error:
            self._decline(error)
            if self._answers_apart():
                raise
            self._kept = error  # the other workers' start would make them wait for an update
            return
        self._update = JointUpdate(self._export, self._ranks, self._version, self._timeout, self._load)

    def _require_ready(self):
        if self._export is None:
            raise weightcast.Error(64, "nothing is published; call /init_weight_transfer_engine first")
        self._export.require_in_place()

    def _decline(self, error):
        """Tells a job step that asks."""
        if self._export is not None and self._export.wanted() is not None:
            try:
                self._export.decline(str(error))
            except weightcast.Error:
                pass  # it has taken its question back

    def update_weights(self, update_info):
        # Not the base's, which would raise what is wrong with update_info on every rank.
        info, wrong = UpdateInfo(timeout=0), None
        try:
            info = self._update_info_of(update_info)
        except (ValueError, weightcast.Error) as error:
            wrong = weightcast.Error(64, str(error))
        try:
            self._receive(info, wrong)
        except weightcast.Error as error:
            self._forget_update(error)
            self._raise(error, _calling_worker())

    def _update_info_of(self, update_info):
        info = self.parse_update_info(update_info)
        if info.version is not None:
            whole(info.version, "version of update_info is")
        seconds(info.timeout)
        return info

    def receive_weights(self, update_info):
        self._receive(update_info, None)

    def _receive(self, info, wrong):
        version, failure = None, None
        try:
            version = self._waited(info.version, info.timeout)
        except weightcast.Error as error:
            failure = error  # all ranks' alike
        try:
            self._ranks.together(lambda: _require_wished(info, wrong, version))
        except weightcast.Error:
            if version is not None:
                self._use(version)  # what has come is whole
            raise
        if failure is not None:
            raise failure

    def _waited(self, version, seconds):
        """The version that has come."""
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept
        return self._update.wait(version, seconds)

    def finish_weight_update(self):
        """The engine serves what was received. Where a rank cannot, all are invalid until another update."""
        try:
            self._use(self._waited(None, 0.0))
        except weightcast.Error as error:
            self._forget_update(error)
            self._raise(error, _calling_worker())

    def _forget_update(self, error):
        self._update = None
        if isinstance(error, weightcast.Invalid):
            self._version = None

    def _use(self, version):
        update, self._update = self._update, None
        try:
            self._ranks.together(self._rebuild_derived)
            self._ranks.together(update.use)
        except weightcast.Error as error:
            update.abandon(error)
            self._version = None
            raise
        self._version = version

    def _rebuild_derived(self):
        """What vLLM computes from weights when it has loaded them: the absorbed weights of MLA. In place."""
        for module in self.model.modules():
            if is_deferred_attention_layer(module):
                module.process_weights_after_loading(self.model_config.dtype)
        self._export.require_in_place()

    @staticmethod
    def trainer_send_weights(iterator, trainer_args):
        """What 0.26 wants of a backend: here trainers publish."""
        raise weightcast.Error(64, "trainers call weightcast.publish and offer; this backend sends nothing itself")

    def shutdown(self):
        """Withdraws the parameters, which stay what they are, in memory that is the worker's alone."""
        update, self._update = self._update, None
        if update is None or update.cancel(5.0):
            self._close()

    def _close(self):
        export, self._export = self._export, None
        if export is not None:
            export.close(keep=True)

    def _answers_apart(self):
        return self._world == 1 or self.parallel_config.distributed_executor_backend in _SEPARATE_ANSWERS

    def _raise(self, error, worker=None):
        """Raises where the caller hears it once. `worker` is vLLM's, which counts the update as over where it has raised:
        on the other ranks, too."""
        if worker is not None:
            worker._weight_update_active = False
        if self._answers_apart() or self.parallel_config.rank == self._world - 1:
            raise error
        logger.error("%s", error)


def _watch_reloads():
    """Lets this backend know when a worker is told to load weights."""
    reload = Worker.reload_weights

    @functools.wraps(reload)
    def reload_weights(worker, *arguments, **more):
        engine = worker.weight_transfer_engine
        if isinstance(engine, WeightcastEngine):
            engine.reload(lambda: reload(worker, *arguments, **more))
        else:
            reload(worker, *arguments, **more)

    Worker.reload_weights = reload_weights


_watch_reloads()


def _refuse_once():
    """What comes out of order a worker of vLLM refuses by itself, and so all of them do: here it is refused before."""
    under_way = "an update is under way; call /update_weights and /finish_weight_update first"
    none_begun = "no update is under way; call /start_weight_update first"
    for name, active, said in (
        ("start_weight_update", True, under_way),
        ("update_weights", False, none_begun),
        ("finish_weight_update", False, none_begun),
        ("shutdown_weight_transfer_engine", True, under_way),
    ):
        if hasattr(Worker, name):
            setattr(Worker, name, _refusing(getattr(Worker, name), active, said))


def _refusing(method, active, said):
    """The worker's method, which is refused while the worker counts an update as `active`, or as not active."""

    @functools.wraps(method)
    def call(worker, *arguments, **more):
        engine = worker.weight_transfer_engine
        if isinstance(engine, WeightcastEngine) and getattr(worker, "_weight_update_active", None) is active:
            engine._raise(weightcast.Error(64, said))
            return None
        return method(worker, *arguments, **more)

    return call


_refuse_once()


def _calling_worker():
    """The worker that has called the engine's method that calls this."""
    caller = inspect.currentframe().f_back.f_back.f_locals.get("self")
    return caller if isinstance(caller, Worker) else None


def _require_wished(info, wrong, version):
    """`version` is what has come, None when nothing has."""
    if wrong is not None:
        raise wrong
    if None not in (info.version, version) and info.version != version:
        raise weightcast.Error(64, f"version {info.version} was to come, but {version} has; the engine serves that one")


def _require_tested_version():
    require_tested("vLLM", vllm.__version__.split("+")[0], _TESTED, _OTHERS)


def _without_module_of_experts(name):
    """Some loaders leave the module in which experts lie, mlp.experts.routed_experts, out of the names that they say."""
    return name.replace(".routed_experts.", ".")


def _load_batches(model, batches):
    """The names of the parameters that the model's loader says it has loaded; None where it says nothing."""
    loaded = set()
    for batch in batches:
        names = model.load_weights(batch)
        loaded = None if names is None or loaded is None else loaded | set(names)
    return loaded


def _layout_of(parallel, replicas):
    """As --inference-alloc takes it, such as vllm:t2. vLLM cuts the list of experts as often as its ranks, or not at all."""
    tensor = parallel.tensor_parallel_size
    sizes = {
        "d": replicas,
        "p": parallel.pipeline_parallel_size,
        "t": tensor,
        "e": tensor if parallel.enable_expert_parallel else 1,
    }
    return "vllm:" + "".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1 or letter == "t")
