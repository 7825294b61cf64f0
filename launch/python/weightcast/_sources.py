"""What an element of a parameter is, when the loader has run."""

import typing


class Loaded(typing.NamedTuple):
    """An element of the checkpoint tensor of that number. `via` is what copies did beside copying, one after the other."""

    tensor: int
    via: tuple = ()


class Zero(typing.NamedTuple):
    """Zero, written by the loader."""


class Made(typing.NamedTuple):
    """What something else than a copy wrote, out of these checkpoint tensors."""

    how: str
    tensors: frozenset


class Before(typing.NamedTuple):
    """What was there before the loader ran."""


def tensors_of(source):
    """The numbers of the checkpoint tensors that an element is made of."""
    if isinstance(source, Loaded):
        return frozenset({source.tensor})
    return source.tensors if isinstance(source, Made) else frozenset()
