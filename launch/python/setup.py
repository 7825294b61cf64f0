"""Puts the client library into the package where it has been built: build/release beside this folder's repository, or the file
that WEIGHTCAST_CLIENT names. A wheel with a library is for this platform, and for any Python 3."""

import os
import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

FILE = "libweightcast.so.1"
BUILT = pathlib.Path(__file__).resolve().parents[2] / "build" / "release" / "src" / "client" / FILE


def library():
    """The built library's file, None where there is none."""
    named = os.environ.get("WEIGHTCAST_CLIENT")
    if named:
        return pathlib.Path(named)
    return BUILT if BUILT.exists() else None


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        found = library()
        target = pathlib.Path(self.build_lib, "weightcast", FILE)
        target.unlink(missing_ok=True)  # an earlier build's
        if found is not None:
            shutil.copyfile(found, target)


class WheelForThisPlatform(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if library() is not None else (python, abi, platform)


class WithLibrary(Distribution):
    def has_ext_modules(self):
        return library() is not None


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForThisPlatform}, distclass=WithLibrary)
