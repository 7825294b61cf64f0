"""Runs the README's example of a trainer or of a rank of an engine, as it is written there, with a tiny model.

readme_program.py README ROLE RANK CONFIG STORE

A trainer trains and offers two versions; the ranks of the engine serve until they have the second one. Each prints a line of JSON
of every version: its number and the digest of the logits. STORE is a file by which the engine's ranks find one another.
"""

import itertools
import json
import pathlib
import re
import sys

import torch
import weightcast
from tiny_model import PROMPT, logits_digest, make_model, next_token

LAST = 2


class Done(Exception):
    """Ends a loop that has no end."""


def example_of(readme, role):
    """The block of Python that publishes as that role."""
    blocks = re.findall(r"```python\n(.*?)```", pathlib.Path(readme).read_text(), re.DOTALL)
    (block,) = [block for block in blocks if f'role="{role}"' in block]
    return block


def say(version, model):
    print(json.dumps({"version": version, "logits": logits_digest(model)}), flush=True)


def trainer_names(model):
    versions = itertools.count(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        version = next(versions)
        if version > LAST:
            raise Done
        optimizer.zero_grad()
        model(PROMPT, labels=PROMPT).loss.backward()
        optimizer.step()
        say(version, model)

    return {"itertools": itertools, "train": train}


def engine_names(model, rank, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    names = {}

    def broadcast(value):
        values = [value]
        torch.distributed.broadcast_object_list(values, 0)
        return values[0]

    def rebuild_derived(_):
        update = names["update"]
        say(update.version, model)
        names["serving"] = lambda: update.version < LAST

    names.update(
        serving=lambda: True,
        generate=lambda: next_token(model, PROMPT),
        broadcast=broadcast,
        rebuild_derived=rebuild_derived,
    )
    return names


def main(readme, role, rank, config, store):
    model = make_model(config, seed=rank)
    names = trainer_names(model) if role == "trainer" else engine_names(model, rank, store)
    names.update(weightcast=weightcast, rank=rank, model=model)
    try:
        exec(example_of(readme, role), names)
    except Done:
        pass
    names["export"].close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
