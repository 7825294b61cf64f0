"""Where an engine's experts sit, and references to weights that may move."""

import collections.abc
import ctypes
import typing

from . import _library
from ._library import Error


class ExpertMap(typing.NamedTuple):
    """The expert in each slot of each layer, [layers][slots], as lists or as an engine's own tensor (vLLM's and SGLang's
    physical_to_logical_map); of how many experts; and the engine's own count of its maps."""

    epoch: int
    experts: int
    experts_of_slots: typing.Any


class _Slots(ctypes.Structure):
    _fields_ = [("generation", ctypes.c_uint64), ("form", ctypes.c_uint64), ("entry", ctypes.c_int)]


def _rows_of(experts_of_slots):
    """Layers, slots, and the experts of all slots one behind the other."""
    rows = experts_of_slots.tolist() if hasattr(experts_of_slots, "tolist") else experts_of_slots
    is_list = isinstance(rows, collections.abc.Sequence) and not isinstance(rows, (str, bytes))
    if not is_list or not rows or not all(isinstance(row, collections.abc.Sequence) for row in rows):
        raise Error(64, f"experts of slots are {_library.shown(experts_of_slots)}; give a list of slots for each layer")
    slots = len(rows[0])
    if any(len(row) != slots for row in rows):
        raise Error(64, f"experts of slots: layers have {min(map(len, rows))} to {max(map(len, rows))} slots; give as many in each")
    flat = [_library.whole(expert, "the expert of a slot is") for row in rows for expert in row]
    return len(rows), slots, (ctypes.c_int64 * max(len(flat), 1))(*flat)


def add(handle, experts):
    """Of an export that is not published yet."""
    try:
        epoch, count, experts_of_slots = experts
    except (TypeError, ValueError):
        raise Error(64, f"experts are {_library.shown(experts)}; give weightcast.ExpertMap") from None
    layers, slots, flat = _rows_of(experts_of_slots)
    _library.call("weightcast_add_experts", handle, layers, slots, _library.whole(count, "experts"))
    _library.call("weightcast_place_experts", handle, _library.whole(epoch, "epoch"), flat)
    return layers, slots


def place(handle, sizes, epoch, experts_of_slots):
    if sizes is None:
        raise Error(64, "the engine was published without its experts; publish it with experts=")
    layers, slots, flat = _rows_of(experts_of_slots)
    if (layers, slots) != sizes:
        raise Error(64, f"{layers} layers of {slots} slots, and the engine was published with {sizes[0]} of {sizes[1]}; give as many")
    _library.call("weightcast_place_experts", handle, _library.whole(epoch, "epoch"), flat)


def placed(handle, sizes):
    """The epoch, and the expert in each slot of each layer."""
    if sizes is None:
        raise Error(64, "the engine was published without its experts; publish it with experts=")
    layers, slots = sizes
    epoch = ctypes.c_int64()
    flat = (ctypes.c_int64 * (layers * slots))()
    _library.call("weightcast_placed_experts", handle, ctypes.byref(epoch), flat)
    return epoch.value, [list(flat[layer * slots : (layer + 1) * slots]) for layer in range(layers)]


class Reference:
    """Weights of an engine in the form and place that they had when Export.refer() was called. It holds no weights itself."""

    def __init__(self, export, name):
        self._export = export
        self.name = name
        self._reference = _Slots()
        _library.call("weightcast_refer", export._open(), _library.text(name, "tensor"), ctypes.byref(self._reference))

    def resolve(self):
        """The tensor, torch's where such a one was published, else a writable memoryview: to be used at once, and not kept.
        Raises Stale where an update, serve() or place_experts() came since, Invalid where the memory holds no version, and
        Error during an update."""
        memory = ctypes.c_void_p()
        handle = self._export._open()
        _library.call("weightcast_resolve", handle, ctypes.byref(self._reference), ctypes.byref(memory), None)
        return self._export._published_as(self.name)
