"""Landing maps that are learned from vLLM's own loader say what that loader does.

They have the same boxes as maps that another program found (tests/data/landing, and all folders of WEIGHTCAST_TINY_MODELS), and for
models made at random a checkpoint that is put into place as the map says is, byte for byte, what vLLM has loaded from a file.
"""

import contextlib
import copy
import gzip
import io
import json
import os
import pathlib
import random
import re
import tempfile
import unittest
import unittest.mock

os.environ.update(
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
)

import numpy
import reference_maps
import torch
import transformers
import weightcast
from safetensors.torch import load_file
from vllm.config import LoadConfig, set_current_vllm_config
from vllm.model_executor.model_loader import default_loader
from vllm.model_executor.model_loader.utils import initialize_model
from weightcast import _landing, _recorder, _regions, _tensors, _vllm_learn, learn
from weightcast._sources import Loaded, Made, Zero

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "landing"
SETTINGS = {"tp1": (1, 1), "tp2": (2, 1), "tp2ep": (2, 2), "tp4": (4, 1)}

# What vLLM's configuration classes want and transformers 5 does not write.
MISSING = {
    "deepseek-v3": {"topk_method": "noaux_tc"},
    "deepseek-v3-noqlora": {"topk_method": "noaux_tc"},
    "deepseek-v32": {"topk_method": "noaux_tc"},
    "glm-moe-dsa": {"topk_method": "noaux_tc"},
    "hy-v3": {"first_k_dense_replace": 1, "expert_hidden_dim": 24, "route_norm": True, "qk_norm": True},
    "mimo-v2-flash": {
        "hybrid_layer_pattern": [0, 1, 1],
        "moe_layer_freq": [0, 1, 1],
        "layernorm_epsilon": 1e-5,
        "swa_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "sliding_window_size": 8,
        "swa_v_head_dim": 16,
        "add_swa_attention_sink_bias": True,
    },
}
REFUSED = {"qwen3-vl-moe"}  # by vLLM's loader: such a file of transformers has its experts transposed
WITH_PICTURES = ("qwen3.5", "qwen3-vl")  # need torchvision


class References(unittest.TestCase):
    def check(self, config, tensors, found, tag):
        tp, ep = SETTINGS[tag]
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "config.json").write_text(json.dumps(config))
            pathlib.Path(folder, "tensors.json").write_text(json.dumps(tensors))
            learned = learn.learn(folder, tp=tp, ep=ep)
        self.assertEqual(reference_maps.differences(learned, found), [])
        return learned

    def test_small_models(self):
        through_loader = {}
        for path in sorted(DATA.glob("*.json.gz")):
            model = json.loads(gzip.decompress(path.read_bytes()))
            for tag, found in model["maps"].items():
                with self.subTest(model=path.name, tag=tag):
                    learned = self.check(model["config"], model["tensors"], found, tag)
                    for of in learned["ranks"][0].get("loader", []):
                        through_loader[of["why"]] = learned["tensors"][of["tensor"]]["name"]
        self.assertIn("model.layers.0.mixer.A_log", [of.replace("backbone", "model") for of in through_loader.values()])
        self.assertTrue(any("computes" in why for why in through_loader), through_loader)

    @unittest.skipUnless("WEIGHTCAST_TINY_MODELS" in os.environ, "WEIGHTCAST_TINY_MODELS names no folder")
    def test_all_models(self):
        maps = pathlib.Path(os.environ["WEIGHTCAST_TINY_MODELS"]).glob("*/vllm_map_*.json")
        for folder in sorted({path.parent for path in maps}):
            config = {**json.loads((folder / "config.json").read_text()), **MISSING.get(folder.name, {})}
            if folder.name.startswith("qwen3-vl"):
                config["text_config"]["norm_topk_prob"] = True
            tensors = json.loads((folder / "tensors.json").read_text())
            for tag in SETTINGS:
                found = reference_maps.files(folder, tag, SETTINGS[tag][0])
                if not found:
                    continue
                with self.subTest(model=folder.name, tag=tag):
                    if folder.name in REFUSED:
                        with self.assertRaisesRegex(weightcast.Error, "vLLM's loader refuses the checkpoint"):
                            self.check(config, tensors, found, tag)
                        continue
                    if folder.name.startswith(WITH_PICTURES) and not _installed("torchvision"):
                        self.skipTest("torchvision is not installed")
                    self.check(config, tensors, found, tag)


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _llama(pick):
    heads = pick(4, 8)
    return transformers.LlamaConfig(num_attention_heads=heads, num_key_value_heads=pick(1, 2, heads), head_dim=32,
        tie_word_embeddings=pick(True, False))  # fmt: skip


def _qwen2_moe(pick):
    return transformers.Qwen2MoeConfig(num_attention_heads=4, num_key_value_heads=pick(2, 4), num_experts=pick(4, 6),
        num_experts_per_tok=2, moe_intermediate_size=pick(16, 24), shared_expert_intermediate_size=pick(40, 56))  # fmt: skip


def _qwen3_moe(pick):
    return transformers.Qwen3MoeConfig(num_attention_heads=pick(4, 8), num_key_value_heads=pick(1, 2), head_dim=pick(32, 64),
        num_experts=pick(4, 6), num_experts_per_tok=2, moe_intermediate_size=pick(8, 24), mlp_only_layers=pick([], [1]))  # fmt: skip


def _glm4_moe(pick):
    return transformers.Glm4MoeConfig(num_attention_heads=pick(4, 8), num_key_value_heads=4, head_dim=32,
        n_routed_experts=pick(4, 8), num_experts_per_tok=2, moe_intermediate_size=pick(16, 24), n_shared_experts=1, first_k_dense_replace=1, use_qk_norm=pick(True, False))  # fmt: skip


def _gpt_oss(pick):
    return transformers.GptOssConfig(num_attention_heads=pick(4, 8), num_key_value_heads=4, head_dim=32, num_local_experts=pick(4, 6),
        num_experts_per_tok=2)  # fmt: skip


FAMILIES = {
    "LlamaForCausalLM": _llama,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "Glm4MoeForCausalLM": _glm4_moe,
    "GptOssForCausalLM": _gpt_oss,
}


def make_checkpoint(folder, architecture, chance):
    """A model with random numbers in it, as transformers writes one."""

    def pick(*values):
        return chance.choice(values)

    config = FAMILIES[architecture](pick)
    config.architectures = [architecture]
    config.hidden_size = pick(64, 80, 128)
    config.intermediate_size = pick(48, 96)
    config.vocab_size = chance.randint(100, 400)
    config.num_hidden_layers = 2
    config.max_position_embeddings = 128
    config.dtype = "bfloat16"
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return config


def loaded_by_vllm(folder, rank, tp, ep):
    """A rank's tensors by name, as vLLM has loaded them from the files, before it changes their form."""
    config = _vllm_learn.config_of(folder, tp, 1, ep > 1)
    with _vllm_learn.as_rank(config, rank), _vllm_learn.any_kernel(), set_current_vllm_config(config):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cpu"):
                model = initialize_model(config)
            default_loader.DefaultModelLoader(LoadConfig(use_tqdm_on_load=False)).load_weights(model, config.model_config)
        finally:
            torch.set_default_dtype(before)
        return _tensors.State(model).tensors()


def raw(tensor):
    """A tensor's matrix view, as bits."""
    tensor = tensor.detach().contiguous()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.int8}[tensor.element_size()]
    return tensor.view(bits).reshape(_landing.matrix(tensor.shape)).numpy()


def wrong_places(landing, rank, state, checkpoint):
    """What of a rank's tensors is not what its map makes of a checkpoint: lines."""
    entries = {of["name"]: of for of in rank.get("parameters", [])}
    through_loader = {name for of in rank.get("loader", []) for name in of["parameters"]}
    left = {}
    for of in rank.get("left", []):
        left.setdefault(of["name"], []).extend(of["boxes"])
    named = {*entries, *left, *(alias for of in entries.values() for alias in of.get("aliases", []))}
    for name, tensor in state.items():
        if name not in named and tensor.numel() and not _is_alias(name, state, named):
            yield f"{name} is not in the map"
    for name, of in entries.items():
        for alias in of.get("aliases", []):
            if state[alias].data_ptr() != state[name].data_ptr():
                yield f"{alias} is not {name}"
        if name in through_loader:
            continue
        actual = raw(state[name])
        times = numpy.zeros(actual.shape, int)
        expected = numpy.zeros_like(actual)
        for kind in ("parts", "turned"):
            for box in of.get(kind, []):
                tensor, row, rows, col, cols, *_ = box
                to_row, height, to_col, width = _landing.target(box, kind == "turned")
                source = checkpoint[landing["tensors"][tensor]["name"]].to(state[name].dtype)
                elements = raw(source)[row : row + rows, col : col + cols]
                expected[to_row : to_row + height, to_col : to_col + width] = elements.T if kind == "turned" else elements
                times[to_row : to_row + height, to_col : to_col + width] += 1
        for row, rows, col, cols in of.get("zero", []):
            times[row : row + rows, col : col + cols] += 1
        landed = times.copy()
        for row, rows, col, cols in left.get(name, []):
            times[row : row + rows, col : col + cols] += 1
        if not (times == 1).all():
            yield f"{name}: elements are not in one box each"
        different = (landed > 0) & (expected != actual)
        if different.any():
            yield f"{name}: {different.sum()} elements are others, the first at {tuple(map(int, numpy.argwhere(different)[0]))}"


def _is_alias(name, state, named):
    return any(state[other].data_ptr() == state[name].data_ptr() for other in named if other in state)


class Loads(unittest.TestCase):
    def test_models_made_at_random(self):
        seed = random.SystemRandom().randrange(1 << 30)
        chance = random.Random(seed)
        for architecture in FAMILIES:
            for _ in range(3):
                with tempfile.TemporaryDirectory() as folder:
                    config = make_checkpoint(folder, architecture, chance)
                    tp = chance.choice([1, 2, 4])
                    ep = chance.choice([1, tp]) if "Moe" in architecture or "Oss" in architecture else 1
                    with self.subTest(seed=seed, tp=tp, ep=ep, config=config.to_diff_dict()):
                        landing = learn.learn(folder, tp=tp, ep=ep)
                        checkpoint = load_file(pathlib.Path(folder, "model.safetensors"))
                        for number, rank in enumerate(landing["ranks"]):
                            state = loaded_by_vllm(folder, number, tp, ep)
                            self.assertEqual(list(wrong_places(landing, rank, state, checkpoint)), [])
                            self.assert_mutants_are_found(landing, rank, state, checkpoint, chance)

    def assert_mutants_are_found(self, landing, rank, state, checkpoint, chance):
        """A map with one wrong number in it is found out."""
        for _ in range(5):
            mutant = copy.deepcopy(rank)
            of = chance.choice([of for of in mutant["parameters"] if of.get("parts") or of.get("turned")])
            kind = chance.choice([kind for kind in ("parts", "turned") if of.get(kind)])
            box = chance.choice(of[kind])
            rows, cols = _landing.matrix(landing["tensors"][box[0]]["shape"])
            # Another place in the tensor, another place in the parameter, or another tensor of that shape.
            others = [
                number
                for number, other in enumerate(landing["tensors"])
                if other["shape"] == landing["tensors"][box[0]]["shape"] and number != box[0]
            ]
            changes = [(5, box[5] - 1 if box[5] else 1)] if box[2] > 1 or box[5] else []
            changes += [(1, box[1] - 1)] if box[1] else [(1, 1)] if box[2] < rows else []
            changes += [(3, box[3] - 1)] if box[3] else [(3, 1)] if box[4] < cols else []
            changes += [(0, chance.choice(others))] if others else []
            if not changes:
                continue
            index, value = chance.choice(changes)
            box[index] = value
            try:
                found = list(wrong_places(landing, mutant, state, checkpoint))
            except ValueError:  # it leaves the parameter
                continue
            self.assertTrue(found, (of["name"], kind, index, value))


class Regions(unittest.TestCase):
    """Against numpy, element by element."""

    def test_pieces_of_random_views(self):
        seed = random.SystemRandom().randrange(1 << 30)
        known = 0
        for number in range(400):
            chance = random.Random(seed + number)
            with self.subTest(seed=seed + number), contextlib.suppress(_regions.Mixed):
                self.check(chance)
                known += 1
        self.assertGreater(known, 200)

    def check(self, chance):
        storage = numpy.arange(numpy.prod([chance.choice([1, 2, 3, 4, 6, 8]) for _ in range(3)])).reshape(-1)
        expected, pieces = {}, []
        for write in range(chance.randint(1, 5)):
            target = self.view_of(storage, chance)
            source = numpy.arange(2 * target.size)
            start = chance.randint(0, target.size)
            part = source[start : start + target.size]
            part = part.reshape(target.shape) if chance.random() < 0.7 else part.reshape(target.shape[::-1]).T
            at, dims = self.region(storage, target)
            place, steps = self.region(source, part)
            dims = [(size, step, of) for (size, step), (_, of) in zip(dims, steps, strict=True)]
            pieces = [*_regions.without(pieces, at, dims), _regions.piece(at, dims, write, place)]
            expected.update(zip(target.flatten().tolist(), ((write, int(of)) for of in part.flatten())))
        self.assertEqual(self.elements(pieces), expected)
        wanted = self.view_of(storage, chance)
        at, dims = self.region(storage, wanted)
        order = numpy.arange(wanted.size).reshape(wanted.shape)
        dims = [(size, step, of) for (size, step), (_, of) in zip(dims, self.region(order, order)[1], strict=True)]
        read = {index: expected[of] for index, of in enumerate(wanted.flatten().tolist()) if of in expected}
        self.assertEqual(self.elements(_regions.read(pieces, at, dims)), read)

    @staticmethod
    def view_of(array, chance):
        for _ in range(chance.randint(1, 4)):
            axis = chance.randrange(array.ndim)
            extent = array.shape[axis]
            kind = chance.randrange(3)
            if kind == 0:
                first = chance.randrange(extent)
                array = array[(slice(None),) * axis + (slice(first, chance.randint(first + 1, extent), chance.choice([1, 1, 2])),)]
            elif kind == 1:
                array = array.transpose(chance.sample(range(array.ndim), array.ndim))
            else:
                inner = chance.choice([of for of in range(1, extent + 1) if extent % of == 0])
                with contextlib.suppress(AttributeError):
                    view = array.view()
                    view.shape = (*array.shape[:axis], extent // inner, inner, *array.shape[axis + 1 :])
                    array = view
        return array

    @staticmethod
    def region(storage, view):
        at = (view.__array_interface__["data"][0] - storage.__array_interface__["data"][0]) // storage.itemsize
        return at, [(size, step // storage.itemsize) for size, step in zip(view.shape, view.strides, strict=True)]

    def elements(self, pieces):
        found = {}
        for of in pieces:
            places = [(of.at, of.source_at)]
            for size, step, source_step in of.dims:
                places = [(at + i * step, place + i * source_step) for at, place in places for i in range(size)]
            for at, place in places:
                self.assertNotIn(at, found)
                found[at] = (of.source, place)
        return found


class Recorded(unittest.TestCase):
    """What loaders do to tensors."""

    def record(self, shape, load, dtype=torch.bfloat16, tensors=((4, 6), (4, 6))):
        recorder = _recorder.Recorder()
        with recorder:
            parameter = torch.empty(shape, dtype=dtype)
            given = [recorder.checkpoint_tensor(number, of, torch.bfloat16) for number, of in enumerate(tensors)]
            load(parameter, *given)
        return recorder, recorder.pieces_of(parameter)

    def boxes(self, shape, load, tensors=((4, 6), (4, 6)), dtype=torch.bfloat16):
        listed = [{"name": f"t{number}", "dtype": "BF16", "shape": list(of)} for number, of in enumerate(tensors)]
        recorder, pieces = self.record(shape, load, dtype, tensors)
        rank = _landing.Rank(listed, recorder.asked())
        rank.add("p", _tensors.dtype_name(dtype), shape, [], pieces)
        return rank.json()

    def test_copies_by_way_of_others(self):
        def load(parameter, a, b):
            parameter[:8].copy_(torch.cat([a, b]).contiguous())
            parameter[8:].copy_(torch.stack([a, b])[1].clone())

        found = self.boxes((12, 6), load)
        self.assertEqual(found["parameters"][0]["parts"], [[0, 0, 4, 0, 6, 0, 0], [1, 0, 4, 0, 6, 4, 0], [1, 0, 4, 0, 6, 8, 0]])

    def test_transposed_and_cut(self):
        found = self.boxes((3, 4), lambda p, a, _: p.copy_(a.t().contiguous()[2:5]))
        self.assertEqual(found["parameters"][0]["turned"], [[0, 0, 4, 2, 3, 0, 0]])
        self.assertEqual(found["skipped"], [1])

    def test_rows_that_take_turns(self):
        def load(parameter, a, b):
            parameter[0::2].copy_(a)
            parameter[1::2].copy_(b)

        parts = self.boxes((8, 6), load)["parameters"][0]["parts"]
        self.assertEqual(parts, [[row % 2, row // 2, 1, 0, 6, row, 0] for row in range(8)])

    def test_what_comes_later_stays(self):
        def load(parameter, a, b):
            parameter.zero_()
            parameter[:4].copy_(a)
            parameter[2:4].copy_(b[:2])

        found = self.boxes((6, 6), load)["parameters"][0]
        self.assertEqual(found["parts"], [[0, 0, 2, 0, 6, 0, 0], [1, 0, 2, 0, 6, 2, 0]])
        self.assertEqual(found["zero"], [[4, 2, 0, 6]])

    def test_what_is_computed_goes_through_the_loader(self):
        for load, why in [
            (lambda p, a, b: p.copy_(a + b), "aten.add computes"),
            (lambda p, a, b: p.copy_(-torch.exp(a)), "aten.neg computes"),
            (lambda p, a, b: p.copy_(a).mul_(2), "aten.mul_ computes"),
            (lambda p, a, b: p.copy_(a.float().bfloat16()), "aten._to_copy converts bfloat16 to float32, then aten._to_copy converts float32 to bfloat16"),
            (lambda p, a, b: p.copy_(a.half()), "aten._to_copy converts bfloat16 to float16"),
            (lambda p, a, b: p.copy_(a if a[0, 0].item() > 0 else b), "aten._local_scalar_dense asks for its elements"),
            (lambda p, a, b: p.copy_(a.flip(0)), "aten.flip computes"),
        ]:
            with self.subTest(why=why):
                found = self.boxes((4, 6), load)
                self.assertIn(why, found["loader"][0]["why"])
                self.assertEqual(found["loader"][0]["tensor"], 0)
                self.assertNotIn("parts", found.get("parameters", [{}])[0])

    def test_a_value_that_is_only_handed_on(self):
        found = self.boxes((1,), lambda p, a, _: p.fill_(a[1].item()), tensors=((3,), (3,)))
        self.assertEqual(found["parameters"][0]["parts"], [[0, 0, 1, 1, 1, 0, 0]])
        self.assertNotIn("loader", found)

    def test_a_value_that_is_put_into_several_places(self):
        def load(parameter, a, _):
            value = a[1].item()
            parameter[0].fill_(value)
            parameter[1:].fill_(value)

        found = self.boxes((3,), load, tensors=((3,), (3,)))
        self.assertEqual(found["parameters"][0]["parts"], [[0, 0, 1, 1, 1, 0, column] for column in range(3)])
        self.assertNotIn("loader", found)
        self.assertNotIn("left", found)

    def test_a_value_that_is_looked_at_before(self):
        found = self.boxes((1,), lambda p, a, _: p.fill_(a.item()) if a.item() != 1 else p.zero_(), tensors=((1,), (1,)))
        self.assertEqual(found["loader"][0]["why"], "aten._local_scalar_dense asks for its elements")

    def test_what_nothing_is_written_to_is_left(self):
        found = self.boxes((5, 6), lambda p, a, _: p[:4].copy_(a))
        self.assertEqual(found["left"][0]["boxes"], [[4, 1, 0, 6]])
        self.assertEqual(found["left"][0]["why"], "padding")

    def test_what_the_engine_makes_beside_a_tensor_is_left(self):
        def load(parameter, a, _):
            parameter[:, :6].copy_(a)
            parameter[:, 6:].copy_(torch.arange(2.0))

        found = self.boxes((4, 8), load)
        self.assertEqual(found["parameters"][0]["parts"], [[0, 0, 4, 0, 6, 0, 0]])
        self.assertEqual([of["boxes"] for of in found["left"]], [[[0, 4, 6, 2]]])

    def test_a_type_that_a_job_step_converts(self):
        found = self.boxes((4, 6), lambda p, a, b: p.copy_(a), dtype=torch.float32)
        self.assertEqual(found["parameters"][0]["parts"], [[0, 0, 4, 0, 6, 0, 0]])
        found = self.boxes((4, 6), lambda p, a, b: p.copy_(a), dtype=torch.float16)
        self.assertEqual(found["loader"], [{"tensor": 0, "parameters": ["p"], "why": "aten.copy_ converts bfloat16 to float16"}])

    def test_a_tensor_goes_one_way_on_a_rank(self):
        listed = [{"name": name, "dtype": "BF16", "shape": [2, 6]} for name in "abcd"]
        rank = _landing.Rank(listed)

        def whole(number, at=0):
            return _regions.piece(at, [(12, 1, 1)], Loaded(number), 0)

        rank.add("p", "BF16", (4, 6), [], [whole(0), _regions.piece(12, [(12, 1, 1)], Made("aten.exp computes", {1}), 0)])
        rank.add("q", "BF16", (4, 6), [], [whole(0), whole(2, 12)])
        rank.add("r", "BF16", (2, 6), [], [whole(3)])
        rank.add("s", "F32", (2, 6), [], [whole(3)])
        found = rank.json()
        self.assertEqual([of["tensor"] for of in found["loader"]], [0, 1, 2, 3])
        self.assertEqual([of["parameters"] for of in found["loader"]], [["p", "q"], ["p"], ["q"], ["r", "s"]])
        self.assertFalse(any("parts" in of for of in found["parameters"]))
        self.assertNotIn("skipped", found)

    def test_what_fills_say(self):
        _, pieces = self.record((4, 6), lambda p, a, b: p.fill_(3))
        self.assertIsInstance(pieces[0].source, Made)
        _, pieces = self.record((4, 6), lambda p, a, b: p.zero_())
        self.assertIsInstance(pieces[0].source, Zero)


class Maps(unittest.TestCase):
    def test_every_element_once(self):
        _landing.require_once("p", 4, 6, [[0, 4, 0, 3], [0, 2, 3, 3], [2, 2, 3, 3]])
        for boxes, said in [
            ([[0, 4, 0, 5]], "boxes cover 20"),
            ([[0, 4, 0, 4], [0, 2, 3, 3], [2, 2, 5, 1]], "two boxes have the element"),
            ([[0, 4, 0, 6], [3, 2, 0, 1]], "is not in it"),
            ([[0, 2, 0, 6], [1, 2, 0, 6]], "two boxes have the element"),
        ]:
            with self.subTest(boxes=boxes), self.assertRaisesRegex(weightcast.Error, said):
                _landing.require_once("p", 4, 6, boxes)

    def landing(self, **entry):
        tensors = [{"name": name, "dtype": "BF16", "shape": [4, 6]} for name in ("a", "b")]
        parameter = {"name": "p", "dtype": "BF16", "shape": [4, 6], **entry}
        return {"layout": {"tp": 1}, "tensors": tensors, "ranks": [{"parameters": [parameter]}]}

    def test_differences_name_both_boxes(self):
        one = self.landing(parts=[[0, 0, 4, 0, 6, 0, 0]])
        self.assertEqual(_landing.differences(one, self.landing(parts=[[0, 0, 2, 0, 6, 0, 0], [0, 2, 2, 0, 6, 2, 0]])), [])
        for other, said in [
            ({"parts": [[1, 0, 4, 0, 6, 0, 0]]}, "rank 0: parameter p: [0:4, 0:6] come from a [0:4, 0:6] and from b [0:4, 0:6]"),
            ({"parts": [[0, 0, 2, 0, 6, 0, 0], [0, 3, 1, 0, 6, 2, 0], [0, 2, 1, 0, 6, 3, 0]]}, "[2:3, 0:6] come from a [2:3, 0:6] and from a [3:4, 0:6]"),
            ({"parts": [[0, 0, 3, 0, 6, 0, 0]]}, "[0:4, 0:6] come from a [0:4, 0:6] in the first map and from nothing in the second"),
            ({"parts": [[0, 0, 3, 0, 6, 0, 0]], "zero": [[3, 1, 0, 6]]}, "[3:4, 0:6] come from a [3:4, 0:6] and from zero"),
            ({"dtype": "F32"}, "is BF16 [4, 6] and F32 [4, 6]"),
        ]:  # fmt: skip
            with self.subTest(said=said):
                self.assertIn(said, "\n".join(_landing.differences(one, self.landing(**other))))

    def test_the_command_refuses_with_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            model = json.loads(gzip.decompress((DATA / "qwen3-moe.json.gz").read_bytes()))
            (root / "config.json").write_text(json.dumps(model["config"]))
            (root / "tensors.json").write_text(json.dumps(model["tensors"]))
            (root / "broken.json").write_text("{")
            (root / "no-list").mkdir()
            (root / "no-list" / "config.json").write_text("{}")
            for name, make in {"no-file": os.mkfifo, "none-in-it": lambda path: path.write_bytes(b"\2" + bytes(7) + b"{}")}.items():
                (root / name).mkdir()
                (root / name / "config.json").write_text(json.dumps(model["config"]))
                make(root / name / "model.safetensors")
            (root / "bad-list").mkdir()
            (root / "bad-list" / "config.json").write_text("{}")
            (root / "bad-list" / "tensors.json").write_text('[{"name": "x\\u001b", "dtype": "BF16", "shape": [-1]}]')
            for words, code, said in [
                ([folder], 64, "give --output FILE"),
                ([folder, "--tp", "x"], 64, "--tp"),
                ([folder, "--tp", "0", "--output", "x"], 64, "tp is 0"),
                ([folder, "--tp", "3", "--output", "x"], 64, f"vLLM refuses {folder}: Total number of attention heads"),
                ([folder, "--tp", "4", "--ep", "2", "--output", "x"], 64, "ep is 2"),
                ([folder, "--engine", "sglang", "--output", "x"], 64, "nothing can be learned from SGLang"),
                ([folder, "--engine", "trt", "--output", "x"], 64, "engine 'trt' is unknown"),
                ([f"{folder}/none", "--output", "x"], 74, "is no folder"),
                ([f"{folder}/no-list", "--output", "x"], 74, "neither *.safetensors nor tensors.json"),
                ([f"{folder}/bad-list", "--output", "x"], 65, "entry 0 has not a name, a dtype of safetensors and a shape"),
                ([f"{folder}/no-file", "--output", "x"], 74, "model.safetensors cannot be read: it is no regular file"),
                ([f"{folder}/none-in-it", "--output", "x"], 65, "has no tensor"),
                ([folder, "--output", "/dev/full"], 74, "/dev/full cannot be written: No space left on device"),
                ([folder, "--check", f"{folder}/broken.json"], 65, "is no JSON file"),
                ([folder, "--check", f"{folder}/none.json"], 74, "cannot be read"),
                ([folder, "--check", f"{folder}/config.json"], 65, "is no landing map"),
                ([folder, "--output", f"{folder}/none/map.json"], 74, "cannot be written"),
            ]:
                with self.subTest(words=words), contextlib.redirect_stderr(io.StringIO()) as errors:
                    with contextlib.redirect_stdout(io.StringIO()):
                        self.assertEqual(learn.main(words), code)
                    lines = errors.getvalue().splitlines()
                    self.assertEqual(len(lines), 1, lines)
                    self.assertRegex(lines[0], f"^weightcast: error: .*{re.escape(said)}")
            self.assertTrue(pathlib.Path("/dev/full").is_char_device())

    def test_of_what_vllm_says_the_beginning_and_the_end(self):
        said = _vllm_learn.first_line(ValueError("no parameter 'x' among " + 1000 * "many " + "and y\nmore"))
        self.assertLess(len(said), 500)
        self.assertRegex(said, "^no parameter 'x' among many .* … .*and y$")

    def test_what_nothing_is_written_to_is_told(self):
        landing = {"tensors": [], "ranks": [{"left": [{"name": "b", "why": "no checkpoint tensor"}, {"name": "a", "why": "no checkpoint tensor"}]}]}
        self.assertIn("left as it is, in 2 parameters such as a: no checkpoint tensor", list(learn.summary(landing)))

    def test_a_link_to_a_map_stays_one(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "link").symlink_to("map.json")
            _landing.write({"landing": _landing.FORMAT, "tensors": [], "ranks": []}, root / "link")
            self.assertTrue((root / "link").is_symlink() and (root / "map.json").is_file())

    def test_a_map_is_checked_against_another(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            model = json.loads(gzip.decompress((DATA / "qwen3-moe.json.gz").read_bytes()))
            (root / "config.json").write_text(json.dumps(model["config"]))
            (root / "tensors.json").write_text(json.dumps(model["tensors"]))
            path = root / "map.json"
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(learn.main([folder, "--tp", "2", "--output", str(path)]), 0)
                self.assertEqual(learn.main([folder, "--tp", "2", "--check", str(path)]), 0)
            landing = _landing.read(path)
            self.assertEqual(landing["key"], _landing.key_of(landing["made_for"]))
            landing["ranks"][1]["parameters"][0]["parts"][0][1] -= 1
            _landing.write(landing, path)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
                self.assertEqual(learn.main([folder, "--tp", "2", "--check", str(path)]), 65)
            name = "model.embed_tokens.weight"
            said = f"parameter {name}: [0:138, 0:80] come from {name} [192:330, 0:80] and from {name} [191:329, 0:80]"
            self.assertIn(f"rank 1: {said}", errors.getvalue())

    def test_a_map_of_an_older_learner_has_another_key(self):
        with tempfile.TemporaryDirectory() as folder:
            model = json.loads(gzip.decompress((DATA / "qwen3-moe.json.gz").read_bytes()))
            pathlib.Path(folder, "config.json").write_text(json.dumps(model["config"]))
            pathlib.Path(folder, "tensors.json").write_text(json.dumps(model["tensors"]))
            landing = learn.learn(folder)
            with unittest.mock.patch.object(_vllm_learn, "VERSION", "0.0.9"):
                older = learn.learn(folder)
        self.assertEqual(landing["ranks"], older["ranks"])
        self.assertNotEqual(landing["key"], older["key"])
        self.assertEqual(older["made_for"]["weightcast"], "0.0.9")

    def test_what_the_engine_has_tied_since(self):
        module = torch.nn.Module()
        module.embedding, module.head = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        rank = {"parameters": [{"name": name} for name in dict(module.named_parameters())]}
        _vllm_learn._require_same_ties(rank, module)
        module.head.weight = module.embedding.weight
        with self.assertRaisesRegex(weightcast.Error, "has tied head.weight to embedding.weight"):
            _vllm_learn._require_same_ties(rank, module)
        _vllm_learn._require_same_ties({"parameters": [{"name": "embedding.weight", "aliases": ["head.weight"]}]}, module)

    def test_a_version_that_was_never_tried(self):
        with unittest.mock.patch("vllm.__version__", "0.33.0"):
            with self.assertRaisesRegex(weightcast.Error, "loader of vLLM 0.33.0 was never tried"):
                learn.vllm_learner()


if __name__ == "__main__":
    unittest.main()
