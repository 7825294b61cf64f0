"""Trainers of torch: what optimisers keep in float32 is published in the type of the engines, and what has names of its own as
the trainer's exporter to Hugging Face's names shows.

    export = weightcast.torch.publish("run/weights", rank=rank, ranks=ranks, module=model, dtype=torch.bfloat16)
    for version in itertools.count(1):
        train()
        export.offer(version)

A module whose parameters have the engines' type and names needs nothing of this: weightcast.publish publishes them where they are.
"""

import torch

from . import _tensors, export_map
from . import publish as _publish
from ._library import Error, NoAnswer, seconds, shown, whole
from ._wrapper import Wrapper


def publish(folder, rank, ranks, module, dtype=None, layout=None, exporter=None, replicas=None, gather=None):
    """Publishes a module's parameters and persistent buffers as trainer `rank` of `ranks`: a copy in `dtype` of what has
    another floating type, the rest where it is. The copy lies where the original does; of a DTensor, such as FSDP2's, it
    is this process's part. `layout` as of weightcast.publish.

    `exporter`, in place of `layout`: a function that gives pairs of Hugging Face's names and tensors of the module, as one
    that saves checkpoints does. All ranks call this together, and it runs the exporter a few times to learn which box of whose
    tensors is what (export_map.learn, where `replicas` and `gather` are); the map goes into the folder, and job steps find it.
    Without `dtype` all tensors are then published where they are."""
    if (dtype is not None or exporter is None) and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise Error(64, f"dtype {shown(dtype)}; give a floating type of torch, such as torch.bfloat16")
    if exporter is None and (replicas is not None or gather is not None):
        raise Error(64, "replicas and gather are of an exporter; give it, or leave them out")
    if exporter is not None and layout is not None:
        raise Error(64, f"layout {shown(layout)} beside an exporter, which says how tensors are cut; leave one out")
    state = _tensors.State(module)
    if exporter is not None:
        layout = export_map.publish(folder, exporter, module, rank, ranks, gather, replicas, dtype)
    tensors = state.tensors()
    copy_of = {}  # by the original's memory: what is tied is one copy
    copies = {}
    for name, tensor in tensors.items():
        if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            memory = _tensors.identity(tensor)
            if memory not in copy_of:
                copy_of[memory] = torch.empty_like(tensor.detach(), dtype=dtype)
            copies[name] = copy_of[memory]
    if not copies:
        return _publish(folder, "trainer", rank, ranks, module=module, layout=layout)
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
        version, timeout = whole(version, "version"), seconds(timeout)
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
                same = _tensors.identity(by_copy.setdefault(id(copy), tensor)) == _tensors.identity(tensor) and _tensors.local(tensor).shape == _tensors.local(copy).shape
            if not same:
                raise Error(64, f"tensor {name} is not in the module any more as it was published; publish the module again")
        return {name: now[name] for name in self._copies}
