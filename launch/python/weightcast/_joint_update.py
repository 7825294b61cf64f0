"""An update of an engine that may have several ranks: all of them take it, or none does."""

import contextlib
import dataclasses
import threading
import time

from ._library import Error, Invalid, NoAnswer, error_of

_LOOK = 0.002  # seconds between two looks whether a job step asks


class Ranks:
    """The ranks of one engine, or all trainers, each of which calls the same methods in the same order. `gather` gives all
    ranks' values, in their order, for this rank's; `index` is this rank's place; `name` is what errors call a rank."""

    def __init__(self, index=0, gather=lambda value: [value], name="engine rank"):
        self.index = index
        self._gather = gather
        self._name = name

    def from_first(self, action):
        """What `action` returns on the first rank, or raises there."""
        return self._agree(*_outcome(action if self.index == 0 else lambda: None), decisive=slice(0, 1))[0]

    def together(self, action):
        """What `action` returns here; raises on all ranks alike when it has raised on any."""
        return self.all(action)[self.index]

    def all(self, action):
        """What `action` returns on every rank, in their order; raises as together()."""
        return self._agree(*_outcome(action))

    def _agree(self, value, failure, decisive=slice(None)):
        """The values of all ranks, or the gravest failure: where a memory holds no version, that one."""
        answers = self._gather((value, failure))
        failed = [(rank, of) for rank, (_, of) in enumerate(answers[decisive]) if of is not None]
        if failed:
            rank, (code, message) = min(failed, key=lambda item: (item[1][0] != Invalid.CODE, item[0]))
            raise error_of(code, message if len(answers) == 1 else f"{self._name} {rank}: {message}")
        return [value for value, _ in answers]


def gather_objects(world):
    """A function that gathers a value of each of torch's `world` processes. Collective. It has a group of its own: an update
    waits while the processes do other things."""
    import datetime

    import torch

    group = torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=7))

    def gather(value):
        values = [None] * world
        torch.distributed.all_gather_object(values, value, group=group)
        return values

    return gather


def _outcome(action):
    """What an action returns, and the code and text of what it raises."""
    try:
        return action(), None
    except Error as error:
        return None, (error.code, str(error))
    except Exception as error:
        return None, (70, f"{type(error).__name__}: {error}")


@dataclasses.dataclass
class _Wish:
    """What the engine's caller waits for: a version, None for whichever comes, and until when a job step may ask."""

    version: int | None
    until: float


class JointUpdate:
    """Acknowledges a job step's question as soon as there is one, in a thread of its own, which alone uses the export until
    wait() has returned. The first rank looks for it and tells the others."""

    def __init__(self, export, ranks, served, timeout, load=None):
        """`served` is the version that the memory holds, None when it is not known; `timeout` is how many seconds a job
        step that has been answered may take. `load` is called by wait() with the Update whose tensors come through a
        window, where any rank has one, and takes them all, on a rank without one when the version is there: in the caller's
        thread, as loaders need what an engine sets there or, as vLLM its configuration, for the process while it calls."""
        self._export = export
        self._ranks = ranks
        self._served = served
        self._timeout = timeout
        self._load = load
        self._wish = None
        self._pause = None  # entered when a version has been committed, or with a window is being written
        self._coming = None  # of an Update whose tensors are still to be loaded: it, or why there is none here
        self._result = None
        self._thread = threading.Thread(target=self._run, name="weightcast update", daemon=True)
        self._thread.start()

    def _run(self):
        self._result = _outcome(self._take)

    def _take(self):
        question = self._ranks.from_first(self._await_question)
        if question is None:
            return self._served
        pause = self._export.pause(question, self._timeout)
        own = _outcome(pause.__enter__)
        if own[1] is None:
            self._pause = pause
        if self._load is not None:
            # A rank without a window comes so far when the others have taken all out of theirs.
            self._coming = own
            return None
        return self._agree_on(own)

    def _take_landed(self, own):
        """Loads what comes; all ranks do, or none has a version."""
        failure = self._failure_of_load(own[0]) if own[1] is None else None
        return self._agree_on(own if failure is None else (None, failure))

    def _failure_of_load(self, update):
        """The code and text of why the loader has not taken all of an Update, None where it has. The memory may hold a part of
        it, unless the job step has said otherwise."""
        try:
            self._load(update)
            return None
        except Exception as error:
            pause, self._pause = self._pause, None
            # Before the others are heard, which wait for a job step that waits for this rank.
            said = _outcome(lambda: pause.__exit__(type(error), error, error.__traceback__))[1]
            if said is None:
                code, message = _outcome(lambda: _raise(error))[1]
                said = (code, message) if isinstance(error, Error) else (Invalid.CODE, f"no version is in memory: {message}")
            return said

    def _agree_on(self, own):
        """The version of the Update that all ranks have; none has one where one has none."""
        try:
            return self._ranks.together(lambda: _give_back(own).version)
        except Exception as error:  # of `gather`, too, when a rank has died
            self.abandon(error)
            if isinstance(error, Error) and any(self._ranks.all(lambda: own[1] is None)):
                # What was there is not there any more on the ranks that have been written.
                raise Invalid(Invalid.CODE, str(error)) from None
            raise

    def _await_question(self):
        """What a job step asks; None when the wished version is there already."""
        while True:
            wanted = self._export.wanted()
            if wanted is not None:
                return wanted
            wish = self._wish
            if wish is not None:
                if wish.version is not None and wish.version == self._served:
                    return None
                if time.monotonic() >= wish.until:
                    raise NoAnswer(
                        NoAnswer.CODE,
                        "no job step has asked in time; the weights are as they were; run weightcast trigger or sync beside this call",
                    )
            time.sleep(_LOOK)

    def wait(self, version, seconds):
        """The version that the memory of all ranks holds now; called again, the same. `seconds` is how long a job step may
        still take to ask. Raises what is said of Export.pause, on all ranks alike."""
        self._wish = _Wish(version, time.monotonic() + seconds)
        self._thread.join()
        own, self._coming = self._coming, None
        if own is not None:
            self._result = _outcome(lambda: self._take_landed(own))
        return _give_back(self._result)

    def cancel(self, seconds):
        """Ends the wait for a question. False when the thread still runs after so many seconds, in a job step's update."""
        self._wish = _Wish(None, time.monotonic())
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def use(self):
        """The engine uses the version."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.__exit__(None, None, None)

    def abandon(self, error):
        """The engine cannot use the version: it is invalid until another update."""
        pause, self._pause = self._pause, None
        if pause is not None:
            with contextlib.suppress(Error):
                pause.__exit__(type(error), error, None)


def _raise(error):
    raise error


def _give_back(outcome):
    value, failure = outcome
    if failure is not None:
        raise error_of(*failure)
    return value
