"""Headers of checkpoints: of safetensors files, and of those that only have a list of their tensors."""

import contextlib
import json
import os
import pathlib
import tempfile

from ._library import Error, open_regular
from ._tensors import Memory

_LIST = "tensors.json"
_LONGEST = 100_000_000  # bytes of a header, as safetensors limits it
# Of an element, by the type as safetensors names it.
BITS = {"F4": 4, "BOOL": 8, "I8": 8, "U8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
         "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}  # fmt: skip


@contextlib.contextmanager
def folder_with_headers(model):
    """The folder `model` itself where it has a checkpoint, or a temporary one with its config.json and what its tensors.json
    lists, [{"name", "dtype", "shape"}, …], in a file of holes. Raises Error."""
    model = pathlib.Path(model)
    if not model.is_dir():
        raise Error(74, f"{model} is no folder; give the one with config.json and the checkpoint")
    if not (model / "config.json").is_file():
        raise Error(74, f"{model} has no config.json; give the folder of a model")
    if any(model.glob("*.safetensors")):
        yield model
        return
    if not (model / _LIST).is_file():
        raise Error(74, f"{model} has neither *.safetensors nor {_LIST}; its tensors' names and shapes are needed")
    header = _header(model / _LIST)
    with tempfile.TemporaryDirectory(prefix="weightcast-") as folder:
        for path in model.iterdir():
            if path.suffix in (".json", ".py") and path.name not in (_LIST, "model.safetensors.index.json"):
                os.symlink(path.resolve(), pathlib.Path(folder, path.name))
        end = max((of["data_offsets"][1] for of in header.values()), default=0)
        text = json.dumps(header, separators=(",", ":")).encode()
        try:
            with open(pathlib.Path(folder, "model.safetensors"), "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + end)
        except OSError as error:
            raise Error(74, f"no file of {end} bytes without contents in {folder}: {error.strerror}; set TMPDIR") from None
        yield pathlib.Path(folder)


def of_file(path):
    """(name, dtype, shape) of every tensor of a safetensors file, by name, as safetensors lists them. No byte of a tensor is
    read or mapped. Raises Error."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= _LONGEST else b""
    except OSError as error:
        raise Error(74, f"{path} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [(name, of["dtype"], of["shape"]) for name, of in sorted(header.items())]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise Error(65, f"{path} is no safetensors file, or is cut off; copy it anew") from None
    for name, dtype, shape in entries:
        if not _is_entry(name, dtype, shape):
            raise Error(65, f"{path}: tensor {name!r} has no dtype and shape that safetensors knows; copy the file anew")
    return entries


def of_folder(folder):
    """The same of all files of a checkpoint, as Memory by name. Raises Error."""
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    try:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        paths = [folder / file for file in sorted(files)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(
            65, f"{folder}: the names of the model's tensors cannot be read ({error}); serve a folder with the model's safetensors files"
        ) from None
    return {name: Memory(dtype, shape) for path in paths for name, dtype, shape in of_file(path)}


def _is_entry(name, dtype, shape):
    extents = isinstance(shape, list) and all(type(extent) is int and 0 <= extent < 1 << 40 for extent in shape)
    return isinstance(name, str) and name != "" and isinstance(dtype, str) and dtype in BITS and extents


def _header(path):
    """The header of a safetensors file, from a list of tensors."""
    try:
        listed = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise Error(65, f"{path} is no JSON file; it must list name, dtype and shape of each tensor") from None
    except OSError as error:
        raise Error(74, f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(listed, list):
        raise Error(65, f"{path} is no list; it must list name, dtype and shape of each tensor")
    header, end = {}, 0
    for index, of in enumerate(listed):
        name, dtype, shape = (of.get(key) for key in ("name", "dtype", "shape")) if isinstance(of, dict) else (None,) * 3
        if not _is_entry(name, dtype, shape):
            raise Error(65, f"{path}: entry {index} has not a name, a dtype of safetensors and a shape of whole numbers")
        if name in header:
            raise Error(65, f"{path}: entry {index} has the name of another one, {name!r}")
        bits = BITS[dtype]
        for extent in shape:
            bits *= extent
        if end + bits // 8 >= 1 << 62:
            raise Error(65, f"{path}: entry {index}, {name!r}, is larger than a file can be")
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bits // 8]}
        end += bits // 8
    return header
