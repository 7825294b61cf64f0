"""A job step that does to an exporter's control block what it is told, in a process of its own.

job_step.py CONTROL_BLOCK STEP…

`=5` gives the exporter state 5, `?4` waits until it has state 4, `-PATH` until no file has that name, `!` sends the parent
SIGUSR1, `.` prints a line. Afterwards each line of its input is answered with what it sees (JSON)."""

import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time

# As control_block.h has them.
NONE, INVALID, SERVING, ASKED, PAUSED, WRITING, WRITTEN, COMMITTED, TRAINING, OFFERS, BEING_READ, READ = range(12)
_WORD, _ASKED, _REST, _REASON, _CAUSE = 16, 32, 44, 304, 824
_UPDATE = 7
VERSION = 5  # that it asks to write


def main(name, steps):
    file = os.open("/dev/shm" + name, os.O_RDWR)
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)
    fcntl.lockf(file, fcntl.LOCK_SH, 1, 2)
    block = mmap.mmap(file, 4096)

    def state():
        return struct.unpack_from("<Q", block, _WORD)[0] & 0xFF

    def text(offset):
        return block[offset : offset + 512].partition(b"\0")[0].decode()

    struct.pack_into("<q", block, _ASKED, VERSION)
    struct.pack_into("<I", block, _REST, state())
    for step in steps:
        if step == ".":
            print("", flush=True)
        elif step == "!":
            os.kill(os.getppid(), signal.SIGUSR1)
        elif step[0] == "-":
            while os.path.exists(step[1:]):
                time.sleep(0.001)
        elif step[0] == "=":
            struct.pack_into("<Q", block, _WORD, _UPDATE << 8 | int(step[1:]))
        else:
            while state() != int(step[1:]):
                time.sleep(0.001)
    for _ in sys.stdin:
        print(json.dumps({"state": state(), "reason": text(_REASON), "cause": text(_CAUSE)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
