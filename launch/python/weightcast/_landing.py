"""Landing maps: which box of which checkpoint tensor lands where in the parameters of every rank of an engine.

Boxes are of matrix views: all dimensions but the last are rows; a vector is one row. As lists of numbers:

    [tensor, row, rows, col, cols, to_row, to_col]    of a parameter's `parts` and, transposed, of `turned`
    [row, rows, col, cols]                            of `zero`, and of what is `left`
"""

import hashlib
import itertools
import json
import os
import re
import tempfile

from . import _regions
from ._library import Error
from ._sources import Loaded, Zero, tensors_of

FORMAT = 1
_MOST_BOXES = 1 << 17  # of a parameter: others go through the engine's loader


def matrix(shape):
    """(rows, columns) of a tensor's matrix view."""
    columns = shape[-1] if len(shape) else 1
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return rows, columns


def network_order(name):
    """Sorts names of tensors: embedding, layers by number, norm and head."""
    numbered = re.search(r"\.\d+\.", name) is not None
    place = 1 if numbered else 0 if "embed" in name else 3 if "head" in name else 2
    return place, [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def key_of(made_for):
    """The SHA-256 of what a map was made for."""
    return hashlib.sha256(json.dumps(made_for, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tensors_digest(tensors):
    """The SHA-256 of a checkpoint's names, types and shapes."""
    lines = sorted(f"{of['name']} {of['dtype']} {list(of['shape'])}" for of in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Types that a job step converts as torch's copy does. All parameters that read a tensor must then be of one type.
_CONVERTED = {("BF16", "F32"), ("F32", "BF16")}


class Rank:
    """What is known of one rank. `tensors` are the checkpoint's, as a map has them; `asked` says by their numbers of which
    ones the loader has looked at elements, and how."""

    def __init__(self, tensors, asked=()):
        self._tensors = tensors
        self._reasons = dict(asked)  # why a checkpoint tensor goes through the loader, by its number
        self._parameters = []

    def add(self, name, dtype, shape, aliases, pieces, expert=None):
        """A parameter, and the pieces that come into it, in the order of its elements. Raises Error."""
        entry = {"name": name, "dtype": dtype, "shape": list(shape)}
        if expert is not None:
            entry["experts"] = expert
        if aliases:
            entry["aliases"] = list(aliases)
        parameter = _Parameter(entry, pieces)
        self._parameters.append(parameter)
        self._reasons.update(_reasons(pieces, dtype, self._tensors))
        try:
            boxes = _Boxes(pieces, matrix(shape)[1], self._tensors)
        except _regions.Mixed as error:
            self._reasons.update((number, str(error)) for number in parameter.tensors)
            return
        parameter.take(boxes)

    def json(self):
        """As a map has it."""
        self._close_reasons()
        through_loader = [of for of in self._parameters if self._reasons.keys() & of.tensors]
        lists = {
            "parameters": [of.listed(of not in through_loader) for of in self._parameters if of.is_fed()],
            "left": [entry for of in self._parameters if of not in through_loader for entry in of.left()],
            "loader": [
                {"tensor": number, "parameters": [of.entry["name"] for of in through_loader if number in of.tensors], "why": why}
                for number, why in sorted(self._reasons.items())
            ],
        }
        read = self._reasons.keys() | frozenset().union(*(of.tensors for of in self._parameters))
        lists["skipped"] = [number for number in range(len(self._tensors)) if number not in read]
        return {name: entries for name, entries in lists.items() if entries}

    def _close_reasons(self):
        """A tensor goes one way on a rank: with one of a parameter's all go through the loader, and so do all parameters that read
        them."""
        dtypes = {}
        for of in self._parameters:
            for number in of.tensors:
                dtypes.setdefault(number, set()).add(of.entry["dtype"])
        for number, found in dtypes.items():
            if len(found) > 1:
                self._reasons.setdefault(number, f"it becomes {' and '.join(sorted(found))}")
        more = True
        while more:
            more = False
            for of in self._parameters:
                if self._reasons.keys() & of.tensors and not of.tensors <= self._reasons.keys():
                    more = True
                    for number in of.tensors:
                        self._reasons.setdefault(number, f"{of.entry['name']}, which another tensor feeds, goes through the loader")


class _Parameter:
    """One of a rank's parameters: its entry of a map without boxes, and the numbers of the tensors that feed it."""

    def __init__(self, entry, pieces):
        self.entry = entry
        self.tensors = frozenset().union(*(tensors_of(of.source) for of in pieces))
        self._boxes = None
        self._missing = []

    def take(self, boxes):
        """Raises Error unless every element is in just one box."""
        rows, columns = matrix(self.entry["shape"])
        targets = boxes.targets()
        self._boxes = boxes
        self._missing = [] if _area(targets) == rows * columns else _rest(rows, columns, targets)
        require_once(self.entry["name"], rows, columns, targets + self._missing)

    def is_fed(self):
        """Whether the loader puts anything into it."""
        return bool(self.tensors or (self._boxes is not None and self._boxes.zero))

    def listed(self, with_boxes):
        """Its entry of a map's `parameters`."""
        lists = {kind: getattr(self._boxes, kind) for kind in ("parts", "turned", "zero")} if with_boxes else {}
        return {**self.entry, **{kind: boxes for kind, boxes in lists.items() if boxes}}

    def left(self):
        """Its entries of a map's `left`."""
        form = {key: self.entry[key] for key in ("name", "dtype", "shape")}
        if self._boxes is not None and self._boxes.before:
            yield {**form, "boxes": self._boxes.before, "why": "computed by the engine"}
        if self._missing:
            yield {**form, "boxes": self._missing, "why": "padding" if self.tensors else "no checkpoint tensor"}


def _reasons(pieces, dtype, tensors):
    """Why checkpoint tensors that feed a parameter of that type must go through the engine's loader, by their numbers."""
    reasons = {}
    for of in pieces:
        if isinstance(of.source, Loaded):
            types = tensors[of.source.tensor]["dtype"], dtype
            if len(of.source.via) > 1 or (of.source.via and types not in _CONVERTED):
                reasons[of.source.tensor] = ", then ".join(of.source.via)
        else:
            reasons.update((number, of.source.how) for number in tensors_of(of.source))
    return reasons


class _Boxes:
    """What comes into a parameter of `columns` columns, as boxes."""

    def __init__(self, pieces, columns, tensors):
        self.parts, self.turned, self.zero, self.before = [], [], [], []
        for of in pieces:
            if isinstance(of.source, Loaded):
                self._add(of, columns, matrix(tensors[of.source.tensor]["shape"])[1])
            else:
                boxes = self.zero if isinstance(of.source, Zero) else self.before
                for at, dims, _ in _regions.cut([(size, step, 0) for size, step, _ in of.dims], of.at, 0, columns):
                    boxes.extend(_plain(at, dims, columns))
            if sum(map(len, (self.parts, self.turned, self.zero, self.before))) > _MOST_BOXES:
                raise _regions.Mixed(f"more than {_MOST_BOXES} boxes")
        self.parts = _joined(self.parts, turned=False)
        self.turned = _joined(self.turned, turned=True)
        self.zero = _joined_plain(self.zero)
        self.before = _joined_plain(self.before)

    def _add(self, of, columns, source_columns):
        repeated = [dim for dim in of.dims if dim[2] == 0]
        moving = [dim for dim in of.dims if dim[2] != 0]
        for index in itertools.product(*(range(dim[0]) for dim in repeated)):
            start = of.at + sum(i * dim[1] for i, dim in zip(index, repeated, strict=True))
            for at, dims, source in _regions.cut(moving, start, of.source_at, columns):
                swapped = [(size, from_step, step) for size, step, from_step in dims]
                for source_at, dims, place in _regions.cut(swapped, source, at, source_columns):
                    swapped_back = [(size, step, from_step) for size, from_step, step in dims]
                    self._add_box(of.source.tensor, place, swapped_back, source_at, columns, source_columns)

    def _add_box(self, tensor, at, dims, source_at, columns, source_columns):
        direct, turned, direct_size, turned_size = {}, {}, 1, 1
        for size, step, source_step in dims:
            across, across_source = step == columns, source_step == source_columns
            along, along_source = step == 1 and columns > 1, source_step == 1 and source_columns > 1
            if across and across_source or along and along_source:
                direct["rows" if across else "cols"] = (size, step, source_step)
                direct_size *= size
            elif across and along_source or along and across_source:
                turned["cols" if across else "rows"] = (size, step, source_step)
                turned_size *= size
        is_turned = turned_size > direct_size
        box = turned if is_turned else direct
        rest = [dim for dim in dims if dim not in box.values()]
        rows, cols = (box.get(name, (1, 0, 0))[0] for name in ("rows", "cols"))
        boxes = self.turned if is_turned else self.parts
        for index in itertools.product(*(range(dim[0]) for dim in rest)):
            to = at + sum(i * dim[1] for i, dim in zip(index, rest, strict=True))
            place = source_at + sum(i * dim[2] for i, dim in zip(index, rest, strict=True))
            row, col = divmod(place, source_columns)
            to_row, to_col = divmod(to, columns)
            boxes.append([tensor, row, rows, col, cols, to_row, to_col])
        if len(boxes) > _MOST_BOXES:
            raise _regions.Mixed(f"more than {_MOST_BOXES} boxes")

    def targets(self):
        """[row, rows, col, cols] of all that is known."""
        return [*map(target, self.parts), *(target(of, True) for of in self.turned), *self.zero, *self.before]


def target(box, turned=False):
    """Where a box of `parts` or `turned` lies in the parameter: [row, rows, col, cols]."""
    _, _, rows, _, cols, to_row, to_col = box
    return [to_row, cols, to_col, rows] if turned else [to_row, rows, to_col, cols]


def _plain(at, dims, columns):
    across = [dim for dim in dims if dim[1] == columns]
    along = [dim for dim in dims if dim[1] == 1 and columns > 1]
    rest = [dim for dim in dims if dim not in across and dim not in along]
    rows, cols = (of[0][0] if of else 1 for of in (across, along))
    for index in itertools.product(*(range(dim[0]) for dim in rest)):
        row, col = divmod(at + sum(i * dim[1] for i, dim in zip(index, rest, strict=True)), columns)
        yield [row, rows, col, cols]


def _joined(boxes, turned):
    """The same in as few boxes as touching ones give."""
    if turned:  # a box of the source that goes on in its rows goes on in the target's columns
        swapped = [[tensor, row, rows, col, cols, to_col, to_row] for tensor, row, rows, col, cols, to_row, to_col in boxes]
        return [
            [tensor, row, rows, col, cols, to_row, to_col]
            for tensor, row, rows, col, cols, to_col, to_row in _joined(swapped, turned=False)
        ]
    before = None
    while before != len(boxes):
        before = len(boxes)
        for first in (1, 3):  # rows, then columns: the box's first, its extent behind it
            other, to_first, to_other = 4 - first, 5 + first // 3, 6 - first // 3
            boxes.sort(key=lambda of: (of[0], of[other], of[other + 1], of[to_other], of[to_first] - of[first], of[first]))
            whole = []
            for of in boxes:
                last = whole[-1] if whole else None
                if (
                    last is not None
                    and all(last[i] == of[i] for i in (0, other, other + 1, to_other))
                    and last[first] + last[first + 1] == of[first]
                    and last[to_first] + last[first + 1] == of[to_first]
                ):
                    last[first + 1] += of[first + 1]
                else:
                    whole.append(list(of))
            boxes = whole
    return sorted(boxes, key=lambda of: (of[5], of[6]))


def _joined_plain(boxes):
    return [[row, rows, col, cols] for _, _, rows, _, cols, row, col in _joined(
        [[0, row, rows, col, cols, row, col] for row, rows, col, cols in boxes], turned=False)]  # fmt: skip


def _area(boxes):
    return sum(rows * cols for _, rows, _, cols in boxes)


def _rest(rows, columns, boxes):
    """What of a matrix is in none of the boxes."""
    rest = [[0, rows, 0, columns]]
    for row, height, col, width in boxes:
        after = []
        for of in rest:
            top, left = max(of[0], row), max(of[2], col)
            bottom, right = min(of[0] + of[1], row + height), min(of[2] + of[3], col + width)
            if top >= bottom or left >= right:
                after.append(of)
                continue
            after += [[of[0], top - of[0], of[2], of[3]], [bottom, of[0] + of[1] - bottom, of[2], of[3]]]
            after += [[top, bottom - top, of[2], left - of[2]], [top, bottom - top, right, of[2] + of[3] - right]]
        rest = [of for of in after if of[1] > 0 and of[3] > 0]
    return _joined_plain(rest)


def require_once(name, rows, columns, boxes):
    """Raises Error unless every element of a matrix is in just one box."""
    for row, height, col, width in boxes:
        if not (0 <= row < row + height <= rows and 0 <= col < col + width <= columns):
            box = f"a box of {height}x{width} at ({row}, {col})"
            raise Error(70, f"parameter {name} has {rows}x{columns} elements; {box} is not in it")
    if _area(boxes) != rows * columns:
        raise Error(70, f"parameter {name} has {rows}x{columns} elements; boxes cover {_area(boxes)}")
    # Of as many elements: where two share one, another is in none. Those that begin in a row must not touch what goes on.
    active = []
    for row, begins in itertools.groupby(sorted(boxes), key=lambda of: of[0]):
        active = [of for of in active if of[0] + of[1] > row] + list(begins)
        active.sort(key=lambda of: of[2])
        for left, right in zip(active, active[1:]):
            if left[2] + left[3] > right[2]:
                raise Error(70, f"parameter {name}: two boxes have the element ({row}, {right[2]})")


def differences(one, other, most=20):
    """Where two maps say different things: lines that name rank, parameter and both boxes, `most` of them."""
    found = []
    if one["layout"] != other["layout"]:
        found.append(f"the layouts are {one['layout']} and {other['layout']}")
        return found
    for rank, (mine, theirs) in enumerate(zip(one["ranks"], other["ranks"], strict=True)):
        names = [{of["name"]: of for of in side.get("parameters", [])} for side in (mine, theirs)]
        for name in {**names[0], **names[1]}:
            if not (name in names[0] and name in names[1]):
                found.append(f"rank {rank}: parameter {name} is only in the {'first' if name in names[0] else 'second'} map")
                continue
            a, b = names[0][name], names[1][name]
            if a["shape"] != b["shape"] or a["dtype"] != b["dtype"]:
                found.append(f"rank {rank}: parameter {name} is {a['dtype']} {a['shape']} and {b['dtype']} {b['shape']}")
                continue
            found.extend(f"rank {rank}: parameter {name}: {line}" for line in _different_boxes(one, a, other, b))
            if len(found) >= most:
                return found[:most]
    return found


def _different_boxes(one, a, other, b):
    first, second = _fills(one, a), _fills(other, b)
    for index, (mine, theirs) in enumerate(((first, second), (second, first))):
        for of in mine:
            covered = 0
            for against in theirs:
                top, left = max(of[0], against[0]), max(of[2], against[2])
                bottom, right = min(of[0] + of[1], against[0] + against[1]), min(of[2] + of[3], against[2] + against[3])
                if top >= bottom or left >= right:
                    continue
                covered += (bottom - top) * (right - left)
                box = [top, bottom - top, left, right - left]
                if index == 0 and _part(of, box) != _part(against, box):
                    yield f"{_said(box)} come from {_part(of, box)} and from {_part(against, box)}"
            if covered != of[1] * of[3]:
                which, not_which = ("first", "second")[:: -1 if index else 1]
                yield f"{_said(of[:4])} come from {_part(of, of[:4])} in the {which} map and from nothing in the {not_which}"


def _fills(landing, parameter):
    """[row, rows, col, cols, tensor's name or None, row and column in it, whether it is turned]"""
    tensors = landing["tensors"]
    fills = []
    for turned, kind in enumerate(("parts", "turned")):
        for box in parameter.get(kind, []):
            fills.append([*target(box, bool(turned)), tensors[box[0]]["name"], box[1], box[3], bool(turned)])
    fills.extend([*box, None, 0, 0, False] for box in parameter.get("zero", []))
    return sorted(fills, key=lambda of: of[:4])


def _part(fill, box):
    """Where a box of a parameter, which is inside what `fill` fills, comes from."""
    row, _, col, _, tensor, from_row, from_col, turned = fill
    top, rows, left, cols = box
    if tensor is None:
        return "zero"
    if turned:
        transposed = ", transposed" if rows * cols > 1 else ""  # one element is the same box both ways
        return f"{tensor} {_said([from_row + left - col, cols, from_col + top - row, rows])}{transposed}"
    return f"{tensor} {_said([from_row + top - row, rows, from_col + left - col, cols])}"


def _said(box):
    row, rows, col, cols = box
    return f"[{row}:{row + rows}, {col}:{col + cols}]"


def write(landing, path):
    """Writes a map whole or not at all; a device or a pipe stays what it is."""
    place = os.path.realpath(path)
    try:
        if os.path.exists(place) and not os.path.isfile(place):
            with open(place, "w") as file:
                file.write(text_of(landing))
            return
        folder, name = os.path.split(place)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text_of(landing))
            os.chmod(temporary, 0o644)
            os.replace(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise Error(74, f"{path} cannot be written: {error.strerror}") from None


def text_of(landing):
    """A map as its file has it, a line for each parameter and tensor."""

    def line(value):
        return json.dumps(value, separators=(",", ":"))

    def lines(name, entries):
        return line(name) + ":" + (line(entries) if name == "skipped" else "[\n" + ",\n".join(map(line, entries)) + "]")

    head = {key: value for key, value in landing.items() if key not in ("tensors", "ranks")}
    tensors = lines("tensors", landing["tensors"])
    ranks = ",\n".join("{" + ",\n".join(lines(*of) for of in rank.items()) + "}" for rank in landing["ranks"])
    return line(head)[:-1] + f',\n{tensors},\n"ranks":[\n{ranks}]}}\n'


def read(path):
    """A map from its file. Raises Error."""
    try:
        with open(path, encoding="utf-8") as file:
            landing = json.load(file)
    except OSError as error:
        raise Error(74, f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Error(65, f"{path} is no JSON file; give a landing map") from None
    if not isinstance(landing, dict) or landing.get("landing") != FORMAT:
        raise Error(65, f"{path} is no landing map of format {FORMAT}")
    for name, kind in (("tensors", list), ("ranks", list), ("layout", dict), ("made_for", dict)):
        if not isinstance(landing.get(name), kind):
            raise Error(65, f"{path}: {name} of the landing map is missing; make it anew")
    return landing
