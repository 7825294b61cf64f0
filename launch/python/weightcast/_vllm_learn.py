"""Where vLLM's own loader puts a checkpoint: the model is built without memory, and loaded from headers alone."""

import contextlib
import copy
import hashlib
import os
import pathlib
import re
import typing

import torch
import vllm
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.utils import cached_file
from vllm.config import LoadConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.distributed.utils import get_pp_indices
from vllm.engine.arg_utils import EngineArgs
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.model_loader import default_loader, weight_utils
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform

from . import _headers, _landing, _regions, _tensors
from ._library import Error, excerpt
from ._recorder import Recorder
from ._sources import Made
from ._version import VERSION

logger = init_logger("vllm.weightcast")

# Of the environment, what changes how vLLM builds layers; not, for example, its ports and keys.
_SETTINGS = re.compile(r"VLLM_(USE_|CPU_SGL|MOE|FUSED|MLA|ROCM|MARLIN|FLASHINFER|.*(QUANT|MOE|PARTITION|PADDING|AITER))")

# What a map says where this machine has no kernel for experts.
_NO_KERNEL = "none here, unpadded"


def learn(model, tensor=1, pipeline=1, expert_parallel=False, dtype="auto"):
    """The map of an engine of tensor * pipeline ranks that serves the folder `model`, one rank after the other in this process,
    which must be no rank of anything. Raises Error."""
    config = config_of(model, tensor, pipeline, expert_parallel, dtype)
    learned = []
    for rank in range(tensor * pipeline):
        with as_rank(config, rank), any_kernel():
            learned.append(learn_rank(config))
    return joined(config, learned)


def config_of(model, tensor=1, pipeline=1, expert_parallel=False, dtype="auto"):
    """vLLM's configuration of such an engine. Raises Error."""
    try:
        return EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=True,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            enable_expert_parallel=expert_parallel,
        ).create_engine_config()
    except Exception as error:
        raise Error(64, f"vLLM refuses {model}: {first_line(error)}") from None


def learn_together(config, model, ranks, folder):
    """The file in `folder` with the map of an engine whose ranks all call this, each with its configuration and its served
    model, which stays as it is. What is there already is taken. Raises Error on all ranks."""
    known = ranks.all(lambda: (_landing.tensors_digest(checkpoint_of(config, model)), kernels_of(model)))
    digests = {digest for digest, _ in known}
    kernels = sorted(set().union(*(kernels for _, kernels in known)))

    def path_of():
        if len(digests) > 1:
            raise Error(65, "workers read different checkpoints; let all of them read the same folder")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)  # nothing may have been published there yet
        except OSError as error:
            raise Error(74, f"{folder} cannot be made: {error.strerror}") from None
        key = _landing.key_of(made_for_of(config, *digests, kernels))
        path = os.path.join(folder, f"landing-{key[:16]}.json")
        return path, _is_there(path, key)

    path, there = ranks.from_first(path_of)
    if not there:
        learned = ranks.all(lambda: learn_rank(config))
        ranks.from_first(lambda: _landing.write(joined(config, learned), path))
    ranks.together(lambda: _require_same_ties(_landing.read(path)["ranks"][ranks.index], model))
    return path


def _require_same_ties(rank, model):
    """vLLM ties a head to the embedding when it has loaded both and they are equal; another checkpoint may have two."""
    apart = {of["name"] for of in rank["parameters"]}
    names = {}
    for name, tensor in _tensors.State(model).tensors().items():
        if name in apart and tensor.numel():
            first = names.setdefault(_tensors.identity(tensor), name)
            if first != name:
                raise Error(64, f"vLLM has tied {name} to {first} when it had loaded both; leave {name} out of the checkpoint")


def _is_there(path, key):
    try:
        return _landing.read(path).get("key") == key
    except Error:
        return False


class Learned(typing.NamedTuple):
    """What one rank knows: the checkpoint's tensors, its entry of a map's `ranks`, its kernels of experts."""

    tensors: list
    rank: dict
    kernels: list


def joined(config, learned):
    """The map of all ranks of one engine."""
    tensors = learned[0].tensors
    if any(of.tensors != tensors for of in learned):
        raise Error(65, "ranks were given different checkpoints; let all of them read the same folder")
    made_for = made_for_of(config, _landing.tensors_digest(tensors), sorted(set().union(*(of.kernels for of in learned))))
    return {
        "landing": _landing.FORMAT,
        "engine": "vllm",
        "engine_version": made_for["engine_version"],
        "key": _landing.key_of(made_for),
        "made_for": made_for,
        "layout": {name: made_for[name] for name in ("tp", "pp", "ep")},
        "tensors": tensors,
        "ranks": [of.rank for of in learned],
    }


def made_for_of(config, digest, kernels):
    """All that a map depends on, this package's version, too. `digest` is the checkpoint's, `kernels` the engine's for experts."""
    parallel, model_config = config.parallel_config, config.model_config
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    made_for = {
        "weightcast": VERSION,
        "engine": "vllm",
        "engine_version": vllm.__version__.split("+")[0],
        "device": current_platform.device_type,
        "torch": torch.__version__.split("+")[0],
        "config_sha256": hashlib.sha256(_config_file(model_config).read_bytes()).hexdigest(),
        "tensors_sha256": digest,
        "architecture": model_config.architecture,
        "tp": tensor,
        "pp": pipeline,
        "ep": tensor if parallel.enable_expert_parallel else 1,
        "dtype": _name(model_config.dtype),
        "environment": {name: value for name, value in sorted(os.environ.items()) if _SETTINGS.match(name)},
    }
    if kernels:
        made_for["experts_kernels"] = kernels
    if pipeline > 1:
        layers = model_config.hf_text_config.num_hidden_layers
        stages = (get_pp_indices(layers, stage, pipeline) for stage in range(pipeline))
        made_for["stage_layers"] = [end - start for start, end in stages]
    return made_for


def kernels_of(model):
    """What vLLM calls the kernels of a model's unquantised experts; padding depends on them."""
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    methods = [method for method in methods if getattr(method, "unquantized_backend", None) is not None]
    return sorted({_NO_KERNEL if of.experts_cls is None else of.unquantized_backend.value for of in methods})


def checkpoint_of(config, model):
    """The tensors that vLLM's loader is given: in network order, as a map has them. Raises Error."""
    loader = default_loader.DefaultModelLoader(LoadConfig())
    found = []
    with _iterator(lambda files, *_, **__: _listed(files)):
        try:
            for name, (dtype, shape) in loader.get_all_weights(config.model_config, model):
                found.append({"name": name, "dtype": dtype, "shape": shape})
        except Error:
            raise
        except (OSError, RuntimeError) as error:
            raise Error(65, f"{config.model_config.model} has no checkpoint that vLLM reads: {first_line(error)}") from None
    if not found:
        raise Error(65, f"the checkpoint of {config.model_config.model} has no tensor; give one that has the model's")
    if len({of["name"] for of in found}) != len(found):
        raise Error(65, f"{config.model_config.model} has two tensors of one name; keep one of the files")
    return sorted(found, key=lambda of: _landing.network_order(of["name"]))


def learn_rank(config):
    """What this process's rank of an engine with that configuration does with its checkpoint. The process groups are there; a
    model that is served already stays as it is."""
    config = _apart(config)
    recorder = Recorder()
    before = torch.get_default_dtype()
    torch.set_default_dtype(config.model_config.dtype)
    try:
        with set_current_vllm_config(config):
            with recorder, torch.device(config.device_config.device):
                try:
                    model = initialize_model(config)
                except Exception as error:
                    raise Error(65, f"vLLM cannot build the model of {config.model_config.model}: {first_line(error)}") from error
            recorder.forget_before(_tensors.State(model).tensors().values())
            tensors = checkpoint_of(config, model)
            _load(recorder, config, model, tensors)
    finally:
        torch.set_default_dtype(before)
    return Learned(tensors, _rank_of(recorder, _tensors.State(model).tensors(), tensors), kernels_of(model))


def _load(recorder, config, model, tensors):
    numbers = {of["name"]: number for number, of in enumerate(tensors)}

    def headers(files, use_tqdm, strategy=None, local_expert_ids=None, **_):
        for name, (dtype, shape) in _listed(files):
            if not should_skip_weight(name, local_expert_ids):
                yield name, recorder.checkpoint_tensor(numbers[name], shape, _tensors.torch_dtype(dtype))

    loader = default_loader.DefaultModelLoader(config.load_config)
    # vLLM would refuse a parameter without a tensor; a map names it.
    tracked = _replaced(loader, "track_weights_loading", lambda *_, **__: None)
    with _iterator(headers), tracked, recorder, torch.device(config.device_config.device):
        try:
            loader.load_weights(model, config.model_config)
        except Exception as error:
            raise Error(65, f"vLLM's loader refuses the checkpoint of {config.model_config.model}: {first_line(error)}") from error


def _rank_of(recorder, state, tensors):
    """An entry of a map's `ranks`."""
    rank = _landing.Rank(tensors, recorder.asked())
    names = {}  # by place: what is tied has several
    for name, tensor in state.items():
        names.setdefault(recorder.place(tensor), []).append(name)
    for first, *aliases in names.values():
        tensor = state[first]
        if not tensor.numel():
            continue
        try:
            pieces = recorder.pieces_of(tensor)
        except _regions.Mixed as error:
            pieces = [_regions.piece(0, [(tensor.numel(), 1, 0)], Made(f"a view with {error}", recorder.sources_of(tensor)), 0)]
        matrices = re.search(r"\.(w13|w2)_weight$", first) if tensor.dim() == 3 else None
        rank.add(first, _name(tensor.dtype), tuple(tensor.shape), aliases, pieces, matrices and matrices[1])
    return rank.json()


@contextlib.contextmanager
def _replaced(owner, name, value):
    """Until then another attribute of vLLM's or torch's."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def _iterator(iterate):
    """vLLM's loader goes over files as `iterate` does."""
    return _replaced(default_loader, "safetensors_weights_iterator", iterate)


def _listed(files):
    """(name, (dtype, shape)) of every tensor, in the order in which vLLM reads them."""
    for path in sorted(files, key=weight_utils._natural_sort_key):
        for name, dtype, shape in _headers.of_file(path):
            if _tensors.torch_dtype(dtype) is None:
                raise Error(65, f"{path}: tensor {name!r} is {dtype}, which torch has not; leave it out")
            yield name, (dtype, shape)


def _apart(config):
    """A configuration whose model may be built beside another one of the same."""
    config = copy.copy(config)
    config.compilation_config = copy.copy(config.compilation_config)
    for name, value in vars(config.compilation_config).items():
        if isinstance(value, (dict, list, set)):
            setattr(config.compilation_config, name, type(value)() if name.startswith("static_") else copy.copy(value))
    config.load_config = LoadConfig(load_format="safetensors")
    return config


@contextlib.contextmanager
def as_rank(config, rank):
    """This process is one rank of an engine of which no other one runs: its groups do nothing."""
    parallel = config.parallel_config
    parallel.rank = rank
    new_group = torch.distributed.new_group

    class Group(parallel_state.GroupCoordinator):
        def __init__(self, group_ranks, local_rank, *_, group_name=None, **__):
            super().__init__(group_ranks, local_rank, "fake", False, False, group_name)

    torch.distributed.init_process_group("fake", rank=rank, world_size=parallel.world_size, store=FakeStore())
    try:
        with (
            _replaced(torch.distributed, "new_group", lambda ranks=None, *_, **__: new_group(ranks, backend="fake")),
            _replaced(parallel_state, "GroupCoordinator", Group),
            _replaced(parallel_state, "_node_count", lambda group: 1),
            set_current_vllm_config(config),
        ):
            parallel_state.init_distributed_environment(parallel.world_size, rank, "env://", 0, "fake")
            parallel_state.initialize_model_parallel(parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
            yield
    finally:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


@contextlib.contextmanager
def any_kernel():
    """Where this machine has no kernel for a model's experts they lie unpadded; which one attention has changes no weight."""
    experts, attention = unquantized_fused_moe_method.select_unquantized_moe_backend, current_platform.get_attn_backend_cls
    check = FusedMoEConfig.__post_init__

    def select_experts(*arguments, **named):
        try:
            return experts(*arguments, **named)
        except (NotImplementedError, ValueError) as error:
            logger.warning_once("%s Experts are taken to be unpadded, as Triton's kernels read them.", str(error))
            return UnquantizedMoeBackend.TRITON, None

    def select_attention(selected, attn_selector_config, **named):
        try:
            return attention(selected, attn_selector_config=attn_selector_config, **named)
        except NotImplementedError:
            return attention(selected, attn_selector_config=attn_selector_config._replace(use_sparse=False), **named)

    def check_experts(config):
        with contextlib.suppress(NotImplementedError):  # its last check
            check(config)

    with (
        _replaced(unquantized_fused_moe_method, "select_unquantized_moe_backend", select_experts),
        _replaced(current_platform, "get_attn_backend_cls", select_attention),
        _replaced(FusedMoEConfig, "__post_init__", check_experts),
    ):
        yield


def _config_file(model_config):
    path = pathlib.Path(model_config.model, "config.json")
    return path if path.exists() else pathlib.Path(cached_file(model_config.model, "config.json", revision=model_config.revision))


def _name(dtype):
    return _tensors.dtype_name(dtype)


def first_line(error):
    """Of an exception's text, for a line of our own; of pydantic's, what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "validation error" in lines[0]:
        lines = [line.split(" [type=")[0].removeprefix("Value error, ") for line in lines if " [type=" in line]
    return excerpt(lines[0]) if lines else type(error).__name__
