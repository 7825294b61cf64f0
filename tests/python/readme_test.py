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
import weightcast

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent


class Readme(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def installed(self, **more):
        """Where pip has put the package of a folder beside which no library has been built."""
        # pip builds in the folder that it is given.
        package = self.directory / "package"
        shutil.copytree(ROOT / "launch" / "python", package, ignore=shutil.ignore_patterns("build"), dirs_exist_ok=True)
        target = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
        environment = {name: value for name, value in os.environ.items() if name != "WEIGHTCAST_CLIENT"}
        subprocess.run([*command, "--target", target, package], env={**environment, **more}, check=True)
        return target

    def test_the_installed_package_finds_its_library(self):
        library = os.environ["WEIGHTCAST_CLIENT"]
        program = "import sys, weightcast; print(weightcast.__file__, *{'torch', 'vllm'}.intersection(sys.modules))"

        def run(installed, **more):
            environment = {name: value for name, value in os.environ.items() if name != "WEIGHTCAST_CLIENT"}
            environment.update(more, PYTHONPATH=str(installed))
            return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

        alone = self.installed()
        missing = run(alone)
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn("set WEIGHTCAST_CLIENT", missing.stderr)
        expected = f"{alone}/weightcast/__init__.py\n"
        self.assertEqual(run(alone, WEIGHTCAST_CLIENT=library).stdout, expected)
        self.assertEqual(run(alone, LD_LIBRARY_PATH=str(pathlib.Path(library).parent)).stdout, expected)
        whole = self.installed(WEIGHTCAST_CLIENT=library)
        self.assertEqual(run(whole).stdout, f"{whole}/weightcast/__init__.py\n")
        self.assertIn("/nowhere.so", run(whole, WEIGHTCAST_CLIENT="/nowhere.so").stderr)

    def test_a_library_of_another_version_is_refused(self):
        library = self.directory / "libother.so"
        for source, whose in [
            ("int weightcast_open(void) {return 0;}", "an older weightcast"),
            ('const char* weightcast_version(void) {return "9.8.7";}', "weightcast 9.8.7"),
        ]:
            with self.subTest(whose=whose):
                subprocess.run(["cc", "-shared", "-o", library, "-x", "c", "-"], input=source.encode(), check=True)
                environment = {**os.environ, "WEIGHTCAST_CLIENT": str(library)}
                said = subprocess.run([sys.executable, "-c", "import weightcast"], env=environment, capture_output=True, text=True)
                self.assertIn(f"{library} is {whose}, and this package {weightcast.__version__}; install both anew", said.stderr)

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
