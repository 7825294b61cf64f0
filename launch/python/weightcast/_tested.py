"""Which versions of other programs this package was tried with."""

import os

from ._library import Error


def require_tested(program, version, tested, variable):
    """Refuses a version whose interface nobody has looked at, unless the environment's `variable` names it."""
    if version not in (*tested, os.environ.get(variable)):
        raise Error(
            64, f"{program} {version} was never tried with weightcast, only {', '.join(tested)}; install that one, or set "
            f"{variable}={version} to try it")  # fmt: skip
