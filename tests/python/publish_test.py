"""Modules of PyTorch in published memory, without a job step."""

import glob
import json
import pathlib
import re
import tempfile
import unittest
import unittest.mock
import warnings

import torch
import torch.distributed as dist
import weightcast
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard


class Layer(nn.Module):
    """A parameter, and buffers of all kinds."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("scale", torch.rand(4))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("table", torch.rand(8), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        return (x @ self.weight.T) * self.scale + self.count + self.table[:4]


class Tied(nn.Module):
    """One parameter under two names, and two parameters of one memory."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.first = nn.Parameter(torch.randn(3))
        self.second = nn.Parameter(self.first.data)


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def addresses(module):
    return {name: t.data_ptr() for name, t in tensors(module).items() if t.layout == torch.strided}


def values(module):
    return {name: tensor.clone() for name, tensor in tensors(module).items()}


class PublishedModules(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = directory.name + "/weights"

    def publish(self, **what):
        export = weightcast.publish(self.folder, "engine", 0, 1, version=1, **what)
        self.addCleanup(export.close)
        return export

    def entries(self):
        manifest = json.loads(pathlib.Path(self.folder, "engine-0.json").read_text())
        return {entry["name"]: entry for entry in manifest["entries"]}

    def expect_refused_and_left(self, says, module, tensors=None):
        before = addresses(module)
        with self.assertRaisesRegex(weightcast.Error, says) as refused:
            weightcast.publish(self.folder, "engine", 0, 1, module=module, tensors=tensors)
        self.assertEqual(addresses(module), before)
        self.assertFalse(pathlib.Path(self.folder, "engine-0.json").exists())
        return refused.exception

    def test_a_window_has_pages_for_each_tensor(self):
        window = {"a": weightcast.Memory("BF16", (3, 5)), "b": weightcast.Memory("F32", ()), "c": weightcast.Memory("BOOL", (0, 2))}
        export = self.publish(module=Layer(), window=window, limit=1 << 20)
        entries = self.entries()
        self.assertEqual(set(entries), {"weight", "scale", "count", *window})
        self.assertEqual([entries[name]["offset"] % 4096 for name in window], [0, 0, 0])
        self.assertEqual(entries["a"]["segment"], entries["b"]["segment"])
        (found,) = [s for s in json.loads(pathlib.Path(self.folder, "engine-0.json").read_text())["segments"] if s["kind"] == "window"]
        self.assertEqual(found["limit"], 1 << 20)
        # What comes is torch's.
        name, form, memory = export._window[len(entries) - len(window)]
        tensor = weightcast._tensors.view_of(name, form, memory)
        self.assertEqual((name, tensor.shape, tensor.dtype), ("a", (3, 5), torch.bfloat16))

    def test_what_the_loader_makes_of_a_tensor_of_the_same_name_is_not_published(self):
        module = Tied()
        places = addresses(module)
        self.publish(module=module, window={"head.weight": weightcast.Memory("F16", (5, 3))})
        self.assertEqual(set(self.entries()), {"first", "head.weight"})
        self.assertEqual(self.entries()["head.weight"]["dtype"], "F16")
        self.assertEqual(module.embedding.weight.data_ptr(), places["embedding.weight"])
        self.assertIs(module.embedding.weight, module.head.weight)

    def test_a_buffer_that_is_a_view_of_a_parameter_goes_with_it(self):
        module = Layer()
        module.register_buffer("rows", module.weight.data[1:3].view(2, 1, 6), persistent=False)
        rows = module.rows.clone()

        def expect_a_view():
            self.assertTrue(torch.equal(module.rows, rows))
            with torch.no_grad():
                module.weight[2, 5] += 1
            rows[1, 0, 5] += 1
            self.assertTrue(torch.equal(module.rows, rows))

        with self.assertRaisesRegex(weightcast.Error, "engine rank 5 of 1|rank 5"):
            weightcast.publish(self.folder, "engine", 5, 1, module=module)
        expect_a_view()
        export = self.publish(module=module)
        self.assertNotIn("rows", self.entries())
        expect_a_view()
        export.close(keep=True)
        expect_a_view()
        self.publish(module=module).close()
        self.assertEqual(module.rows.numel(), 0)

    def test_windows_that_cannot_be(self):
        for window, says in [
            ({"a": torch.empty(2)}, "tensor 'a' of the window is .*; give weightcast.Memory"),
            (["a"], "give a dict of Memory by name"),
        ]:
            with self.subTest(says=says), self.assertRaisesRegex(weightcast.Error, says):
                self.publish(module=Layer(), window=window)
        weight = {"weight": weightcast.Memory("BF16", (1,))}
        with self.assertRaisesRegex(weightcast.Error, "tensor weight is published in place and in the window"):
            self.publish(tensors=weight, window=weight)
        with self.assertRaisesRegex(weightcast.Error, "0 bytes may be in at once"):
            self.publish(window={"a": weightcast.Memory("BF16", (1,))}, limit=0)
        with self.assertRaisesRegex(weightcast.Error, "only an engine has a window"):
            weightcast.publish(self.folder, "trainer", 0, 1, window={"a": weightcast.Memory("BF16", (1,))})
        with self.assertRaisesRegex(weightcast.Error, "nothing comes through a window here"):
            list(weightcast.Update(1, ()).landed())

    def test_a_module_computes_as_before(self):
        layer = Layer()
        x = torch.randn(2, 6)
        expected = layer(x)
        parameter = layer.weight
        table = layer.table.data_ptr()
        export = self.publish(module=layer)
        self.assertEqual(set(self.entries()), {"weight", "scale", "count"})
        self.assertIs(layer.weight, parameter)
        self.assertTrue(torch.equal(layer(x), expected))
        # What is written there is what the module reads; its table is its own.
        export.memory("scale")[:] = torch.full((4,), 2.0).numpy().tobytes()
        self.assertTrue(torch.equal(layer.scale, torch.full((4,), 2.0)))
        self.assertEqual(layer.table.data_ptr(), table)

    def test_an_optimizer_goes_on_with_the_same_parameters(self):
        layer = Layer()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        export = self.publish(module=layer)
        before = bytes(export.memory("weight"))
        layer(torch.randn(2, 6)).sum().backward()
        optimizer.step()
        self.assertNotEqual(bytes(export.memory("weight")), before)
        self.assertEqual(bytes(export.memory("weight")), layer.weight.detach().numpy().tobytes())

    def test_what_is_tied_stays_tied(self):
        tied = Tied()
        export = self.publish(module=tied)
        entries = self.entries()
        self.assertEqual(set(entries), {"embedding.weight", "first"})
        self.assertEqual(entries["embedding.weight"]["aliases"], ["head.weight"])
        self.assertEqual(entries["first"]["aliases"], ["second"])
        self.assertIs(tied.head.weight, tied.embedding.weight)
        export.memory("second")[:] = torch.ones(3).numpy().tobytes()
        for parameter in (tied.first, tied.second):
            self.assertTrue(torch.equal(parameter, torch.ones(3)))

    def test_columns_of_a_matrix_and_tensors_without_elements(self):
        module = nn.Module()
        module.transposed = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
        module.empty = nn.Parameter(torch.empty(0, 5))
        self.publish(module=module)
        self.assertEqual(self.entries()["transposed"]["strides"], [3, 1])
        self.assertEqual(self.entries()["empty"]["shape"], [0, 5])
        self.assertTrue(torch.equal(module.transposed, torch.arange(12.0).reshape(3, 4).T))
        self.assertEqual(tuple(module.empty.shape), (0, 5))

    def test_a_parameter_that_gets_other_memory_is_noticed(self):
        layer = Layer()
        trainer = weightcast.publish(self.folder, "trainer", 0, 1, module=layer)
        self.addCleanup(trainer.close)
        trainer.offer(1, wait=False)
        layer.scale.data = layer.scale.data.clone()
        with self.assertRaisesRegex(weightcast.Error, "scale is not in the published memory"):
            trainer.offer(2, wait=False)
        other = Layer()
        engine = self.publish(module=other)

        def expect_noticed(name):
            with self.assertRaisesRegex(weightcast.Error, f"{name} is not in the published memory"):
                with engine.pause():
                    self.fail("entered")

        buffer = other.count
        other.count = buffer + 1
        expect_noticed("count")
        other.count = buffer
        other.half()
        expect_noticed("weight")

    def test_a_module_that_is_another_one_since_is_noticed(self):
        def tie(module):
            module.head.weight = module.embedding.weight

        def swap_parameters(module):
            module.head.weight, module.embedding.weight = module.embedding.weight, module.head.weight

        def swap_modules(module):
            module.one, module.two = module.two, module.one

        def transpose(module):
            module.head.weight.data = module.head.weight.data.t()

        def cut(module):
            module.head.weight.data = module.head.weight.data[:2]

        def reinterpret(module):
            module.one.scale.data = module.one.scale.data.view(torch.int32)

        def add_buffer(module):
            module.one.register_buffer("late", torch.ones(2))

        def add_parameter(module):
            module.one.late = nn.Parameter(torch.ones(2))

        def fill_buffer(module):
            module.one.nothing = torch.ones(2)

        def remove(module):
            del module.one.scale

        def replace_module(module):
            module.one = Layer()

        def tied_apart(module):
            module.two.weight = nn.Parameter(module.two.weight.data)

        changes = {
            tie: "head.weight", swap_parameters: "embedding.weight", swap_modules: "one.weight", transpose: "head.weight",
            cut: "head.weight", reinterpret: "one.scale", add_buffer: "one.late", add_parameter: "one.late",
            fill_buffer: "one.nothing", remove: "one.scale", replace_module: "one.weight", tied_apart: "two.weight",
        }  # fmt: skip
        for change, name in changes.items():
            with self.subTest(change.__name__):
                module = nn.Module()
                module.embedding, module.head = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
                module.one, module.two = Layer(), Layer()
                with weightcast.publish(self.folder, "trainer", 0, 1, module=module) as trainer:
                    trainer.offer(1, wait=False)
                    # What is no weight may come and go.
                    module.one.register_buffer("cache", torch.ones(2), persistent=False)
                    module.one.table = torch.ones(3)
                    module.head.weight.data = module.head.weight.data
                    trainer.offer(2, wait=False)
                    change(module)
                    says = f"tensor {name} is not in the published memory any more: .*; publish the module again"
                    with self.assertRaisesRegex(weightcast.Error, says) as refused:
                        trainer.offer(3, wait=False)
                    self.assertEqual(refused.exception.code, 64)
                    with self.assertRaisesRegex(weightcast.Error, "publish the module again"):
                        trainer.require_in_place()

    def test_empty_tensors_of_several_types_are_withdrawn(self):
        module = nn.Module()
        module.first = nn.Parameter(torch.empty(0, 5))
        module.second = nn.Parameter(torch.empty(3, 0, dtype=torch.float64))
        for keep in (False, True):
            weightcast.publish(self.folder, "engine", 0, 1, module=module).close(keep=keep)
            self.assertEqual((tuple(module.first.shape), tuple(module.second.shape)), ((0, 5), (3, 0)))

    def test_what_is_no_tensor_or_module_is_named(self):
        def refuse(says, **what):
            with self.assertRaisesRegex(weightcast.Error, says) as refused:
                weightcast.publish(self.folder, "engine", 0, 1, **what)
            self.assertEqual(refused.exception.code, 64)

        for value in (torch.ones(2).numpy(), b"12", [1, 2], None, 5):
            refuse("tensor 'w' is a .*; give a tensor of torch", tensors={"w": value})
            refuse("tensor 'w' is a .*; give a tensor of torch", tensors={"w": value}, module=Layer())
        for value in ([("w", torch.ones(2))], 5, "w", torch.ones(2)):
            refuse("tensors is a .*; give a dict", tensors=value)
        for value in (5, nn.Linear, {"w": torch.ones(2)}, torch.ones(2)):
            refuse("module is a .*; give a torch.nn.Module", module=value)

    def test_afterwards_nothing_reads_what_is_gone(self):
        tied = Tied()
        with weightcast.publish(self.folder, "engine", 0, 1, module=tied):
            tied.second.data = torch.ones(3)
        with self.assertRaises(RuntimeError):
            tied.embedding(torch.tensor([1]))
        self.assertTrue(torch.equal(tied.second, torch.ones(3)))

    def test_names_of_the_callers_choice(self):
        layer = Layer()
        own = {"w": layer.weight, "s": layer.scale, "c": layer.count}
        self.publish(module=layer, tensors=own)
        self.assertEqual(set(self.entries()), {"w", "s", "c"})

    def test_a_module_that_is_published_is_not_copied_at_every_offer(self):
        layer = Layer()
        trainer = weightcast.publish(self.folder, "trainer", 0, 1, module=layer)
        self.addCleanup(trainer.close)
        layer.register_state_dict_post_hook(lambda *_: self.fail("copied"))
        trainer.offer(1, wait=False)

    def test_parameters_that_fsdp_gathers_from_elsewhere_are_refused(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.addCleanup(dist.destroy_process_group)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one process nothing is sharded
            first = FullyShardedDataParallel(nn.Linear(3, 3), device_id=torch.device("cpu"))
        second = fully_shard(nn.Linear(3, 3), mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        for module in (first, second):
            with self.assertRaisesRegex(weightcast.Error, "is FSDP's and in the CPU's memory"):
                weightcast.publish(self.folder, "trainer", 0, 1, module=module)

    def test_nothing_that_a_module_reads_is_forgotten(self):
        layer = Layer()
        refused = self.expect_refused_and_left("scale", layer, {"weight": layer.weight, "count": layer.count})
        self.assertEqual(refused.code, 64)
        # Of another object of the same memory the module would see nothing.
        self.expect_refused_and_left("weight", layer, {**values(layer), "weight": layer.weight.detach()})

    def test_copies_of_a_modules_tensors_are_not_published_in_their_place(self):
        layer = Layer()
        before = addresses(layer)
        for tensors in (layer.state_dict(), {"row": layer.weight.data[0]}):
            with self.assertRaisesRegex(weightcast.Error, "(weight|row) shares its memory with one that is not given") as refused:
                weightcast.publish(self.folder, "engine", 0, 1, tensors=tensors)
            self.assertEqual(refused.exception.code, 64)
        del tensors
        self.assertEqual(addresses(layer), before)
        # Its own objects, and tensors that nobody else has, move. Two of one memory are tied.
        alone = torch.ones(3)
        own = {**layer.state_dict(keep_vars=True), "alone": alone, "tied": alone.view(3)}
        export = self.publish(tensors=own)
        export.memory("weight")[:] = bytes(4 * 24)
        export.memory("alone")[:] = bytes(4 * 3)
        self.assertTrue(torch.equal(layer.weight, torch.zeros(4, 6)))
        self.assertTrue(torch.equal(own["tied"], torch.zeros(3)))

    def test_what_cannot_be_published_is_named(self):
        layer = Layer()
        layer.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        self.expect_refused_and_left("extra is a Tensor of torch.complex64", layer)
        layer.extra = nn.Parameter(torch.zeros(2, device="meta"))
        self.expect_refused_and_left("extra is on meta", layer)
        layer.extra = nn.Parameter(torch.eye(2).to_sparse())
        self.expect_refused_and_left("extra .*sparse", layer)
        layer.extra = nn.Parameter(layer.weight.data[1:3])
        self.expect_refused_and_left("weight and extra share", layer)

    def test_a_publication_that_fails_late_moves_nothing(self):
        layer = Layer()
        before = values(layer)
        places = addresses(layer)
        made = set()
        call = weightcast._library.call

        def take_the_name_first(name, *arguments):
            if name == "weightcast_publish":
                made.update(re.findall("/dev/shm/weightcast-[0-9]+-[0-9a-f]+", pathlib.Path("/proc/self/maps").read_text()))
                pathlib.Path(self.folder, "engine-0.json", "x").mkdir(parents=True)
            call(name, *arguments)

        with unittest.mock.patch.object(weightcast._library, "call", take_the_name_first):
            with self.assertRaises(weightcast.Error) as refused:
                weightcast.publish(self.folder, "engine", 0, 1, module=layer)
        self.assertEqual(refused.exception.code, 74)
        self.assertEqual(addresses(layer), places)
        for name, value in values(layer).items():
            self.assertTrue(torch.equal(value, before[name]), name)
        self.assertEqual(len(made), 1)
        self.assertEqual([path for stem in made for path in glob.glob(stem + "-*")], [])


if __name__ == "__main__":
    unittest.main()
