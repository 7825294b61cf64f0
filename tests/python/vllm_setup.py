"""How the tests start vLLM on a CPU, and what it leaves behind."""

import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parents[2] / "launch" / "python"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def vllm_segments():
    """What vLLM's workers on a CPU share, and leave behind."""
    return set(pathlib.Path("/dev/shm").glob("vllm_dist_*"))


def install_package(target):
    """Puts the package where pip does: with its entry point, by which vLLM finds the backend."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--target", target, PACKAGE], check=True)
