"""What can be published of a module's tensors, and where they lie. Torch is needed only for what is torch's."""

import bisect
import collections.abc
import dataclasses
import sys

from . import _library
from ._library import Error


@dataclasses.dataclass(frozen=True)
class Memory:
    """A tensor that the client makes: `dtype` as safetensors names it (``BF16``), `shape` its extents."""

    dtype: str
    shape: tuple

    def __post_init__(self):
        if not isinstance(self.dtype, str):
            raise Error(64, f"dtype {_library.shown(self.dtype)} of Memory; give its name as a str, such as 'BF16'")
        try:
            extents = tuple(self.shape)
        except TypeError:
            raise Error(64, f"shape {_library.shown(self.shape)} of Memory; give its extents, such as (4, 8)") from None
        object.__setattr__(self, "shape", tuple(_library.whole(extent, "an extent of") for extent in extents))


@dataclasses.dataclass(frozen=True)
class Form:
    """A tensor as this process has it. Where it is a box of a whole one, `whole` is that one's shape and `start` the
    box's first element in it; else both are None."""

    dtype: str
    shape: tuple
    whole: tuple | None = None
    start: tuple | None = None


class State:
    """What a checkpoint would have of a module: its parameters and its persistent buffers."""

    def __init__(self, module):
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(module, torch.nn.Module):
            raise Error(64, f"module is a {_kind(module)}; give a torch.nn.Module")
        self._module = module
        # Asked once: state_dict() makes another object of each tensor, and some modules gather them for it.
        self._stored = frozenset(module.state_dict())
        self._left_out = frozenset(name for name, _ in self._buffers() if name not in self._stored)

    def tensors(self):
        """By all names that they have."""
        own = dict(self._module.named_parameters(remove_duplicate=False))
        # What is registered later is asked for in the module.
        persistent = self._persistent() - self._left_out
        own.update((name, buffer) for name, buffer in self._buffers() if name in self._stored or name in persistent)
        return own

    def views_of(self, tensors):
        """Buffers that are not persistent and lie in the CPU's memory of one of these: pairs of buffer and tensor."""
        places = [local(tensor) for tensor in tensors if not isinstance(tensor, Memory) and not on_gpu(tensor)]
        places = sorted(((own.data_ptr(), own) for own in places if own.numel()), key=lambda place: place[0])
        stored = self.tensors()
        views = []
        for name, buffer in self._buffers():
            if name in stored or buffer.device.type != "cpu" or str(buffer.layout) != "torch.strided" or not buffer.numel():
                continue
            before = bisect.bisect_right(places, buffer.data_ptr(), key=lambda place: place[0])
            start, tensor = places[before - 1] if before else (0, None)
            if tensor is None or buffer.data_ptr() >= start + span_of(tensor):
                continue
            within = buffer.data_ptr() + span_of(buffer) <= start + span_of(tensor)
            if not within or buffer.dtype != tensor.dtype or not tensor.is_contiguous():
                raise Error(64, f"buffer {name} shares memory with a parameter, but is no view of its elements alone; give it its own")
            views.append((buffer, tensor))
        return views

    def _buffers(self):
        return self._module.named_buffers(remove_duplicate=False)

    def _persistent(self):
        """The names of buffers that are registered as persistent."""
        names = set()
        for prefix, part in self._module.named_modules(remove_duplicate=False):
            transient = getattr(part, "_non_persistent_buffers_set", ())
            names.update(f"{prefix}.{name}" if prefix else name for name in part._buffers if name not in transient)
        return names


def gone(name, why):
    """The error of what is not as it was published."""
    return Error(64, f"tensor {name} is not in the published memory any more: {why}; publish the module again")


class Watched:
    """A module as it was when it was published: under which name which tensor."""

    def __init__(self, state):
        self._state = state
        self._tensors = state.tensors()

    def require_unchanged(self):
        """Raises Error naming what another tensor has become, or what has come or gone."""
        now = self._state.tensors()
        for name, tensor in now.items():
            if name not in self._tensors:
                raise gone(name, "the module has it since")
            if tensor is not self._tensors[name]:
                raise gone(name, "another tensor has that name in the module")
        for name in self._tensors:
            if name not in now:
                raise gone(name, "the module has it no more")


class Place:
    """Where a tensor of torch was when it was published, and as what."""

    def __init__(self, name, tensor):
        self.name = name
        self.own = local(tensor)
        self._tensor = tensor
        self.address = self.own.data_ptr()
        self._form = _form_in_memory(self.own)

    def require_unchanged(self):
        own = local(self._tensor)
        if own.data_ptr() != self.address:
            raise gone(self.name, "it has other memory")
        if _form_in_memory(own) != self._form:
            raise gone(self.name, "it has another shape, other strides or another type")

    def on_host(self):
        """Whether it has elements that lie in the export's memory."""
        return self.own.device.type == "cpu" and self.own.numel() > 0 and self.own.data_ptr() == self.address


def _form_in_memory(own):
    return own.shape, own.stride(), own.dtype


def _kind(value):
    """The name of a value's type, for a line."""
    module = type(value).__module__
    return type(value).__qualname__ if module == "builtins" else f"{module}.{type(value).__qualname__}"


def tensors_of(state, tensors):
    """What publish() is to publish, by name. `state` is None without a module."""
    if tensors is not None and not isinstance(tensors, collections.abc.Mapping):
        raise Error(64, f"tensors is a {_kind(tensors)}; give a dict of tensors by name")
    given = dict(tensors or {})
    for name, tensor in given.items():
        if name == "":
            raise Error(64, "a tensor's name is empty; give it one")
        if not isinstance(tensor, Memory) and not _is_torchs(tensor):
            raise Error(64, f"tensor {_library.shown(name)} is a {_kind(tensor)}; give a tensor of torch, or weightcast.Memory")
    if state is None:
        return given
    own = state.tensors()
    if tensors is None:
        return own
    objects = {id(tensor) for tensor in given.values()}
    for name, tensor in own.items():
        if id(tensor) not in objects:
            raise Error(64, f"the module's {name} is not among the tensors; give all of them, or the module alone")
    return given


def _is_torchs(tensor):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def require_alone(tensors):
    """Raises Error for tensors in the CPU's memory whose memory something else has, too: it would keep the old one when
    they move. What state_dict() gives, for example, are other objects than the module's parameters."""
    own = {name: local(tensor) for name, tensor in tensors.items() if not isinstance(tensor, Memory) and not on_gpu(tensor)}
    own = {name: tensor for name, tensor in own.items() if tensor.numel()}
    if not own:
        return
    import torch

    def holders_of(tensor):
        return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)

    def references_to(base):
        return sys.getrefcount(base)

    # What a look itself adds.
    looking = holders_of(torch.empty(1)) - 1
    view = torch.empty(2)[:1]
    unheld = references_to(view._base)
    known = {}  # by storage, the objects that have it: the given ones, and those of which they are views and nobody else is
    for tensor in own.values():
        of_storage = known.setdefault(tensor.untyped_storage()._cdata, set())
        of_storage.add(id(tensor))
        if tensor._base is not None and references_to(tensor._base) <= unheld:
            of_storage.add(id(tensor._base))
    for name, tensor in own.items():
        if holders_of(tensor) - looking > len(known[tensor.untyped_storage()._cdata]):
            raise Error(64, f"tensor {name} shares its memory with one that is not given, such as a module's parameter, which would "
                        "not move with it; give the module, or state_dict(keep_vars=True)")  # fmt: skip


def require_own_memory(module):
    """FSDP, of both kinds, gathers from a second view of its parameters, which would stay where it is when those move."""
    kinds = {kind.__name__ for part in module.modules() for kind in type(part).__mro__}
    if kinds.isdisjoint({"FullyShardedDataParallel", "FSDPModule"}):
        return
    for name, tensor in module.named_parameters():
        if not on_gpu(tensor):
            raise Error(64, f"tensor {name} is FSDP's and in the CPU's memory; move the module to a GPU, where FSDP's can be published")


def local(tensor):
    """The tensor whose memory this process has: of a DTensor its own part."""
    if type(getattr(tensor, "data", None)).__name__ != "DTensor":
        return tensor
    import torch

    with torch.no_grad():
        return tensor.to_local()


def identity(tensor):
    """Equal for what is one memory: tied weights, for example."""
    own = local(tensor)
    if isinstance(own, Memory) or not own.numel():
        return id(tensor)
    return (own.data_ptr(), tuple(own.shape), tuple(own.stride()), own.dtype)


_TORCH_DTYPES = {
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.int16": "I16",
    "torch.int32": "I32",
    "torch.int64": "I64",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}


def dtype_name(dtype):
    """A type of torch as safetensors names it, or as torch does where safetensors has no name."""
    return _TORCH_DTYPES.get(str(dtype), str(dtype).removeprefix("torch."))


def torch_dtype(name):
    """The type of torch that safetensors names so, None where there is none."""
    torch = sys.modules["torch"]
    for own, theirs in _TORCH_DTYPES.items():
        if theirs == name:
            return getattr(torch, own.removeprefix("torch."), None)
    return None


def form_of(name, tensor):
    """Raises Error naming the tensor when it cannot be published."""
    if isinstance(tensor, Memory):
        return Form(tensor.dtype, tuple(tensor.shape))
    own = local(tensor)
    if own.device.type not in ("cpu", "cuda"):
        raise Error(64, f"tensor {name} is on {own.device} and cannot be published; move it to the CPU or a GPU of CUDA")
    dtype = _TORCH_DTYPES.get(str(own.dtype))
    kind = type(own.data).__name__
    if dtype is None or kind != "Tensor" or str(own.layout) != "torch.strided":
        raise Error(64, f"tensor {name} is a {kind} of {own.dtype}, {own.layout}, and cannot be published; publish a plain tensor")
    return Form(dtype, tuple(own.shape), *_box_of(name, tensor, own))


def _box_of(name, tensor, own):
    if own is tensor:
        return None, None
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for placement in tensor.placements:
        # Not one that is derived from them: such a part is no box.
        if type(placement) not in (Replicate, Shard):
            raise Error(64, f"tensor {name} is placed as {placement}, of which a process has no box; publish it before it is cut so")
    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if tuple(shape) != tuple(own.shape):
        raise Error(64, f"tensor {name} has {tuple(own.shape)} here, but its placement says {tuple(shape)}; publish it as it is placed")
    return tuple(tensor.shape), tuple(start)


def on_gpu(tensor):
    return not isinstance(tensor, Memory) and local(tensor).device.type == "cuda"


def bytes_of(tensor):
    if isinstance(tensor, Memory):
        count = _library.DTYPE_BYTES.get(tensor.dtype, 0)
        for extent in tensor.shape:
            count *= extent
        return count
    own = local(tensor)
    return own.numel() * own.element_size()


def span_of(tensor):
    """Bytes from a tensor's first element up to behind its last; it has elements."""
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def require_apart(tensors):
    """Raises Error for tensors that share a part of their memory: they would share nothing once each has moved."""
    places = []
    for name, tensor in tensors.items():
        own = local(tensor)
        if not isinstance(own, Memory) and own.numel():
            places.append((own.data_ptr(), own.data_ptr() + span_of(own), name))
    places.sort()
    for (_, end, before), (start, _, name) in zip(places, places[1:]):
        if start < end:
            raise Error(64, f"tensors {before} and {name} share a part of their memory; give each its own")


def view_of(name, form, memory):
    """A tensor of that form in that memory, torch's where torch is loaded; its bytes otherwise. Raises Error naming it when
    torch has no such type."""
    torch = sys.modules.get("torch")
    if torch is None:
        return memory[:]  # a view that the caller may release
    kind = torch_dtype(form.dtype)
    if kind is None:
        raise Error(64, f"tensor {name} is {form.dtype}, which torch has not here; take a torch that has")
    if not len(memory):
        return torch.empty(form.shape, dtype=kind)
    return torch.frombuffer(memory, dtype=kind).view(form.shape)


def followed(view, tensor, new):
    """A view of a tensor, which goes where `new` has that one's elements; without any, where it has none."""
    if not new.numel():
        return view.data.new_empty(0)
    at = new.storage_offset() + view.storage_offset() - tensor.storage_offset()
    return new.as_strided(view.shape, view.stride(), at)


def moved(tensor, memory):
    """A torch tensor of the same values in that memory."""
    import torch

    if tensor.numel() == 0:
        return tensor.data
    new = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
    new.copy_(tensor.data)
    return new
