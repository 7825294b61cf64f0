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

import collections.abc
import mmap
import os
import typing
import weakref

from . import _experts, _library, _tensors
from ._experts import ExpertMap, Reference
from ._library import Error, Invalid, NoAnswer, Stale
from ._pause import Pause, Update
from ._server import Answer, trigger
from ._tensors import Memory
from ._version import VERSION as __version__

__all__ = ["publish", "trigger", "Export", "Wanted", "Update", "Answer", "Memory", "ExpertMap", "Reference", "Error", "Invalid", "NoAnswer", "Stale"]

_ALIGNMENT = 64
_PAGE = mmap.PAGESIZE


class Wanted(typing.NamedTuple):
    """What a job step asks for: to write `version`. `question` is the same number on all ranks of the engine."""

    version: int
    question: int


# The places of all exports that have not been closed, and of those that a job step still had mapped then: memory on a GPU
# is its tensors', and must stay for as long as others may read and write it.
_published = {}


class Export:
    """What this process has published. One thread at a time; not for forked children. It stays published until close(),
    also when nothing refers to this object any more."""

    def __init__(self, handle, tensors, memory, state, window, views, sizes):
        self._handle = handle
        self._process = os.getpid()
        self._names = (*tensors, *(name for name, _, _ in window.values()))
        self._window = window  # by the number of the entry its name, form and memory
        self._memory = memory
        self._views = views  # buffers, and in which tensors they lie
        self._sizes = sizes  # layers and slots of an engine that says where its experts sit
        self._entered = None  # the id of the Pause that has been entered and not left
        self._module = None if state is None else _tensors.Watched(state)
        self._places = [
            _tensors.Place(name, tensor) for name, tensor in tensors.items() if not isinstance(tensor, Memory)
        ]
        _published[id(self._places)] = self._places

    def memory(self, name):
        """The bytes of a tensor in the host's memory, as a writable view of what is published."""
        self._open()
        if not isinstance(name, str) or name not in self._memory:
            raise Error(64, f"tensor {_library.shown(name)} is not in the host's memory here; name one that was published there")
        return self._memory[name][:]  # a view that the caller may release

    def place_experts(self, epoch, experts_of_slots):
        """Says that an engine that was published with `experts` has moved them: which expert is in each slot of each layer
        now, as ExpertMap has it; on all its ranks, each time with a greater epoch. An update that was planned before starts
        again. Raises Error while an update is under way: from pause() on to the end of its `with` no expert moves, and an
        engine does not pause while it moves any."""
        _experts.place(self._open(), self._sizes, epoch, experts_of_slots)

    def placed_experts(self):
        """Epoch and expert in each slot of each layer, as place_experts() or a job step that has moved them
        (weightcast rebalance) has said last. In the `with` of pause() it is what the new weights lie by."""
        return _experts.placed(self._open(), self._sizes)

    def refer(self, name):
        """A Reference to weights of an engine by a name, in the form that they have now, to be kept in place of the tensor and
        resolved at each use. Raises Invalid where the memory holds no version, so that no weight has its final form yet."""
        if not isinstance(name, str) or name not in self._names:
            raise Error(64, f"tensor {_library.shown(name)} is not published; name one that is")
        return Reference(self, name)

    def _published_as(self, name):
        """The tensor of torch of that name, else its bytes."""
        own = next((place.own for place in self._places if place.name == name), None)
        return self.memory(name) if own is None else own

    def require_in_place(self):
        """Raises Error naming a tensor that is not where it was published, has another shape, type or name now, or is not
        the module's any more. Frameworks give a parameter other memory, or put another one in its place: for another
        dtype, when they tie, load or offload weights, or when they wrap a layer in an adapter."""
        self._open()
        for place in self._places:
            place.require_unchanged()
        if self._module is not None:
            self._module.require_unchanged()

    def serve(self, version):
        """Says that an engine's memory holds that version whole, and that it is used. An invalid engine, too, may say so,
        when it has loaded itself anew; on all its ranks."""
        _library.call("weightcast_serve", self._open(), _library.whole(version, "version"))

    def invalidate(self, reason):
        """Says that an engine's memory holds no version any more, because something else writes there, such as a loader of
        its own; on all its ranks. An update mends that, and serve()."""
        _library.call("weightcast_invalidate", self._open(), _library.reason(reason))

    def wanted(self):
        """What a job step asks to write, as Wanted, or None. Never waits."""
        wanted = _library.wanted(self._open())
        return None if wanted is None else Wanted(*wanted)

    def pause(self, wanted=None, timeout=600.0):
        """Lets a job step write; for a `with`, whose body runs when the version is in the memory of every rank, and rebuilds
        what follows from the weights. With a window it runs when the job step begins to write, and takes what comes from
        Update.landed(). Raises Invalid when the memory holds no version, Error or NoAnswer when it holds what it held
        before: also because nobody asks within `timeout` seconds. Where the body raises, the engine is
        invalid until another update, and an Error comes out as Invalid; invalid it is, too, when a signal's handler raises after the first byte was written.

        `wanted` is what wanted() said, on this rank of the engine or another: all of them come back alike when that
        has been taken back. None waits for whatever is asked next."""
        question = 0 if wanted is None else _question_of(wanted)
        return Pause(self, question, _library.seconds(timeout))

    def _landed(self, most):
        numbers = _library.landed(self._open(), most)
        return [(name, _tensors.view_of(name, form, memory)) for name, form, memory in map(self._window.get, numbers)]

    def _prepare(self):
        """Declines what could not be written."""
        try:
            self.require_in_place()
        except Error as error:
            if self._handle is not None and self.wanted() is not None:
                self.decline(str(error))
            raise

    def decline(self, reason):
        """Answers a job step that asks that the engine will not be written now."""
        _library.call("weightcast_decline", self._open(), _library.reason(reason))

    def offer(self, version, timeout=600.0, wait=True):
        """Of a trainer: its parameters are that version. Waits until every rank has read them, and while an earlier version
        is being read. Raises NoAnswer when no job step has begun to read them within `timeout` seconds: then nothing is
        offered any more. Of 0 seconds a thousandth is left. With wait=False it returns at once, and settle() says when the
        parameters may change; it raises where an earlier version is being read.

        When a signal's handler raises meanwhile, the offer is withdrawn, unless it is being read: settle() then says when
        that has ended."""
        handle = self._open()
        version = _library.whole(version, "version")
        timeout = _library.seconds(timeout)
        self.require_in_place()
        if wait:
            # In C 0 seconds would not wait for an answer at all.
            self._wait("weightcast_offer", handle, version, timeout or 1e-3)
        else:
            _library.call("weightcast_offer", handle, version, 0.0)

    def settle(self, timeout=600.0):
        """Waits for the end of what was offered; afterwards the parameters may change. What nobody has begun to read within
        `timeout` seconds is withdrawn, and NoAnswer raised."""
        self._wait("weightcast_settle", self._open(), _library.seconds(timeout))

    def withdraw(self):
        """Of a trainer: takes back what it offers; afterwards the parameters may change. Raises NoAnswer while a job step
        reads them."""
        left = _library.abandon(self._open(), None)
        if left is not None:
            raise NoAnswer(NoAnswer.CODE, left)

    def close(self, timeout=60.0, keep=False):
        """Withdraws the publication. Tensors of torch that lie in its memory lose their elements, or with `keep` get memory
        of their own again, for which there must be room. Views of them, those of memory() and tensors that came through
        the window keep the memory, which nobody else sees any more, until they go. What is on a GPU stays as it is.
        Closed once more it does nothing."""
        if self._process != os.getpid():
            raise Error(64, f"the export belongs to process {self._process}; a forked child leaves it open")
        timeout = _library.seconds(timeout)
        if self._handle is None:
            return
        new = {}  # by address: what is tied stays so
        for place in self._places:
            if place.on_host() and place.address not in new:
                new[place.address] = place.own.data.clone() if keep else place.own.data.new_empty(0)
        for view, tensor in self._views:
            if tensor.data_ptr() in new:
                view.data = _tensors.followed(view, tensor, new[tensor.data_ptr()])
        for place in self._places:
            if place.on_host():
                place.own.data = new[place.address]
        self._views = []
        handle, self._handle = self._handle, None
        places, self._places = self._places, []
        mappings = self._mappings()
        self._memory = {}
        self._window = {}
        for mapping in mappings:
            mapping = mapping()
            if mapping is not None:  # somebody has views still
                mapping.keep(handle)
        _library.close(handle, timeout)
        _published.pop(id(places), None)

    def _mappings(self):
        """Weak references to the memory of this export on the host."""
        views = [*self._memory.values(), *(memory for _, _, memory in self._window.values())]
        return [weakref.ref(mapping) for mapping in {id(view.obj.mapping): view.obj.mapping for view in views}.values()]

    def _open(self):
        if self._handle is None:
            raise Error(64, "the export is closed; publish again")
        return self._handle

    def _wait(self, name, handle, *arguments):
        try:
            _library.wait(name, handle, *arguments)
        except Error:
            raise
        except BaseException as error:
            left = _library.abandon(handle, None)
            if left is not None and hasattr(error, "add_note"):
                error.add_note(left)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._handle is not None:
            self.close()


def _question_of(wanted):
    try:
        _, question = wanted
    except (TypeError, ValueError):
        raise Error(64, f"wanted is {_library.shown(wanted)}; give what wanted() said") from None
    return _library.whole(question, "the question of wanted is", 2**64 - 1)


def publish(
    folder, role, rank, ranks, module=None, tensors=None, layout=None, version=None, window=None, limit=2**30, experts=None
):
    """Publishes tensors as rank `rank` of `ranks` exporters of that role ("trainer" or "engine").

    `module`: all parameters and persistent buffers of a torch module, under all names that they have. What is in the
    CPU's memory moves into shared memory, what is on a GPU is published where it lies; all stay the same objects. Of a
    DTensor a trainer publishes its own part, as the box of the whole that it is. Buffers that are not persistent, such
    as rotary tables, are no weights: they stay where they are, but for views of a parameter, which go with it. `tensors`: by name torch tensors, which are treated in
    the same way, or Memory. Without `module` nothing else may have the memory of a tensor on the CPU, because only the
    given objects move: what a module's state_dict() gives is refused. With both, `tensors` gives the names, and all
    that `module` alone would publish must be among them. `layout` says how the parameters are cut ("hf", "sglang:t2e2";
    None: as the job step's options say), `version` what an engine's memory holds already. Where it raises, every tensor
    is where it was.

    `window`: of an engine that lays weights out in a way of its own, by name Memory of the model's own tensors that its
    loader takes as they come (Update.landed()). They are in memory one after the other, `limit` bytes at once or, where it
    is larger, what arrives of one. A parameter of `module` that has the name of one of them is the loader's, and not
    published.

    `experts`: of an engine that has moved experts between its slots, or may, the ExpertMap by which they sit now; job steps
    place them so. place_experts() says where they have moved to.
    """
    if version is not None:
        version = _library.whole(version, "version")
        if role == "trainer":
            raise Error(64, f"version {version} of a trainer; it says at each offer which one it has: leave version out")
    state = None if module is None else _tensors.State(module)
    if module is not None:
        _tensors.require_own_memory(module)
    wanted = _tensors.tensors_of(state, tensors)
    forms = {name: _tensors.form_of(name, tensor) for name, tensor in wanted.items()}
    # Before anything moves: what is tied is one memory now.
    keys = {name: _tensors.identity(tensor) for name, tensor in wanted.items()}
    window = _require_memory({} if window is None else window, tensors or {})
    # What the loader makes of a tensor of the same name, by all names that it has.
    loaded = {keys[name] for name in window if name in keys}
    wanted = {name: tensor for name, tensor in wanted.items() if keys[name] not in loaded}
    keys = {name: keys[name] for name in wanted}
    first_names = {}
    for name, key in keys.items():
        first_names.setdefault(key, name)
    if not first_names and not window:
        raise Error(64, "there is nothing to publish; give a module or tensors")
    firsts = {name: wanted[name] for name in first_names.values()}
    _tensors.require_apart(firsts)
    views = [] if state is None else state.views_of(firsts.values())
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
                for view, of in views:
                    if of is own:
                        before.append((view, view.data))
                        view.data = _tensors.followed(view, own, new[first])
            before.append((own, own.data))
            own.data = new[first]
        places = _add_window(handle, window, limit, len(firsts)) if window else {}
        sizes = None if experts is None else _experts.add(handle, experts)
        if version is not None:
            _library.call("weightcast_serve", handle, version)
        _library.call("weightcast_publish", handle)
        return Export(handle, wanted, memory, state, places, views, sizes)
    except BaseException:
        for tensor, data in reversed(before):
            tensor.data = data
        _library.close_quietly(handle)
        raise


def _require_memory(window, tensors):
    """The tensors of a window. Raises Error naming one that cannot be there."""
    if not isinstance(window, collections.abc.Mapping):
        raise Error(64, f"window is {_library.shown(window)}; give a dict of Memory by name")
    for name, tensor in window.items():
        if not isinstance(tensor, Memory):
            raise Error(64, f"tensor {_library.shown(name)} of the window is {_library.shown(tensor)}; give weightcast.Memory")
        if name in tensors:
            raise Error(64, f"tensor {name} is published in place and in the window; give it once")
    return dict(window)


def _offsets(tensors, unit):
    """Places one behind the other, each at a multiple of `unit` bytes: by name, and how many bytes all take."""
    offsets = {}
    total = 0
    for name, tensor in tensors.items():
        offsets[name] = total
        total += -(-max(_tensors.bytes_of(tensor), 1) // unit) * unit
    return offsets, total


def _add_window(handle, window, limit, first):
    """Gives each tensor of the window a place that begins with a page. Returns name, form and memory of each by the number
    of its entry; `first` is that of the first."""
    offsets, total = _offsets(window, _PAGE)
    mapping = _library.add_window(handle, total, limit)
    places = {}
    for number, (name, tensor) in enumerate(window.items(), first):
        form = _tensors.form_of(name, tensor)
        _add_entry(handle, name, form, None, mapping.segment, offsets[name])
        places[number] = name, form, mapping.view(offsets[name], _tensors.bytes_of(tensor))
    return places


def _add_entries(handle, tensors, forms):
    """Gives every tensor an entry: one in the CPU's memory a place in a new segment, one on a GPU the place where it is.
    Returns the memory of the former by name."""
    offsets, total = _offsets({name: tensor for name, tensor in tensors.items() if not _tensors.on_gpu(tensor)}, _ALIGNMENT)
    mapping = _library.add_segment(handle, total) if total else None
    memory = {}
    empty = []  # on a GPU: without elements they have no place
    for name, tensor in tensors.items():
        if name in offsets:
            _add_entry(handle, name, forms[name], None, mapping.segment, offsets[name])
            memory[name] = mapping.view(offsets[name], _tensors.bytes_of(tensor))
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
