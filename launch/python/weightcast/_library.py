"""The client library's C functions."""

import ctypes
import ctypes.util
import os
import pathlib

DTYPE_BYTES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


class Error(RuntimeError):
    """What a call refused, with the code that a program of weightcast would end with."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Invalid(Error):
    """The memory holds no whole version."""


class NoAnswer(Error):
    """Nothing came in time."""


_ERRORS = {65: Invalid, 76: NoAnswer}
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
    "weightcast_add_gpu_memory": [_POINTER, _POINTER, ctypes.c_int64, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_add_entry": [_POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64),
                             ctypes.POINTER(ctypes.c_int64), ctypes.c_int, ctypes.c_int64],
    "weightcast_set_box": [_POINTER, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64)],
    "weightcast_add_alias": [_POINTER, ctypes.c_char_p, ctypes.c_char_p],
    "weightcast_publish": [_POINTER],
    "weightcast_close": [_POINTER, ctypes.c_double],
    "weightcast_serve": [_POINTER, ctypes.c_int64],
    "weightcast_wanted": [_POINTER, ctypes.POINTER(ctypes.c_int64)],
    "weightcast_question": [_POINTER],
    "weightcast_pause_for": [_POINTER, ctypes.c_uint64, ctypes.c_double, ctypes.POINTER(ctypes.c_int64)],
    "weightcast_resume": [_POINTER],
    "weightcast_decline": [_POINTER, ctypes.c_char_p],
    "weightcast_invalidate": [_POINTER, ctypes.c_char_p],
    "weightcast_offer": [_POINTER, ctypes.c_int64, ctypes.c_double],
    "weightcast_settle": [_POINTER, ctypes.c_double],
}  # fmt: skip
for _name, _arguments in _SIGNATURES.items():
    getattr(_library, _name).argtypes = _arguments
_library.weightcast_last_error.restype = ctypes.c_char_p
_library.weightcast_question.restype = ctypes.c_uint64


def check(code):
    """Raises what a call's code says."""
    if code != 0:
        raise _ERRORS.get(code, Error)(code, _library.weightcast_last_error().decode(errors="replace"))


def call(name, *arguments):
    check(getattr(_library, name)(*arguments))


def open_export(folder, role, rank, ranks, layout):
    handle = _POINTER()
    call("weightcast_open", os.fsencode(folder), role.encode(), rank, ranks, layout.encode() if layout else None,
         ctypes.byref(handle))  # fmt: skip
    return handle


def add_segment(handle, size):
    address = _POINTER()
    number = ctypes.c_int()
    call("weightcast_add_segment", handle, size, ctypes.byref(address), ctypes.byref(number))
    return address.value, number.value


def add_gpu_memory(handle, address, size):
    number = ctypes.c_int()
    offset = ctypes.c_int64()
    call("weightcast_add_gpu_memory", handle, address, size, ctypes.byref(number), ctypes.byref(offset))
    return number.value, offset.value


def add_entry(handle, name, dtype, shape, strides, segment, offset):
    """`strides` in elements; None where there are no gaps."""
    numbers = ctypes.c_int64 * max(len(shape), 1)
    steps = None if strides is None else numbers(*strides)
    call("weightcast_add_entry", handle, name.encode(), dtype.encode(), len(shape), numbers(*shape), steps, segment, offset)


def set_box(handle, name, whole, start):
    numbers = ctypes.c_int64 * max(len(whole), 1)
    call("weightcast_set_box", handle, name.encode(), numbers(*whole), numbers(*start))


def add_alias(handle, name, alias):
    call("weightcast_add_alias", handle, name.encode(), alias.encode())


def view(address, size):
    """Writable bytes at an address."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


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
    call("weightcast_pause_for", handle, question, float(timeout), ctypes.byref(version))
    return version.value


def close_quietly(handle):
    _library.weightcast_close(handle, 0.0)
