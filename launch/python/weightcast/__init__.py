"""Publishes the memory of a trainer or an inference engine, so that weightcast moves weights between them in place.

An engine:

    export = weightcast.publish("run/weights", role="engine", rank=rank, ranks=4, module=model)
    while serving:
        generate()
        wanted = broadcast(export.wanted() if rank == 0 else None)  # the engine's own broadcast
        if wanted is not None:
            with export.pause(wanted) as update:  # enters when the new weights are in the memory of every rank
                rebuild_derived(model)      # update.version

A trainer:

    export = weightcast.publish("run/weights", role="trainer", rank=rank, ranks=2, module=model)
    for version in itertools.count(1):
        train()
        export.offer(version)  # returns when every rank has read the parameters

Needs nothing but the client library, and torch only for modules and tensors that are torch's.
"""

import contextlib
import dataclasses
import typing

from . import _library
from ._library import Error, Invalid, NoAnswer

__all__ = ["publish", "Export", "Wanted", "Update", "Memory", "Error", "Invalid", "NoAnswer"]

_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Memory:
    """A tensor that the client makes: `dtype` as safetensors names it (``BF16``), `shape` its extents."""

    dtype: str
    shape: tuple


class Wanted(typing.NamedTuple):
    """What a job step asks for: to write `version`. `question` is the same number on all ranks of the engine."""

    version: int
    question: int


@dataclasses.dataclass(frozen=True)
class Update:
    """What has been written: `version`, and the names of the tensors that may have changed."""

    version: int
    changed: tuple


# Tensors on a GPU that a job step still has mapped: they are left to it.
_left = []


class Export:
    """What this process has published. One thread at a time; not for forked children."""

    def __init__(self, handle, names, memory, kept):
        self._handle = handle
        self._names = tuple(names)
        self._memory = memory
        self._kept = kept  # tensors on a GPU, whose memory others have mapped

    def memory(self, name):
        """The bytes of a tensor in the host's memory, as a writable view of what is published."""
        return self._memory[name]

    def serve(self, version):
        """Says that an engine's memory holds that version whole, and that it is used."""
        _library.call("weightcast_serve", self._handle, version)

    def wanted(self):
        """What a job step asks to write, as Wanted, or None. Never waits."""
        wanted = _library.wanted(self._handle)
        return None if wanted is None else Wanted(*wanted)

    @contextlib.contextmanager
    def pause(self, wanted=None, timeout=600.0):
        """Lets a job step write; the body runs when the version is in the memory of every rank, and rebuilds what
        follows from the weights. Raises Invalid when the memory holds no version, Error or NoAnswer when it holds
        what it held before. Where the body raises, the engine is invalid until another update.

        `wanted` is what wanted() said, on this rank of the engine or another: all of them come back alike when that
        has been taken back. None waits for whatever is asked next."""
        version = _library.pause(self._handle, 0 if wanted is None else wanted[1], timeout)
        try:
            yield Update(version, self._names)
        except BaseException as error:
            _library.call("weightcast_invalidate", self._handle, f"the engine could not use version {version}: {error}".encode())
            raise
        _library.call("weightcast_resume", self._handle)

    def decline(self, reason):
        """Answers a job step that asks that the engine will not be written now."""
        _library.call("weightcast_decline", self._handle, reason.encode())

    def offer(self, version, timeout=600.0, wait=True):
        """Of a trainer: its parameters are that version. Waits until every rank has read them; with wait=False returns
        at once, and settle() says when they may change. Raises NoAnswer when nobody has read them in time."""
        _library.call("weightcast_offer", self._handle, version, float(timeout) if wait else 0.0)

    def settle(self, timeout=600.0):
        """Waits for the end of what was offered; afterwards the parameters may change."""
        _library.call("weightcast_settle", self._handle, float(timeout))

    def close(self, timeout=60.0):
        """Withdraws the publication. Tensors that lie in its memory must not be used afterwards."""
        handle, self._handle = self._handle, None
        self._memory = {}
        try:
            _library.call("weightcast_close", handle, float(timeout))
        except NoAnswer:
            _left.append(self._kept)
            raise
        finally:
            self._kept = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._handle is not None:
            self.close()


def publish(folder, role, rank, ranks, module=None, tensors=None, layout=None, version=None):
    """Publishes tensors as rank `rank` of `ranks` exporters of that role ("trainer" or "engine").

    `module`: all parameters and persistent buffers of a torch module, under all names that they have. What is on the CPU
    moves into shared memory, what is on a GPU is published where it lies; all stay the same objects. `tensors`: by name
    torch tensors, which are treated in the same way, or Memory. With both, `tensors` names what to publish of the module.
    `layout` says how the parameters are cut ("hf", "sglang:t2e2"; None: as the job step's options say), `version` what an
    engine's memory holds already.
    """
    # What has no elements has no place on a GPU, and needs none.
    wanted = {name: tensor for name, tensor in _tensors_of(module, tensors).items() if not _on_gpu(tensor) or tensor.numel() > 0}
    # Before anything moves: what is tied is one memory now.
    keys = {name: _identity(tensor) for name, tensor in wanted.items()}
    first_names = {}
    for name, key in keys.items():
        first_names.setdefault(key, name)
    forms = {name: _form_of(wanted[name]) for name in first_names.values()}
    if not forms:
        raise Error(64, "there is nothing to publish")
    offsets = {}
    total = 0
    for name in forms:
        if not _on_gpu(wanted[name]):
            offsets[name] = total
            total += -(-max(_bytes_of(wanted[name]), 1) // _ALIGNMENT) * _ALIGNMENT
    handle = _library.open_export(folder, role, rank, ranks, layout)
    before = []  # tensors that have moved, and where they were
    try:
        address, segment = _library.add_segment(handle, total) if total else (None, None)
        memory = {}
        kept = []
        for name, (dtype, shape) in forms.items():
            if name in offsets:
                _library.add_entry(handle, name, dtype, shape, None, segment, offsets[name])
                memory[name] = _library.view(address + offsets[name], _bytes_of(wanted[name]))
            else:
                tensor = wanted[name].detach()
                kept.append(tensor)
                _library.add_entry(handle, name, dtype, shape, tensor.stride(),
                                   *_library.add_gpu_memory(handle, tensor.data_ptr(), _span_of(tensor)))  # fmt: skip
        moved = {}
        for name, tensor in wanted.items():
            first = first_names[keys[name]]
            if first != name:
                _library.add_alias(handle, first, name)
                if first in memory:
                    memory[name] = memory[first]
            if first not in offsets or isinstance(tensor, Memory):
                continue
            # What is tied may be several objects of one memory: each must lead to the new one.
            if first not in moved:
                moved[first] = _moved(tensor, memory[first])
            before.append((tensor, tensor.data))
            tensor.data = moved[first]
        if version is not None:
            _library.call("weightcast_serve", handle, version)
        _library.call("weightcast_publish", handle)
        return Export(handle, wanted, memory, kept)
    except BaseException:
        for tensor, data in reversed(before):
            tensor.data = data
        _library.close_quietly(handle)
        raise


def _tensors_of(module, tensors):
    if module is None:
        return dict(tensors or {})
    # With all names of what is tied, and without buffers that no checkpoint would have.
    own = module.state_dict(keep_vars=True)
    if tensors is None:
        return dict(own)
    missing = [name for name in tensors if name not in own]
    if missing:
        raise Error(64, f"the module has no tensor {missing[0]}")
    return {name: own[name] for name in tensors}


def _identity(tensor):
    if isinstance(tensor, Memory):
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) if tensor.numel() else id(tensor)


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


def _form_of(tensor):
    if isinstance(tensor, Memory):
        return tensor.dtype, tuple(tensor.shape)
    if tensor.device.type not in ("cpu", "cuda"):
        raise Error(64, f"a tensor on {tensor.device} cannot be published; only memory of the CPU and of CUDA's GPUs can")
    dtype = _TORCH_DTYPES.get(str(tensor.dtype))
    if dtype is None:
        raise Error(64, f"tensors of {tensor.dtype} cannot be published")
    return dtype, tuple(tensor.shape)


def _on_gpu(tensor):
    return not isinstance(tensor, Memory) and tensor.device.type == "cuda"


def _span_of(tensor):
    """Bytes from a tensor's first element up to behind its last."""
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def _bytes_of(tensor):
    if isinstance(tensor, Memory):
        count = _library.DTYPE_BYTES.get(tensor.dtype, 0)
        for extent in tensor.shape:
            count *= extent
        return count
    return tensor.numel() * tensor.element_size()


def _moved(tensor, memory):
    """A torch tensor of the same values in that memory."""
    import torch

    if tensor.numel() == 0:
        return tensor.data
    new = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
    new.copy_(tensor.data)
    return new
