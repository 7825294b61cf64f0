"""What calls of the Python package that wait leave, when their time is over and when a signal's handler raises."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import job_step
import weightcast
from job_step import ASKED, BEING_READ, COMMITTED, INVALID, OFFERS, PAUSED, READ, SERVING, TRAINING, WRITING, WRITTEN
from weightcast import Memory


class Interrupted(BaseException):
    """What the handler of SIGUSR1 raises."""


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Waits(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = directory.name
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, self.interrupt)

    def interrupt(self, *_):
        raise Interrupted

    def signal_soon(self):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()

    def publish(self, role, **more):
        export = weightcast.publish(self.folder, role, 0, 1, tensors={"a": Memory("BF16", (4,))}, **more)
        self.addCleanup(export.close, timeout=0)
        return export

    @contextlib.contextmanager
    def job(self, role, *steps):
        """A job step that does those steps, up to the point (at first, where there is none) before this goes on; gives a
        function that says what it sees. At the end it dies."""
        manifest = json.loads(pathlib.Path(self.folder, f"{role}-0.json").read_text())
        words = [step if isinstance(step, str) else f"={step}" for step in (steps if "." in steps else (".", *steps))]
        command = [sys.executable, "-B", job_step.__file__, manifest["control"], *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

            def look():
                process.stdin.write("\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            process.stdout.readline()
            try:
                yield look
            finally:
                process.kill()

    def paused_until(self, *steps):
        """Steps of a job step that asks, and goes on when the engine has paused."""
        return (ASKED, f"?{PAUSED}", *steps)

    def test_an_offer_without_time_is_not_taken_for_one_that_was_read(self):
        trainer = self.publish("trainer")
        for timeout in (0, 0.0, 1e-9):
            with self.assertRaises(weightcast.NoAnswer):
                trainer.offer(1, timeout=timeout)
            with self.assertRaisesRegex(weightcast.Error, "nothing is offered"):
                trainer.settle()
        trainer.offer(1, timeout=0, wait=False)
        with self.job("trainer") as look:
            self.assertEqual(look()["state"], OFFERS)
            with self.assertRaises(weightcast.NoAnswer):
                trainer.settle(timeout=0)
            self.assertEqual(look()["state"], TRAINING)

    def test_an_offer_while_an_earlier_one_is_read(self):
        trainer = self.publish("trainer")
        trainer.offer(1, wait=False)
        with self.job("trainer", BEING_READ) as look:
            self.assertEqual(look()["state"], BEING_READ)
            with self.assertRaisesRegex(weightcast.Error, "version 1 is still being read") as refused:
                trainer.offer(2, wait=False)
            self.assertEqual(refused.exception.code, 64)
            for timeout in (0, 0.05):
                with self.assertRaisesRegex(weightcast.NoAnswer, "version 1 is still being read .*version 2 is not offered"):
                    trainer.offer(2, timeout=timeout)
            with self.assertRaisesRegex(weightcast.NoAnswer, "version 1 is being read"):
                trainer.withdraw()
            self.assertEqual(look()["state"], BEING_READ)
        # Of the job step that is gone now nothing is waited for.
        with self.assertRaisesRegex(weightcast.NoAnswer, "version 2 was not read"):
            trainer.offer(2, timeout=0.2)

        trainer.offer(3, wait=False)
        gate = pathlib.Path(self.folder, "gate")
        gate.touch()
        with self.job("trainer", BEING_READ, ".", f"-{gate}", READ, f"?{OFFERS}", BEING_READ, READ):
            threading.Timer(0.2, gate.unlink).start()
            trainer.offer(4)

    def test_an_offer_that_is_interrupted_is_withdrawn(self):
        trainer = self.publish("trainer")
        with self.job("trainer", f"?{OFFERS}", "!") as look:
            with self.assertRaises(Interrupted):
                trainer.offer(1)
            self.assertEqual(look()["state"], TRAINING)
        trainer.offer(2, wait=False)
        with self.job("trainer") as look:
            with self.assertRaises(Interrupted):
                self.signal_soon()
                trainer.settle()
            self.assertEqual(look()["state"], TRAINING)

    def test_an_offer_that_is_read_when_it_is_interrupted_stays(self):
        trainer = self.publish("trainer")
        with self.job("trainer", f"?{OFFERS}", BEING_READ, "!") as look:
            with self.assertRaises(Interrupted) as interrupted:
                trainer.offer(1)
            if sys.version_info >= (3, 11):
                self.assertIn("version 1 is being read; call settle()", interrupted.exception.__notes__[0])
            self.assertEqual(look()["state"], BEING_READ)
        with self.assertRaisesRegex(weightcast.Error, "the job step died while it read version 1"):
            trainer.settle()

    def test_a_pause_that_nobody_answers_is_interrupted(self):
        engine = self.publish("engine", version=1)
        with self.job("engine") as look:
            with self.assertRaises(Interrupted):
                self.signal_soon()
                with engine.pause():
                    self.fail("entered")
            self.assertEqual(look()["state"], SERVING)
        with self.assertRaises(weightcast.NoAnswer):
            with engine.pause(timeout=0):
                self.fail("entered")

    def test_an_interrupted_pause_leaves_an_engine_that_says_what_it_has(self):
        words = "the engine was interrupted while it waited: Interrupted"
        for steps, state in (
            ((), SERVING),
            ((WRITING,), INVALID),
            ((WRITING, WRITTEN), INVALID),
        ):
            with self.subTest(steps):
                engine = self.publish("engine", version=1)
                with self.job("engine", *self.paused_until(*steps, "!")) as look:
                    with self.assertRaises(Interrupted):
                        with engine.pause():
                            self.fail("entered")
                    seen = look()
                    self.assertEqual(seen["state"], state)
                    self.assertEqual(seen["cause" if state == INVALID else "reason"], words)
                    if WRITING in steps and WRITTEN not in steps:
                        with self.assertRaisesRegex(weightcast.Error, "may still write"):
                            engine.serve(1)
                engine.serve(1)
                engine.close()

    def test_whatever_ends_the_use_of_a_version_makes_the_engine_invalid(self):
        for error, words in (
            (ValueError("no cache"), "no cache"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
            (GeneratorExit(), "GeneratorExit"),
            (SystemExit(3), "3"),
            (Odd(), "Odd"),
            (ValueError("a\0b\ud800"), "a b?"),
        ):
            with self.subTest(words):
                engine = self.publish("engine", version=1)
                with self.job("engine", *self.paused_until(WRITING, WRITTEN, COMMITTED)) as look:
                    with self.assertRaises(type(error)):
                        with engine.pause() as update:
                            self.assertEqual(update.version, job_step.VERSION)
                            raise error
                    seen = look()
                self.assertEqual(seen["state"], INVALID)
                self.assertEqual(seen["cause"], f"the engine could not use version {job_step.VERSION}: {words}")
                with self.assertRaises(weightcast.Invalid):
                    with engine.pause(timeout=0):
                        self.fail("entered")
                engine.close()

    def test_no_error_of_the_body_says_that_the_memory_is_as_it_was(self):
        def raises():
            raise weightcast.Error(64, "no such tensor")

        window = {"w": Memory("BF16", (4,))}
        for more, steps, body, said in (
            ({}, (WRITING, WRITTEN, COMMITTED), raises, "no such tensor"),
            ({"window": window}, (WRITING,), raises, "no such tensor"),
            ({"window": window}, (WRITING,), lambda: None, "nothing has been committed"),  # it leaves early
        ):
            with self.subTest(said, more=more):
                engine = self.publish("engine", version=1, **more)
                with self.job("engine", *self.paused_until(*steps)) as look:
                    with self.assertRaisesRegex(weightcast.Invalid, f"could not use version {job_step.VERSION}: {said}"):
                        with engine.pause():
                            body()
                    self.assertEqual(look()["state"], INVALID)
                engine.close()

    def test_a_job_step_that_takes_its_question_back_amid_the_body(self):
        engine = self.publish("engine", version=1, window={"w": Memory("BF16", (4,))})
        gate = pathlib.Path(self.folder, "gate")
        gate.touch()
        with self.job("engine", *self.paused_until(WRITING, f"-{gate}", SERVING)) as look:
            with self.assertRaisesRegex(weightcast.Error, "go on with what was there") as refused:
                with engine.pause() as update:
                    gate.unlink()
                    list(update.landed())
            self.assertEqual((refused.exception.code, look()["state"]), (74, SERVING))

    def test_a_signal_at_the_end_of_the_wait_leaves_no_version_in_between(self):
        for _ in range(20):
            engine = self.publish("engine", version=1)
            with self.job("engine", *self.paused_until(WRITING, WRITTEN, COMMITTED, "!")) as look:
                with self.assertRaises(Interrupted):
                    with engine.pause():
                        threading.Event().wait()
                self.assertEqual(look()["state"], INVALID)
            engine.close()

    def test_a_pause_whose_end_is_never_reached_is_given_up(self):
        engine = self.publish("engine", version=1)
        with self.job("engine", *self.paused_until(WRITING, WRITTEN, COMMITTED)) as look:
            lost = engine.pause()
            lost.__enter__()
            self.assertEqual(look()["state"], COMMITTED)
            del lost
            self.assertEqual(look()["state"], INVALID)

    def test_a_close_is_interrupted(self):
        engine = self.publish("engine", version=1)
        manifest = pathlib.Path(self.folder, "engine-0.json")
        with self.job("engine", f"-{manifest}", "!") as look:
            with self.assertRaises(Interrupted):
                engine.close()
            look()
        self.publish("engine")


if __name__ == "__main__":
    unittest.main()
