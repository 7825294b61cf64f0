"""Publishes the memory of a trainer or an inference engine, so that weightcast moves weights between them in place.

An engine:

    export = weightcast.publish("run/weights", role="engine", rank=rank, ranks=4, module=model)
    while serving:
        generate()
        wanted = broadcast(export.wanted() if rank == 0 else None)  # the engine's own broadcast
        if wanted is not None:
            with export.pause(wanted) as update:  # enters when the new weights are in the memory of every rank
                rebuild_derived(model)            # update.version

A trainer:

    export = weightcast.publish("run/weights", role="trainer", rank=rank, ranks=2, module=model)
    for version in itertools.count(1):
        train()
        export.offer(version)  # returns when every rank has read the parameters

Where a server runs, an update can also be asked for: weightcast.trigger("run/weights").

Needs nothing but the client library, and torch only for modules and tensors that are torch's.
"""

import contextlib
import dataclasses
import os
import typing

from . import _library, _tensors
from ._library import Error, Invalid, NoAnswer
from ._server import Answer, trigger
from ._tensors import Memory

__all__ = ["publish", "trigger", "Export", "Wanted", "Update", "Answer", "Memory", "Error", "Invalid", "NoAnswer"]

_ALIGNMENT = 64


class Wanted(typing.NamedTuple):
    """What a job step asks for: to write `version`. `question` is the same number on all ranks of the engine."""

    version: int
    question: int


@dataclasses.dataclass(frozen=True)
class Update:
    """What has been written: `version`, and the names of the tensors that may have changed."""

    version: int
    changed: tuple


# The places of all exports that have not been closed, and of those that a job step still had mapped then: memory on a GPU
# is its tensors', and must stay for as long as others may read and write it.
_published = {}


class Export:
    """What this process has published. One thread at a time; not for forked children. It stays published until close(),
    also when nothing refers to this object any more."""

    def __init__(self, handle, tensors, memory, state):
        self._handle = handle
        self._process = os.getpid()
        self._names = tuple(tensors)
        self._memory = memory
        self._state = state
        self._state_names = frozenset() if state is None else frozenset(state.tensors())
        # Torch's tensors, with where they are.
        self._places = [
            (name, tensor, _tensors.local(tensor), _tensors.local(tensor).data_ptr())
            for name, tensor in tensors.items()
            if not isinstance(tensor, Memory)
        ]
        _published[id(self._places)] = self._places

    def memory(self, name):
        """The bytes of a tensor in the host's memory, as a writable view of what is published."""
        return self._memory[name]

    def require_in_place(self):
        """Raises Error naming a tensor that is not where it was published, or has another name now. Frameworks give a
        parameter other memory, too, or put another one in its place: for another dtype, when they load or offload weights,
        or when they wrap a layer in an adapter."""
        gone = [name for name, tensor, _, address in self._places if _tensors.local(tensor).data_ptr() != address]
        if self._state is not None:
            objects = {id(tensor) for _, tensor, _, _ in self._places}
            now = self._state.tensors()
            gone += [name for name, tensor in now.items() if id(tensor) not in objects]
            gone += sorted(self._state_names.symmetric_difference(now))
        if gone:
            raise Error(64, f"tensor {gone[0]} is not in the published memory any more; publish the module again")

    def serve(self, version):
        """Says that an engine's memory holds that version whole, and that it is used. An invalid engine, too, may say so,
        when it has loaded itself anew; on all its ranks."""
        _library.call("weightcast_serve", self._handle, _library.whole(version, "version"))

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
        question = 0 if wanted is None else _question_of(wanted)
        timeout = _library.seconds(timeout)
        try:
            self.require_in_place()
        except Error as error:
            if self.wanted() is not None:
                self.decline(str(error))
            raise
        version = _library.pause(self._handle, question, timeout)
        try:
            yield Update(version, self._names)
        except BaseException as error:
            cause = f"the engine could not use version {version}: {error}"
            _library.call("weightcast_invalidate", self._handle, _library.reason(cause))
            raise
        _library.call("weightcast_resume", self._handle)

    def decline(self, reason):
        """Answers a job step that asks that the engine will not be written now."""
        _library.call("weightcast_decline", self._handle, _library.reason(reason))

    def offer(self, version, timeout=600.0, wait=True):
        """Of a trainer: its parameters are that version. Waits until every rank has read them; with wait=False returns
        at once, and settle() says when they may change. Raises NoAnswer when nobody has read them in time."""
        self.require_in_place()
        timeout = _library.seconds(timeout)
        _library.call("weightcast_offer", self._handle, _library.whole(version, "version"), timeout if wait else 0.0)

    def settle(self, timeout=600.0):
        """Waits for the end of what was offered; afterwards the parameters may change."""
        _library.call("weightcast_settle", self._handle, _library.seconds(timeout))

    def close(self, timeout=60.0, keep=False):
        """Withdraws the publication. Tensors of torch that lie in its memory lose their elements, or with `keep` get memory
        of their own again, for which there must be room; views of them, and those of memory(), must not be used
        afterwards. What is on a GPU stays as it is."""
        if self._process != os.getpid():
            raise Error(64, f"the export belongs to process {self._process}; a forked child leaves it open")
        timeout = _library.seconds(timeout)
        handle, self._handle = self._handle, None
        self._memory = {}
        places, self._places = self._places, []
        new = {}  # by address: what is tied stays so
        for _, _, own, address in places:
            if own.device.type != "cpu" or own.data_ptr() != address:
                continue
            if address not in new:
                new[address] = own.data.clone() if keep else own.data.new_empty(0)
            own.data = new[address]
        _library.call("weightcast_close", handle, timeout)
        _published.pop(id(places), None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._handle is not None:
            self.close()


def _question_of(wanted):
    try:
        _, question = wanted
    except (TypeError, ValueError):
        raise Error(64, f"wanted is {wanted!r}; give what wanted() said") from None
    return _library.whole(question, "the question of wanted is", 2**64 - 1)


def publish(folder, role, rank, ranks, module=None, tensors=None, layout=None, version=None):
    """Publishes tensors as rank `rank` of `ranks` exporters of that role ("trainer" or "engine").

    `module`: all parameters and persistent buffers of a torch module, under all names that they have. What is in the
    CPU's memory moves into shared memory, what is on a GPU is published where it lies; all stay the same objects. Of a
    DTensor a trainer publishes its own part, as the box of the whole that it is. Buffers that are not persistent, such
    as rotary tables, are no weights: they stay where they are. `tensors`: by name torch tensors, which are treated in
    the same way, or Memory. Without `module` nothing else may have the memory of a tensor on the CPU, because only the
    given objects move: what a module's state_dict() gives is refused. With both, `tensors` gives the names, and all
    that `module` alone would publish must be among them. `layout` says how the parameters are cut ("hf", "sglang:t2e2";
    None: as the job step's options say), `version` what an engine's memory holds already. Where it raises, every tensor
    is where it was.
    """
    if version is not None:
        version = _library.whole(version, "version")
    if module is not None:
        _tensors.require_own_memory(module)
    state = None if module is None else _tensors.State(module)
    wanted = _tensors.tensors_of(state, tensors)
    forms = {name: _tensors.form_of(name, tensor) for name, tensor in wanted.items()}
    # Before anything moves: what is tied is one memory now.
    keys = {name: _tensors.identity(tensor) for name, tensor in wanted.items()}
    first_names = {}
    for name, key in keys.items():
        first_names.setdefault(key, name)
    if not first_names:
        raise Error(64, "there is nothing to publish; give a module or tensors")
    firsts = {name: wanted[name] for name in first_names.values()}
    _tensors.require_apart(firsts)
    if module is None:
        _tensors.require_alone(wanted)
    handle = _library.open_export(folder, role, rank, ranks, layout)
    before = []  # tensors that have moved, and where they were
    try:
        memory = _add_entries(handle, firsts, forms)
        new = {}
        for name, tensor in wanted.items():
            first = first_names[keys[name]]
            if first != name:
                _library.add_alias(handle, first, name)
            if first not in memory:
                continue
            memory[name] = memory[first]
            if isinstance(tensor, Memory):
                continue
            # What is tied may be several objects of one memory: each must lead to the new one.
            own = _tensors.local(tensor)
            if first not in new:
                new[first] = _tensors.moved(own, memory[first])
            before.append((own, own.data))
            own.data = new[first]
        if version is not None:
            _library.call("weightcast_serve", handle, version)
        _library.call("weightcast_publish", handle)
        return Export(handle, wanted, memory, state)
    except BaseException:
        for tensor, data in reversed(before):
            tensor.data = data
        _library.close_quietly(handle)
        raise


def _add_entries(handle, tensors, forms):
    """Gives every tensor an entry: one in the CPU's memory a place in a new segment, one on a GPU the place where it is.
    Returns the memory of the former by name."""
    offsets = {}
    total = 0
    for name, tensor in tensors.items():
        if not _tensors.on_gpu(tensor):
            offsets[name] = total
            total += -(-max(_tensors.bytes_of(tensor), 1) // _ALIGNMENT) * _ALIGNMENT
    address, segment = _library.add_segment(handle, total) if total else (None, None)
    memory = {}
    empty = []  # on a GPU: without elements they have no place
    for name, tensor in tensors.items():
        if name in offsets:
            _add_entry(handle, name, forms[name], None, segment, offsets[name])
            memory[name] = _library.view(address + offsets[name], _tensors.bytes_of(tensor))
        elif _tensors.bytes_of(tensor) == 0:
            empty.append(name)
        else:
            own = _tensors.local(tensor)
            place = _library.add_gpu_memory(handle, own.data_ptr(), _tensors.span_of(own))
            _add_entry(handle, name, forms[name], own.stride(), *place)
    for name in empty:
        _add_entry(handle, name, forms[name], None, 0, 0)
    return memory


def _add_entry(handle, name, form, strides, segment, offset):
    _library.add_entry(handle, name, form.dtype, form.shape, strides, segment, offset)
    if form.whole is not None:
        _library.set_box(handle, name, form.whole, form.start)
