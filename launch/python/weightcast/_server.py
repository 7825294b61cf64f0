"""Asks the server of a folder, as `weightcast trigger` does, but without the start of a program."""

import json
import os
import pathlib
import socket
import struct
import time
import typing

from ._library import Error, NoAnswer, open_regular, printable, seconds, whole
from ._library import path as path_of

# As launch/serve/message.hpp has them.
_FORMAT = 1
_MOST_ANSWER_BYTES = 65536
_MOST_FILE_BYTES = 65536
_MOST_PATH_BYTES = 107


class Answer(typing.NamedTuple):
    """`version` is in the memory of all engines. `was_there`: before the request already; else `report` is what the program
    prints of the update."""

    version: int
    was_there: bool
    report: str


def trigger(folder, version=None, queue=True, timeout=1800.0):
    """Asks the server of a folder for an update, and waits for its end; returns an Answer.

    `version` is which the engines are to have afterwards, None the one that the trainers offer. While another update is
    under way this one waits for its turn, with queue=False it is refused. Where it raises, Error has the code with which
    `weightcast trigger` would end, and the server's own line. NoAnswer after `timeout` seconds: an update that has begun
    goes on. Only on the host of the server's rank 0, and as its user."""
    if version is not None:
        version = whole(version, "version")
    timeout = seconds(timeout)
    path = os.path.join(path_of(folder), "server.json")
    server = _find(path)
    request = {"weightcast": _FORMAT, "request": "update", "version": version, "queue": bool(queue)}
    try:
        line = _ask(server["socket"], json.dumps(request).encode() + b"\n", timeout)
    except _Gone as gone:
        raise _error(74, f"{path} (process {server['pid']}): {gone}") from None
    answer = _parse(line)
    if answer["code"] != 0:
        raise _error(answer["code"], answer["error"])
    return Answer(answer["version"], answer["was_there"], "\n".join(map(printable, answer["report"].split("\n"))))


class _Gone(Exception):
    """There is no server that would answer."""


def _error(code, message):
    return (NoAnswer if code == 76 else Error)(code, message)


def _object(text, origin, remedy):
    """A JSON object of this format."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise _error(65, f"{origin}: is no JSON object; {remedy}")
    if parsed.get("weightcast") != _FORMAT:
        raise _error(65, f"{origin}: 'weightcast' is not {_FORMAT}; {remedy}")
    return parsed


def _require(parsed, kinds, origin, remedy):
    for name, kind in kinds.items():
        value = parsed.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            what = {int: "no whole number", str: "no text", bool: "not true or false"}[kind]
            raise _error(65, f"{origin}: '{name}' is {what}; {remedy}")


def _find(path):
    """The server on this host and of this user."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            text = file.read(_MOST_FILE_BYTES + 1)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        raise _error(
            74,
            f"{path}: no server; start one with mpirun -n N weightcast serve --source live:{folder} --sink live:{folder} "
            "--model CONFIG_JSON --inference LAYOUT",
        ) from None
    except OSError as error:
        raise _error(74, f"{path}: {error.strerror}; look what is there, and at the permissions") from None
    remedy = "start the server again with this version of the program"
    if len(text) > _MOST_FILE_BYTES:
        raise _error(65, f"{path}: is longer than {_MOST_FILE_BYTES} bytes; {remedy}")
    server = _object(text, path, remedy)
    _require(server, {"host": str, "boot_id": str, "pid": int, "uid": int, "job": str, "socket": str}, path, remedy)
    host = server["host"]
    if host != socket.gethostname():
        job = f" --jobid={server['job']}" if server["job"] else ""
        whole = os.path.abspath(os.path.dirname(path))
        raise _error(
            74, f"{path}: the server is on host {host}; ask there: srun{job} --overlap -w {host} weightcast trigger {whole}"
        )
    if server["uid"] != os.getuid():
        raise _error(74, f"{path}: the server is of user {server['uid']}; ask as that user")
    if server["boot_id"] != pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        raise _error(74, f"{path}: the host has been started anew since; start the server again")
    return server


def _ask(name, request, timeout):
    """The line that a server says to a request."""
    give_up = time.monotonic() + timeout
    silent = NoAnswer(76, f"no answer within {timeout:g} s; an update that has begun goes on: raise the timeout")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:

        def left():
            remaining = give_up - time.monotonic()
            if remaining <= 0:
                raise silent
            server.settimeout(remaining)

        try:
            if len(os.fsencode(name)) > _MOST_PATH_BYTES:
                raise Error(65, "the socket's name is too long; start the server again with a shorter TMPDIR")
            left()
            server.connect(name)
        except socket.timeout:
            raise silent from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise _Gone(f"nobody listens at {name}: {reason}; is the server gone? then start it again") from None
        _, user, _ = struct.unpack("iII", server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
        if user != os.getuid():
            raise _Gone(f"{name}: another user listens there; start the server again, with a TMPDIR of its own")
        try:
            left()
            server.sendall(request)
        except socket.timeout:
            raise silent from None
        except OSError:
            pass  # a server that refuses at once may have closed before it was asked
        answer = b""
        while b"\n" not in answer and len(answer) < _MOST_ANSWER_BYTES:
            try:
                left()
                piece = server.recv(_MOST_ANSWER_BYTES - len(answer))
            except socket.timeout:
                raise silent from None
            except OSError:
                piece = b""
            if not piece:
                raise _Gone("the server has ended before its answer, and its log says why; start it again")
            answer += piece
        return answer


def _parse(line):
    origin, remedy = "the server's answer", "use one version of weightcast on both sides"
    answer = _object(line, origin, remedy)
    _require(answer, {"code": int, "report": str, "error": str, "was_there": bool}, origin, remedy)
    if answer["code"] == 0:
        _require(answer, {"version": int}, origin, remedy)
    return answer
