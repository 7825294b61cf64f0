"""Trainers of Megatron-Core: each rank publishes what it holds, where it lies, under Megatron's names.

    export = weightcast.megatron.publish("run/weights", model)   # on all ranks, when Megatron's parallel state is there
    if torch.distributed.get_rank() == 0:
        print(export.options)                                    # for the job step: --trainer-alloc 'megatron:(...)' ...
    for version in itertools.count(1):
        train()
        export.offer(version)

Nothing is gathered: the job step knows from the options which parts of the model a rank holds.
"""

import dataclasses
import shlex

import megatron.core
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module

from . import publish as _publish
from ._joint_update import Ranks
from ._library import Error
from ._tested import require_tested
from ._wrapper import Wrapper

# Versions of Megatron-Core whose models and parallel state were published and read; README.md says how.
_TESTED = ("0.19.2",)
_OTHERS = "WEIGHTCAST_MEGATRON_VERSION"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive decoder layers that a rank holds, by their numbers in the whole model, which begin with 1."""

    layers: tuple
    embedding: bool = False
    final_norm: bool = False
    head: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a rank stands: for pp, tp, cp, dp, and etp, ep, edp of experts, its index and how many there are."""

    index: dict
    size: dict
    chunks: tuple


def publish(folder, model):
    """Publishes this rank's part of a GPTModel: its parameters and persistent buffers. `model` is one, or a list of the
    chunks that this rank has of a virtual pipeline, each bare or in Megatron's Float16Module and DistributedDataParallel.
    Parameters are published in the type that they have in the model: where an optimiser keeps float32 masters of them,
    what it has made of those.

    All ranks of torch.distributed call it, and all are trainers. It raises weightcast.Error on all of them when any has
    something that a job step cannot read; then nothing is published."""
    if not torch.distributed.is_initialized():
        raise Error(64, "torch.distributed is not there; call init_process_group and Megatron's initialize_model_parallel first")
    chunks = list(model) if isinstance(model, (list, tuple)) else [model]
    world = torch.distributed.get_world_size()

    def gather(value):
        values = [None] * world
        torch.distributed.all_gather_object(values, value)
        return values

    rank = torch.distributed.get_rank()
    ranks = Ranks(rank, gather, "trainer")
    place = ranks.together(lambda: _place_of(chunks, world))
    layout = Layout(gather(place))  # the same on all ranks
    modules = [_bare(chunk) for chunk in chunks]
    export = None

    def publish_own():
        nonlocal export
        module = modules[0] if len(modules) == 1 else _Chunks(modules)
        export = _publish(folder, "trainer", rank, world, module=module, layout=str(layout))

    try:
        ranks.together(publish_own)
    except Error:
        if export is not None:
            export.close(keep=True)
        raise
    return MegatronExport(export, layout, chunks)


class MegatronExport(Wrapper):
    """What this rank has published. `layout` is how the trainers divide the model, `options` the same as text for a job
    step's command line."""

    def __init__(self, export, layout, chunks):
        super().__init__(export)
        self._gathers_late = [chunk for chunk in _wrappers(chunks) if chunk.ddp_config.overlap_param_gather]
        self.layout = str(layout)
        self.options = layout.options

    def offer(self, version, timeout=600.0, wait=True):
        """The parameters are that version, as Export.offer. On all ranks: where gathering parameters overlaps with the next
        forward pass (overlap_param_gather), they are gathered now."""
        for chunk in self._gathers_late:
            with torch.no_grad():
                chunk.start_param_sync(force_sync=True)
        self._export.offer(version, timeout, wait)


class Layout:
    """How trainers divide a model, of where each of them stands, in the order of their ranks. Raises weightcast.Error for a
    division that no options of a job step say."""

    def __init__(self, places):
        self._size = places[0].size
        self._order = self._order_of(places)
        self._stage_layers = self._layers_of(places)

    @property
    def allocation(self):
        """As --trainer-alloc takes it."""
        size = self._size
        return (f"megatron:(attn:d{size['dp']}p{size['pp']}t{size['tp']}c{size['cp']}"
                f"|ffn:d{size['edp']}p{size['pp']}t{size['etp']}e{size['ep']})")  # fmt: skip

    @property
    def options(self):
        """For a job step's command line, with a shell's quotes."""
        return f"--trainer-alloc {shlex.quote(self.allocation)}{self._other_options()}"

    def __str__(self):
        """As a job step writes it: the same for what means the same."""
        return self.allocation + self._other_options()

    def _other_options(self):
        order = " --trainer-order tp-pp-dp" if self._order == "tp-pp-dp" else ""
        even = len(self._stage_layers) == self._size["pp"] and len(set(self._stage_layers)) == 1
        return order + ("" if even else f" --stage-layers {','.join(map(str, self._stage_layers))}")

    def _order_of(self, places):
        expected = {order: [_index(self._size, order, rank) for rank in range(len(places))] for order in ("tp-dp-pp", "tp-pp-dp")}
        for order, indices in expected.items():
            if indices == [place.index for place in places]:
                return order
        usual = expected["tp-dp-pp"]
        rank = next(rank for rank, place in enumerate(places) if place.index != usual[rank])
        raise Error(64, f"trainer {rank} is {_words(places[rank].index)}, where a job step expects {_words(usual[rank])}; call "
                    "initialize_model_parallel with order tp-cp-ep-dp-pp or tp-cp-ep-pp-dp")  # fmt: skip

    def _layers_of(self, places):
        """Of every chunk, chunk 0 of all stages first."""
        stages = [None] * self._size["pp"]
        for rank, place in enumerate(places):
            stage = place.index["pp"]
            if stages[stage] not in (None, place.chunks):
                raise Error(64, f"trainer {rank} has other layers than others of pipeline stage {stage}; publish one model")
            stages[stage] = place.chunks
        if len({len(stage) for stage in stages}) > 1:
            raise Error(64, f"stages have {', '.join(str(len(stage)) for stage in stages)} chunks; publish all chunks of each")
        chunks = [chunk for of_stages in zip(*stages) for chunk in of_stages]
        layers = [layer for chunk in chunks for layer in chunk.layers]
        if layers != list(range(1, len(layers) + 1)):
            raise Error(64, f"layers lie on the stages in the order {layers}, chunk 0 of all stages first; a job step reads "
                        "stages whose layers follow one another")  # fmt: skip
        last = max((number for number, chunk in enumerate(chunks) if chunk.layers), default=0)
        _require_only(chunks, "embedding", 0, "the embedding")
        _require_only(chunks, "head", len(chunks) - 1, "the output layer")
        _require_only(chunks, "final_norm", last, "the final norm")
        return [len(chunk.layers) for chunk in chunks]


def _require_only(chunks, part, expected, what):
    found = [number for number, chunk in enumerate(chunks) if getattr(chunk, part)]
    if found != [expected]:
        raise Error(64, f"{what} is in chunks {found}, counted through all stages, where a job step expects {expected}; give the "
                    "first and the last stage decoder layers in pipeline_model_parallel_layout")  # fmt: skip


def _index(size, order, rank):
    """Where a job step takes a rank to stand; `order` as --trainer-order has it."""
    inner = size["tp"] * size["cp"]
    if order == "tp-dp-pp":
        stage, own = divmod(rank, inner * size["dp"])
    else:
        stage = rank // inner % size["pp"]
        own = rank // (inner * size["pp"]) * inner + rank % inner
    index = {"pp": stage}
    for names in (("tp", "cp", "dp"), ("etp", "ep", "edp")):
        rest = own
        for name in names:
            rest, index[name] = divmod(rest, size[name])
    return index


def _words(index):
    return " ".join(f"{name} {number}" for name, number in index.items())


class _Chunks(torch.nn.Module):
    """Gives the chunks of a virtual pipeline their names."""

    def __init__(self, chunks):
        super().__init__()
        self.vp_stages = torch.nn.ModuleList(chunks)


def _place_of(chunks, world):
    """Of this rank; raises for what no job step reads."""
    _require_tested_version()
    for chunk in chunks:
        _require_readable(_bare(chunk))
    expected = _bare(chunks[0]).config.virtual_pipeline_model_parallel_size or 1 if chunks else "all"
    if len(chunks) != expected:
        raise Error(64, f"{len(chunks)} chunks of the model are given; give a list of {expected}, as the rank has")
    _require_movable(chunks)
    state = parallel_state
    if not state.model_parallel_is_initialized():
        raise Error(64, "Megatron's parallel state is not there; call initialize_model_parallel first")
    dimensions = {
        "pp": (state.get_pipeline_model_parallel_rank(), state.get_pipeline_model_parallel_world_size()),
        "tp": (state.get_tensor_model_parallel_rank(), state.get_tensor_model_parallel_world_size()),
        "cp": (state.get_context_parallel_rank(), state.get_context_parallel_world_size()),
        "dp": (state.get_data_parallel_rank(), state.get_data_parallel_world_size()),
        "etp": (state.get_expert_tensor_parallel_rank(), state.get_expert_tensor_parallel_world_size()),
        "ep": (state.get_expert_model_parallel_rank(), state.get_expert_model_parallel_world_size()),
        "edp": (state.get_expert_data_parallel_rank(), state.get_expert_data_parallel_world_size()),
    }
    index = {name: number for name, (number, _) in dimensions.items()}
    size = {name: count for name, (_, count) in dimensions.items()}
    for names in (("pp", "tp", "cp", "dp"), ("pp", "etp", "ep", "edp")):
        ranks = 1
        for name in names:
            ranks *= size[name]
        if ranks != world:
            sizes = " x ".join(f"{name} {size[name]}" for name in names)
            raise Error(64, f"{sizes} are {ranks} ranks of {world} of torch.distributed; let Megatron's trainers be all of them")
    return Place(index, size, tuple(_chunk_of(_bare(chunk)) for chunk in chunks))


def _chunk_of(model):
    return Chunk(
        tuple(layer.layer_number for layer in model.decoder.layers),
        embedding=bool(model.pre_process),
        final_norm=model.decoder.final_layernorm is not None,
        head=bool(model.post_process),
    )


def _bare(chunk):
    while isinstance(chunk, (DistributedDataParallel, Float16Module)):
        chunk = chunk.module
    return chunk


def _wrappers(chunks):
    """The DistributedDataParallel of those chunks that have one."""
    return [chunk for chunk in chunks if isinstance(chunk, DistributedDataParallel)]


def _require_tested_version():
    require_tested("Megatron-Core", megatron.core.__version__, _TESTED, _OTHERS)


# Fields of Megatron's config that make of the weights what no job step reads, or reads as something else.
_REFUSED = {
    "multi_latent_attention": ("multi-latent attention is not read", "train another model"),
    "mtp_num_layers": ("layers of multi-token prediction are not read", "train without them"),
    "experimental_attention_variant": ("this attention is not read", "train another model"),
    "fp8_param": ("parameters are fp8", "set it to False, so that they stay in bfloat16"),
    "fp4_param": ("parameters are fp4", "set it to False, so that they stay in bfloat16"),
    "moe_single_grouped_weight": ("experts are one grouped tensor", "set it to False, so that each has its own"),
    "moe_mlp_glu_interleave_size": ("gate and up rows of experts take turns", "leave it None"),
    "moe_shared_expert_glu_interleave_size": ("gate and up rows of the shared expert take turns", "leave it None"),
    "rotary_interleaved": ("attention rotates other pairs of rows than engines do", "set it to False"),
    "layernorm_zero_centered_gamma": ("norms are stored less one", "set it to False"),
    "cpu_offloading_weights": ("offloaded weights move", "set it to False"),
}
_REFUSED_ABOVE_ONE = {
    "gtp_weight_remat_size": "weights are cut over further ranks",
    "expert_gtp_weight_remat_size": "experts' weights are cut over further ranks",
}


def _require_readable(model):
    if not isinstance(model, GPTModel):
        raise Error(64, f"the model is a {type(model).__name__}; publish a GPTModel of Megatron-Core, bare or in its Float16Module "
                    "and DistributedDataParallel, and of a model around it the GPTModel inside")  # fmt: skip
    for field, (why, remedy) in _REFUSED.items():
        value = getattr(model.config, field, None)
        if value:
            raise Error(64, f"{field} is {value}: {why}; {remedy}")
    for field, why in _REFUSED_ABOVE_ONE.items():
        if getattr(model.config, field, 1) > 1:
            raise Error(64, f"{field} is {getattr(model.config, field)}: {why}; set it to 1")


def _require_movable(chunks):
    """What lies in the CPU's memory moves when it is published. Megatron's distributed optimizer gathers parameters in a
    buffer whose views they are, and would go on to do so there."""
    for chunk in _wrappers(chunks):
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]:
            if buffer.param_data is not None and buffer.param_data.device.type == "cpu":
                raise Error(64, "use_distributed_optimizer is True: parameters are views of one buffer, and in the CPU's memory "
                            "could not be published; set it to False, or train on GPUs")  # fmt: skip
