"""What the README says of Python: the package is installed by pip, and its example runs as it is written."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import tiny_model

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent


class Readme(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def installed(self):
        """Where pip has put the package, beside which the library is not."""
        # pip builds in the folder that it is given.
        shutil.copytree(ROOT / "launch" / "python", self.directory / "package")
        target = self.directory / "installed"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
        subprocess.run([*command, "--target", target, self.directory / "package"], check=True)
        return target

    def test_the_installed_package_finds_its_library(self):
        installed = self.installed()
        program = "import weightcast; print(weightcast.__file__)"
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        library = environment.pop("WEIGHTCAST_CLIENT")

        def run(**more):
            return subprocess.run(
                [sys.executable, "-c", program], env={**environment, **more}, capture_output=True, text=True
            )

        missing = run()
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn("set WEIGHTCAST_CLIENT", missing.stderr)
        self.assertIn(str(installed), run(WEIGHTCAST_CLIENT=library).stdout)
        self.assertIn(str(installed), run(LD_LIBRARY_PATH=str(pathlib.Path(library).parent)).stdout)
        shutil.copy(library, installed / "weightcast" / "libweightcast.so.1")
        self.assertIn(str(installed), run().stdout)

    def test_the_example_runs(self):
        config = self.directory / "model"
        tiny_model.write_config(config, "bfloat16", False, hidden=32, vocabulary=100)

        def start(role, rank):
            command = [sys.executable, "-B", HERE / "readme_program.py", ROOT / "README.md", role, str(rank)]
            command += [config, self.directory / "store"]
            # The example publishes in run/weights.
            process = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.PIPE, text=True)
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            return process

        programs = [start("trainer", 0), start("engine", 0), start("engine", 1)]
        folder = self.directory / "run" / "weights"
        command = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", "3"]
        command += [os.environ["WEIGHTCAST_BINARY"], "sync", "--source", f"live:{folder}", "--sink", f"live:{folder}"]
        command += ["--model", config, "--inference-alloc", "hf:d2"]
        first = programs[0].stdout.readline()
        while len(list(folder.glob("*.json"))) < 3:
            self.assertTrue(all(program.poll() is None for program in programs))
            time.sleep(0.05)
        for _ in range(2):
            job = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(job.returncode, 0, job.stdout + job.stderr)
        said = [program.communicate(timeout=60)[0] for program in programs]
        self.assertEqual([program.returncode for program in programs], [0, 0, 0])
        offered = [json.loads(line) for line in [first, *said[0].splitlines()]]
        self.assertEqual([offer["version"] for offer in offered], [1, 2])
        for engine in said[1:]:
            self.assertEqual([json.loads(line) for line in engine.splitlines()], offered)


if __name__ == "__main__":
    unittest.main()
