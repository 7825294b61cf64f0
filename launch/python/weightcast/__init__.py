"""Publishes the memory of a trainer or an inference engine, so that weightcast moves weights between them in place.

An engine:

    export = weightcast.publish("run/weights", role="engine", rank=rank, ranks=4, module=model)
    while serving:
        generate()
        wanted = broadcast(export.wanted() if rank == 0 else None)  # the engine's own broadcast
        if wanted is not None:
            with export.pause() as update:  # enters when the new weights are in the memory of every rank
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

from . import _library
from ._library import Error, Invalid, NoAnswer

__all__ = ["publish", "Export", "Update", "Memory", "Error", "Invalid", "NoAnswer"]

_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Memory:
    """A tensor that the client makes: `dtype` as safetensors names it (``BF16``), `shape` its extents."""

    dtype: str
    shape: tuple


@dataclasses.dataclass(frozen=True)
class Update:
    """What has been written: `version`, and the names of the tensors that may have changed."""

    version: int
    changed: tuple


class Export:
    """What this process has published. One thread at a time; not for forked children."""

    def __init__(self, handle, memory, module=None, moved=()):
        self._handle = handle
        self._memory = memory
        self._module = module
        self._moved = [(name, tensor, tensor.data_ptr()) for name, tensor in moved]

    def memory(self, name):
        """The bytes of a tensor, as a writable view of the published memory."""
        return self._memory[name]

    def _require_in_place(self):
        """Frameworks give a parameter other memory, too, or put another one in its place: for another dtype, or when they
        load or offload weights."""
        gone = [name for name, tensor, address in self._moved if tensor.data_ptr() != address]
        if self._module is not None:
            objects = {id(tensor) for _, tensor, _ in self._moved}
            gone += [name for name, tensor in _state_of(self._module).items() if id(tensor) not in objects]
        if gone:
            raise Error(64, f"tensor {gone[0]} is not in the published memory any more; publish the module again")

    def serve(self, version):
        """Says that an engine's memory holds that version whole, and that it is used."""
        _library.call("weightcast_serve", self._handle, version)

    def wanted(self):
        """The version that a job step asks to write, or None. Never waits."""
        return _library.wanted(self._handle)

    @contextlib.contextmanager
    def pause(self, wanted=None, timeout=600.0):
        """Lets a job step write; the body runs when the version is in the memory of every rank, and rebuilds what
        follows from the weights. Raises Invalid when the memory holds no version, Error or NoAnswer when it holds
        what it held before. Where the body raises, the engine is invalid until another update.

        `wanted` is what wanted() said, for the reader; another version may have been asked for since."""
        try:
            self._require_in_place()
        except Error as error:
            if self.wanted() is not None:
                self.decline(str(error))
            raise
        version = _library.pause(self._handle, timeout)
        try:
            yield Update(version, tuple(self._memory))
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
        self._require_in_place()
        _library.call("weightcast_offer", self._handle, version, float(timeout) if wait else 0.0)

    def settle(self, timeout=600.0):
        """Waits for the end of what was offered; afterwards the parameters may change."""
        _library.call("weightcast_settle", self._handle, float(timeout))

    def close(self, timeout=60.0):
        """Withdraws the publication. Tensors of torch that lie in its memory lose their elements; views of them, and those
        of memory(), must not be used afterwards."""
        handle, self._handle = self._handle, None
        self._memory = {}
        for _, tensor, address in self._moved:
            if tensor.data_ptr() == address:
                tensor.data = tensor.data.new_empty(0)
        self._moved = []
        _library.call("weightcast_close", handle, float(timeout))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._handle is not None:
            self.close()


def publish(folder, role, rank, ranks, module=None, tensors=None, layout=None, version=None):
    """Publishes tensors in shared memory as rank `rank` of `ranks` exporters of that role ("trainer" or "engine").

    `module`: all parameters and persistent buffers of a torch module on the CPU, under all names that they have; each
    moves into shared memory and stays the same object. Buffers that are not persistent, such as rotary tables, are no
    weights: they stay where they are. `tensors`: by name torch tensors, which move in the same way, or Memory. With
    both, `tensors` gives the names, and all that `module` alone would publish must be among them. `layout` says how the
    parameters are cut ("hf", "sglang:t2e2"; None: as the job step's options say), `version` what an engine's memory
    holds already. Where it raises, every tensor is where it was.
    """
    wanted = _tensors_of(module, tensors)
    forms = {name: _form_of(name, tensor) for name, tensor in wanted.items()}
    # Before anything moves: what is tied is one memory now.
    keys = {name: _identity(tensor) for name, tensor in wanted.items()}
    first_names = {}
    for name, key in keys.items():
        first_names.setdefault(key, name)
    offsets = {}
    total = 0
    for name in first_names.values():
        offsets[name] = total
        total += -(-max(_bytes_of(wanted[name]), 1) // _ALIGNMENT) * _ALIGNMENT
    if not offsets:
        raise Error(64, "there is nothing to publish")
    _require_apart({name: wanted[name] for name in offsets})
    handle = _library.open_export(folder, role, rank, ranks, layout)
    before = []  # tensors that have moved, and where they were
    try:
        address, segment = _library.add_segment(handle, total)
        memory = {}
        for name, offset in offsets.items():
            dtype, shape = forms[name]
            _library.add_entry(handle, name, dtype, shape, segment, offset)
            memory[name] = _library.view(address + offset, _bytes_of(wanted[name]))
        moved = {}
        for name, tensor in wanted.items():
            first = first_names[keys[name]]
            if first != name:
                _library.add_alias(handle, first, name)
                memory[name] = memory[first]
            if isinstance(tensor, Memory):
                continue
            # What is tied may be several objects of one memory: each must lead to the new one.
            if first not in moved:
                moved[first] = _moved(tensor, memory[first])
            before.append((tensor, tensor.data))
            tensor.data = moved[first]
        if version is not None:
            _library.call("weightcast_serve", handle, version)
        _library.call("weightcast_publish", handle)
        return Export(handle, memory, module, [(name, tensor) for name, tensor in wanted.items() if not isinstance(tensor, Memory)])
    except BaseException:
        for tensor, data in reversed(before):
            tensor.data = data
        _library.close_quietly(handle)
        raise


def _tensors_of(module, tensors):
    if module is None:
        return dict(tensors or {})
    own = _state_of(module)
    if tensors is None:
        return own
    objects = {id(tensor) for tensor in tensors.values()}
    for name, tensor in own.items():
        if id(tensor) not in objects:
            raise Error(64, f"the module's {name} is not among the tensors; give all of them, or the module alone")
    return dict(tensors)


def _state_of(module):
    """By all names that they have, its parameters and the buffers that a checkpoint would have."""
    own = dict(module.named_parameters(remove_duplicate=False))
    persistent = module.state_dict().keys()
    own.update((name, buffer) for name, buffer in module.named_buffers(remove_duplicate=False) if name in persistent)
    return own


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


def _form_of(name, tensor):
    if isinstance(tensor, Memory):
        return tensor.dtype, tuple(tensor.shape)
    if str(tensor.device) != "cpu":
        raise Error(64, f"tensor {name} is on {tensor.device} and cannot be published; only what is in the CPU's memory can")
    dtype = _TORCH_DTYPES.get(str(tensor.dtype))
    kind = type(tensor.data).__name__
    if dtype is None or kind != "Tensor" or str(tensor.layout) != "torch.strided":
        raise Error(64, f"tensor {name} is a {kind} of {tensor.dtype}, {tensor.layout}, and cannot be published")
    return dtype, tuple(tensor.shape)


def _require_apart(tensors):
    """Tensors that share a part of their memory would share nothing once each has moved."""
    places = []
    for name, tensor in tensors.items():
        if isinstance(tensor, Memory) or not tensor.numel():
            continue
        last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
        places.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size(), name))
    places.sort()
    for (_, end, before), (start, _, name) in zip(places, places[1:]):
        if start < end:
            raise Error(64, f"tensors {before} and {name} share a part of their memory; give each its own")


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
