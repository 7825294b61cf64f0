"""Tags: values that say which element they are, in the place of a tensor's own.

Elements of all tensors of all ranks are counted through. A pass fills each with one digit of its number, so that after
enough passes what comes out of a program says where each of its elements came from:

    number 70000 in bfloat16, whose whole numbers are exact up to 256: 70000 = 1 * 256² + 17 * 256 + 112, so the passes fill
    113, 18 and 2, each digit and 1: a zero is nobody's

A last pass fills with marks, any bits of the type that the number leads to. Only what was moved and not computed with has
them still.
"""

import signal
import threading

import torch

from . import _tensors

CHUNK = 1 << 18  # the most elements that are looked at at once

# Exponent and mantissa bits of floating types.
_FLOATS = {
    torch.float64: (11, 52),
    torch.float32: (8, 23),
    torch.float16: (5, 10),
    torch.bfloat16: (8, 7),
    torch.float8_e4m3fn: (4, 3),
    torch.float8_e5m2: (5, 2),
}
_INTEGERS = {torch.int8: 7, torch.uint8: 8, torch.int16: 15, torch.int32: 31, torch.int64: 62}
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def takes(dtype):
    """Whether tensors of that type can be tagged."""
    return dtype in _FLOATS or dtype in _INTEGERS


def digit_bits(dtypes):
    """The bits of a digit that all these types have room for."""
    room = [_FLOATS[of][1] + 1 if of in _FLOATS else _INTEGERS[of] - 1 for of in dtypes]
    return min([*room, 24])  # float32 is what digits are read as


class Digits:
    """Tags of one pass: digit number `place` of `bits` bits, the lowest first, and 1."""

    def __init__(self, place, bits):
        self._step = 1 << (bits * place)
        self._mask = (1 << bits) - 1
        self._tables = {}

    def of(self, first, count, dtype, device):
        """The tags of at most CHUNK elements that follow one another, `first` the number of the first."""
        if self._step == 1 and self._mask < CHUNK:  # the same over and over
            if (dtype, device) not in self._tables:
                self._tables[dtype, device] = self._values(0, CHUNK + self._mask, device).to(dtype)
            return self._tables[dtype, device][first & self._mask :][:count]
        before, last = first // self._step, (first + count - 1) // self._step
        values = self._values(before, last + 1 - before, device).to(dtype)
        if self._step == 1:
            return values
        if self._step < count:
            return values.view(-1, 1).expand(-1, self._step).reshape(-1)[first - before * self._step :][:count]
        tags = values[:1].expand(count).contiguous()
        if last > before:
            tags[last * self._step - first :] = values[1]
        return tags

    def _values(self, first, count, device):
        return (torch.arange(first, first + count, device=device) & self._mask) + 1


class Marks:
    """What the last pass fills."""

    _PERIOD = CHUNK + 29  # not the size of anything

    def __init__(self):
        self._tables = {}

    def of(self, first, count, dtype, device):
        """As Digits.of."""
        return self._table(dtype, device)[first % self._PERIOD :][:count]

    def at(self, numbers, dtype):
        """The marks of any elements."""
        return self._table(dtype, numbers.device)[numbers % self._PERIOD]

    def _table(self, dtype, device):
        if (dtype, device) not in self._tables:
            numbers = torch.arange(CHUNK + self._PERIOD, device=device) % self._PERIOD
            self._tables[dtype, device] = _marks(numbers, dtype)
        return self._tables[dtype, device]


def digits_of(tags, bits):
    """The digits that tags hold; None where one is no tag."""
    found = tags.to(torch.int32)
    lowest, highest = found.aminmax()
    if lowest < 1 or highest > 1 << bits or not torch.equal(bits_of(found.to(tags.dtype)), bits_of(tags)):
        return None
    return found - 1


def _marks(numbers, dtype):
    """Any finite value that the number leads to, of both signs, of eight exponents, with any mantissa."""
    mixed = _mixed(numbers)
    if dtype in _INTEGERS:
        return mixed.to(dtype)
    exponent, mantissa = _FLOATS[dtype]
    field = (1 << (exponent - 1)) - 5 + ((mixed >> 53) & 7)
    bits = (((mixed >> 56) & 1) << (exponent + mantissa)) | (field << mantissa) | (mixed & ((1 << mantissa) - 1))
    return bits.to(_SAME_SIZE[dtype.itemsize]).view(dtype)


def bits_of(values):
    """The bits of values, as integers of their size."""
    return values.contiguous().view(_SAME_SIZE[values.element_size()])


def digest(tensor):
    """A number that tensors of other bits do not have, for all that chance does."""
    flat = tensor.detach().reshape(-1)
    total = 0
    for start in range(0, flat.numel(), CHUNK):
        bits = bits_of(flat[start : start + CHUNK]).to(torch.int64)
        numbers = torch.arange(start, start + bits.numel(), device=bits.device)
        total += int((_mixed(bits + 1) * (_mixed(numbers) | 1)).sum())
    return total & (1 << 64) - 1


def _mixed(numbers):
    """Any 64 bits that a number leads to."""
    mixed = numbers * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47
    return mixed ^ (mixed >> 32)


def with_tags(tensors, body):
    """What body(fill) returns, while `tensors`, {name: (tensor, number of its first element)}, hold tags; afterwards they hold
    what they held before, bit for bit, whatever is raised. fill(values) fills them with what `values` makes of the numbers of
    elements and a type. A copy of the tensors is kept in the host's memory meanwhile."""
    tagged = _Tagged(tensors)
    with tagged.interrupts, torch.no_grad():
        try:
            try:
                return body(tagged.fill)
            finally:
                tagged.restore()
        finally:  # an interrupt may have come before the line above; a second one waits
            tagged.restore()


class _Tagged:
    def __init__(self, tensors):
        self.interrupts = _Interrupts()
        self._tensors = [(_tensors.local(tensor).detach(), first) for tensor, first in tensors.values()]
        self._copies = [tensor.to("cpu", copy=True) for tensor, _ in self._tensors]
        self._changed = False

    def fill(self, tags):
        self._changed = True
        for tensor, first in self._tensors:
            filled = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            flat = filled.view(-1)
            for start in range(0, flat.numel(), CHUNK):
                part = flat[start : start + CHUNK]
                part.copy_(tags.of(first + start, part.numel(), part.dtype, part.device))
            if filled is not tensor:
                tensor.copy_(filled)

    def restore(self):
        self.interrupts.wait()
        if self._changed:
            for (tensor, _), copy in zip(self._tensors, self._copies, strict=True):
                tensor.copy_(copy)
            self._changed = False


class _Interrupts:
    """SIGINT while tensors hold tags: the first one interrupts as ever, what comes while they are put back waits."""

    def __init__(self):
        self._waits = False
        self._pending = None
        self._before = None

    def wait(self):
        """From now on none interrupts."""
        self._waits = True

    def _handle(self, number, frame):
        if self._waits:
            self._pending = frame
            return
        self._waits = True
        self._before(number, frame)
        self._waits = False  # it was no interrupt to that handler

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere nothing interrupts
            before = signal.getsignal(signal.SIGINT)
            if callable(before):
                self._before = before
                signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_):
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        if self._pending is not None:
            self._before(signal.SIGINT, self._pending)
