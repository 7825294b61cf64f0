"""vLLM's trainer API with weightcast as its backend: which calls it makes in which order, and what it does when one fails. rl_loop.py
runs it with a server."""

import threading
import unittest
import unittest.mock

import torch
import weightcast
from vllm.distributed.weight_transfer.base import ModuleSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from weightcast import vllm_trainer

MODULE = torch.nn.Linear(2, 2)


class Recorder:
    """Of an export and of vLLM's client: what was called, in one list."""

    def __init__(self, calls, failing=()):
        self._calls = calls
        self._failing = failing

    def __getattr__(self, name):
        def call(*arguments, **more):
            self._calls.append((name, *arguments, *more.values()))
            if name in self._failing:
                raise weightcast.Error(74, f"{name} fails")

        return call


class TrainerEngine(unittest.TestCase):
    def setUp(self):
        self.calls = []
        self.trigger = unittest.mock.Mock(side_effect=self.triggered)
        patch = unittest.mock.patch.object(vllm_trainer, "trigger", self.trigger)
        patch.start()
        self.addCleanup(patch.stop)

    def triggered(self, folder, version, timeout):
        self.calls.append(("trigger", folder, version))
        return weightcast.Answer(version, False, "")

    def start(self, client=(), **more):
        info = vllm_trainer.InitInfo("weights", **{"rank": 0, "version": 4, "timeout": 9.0, **more})
        source = vllm_trainer.Source(Recorder(self.calls), MODULE)
        return WeightTransferTrainerFactory.trainer_init(info, client=Recorder(self.calls, client), source=source)

    def test_an_update(self):
        engine = self.start(workers={"replicas": 2})
        self.assertEqual(self.calls, [("init_weight_transfer_engine", {"folder": "weights", "version": 4, "replicas": 2})])
        self.calls.clear()
        engine.send_weights()
        offered, *update, settled = self.calls
        self.assertEqual((offered, settled), (("offer", 5, False), ("settle", 9.0)))
        self.assertEqual(update, [
            ("start_weight_update",),
            ("trigger", "weights", 5),
            ("update_weights", {"version": 5, "timeout": 9.0}),
            ("finish_weight_update", "5"),
        ])  # fmt: skip
        self.assertEqual((engine.version, engine.answer.version), (5, 5))

    def test_other_ranks_offer_alone(self):
        engine = self.start(rank=1)
        engine.send_weights()
        self.assertEqual(self.calls, [("offer", 5, False), ("settle", 9.0)])

    def test_a_job_step_that_comes_by_itself(self):
        self.start(triggers=False).send_weights()
        self.trigger.assert_not_called()
        self.assertIn(("finish_weight_update", "5"), self.calls)

    def test_what_fails_leaves_nothing_open(self):
        engine = self.start()
        self.trigger.side_effect = weightcast.Error(74, "the server is gone")
        self.calls.clear()
        with self.assertRaisesRegex(weightcast.Error, "the server is gone"):
            engine.send_weights()
        self.assertEqual(self.calls[1:], [("start_weight_update",), ("update_weights", {"timeout": 0}), ("settle", 0)])
        self.trigger.side_effect = self.triggered
        self.calls.clear()
        engine.send_weights()
        self.assertEqual(self.calls[0], ("offer", 5, False))  # the version that was not sent
        for failing in ("start_weight_update", "update_weights", "finish_weight_update"):
            with self.subTest(failing=failing):
                engine = self.start(client=[failing])
                with self.assertRaisesRegex(weightcast.Error, f"{failing} fails"):
                    engine.send_weights()
                self.assertEqual((self.calls[-1], engine.version), (("settle", 0), 4))

    def through_loader(self, answer, failing=None):
        """An engine whose update_weights takes the tensors, before which no server answers."""
        engine = self.start(workers={"landing": "loader"})
        taken = threading.Event()

        def triggered(folder, version, timeout):
            if not taken.wait(60):
                raise weightcast.Error(76, "nothing takes the tensors")
            return answer(version)

        def update_weights(info):
            self.calls.append(("update_weights", info))
            taken.set()
            if failing is not None:
                raise failing

        self.trigger.side_effect = triggered
        engine.client.update_weights = update_weights
        self.calls.clear()
        return engine

    def test_tensors_that_go_through_the_loader(self):
        engine = self.through_loader(lambda version: weightcast.Answer(version, False, ""))
        engine.send_weights()
        update = [("start_weight_update",), ("update_weights", {"version": 5, "timeout": 9.0}), ("finish_weight_update", "5")]
        self.assertEqual(self.calls[1:-1], update)
        self.assertEqual((engine.version, engine.answer.version), (5, 5))

    def test_a_server_that_fails_while_the_loader_loads(self):
        def answer(version):
            raise weightcast.Error(66, "other bytes")

        engine = self.through_loader(answer)
        with self.assertRaisesRegex(weightcast.Error, "other bytes"):
            engine.send_weights()
        self.assertEqual((self.calls[-1], engine.version), (("settle", 0), 4))

    def test_a_loader_that_fails(self):
        failing = RuntimeError("no such tensor")
        engine = self.through_loader(lambda version: weightcast.Answer(version, False, ""), failing)
        with self.assertRaisesRegex(RuntimeError, "no such tensor"):
            engine.send_weights()

        def answer(version):
            raise weightcast.Error(74, "engine rank 0 has given up amid the update")

        engine = self.through_loader(answer, failing)
        with self.assertRaisesRegex(weightcast.Error, "has given up amid the update") as caught:
            engine.send_weights()
        self.assertIs(caught.exception.__cause__, failing)
        self.assertEqual((self.calls[-1], engine.version), (("settle", 0), 4))

    def test_a_server_that_is_not_there_for_the_loader(self):
        engine = self.start(workers={"landing": "loader"})
        self.trigger.side_effect = weightcast.Error(74, "the server is gone")
        self.calls.clear()
        with self.assertRaisesRegex(weightcast.Error, "the server is gone"):
            engine.send_weights()
        self.assertEqual(self.calls[2:], [("update_weights", {"timeout": 0}), ("settle", 0)])

    def test_what_cannot_be_asked_for_starts_nothing(self):
        for more in ({"timeout": "9"}, {"timeout": None}, {"version": "4"}, {"version": -1}, {"workers": ["landing"]}):
            with self.subTest(more=more), self.assertRaises(weightcast.Error) as refused:
                self.start(**more)
            self.assertEqual((refused.exception.code, self.calls), (64, []))

    def test_refusals(self):
        info = vllm_trainer.InitInfo("weights", rank=0)
        with self.assertRaisesRegex(weightcast.Error, "source is a ModuleSource; give a weightcast.vllm_trainer.Source"):
            WeightTransferTrainerFactory.trainer_init(info, client=Recorder(self.calls), source=ModuleSource(MODULE))
        with unittest.mock.patch("vllm.__version__", "0.33.0"):
            with self.assertRaisesRegex(weightcast.Error, "vLLM 0.33.0 was never tried"):
                self.start()
        self.assertEqual(self.calls, [])


if __name__ == "__main__":
    unittest.main()
