"""The Python package without a job step: what publishing makes, and what calls refuse."""

import ctypes
import fractions
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import weightcast
from weightcast import Memory

# Publishes rank 0 of an engine and stays.
PUBLISH = """
import sys, time, weightcast
export = weightcast.publish(sys.argv[1], 'engine', 0, 1, tensors={'a': weightcast.Memory('F32', (2,))})
print('published', flush=True)
time.sleep(60)
"""


class Client(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = self._folder.name + "/run/weights"

    def tearDown(self):
        self._folder.cleanup()

    def publish(self, role="engine", **more):
        tensors = {"a": Memory("BF16", (4, 8)), "b": Memory("F32", ()), "empty": Memory("F32", (0, 3))}
        return weightcast.publish(self.folder, role, 0, 1, tensors=tensors, **more)

    def manifest(self, role="engine"):
        return json.loads(pathlib.Path(self.folder, f"{role}-0.json").read_text())

    def test_a_manifest_says_what_was_published(self):
        with self.publish(layout="hf", version=3) as export:
            manifest = self.manifest()
            self.assertEqual(manifest["layout"], "hf")
            self.assertEqual([entry["name"] for entry in manifest["entries"]], ["a", "b", "empty"])
            self.assertEqual(manifest["entries"][0]["strides"], [8, 1])
            self.assertEqual(export.memory("a").nbytes, 64)
            export.memory("a")[:] = bytes(range(64))
            shared = pathlib.Path("/dev/shm" + manifest["segments"][0]["name"]).read_bytes()
            offset = manifest["entries"][0]["offset"]
            self.assertEqual(shared[offset : offset + 64], bytes(range(64)))
        self.assertEqual(os.listdir(self.folder), [])
        self.assertFalse(pathlib.Path("/dev/shm" + manifest["control"]).exists())

    def test_all_have_one_version(self):
        root = pathlib.Path(__file__).parents[2]
        project = re.search(r"project\(weightcast VERSION ([0-9.]+)", (root / "CMakeLists.txt").read_text())
        self.assertEqual(weightcast.__version__, project[1])  # and the library's, or it would have been refused
        with self.publish():
            self.assertEqual(self.manifest()["client"], project[1])

    def test_an_engine_says_where_its_experts_sit(self):
        experts = weightcast.ExpertMap(3, 2, [[0, 1, 1], [1, 0, 0]])
        with self.publish(version=1, experts=experts) as export:
            manifest = self.manifest()
            self.assertEqual(manifest["expert_slots"], [2, 3, 2])
            table = pathlib.Path("/dev/shm" + manifest["experts"])

            def numbers():
                return memoryview(table.read_bytes()).cast("q").tolist()

            sequence, epoch, *sizes = numbers()[2:8]
            self.assertEqual((sequence % 2, epoch, sizes), (0, 3, [2, 3, 2, 2]))
            # Experts of slots, slots of experts, and counts.
            self.assertEqual(numbers()[8:], [0, 1, 1, 1, 0, 0] + [0, -1, 1, 2, 1, 2, 0, -1] + [1, 2, 2, 1])
            self.assertEqual(export.placed_experts(), (3, [[0, 1, 1], [1, 0, 0]]))
            export.place_experts(4, [[1, 0, 0], [0, 0, 1]])
            self.assertEqual(export.placed_experts(), (4, [[1, 0, 0], [0, 0, 1]]))
            self.assertEqual(numbers()[2:4], [sequence + 2, 4])
            self.assertEqual(numbers()[8:14], [1, 0, 0, 0, 0, 1])
            for wrong, says in {
                (4, ((1, 0, 0), (0, 0, 1))): "epoch 4 after 4",
                (5, ((1, 0, 2), (0, 0, 1))): "slot 2 of layer 0 holds 2, which is none of 2 experts",
                (5, ((1, 0, 0), (0, 0, 0))): "no slot of layer 1 holds expert 1",
                (5, ((1, 0, 0),)): "1 layers of 3 slots",
                (5, ((1, 0), (0, 0, 1))): "layers have 2 to 3 slots",
                (5, ((1, 0, -1), (0, 0, 1))): "the expert of a slot is -1",
                (5, "none"): "give a list of slots for each layer",
                (-1, ((1, 0, 0), (0, 0, 1))): "epoch -1",
            }.items():
                with self.assertRaises(weightcast.Error) as refused:
                    export.place_experts(*wrong)
                self.assertEqual(refused.exception.code, 64)
                self.assertIn(says, str(refused.exception))
            self.assertEqual(numbers()[3], 4)
        self.assertFalse(table.exists())

    def test_experts_that_nobody_has_are_refused(self):
        for experts, says in [
            ((0, 2, [[0, 0]]), "no slot of layer 0 holds expert 1"),
            ((0, 3, [[0, 1]]), "1 layers of 2 slots for 3 experts"),
            ((0, 0, [[0, 1]]), "1 layers of 2 slots for 0 experts"),
            ((0, 2, []), "give a list of slots for each layer"),
            (7, "give weightcast.ExpertMap"),
            ((2**53, 2, [[0, 1]]), "epoch 9007199254740992"),
        ]:
            with self.assertRaises(weightcast.Error) as refused:
                self.publish(experts=experts)
            self.assertEqual(refused.exception.code, 64)
            self.assertIn(says, str(refused.exception))
        with self.assertRaises(weightcast.Error) as refused:
            self.publish("trainer", experts=(0, 1, [[0]]))
        self.assertIn("only an engine has expert slots", str(refused.exception))
        with self.publish() as export, self.assertRaises(weightcast.Error) as refused:
            export.place_experts(1, [[0]])
        self.assertIn("publish it with experts=", str(refused.exception))

    def test_a_reference_is_for_weights_as_they_are(self):
        with self.publish(experts=(0, 2, [[0, 1]])) as export:
            with self.assertRaises(weightcast.Invalid):
                export.refer("a")  # no final form yet
            export.serve(1)
            reference = export.refer("a")
            reference.resolve()[:3] = b"new"
            self.assertEqual(bytes(export.memory("a")[:3]), b"new")
            export.place_experts(1, [[1, 0]])
            with self.assertRaises(weightcast.Stale) as stale:
                reference.resolve()
            self.assertEqual(stale.exception.code, 66)
            self.assertIn("a: weights or the places of experts have changed", str(stale.exception))
            reference = export.refer("a")
            export.serve(2)
            self.assertRaises(weightcast.Stale, reference.resolve)
            export.invalidate("a test")
            self.assertRaises(weightcast.Invalid, reference.resolve)
            with self.assertRaises(weightcast.Error):
                export.refer("nothing")
        with self.assertRaises(weightcast.Error):
            reference.resolve()  # closed

    def test_nobody_asks(self):
        with self.publish() as export:
            self.assertIsNone(export.wanted())
            start = time.monotonic()
            with self.assertRaises(weightcast.NoAnswer):
                with export.pause(timeout=0.1):
                    self.fail("entered")
            self.assertLess(time.monotonic() - start, 5)
            # What another rank has been asked is over when no job step is there.
            with self.assertRaises(weightcast.Error) as over:
                with export.pause(weightcast.Wanted(version=7, question=1), timeout=600):
                    self.fail("entered")
            self.assertEqual(over.exception.code, 74)

    def test_a_trainer_offers_and_an_engine_is_asked(self):
        with self.publish() as engine, self.publish("trainer") as trainer:
            with self.assertRaises(weightcast.Error):
                engine.offer(1)
            with self.assertRaises(weightcast.Error):
                with trainer.pause():
                    self.fail("entered")
            trainer.offer(1, wait=False)
            with self.assertRaises(weightcast.NoAnswer):
                trainer.settle(timeout=0.05)

    def test_what_makes_no_sense_is_refused(self):
        for arguments in (("driver", 0, 1), ("engine", 1, 1), ("engine", -1, 1)):
            with self.assertRaises(weightcast.Error) as refused:
                weightcast.publish(self.folder, *arguments, tensors={"a": Memory("BF16", (1,))})
            self.assertEqual(refused.exception.code, 64)
        with self.assertRaisesRegex(weightcast.Error, "layout of 600 characters"):
            self.publish(layout=600 * "x")
        with self.assertRaisesRegex(weightcast.Error, "BF61"):
            weightcast.publish(self.folder, "engine", 0, 1, tensors={"a": Memory("BF61", (1,))})
        with self.assertRaisesRegex(weightcast.Error, "nothing to publish"):
            weightcast.publish(self.folder, "engine", 0, 1)

    def test_arguments_that_c_would_take_otherwise(self):
        def refuse(says, *arguments, **more):
            with self.assertRaisesRegex(weightcast.Error, says) as refused:
                weightcast.publish(self.folder, *arguments, **{"tensors": {"a": Memory("BF16", (1,))}, **more})
            self.assertEqual(refused.exception.code, 64)
            self.assertFalse(os.path.exists(self.folder) and os.listdir(self.folder))

        for rank, ranks in ((2**32, 2**32 + 1), (0, 2**31), (0.5, 2), (True, 2), ("0", 1), (None, 1)):
            refuse("give a whole number from 0", "engine", rank, ranks)
        for version in (2**63, 2**64 + 5, -1, 1.0, "3", False):
            refuse("version .* give a whole number", "engine", 0, 1, version=version)
        for text in ("a\0b", "\ud800", 7):
            refuse("NUL|UTF-8", "engine", 0, 1, tensors={text: Memory("BF16", (1,))})
            refuse("NUL|UTF-8", "engine", 0, 1, layout=text)
        refuse("NUL", "eng\0ine", 0, 1)
        refuse("UTF-8", 5, 0, 1)
        refuse("dtype", "engine", 0, 1, tensors={"a": Memory("BF16\0", (1,))})
        refuse("6 dimensions", "engine", 0, 1, tensors={"a": Memory("BF16", (1,) * 6)})
        refuse("so many bytes", "engine", 0, 1, tensors={"a": Memory("BF16", (2**62, 4))})
        with self.assertRaisesRegex(weightcast.Error, "NUL"):
            weightcast.publish(self.folder + "\0x", "engine", 0, 1, tensors={"a": Memory("BF16", (1,))})
        for extent in (2**64, -1, 1.5, "1"):
            with self.assertRaisesRegex(weightcast.Error, "extent"):
                Memory("BF16", (extent,))

    def refuse(self, says, call, code=64):
        with self.assertRaisesRegex(weightcast.Error, says) as refused:
            call()
        self.assertEqual(refused.exception.code, code)

    def test_arguments_of_another_kind_are_named(self):
        def refuse(says, **more):
            what = {"folder": self.folder, "role": "engine", "rank": 0, "ranks": 1, "tensors": {"a": Memory("BF16", (1,))}}
            self.refuse(says, lambda: weightcast.publish(**{**what, **more}))
            self.assertFalse(os.path.exists(self.folder))

        for folder in (5, None, ["x"]):
            refuse("folder .*; name one, as str or os.PathLike", folder=folder)
            self.refuse("folder .*; name one, as str", lambda: weightcast.trigger(folder))
        for folder in ("", "live:", b""):
            refuse("the folder's name is empty", folder=folder)
        for layout in (5, 0, b"hf", ["hf"]):
            refuse("layout .* is no text that UTF-8 has; give a str", layout=layout)
        for layout in ("foo", "sglang", "megatron:t2", "hf:t2"):
            refuse("layout '.*' is none of an engine; write for example sglang:t2e2", layout=layout)
        refuse("layout 'sglang:t2' is none of a trainer", role="trainer", layout="sglang:t2")
        refuse("version 3 of a trainer; it says at each offer", role="trainer", version=3)
        for tensors in ([], [("a", Memory("BF16", (1,)))], Memory("BF16", (1,)), 5, "a"):
            refuse("tensors is a .*; give a dict", tensors=tensors)
        for value in (b"12", bytearray(2), [1, 2], memoryview(b"12"), "a", None):
            refuse("tensor 'a' is a .*; give a tensor of torch, or weightcast.Memory", tensors={"a": value})
        refuse("a tensor's name is empty", tensors={"": Memory("BF16", (1,))})
        refuse("module is a .*; give a torch.nn.Module", module=5)
        for dtype in (16, None, b"BF16"):
            self.refuse("dtype .* of Memory; give its name", lambda: Memory(dtype, (1,)))
        self.refuse("shape 5 of Memory; give its extents", lambda: Memory("BF16", 5))

    def test_whatever_is_given_is_told_in_one_line(self):
        class Long:
            def __repr__(self):
                return "two lines\n\x1b[2J" + 10000 * "x"

        class Silent:
            def __repr__(self):
                raise ValueError("no words")

        export = self.publish(version=1)
        self.addCleanup(export.close)
        for value in (Long(), Silent()):
            for call in (
                lambda: weightcast.publish(value, "engine", 0, 1),
                lambda: weightcast.publish(self.folder, value, 0, 1, tensors={"x": Memory("BF16", (1,))}),
                lambda: weightcast.publish(self.folder, "engine", value, 1, tensors={"x": Memory("BF16", (1,))}),
                lambda: weightcast.publish(self.folder, "engine", 0, 1, window=value),
                lambda: weightcast.publish(self.folder, "engine", 0, 1, window={"x": value}),
                lambda: Memory(value, (1,)),
                lambda: Memory("BF16", (value,)),
                lambda: export.memory(value),
                lambda: export.serve(value),
                lambda: export.pause(value),
                lambda: export.pause(timeout=value),
                lambda: export.close(timeout=value),
                lambda: weightcast.trigger(self.folder, version=value),
            ):
                with self.assertRaises(weightcast.Error) as refused:
                    call()
                said = str(refused.exception)
                self.assertEqual(refused.exception.code, 64)
                self.assertTrue(said.isprintable() and len(said) < 400, said)
            export.invalidate(value)
            export.serve(1)
        for name in (["a"], {}, None):
            self.refuse("tensor .* is not in the host's memory", lambda: export.memory(name))
        self.refuse("folder .*; name one", lambda: weightcast.publish(self.folder + "\ud800", "engine", 0, 1, window={"x": Memory("BF16", (1,))}))

    def test_a_limit_of_the_process_is_no_lack_of_room(self):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        for more in ({"tensors": {"x": Memory("U8", (9000,))}}, {"window": {"x": Memory("U8", (9000,))}}):
            with self.assertRaisesRegex(weightcast.Error, "look at this process's limits .*: File too large") as refused:
                weightcast.publish(self.folder, "engine", 0, 1, **more)
            self.assertEqual(refused.exception.code, 74)
        self.assertEqual(os.listdir(self.folder), [])

    def test_a_view_of_memory_is_the_callers(self):
        export = self.publish()
        self.addCleanup(export.close)
        with export.memory("a") as view:
            view[0] = 7
        self.assertEqual(export.memory("a")[0], 7)

    def test_memory_lives_as_long_as_its_views(self):
        def memory():
            return {name for name in os.listdir("/dev/shm") if "weightcast" in name}

        def mappings():
            return pathlib.Path("/proc/self/maps").read_text().count("weightcast")

        before, there = mappings(), memory()
        export = self.publish(window={"w": Memory("F32", (2,))})
        kept = export.memory("a")[8:16]
        other = export.memory("b")
        kept[0] = 7
        landed = next(iter(export._window.values()))[2][:]  # as Update.landed() gives it
        export.close()
        self.assertEqual(os.listdir(self.folder), [])
        self.assertLessEqual(memory(), there)
        self.assertEqual(bytes(kept), bytes([7]) + bytes(7))
        kept[:] = bytes(range(8))
        landed[0] = 1
        other[0] = 1
        self.assertEqual(bytes(kept), bytes(range(8)))
        self.assertEqual(mappings() - before, 2)  # a segment and a window
        del landed
        self.assertEqual(mappings() - before, 1)
        del kept, other
        self.assertEqual(mappings(), before)
        # Without views all goes at once.
        with self.publish():
            self.assertGreater(mappings(), before)
        self.assertEqual(mappings(), before)

    def test_what_is_no_file_under_a_manifests_name_is_refused(self):
        os.makedirs(self.folder)
        path = self.folder + "/engine-0.json"
        target = self._folder.name + "/target"
        pathlib.Path(target).write_text("precious")
        makers = [os.mkfifo, os.mkdir, lambda path: os.symlink(target, path), lambda path: os.symlink("nowhere", path)]
        for make in makers:
            make(path)
            self.refuse(f"{path}: is no file; remove it", self.publish, code=74)
            (os.rmdir if os.path.isdir(path) else os.remove)(path)
        self.assertEqual(pathlib.Path(target).read_text(), "precious")

    def test_a_folder_may_be_named_as_job_steps_name_it(self):
        folder, self.folder = self.folder, "live:" + self.folder
        with self.publish():
            self.folder = folder
            self.assertEqual(os.listdir(folder), ["engine-0.json"])
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self._folder.name)
        with weightcast.publish("live:here", "engine", 0, 1, tensors={"a": Memory("BF16", (1,))}):
            self.assertEqual(sorted(os.listdir(".")), ["here", "run"])
        self.assertRaisesRegex(weightcast.Error, f"{folder}/server.json: no server", weightcast.trigger, f"live:{folder}")

    def test_an_export_that_is_closed_is_said_to_be(self):
        engine = self.publish(version=1)
        self.refuse("tensor 'c' is not in the host's memory here", lambda: engine.memory("c"))
        pause = engine.pause()
        engine.close()
        engine.close()
        calls = [engine.wanted, lambda: engine.serve(1), lambda: engine.decline("no"), lambda: engine.offer(1), engine.settle]
        calls += [engine.withdraw, engine.require_in_place, lambda: engine.memory("a"), pause.__enter__, engine.pause().__enter__]
        for call in calls:
            self.refuse("the export is closed; publish again", call)

    def test_waits_and_versions_that_are_none(self):
        nothing = (float("nan"), -1, -0.5, float("inf"), 10**400, 1e300, "3", None, True)
        with self.publish() as engine, self.publish("trainer") as trainer:

            def refuse(call, says):
                with self.assertRaisesRegex(weightcast.Error, says) as refused:
                    call()
                self.assertEqual(refused.exception.code, 64)

            def pause(*arguments, **more):
                with engine.pause(*arguments, **more):
                    self.fail("entered")

            for timeout in nothing:
                says = "a timeout of .* give a number of seconds"
                refuse(lambda: pause(timeout=timeout), says)
                refuse(lambda: trainer.offer(1, timeout=timeout), says)
                refuse(lambda: trainer.settle(timeout=timeout), says)
                refuse(lambda: engine.close(timeout=timeout), says)
                refuse(lambda: weightcast.trigger(self.folder, timeout=timeout), says)
            for version in (2**63, -1, 1.0, "3", None, True):
                refuse(lambda: engine.serve(version), "version .* give a whole number")
                refuse(lambda: trainer.offer(version), "version .* give a whole number")
            for wanted in (7, (7,), (1, 2, 3), "x"):
                refuse(lambda: pause(wanted), "give what wanted")
            for question in (-1, 2**64, 0.5):
                refuse(lambda: pause((7, question)), "question .* give a whole number")
            # Nothing was closed, and numbers of other kinds are numbers.
            with self.assertRaises(weightcast.NoAnswer):
                pause(timeout=fractions.Fraction(1, 100))
            refuse(lambda: engine.decline("a\0b"), "nobody asks")

    def test_what_is_published_stays_so_without_its_object(self):
        kept = set(weightcast._published)
        export = self.publish()
        name = export._handle
        del export
        self.assertEqual(len(set(weightcast._published) - kept), 1)
        self.assertTrue(os.listdir(self.folder))
        weightcast._library.close_quietly(name)

    def test_a_forked_child_closes_nothing(self):
        with self.publish() as export:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    export.close()
                except weightcast.Error as error:
                    code = 0 if error.code == 64 and export.memory("a").nbytes == 64 else 2
                finally:
                    os._exit(code)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
            self.assertEqual(os.listdir(self.folder), ["engine-0.json"])

    def test_two_copies_of_the_library_in_a_process_leave_each_other_alone(self):
        copy = self._folder.name + "/libother.so"
        shutil.copy(weightcast._library._library._name, copy)
        other = ctypes.CDLL(copy)
        other.weightcast_last_error.restype = ctypes.c_char_p
        other.weightcast_close.argtypes = [ctypes.c_void_p, ctypes.c_double]

        def open_with_the_other(folder):
            handle = ctypes.c_void_p()
            return other.weightcast_open(os.fsencode(folder), b"engine", 0, 1, None, ctypes.byref(handle)), handle

        with self.publish(version=1):
            code, _ = open_with_the_other(self.folder)
            self.assertEqual(code, 64)
            self.assertIn(b"this process has published it already", other.weightcast_last_error())
            code, handle = open_with_the_other(self.folder + "/elsewhere")
            self.assertEqual(code, 0)
            other.weightcast_close(handle, 0.0)
            manifest = self.manifest()
            self.assertTrue(pathlib.Path("/dev/shm" + manifest["control"]).exists())
            # And its lock is where it was: another process sees that it lives.
            refused = subprocess.run([sys.executable, "-c", PUBLISH, self.folder], capture_output=True, text=True)
            self.assertIn(f"process {os.getpid()} has published this rank and is alive", refused.stderr)

    def test_a_rank_is_published_once_and_a_dead_ones_place_is_free(self):
        other = subprocess.Popen([sys.executable, "-c", PUBLISH, self.folder], stdout=subprocess.PIPE, text=True)
        self.assertEqual(other.stdout.readline(), "published\n")
        with self.assertRaisesRegex(weightcast.Error, f"process {other.pid} "):
            self.publish()
        other.kill()
        other.wait()
        other.stdout.close()
        self.publish().close()


if __name__ == "__main__":
    unittest.main()
