"""A trainer publishes of each DTensor its own part, as the box that it is: two processes, which share the tensors."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
import torch.distributed as dist
import weightcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

RANKS = 2
WHOLE = torch.arange(5 * 4 * 3, dtype=torch.float32).view(5, 4, 3)
PLACEMENTS = {"rows": Shard(0), "middle": Shard(1), "last": Shard(2), "copy": Replicate()}


def publish(folder, rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    tensors = {name: distribute_tensor(WHOLE.clone(), mesh, [placement]) for name, placement in PLACEMENTS.items()}
    tensors["plain"] = torch.ones(3)
    tensors["one row"] = distribute_tensor(WHOLE[:1].clone(), mesh, [Shard(0)])  # of which the second has nothing
    parts = {name: tensor.to_local().clone() for name, tensor in tensors.items() if name != "plain"}
    export = weightcast.publish(folder + "/weights", role="trainer", rank=rank, ranks=RANKS, tensors=tensors)
    for name, part in parts.items():
        assert torch.equal(tensors[name].to_local(), part), name
        assert bytes(export.memory(name)) == part.contiguous().numpy().tobytes(), name
        assert torch.equal(tensors[name].full_tensor(), WHOLE if name != "one row" else WHOLE[:1]), name
    # What an optimiser writes is in the published memory.
    with torch.no_grad():
        tensors["rows"].add_(1)
    assert bytes(export.memory("rows")) == (parts["rows"] + 1).numpy().tobytes()
    partial = torch.distributed.tensor.DTensor.from_local(torch.ones(2), mesh, [Partial()])
    try:
        weightcast.publish(folder + "/refused", role="trainer", rank=rank, ranks=RANKS, tensors={"sum": partial})
    except weightcast.Error as error:
        assert error.code == 64 and "sum" in str(error), error
    else:
        raise AssertionError("published")
    dist.barrier()
    manifest = json.loads(pathlib.Path(folder, "weights", f"trainer-{rank}.json").read_text())
    print(json.dumps({entry["name"]: [entry["shape"], entry.get("box")] for entry in manifest["entries"]}))
    dist.barrier()
    export.close()
    dist.destroy_process_group()


class Parts(unittest.TestCase):
    def test_each_process_publishes_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, folder]
            processes = [subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(RANKS)]
            said = [process.communicate(timeout=120)[0] for process in processes]
            self.assertEqual([process.returncode for process in processes], [0] * RANKS)
        entries = [json.loads(text.splitlines()[-1]) for text in said]

        def expect(name, *forms):
            for rank, (shape, start) in enumerate(forms):
                self.assertEqual(entries[rank][name], [shape, {"shape": [5, 4, 3], "offset": start}], (name, rank))

        expect("rows", ([3, 4, 3], [0, 0, 0]), ([2, 4, 3], [3, 0, 0]))
        expect("middle", ([5, 2, 3], [0, 0, 0]), ([5, 2, 3], [0, 2, 0]))
        expect("last", ([5, 4, 2], [0, 0, 0]), ([5, 4, 1], [0, 0, 2]))
        expect("copy", ([5, 4, 3], [0, 0, 0]), ([5, 4, 3], [0, 0, 0]))
        for rank in range(RANKS):
            self.assertEqual(entries[rank]["plain"], [[3], None])
        self.assertEqual(entries[0]["one row"][0], [1, 4, 3])
        self.assertEqual(entries[1]["one row"][0], [0, 4, 3])


if __name__ == "__main__":
    if len(sys.argv) == 3 and os.path.isdir(sys.argv[1]):
        publish(sys.argv[1], int(sys.argv[2]))
    else:
        unittest.main()
