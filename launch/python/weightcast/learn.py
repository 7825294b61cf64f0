"""Learns from an engine's own loader which box of which checkpoint tensor lands where, and writes a landing map.

    weightcast learn MODEL --engine vllm --tp 2 --output landing.json          # or python3 -m weightcast.learn

MODEL is a folder with config.json and a checkpoint, of which only headers are read, or with config.json and tensors.json, a list
[{"name", "dtype", "shape"}, …]. Job steps take the map with --landing. With --check another map is compared with what is learned.
"""

import argparse
import os
import sys

from . import _headers, _landing
from ._library import Error, printable, shown, whole
from ._tested import require_tested

# vLLM's whose loader was read, and whose maps were compared with what it loads.
_TESTED = ("0.32.0",)
_OTHERS = "WEIGHTCAST_VLLM_VERSION"


def vllm_learner():
    """The module that learns from vLLM. Raises Error where it cannot."""
    try:
        import vllm
    except ImportError as error:
        raise Error(64, f"vLLM cannot be imported ({error}); run this with the Python of an installed vLLM") from None
    require_tested("the loader of vLLM", vllm.__version__.split("+")[0], _TESTED, _OTHERS)
    from . import _vllm_learn

    return _vllm_learn


def learn(model, engine="vllm", tp=1, pp=1, ep=1, dtype="auto"):
    """The landing map of an engine that serves the folder `model` on tp * pp ranks. `ep` is 1, or tp where whole experts are
    given to ranks; `dtype` is the engine's option. This process must be no rank of anything. Raises Error."""
    if engine == "sglang":
        raise Error(64, "nothing can be learned from SGLang: its models are made on GPUs only, and none was tried; describe it by "
                    "--inference sglang:…, or learn from vllm")  # fmt: skip
    if engine != "vllm":
        raise Error(64, f"engine {shown(engine)} is unknown; give vllm")
    for name, value in (("tp", tp), ("pp", pp), ("ep", ep)):
        if whole(value, name) < 1:
            raise Error(64, f"{name} is {value}; give the number of ranks")
    if ep not in (1, tp):
        raise Error(64, f"ep is {ep}; vLLM gives whole experts to all ranks of tp, or to none: give 1 or {tp}")
    if not isinstance(model, (str, os.PathLike)):
        raise Error(64, f"model {shown(model)}; name its folder")
    if not isinstance(dtype, str):
        raise Error(64, f"dtype {shown(dtype)}; give the engine's option, such as auto")
    with _headers.folder_with_headers(model) as folder:
        try:
            return vllm_learner().learn(folder, tp, pp, ep > 1, dtype)
        except Error as error:
            raise Error(error.code, str(error).replace(str(folder), str(model))) from error.__cause__


def summary(landing):
    """What a map says, in lines."""
    direct = total = parameters = 0
    reasons, left = {}, {}
    for rank in landing["ranks"]:
        for of in rank.get("parameters", []):
            rows, columns = _landing.matrix(of["shape"])
            size = rows * columns * _headers.BITS.get(of["dtype"], 16) // 8
            total += size
            parameters += 1
            if any(name in of for name in ("parts", "turned", "zero")):
                direct += size
        for of in rank.get("left", []):
            left.setdefault(of["why"], set()).add(of["name"])
        for of in rank.get("loader", []):
            reasons.setdefault(of["why"], set()).add(landing["tensors"][of["tensor"]]["name"])
    share = 100 * direct / total if total else 100.0
    yield f"{len(landing['ranks'])} ranks, {parameters} parameters, {share:.2f} % of their bytes land directly"
    for why, names in left.items():
        yield f"left as it is, in {len(names)} parameters such as {min(names)}: {why}"
    for why, names in reasons.items():
        yield f"through the engine's loader: {len(names)} tensors, such as {min(names)}: {why}"


def main(words=None):
    """The exit code of the command."""
    try:
        _run(_arguments(words))
        return 0
    except Error as error:
        print(f"weightcast: error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 75


def _run(options):
    if options.output is None and options.check is None:
        raise Error(64, "give --output FILE for the map, or --check FILE to compare one")
    other = None if options.check is None else _landing.read(options.check)
    landing = learn(options.model, options.engine, options.tp, options.pp, options.ep, options.dtype)
    for line in summary(landing):
        print(printable(line))
    if other is not None:
        found = _landing.differences(landing, other)
        for line in found:
            print(printable(line), file=sys.stderr)
        if found:
            raise Error(65, f"{options.check} is not what {options.engine} does with this checkpoint (first: what was learned)")
    if options.output is not None:
        _landing.write(landing, options.output)
        print(f"{printable(options.output)} is written; a job step takes it as --landing")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Error(64, f"{message}; see --help")


def _arguments(words):
    parser = _Parser(prog="python3 -m weightcast.learn", description="Makes a landing map from an engine's own loader.")
    parser.add_argument("model", metavar="MODEL", help="folder with config.json and a checkpoint, or tensors.json")
    parser.add_argument("--engine", default="vllm", help="whose loader: vllm")
    parser.add_argument("--tp", type=int, default=1, help="ranks of tensor parallelism")
    parser.add_argument("--pp", type=int, default=1, help="stages of the pipeline")
    parser.add_argument("--ep", type=int, default=1, help="1, or as many as --tp: each rank has whole experts")
    parser.add_argument("--dtype", default="auto", help="the engine's option of that name")
    parser.add_argument("--output", metavar="FILE", help="the map that is written")
    parser.add_argument("--check", metavar="FILE", help="a map that must say what is learned; otherwise the exit code is 65")
    return parser.parse_args(words)


if __name__ == "__main__":
    # vLLM's log is for servers; and where it finds no GPU, it tells.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
