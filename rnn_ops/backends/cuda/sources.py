"""The CUDA kernels (kernels/cuda) in the form that a compiler takes: a text and macros.

compiler.py keeps machine code on disk under a hash of text and options. So this module joins all includes into the text: a new
version of a header makes a new text, and old machine code is never used for it. Macros take the place of template arguments, so
that a kernel has a plain name, which a profiler shows.
"""
import os
import re
from typing import NamedTuple

OPTIONS = ("--std=c++17",)  # compiler.py adds more

_HERE = os.path.dirname(os.path.abspath(__file__))
# Installed, the kernels are a folder of the package; in a source folder they lie beside it.
_FOLDERS = (os.path.join(_HERE, "kernels"), os.path.join(_HERE, *[os.pardir] * 3, "kernels"))
_INCLUDE = re.compile(r'#include "(?:\.\./)?(\w+\.(?:cuh|h))"\n')


class Kernel(NamedTuple):
    """A kernel before it is compiled."""
    family: str    # its file
    name: str      # as a profiler shows it; the macro NAME
    macros: tuple  # of (name, value), besides NAME

    @property
    def options(self):
        """NVRTC's options."""
        return OPTIONS + tuple(f"-D{name}={value}" for name, value in (("NAME", self.name),) + self.macros)

    def __str__(self):
        return f"{self.name}<{', '.join(value for _, value in self.macros)}>"


def folder():
    """The folder `kernels`: codes.h, and in cuda/ the CUDA sources."""
    return next(folder for folder in _FOLDERS if os.path.isdir(folder))


def text(family, replace=None):
    """The source of ``family`` ("resident", "sums", ...) with what it includes.

    ``replace`` maps a header's name to a text that replaces it. The tests replace primitives.cuh.
    """
    replace, seen = replace or {}, set()

    def expand(name):
        if name in seen:
            return ""
        seen.add(name)
        if name in replace:
            lines = replace[name]
        else:
            path = os.path.join(folder(), name) if name == "codes.h" else os.path.join(folder(), "cuda", name)
            with open(path, encoding="utf-8") as file:
                lines = file.read()
        lines = lines.replace("#pragma once\n", "\n")
        number = {match.start(): lines.count("\n", 0, match.end()) + 1 for match in _INCLUDE.finditer(lines)}
        joined = _INCLUDE.sub(
            lambda match: f'{expand(match.group(1))}\n#line {number[match.start()]} "{name}"\n', lines)
        return f'#line 1 "{name}"\n{joined}'

    return expand(family + ".cu")
