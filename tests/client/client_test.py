"""The Python package without a job step: what publishing makes, and what calls refuse."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import weightcast
from weightcast import Memory


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

    def test_a_rank_is_published_once_and_a_dead_ones_place_is_free(self):
        program = "import sys, time, weightcast\n" + (
            "export = weightcast.publish(sys.argv[1], 'engine', 0, 1, tensors={'a': weightcast.Memory('F32', (2,))})\n"
            "print('published', flush=True)\ntime.sleep(60)\n"
        )
        other = subprocess.Popen([sys.executable, "-c", program, self.folder], stdout=subprocess.PIPE, text=True)
        self.assertEqual(other.stdout.readline(), "published\n")
        with self.assertRaisesRegex(weightcast.Error, f"process {other.pid} "):
            self.publish()
        other.kill()
        other.wait()
        other.stdout.close()
        self.publish().close()


if __name__ == "__main__":
    unittest.main()
