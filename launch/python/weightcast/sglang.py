"""SGLang as an engine: a function for its hook of custom weight loaders, in which a job step writes new weights over the parameters
of every rank.

    python -m sglang.launch_server --model-path MODEL --custom-weight-loader weightcast.sglang.load

Each call of SGLang's update_weights_from_tensor with that load_format carries a request instead of weights: body() makes one for
HTTP, tensors() one for Engine. The first publishes the parameters (attach=True: does no more), each other one waits for a version.

SGLang 0.5.16 takes whatever such a function does for success, and ends its process where the function raises. So a request that was
in vain, with the old weights still whole, is logged and returns; whether a version has come, the job step's code says. Where the
memory holds no whole version, the call waits for the next job step, and raises only when its time is up: an engine ends rather
than that it serves such weights.
"""

import json
import logging
import time

from ._joint_update import JointUpdate, Ranks, gather_objects
from ._library import Error, Invalid, path, seconds, whole, words_of
from ._tested import require_tested

logger = logging.getLogger("weightcast.sglang")

# SGLang's whose interface was read and which were run; README.md says with what.
_TESTED = ("0.5.16",)
_OTHERS = "WEIGHTCAST_SGLANG_VERSION"
_LOAD_FORMAT = "weightcast.sglang.load"

_engines = {}  # by the id of the model, which lives as long as its process


def tensors(folder, version=None, timeout=600.0, holds=None, attach=False):
    """A request as SGLang's Engine.update_weights_from_tensor takes it, with load_format="weightcast.sglang.load". `folder` is where
    all publish; `version` which one must come, None: whichever comes; `timeout` how many seconds that may take; `holds` which
    version the engine has loaded itself; with `attach` the parameters are published, and nothing is waited for."""
    import torch

    said = _checked(path(folder), version, timeout, holds, bool(attach))
    return [("weightcast", torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8))]


def body(tp, folder, **more):
    """The JSON of such a request for POST /update_weights_from_tensor of a server with that tp. `more` is as of tensors()."""
    from sglang.srt.utils import MultiprocessingSerializer

    payload = MultiprocessingSerializer.serialize(tensors(folder, **more), output_str=True)
    return {"serialized_named_tensors": [payload] * whole(tp, "tp"), "load_format": _LOAD_FORMAT}


def load(model, named_tensors):
    """What SGLang calls on each rank. Raises Invalid on all ranks when no version was whole in time."""
    try:
        request = _request_of(named_tensors)
    except Exception as error:
        # On all ranks, which are given the same.
        logger.error("What was given is no request of weightcast.sglang: %s", words_of(error))
        return
    engine = _engines.get(id(model))
    if engine is None:
        engine = _engines[id(model)] = _Engine(model)
    engine.serve(request)


def _request_of(named_tensors):
    ((_, said),) = named_tensors
    return _checked(**json.loads(bytes(said.cpu().tolist())))


def _checked(folder, version, timeout, holds, attach):
    """A request, by name. Raises Error."""
    for name, value in (("version", version), ("holds", holds)):
        if value is not None:
            whole(value, name)
    return {"folder": path(folder), "version": version, "timeout": seconds(timeout), "holds": holds, "attach": attach}


class _Engine:
    """One rank of it."""

    def __init__(self, model):
        self._model = model
        self._export = None
        self._version = None  # that the memory holds; None: not known
        self._whole = True
        self._ranks = _ranks()

    def serve(self, request):
        until = time.monotonic() + request["timeout"]
        try:
            if self._export is None:
                self._ranks.together(lambda: self._publish(request))
        except Error as error:
            logger.error("Nothing is published: %s", error)
            return
        while not request["attach"]:
            try:
                self._receive(request["version"], until)
                return
            except Invalid as error:
                self._version, self._whole = None, False
                if time.monotonic() >= until:
                    raise
                logger.error("No version is whole; the next job step may bring one: %s", error)
            except Error as error:
                if not self._whole:
                    raise Invalid(Invalid.CODE, f"no version is whole, and none has come: {error}") from error
                logger.error("The weights are as they were: %s", error)
                return

    def _publish(self, request):
        import weightcast

        _require_tested_version()
        arguments = _arguments()
        _require_writable(arguments, self._model)
        layout = _layout_of(arguments)
        self._export = weightcast.publish(
            request["folder"],
            role="engine",
            rank=self._ranks.index,
            ranks=arguments.tp_size * arguments.pp_size,
            module=self._model,
            layout=layout,
            version=request["holds"],
        )
        self._version = request["holds"]
        logger.info("Parameters are published in %s. A job step needs --inference-alloc %s", request["folder"], layout)

    def _receive(self, version, until):
        """Waits for a job step, and uses what it has written."""
        seconds = max(0.0, until - time.monotonic())
        self._ranks.together(self._export.require_in_place)
        update = JointUpdate(self._export, self._ranks, self._version, seconds)
        came = update.wait(version, seconds)
        try:
            self._ranks.together(self._rebuild_derived)
            self._ranks.together(update.use)
        except Error as error:
            update.abandon(error)
            raise Invalid(Invalid.CODE, str(error)) from error
        self._version, self._whole = came, True

    def _rebuild_derived(self):
        """What SGLang computes from weights when it has loaded them: it does so only after loads of its own."""
        # A model that sees has the one that it is about inside, such as Kimi-K2.5 DeepSeek's.
        for model in (self._model, getattr(self._model, "language_model", None)):
            if hasattr(model, "post_load_weights"):
                model.post_load_weights()
                break
        for module in self._model.modules():
            # GLM's routers compute in a float32 copy that they make once. In place, because a captured graph holds the address.
            copy = getattr(module, "_weight_fp32", None)
            if copy is not None:
                copy.copy_(module.weight)
            # Gemma-4's multiply their scale by a constant, once.
            fused = getattr(module, "_fused_scale", None)
            if fused is not None:
                fused.copy_(module.scale * module.root_size)
        self._export.require_in_place()


def _ranks():
    from sglang.srt.distributed.parallel_state import get_world_group

    world = get_world_group()
    if world.world_size == 1:
        return Ranks()
    return Ranks(world.rank_in_group, gather_objects(world.world_size))


def _arguments():
    from sglang.srt.server_args import get_global_server_args

    return get_global_server_args()


def _layout_of(arguments):
    """As --inference-alloc takes it, such as sglang:t2e2."""
    sizes = {"p": arguments.pp_size, "t": arguments.tp_size, "e": arguments.ep_size}
    return "sglang:" + "".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1 or letter == "t")


def _require_tested_version():
    import sglang

    require_tested("SGLang", sglang.__version__, _TESTED, _OTHERS)


def _require_writable(arguments, model):
    """Refuses what cannot be written in place, or lies where the plan does not know it."""
    refused = [
        (arguments.quantization, "quantised weights are repacked by SGLang's kernels", "serve an unquantised model"),
        (arguments.enable_memory_saver, "memory of the memory saver cannot be opened by another process", "start without --enable-memory-saver"),
        (arguments.enable_lora, "adapters wrap the layers", "start without --enable-lora"),
        (arguments.speculative_algorithm not in (None, "NGRAM"), "a draft model would keep its weights", "start without --speculative-algorithm"),
        (arguments.cpu_offload_gb or arguments.offload_group_size > 0, "offloaded weights move", "start without offloading"),
        (arguments.enable_eplb or arguments.ep_num_redundant_experts or arguments.init_expert_location != "trivial",
         "experts are placed by a map", "start without --enable-eplb, --ep-num-redundant-experts and --init-expert-location"),
        (arguments.dp_size > 1 or arguments.enable_dp_attention, "ranks of attention and of experts are cut otherwise than tp",
         "start a server for each, without --dp-size"),
    ]  # fmt: skip
    for found, why, remedy in refused:
        if found:
            raise Error(64, f"{why}; {remedy}")
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        kernels = ("use_triton_kernels", "use_flashinfer_trtllm_moe", "use_flashinfer_cutlass", "use_deep_gemm")
        chosen = [kernel for kernel in kernels if getattr(method, kernel, False)]
        if chosen:
            raise Error(64, f"{name}: its kernel ({chosen[0]}) was never tried; start with --moe-runner-backend triton")
