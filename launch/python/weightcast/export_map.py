"""Learns from a trainer's own exporter which box of its tensors each tensor of Hugging Face's is, and writes an export map.

    exporter = lambda: bridge.export_hf_weights(model)   # any (name, tensor) pairs, or a dict of them
    map = weightcast.export_map.learn(exporter, module=model, rank=rank, ranks=ranks)

It runs on the live model: its tensors hold tags (_tags.py) while the exporter runs a few times, and then what they held before.
So what a job step reads later is the trainer's own memory, and the exporter never runs again. A map:

    {"exports": 1, "key": "<SHA-256 of the rest>", "made_for": {"weightcast", "torch", "ranks"},
     "tensors": [{"name", "dtype", "shape"}, …],                              what the exporter gives
     "ranks": [{"tensors": [{"name", "dtype", "shape", "boxes"}, …], "left": ["name", …]}, …]}    what each trainer has

A box [tensor, row, rows, col, cols, from, pitch] is of the matrix view of tensor number `tensor`: all dimensions but the last are
rows. Its element (r, c) is element `from` + r * `pitch` + c of the trainer's tensor, row by row. Of what is `left` the
exporter has read nothing there.
"""

import collections.abc
import json
import os

import torch

from . import _landing, _library, _origins, _tags, _tensors
from ._library import Error, shown
from ._version import VERSION

FORMAT = 1


def learn(exporter, module=None, tensors=None, rank=0, ranks=1, gather=None, replicas=None, dtype=None):
    """The export map of all ranks, which all of them call alike. `exporter()` gives pairs of Hugging Face's names and tensors,
    or a dict; it may gather over ranks, and a tensor counts as the first rank gives it that gives it. DTensors are gathered.
    `module` or `tensors`: what each rank will publish. `gather(object)` gives a list of all ranks' objects; left out,
    torch.distributed does it.

    `replicas`: ranks that hold equal tensors under equal names, as [[0, 2], [1, 3]], or a function from a name to such a list;
    each of them may then send what the exporter reads from one. `dtype`: what floating tensors of other types are published
    as a copy of (weightcast.torch.publish).

    Raises Error naming what the exporter computes or converts, on all ranks; the tensors are as they were, bit for bit. It takes
    as much of the host's memory as a rank's tensors have, and what the exporter takes."""
    if dtype is not None and not _tags.takes(dtype):
        raise Error(64, f"dtype {shown(dtype)}; give a type that an exporter can be tried in, such as torch.bfloat16")
    own = _own_tensors(module, tensors)
    gather = _gather_of(gather, ranks)
    forms = [(name, own[name].dtype, tuple(_tensors.local(own[name]).shape)) for name in own]
    digests = {name: _tags.digest(_tensors.local(tensor)) for name, tensor in own.items()} if replicas is not None else {}
    everyone = gather((forms, digests))
    if len(everyone) != ranks:
        raise Error(64, f"gather gave {len(everyone)} objects of {ranks} ranks; let it give one of each")
    numbering = _Numbering([of[0] for of in everyone], dtype)
    learner = _Learner(exporter, numbering, gather, rank)
    numbered = {name: (tensor, numbering.firsts[rank, name]) for name, tensor in own.items() if (rank, name) in numbering.firsts}
    exported = _tags.with_tags(numbered, learner.run)
    return _map_of(exported, [of[0] for of in everyone], numbering, _Replicas(replicas, [of[1] for of in everyone]))


def publish(folder, exporter, module, rank, ranks, gather=None, replicas=None, dtype=None):
    """Learns a map, and writes it into the folder where the trainers publish, on all ranks together. Returns the layout to
    publish with, by which job steps find the map. Raises Error."""
    folder = _library.path(folder)
    gather = _gather_of(gather, ranks)
    found = learn(exporter, module, None, rank, ranks, gather, replicas, dtype)
    failure = None
    if rank == 0:
        try:
            write(found, folder)
        except Exception as error:  # the others wait for what rank 0 says
            failure = error
    for error in gather(None if failure is None else (getattr(failure, "code", 70), str(failure))):
        if error is not None:
            raise Error(*error) from failure
    return f"map:{found['key']}"


def write(found, folder):
    """Writes a map into a folder, under its key. Returns the path."""
    folder = _library.path(folder)
    path = os.path.join(folder, f"export-map-{found['key']}.json")
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError as error:
        raise Error(74, f"{folder} cannot be made: {error.strerror}") from None
    _landing.write(found, path)
    return path


def summary(found):
    """What a map says, in lines."""
    boxes = sum(len(of["boxes"]) for rank in found["ranks"] for of in rank["tensors"])
    yield f"{len(found['tensors'])} tensors are exported, in {boxes} boxes of {len(found['ranks'])} trainers"
    unread = set.intersection(*(set(rank.get("left", [])) for rank in found["ranks"])) if found["ranks"] else set()
    if unread:
        yield f"not exported: {', '.join(sorted(unread))}"


def _own_tensors(module, tensors):
    """What is published, each under its first name."""
    if module is None and tensors is None:
        raise Error(64, "give module, or tensors: what the trainer will publish")
    wanted = _tensors.tensors_of(None if module is None else _tensors.State(module), tensors)
    own = {}
    for name, tensor in wanted.items():
        if isinstance(tensor, _tensors.Memory):
            raise Error(64, f"tensor {name} is Memory, of which no exporter makes anything; give tensors of torch")
        own.setdefault(_tensors.identity(tensor), (name, tensor))
    return dict(own.values())


def _gather_of(gather, ranks):
    if gather is not None:
        return gather
    if ranks == 1:
        return lambda value: [value]
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() != ranks:
        raise Error(64, f"there are {ranks} ranks, but no process group of torch.distributed has as many; give gather")

    def gather_all(value):
        everyone = [None] * ranks
        dist.all_gather_object(everyone, value)
        return everyone

    return gather_all


class _Numbering:
    """The numbers of all elements of all ranks' tensors. Between two tensors a number is nobody's."""

    def __init__(self, forms, dtype):
        self.firsts = {}  # by rank and name
        self.tensors = []  # rank, name, type and elements, by number
        self.published = {}  # types, by own type
        starts = []
        total = 0
        for rank, of_rank in enumerate(forms):
            for name, own, shape in of_rank:
                self.published[own] = dtype if dtype is not None and own.is_floating_point else own
                if not _tags.takes(own):
                    continue
                elements = torch.Size(shape).numel()
                self.firsts[rank, name] = total
                self.tensors.append((rank, name, own, elements))
                starts.append(total)
                total += elements + 1
        if not self.tensors:
            raise Error(64, "there is no tensor of numbers to learn from; give the module")
        self.starts = torch.tensor(starts)
        self._ends = torch.tensor([start + of[3] for start, of in zip(starts, self.tensors, strict=True)])
        types = {of[2] for of in self.tensors}
        self.bits = _tags.digit_bits(types | {self.published[of] for of in types})
        self.passes = max(1, -(-total.bit_length() // self.bits))

    def owners(self, runs):
        """The numbers of the tensors in which runs lie. Raises Refused where one is in none."""
        owners = torch.searchsorted(self.starts, runs.numbers, right=True) - 1
        if bool((runs.numbers + runs.lengths() > self._ends[owners]).any()):
            raise _origins.Refused(_origins.COMPUTED)
        return owners


class _Learner:
    """What one rank learns while all run the exporter."""

    def __init__(self, exporter, numbering, gather, rank):
        self._exporter = exporter
        self._numbering = numbering
        self._gather = gather
        self._rank = rank
        self._types = {*numbering.published, *numbering.published.values()}
        self._forms = {}  # types and shapes of what the exporter gives here, by name
        self._runs = {}
        self._refused = {}  # why, by name

    def run(self, fill):
        """[(name, dtype, shape, boxes by number of tensor), …] of all ranks. Raises Error."""
        bits = self._numbering.bits
        for place in range(self._numbering.passes):
            digits = _tags.Digits(place, bits)
            fill(digits)
            everyone = self._pass(lambda name, tensor, *of: self._runs[name].learn(tensor, *of), digits, place, bits)
            if place == 0:
                self._keep_own(everyone)
        marks = _tags.Marks()
        fill(marks)
        boxes = {}
        self._pass(lambda name, tensor: boxes.update({name: self._boxes(name, tensor, marks)}))
        return self._agree(boxes)

    def _pass(self, look, *arguments):
        """Runs the exporter and has a look at each tensor. Returns the names that it gives, of all ranks."""
        seen = set()
        first = not self._forms
        failure = None
        try:
            for name, tensor in _pairs(self._exporter()):
                if name in seen:
                    raise Error(64, f"the exporter gives {name} twice; let it give each tensor once")
                seen.add(name)
                if first:
                    self._forms[name] = tensor.dtype, tuple(tensor.shape)
                    self._runs[name] = _origins.Runs(tensor.numel())
                    if tensor.dtype not in self._types:
                        self._refused[name] = _converted(tensor.dtype, self._numbering.published)
                elif self._forms.get(name) != (tensor.dtype, tuple(tensor.shape)):
                    raise Error(64, f"the exporter gives {name} once, and otherwise when it runs again; let it do the same each time")
                if name not in self._runs or name in self._refused:
                    continue
                try:
                    look(name, tensor, *arguments)
                except _origins.Refused as error:
                    self._refused[name] = str(error)
        except Exception as error:
            failure = error
        if failure is None and seen != self._forms.keys():
            failure = Error(64, f"the exporter gives {min(seen ^ self._forms.keys())} once, and not when it runs again; let it do the same each time")
        everyone = self._gather((None if failure is None else f"{type(failure).__name__}: {failure}", list(seen)))
        if isinstance(failure, Error):
            raise failure
        for rank, (text, _) in enumerate(everyone):
            if text is not None:
                raise Error(70, f"rank {rank}: the exporter failed: {text}") from failure
        return [names for _, names in everyone]

    def _keep_own(self, everyone):
        """Of what several ranks give only the first has a look."""
        before = set().union(*everyone[: self._rank])
        self._runs = {name: runs for name, runs in self._runs.items() if name not in before}
        self._refused = {name: why for name, why in self._refused.items() if name not in before}

    def _boxes(self, name, tensor, marks):
        runs = self._runs.pop(name)
        owners = self._numbering.owners(runs)
        types = {self._numbering.tensors[owner][2] for owner in owners.unique().tolist()}
        published = {self._numbering.published[of] for of in types}
        if len(types) > 1 or tensor.dtype not in types | published:
            raise _origins.Refused(_converted(tensor.dtype, types))
        runs.require_marks(tensor, marks, types.pop())
        columns = _landing.matrix(tensor.shape)[1]
        self._forms[name] = published.pop(), tuple(tensor.shape)
        return _origins.boxes_of(runs, owners, self._numbering.starts[owners], columns)

    def _agree(self, boxes):
        """All ranks' boxes, or the error for what none are found of."""
        results = [(name, *self._forms[name], of) for name, of in boxes.items()]
        everyone = self._gather((results, self._refused))
        refused = {name: why for _, of_rank in everyone for name, why in of_rank.items()}
        if refused:
            name = min(refused, key=_landing.network_order)
            more = f" ({len(refused)} such tensors)" if len(refused) > 1 else ""
            raise Error(65, f"the exporter's {name}{more}: {refused[name]}")
        found = [result for results, _ in everyone for result in results]
        if not found:
            raise Error(64, "the exporter gives no tensor on any rank; let it give pairs of name and tensor")
        return sorted(found, key=lambda result: _landing.network_order(result[0]))


def _converted(dtype, types):
    """Why a tensor is refused that is of another type than what it is made of."""
    own = " and ".join(sorted(map(_tensors.dtype_name, types)))
    return (f"it is {_tensors.dtype_name(dtype)}, made of {own}: nothing is converted where it is read; let the exporter give the "
            "trainer's type, or publish copies in the engine's with dtype=")  # fmt: skip


def _pairs(given):
    """Pairs of name and tensor that have elements. Raises Error."""
    if isinstance(given, collections.abc.Mapping):
        given = given.items()
    if not isinstance(given, collections.abc.Iterable):
        raise Error(64, f"the exporter gives {type(given).__name__}; let it give pairs of name and tensor, or a dict")
    for pair in given:
        try:
            name, tensor = pair
        except (TypeError, ValueError):
            raise Error(64, f"the exporter gives a {type(pair).__name__}; let it give pairs of name and tensor") from None
        if tensor is None:  # this rank gets nothing of it
            continue
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise Error(64, f"the exporter gives a {type(name).__name__} and a {type(tensor).__name__}; let it give a name and a tensor")
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()
        if tensor.numel():
            yield name, tensor.detach()


class _Replicas:
    """Which ranks have equal tensors. `digests` are by name, of each rank."""

    def __init__(self, given, digests):
        self._given = given
        self._digests = digests

    def of(self, rank, name):
        """The ranks that may send what `rank` has under that name, itself among them. Raises Error."""
        if self._given is None:
            return [rank]
        groups = self._given(name) if callable(self._given) else self._given
        try:
            group = next((sorted(group) for group in groups if rank in group), [rank])
        except TypeError:
            raise Error(64, f"replicas is {groups!r}; give lists of ranks, such as [[0, 2], [1, 3]]") from None
        for other in group:
            if other not in range(len(self._digests)):
                raise Error(64, f"replicas has rank {other!r}, but there are {len(self._digests)}; give ranks from 0 on")
            if self._digests[other].get(name) != self._digests[rank][name]:
                raise Error(64, f"tensor {name} is not equal on ranks {rank} and {other}, which replicas has in one group; "
                            "give ranks of equal weights")  # fmt: skip
        return group


def _map_of(exported, forms, numbering, replicas):
    """The map, its key among it."""
    boxes = {}
    for number, (_, _, _, of_owner) in enumerate(exported):
        for owner, found in of_owner.items():
            rank, name, _, _ = numbering.tensors[owner]
            for other in replicas.of(rank, name):
                boxes.setdefault((other, name), []).extend([number, *box] for box in found)
    found = {
        "made_for": {"weightcast": VERSION, "torch": torch.__version__, "ranks": len(forms)},
        "tensors": [_form(*of[:3]) for of in exported],
        "ranks": [],
    }
    for rank, of_rank in enumerate(forms):
        listed = [
            {**_form(name, numbering.published[dtype], shape), "boxes": sorted(boxes[rank, name])}
            for name, dtype, shape in of_rank
            if (rank, name) in boxes
        ]
        left = [name for name, _, _ in of_rank if (rank, name) not in boxes]
        found["ranks"].append({"tensors": listed, **({"left": left} if left else {})})
    return {"exports": FORMAT, "key": _landing.key_of(found), **found}


def _form(name, dtype, shape):
    return {"name": name, "dtype": _tensors.dtype_name(dtype), "shape": list(shape)}
