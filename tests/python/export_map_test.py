"""Trainers with tensors of their own: what their exporter does is learned, and job steps read the trainers' memory by it."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

import job_step
import tiny_model
import torch
import torch.distributed as dist
import transformers
import weightcast
import weightcast.torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers.core_model_loading import revert_weight_conversion
from weightcast import _tags, export_map

PATIENCE = 120  # seconds, on a machine that has other work
HIDDEN = 16


def exporter_of(model):
    """What save_pretrained writes: Hugging Face's tensors out of the module's, whose experts are stacked."""
    return lambda: revert_weight_conversion(model, model.state_dict())


def bits(tensors):
    return {name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def sync(folder, model, ranks, *more, sink=None):
    """Runs a job step from the live trainers to its end, and returns its code and what it says."""
    words = [*job_step.program(ranks), "sync", "--source", f"live:{folder}", "--sink", sink or f"live:{folder}", "--model", str(model), *more]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout


class Own(torch.nn.Module):
    """Two groups of two query heads, a key and a value head, of 4 rows each; experts in a stack."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        torch.manual_seed(3)
        self.qkv = torch.nn.Parameter(torch.randn(2 * 4 * 4, HIDDEN).to(dtype))
        self.experts = torch.nn.Parameter(torch.randn(3, 8, HIDDEN).to(dtype))
        self.norm = torch.nn.Parameter(torch.randn(HIDDEN).float())
        self.unused = torch.nn.Parameter(torch.randn(4).to(dtype))

    def export(self):
        groups = self.qkv.view(2, 4, 4, HIDDEN)
        yield "q", groups[:, :2].reshape(-1, HIDDEN)
        yield "k", groups[:, 2].reshape(-1, HIDDEN)
        yield "v", groups[:, 3].reshape(-1, HIDDEN)
        for number, expert in enumerate(self.experts):
            yield f"experts.{number}.gate", expert[:4].clone()
            yield f"experts.{number}.swapped", torch.cat([expert[4:, 8:], expert[4:, :8]], 1)
        yield "norm", self.norm


class Learning(unittest.TestCase):
    def setUp(self):
        self.model = Own()
        self.before = bits(self.model.state_dict())

    def tearDown(self):
        self.assertEqual(bits(self.model.state_dict()), self.before)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def refused(self, pattern, exporter, **more):
        with self.assertRaisesRegex(weightcast.Error, pattern) as refused:
            export_map.learn(exporter, module=self.model, **more)
        return refused.exception.code

    def test_boxes_of_a_module(self):
        found = export_map.learn(self.model.export, module=self.model)
        names = [of["name"] for of in found["tensors"]]
        boxes = {of["name"]: [[names[box[0]], *box[1:]] for box in of["boxes"]] for of in found["ranks"][0]["tensors"]}
        self.assertEqual(
            sorted(boxes["qkv"]),
            [["k", 0, 4, 0, 16, 128, 16], ["k", 4, 4, 0, 16, 384, 16], ["q", 0, 8, 0, 16, 0, 16],
             ["q", 8, 8, 0, 16, 256, 16], ["v", 0, 4, 0, 16, 192, 16], ["v", 4, 4, 0, 16, 448, 16]])  # fmt: skip
        swapped = [box for box in boxes["experts"] if box[0] == "experts.1.swapped"]
        self.assertEqual(swapped, [["experts.1.swapped", 0, 4, 0, 8, 200, 16], ["experts.1.swapped", 0, 4, 8, 8, 192, 16]])
        self.assertEqual(found["ranks"][0]["left"], ["unused"])
        self.assertEqual([of["dtype"] for of in found["tensors"] if of["name"] == "norm"], ["F32"])
        self.assertIn("not exported: unused", list(export_map.summary(found)))

    def test_more_elements_than_one_chunk_has(self):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.randn(700, 1024).bfloat16())
        found = export_map.learn(lambda: {"w": torch.cat([module.weight[300:], module.weight[:300]])}, module=module)
        self.assertEqual(found["ranks"][0]["tensors"][0]["boxes"],
                         [[0, 0, 400, 0, 1024, 300 * 1024, 1024], [0, 400, 300, 0, 1024, 0, 1024]])  # fmt: skip

    def test_tensors_of_whole_chunks_that_change_places(self):
        # Where a piece begins with a chunk its first number is smaller than its place.
        first, second = (torch.randn(512, 512).bfloat16() for _ in range(2))
        found = export_map.learn(lambda: {"w": torch.cat([second, first])}, tensors={"a": first, "b": second})
        boxes = {of["name"]: of["boxes"] for of in found["ranks"][0]["tensors"]}
        self.assertEqual(boxes, {"a": [[0, 512, 512, 0, 512, 0, 512]], "b": [[0, 0, 512, 0, 512, 0, 512]]})

    def test_types(self):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.uint8):
            with self.subTest(dtype):
                tensor = torch.randn(40, 8).mul(10).abs().to(dtype)
                before = bits({"t": tensor})
                found = export_map.learn(lambda: {"a": tensor[7:], "b": tensor[:7]}, tensors={"t": tensor})
                self.assertEqual(found["ranks"][0]["tensors"][0]["boxes"], [[0, 0, 33, 0, 8, 56, 8], [1, 0, 7, 0, 8, 0, 8]])
                self.assertEqual(bits({"t": tensor}), before)

    def test_rows_at_one_pitch_are_one_box(self):
        # As of rotary embeddings whose halves lie side by side row by row.
        rows = torch.randn(4, 2, 8).bfloat16().view(8, 8)
        found = export_map.learn(lambda: {"w": rows.view(4, 2, 8).transpose(0, 1).reshape(8, 8)}, tensors={"w": rows})
        self.assertEqual(found["ranks"][0]["tensors"][0]["boxes"], [[0, 0, 4, 0, 8, 0, 16], [0, 4, 4, 0, 8, 8, 16]])

    def test_what_is_computed_is_refused_by_name(self):
        def masked(tensor):
            return torch.where(tensor > 0, tensor, torch.zeros_like(tensor))

        ways = {"plus": lambda of: of + 1, "minus": lambda of: -of, "scaled": lambda of: of * 1.5, "size": torch.abs, "masked": masked,
                "rounded": lambda of: of.to(torch.float8_e5m2).to(of.dtype), "mean": lambda of: (of + of.flip(0)) / 2,
                "padded": lambda of: torch.cat([of, torch.zeros_like(of)]), "made": torch.ones_like}  # fmt: skip
        for name, way in ways.items():
            with self.subTest(name):
                code = self.refused(f"exporter's {name}: its elements are computed", lambda: {"q": self.model.qkv, name: way(self.model.qkv)})
                self.assertEqual(code, 65)

    def test_what_is_transposed_is_refused_by_name(self):
        self.refused("exporter's turned: it is transposed", lambda: {"turned": self.model.qkv.t()})
        self.refused(r"exporter's a \(2 such tensors\): it is transposed", lambda: {"a": self.model.qkv.t(), "b": self.model.qkv.t()})

    def test_conversions_are_refused_but_what_is_published_is_a_copy(self):
        self.refused("it is F16, made of BF16 and F32: nothing is converted", lambda: {"half": self.model.qkv.half()})
        self.refused("wide: it is F32, made of BF16: nothing is converted", lambda: {"wide": self.model.qkv.float()})
        for exporter in (lambda: {"norm": self.model.norm.bfloat16()}, lambda: {"norm": self.model.norm}):
            found = export_map.learn(exporter, module=self.model, dtype=torch.bfloat16)
            self.assertEqual((found["tensors"][0]["dtype"], found["ranks"][0]["tensors"][0]["dtype"]), ("BF16", "BF16"))
        self.refused("norm.* computed", lambda: {"norm": self.model.norm.bfloat16() * 2}, dtype=torch.bfloat16)

    def test_exporters_that_are_none(self):
        calls = []

        def changes():
            calls.append(1)
            return {"a": self.model.qkv, **({"b": self.model.norm} if len(calls) > 1 else {})}

        def ends():
            calls.append(1)
            return {"a": self.model.qkv, **({"b": self.model.norm} if len(calls) < 3 else {})}

        self.refused("gives b once, and otherwise", changes)
        calls.clear()
        self.refused("gives b once, and not when it runs again", ends)
        self.refused("gives a twice", lambda: [("a", self.model.qkv), ("a", self.model.qkv)])
        self.refused("gives no tensor on any rank", lambda: {})
        self.refused("gives int; let it give pairs", lambda: 5)
        self.refused("gives a int; let it give pairs", lambda: [5])
        self.refused("gives a int and a Parameter", lambda: [(5, self.model.qkv)])
        self.refused("replicas is 5", self.model.export, replicas=5)
        self.refused("replicas has rank 1, but there are 1", self.model.export, replicas=[[0, 1]])
        with self.assertRaisesRegex(weightcast.Error, "no process group of torch.distributed has as many"):
            export_map.learn(self.model.export, module=self.model, ranks=2)
        with self.assertRaisesRegex(weightcast.Error, "give module, or tensors"):
            export_map.learn(self.model.export)

    def test_parameters_are_restored_whatever_is_raised(self):
        def fails():
            yield "q", self.model.qkv
            raise RuntimeError("no room")

        self.assertEqual(self.refused("rank 0: the exporter failed: RuntimeError: no room", fails), 70)
        for raised in (KeyboardInterrupt, SystemExit):
            with self.subTest(raised), self.assertRaises(raised):
                def leaves(raised=raised):
                    yield "q", self.model.qkv
                    raise raised

                export_map.learn(leaves, module=self.model)
            self.assertEqual(bits(self.model.state_dict()), self.before)

        def interrupted():
            yield "q", self.model.qkv
            os.kill(os.getpid(), signal.SIGINT)
            yield "k", self.model.qkv

        with self.assertRaises(KeyboardInterrupt):
            export_map.learn(interrupted, module=self.model)

    def test_an_interrupt_waits_until_tensors_are_restored(self):
        restore = _tags._Tagged.restore

        def restore_interrupted(tagged):
            if tagged._changed:
                tagged.interrupts.wait()
                os.kill(os.getpid(), signal.SIGINT)
            restore(tagged)

        _tags._Tagged.restore = restore_interrupted
        self.addCleanup(setattr, _tags._Tagged, "restore", restore)
        with self.assertRaises(KeyboardInterrupt):
            export_map.learn(self.model.export, module=self.model)
        self.assertEqual(bits(self.model.state_dict()), self.before)


class Updates(unittest.TestCase):
    """Job steps from trainers whose tensors are not Hugging Face's."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.folder = self.directory / "weights"

    def engine_of(self, checkpoint):
        """An engine that has Hugging Face's tensors whole."""
        tensors = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.items()}
        engine = weightcast.publish(self.folder, "engine", 0, 1, tensors=tensors, layout="hf")
        self.addCleanup(engine.close)
        return engine, tensors

    def updated(self, engine, trainer, version, model, ranks, *more):
        trainer.offer(version, wait=False)
        with job_step.start(self.folder, str(model), ranks, "--inference-alloc", "hf", *more) as job:
            with engine.pause(timeout=PATIENCE) as update:
                self.assertEqual(update.version, version)
            said = job.communicate()[0]
        self.assertEqual(job.returncode, 0, said)
        trainer.settle(PATIENCE)

    def test_modules_of_transformers_as_they_are_saved(self):
        sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, dtype="bfloat16")  # fmt: skip
        experts = dict(moe_intermediate_size=16, num_experts_per_tok=2)
        configs = {
            "Qwen3MoeForCausalLM": transformers.Qwen3MoeConfig(**sizes, **experts, num_experts=6, tie_word_embeddings=True),
            "Qwen3ForCausalLM": transformers.Qwen3Config(**sizes),
            "LlamaForCausalLM": transformers.LlamaConfig(**sizes),
            "Qwen2ForCausalLM": transformers.Qwen2Config(**sizes),
        }  # fmt: skip
        for architecture, config in configs.items():
            with self.subTest(architecture):
                self.folder = self.directory / architecture / "weights"
                self.folder.parent.mkdir()
                config.architectures = [architecture]
                torch.manual_seed(5)
                model = getattr(transformers, architecture)(config).to(torch.bfloat16)
                model.save_pretrained(self.folder.parent)
                checkpoint = load_file(self.folder.parent / "model.safetensors")
                trainer = weightcast.torch.publish(self.folder, 0, 1, model, exporter=exporter_of(model))
                self.addCleanup(trainer.close)
                engine, tensors = self.engine_of(checkpoint)
                self.updated(engine, trainer, 1, self.folder.parent, 2)
                self.assertEqual(bits(tensors), bits(checkpoint))
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(-1)
                self.updated(engine, trainer, 2, self.folder.parent, 2)
                self.assertEqual(bits(tensors), bits({name: -tensor for name, tensor in checkpoint.items()}))

    def test_a_folder_as_job_steps_name_it_and_one_that_is_none(self):
        module = torch.nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
        exporter = lambda: {"w": module.weight}  # noqa: E731
        with weightcast.torch.publish(f"live:{self.folder}", 0, 1, module, exporter=exporter):
            self.assertEqual(len(list(self.folder.glob("export-map-*.json"))), 1)
        with self.assertRaisesRegex(weightcast.Error, "folder None"):
            weightcast.torch.publish(None, 0, 1, module, exporter=exporter)
        with self.assertRaisesRegex(weightcast.Error, "float8_e8m0fnu"):
            weightcast.torch.publish(self.folder, 0, 1, module, torch.float8_e8m0fnu, exporter=exporter)

    def test_masters_in_float32_are_published_as_copies(self):
        tiny_model.write_config(self.directory, "bfloat16", tied=False, hidden=32, vocabulary=100)
        model = tiny_model.make_model(self.directory, seed=1).float()
        trainer = weightcast.torch.publish(self.folder, 0, 1, model, torch.bfloat16, exporter=exporter_of(model))
        self.addCleanup(trainer.close)
        wanted = {name: tensor.to(torch.bfloat16) for name, tensor in exporter_of(model)().items()}
        engine, tensors = self.engine_of(wanted)
        self.updated(engine, trainer, 1, self.directory, 2)
        self.assertEqual(bits(tensors), bits(wanted))

    def test_a_server_goes_on_with_another_map(self):
        tiny_model.write_config(self.directory, "bfloat16", tied=False, hidden=32, vocabulary=100)
        model = tiny_model.make_model(self.directory, seed=1)
        wanted = {name: tensor.clone() for name, tensor in exporter_of(model)().items()}
        engine, tensors = self.engine_of(wanted)
        flat = Flat({name: -tensor for name, tensor in wanted.items()})
        options = [self.folder, str(self.directory), 2, "--inference-alloc", "hf", "--on-offer"]
        with job_step.start(*options, command="serve") as server:
            for version, module, exporter in ((1, model, exporter_of(model)), (2, flat, flat.export)):
                with weightcast.torch.publish(self.folder, 0, 1, module, exporter=exporter) as trainer:
                    trainer.offer(version, wait=False)
                    with engine.pause(timeout=PATIENCE) as update:
                        self.assertEqual(update.version, version)
                    trainer.settle(PATIENCE)
                    self.assertEqual(bits(tensors), bits(dict(exporter())))
            server.send_signal(signal.SIGTERM)
            self.assertIn("2 updates are done", server.communicate(timeout=PATIENCE)[0])

    def test_two_trainers_that_cut_and_fuse(self):
        tiny_model.write_config(self.directory, "bfloat16", tied=False, hidden=32, vocabulary=100)
        words = [sys.executable, "-B", __file__, self.directory]
        trainers = [subprocess.Popen([*words, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for rank in range(2)]
        try:
            for trainer in trainers:
                self.assertEqual(trainer.stdout.readline(), "published\n")
            wanted = load_file(self.directory / "wanted.safetensors")
            engine, tensors = self.engine_of(wanted)
            options = [self.directory, 3, "--trainers", "2", "--inference-alloc", "hf"]
            code, said = sync(self.folder, self.directory, 2, "--inference-alloc", "hf")
            self.assertEqual((code, "is one of 2 trainers, but the job's layout has 1" in said), (65, True), said)
            code, said = sync(self.folder, *options[:2], "--trainer-alloc", "megatron:t2", "--inference-alloc", "hf")
            self.assertEqual((code, "was published with layout map:" in said), (64, True), said)
            with job_step.start(self.folder, str(self.directory), *options[1:]) as job:
                with engine.pause(timeout=PATIENCE):
                    pass
                said = job.communicate()[0]
            self.assertEqual(job.returncode, 0, said)
            self.assertEqual(bits(tensors), bits(wanted))
        finally:
            for trainer in trainers:
                trainer.communicate("\n", timeout=PATIENCE)
        self.assertEqual([trainer.returncode for trainer in trainers], [0, 0])

    def test_wrong_maps(self):
        tiny_model.write_config(self.directory, "bfloat16", tied=False, hidden=32, vocabulary=100)
        model = tiny_model.make_model(self.directory, seed=1)

        def lacks():
            tensors = exporter_of(model)()
            tensors.pop("model.norm.weight")
            return tensors

        found = export_map.learn(lacks, module=model)
        path = export_map.write(found, self.folder)
        trainer = weightcast.publish(self.folder, "trainer", 0, 1, module=model)
        self.addCleanup(trainer.close)
        trainer.offer(1, wait=False)
        sink = f"hdf5:{self.directory / 'shards'}"

        def refused(code, text, *more):
            got, said = sync(self.folder, self.directory, 2, *more, sink=sink)
            self.assertEqual((got, text in said), (code, True), said)

        refused(65, f"{path}: tensor model.norm.weight [32] is missing", "--export-map", path)
        refused(74, "--export-map: ", "--export-map", path + "x")
        refused(64, "not together with", "--export-map", path, "--trainer-alloc", "megatron:t1")
        trainer.close(keep=True)
        good = export_map.write(export_map.learn(exporter_of(model), module=model), self.folder)
        model.register_parameter("more", torch.nn.Parameter(torch.zeros(3)))
        with weightcast.publish(self.folder, "trainer", 0, 1, module=model) as trainer:
            trainer.offer(1, wait=False)
            refused(65, "tensor more [3] is published, but", "--export-map", good)


class Flat(torch.nn.Module):
    """All tensors of Hugging Face's in one vector."""

    def __init__(self, tensors):
        super().__init__()
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.flat = torch.nn.Parameter(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]))

    def export(self):
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Cut(torch.nn.Module):
    """Of the tiny Qwen3-MoE what rank `rank` of two has: query, key and value of whole groups in one tensor, the others by
    columns, rows or experts; norms, routers and the dense layer's gate and up whole."""

    def __init__(self, whole, rank):
        super().__init__()
        self.rank = rank
        self.plain = torch.nn.ParameterDict()
        for name, tensor in whole.items():
            own = self.part(name, tensor, whole)
            if own is not None:
                self.plain[name.replace(".", "/")] = torch.nn.Parameter(own.clone())

    def part(self, name, tensor, whole):
        if name.endswith("q_proj.weight"):
            q, k, v = (whole[name.replace("q_proj", kind)].view(2, -1, tensor.shape[1]) for kind in ("q_proj", "k_proj", "v_proj"))
            return torch.cat([q[self.rank], k[self.rank], v[self.rank]])
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            return None
        if ".experts." in name:
            return tensor if int(name.split(".experts.")[1].split(".")[0]) % 2 == self.rank else None
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return tensor.chunk(2, 1)[self.rank]
        if name.startswith(("model.embed", "lm_head")):
            return tensor.chunk(2)[self.rank]
        return tensor

    def export(self):
        """Gathers what is cut. Rank 1 gives of its experts alone."""

        def both(tensor):
            parts = [torch.empty_like(tensor), torch.empty_like(tensor)]
            dist.all_gather(parts, tensor.detach())
            return parts

        for key, tensor in self.plain.items():
            name = key.replace("/", ".")
            if ".experts." in name:
                yield name, tensor
                continue
            if name.endswith("q_proj.weight"):
                heads = [of.split([32, 16, 16]) for of in both(tensor)]
                found = {name.replace("q_proj", kind): torch.cat([of[i] for of in heads]) for i, kind in enumerate(("q_proj", "k_proj", "v_proj"))}
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                found = {name: torch.cat(both(tensor), 1)}
            elif name.startswith(("model.embed", "lm_head")):
                found = {name: torch.cat(both(tensor))}
            else:
                found = {name: tensor}
            if self.rank == 0:
                yield from found.items()


def train(directory, rank):
    """Publishes one of two trainers, and waits for a line."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    model = tiny_model.make_model(directory, seed=7)
    whole = {name: tensor.clone() for name, tensor in exporter_of(model)().items()}
    if rank == 0:
        save_file(whole, f"{directory}/wanted.safetensors")
    check_parts(rank)
    own = Cut(whole, rank)
    before = bits(own.state_dict())
    try:
        weightcast.torch.publish(f"{directory}/weights", rank, 2, own, exporter=lambda: fails_on_rank_1(own, rank))
    except weightcast.Error as error:
        assert "rank 1: the exporter failed: ValueError: not here" in str(error), error
    assert bits(own.state_dict()) == before
    with weightcast.torch.publish(
        f"{directory}/weights", rank, 2, own, exporter=own.export, replicas=lambda name: [[0, 1]] if "norm" in name else []
    ) as export:
        assert bits(own.state_dict()) == before
        export.offer(1, wait=False)
        print("published", flush=True)
        sys.stdin.readline()
        export.settle(PATIENCE)
    dist.destroy_process_group()


def check_parts(rank):
    """Of DTensors each rank has its own part in the map."""
    mesh = init_device_mesh("cpu", (2,))
    placements = {"rows": Shard(0), "columns": Shard(1), "copy": Replicate()}
    module = torch.nn.Module()
    for name, placement in placements.items():
        module.register_parameter(name, torch.nn.Parameter(distribute_tensor(torch.randn(5, 4).bfloat16(), mesh, [placement])))
    before = bits({name: tensor.to_local() for name, tensor in module.state_dict().items()})

    def learn(replicas):
        return export_map.learn(module.state_dict, module=module, rank=rank, ranks=2, replicas=replicas)

    found = learn(lambda name: [[1, 0]] if name == "copy" else [])
    assert [of["name"] for of in found["tensors"]] == ["columns", "copy", "rows"], found
    boxes = [{of["name"]: of["boxes"] for of in listed["tensors"]} for listed in found["ranks"]]
    copy = [[1, 0, 5, 0, 4, 0, 4]]
    assert boxes[0] == {"rows": [[2, 0, 3, 0, 4, 0, 4]], "columns": [[0, 0, 5, 0, 2, 0, 2]], "copy": copy}, boxes
    assert boxes[1] == {"rows": [[2, 3, 2, 0, 4, 0, 4]], "columns": [[0, 0, 5, 2, 2, 0, 2]], "copy": copy}, boxes
    try:
        learn([[0, 1]])
    except weightcast.Error as error:
        assert "not equal on ranks 0 and 1, which replicas has in one group" in str(error), error
    else:
        raise AssertionError("taken")
    assert bits({name: tensor.to_local() for name, tensor in module.state_dict().items()}) == before


def fails_on_rank_1(own, rank):
    if rank == 1:
        raise ValueError("not here")
    return dict(own.plain)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        train(sys.argv[1], int(sys.argv[2]))
    else:
        unittest.main()
