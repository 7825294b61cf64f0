"""Trainers of torch: what optimisers keep in float32 is published in the type of the engines.

    export = weightcast.torch.publish("run/weights", rank=rank, ranks=ranks, module=model, dtype=torch.bfloat16)
    for version in itertools.count(1):
        train()
        export.offer(version)

A module whose parameters have the engines' type needs nothing of this: weightcast.publish publishes them where they are.
"""

import torch

from . import _tensors
from . import publish as _publish
from ._library import Error, NoAnswer, shown
from ._wrapper import Wrapper


def publish(folder, rank, ranks, module, dtype, layout=None):
    """Publishes a module's parameters and persistent buffers as trainer `rank` of `ranks`: a copy in `dtype` of what has
    another floating type, the rest where it is. The copy lies where the original does; of a DTensor, such as FSDP2's, it
    is this process's part. `layout` as of weightcast.publish."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise Error(64, f"dtype {shown(dtype)}; give a floating type of torch, such as torch.bfloat16")
    state = _tensors.State(module)
    tensors = state.tensors()
    copy_of = {}  # by the original's identity: what is tied is one copy
    copies = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            if id(tensor) not in copy_of:
                copy_of[id(tensor)] = torch.empty_like(tensor.detach(), dtype=dtype)
            copies[name] = copy_of[id(tensor)]
    if len(copies) < len(tensors):
        _tensors.require_own_memory(module)
    export = _publish(folder, "trainer", rank, ranks, tensors={**tensors, **copies}, layout=layout)
    return CastExport(export, state, tensors, copies)


class CastExport(Wrapper):
    """What a trainer has published, some of it as copies of another type."""

    def __init__(self, export, state, tensors, copies):
        super().__init__(export)
        self._state = state
        self._tensors = tensors
        self._copies = copies

    def offer(self, version, timeout=600.0, wait=True):
        """The parameters, as they are now, are that version: fills the copies and offers them, as Export.offer does. With
        wait=False what has a copy may change as soon as this returns."""
        sources = self._sources()
        # No copy may change while it is read; an offer that nobody has begun to read is replaced.
        try:
            self._export.withdraw()
        except NoAnswer:
            if not wait:
                raise
            self._export.settle(timeout)
        with torch.no_grad():
            for name, source in sources.items():
                _tensors.local(self._copies[name]).copy_(_tensors.local(source))
        self._export.offer(version, timeout, wait)

    def _sources(self):
        """What the copies are made of, by name. Raises Error where the module is not as it was published: of a tensor that has
        a copy another one may have the name, in the same shape and tied to the same others."""
        now = self._state.tensors()
        by_copy = {}
        for name in {**self._tensors, **now}:
            published, copy, tensor = (of.get(name) for of in (self._tensors, self._copies, now))
            if published is None or tensor is None:
                same = False
            elif copy is None:
                same = tensor is published
            else:
                same = by_copy.setdefault(id(copy), tensor) is tensor and _tensors.local(tensor).shape == _tensors.local(copy).shape
            if not same:
                raise Error(64, f"tensor {name} is not in the module any more as it was published; publish the module again")
        return {name: now[name] for name in self._copies}
