"""What weightcast.megatron says of how trainers divide a model, and what it publishes and refuses. One process."""

import dataclasses
import itertools
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import megatron.core
import megatron_model
import torch
import torch.distributed as dist
import weightcast.megatron
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.parallel_state import RankGenerator
from megatron.core.transformer.module import Float16Module
from weightcast.megatron import Chunk, Layout, Place

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent / "data/python-coder-qwen3-moe/step0"


def indices(order, world, tp, pp, **other):
    """Where each rank stands, as Megatron counts."""
    generator = RankGenerator(tp=tp, pp=pp, ep=other.get("ep", 1), cp=other.get("cp", 1), dp=other["dp"], order=order)
    found = [{} for _ in range(world)]
    for name in ("tp", "pp", "ep", "cp", "dp"):
        for group in generator.get_ranks(name):
            for number, rank in enumerate(group):
                found[rank][name] = number
    return found


def stages_of(layers):
    """The chunks of each stage, from the numbers of layers of all chunks, chunk 0 of all stages first."""
    first, made = 1, []
    ends = [number for number, count in enumerate(layers) if count]
    for number, count in enumerate(layers):
        numbers = tuple(range(first, first + count))
        made.append(Chunk(numbers, number == 0, bool(ends) and number == ends[-1], number == len(layers) - 1))
        first += count
    return made


def places_of(order, world, pp, tp=1, cp=1, etp=1, ep=1, layers=None):
    dp, edp = world // (pp * tp * cp), world // (pp * etp * ep)
    dense = indices(order, world, tp, pp, cp=cp, dp=dp)
    experts = indices(order, world, etp, pp, ep=ep, dp=edp)
    size = {"pp": pp, "tp": tp, "cp": cp, "dp": dp, "etp": etp, "ep": ep, "edp": edp}
    chunks = stages_of(layers or [2] * pp)
    return [
        Place(
            {"pp": d["pp"], "tp": d["tp"], "cp": d["cp"], "dp": d["dp"], "etp": e["tp"], "ep": e["ep"], "edp": e["dp"]},
            size,
            tuple(chunks[d["pp"] :: pp]),
        )
        for d, e in zip(dense, experts)
    ]


class Layouts(unittest.TestCase):
    def expect(self, options, *sizes, **more):
        layout = Layout(places_of(*sizes, **more))
        self.assertEqual(layout.options, options)
        self.assertEqual(str(layout), options.removeprefix("--trainer-alloc ").replace("'", ""))

    def refuse(self, places, *words):
        with self.assertRaises(weightcast.Error) as raised:
            Layout(places)
        self.assertEqual(raised.exception.code, 64)
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_are_those_of_megatrons_ranks(self):
        usual, pipeline_first = "tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"
        self.expect("--trainer-alloc 'megatron:(attn:d1p1t1c1|ffn:d1p1t1e1)'", usual, 1, 1)
        self.expect("--trainer-alloc 'megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)'", usual, 16, 4, tp=2, cp=2, etp=2, ep=2)
        self.expect("--trainer-alloc 'megatron:(attn:d4p2t2c1|ffn:d1p2t1e8)'", usual, 16, 2, tp=2, ep=8)
        more = "--trainer-alloc 'megatron:(attn:d2p2t2c1|ffn:d2p2t1e2)' --trainer-order tp-pp-dp"
        self.expect(more, pipeline_first, 8, 2, tp=2, ep=2)
        # One replica or one stage: both orders are the same.
        self.expect("--trainer-alloc 'megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)'", pipeline_first, 4, 2, tp=2, ep=2)
        self.expect("--trainer-alloc 'megatron:(attn:d4p1t1c1|ffn:d2p1t1e2)'", pipeline_first, 4, 1, ep=2)
        uneven = "--trainer-alloc 'megatron:(attn:d1p2t1c1|ffn:d1p2t1e1)' --stage-layers "
        self.expect(uneven + "2,1", usual, 2, 2, layers=[2, 1])
        self.expect(uneven + "1,1,1,1", usual, 2, 2, layers=[1, 1, 1, 1])
        self.expect(uneven + "2,1,0,3", usual, 2, 2, layers=[2, 1, 0, 3])

    def test_that_no_options_say_are_refused(self):
        # Data parallelism innermost.
        self.refuse(places_of("dp-tp-cp-ep-pp", 4, 1, tp=2), "trainer 1 is pp 0 tp 0", "expects pp 0 tp 1", "order tp-cp-ep-dp-pp")

        def changed(change, layers=(2, 2)):
            places = places_of("tp-cp-ep-dp-pp", 2, 2, layers=list(layers))
            return [dataclasses.replace(place, chunks=tuple(change(chunk) for chunk in place.chunks)) for place in places]

        self.refuse(changed(lambda c: dataclasses.replace(c, layers=tuple(5 - layer for layer in c.layers))), "[4, 3, 2, 1]")
        self.refuse(changed(lambda c: dataclasses.replace(c, embedding=not c.embedding)), "embedding is in chunks [1]")
        self.refuse(changed(lambda c: dataclasses.replace(c, head=True)), "output layer is in chunks [0, 1]")
        # The last stage has the loss alone.
        self.refuse(changed(lambda c: dataclasses.replace(c, final_norm=c.head), (4, 0)), "final norm is in chunks [1]", "expects 0")
        two = places_of("tp-cp-ep-dp-pp", 2, 1)
        self.refuse([two[0], dataclasses.replace(two[1], chunks=())], "trainer 1 has other layers")
        stages = places_of("tp-cp-ep-dp-pp", 2, 2, layers=[1, 1, 1, 1])
        self.refuse([stages[0], dataclasses.replace(stages[1], chunks=stages[1].chunks[:1])], "stages have 2, 1 chunks")

    def test_are_read_by_the_program_as_it_writes_them(self):
        for places in (
            places_of("tp-cp-ep-pp-dp", 8, 2, tp=2, ep=2, layers=[2, 1]),
            places_of("tp-cp-ep-dp-pp", 4, 1, tp=2, ep=4),
        ):
            layout = Layout(places)
            words = [os.environ["WEIGHTCAST_BINARY"], "convert", "--source", CONFIG, "--to", "megatron"]
            words += shlex.split(layout.options)
            with tempfile.TemporaryDirectory() as folder:
                said = subprocess.run([*words, "--output", folder + "/shards"], capture_output=True, text=True, timeout=120)
            self.assertEqual(said.returncode, 0, said.stderr)
            self.assertIn(f"shards of {layout}, ", said.stdout)


def places_in_memory(model):
    return [parameter.data_ptr() for parameter in model.parameters()] if isinstance(model, torch.nn.Module) else []


class Models(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        megatron_model.begin()
        cls.addClassCleanup(dist.destroy_process_group)
        cls.addClassCleanup(parallel_state.destroy_model_parallel)
        cls.folder = cls.directory.name + "/weights"

    def model(self):
        return megatron_model.make_chunks(CONFIG, torch.bfloat16)[0]

    def refuse(self, model, *words):
        places = places_in_memory(model)
        with self.assertRaises(weightcast.Error) as raised:
            weightcast.megatron.publish(self.folder, model)
        self.assertEqual(raised.exception.code, 64, raised.exception)
        for word in words:
            self.assertIn(word, str(raised.exception))
        self.assertFalse(list(pathlib.Path(self.folder).glob("*.json")))
        self.assertEqual(places, places_in_memory(model))

    def test_what_no_job_step_reads(self):
        model = self.model()
        for field, value in {
            "multi_latent_attention": True,
            "mtp_num_layers": 1,
            "experimental_attention_variant": "gated_delta_net",
            "fp8_param": True,
            "fp4_param": True,
            "moe_single_grouped_weight": True,
            "moe_mlp_glu_interleave_size": 32,
            "moe_shared_expert_glu_interleave_size": 32,
            "rotary_interleaved": True,
            "layernorm_zero_centered_gamma": True,
            "cpu_offloading_weights": True,
            "gtp_weight_remat_size": 2,
            "expert_gtp_weight_remat_size": 2,
        }.items():
            with self.subTest(field):
                before = getattr(model.config, field)
                setattr(model.config, field, value)
                self.refuse(model, f"{field} is {value}: ")
                setattr(model.config, field, before)
        self.refuse([], "0 chunks", "give a list of all")
        self.refuse([model, self.model()], "2 chunks", "give a list of 1")
        self.refuse(torch.nn.Linear(2, 2), "the model is a Linear", "GPTModel")
        self.refuse(LanguageModule(model.config), "the model is a LanguageModule", "the GPTModel inside")

    def test_another_version(self):
        own, megatron.core.__version__ = megatron.core.__version__, "0.20.0"
        try:
            self.refuse(self.model(), "Megatron-Core 0.20.0 was never tried", "WEIGHTCAST_MEGATRON_VERSION=0.20.0")
            os.environ["WEIGHTCAST_MEGATRON_VERSION"] = "0.20.0"
            weightcast.megatron.publish(self.folder, self.model()).close()
        finally:
            os.environ.pop("WEIGHTCAST_MEGATRON_VERSION", None)
            megatron.core.__version__ = own

    def wrapped(self, **options):
        model = self.model()
        config = DistributedDataParallelConfig(**options)
        return DistributedDataParallel(model.config, config, Float16Module(model.config, model))

    def test_a_distributed_optimizers_buffers_on_the_cpu(self):
        self.refuse(self.wrapped(use_distributed_optimizer=True), "use_distributed_optimizer", "train on GPUs")

    def test_wrappers_are_seen_through(self):
        wrapped = self.wrapped()
        before = [parameter.detach().clone() for parameter in wrapped.parameters()]
        with weightcast.megatron.publish(self.folder, wrapped) as export:
            self.assertEqual(export.options, "--trainer-alloc 'megatron:(attn:d1p1t1c1|ffn:d1p1t1e1)'")
            names = [name for name, _ in wrapped.module.module.named_parameters()]
            for name in names:
                self.assertGreater(len(export.memory(name)), 0)
            self.assertIn("decoder.layers.2.mlp.experts.local_experts.7.linear_fc2.weight", names)
            export.offer(1, wait=False)
        self.assertTrue(all(map(torch.equal, before, wrapped.parameters())))


class TwoRanks(unittest.TestCase):
    def run_on_two(self, what):
        words = [sys.executable, "-B", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, what]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=300)
        self.assertEqual(ran.returncode, 0, ran.stderr)

    def test_what_one_refuses_all_refuse(self):
        self.run_on_two("refuse")

    def test_an_offer_has_whole_parameters(self):
        self.run_on_two("offer")


def refuse_on_one():
    megatron_model.begin()
    model = megatron_model.make_chunks(CONFIG, torch.bfloat16)[0]
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    own = model.config.fp8_param = dist.get_rank() == 1
    try:
        weightcast.megatron.publish(folder[0], model)
    except weightcast.Error as error:
        assert error.code == 64 and str(error).startswith("trainer 1: fp8_param is True: "), error
    else:
        raise AssertionError("published")
    # What the client refuses on one rank is withdrawn on the others.
    model.config.fp8_param = False
    if own:
        model.output_layer.weight = torch.nn.Parameter(model.output_layer.weight.to("meta"))
    try:
        weightcast.megatron.publish(folder[0], model)
    except weightcast.Error as error:
        assert error.code == 64 and str(error).startswith("trainer 1: tensor output_layer.weight is on meta"), error
    else:
        raise AssertionError("published")
    dist.barrier()  # the other rank has withdrawn what it had published
    assert not list(pathlib.Path(folder[0]).glob("*.json"))
    dist.barrier()
    if own:
        shutil.rmtree(folder[0])
    dist.destroy_process_group()


def offer_what_is_gathered_late():
    """One of two ranks, whose optimiser has changed its own half of the parameters: others' are gathered with the next forward
    pass. On GPUs such parameters are published where they are; here something else stands for what publishes."""
    megatron_model.begin()
    model = megatron_model.make_chunks(CONFIG, torch.bfloat16)[0]
    options = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_param_gather=True, overlap_grad_reduce=True)
    wrapped = DistributedDataParallel(model.config, options, model)
    wrapped.broadcast_params()

    def equal():
        same = []
        for parameter in model.parameters():
            both = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(both, parameter.detach())
            same.append(torch.equal(*both))
        return all(same)

    rank = dist.get_rank()
    for version in (1, 2):
        for buffer in wrapped.buffers:
            half = buffer.param_data.numel() // 2
            buffer.param_data[rank * half : (rank + 1) * half] += 1 + rank
        assert not equal()
        export = unittest.mock.Mock()
        layout = unittest.mock.Mock(options="")
        offered = []
        export.offer.side_effect = lambda number, *_: offered.append((number, equal()))
        weightcast.megatron.MegatronExport(export, layout, [wrapped]).offer(version)
        assert offered == [(version, True)], offered
        # Training goes on.
        tokens = torch.arange(1, 17).reshape(2, 8)
        mask = torch.triu(torch.ones(1, 1, 8, 8, dtype=torch.bool), 1)
        assert wrapped(tokens, torch.arange(8).expand(2, 8), mask, labels=tokens).isfinite().all()
        assert equal()
        for group in wrapped.bucket_groups:
            group.reset()
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:] == ["offer"]:
        offer_what_is_gathered_late()
    elif sys.argv[1:] == ["refuse"]:
        refuse_on_one()
    else:
        unittest.main()
