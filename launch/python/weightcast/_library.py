"""The client library's C functions."""

import ctypes
import ctypes.util
import errno
import numbers
import operator
import os
import pathlib
import re
import stat

from ._version import VERSION

DTYPE_BYTES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


def printable(text):
    """The text on one line, as a terminal may have it: what comes from elsewhere moves no cursor and hides nothing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def excerpt(text, most=400):
    """The beginning and the end of a text that is longer than that."""
    return text if len(text) <= most else f"{text[: most * 3 // 4]} … {text[-most // 4 :]}"


def shown(value):
    """A value that was given, for a line: what it says of itself, cut where that is long; its kind where that fails."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__qualname__}>"
    return excerpt(text, 200)


class Error(RuntimeError):
    """What a call refused, in one line, with the code that a program of weightcast would end with."""

    def __init__(self, code, message):
        super().__init__(printable(message))
        self.code = code


class Invalid(Error):
    """The memory holds no whole version."""

    CODE = 65


class NoAnswer(Error):
    """Nothing came in time."""

    CODE = 76


class Stale(Error):
    """A reference to weights that have another form or place by now."""

    CODE = 66


def error_of(code, message):
    """The error that has that code."""
    return {Invalid.CODE: Invalid, Stale.CODE: Stale, NoAnswer.CODE: NoAnswer}.get(code, Error)(code, message)


_FILE = "libweightcast.so.1"


def _load():
    """The library that WEIGHTCAST_CLIENT names, else the one beside this package, else the system's."""
    named = os.environ.get("WEIGHTCAST_CLIENT")
    beside = pathlib.Path(__file__).with_name(_FILE)
    try:
        return ctypes.CDLL(named or (str(beside) if beside.exists() else _FILE))
    except OSError as error:
        raise ImportError(f"{error}; set WEIGHTCAST_CLIENT to the path of {_FILE}") from error


_library = _load()
_POINTER = ctypes.c_void_p
_SIGNATURES = {
    "weightcast_open": [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_POINTER)],
    "weightcast_add_segment": [_POINTER, ctypes.c_int64, ctypes.POINTER(_POINTER), ctypes.POINTER(ctypes.c_int)],
    "weightcast_add_window": [_POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(_POINTER), ctypes.POINTER(ctypes.c_int)],
    "weightcast_add_gpu_memory": [_POINTER, _POINTER, ctypes.c_int64, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_add_entry": [_POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64),
                             ctypes.POINTER(ctypes.c_int64), ctypes.c_int, ctypes.c_int64],
    "weightcast_set_box": [_POINTER, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_add_alias": [_POINTER, ctypes.c_char_p, ctypes.c_char_p],
    "weightcast_add_experts": [_POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64],
    "weightcast_place_experts": [_POINTER, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)],
    "weightcast_placed_experts": [_POINTER, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_refer": [_POINTER, ctypes.c_char_p, _POINTER],
    "weightcast_resolve": [_POINTER, _POINTER, ctypes.POINTER(_POINTER), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_publish": [_POINTER],
    "weightcast_wait_in_pieces": [_POINTER, ctypes.c_double],
    "weightcast_abandon": [_POINTER, ctypes.c_char_p],
    "weightcast_keep_memory": [_POINTER, ctypes.c_int],
    "weightcast_close": [_POINTER, ctypes.c_double],
    "weightcast_serve": [_POINTER, ctypes.c_int64],
    "weightcast_wanted": [_POINTER, ctypes.POINTER(ctypes.c_int64)],
    "weightcast_question": [_POINTER],
    "weightcast_pause_for": [_POINTER, ctypes.c_uint64, ctypes.c_double, ctypes.POINTER(ctypes.c_int64)],
    "weightcast_landed": [_POINTER, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.POINTER(ctypes.c_int)],
    "weightcast_resume": [_POINTER],
    "weightcast_decline": [_POINTER, ctypes.c_char_p],
    "weightcast_invalidate": [_POINTER, ctypes.c_char_p],
    "weightcast_offer": [_POINTER, ctypes.c_int64, ctypes.c_double],
    "weightcast_settle": [_POINTER, ctypes.c_double],
    "weightcast_last_error": [],
}  # fmt: skip


def _require_own_version():
    """Functions of another version may take other arguments."""
    if not hasattr(_library, "weightcast_version"):
        theirs = "an older weightcast"
    else:
        _library.weightcast_version.restype = ctypes.c_char_p
        theirs = "weightcast " + _library.weightcast_version().decode(errors="replace")
    if theirs != "weightcast " + VERSION:
        raise ImportError(
            f"{_library._name} is {theirs}, and this package {VERSION}; install both anew, or set WEIGHTCAST_CLIENT to the path of {_FILE} {VERSION}"
        )


_require_own_version()
for _name, _arguments in _SIGNATURES.items():
    getattr(_library, _name).argtypes = _arguments
_library.munmap.argtypes = [_POINTER, ctypes.c_size_t]
_library.weightcast_last_error.restype = ctypes.c_char_p
_library.weightcast_question.restype = ctypes.c_uint64


def _last_error():
    """What the last failed call has said, with the functions by the names that they have here."""
    said = _library.weightcast_last_error().decode(errors="replace")
    return re.sub(r"\bweightcast_(landed|offer|pause|publish|refer|resume|serve|settle|wanted)\b", r"\1()", said)


def check(code):
    """Raises what a call's code says."""
    if code != 0:
        raise error_of(code, _last_error())


def call(name, *arguments):
    check(getattr(_library, name)(*arguments))


_PENDING = 1  # the code of a call that is to be made again
_PIECE = 0.1  # seconds


def wait(name, handle, *arguments):
    """Calls what waits, piece by piece: between two of them the handlers of signals run."""
    function = getattr(_library, name)
    code = _PENDING
    while code == _PENDING:
        code = function(handle, *arguments)
    check(code)


def abandon(handle, cause):
    """Ends what a wait has begun. Returns what is left to say of it, None when nothing is."""
    code = _library.weightcast_abandon(handle, cause)
    return None if code == 0 else _last_error()


# What C would take otherwise than it was meant: a number that does not fit is cut there, and a text ends at its first NUL.


def whole(value, what, most=2**63 - 1):
    """The number, where it is a whole one from 0 to `most`; `what` it is of, for the line."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise Error(64, f"{what} {shown(value)}; give a whole number from 0 to {most}")
    return number


def seconds(value):
    """How long a call may wait."""
    most = 1e9
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= most:
        raise Error(64, f"a timeout of {shown(value)}; give a number of seconds from 0 to {most:g}")
    return float(value)


def text(value, what):
    """The bytes of a text that goes into a manifest."""
    try:
        encoded = value.encode()
    except (AttributeError, UnicodeError):
        raise Error(64, f"{what} {shown(value)} is no text that UTF-8 has; give a str") from None
    if b"\0" in encoded:
        raise Error(64, f"{what} {shown(value)} has a NUL in it; leave that out")
    return encoded


def reason(value):
    """The bytes of a text for people, whatever is in it."""
    text = value if isinstance(value, str) else words_of(value) if isinstance(value, BaseException) else shown(value)
    return text.replace("\0", " ").encode(errors="replace")


def words_of(error):
    """What an exception says of itself; its kind, where that is nothing."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def path(folder):
    """The name of a folder; `live:` in front, as job steps have it, is no part of it."""
    try:
        name = os.fsdecode(folder).removeprefix("live:")
        os.fsencode(name)
    except (TypeError, UnicodeError):
        raise Error(64, f"folder {shown(folder)}; name one, as str or os.PathLike") from None
    if "\0" in name:
        raise Error(64, f"folder {shown(name)} has a NUL in it; name another")
    if not name:
        raise Error(64, "the folder's name is empty; name one")
    return name


def open_regular(path, flags):
    """For open(): a pipe, which would be waited for, is refused as what the system refuses is."""
    file = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def open_export(folder, role, rank, ranks, layout):
    handle = _POINTER()
    most = 2**31 - 1
    call("weightcast_open", os.fsencode(path(folder)), text(role, "role"), whole(rank, "rank", most), whole(ranks, "ranks", most),
         None if layout is None or (isinstance(layout, str) and not layout) else text(layout, "layout"), ctypes.byref(handle))  # fmt: skip
    call("weightcast_wait_in_pieces", handle, _PIECE)
    return handle


def add_segment(handle, size):
    address = _POINTER()
    number = ctypes.c_int()
    size = whole(size, "tensors of so many bytes:")
    call("weightcast_add_segment", handle, size, ctypes.byref(address), ctypes.byref(number))
    return Mapping(address.value, size, number.value)


def add_window(handle, size, limit):
    address = _POINTER()
    number = ctypes.c_int()
    size = whole(size, "tensors of so many bytes:")
    limit = whole(limit, "a window that so many bytes may be in at once:")
    call("weightcast_add_window", handle, size, limit, ctypes.byref(address), ctypes.byref(number))
    return Mapping(address.value, size, number.value)


def add_gpu_memory(handle, address, size):
    number = ctypes.c_int()
    offset = ctypes.c_int64()
    call("weightcast_add_gpu_memory", handle, address, size, ctypes.byref(number), ctypes.byref(offset))
    return number.value, offset.value


def add_entry(handle, name, dtype, shape, strides, segment, offset):
    """`strides` in elements; None where there are no gaps."""
    list_of = ctypes.c_int64 * max(len(shape), 1)
    steps = None if strides is None else list_of(*strides)
    call("weightcast_add_entry", handle, text(name, "tensor"), text(dtype, "dtype"), len(shape), list_of(*shape), steps,
         segment, offset)  # fmt: skip


def set_box(handle, name, whole, start):
    list_of = ctypes.c_int64 * max(len(whole), 1)
    call("weightcast_set_box", handle, text(name, "tensor"), list_of(*whole), list_of(*start))


def add_alias(handle, name, alias):
    call("weightcast_add_alias", handle, text(name, "tensor"), text(alias, "tensor"))


class Mapping:
    """The memory of a segment: `size` bytes at `address`. It lives as long as its views, also behind the export's end."""

    def __init__(self, address, size, segment):
        self.address = address
        self.size = size
        self.segment = segment
        self._kept = False

    def view(self, offset, size):
        """`size` writable bytes from `offset` on."""
        place = (ctypes.c_char * size).from_address(self.address + offset)
        place.mapping = self  # whoever has a view of the bytes, a tensor of torch for example, has the place
        return memoryview(place).cast("B")

    def keep(self, handle):
        """Leaves the memory to its views when the export is closed."""
        call("weightcast_keep_memory", handle, self.segment)
        self._kept = True

    def __del__(self, munmap=_library.munmap):
        if self._kept:
            munmap(self.address, self.size)


def wanted(handle):
    """The version that is asked for and the question's number; None when nobody asks. Of two questions that follow one
    another the number is the earlier one's, so that it is over by the time it is answered."""
    version = ctypes.c_int64()
    question = _library.weightcast_question(handle)
    answer = _library.weightcast_wanted(handle, ctypes.byref(version))
    if answer < 0:
        check(-answer)
    return (version.value, question) if answer == 1 and question != 0 else None


def pause(handle, question, timeout):
    version = ctypes.c_int64()
    wait("weightcast_pause_for", handle, question, timeout, ctypes.byref(version))
    return version.value


def landed(handle, most):
    """The numbers of entries of the window that are whole now, `most` at most; none when all have come."""
    numbers = (ctypes.c_int * most)()
    count = ctypes.c_int()
    wait("weightcast_landed", handle, numbers, most, ctypes.byref(count))
    return numbers[: count.value]


def close(handle, timeout):
    try:
        wait("weightcast_close", handle, timeout)
    except Error:
        raise
    except BaseException:
        close_quietly(handle)
        raise


def close_quietly(handle):
    """Closes at once, whatever is said."""
    _library.weightcast_abandon(handle, None)
    _library.weightcast_close(handle, 0.0)
