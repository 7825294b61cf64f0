"""What tensors a model's checkpoint has, from the headers of its files."""

import json
import pathlib
import struct

from ._library import Error
from ._tensors import Memory

_MOST_BYTES = 100 << 20  # of a header, as safetensors has it


def tensors_of(folder):
    """The tensors of a folder of safetensors files as Memory by name. Raises Error naming a file that is none."""
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        tensors = {}
        for name in sorted(names):
            tensors.update(_header_of(folder / name))
        return tensors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Error(
            65, f"{folder}: the names of the model's tensors cannot be read ({error}); serve a folder with the model's safetensors files"
        ) from None


def _header_of(path):
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _MOST_BYTES:
            raise ValueError(f"{path.name} is no file of safetensors")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: Memory(tensor["dtype"], tensor["shape"]) for name, tensor in header.items()}
