"""All ranks of an engine take an update, or none does: threads with exports that do as they are told."""

import contextlib
import threading
import unittest

import torch
import weightcast
from weightcast import Invalid, NoAnswer, Update, Wanted, sglang
from weightcast._joint_update import JointUpdate, Ranks

RANKS = 3


class Exports:
    """What a rank has published. The question is asked of the first rank alone, as far as this one knows."""

    def __init__(self, asked=None, failure=None, committed=None):
        self.asked = asked
        self.failure = failure
        self.committed = committed  # without a window: when the version is there, an Event
        self.state = "serving"

    def wanted(self):
        return self.asked

    @contextlib.contextmanager
    def pause(self, wanted, timeout):
        self.state = f"paused for {wanted.question}"
        if self.failure is not None:
            raise self.failure
        if self.committed is not None and not self.committed.wait(30):
            raise NoAnswer(76, "the others take nothing")
        try:
            yield Update(wanted.version, ())
        except BaseException as error:
            self.state = f"invalid: {error}"
            raise
        self.state = f"serving {wanted.version}"


class Group:
    """Gathers values of threads."""

    def __init__(self):
        self.barrier = threading.Barrier(RANKS, timeout=60)
        self.values = [None] * RANKS

    def ranks(self, index):
        def gather(value):
            self.values[index] = value
            self.barrier.wait()
            values = list(self.values)
            self.barrier.wait()
            return values

        return Ranks(index, gather)


class Together(unittest.TestCase):
    def updates(self, exports, served=0, load=None):
        group = Group()
        return [JointUpdate(export, group.ranks(rank), served, 60, load) for rank, export in enumerate(exports)]

    def outcomes(self, updates, version=None, seconds=60.0):
        """What each rank's wait returns or raises."""

        def outcome(update):
            try:
                return update.wait(version, seconds)
            except weightcast.Error as error:
                return error

        for update in updates:
            # As vLLM's workers, which are told at about the same time.
            threading.Thread(target=outcome, args=(update,), daemon=True).start()
        return [outcome(update) for update in updates]

    def test_all_take_the_version_that_the_first_is_asked_for(self):
        exports = [Exports(Wanted(5, 17)), Exports(), Exports(Wanted(4, 16))]
        updates = self.updates(exports)
        self.assertEqual(self.outcomes(updates), [5] * RANKS)
        self.assertEqual([export.state for export in exports], ["paused for 17"] * RANKS)
        for update in updates:
            update.use()
        self.assertEqual([export.state for export in exports], ["serving 5"] * RANKS)

    def test_one_rank_that_fails_makes_all_fail_alike(self):
        exports = [Exports(Wanted(5, 17)), Exports(failure=weightcast.Error(74, "taken back")), Exports()]
        for error in self.outcomes(self.updates(exports)):
            # Of the others' memory nobody may say that it holds what it held.
            self.assertEqual((error.code, str(error)), (65, "engine rank 1: taken back"))
        cause = "invalid: engine rank 1: taken back"
        self.assertEqual([export.state for export in exports], [cause, "paused for 17", cause])

    def test_all_ranks_that_fail_hold_what_they_held(self):
        exports = [Exports(Wanted(5, 17), weightcast.Error(74, "taken back")), *(Exports(failure=weightcast.Error(74, "too")) for _ in (1, 2))]
        self.assertEqual([error.code for error in self.outcomes(self.updates(exports))], [74] * RANKS)

    def test_a_memory_without_a_version_is_what_is_told(self):
        failures = [NoAnswer(76, "late"), None, Invalid(65, "half")]
        exports = [Exports(Wanted(5, 17), failure) for failure in failures]
        for error in self.outcomes(self.updates(exports)):
            self.assertIsInstance(error, Invalid)
            self.assertEqual(str(error), "engine rank 2: half")

    def loaded(self, exports, load):
        """What each rank's only wait gives, in a thread of its own."""
        outcomes = [None] * RANKS

        def wait(rank, update):
            try:
                outcomes[rank] = update.wait(None, 60.0)
            except weightcast.Error as error:
                outcomes[rank] = error

        updates = self.updates(exports, load=load)
        threads = [threading.Thread(target=wait, args=item) for item in enumerate(updates)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return updates, outcomes

    def test_all_load_what_comes(self):
        loaded = []
        exports = [Exports(Wanted(5, 17)), Exports(), Exports()]
        updates, outcomes = self.loaded(exports, loaded.append)
        self.assertEqual(outcomes, [5] * RANKS)
        self.assertEqual([update.version for update in loaded], [5] * RANKS)
        # Once.
        self.assertEqual(updates[0].wait(None, 0.0), 5)
        self.assertEqual(len(loaded), RANKS)
        for update in updates:
            update.use()
        self.assertEqual([export.state for export in exports], ["serving 5"] * RANKS)

    def test_ranks_without_a_window_wait_for_those_that_have_one(self):
        committed = threading.Event()
        exports = [Exports(Wanted(5, 17)), Exports(committed=committed), Exports(committed=committed)]
        updates, outcomes = self.loaded(exports, lambda update: committed.set())
        self.assertEqual(outcomes, [5] * RANKS)

    def test_one_rank_that_cannot_load_lets_go_before_the_others_are_heard(self):
        exports = [Exports(Wanted(5, 17)), Exports(), Exports()]
        first = threading.Lock()

        def load(_):
            if first.acquire(blocking=False):
                raise ValueError("no such tensor")
            while not any(export.state.startswith("invalid") for export in exports):
                threading.Event().wait(0.001)

        _, outcomes = self.loaded(exports, load)
        self.assertEqual({str(error).partition(": ")[2] for error in outcomes}, {"no version is in memory: ValueError: no such tensor"})
        self.assertTrue(all(export.state.startswith("invalid: ") for export in exports))

    def test_a_rank_that_dies_before_all_have_agreed(self):
        export = Exports(Wanted(5, 17))
        asked = []

        def gather(value):
            asked.append(value)
            if len(asked) == 1:
                return [value, (None, None)]
            raise RuntimeError("Connection reset by peer")

        update = JointUpdate(export, Ranks(0, gather), 4, 60)
        with self.assertRaisesRegex(weightcast.Error, "Connection reset by peer"):
            update.wait(5, 60.0)
        self.assertEqual(export.state, "invalid: Connection reset by peer")

    def test_what_an_only_rank_has_loaded_in_part_is_no_version(self):
        def load(of):
            raise of

        for of, code in ((ValueError("no such tensor"), 65), (weightcast.Error(74, "the update did not take place"), 74)):
            update = JointUpdate(Exports(Wanted(5, 17)), Ranks(), 4, 60, lambda _: load(of))
            with self.assertRaisesRegex(weightcast.Error, str(of)) as failed:
                update.wait(5, 60.0)
            self.assertEqual(failed.exception.code, code)

    def test_nobody_asks(self):
        exports = [Exports() for _ in range(RANKS)]
        for error in self.outcomes(self.updates(exports), version=1, seconds=0.05):
            self.assertIsInstance(error, NoAnswer)
        self.assertEqual([export.state for export in exports], ["serving"] * RANKS)

    def test_a_version_that_is_there_need_not_be_asked_for(self):
        exports = [Exports() for _ in range(RANKS)]
        updates = self.updates(exports, served=8)
        self.assertEqual(self.outcomes(updates, version=8), [8] * RANKS)
        for update in updates:
            update.use()
        self.assertEqual([export.state for export in exports], ["serving"] * RANKS)

    def test_an_update_that_waits_is_cancelled(self):
        updates = self.updates([Exports() for _ in range(RANKS)])
        self.assertTrue(all(update.cancel(60) for update in updates))

    def test_what_is_no_error_of_weightcast_is_told_with_its_kind(self):
        def divide():
            return 1 / 0

        with self.assertRaisesRegex(weightcast.Error, "ZeroDivisionError: division by zero") as caught:
            Ranks().together(divide)
        self.assertEqual(caught.exception.code, 70)


class Sglang(unittest.TestCase):
    """An engine of one rank."""

    def test_a_request_that_cannot_be_is_refused_where_it_is_made(self):
        for more in ({"folder": None}, {"version": "1"}, {"version": -1}, {"timeout": None}, {"timeout": float("nan")}, {"holds": 1.5}):
            with self.subTest(more=more), self.assertRaises(weightcast.Error) as refused:
                sglang.tensors(**{"folder": "weights", **more})
            self.assertEqual(refused.exception.code, 64)
        ((name, said),) = sglang.tensors("weights", version=3)
        self.assertEqual(sglang._request_of([(name, said)])["version"], 3)

    def test_what_is_no_request_ends_no_engine(self):
        def of(text):
            return [("weightcast", torch.frombuffer(bytearray(text), dtype=torch.uint8))]

        for given in ([], of(b"{"), of(b"[]"), of(b'{"folder": "weights"}'), of(b"\xff"), [("w", torch.zeros(2)), ("v", torch.zeros(2))]):
            with self.subTest(given=given), self.assertLogs("weightcast.sglang") as logged:
                sglang.load(object(), given)
            self.assertIn("is no request of weightcast.sglang", logged.output[0])

    def test_what_was_there_is_not_there_behind_half_an_update(self):
        class Once(Exports):
            def wanted(self):
                asked, self.asked = self.asked, None
                return asked

            def require_in_place(self):
                pass

        engine = object.__new__(sglang._Engine)
        engine._model, engine._ranks, engine._version, engine._whole = None, Ranks(), 4, True
        engine._export = Once(Wanted(5, 17), Invalid(65, "half written"))
        with self.assertLogs("weightcast.sglang"), self.assertRaises(Invalid):
            engine.serve({"version": 4, "timeout": 1.0, "attach": False})


if __name__ == "__main__":
    unittest.main()
