"""Where the elements of an exported tensor come from, found from tags (_tags.py) pass by pass, as boxes in the end.

What is kept between passes are runs: elements side by side whose numbers follow one another. Where the digits known so far
say so, the next one's may still say otherwise: it splits runs, and never joins any.
"""

import torch

from . import _tags

_MOST_RUNS = 1 << 22  # of a tensor
_MOST_BOXES = 1 << 17


class Refused(Exception):
    """Why an exported tensor is no boxes of rows of what a trainer holds."""


COMPUTED = "its elements are computed or converted, not moved; let the exporter give what the trainer holds"
SCATTERED = "it is transposed, or its elements lie apart; let the exporter give it as its rows lie in the trainer's memory"


_MOST_PIECES = 32  # of a chunk that are looked at one by one


class Runs:
    """Of one exported tensor: `starts` are places in it, `numbers` those of the elements that came there."""

    def __init__(self, elements):
        self.elements = elements
        self.starts = torch.zeros(1, dtype=torch.int64)
        self.numbers = torch.zeros(1, dtype=torch.int64)

    def learn(self, tags, digits, place, bits):
        """What the pass of digit number `place` brought; `digits` are the tags that it filled. Raises Refused."""
        found = tags.detach().reshape(-1)
        shift = bits * place
        pieces = []
        count = 0
        for starts, ends, numbers in self._chunks():
            if len(starts) > _MOST_PIECES:
                pieces.append(_split(found, starts, ends, numbers, shift, bits))
            else:
                for piece in zip(starts.split(1), ends.split(1), numbers.split(1), strict=True):
                    pieces.append(_whole(found, *piece, digits, shift, bits) or _split(found, *piece, shift, bits))
            count += pieces[-1][0].numel()
            if count > max(_MOST_RUNS, self.elements // 16):
                raise Refused(SCATTERED)
        starts, numbers = (torch.cat(of) for of in zip(*pieces, strict=True))
        # Where a chunk begins, and a run goes on.
        begins = torch.ones(starts.numel(), dtype=torch.bool)
        begins[1:] = (numbers.diff() - starts.diff()) & ((1 << (shift + bits)) - 1) != 0
        self.starts, self.numbers = starts[begins], numbers[begins]

    def require_marks(self, tensor, marks, own):
        """Raises Refused unless all elements are the marks of the elements that they are said to be, those of tensors of type
        `own`, converted as a copy does."""
        found = tensor.detach().reshape(-1)
        for starts, ends, numbers in self._chunks():
            if len(starts) > _MOST_PIECES:
                first, end = int(starts[0]), int(ends[-1])
                of_chunk = _numbers(starts, ends, numbers).to(found.device)
                parts = [(found[first:end], marks.at(of_chunk, own))]
            else:
                of_pieces = zip(starts.tolist(), ends.tolist(), numbers.tolist(), strict=True)
                parts = [(found[of:end], marks.of(number, end - of, own, found.device)) for of, end, number in of_pieces]
            for values, wanted in parts:
                if not torch.equal(_tags.bits_of(values), _tags.bits_of(wanted.to(values.dtype))):
                    raise Refused(COMPUTED)

    def lengths(self):
        """Of each run."""
        return torch.diff(self.starts, append=torch.tensor([self.elements]))

    def _chunks(self):
        """Chunk by chunk the pieces of runs in it: where they start and end, and the numbers of their first elements as far as
        they are known."""
        for first in range(0, self.elements, _tags.CHUNK):
            end = min(first + _tags.CHUNK, self.elements)
            low = int(torch.searchsorted(self.starts, first, right=True)) - 1  # the run that `first` is in
            high = int(torch.searchsorted(self.starts, end))
            starts = self.starts[low:high].clamp(min=first)
            yield starts, torch.cat([starts[1:], torch.tensor([end])]), self.numbers[low:high] + starts - self.starts[low:high]


def _numbers(starts, ends, numbers):
    """The numbers of all elements of pieces that follow one another."""
    return torch.arange(int(starts[0]), int(ends[-1])) + torch.repeat_interleave(numbers - starts, ends - starts)


def _whole(found, start, end, number, digits, shift, bits):
    """One piece that stays one: its start, and the number of its first element with one more digit. None where it does not."""
    first, behind, known = int(start), int(end), int(number)
    digit = _tags.digits_of(found[first : first + 1], bits)
    if digit is None:
        raise Refused(COMPUTED)
    known = (known & ((1 << shift) - 1)) + (int(digit) << shift)
    part = found[first:behind]
    if torch.equal(_tags.bits_of(part), _tags.bits_of(digits.of(known, part.numel(), part.dtype, part.device))):
        return start, torch.tensor([known])
    return None


def _split(found, starts, ends, numbers, shift, bits):
    """Pieces that follow one another, split where the next digit says so."""
    first = int(starts[0])
    digits = _tags.digits_of(found[first : int(ends[-1])], bits)
    if digits is None:
        raise Refused(COMPUTED)
    digits = digits.cpu()
    known = _numbers(starts, ends, numbers)
    own = (digits - (known >> shift)) & ((1 << bits) - 1)
    begins = torch.ones(own.numel(), dtype=torch.bool)
    begins[1:] = own[1:] != own[:-1]
    begins[starts - first] = True
    places = begins.nonzero().view(-1)
    return places + first, (known[places] & ((1 << shift) - 1)) + (digits[places].to(torch.int64) << shift)


def boxes_of(runs, owners, firsts, columns):
    """The boxes of a tensor of so many columns: {owner: [[row, rows, col, cols, from, pitch], …]}. `owners` has for each run
    the number of the tensor that it lies in, `firsts` the number of that one's first element. Element (r, c) of a box is the
    tensor's element `from` + r * `pitch` + c. Raises Refused."""
    starts, lengths, sources = runs.starts, runs.lengths(), runs.numbers - firsts
    rows = runs.elements // columns
    if min(rows, columns) > 1 and 2 * starts.numel() > runs.elements:
        raise Refused(SCATTERED)
    found = {}
    for piece in _pieces(starts, lengths, sources, owners, columns):
        for owner, *box in piece:
            found.setdefault(owner, []).append(box)
    if sum(map(len, found.values())) > _MOST_BOXES:
        raise Refused(SCATTERED)
    return found


def _pieces(starts, lengths, sources, owners, columns):
    """Lists of [owner, row, rows, col, cols, from, pitch]. A run of more than a row is what is left of its first one, whole
    ones, and what it has of its last."""
    col = starts % columns
    head = torch.where(col > 0, torch.minimum(columns - col, lengths), torch.zeros_like(col))
    body = (lengths - head) // columns
    tail = lengths - head - body * columns
    after = starts + head
    whole = body > 0
    yield _joined(owners[whole], after[whole] // columns, body[whole], torch.zeros_like(after[whole]), columns,
                  (sources + head)[whole])  # fmt: skip
    parts = [(starts, head, sources), (after + body * columns, tail, sources + head + body * columns)]
    some = [length > 0 for _, length, _ in parts]
    start, cols, source = (torch.cat([of[number][there] for of, there in zip(parts, some, strict=True)]) for number in range(3))
    owner = torch.cat([owners[there] for there in some])
    yield _joined(owner, start // columns, torch.ones_like(start), start % columns, cols, source)


def _joined(owner, row, rows, col, cols, source):
    """Boxes of whole rows side by side in their own tensor, joined where one goes on below another at one pitch."""
    if not row.numel():
        return []
    cols = torch.as_tensor(cols).expand_as(row)
    order = torch.arange(row.numel())
    for key in (row, cols, col, owner):  # the last one counts most
        order = order[torch.sort(key[order], stable=True).indices]
    owner, row, rows, col, cols, source = (of[order] for of in (owner, row, rows, col, cols, source))
    below = torch.zeros(row.numel(), dtype=torch.bool)
    below[1:] = (
        (owner[1:] == owner[:-1])
        & (col[1:] == col[:-1])
        & (cols[1:] == cols[:-1])
        & (row[1:] == row[:-1] + rows[:-1])
        & (rows[1:] == 1)
        & (rows[:-1] == 1)
    )
    step = torch.zeros_like(source)
    step[1:] = source[1:] - source[:-1]
    below &= step >= cols
    begins = ~below
    bends = torch.zeros_like(below)
    bends[1:] = below[1:] & below[:-1] & (step[1:] != step[:-1])
    # The row behind a bend is the second of a box: any step is its pitch.
    places = torch.arange(bends.numel())
    last_straight = torch.cummax(torch.where(bends, torch.zeros_like(places), places), 0).values
    begins |= bends & ((places - last_straight) % 2 == 1)
    at = begins.nonzero().view(-1)
    height = torch.diff(at, append=torch.tensor([row.numel()]))
    single = height == 1
    second = torch.clamp(at + 1, max=row.numel() - 1)
    pitch = torch.where(single, cols[at], step[second])
    height = torch.where(single, rows[at], height)
    return torch.stack([owner[at], row[at], height, col[at], cols[at], source[at], pitch], 1).tolist()
