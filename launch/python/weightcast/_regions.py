"""Strided regions of a storage: which elements several of them share, as regions again and never element by element.

A region is a place `at` and dims of (size, step), all in elements of the storage. Two regions are compared in the digits of their
elements' places: with the steps 1 and 80 the place 165 is the digits 5 and 2, and a region is a box of digits. So all steps
that meet in one storage must divide one another; others raise Mixed.
"""

import typing


class Mixed(Exception):
    """Steps that do not divide one another, such as 80 and 48 in one storage."""


class Piece(typing.NamedTuple):
    """The elements of a region, and where they come from: dims are (size, step, step in the source), `source_at` is the
    first one's place in the source. A source that is no place, such as a constant, has any steps."""

    at: int
    dims: tuple
    source: object
    source_at: int

    def end(self):
        """The place behind its last element."""
        return self.at + 1 + sum((dim[0] - 1) * dim[1] for dim in self.dims)


def piece(at, dims, source, source_at):
    """A Piece whose dims are as few as they can be, the smallest step first."""
    joined = []
    for size, step, source_step in sorted((dim for dim in dims if dim[0] != 1), key=lambda dim: dim[1:]):
        if joined:
            inner, inner_step, inner_source = joined[-1]
            if step == inner * inner_step and source_step == inner * inner_source:
                joined[-1] = (inner * size, inner_step, inner_source)
                continue
        joined.append((size, step, source_step))
    return Piece(at, tuple(joined), source, source_at)


def read(pieces, at, dims, to=0):
    """What a region of a storage that has these pieces brings where it is copied: pieces of the target. `dims` are (size,
    step, step in the target); a step may be 0 where one element is read for many; `to` is the first one's place there."""
    found = []
    repeated = tuple((size, step, 0) for size, from_step, step in dims if from_step == 0 and size > 1)
    dims = tuple(dim for dim in dims if dim[0] > 1 and dim[1] > 0)
    end = at + 1 + sum((size - 1) * step for size, step, _ in dims)
    for stored in pieces:
        if stored.at >= end or stored.end() <= at:
            continue
        radices = _radices(stored.dims, dims)
        wanted = list(_cells(at, dims, to, radices))
        for cell, source_at in _cells(stored.at, stored.dims, stored.source_at, radices):
            for other, target in wanted:
                shared = _shared(cell, other)
                if shared is None:
                    continue
                source = source_at + sum(
                    (start - mine[0]) * mine[2] for (start, _), mine in zip(shared, cell, strict=True)
                )
                place = target + sum(
                    (start - mine[0]) * mine[2] for (start, _), mine in zip(shared, other, strict=True)
                )
                taken = [(size, theirs[2], mine[2]) for (_, size), mine, theirs in zip(shared, cell, other, strict=True)]
                found.append(piece(place, (*taken, *repeated), stored.source, source))
    return found


def without(pieces, at, dims):
    """The pieces less the elements of a region, whose dims are (size, step, anything)."""
    left = []
    dims = tuple(dim for dim in dims if dim[0] > 1)
    end = at + 1 + sum((dim[0] - 1) * dim[1] for dim in dims)
    for stored in pieces:
        if stored.at >= end or stored.end() <= at:
            left.append(stored)
            continue
        radices = _radices(stored.dims, dims)
        removed = [cell for cell, _ in _cells(at, dims, 0, radices)]
        kept = list(_cells(stored.at, stored.dims, stored.source_at, radices))
        touched = False
        for other in removed:
            remaining = []
            for cell, source_at in kept:
                shared = _shared(cell, other)
                if shared is None:
                    remaining.append((cell, source_at))
                else:
                    touched = True
                    remaining.extend(_less(cell, source_at, shared))
            kept = remaining
        if not touched:
            left.append(stored)
            continue
        for cell, source_at in kept:
            place = sum(start * radix for (start, _, _), radix in zip(cell, radices, strict=True))
            taken = [(size, radix, step) for (_, size, step), radix in zip(cell, radices, strict=True)]
            left.append(piece(place, taken, stored.source, source_at))
    return left


def cut(dims, at, source_at, step):
    """The same elements, so that each dim lies within `step` places or counts whole ones of them: yields (at, dims,
    source_at). For matrices of `step` columns: within a row, or over rows."""
    radices = _radices(dims, ((2, step, 0),) if step > 1 else ())
    for cell, source in _cells(at, dims, source_at, radices):
        place = sum(start * radix for (start, _, _), radix in zip(cell, radices, strict=True))
        taken = [(size, radix, of) for (_, size, of), radix in zip(cell, radices, strict=True) if size > 1]
        yield place, taken, source


def _radices(*regions):
    steps = sorted({1, *(dim[1] for dims in regions for dim in dims)})
    for inner, outer in zip(steps, steps[1:]):
        if outer % inner:
            raise Mixed(f"steps of {inner} and {outer}")
    return steps


def _cells(at, dims, source_at, radices):
    """A region as boxes of digits, smallest first: ([(first digit, how many, step in the source)], place in the source)."""
    return _cells_from(0, at, [dim for dim in dims if dim[0] > 1], source_at, radices)


def _cells_from(level, units, dims, source_at, radices):
    own = sorted((dim for dim in dims if dim[1] == radices[level]), reverse=True)
    others = [dim for dim in dims if dim[1] != radices[level]]
    if len(own) > 1:  # they overlap, or count what a smaller dim carried over
        size, step, source_step = own.pop()
        for index in range(size):
            yield from _cells_from(level, units + index, own + others, source_at + index * source_step, radices)
        return
    size, _, step = own[0] if own else (1, 0, 0)
    if level + 1 == len(radices):
        yield [(units, size, step)], source_at
        return
    base = radices[level + 1] // radices[level]

    def part(first, count, carried, more, source):
        for cell, place in _cells_from(level + 1, carried, others + more, source, radices):
            yield [(first, count, step), *cell], place

    low, high = units % base, units // base
    if low + size <= base:
        yield from part(low, size, high, [], source_at)
        return
    head = base - low if low else 0
    if head:
        yield from part(low, head, high, [], source_at)
        high += 1
    whole, tail = divmod(size - head, base)
    if whole:
        more = [(whole, radices[level + 1], step * base)] if whole > 1 else []
        yield from part(0, base, high, more, source_at + head * step)
    if tail:
        yield from part(0, tail, high + whole, [], source_at + (head + whole * base) * step)


def _shared(cell, other):
    """[(first digit, how many)] of both, or None."""
    shared = []
    for (start, size, _), (other_start, other_size, _) in zip(cell, other, strict=True):
        first = max(start, other_start)
        count = min(start + size, other_start + other_size) - first
        if count <= 0:
            return None
        shared.append((first, count))
    return shared


def _less(cell, source_at, shared):
    """What is left of a cell without a part of it, as cells."""
    rest = list(cell)
    for level, (first, count) in enumerate(shared):
        start, size, step = rest[level]
        for begin, end in ((start, first), (first + count, start + size)):
            if begin < end:
                yield [*rest[:level], (begin, end - begin, step), *rest[level + 1 :]], source_at + (begin - start) * step
        source_at += (first - start) * step
        rest[level] = (first, count, step)
