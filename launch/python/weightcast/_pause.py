"""An engine's stop for an update."""

import contextlib
import dataclasses
import typing

from . import _library


@dataclasses.dataclass(frozen=True)
class Update:
    """What has been written, or is being: `version`, and the names of the tensors that may have changed."""

    version: int
    changed: tuple
    _landed: typing.Callable = dataclasses.field(default=None, repr=False, compare=False)

    def landed(self, most=1):
        """Of an engine with a window: each of its tensors, as name and tensor, as soon as it is whole and verified. A tensor
        is torch's where torch is loaded, otherwise a memoryview of its bytes. Both hold zeros once `most` have been taken
        and the next is asked for: copy what is to stay. It ends when the version is in the memory of every rank, and raises
        as Export.pause(); a body that does not take all of them leaves the engine invalid."""
        for batch in self.batches(most):
            yield from batch

    def batches(self, most=64):
        """The same as lists of up to `most`, whatever is there, for loaders that a call costs much."""
        if self._landed is None:
            raise _library.Error(64, "nothing comes through a window here; publish with window=")
        most = max(_library.whole(most, "tensors at a time:", 2**20), 1)
        while batch := self._landed(most):
            yield batch


class Pause:
    """Entered when the version that was asked for is in memory, with a window when the job step begins to write. Whatever ends
    it early, a signal's handler too, leaves an engine of which nothing untrue is said: it serves what it had, or it is
    invalid for that reason. Then no Error comes out of the body that would say of the memory that it holds what it held."""

    def __init__(self, export, question, timeout):
        self._export = export
        self._question = question
        self._timeout = timeout
        self._version = None
        self._answer = None  # how the update has ended, where Update.landed() has raised that

    def __enter__(self):
        self._export._prepare()
        try:
            self._export._entered = id(self)
            self._version = _library.pause(self._export._open(), self._question, self._timeout)
            return Update(self._version, self._export._names, self._landed if self._export._window else None)
        except BaseException as error:
            self._abandon("the engine was interrupted while it waited", error)
            raise

    def __exit__(self, kind, error, trace):
        what = f"the engine could not use version {self._version}"
        try:
            if error is None:
                _library.call("weightcast_resume", self._export._open())
                self._export._entered = None
            else:
                self._abandon(what, error)
        except BaseException as later:
            self._abandon(what, later)
            self._require_no_version(what, later)
            raise
        self._require_no_version(what, error)

    def _require_no_version(self, what, error):
        """Raises Invalid in place of another Error, behind which the memory would be taken to hold what it held."""
        said = isinstance(error, _library.Invalid) or error is self._answer
        if isinstance(error, _library.Error) and not said and self._export._handle is not None:
            raise _library.Invalid(_library.Invalid.CODE, f"no version is in memory: {what}: {error}") from error

    def _landed(self, most):
        try:
            return self._export._landed(most)
        except _library.Error as error:
            if error.code != 64:  # which the call itself is wrong with
                self._answer = error
            raise

    def __del__(self):
        # A signal's handler may raise before __exit__ has begun.
        if self._export._entered == id(self):
            with contextlib.suppress(Exception):
                self._abandon("the engine was interrupted", None)

    def _abandon(self, what, error):
        cause = what.encode()
        try:
            if error is not None:
                cause = _library.reason(f"{what}: {_library.words_of(error)}")
        finally:
            # The body may have closed the export.
            if self._export._handle is not None:
                _library.abandon(self._export._handle, cause)
            self._export._entered = None
