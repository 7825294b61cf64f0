"""Runs a model's own loader over tensors without elements and records which element of which checkpoint tensor goes where.

Tensors of floating point that are made meanwhile are torch's meta tensors: shapes, strides and a storage, but no memory. Copies
between storages are not done, but recorded as regions. What has elements, as small tables of numbers have, stays real.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _regions
from ._sources import Before, Loaded, Made, Zero, tensors_of

_aten = torch.ops.aten

_COPIES = (_aten.clone.default, _aten._to_copy.default, _aten._copy_from.default)
_FACTORIES = {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "normal", "scalar_tensor"}
_ZEROS = {"zeros", "zeros_like", "new_zeros"}
# Made of what is there, and read by nobody: nothing is written.
_UNWRITTEN = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


class _Content:
    """What is known of a storage, in elements of `itemsize` bytes: pieces that do not overlap."""

    def __init__(self, tensor):
        self.storage = tensor.untyped_storage()  # its address names it for as long as it lives
        self.itemsize = tensor.element_size()
        self.pieces = []

    def numel(self):
        return self.storage.nbytes() // self.itemsize


class Recorder(TorchDispatchMode):
    """While it is entered, nothing with elements comes of a checkpoint tensor."""

    def __init__(self):
        super().__init__()
        self._contents = {}  # by the storage's address
        self._given = 0  # numbers that stand for elements
        self._values = {}  # by a number that stands for an element: its piece and type
        self._placed = set()  # such numbers that were put into a tensor
        self._asked = {}  # by checkpoint tensor: the operators that asked for its elements

    def checkpoint_tensor(self, number, shape, dtype):
        """A tensor that stands for that one of the checkpoint."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        self._write(tensor, lambda dims: [_regions.piece(0, dims, Loaded(number), 0)])
        return tensor

    def forget_before(self, tensors):
        """What has been written to them so far was there before the loader ran."""
        for tensor in tensors:
            content = self._contents.get(_key(tensor))
            if content is not None:
                content.pieces = [of._replace(source=Before()) for of in content.pieces]

    def pieces_of(self, tensor):
        """What has come into a tensor, in the order of its elements. Raises Mixed."""
        dims = list(zip(tensor.shape, tensor.stride(), _strides(tensor.shape), strict=True))
        return self._read(tensor, dims)

    def place(self, tensor):
        """Equal for what is one memory: tied weights."""
        return _key(tensor), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype

    def asked(self):
        """Of which checkpoint tensors the loader has looked at elements, by their numbers: what asked for them."""
        return {number: f"{names[0]} asks for its elements" for number, names in self._asked.items() if names}

    def sources_of(self, tensor):
        """The checkpoint tensors of which anything has come into a tensor's storage."""
        content = self._contents.get(_key(tensor))
        return frozenset().union(*(tensors_of(of.source) for of in content.pieces)) if content else frozenset()

    # What torch calls.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.is_view:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = list(_tensors_in((args, kwargs)))
        if not tensors:
            return self._made(func, name, args, kwargs)
        if not any(map(self._is_recorded, tensors)):
            return func(*args, **kwargs)
        if func is _aten.copy_.default:
            self._copy(args[1], args[0], "aten.copy_")
            return args[0]
        if name in ("fill_", "zero_"):
            self._fill(args[0], args[1] if name == "fill_" else 0)
            return args[0]
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            return self._value(name, tensors)
        return self._other(func, name, args, kwargs, tensors)

    def _made(self, func, name, args, kwargs):
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if name in _FACTORIES and dtype.is_floating_point:
            kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
            out = func(*args, **kwargs)
            self._start(out, name)
            return out
        return func(*args, **kwargs)

    def _start(self, tensor, name):
        """What a tensor has that was made without looking at another one's elements."""
        if name in _ZEROS:
            self._write(tensor, lambda dims: [_regions.piece(0, dims, Zero(), 0)])
        elif name not in _UNWRITTEN:
            self._write(tensor, lambda dims: [_regions.piece(0, dims, Made(f"aten.{name} computes", frozenset()), 0)])

    def _other(self, func, name, args, kwargs, tensors):
        """An operator of which only its kind is known."""
        written = _written_arguments(func, args, kwargs)
        if func in _COPIES or name in ("cat", "stack") or not written:
            # What has elements here would not go together with what has none.
            if any(of.device.type != "meta" for of in tensors):
                args, kwargs = _without_elements((args, kwargs))
            if "device" in kwargs:
                kwargs["device"] = torch.device("meta")
            kwargs.pop("pin_memory", None)
            out = func(*args, **kwargs)
            made = list(_tensors_in(out))
            keys = {_key(of) for of in tensors} | {_key(of) for of in _tensors_in((args, kwargs))}
            made = [of for of in made if _key(of) not in keys]  # the others are views
            if func in _COPIES:
                self._copy(tensors[0], made[0], f"aten.{name}")
            elif name in ("cat", "stack"):
                self._join(made[0], tensors, kwargs.get("dim", args[1] if len(args) > 1 else 0), name)
            elif name.startswith(("new_", "zeros_like", "empty_like", "ones_like", "full_like")):
                for of in made:
                    self._start(of, name)
            else:
                self._compute(made, tensors, f"aten.{name} computes")
            return out
        self._compute(written, tensors, f"aten.{name} computes")
        return kwargs.get("out", args[0] if args and isinstance(args[0], torch.Tensor) else None)

    # What is recorded.

    def _is_recorded(self, tensor):
        return tensor.device.type == "meta" or _key(tensor) in self._contents

    def _content(self, tensor):
        key = _key(tensor)
        if key not in self._contents:
            self._contents[key] = _Content(tensor)
        return self._contents[key]

    def _read(self, tensor, dims):
        """Pieces of a target; `dims` are (size, step in the tensor's storage, step in the target)."""
        content = self._contents.get(_key(tensor))
        if content is None:
            if tensor.device.type == "meta":
                return []
            return [_regions.piece(0, [(size, to, 0) for size, _, to in dims], Made("the engine", frozenset()), 0)]
        if content.itemsize != tensor.element_size():
            raise _regions.Mixed(f"elements of {content.itemsize} and {tensor.element_size()} bytes")
        return _regions.read(content.pieces, tensor.storage_offset(), dims)

    def _write(self, tensor, pieces_of):
        """Puts pieces in place of what a tensor had. `pieces_of` takes dims (size, step in the storage, step in the order of
        the tensor's elements), and gives pieces of the storage."""
        content = self._content(tensor)
        dims = list(zip(tensor.shape, tensor.stride(), _strides(tensor.shape), strict=True))
        if content.itemsize != tensor.element_size():
            made = Made("aten.view of another type", self.sources_of(tensor))
            content.itemsize = tensor.element_size()
            content.pieces = [_whole(content, made)]
        pieces = pieces_of(dims)
        if tensor.numel() == content.numel():
            content.pieces = pieces
        elif tensor.numel():
            try:
                content.pieces = _regions.without(content.pieces, tensor.storage_offset(), dims) + pieces
            except _regions.Mixed as error:
                sources = self.sources_of(tensor).union(*(tensors_of(of.source) for of in pieces))
                content.pieces = [_whole(content, Made(f"a copy with {error}", sources))]

    def _copy(self, source, target, name):
        via = None if source.dtype == target.dtype else f"{name} converts {_name(source.dtype)} to {_name(target.dtype)}"
        source = source.expand(target.shape)
        dims = list(zip(target.shape, source.stride(), target.stride(), strict=True))
        try:
            pieces = self._read(source, dims)
        except _regions.Mixed as error:
            self._compute([target], [source], f"{name} with {error}")
            return
        start = target.storage_offset()
        self._write(
            target, lambda _: [of._replace(at=of.at + start, source=_after(of.source, via)) for of in pieces]
        )

    def _join(self, target, tensors, dim, name):
        start = 0
        for tensor in tensors:
            if name == "stack":
                self._copy(tensor, target.select(dim, start), "aten.stack")
                start += 1
            elif tensor.dim() == target.dim():
                self._copy(tensor, target.narrow(dim, start, tensor.shape[dim]), "aten.cat")
                start += tensor.shape[dim]

    def _fill(self, target, value):
        if isinstance(value, torch.Tensor):
            self._copy(value, target, "aten.fill_")
            return
        start = target.storage_offset()
        source, place = Zero() if value == 0 else Made("aten.fill_ sets a constant", frozenset()), 0
        if value in self._values:
            element, dtype = self._values[value]
            if value not in self._placed:
                self._placed.add(value)
                self._asked[element.source.tensor].remove("aten._local_scalar_dense")
            via = None if dtype == target.dtype else f"aten.fill_ converts {_name(dtype)} to {_name(target.dtype)}"
            source, place = _after(element.source, via), element.source_at
        self._write(
            target, lambda dims: [_regions.piece(start, [(size, step, 0) for size, step, _ in dims], source, place)]
        )

    def _compute(self, targets, tensors, how):
        if not targets:
            return
        sources = frozenset().union(*(self.sources_of(of) for of in (*tensors, *targets)))
        for target in targets:
            start = target.storage_offset()
            self._write(target, lambda dims, start=start: [_regions.piece(start, dims, Made(how, sources), 0)])

    def _value(self, name, tensors):
        """What stands for an element's value. A loader that looks at it may do anything: asked() says so, unless the value is just
        put into other tensors."""
        for tensor in tensors:
            for number in self.sources_of(tensor):
                self._asked.setdefault(number, []).append(f"aten.{name}")
        if name != "_local_scalar_dense":
            return False
        tensor = tensors[0]
        if not tensor.dtype.is_floating_point:
            return 0
        pieces = self.pieces_of(tensor)
        if len(pieces) != 1 or not isinstance(pieces[0].source, Loaded):
            return 0.0
        self._given += 1
        value = 1e30 + self._given * 1e20
        self._values[value] = pieces[0], tensor.dtype
        return value


def _whole(content, source):
    return _regions.piece(0, [(content.numel(), 1, 1)], source, 0)


def _after(source, via):
    """A source behind one more copy."""
    return Loaded(source.tensor, (*source.via, via)) if via is not None and isinstance(source, Loaded) else source


def _key(tensor):
    return tensor.untyped_storage()._cdata


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _strides(shape):
    """Of elements in order."""
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * extent)
    return strides[::-1] if len(shape) else []


def _tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors_in(part)


def _without_elements(value):
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_without_elements, value))
    if isinstance(value, dict):
        return {key: _without_elements(part) for key, part in value.items()}
    return value


def _written_arguments(func, args, kwargs):
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            found.extend(_tensors_in(value))
    return found
