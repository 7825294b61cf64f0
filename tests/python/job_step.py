"""The job step that the tests of live processes start, and kill."""

import os
import pathlib
import signal
import subprocess


def start(folder, model, ranks, *more, command="sync", **environment):
    """`weightcast sync`, or `serve`, from the live trainers of a folder to its live engines, with pipes."""
    words = [*program(ranks), command, "--source", f"live:{folder}", "--sink", f"live:{folder}", "--model", model, *more]
    return subprocess.Popen(
        words, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def program(ranks):
    """The beginning of a command line: weightcast with so many ranks."""
    mpirun = [os.environ["WEIGHTCAST_MPIRUN"], "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return [*mpirun, os.environ["WEIGHTCAST_BINARY"]]


def ranks_of(job):
    """The processes of its ranks, in the order of their start."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(words[1]) == job.pid:
            found.append(int(entry.parent.name))
    return sorted(found)


def is_stopped(process):
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def kill(job):
    """With all its ranks, of which none gets to say anything."""
    with job:
        for process in [*ranks_of(job), job.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
