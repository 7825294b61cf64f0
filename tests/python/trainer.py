"""A trainer: takes optimiser steps and offers its live parameters, version after version, until it is killed.

trainer.py CONFIG FOLDER RANK RANKS

Prints a line of JSON before each version is offered: its number and the digest of its logits.
"""

import itertools
import json
import sys

import torch
import weightcast
from tiny_model import logits_digest, make_model


def main(config, folder, rank, ranks):
    model = make_model(config, seed=1)  # of all trainers the same
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train():
        model.train()
        for _ in range(2):
            batch = torch.randint(model.config.vocab_size, (4, 12))
            loss = model(batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    export = weightcast.publish(folder, role="trainer", rank=rank, ranks=ranks, module=model, layout="hf")
    for version in itertools.count(1):
        train()
        print(json.dumps({"version": version, "logits": logits_digest(model)}), flush=True)
        while True:
            try:
                export.offer(version)
                break
            except weightcast.Error as error:  # the job step has died or failed: the next one reads the same
                print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
