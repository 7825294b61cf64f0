"""vLLM, as it is installed, takes the weights of a running trainer in place: on a CPU, with one worker and with two.

After an update every parameter's SHA-256, as vLLM computes it, and the ids that it generates are those of a vLLM that has loaded
the same weights from a file.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import time
import unittest
import unittest.mock
from types import SimpleNamespace as Settings

import job_step
import torch
import weightcast
import wide_heads
from vllm_case import PATIENCE, EngineCase, Refused, Trainer, Vllm
from vllm_setup import SETTINGS, install_package
from weightcast import learn

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "data" / "python-coder-qwen3-moe"


def model(step):
    """The folder of a checkpoint that vLLM can serve on a CPU."""
    return Live.directory / f"step{step}"


class Live(EngineCase):
    """One engine for all tests of a class: they leave it as the next one needs it, serving some version."""

    model = staticmethod(model)
    ranks = None
    options = {}  # of vLLM
    allocation = None
    generates = True

    @classmethod
    def setUpClass(cls):
        if cls.ranks is None:
            raise unittest.SkipTest("of no number of ranks")
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        Live.directory = pathlib.Path(directory.name)
        for step in (0, 1, 181):
            wide_heads.widen_checkpoint(MODELS / f"step{step}", model(step))
        cls.package = cls.directory / "package"
        install_package(cls.package)
        cls.engine = cls.start_engine(0)
        cls.loaded = {0: cls.state()}
        cls.folder = str(cls.directory / "weights")
        cls.engine.ask("init", {"folder": cls.folder, "version": 0, "timeout": PATIENCE, "landing": "learn"})
        cls.trainer = Trainer(cls.folder, model(0))
        cls.addClassCleanup(cls.trainer.export.close)
        cls.version = 0  # that the trainer offers

    @classmethod
    def start_engine(cls, step):
        engine = Vllm(model(step), cls.options, cls.package)
        cls.addClassCleanup(engine.end)
        return engine

    @classmethod
    def state(cls):
        return cls.state_of(cls.engine)

    @classmethod
    def state_of(cls, engine):
        return {"checksums": engine.ask("checksums"), "ids": engine.ask("generate") if cls.generates else None}

    def words_of_job(self):
        return "--inference-alloc", self.allocation, "--moe-layout", "vllm-cpu"

    def refused_in_session(self, *calls):
        """What is refused by one of these calls, which with several workers is one later than with one."""
        for name, *arguments in calls:
            try:
                self.engine.ask(name, *arguments)
            except Refused as error:
                return str(error)
        self.fail(f"none of {calls} was refused")

    def test_what_comes_is_what_a_file_would_have_brought(self):
        places = self.engine.ask("places")
        fresh = self.start_engine(181)
        expected = self.state_of(fresh)
        fresh.end()
        self.assertNotEqual(expected, self.loaded[0])
        self.update(181)
        self.assertEqual(self.state(), expected)
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])
        self.assertEqual(self.engine.ask("places"), places)

    def test_a_landing_map_is_learned_beside_the_engine(self):
        (path,) = pathlib.Path(self.folder).glob("landing-*.json")
        landing = json.loads(path.read_text())
        self.assertTrue(landing["key"].startswith(path.stem.removeprefix("landing-")))
        tp, ep = landing["layout"]["tp"], landing["layout"]["ep"]
        self.assertEqual((len(landing["ranks"]), tp), (self.ranks, self.ranks))
        self.assertEqual(landing, learn.learn(model(0), tp=tp, ep=ep))
        # What is there is taken.
        before = path.stat()
        self.engine.ask("shutdown")
        self.engine.ask("init", {"folder": self.folder, "version": self.version, "timeout": PATIENCE, "landing": "learn"})
        self.assertEqual(path.stat().st_ino, before.st_ino)
        self.assertEqual(self.state(), self.loaded[0])
        self.assertIn(f"--landing {path}", self.engine.logged())
        self.engine.ask("shutdown")
        self.assertIn("landing 'no' of init_info", self.refused("init", {"folder": self.folder, "landing": "no"}))
        self.engine.ask("init", {"folder": self.folder, "version": self.version, "timeout": PATIENCE})


class Sessions(Live):
    def test_an_engine_is_asked_before_it_starts_an_update(self):
        before = self.state()
        version = self.offer(1)
        job = self.start_job()
        self.engine.ask("start")
        self.expect_done(job)  # it needs no more of the engine
        self.engine.ask("update", {"version": version})
        self.engine.ask("finish")
        self.assertNotEqual(self.state(), before)
        # It is there, and nobody has to ask.
        self.engine.ask("start")
        self.engine.ask("update", {"version": version})
        self.engine.ask("finish")

    def test_a_parameter_that_has_moved_on_one_rank_is_refused_by_name(self):
        name = "model.layers.1.self_attn.qkv_proj.weight"
        for rank in range(self.ranks):
            with self.subTest(rank=rank):
                self.engine.ask("move", name, rank)
                said = self.refused_in_session(["start"], ["update", {}])
                self.assertIn(f"tensor {name} is not in the published memory any more", said)
                self.engine.ask("put_back")
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])

    def test_a_layer_that_an_adapter_wraps_is_refused_by_name(self):
        for rank in range(self.ranks):
            with self.subTest(rank=rank):
                self.engine.ask("wrap", rank)
                said = self.refused_in_session(["start"], ["update", {}])
                self.assertRegex(said, r"tensor \S*qkv_proj\S* is not in the published memory any more: the module has it")
                self.engine.ask("unwrap")
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])

    def test_weights_that_vllm_has_loaded_are_no_version(self):
        self.update(1)
        self.engine.ask("start")
        for call in (["reload"], ["init", {"folder": self.folder}]):
            self.assertIn("an update is under way", self.refused(*call))
        self.assertIn("no job step has asked", self.refused("update", {"timeout": 0.1}))
        self.engine.ask("reload")
        # The version that was there is not there any more: it has to come again.
        self.engine.ask("start")
        said = self.refused("update", {"version": self.version, "timeout": 0.1})
        self.assertIn("no job step has asked", said)
        command = [os.environ["WEIGHTCAST_BINARY"], "inspect", f"live:{self.folder}"]
        states = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.assertEqual(states.count("vLLM has loaded weights of its own"), self.ranks, states)
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])

    def test_a_job_step_that_dies_while_it_writes(self):
        before = self.version
        version = self.offer(181)
        self.engine.ask("start")
        # Its last rank stops itself when it may write the last worker's memory.
        job = self.start_job(LD_PRELOAD=os.environ["WEIGHTCAST_STOP_AT_STATE"], STOP_RANK=str(self.ranks), STOP_AT="5")
        until = time.monotonic() + PATIENCE
        while not any(map(job_step.is_stopped, job_step.ranks_of(job))):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        job_step.kill(job)
        said = self.refused("update", {"version": version})
        self.assertIn("no version is in memory: the job step died", said)
        # The version that was there is not there any more, either.
        self.engine.ask("start")
        self.assertIn("no job step has asked", self.refused("update", {"version": before, "timeout": 0.1}))
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])

    def test_what_is_wrong_is_said_once(self):
        self.assertIn("published already", self.refused("init", {"folder": self.folder}))
        self.assertIn("unexpected keyword", self.refused("init", {"directory": self.folder}))
        self.engine.ask("start")
        self.assertIn("no job step has asked", self.refused("update", {"timeout": 0.1}))
        self.engine.ask("start")
        self.assertIn("no job step has asked", self.refused("finish"))
        for call in (["finish"], ["update", {"timeout": 0.1}]):
            self.assertIn("no update is under way", self.refused(*call))
        self.engine.ask("start")
        for call in (["start"], ["shutdown"]):
            self.assertIn("an update is under way", self.refused(*call))
        self.assertIn("no job step has asked", self.refused("update", {"timeout": 0.1}))
        # What has come is served, though it is another version than the caller named.
        version = self.offer(0)
        self.engine.ask("start")
        job = self.start_job()
        said = self.refused("update", {"version": version + 1})
        self.assertIn(f"version {version + 1} was to come, but {version} has", said)
        self.expect_done(job)
        version = self.offer(0)
        self.engine.ask("start")
        job = self.start_job()
        self.assertIn("unexpected keyword", self.refused("update", {"names": []}))
        job.kill()
        self.update(0)
        self.assertEqual(self.state(), self.loaded[0])


class Failures(unittest.TestCase):
    """What a worker knows of its memory when an update has failed."""

    def version_after(self, error, call):
        os.environ.update(SETTINGS)
        from weightcast import _joint_update, _vllm_engine

        engine = object.__new__(_vllm_engine.WeightcastEngine)
        engine.parallel_config = Settings(rank=0)
        engine._world, engine._ranks, engine._version, engine._kept = 1, _joint_update.Ranks(), 4, None
        engine._update = unittest.mock.Mock()
        engine._update.wait.side_effect = error
        with self.assertRaises(type(error)):
            call(engine)
        self.assertIsNone(engine._update)
        return engine._version

    def test_what_was_there_is_not_there_behind_half_an_update(self):
        for call in (lambda engine: engine.update_weights({"version": 5}), lambda engine: engine.finish_weight_update()):
            self.assertIsNone(self.version_after(weightcast.Invalid(65, "half written"), call))
            self.assertEqual(self.version_after(weightcast.NoAnswer(76, "nobody has asked"), call), 4)


    def test_what_cannot_be_asked_for_is_no_wait(self):
        os.environ.update(SETTINGS)
        from weightcast import _vllm_engine

        for info in ({"timeout": "5"}, {"timeout": None}, {"timeout": float("nan")}, {"timeout": -1}, {"version": "1"}, {"version": 1.0}, []):
            waited = weightcast.NoAnswer(76, "nobody has asked")
            with self.subTest(info=info), unittest.mock.patch.object(_vllm_engine.JointUpdate, "wait", side_effect=waited):
                self.assertEqual(self.version_after(weightcast.Error(64, ""), lambda engine: engine.update_weights(info)), 4)

    def test_what_a_server_is_told_of_itself(self):
        os.environ.update(SETTINGS)
        from weightcast import _vllm_engine

        engine = object.__new__(_vllm_engine.WeightcastEngine)
        engine._export = None
        for more in ({"replica": "1"}, {"replicas": None}, {"window": "1GiB"}, {"window": -1}, {"timeout": "5"}, {"timeout": float("nan")}):
            with self.subTest(more=more), self.assertRaises(weightcast.Error) as refused:
                engine._require_publishable(_vllm_engine.InitInfo(folder="weights", **more))
            self.assertEqual(refused.exception.code, 64)


class Refusals(unittest.TestCase):
    """What is refused when a worker starts, before anything is published."""

    def setUp(self):
        os.environ.update(SETTINGS)
        from weightcast import _vllm_engine, _vllm_refusals

        self.engine, self.refusals = _vllm_engine, _vllm_refusals

    def test_a_version_that_was_never_tried(self):
        with unittest.mock.patch("vllm.__version__", "0.33.0+cpu"):
            with self.assertRaisesRegex(weightcast.Error, "vLLM 0.33.0 was never tried .*set WEIGHTCAST_VLLM_VERSION=0.33.0"):
                self.engine._require_tested_version()
            with unittest.mock.patch.dict(os.environ, WEIGHTCAST_VLLM_VERSION="0.33.0"):
                self.engine._require_tested_version()
        with unittest.mock.patch("vllm.__version__", "0.32.0+cpu"):
            self.engine._require_tested_version()

    def settings(self, **more):
        """vLLM's configuration, as far as it is asked for."""
        parallel = {"enable_eplb": False, "enable_expert_parallel": False, "data_parallel_size": 1}
        parallel.update(prefill_context_parallel_size=1, expert_placement_strategy="linear")
        parallel.update({name: value for name, value in more.items() if name in parallel})
        model = {"quantization": None, "enable_sleep_mode": False}
        model.update({name: value for name, value in more.items() if name in model})
        offloaded = more.get("cpu_offload_gb", 0)
        return Settings(
            parallel_config=Settings(**parallel),
            model_config=Settings(**model),
            offload_config=Settings(uva=Settings(cpu_offload_gb=offloaded), prefetch=Settings(offload_group_size=0)),
            lora_config=more.get("lora_config"),
            speculative_config=more.get("speculative_config"),
        )

    def require_direct(self, settings, module):
        self.refusals.require_in_use(settings, module)
        self.refusals.require_writable(settings, module)

    def test_what_cannot_be_written_in_place(self):
        module = torch.nn.Linear(2, 2)
        self.require_direct(self.settings(), module)
        self.require_direct(self.settings(speculative_config=Settings(method="ngram")), module)
        for setting, value, said in [
            ("quantization", "fp8", "or serve an unquantised model"),
            ("enable_sleep_mode", True, "start without --enable-sleep-mode"),
            ("cpu_offload_gb", 2.0, "start without offloading"),
            ("lora_config", Settings(), "start without --enable-lora"),
            ("speculative_config", Settings(method="eagle"), "start without --speculative-config"),
            ("enable_eplb", True, "start without --enable-eplb"),
            ("data_parallel_size", 2, "start a server for each"),
            ("prefill_context_parallel_size", 2, "start without --prefill-context-parallel-size"),
        ]:
            with self.subTest(setting=setting), self.assertRaisesRegex(weightcast.Error, said):
                self.require_direct(self.settings(**{setting: value}), module)
        module.weight = torch.nn.Parameter(torch.empty(0))
        with self.assertRaisesRegex(weightcast.Error, "parameter weight is empty"):
            self.refusals.require_writable(self.settings(), module)
        packed = torch.nn.Module()
        packed.conv1d = torch.nn.Conv1d(1, 1, 4)
        packed.conv1d._cpu_unpacked_conv_weight = torch.empty(1, 4)
        with self.assertRaisesRegex(weightcast.Error, "parameter conv1d.weight: vLLM has packed it"):
            self.refusals.require_writable(self.settings(), packed)

    def test_what_the_loader_cannot_write_beside_a_job_step(self):
        window = {"A_log": weightcast.Memory("BF16", (2,))}
        module = torch.nn.Module()
        module.mixer = torch.nn.Linear(2, 2)
        self.refusals.require_loader_beside(module, {}, set())
        self.refusals.require_loader_beside(module, window, {"mixer.weight"})
        module.mixer.quant_method = Settings(unquantized_backend=Settings(value="CPU"))
        with self.assertRaisesRegex(weightcast.Error, "parameter mixer.weight: .* packed for the CPU's kernels"):
            self.refusals.require_loader_beside(module, window, {"mixer.weight"})
        with unittest.mock.patch.object(self.refusals, "current_platform", Settings(is_cpu=lambda: False)):
            with self.assertRaisesRegex(weightcast.Error, "tensor A_log goes .* on a GPU"):
                self.refusals.require_loader_beside(module, window, {"mixer.weight"})

    def test_what_the_loader_does_not_load_twice(self):
        module = torch.nn.Linear(2, 2)
        self.refusals.require_loadable(self.settings(), module)
        with self.assertRaisesRegex(weightcast.Error, "quantised weights are packed for the CPU's kernels"):
            self.refusals.require_loadable(self.settings(quantization="fp8"), module)
        module.experts = torch.nn.Module()
        module.experts.quant_method = Settings(unquantized_backend=Settings(value="CPU"))
        with self.assertRaisesRegex(weightcast.Error, "experts: experts are packed for the CPU's kernels, .* \"direct\""):
            self.refusals.require_loadable(self.settings(), module)

    def test_experts_that_a_map_would_place_wrongly(self):
        def publish(backend, landing):
            engine = object.__new__(self.engine.WeightcastEngine)
            engine._vllm_config, engine.model = self.settings(), torch.nn.Linear(2, 2)
            engine._export, engine.parallel_config = None, Settings(data_parallel_index=0)
            engine.model.experts = torch.nn.Module()
            engine.model.experts.quant_method = Settings(unquantized_backend=Settings(value=backend), experts_cls=torch.nn.Module)
            with unittest.mock.patch("weightcast.publish") as published:
                info = self.engine.InitInfo("weights", landing=landing, layout="vllm:t1")
                try:
                    engine._require_publishable(info)
                    return engine._publish_module(info, {}, None)
                except weightcast.Error:
                    published.assert_not_called()
                    raise

        self.assertEqual(publish("TRITON", "learn"), "vllm:t1 --moe-layout triton")
        self.assertEqual(publish("FlashInfer CUTLASS", "direct"), "vllm:t1 --moe-layout cutlass")
        with self.assertRaisesRegex(weightcast.Error, "--moe-layout cutlass .* choose --moe-backend triton"):
            publish("FlashInfer CUTLASS", "learn")

    def test_layouts_are_written_as_allocations(self):
        def layout(replicas, pp, tp, ep):
            parallel = Settings(tensor_parallel_size=tp, pipeline_parallel_size=pp, enable_expert_parallel=ep)
            return self.engine._layout_of(parallel, replicas)

        self.assertEqual(layout(1, 1, 1, False), "vllm:t1")
        self.assertEqual(layout(2, 3, 4, False), "vllm:d2p3t4")
        self.assertEqual(layout(1, 1, 4, True), "vllm:t4e4")


class OneRank(Sessions):
    ranks = 1
    allocation = "vllm:t1"


class TwoRanks(Sessions):
    ranks = 2
    options = {"tensor_parallel_size": 2}
    allocation = "vllm:t2"


class WholeExperts(Live):
    """Each rank has half of the experts. On a CPU vLLM 0.32 loads such models and does not get as far as an answer."""

    ranks = 2
    generates = False
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    allocation = "vllm:t2e2"


if __name__ == "__main__":
    unittest.main()
