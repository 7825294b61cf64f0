"""Maps of vLLM's loader that another program has found by loading numbered elements, and what a landing map says otherwise.

A file vllm_map_tp2_rank0.json has a parameter's rows in terms of the checkpoint, [what, how many rows] one after the other, of a
vector its elements, of experts such a list for each. What is a name with a box, such as "T[0:20][:, 4:8]" or, of the expert
3 of a tensor and transposed, "T[3].T[0:20]"; or "zero", "nan" where nothing is written, "?" for what is not from the checkpoint.
"""

import gzip
import json
import re

from weightcast import _landing

_BOX = re.compile(r"(?P<name>.+?)(\[(?P<expert>\d+)\])?(?P<turned>\.T)?\[(?P<first>\d+):(?P<end>\d+)\](\[:, (?P<left>\d+):(?P<right>\d+)\])?")
_DTYPES = {"bfloat16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}


def files(folder, tag, ranks):
    """The maps of all ranks, as they were read; none where that layout has none."""
    names = [f"vllm_map_{tag}.json" if ranks == 1 else f"vllm_map_{tag}_rank{rank}.json" for rank in range(ranks)]
    found = []
    for name in names:
        if (folder / name).exists():
            found.append(json.loads((folder / name).read_text()))
        elif (folder / f"{name}.gz").exists():
            found.append(json.loads(gzip.decompress((folder / f"{name}.gz").read_bytes())))
    return found


def differences(learned, maps):
    """Lines that say where a learned map and the other program's, one for each rank, do not agree."""
    numbers = {of["name"]: index for index, of in enumerate(learned["tensors"])}
    ranks, mine = [], []
    for rank, found in zip(learned["ranks"], maps, strict=True):
        entries = []
        for name, of in found.items():
            entry = {"name": name, "dtype": _DTYPES[of["dtype"]], "shape": of["shape"], "parts": [], "turned": [], "zero": []}
            _, columns = _landing.matrix(of["shape"])
            rows = 0
            for what, count in _flat(of["rows"]):
                _add(entry, what, rows, count, columns, learned["tensors"], numbers)
                rows += count
            if entry["parts"] or entry["turned"] or entry["zero"]:
                entries.append(entry)
        ranks.append({"parameters": entries})
        # Some are buffers.
        mine.append({"parameters": [of for of in rank["parameters"] if of["name"] in found and _has_boxes(of)]})
    same = {"layout": learned["layout"], "tensors": learned["tensors"]}
    return _landing.differences({**same, "ranks": mine}, {**same, "ranks": ranks})


def _has_boxes(parameter):
    return any(name in parameter for name in ("parts", "turned", "zero"))


def _flat(rows):
    if len(rows) == 2 and isinstance(rows[0], str):
        yield rows
    else:
        for of in rows:
            yield from _flat(of)


def _add(entry, what, row, count, columns, tensors, numbers):
    vector = len(entry["shape"]) < 2
    if what in ("nan", "?"):
        return
    if what == "zero":
        entry["zero"].append([0, 1, row, count] if vector else [row, count, 0, columns])
        return
    box = _BOX.fullmatch(what)
    number = numbers[box["name"]]
    shape = tensors[number]["shape"]
    first, end = int(box["first"]), int(box["end"])
    if len(shape) < 2:
        entry["parts"].append([number, 0, 1, first, count, 0, row])
        return
    start = int(box["expert"] or 0) * shape[-2]
    if box["turned"]:
        left, right = int(box["left"] or 0), int(box["right"] or shape[-2])
        entry["turned"].append([number, start + left, right - left, first, end - first, row, 0])
    else:
        left, right = int(box["left"] or 0), int(box["right"] or shape[-1])
        entry["parts"].append([number, start + first, end - first, left, right - left, row, 0])
