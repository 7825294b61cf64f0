"""An engine: generates from its live parameters, and takes new ones between two tokens, until its input ends.

engine.py CONFIG FOLDER RANK RANKS [LIMIT]

With a LIMIT it publishes a window of so many bytes in place of its parameters, and copies what comes through that into them.

Prints a line of JSON when it is asked to take a version. Answers each line of its input with another: the version that it
serves and the digest of its logits, or why its memory holds no version; and whether every parameter is the object at the
address that it was at first.
"""

import json
import select
import sys

import torch
import weightcast
from tiny_model import PROMPT, logits_digest, make_model, next_token


class Engine:
    def __init__(self, config, folder, rank, ranks, limit=None):
        self.model = make_model(config, seed=2 + rank)
        self.model.eval()
        self.parameters = dict(self.model.named_parameters())
        what = {"module": self.model} if limit is None else {"window": self.window(), "limit": limit}
        self.limit = limit
        self.export = weightcast.publish(folder, role="engine", rank=rank, ranks=ranks, layout="hf", version=0, **what)
        self.version = 0
        self.invalid = None
        self.first = self.places()

    def window(self):
        names = {torch.bfloat16: "BF16", torch.float32: "F32"}
        return {name: weightcast.Memory(names[p.dtype], p.shape) for name, p in self.parameters.items()}

    def places(self):
        return {name: (id(p), p.data_ptr()) for name, p in self.model.named_parameters(remove_duplicate=False)}

    def update(self):
        try:
            with self.export.pause() as update:
                if self.limit is not None:
                    with torch.no_grad():
                        for name, tensor in update.landed():
                            self.parameters[name].copy_(tensor)
                self.version, self.invalid = update.version, None
        except weightcast.Invalid as error:
            self.invalid = str(error)
        except weightcast.Error as error:  # it holds what it held before
            print(error, file=sys.stderr, flush=True)

    def answer(self):
        said = {"in_place": self.places() == self.first}
        if self.invalid is None:
            said.update(version=self.version, logits=logits_digest(self.model))
        else:
            said.update(invalid=self.invalid)
        print(json.dumps(said), flush=True)

    def run(self):
        tokens = PROMPT
        while True:
            wanted = self.export.wanted()
            if wanted is not None:
                print(json.dumps({"asked": wanted}), flush=True)
                self.update()
                tokens = PROMPT
            # The cores are the job step's, too.
            if select.select([sys.stdin], [], [], 0.002)[0]:
                if not sys.stdin.readline():
                    break
                self.answer()
            if self.invalid is None:
                tokens = next_token(self.model, tokens) if tokens.shape[1] < 24 else PROMPT
        self.export.close()


if __name__ == "__main__":
    Engine(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])).run()
