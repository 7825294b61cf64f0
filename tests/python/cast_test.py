"""A trainer whose module is in float32 publishes bfloat16: alone, and as parts that FSDP2 has cut."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import tiny_model
import torch
import torch.distributed as dist
import weightcast
import weightcast.torch
from torch.distributed.device_mesh import init_device_mesh

RANKS = 2


def stored(export_memory):
    return torch.frombuffer(bytearray(export_memory), dtype=torch.bfloat16)


class Cast(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def test_an_engine_gets_the_rounded_values(self):
        config, folder = self.directory + "/model", self.directory + "/weights"
        tiny_model.write_config(config, "bfloat16", tied=True, hidden=32, vocabulary=100)
        engine = tiny_model.make_model(config, seed=1)
        masters = tiny_model.make_model(config, seed=2).float()
        trainer = weightcast.torch.publish(folder, 0, 1, masters, torch.bfloat16, layout="hf")
        self.addCleanup(trainer.close)
        served = weightcast.publish(folder, "engine", 0, 1, module=engine, layout="hf")
        self.addCleanup(served.close)
        command = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", "2"]
        command += [os.environ["WEIGHTCAST_BINARY"], "sync", "--source", f"live:{folder}", "--sink", f"live:{folder}"]
        command += ["--model", config, "--inference-alloc", "hf"]
        for version in (1, 2):
            with torch.no_grad():
                for parameter in masters.parameters():
                    parameter.add_(torch.randn_like(parameter))
            expected = {name: tensor.to(torch.bfloat16) for name, tensor in masters.state_dict().items()}
            trainer.offer(version, wait=False)
            for parameter in masters.parameters():
                parameter.data.zero_()  # training goes on
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
                with served.pause(timeout=120) as update:
                    self.assertEqual(update.version, version)
                said = job.communicate()[0]
            self.assertEqual(job.returncode, 0, said)
            for name, tensor in engine.state_dict().items():
                self.assertTrue(torch.equal(tensor, expected[name]), name)

    def test_what_has_the_type_is_published_where_it_is(self):
        module = torch.nn.ModuleDict({"same": torch.nn.Linear(3, 2).bfloat16(), "other": torch.nn.Linear(2, 2)})
        places = [parameter.data_ptr() for parameter in module["other"].parameters()]
        with weightcast.torch.publish(self.directory, 0, 1, module, torch.bfloat16) as export:
            values = module["same"].weight.detach().clone()
            export.offer(1, wait=False)
            self.assertEqual([parameter.data_ptr() for parameter in module["other"].parameters()], places)
            module["other"].weight = torch.nn.Parameter(torch.zeros(3, 3))
            with self.assertRaisesRegex(weightcast.Error, "other.weight is not in the module any more"):
                export.offer(2, wait=False)
        self.assertTrue(torch.equal(module["same"].weight, values))

    def test_a_module_that_is_another_one_since_is_noticed(self):
        def module():
            made = torch.nn.ModuleDict({"same": torch.nn.Linear(2, 2).bfloat16(), "other": torch.nn.Linear(2, 2, bias=False)})
            made["tied"] = torch.nn.Linear(2, 2, bias=False)
            made["tied"].weight = made["other"].weight
            return made

        def untie(made):
            made["tied"].weight = torch.nn.Parameter(torch.zeros(2, 2))

        def replace(made):
            made["same"].bias = torch.nn.Parameter(made["same"].bias.data)

        def add(made):
            made["other"].register_buffer("scale", torch.ones(2))

        for change, name in ((untie, "tied.weight"), (replace, "same.bias"), (add, "other.scale")):
            with self.subTest(name):
                made = module()
                with weightcast.torch.publish(self.directory, 0, 1, made, torch.bfloat16) as export:
                    export.offer(1, wait=False)
                    change(made)
                    with self.assertRaisesRegex(weightcast.Error, f"{name} is not in the module any more as it was") as refused:
                        export.offer(2, wait=False)
                    self.assertEqual(refused.exception.code, 64)

    def test_an_offer_that_cannot_be_leaves_the_one_before(self):
        module = torch.nn.Linear(2, 2)
        with weightcast.torch.publish(self.directory, 0, 1, module, torch.bfloat16) as export:
            export.offer(1, wait=False)
            offered = bytes(export.memory("weight"))
            with torch.no_grad():
                module.weight.add_(1)
            for arguments in (("2",), (-1,), (2, None), (2, float("nan"))):
                with self.subTest(arguments), self.assertRaises(weightcast.Error) as refused:
                    export.offer(*arguments, wait=False)
                self.assertEqual(refused.exception.code, 64)
            self.assertEqual(bytes(export.memory("weight")), offered)
            with self.assertRaises(weightcast.NoAnswer):
                export.settle(0)  # it is offered still

    def test_types_that_are_none(self):
        module = torch.nn.Linear(2, 2)
        for dtype in ("bf16", torch.int8, None):
            with self.assertRaisesRegex(weightcast.Error, "dtype .*give a floating type of torch"):
                weightcast.torch.publish(self.directory, 0, 1, module, dtype)
        with self.assertRaisesRegex(weightcast.Error, "module is a int; give a torch.nn.Module"):
            weightcast.torch.publish(self.directory, 0, 1, 5, torch.bfloat16)

    def test_parts_that_fsdp_has_cut(self):
        words = [sys.executable, "-B", __file__, self.directory]
        processes = [subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(RANKS)]
        said = [process.communicate(timeout=120)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], [0] * RANKS)
        entries = [json.loads(text.splitlines()[-1])["weight"] for text in said]
        self.assertEqual(entries[0], ["BF16", [3, 4], {"shape": [5, 4], "offset": [0, 0]}])
        self.assertEqual(entries[1], ["BF16", [2, 4], {"shape": [5, 4], "offset": [3, 0]}])


def publish_part(folder, rank):
    """Of an FSDP2 module on the CPU, whose own memory cannot be published."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 5)
    fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
    export = weightcast.torch.publish(folder + "/weights", rank, RANKS, module, torch.bfloat16)
    export.offer(1, wait=False)
    own = module.weight.to_local().to(torch.bfloat16)
    assert torch.equal(stored(export.memory("weight")), own.flatten())
    dist.barrier()
    manifest = json.loads(pathlib.Path(folder, "weights", f"trainer-{rank}.json").read_text())
    print(json.dumps({e["name"]: [e["dtype"], e["shape"], e.get("box")] for e in manifest["entries"]}))
    dist.barrier()
    export.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 3 and os.path.isdir(sys.argv[1]):
        publish_part(sys.argv[1], int(sys.argv[2]))
    else:
        unittest.main()
