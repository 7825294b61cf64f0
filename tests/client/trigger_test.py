"""weightcast.trigger: what it refuses, what it makes of a server's words, and updates that a server does for it."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import weightcast
from hf_engine_test import CHECKPOINT, stored_tensors
from weightcast import Memory


class Trigger(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.folder = self.directory / "weights"
        self.folder.mkdir()

    def write_server_file(self, **fields):
        server = {
            "weightcast": 1,
            "host": socket.gethostname(),
            "boot_id": pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "pid": 1,
            "uid": os.getuid(),
            "job": "17",
            "socket": str(self.directory / "socket"),
        }
        (self.folder / "server.json").write_text(json.dumps({**server, **fields}))

    @contextlib.contextmanager
    def server_that_says(self, *pieces):
        """Hears a line, says the pieces and ends. Gives what it has heard."""
        path = self.directory / "socket"
        path.unlink(missing_ok=True)
        self.write_server_file()
        heard = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()

            def answer():
                client, _ = listener.accept()
                with client, client.makefile("rb") as lines:
                    heard.append(json.loads(lines.readline()))
                    for piece in pieces:
                        client.sendall(piece)
                        time.sleep(0.01)
                    if not pieces:
                        lines.read()  # until the other side has gone

            thread = threading.Thread(target=answer)
            thread.start()
            try:
                yield heard
            finally:
                thread.join()

    def refused(self, code, says, *arguments, **more):
        with self.assertRaisesRegex(weightcast.Error, says) as refused:
            weightcast.trigger(self.folder, *arguments, **more)
        self.assertEqual(refused.exception.code, code)
        self.assertEqual(isinstance(refused.exception, weightcast.NoAnswer), code == 76)
        self.assertNotIsInstance(refused.exception, weightcast.Invalid)
        self.assertTrue(str(refused.exception).isprintable(), str(refused.exception))

    def test_without_a_server(self):
        self.refused(74, r"server.json: no server; start one with mpirun -n N weightcast serve")
        self.write_server_file(host="else\x1bwhere")
        self.refused(74, rf"ask there: srun --jobid=17 --overlap -w else\\x1bwhere weightcast trigger {self.folder}$")
        self.write_server_file(uid=os.getuid() + 1)
        self.refused(74, "as that user")
        self.write_server_file(boot_id="another")
        self.refused(74, "has been started anew")
        self.write_server_file()
        self.refused(74, r"server.json \(process 1\): nobody listens at .*socket: No such file.*; is the server gone")
        self.write_server_file(socket="/tmp/" + "x" * 200)
        self.refused(65, "too long")
        for wrong in ("", "[]", "{", "[" * 60000, "x" * 70000, '{"weightcast": 2}', '{"weightcast": 1}'):
            (self.folder / "server.json").write_text(wrong)
            self.refused(65, "server.json: .*start the server again")
        (self.folder / "server.json").unlink()
        os.mkfifo(self.folder / "server.json")  # which nobody writes into
        self.refused(74, "server.json: it is no regular file; look what is there")
        (self.folder / "server.json").unlink()
        for field in ("host", "boot_id", "pid", "uid", "job", "socket"):
            self.write_server_file(**{field: True})
            self.refused(65, f"'{field}' is no ")

    def test_versions_are_whole_numbers(self):
        for wrong in (-1, 2**63, True, 1.0, "1"):
            self.refused(64, "whole number", wrong)

    def test_what_a_server_says(self):
        answer = {"weightcast": 1, "code": 0, "version": 7, "was_there": False, "report": "a\nb\x1b\n", "note": "", "error": ""}

        def line(**fields):
            return json.dumps({**answer, **fields}).encode() + b"\n"

        whole = line()
        with self.server_that_says(whole[:20], whole[20:]) as heard:
            self.assertEqual(weightcast.trigger(self.folder, 7, queue=False), (7, False, "a\nb\\x1b\n"))
        self.assertEqual(heard, [{"weightcast": 1, "request": "update", "version": 7, "queue": False}])
        with self.server_that_says(line(was_there=True, report="")) as heard:
            self.assertTrue(weightcast.trigger(self.folder).was_there)
        self.assertEqual(heard, [{"weightcast": 1, "request": "update", "version": None, "queue": True}])
        for code in (64, 65, 66, 70, 74, 75, 76):
            with self.server_that_says(line(code=code, version=None, error="engine 3:\n\x1b[2J")):
                self.refused(code, r"^engine 3:\\n\\x1b\[2J$")
        for wrong in (b"\n", b"[]\n", line(code="0"), line(version=None), line(report=1), line(weightcast=2), b"x" * 70000):
            with self.server_that_says(wrong):
                self.refused(65, "the server's answer: .*on both sides")
        with self.server_that_says(b"{"):
            self.refused(74, r"has ended before its answer, and its log says why; start it again$")
        with self.server_that_says():
            self.refused(76, "no answer within 0.2 s", timeout=0.2)

    def start_server(self):
        command = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", "2"]
        command += [os.environ["WEIGHTCAST_BINARY"], "serve", "--source", f"live:{self.folder}", "--sink", f"live:{self.folder}"]
        command += ["--model", CHECKPOINT, "--inference-alloc", "hf", "--timeout", "120"]
        log = open(self.directory / "server.log", "w+")
        self.addCleanup(log.close)
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        file = self.folder / "server.json"
        while not file.exists():
            if server.poll() is not None:
                log.seek(0)
                self.fail(log.read())
            time.sleep(0.01)
        return server, json.loads(file.read_text())["pid"]

    def publish(self, role):
        tensors = {name: Memory(dtype, shape) for name, (dtype, shape, _) in stored_tensors().items()}
        return weightcast.publish(self.folder, role, 0, 1, tensors=tensors, layout="hf" if role == "engine" else None)

    def test_updates(self):
        ended = threading.Event()
        name = "model.embed_tokens.weight"
        with self.publish("trainer") as trainer, self.publish("engine") as engine:

            def serve():
                while not ended.wait(0.001):
                    if (wanted := engine.wanted()) is not None:
                        with engine.pause(wanted, timeout=60):
                            pass

            thread = threading.Thread(target=serve)
            thread.start()
            server, rank_0 = self.start_server()
            try:
                for version in (1, 2, 3):
                    trainer.memory(name)[:] = bytes([version]) * trainer.memory(name).nbytes
                    trainer.offer(version, wait=False)
                    answer = weightcast.trigger(self.folder, timeout=60)
                    self.assertEqual((answer.version, answer.was_there), (version, False))
                    self.assertRegex(answer.report, rf"(?m)^ +{version} .* yes$")
                    trainer.settle(timeout=60)
                    self.assertEqual(bytes(engine.memory(name)), bytes([version]) * engine.memory(name).nbytes)
                    self.assertEqual(weightcast.trigger(self.folder, version), (version, True, ""))
                trainer.offer(4, wait=False)
                self.refused(64, "--weight-version 9: the trainers offer version 4", 9)
                os.kill(rank_0, signal.SIGUSR1)
                self.assertEqual(server.wait(60), 75)
                self.refused(74, "no server")
            finally:
                server.kill()
                server.wait()
                ended.set()
                thread.join()


if __name__ == "__main__":
    unittest.main()
