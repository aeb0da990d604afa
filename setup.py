"""Builds rnn_ops/librnn_ops.so with the system's C++ compiler: the CPU kernels (kernels/cpu) and the native MXNet operator
(rnn_ops/operators/native), which needs nothing of MXNet to be built.

One library, so that it can be given to MXNet alone, where there is no Python, and so that a process has the kernels and their
threads once. The library knows nothing of Python, so one build serves every version of it. Each SIMD level of the kernels is a
source file of its own with its own flags; the level is chosen when the kernels run.

Which folder becomes which package is here too. The rest of the package's description is in pyproject.toml.
"""
import os
import platform
import shlex
import shutil
import subprocess
import sys

if sys.version_info < (3, 8):  # newer ones are refused by pip, which reads pyproject.toml
    raise SystemExit("rnn_ops: got Python %d.%d, needs 3.8 to 3.12" % sys.version_info[:2])

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join("kernels", "cpu")
OPERATOR = os.path.join("rnn_ops", "operators", "native")
X86 = platform.machine().lower() in ("x86_64", "amd64")

# -ffp-contract=fast lets a·b + c become one fused multiply-add, which is faster and more exact. Nothing looser: sums
# keep their order, NaN and infinity their meaning. -Wno-psabi: vectors wider than a level's registers are never
# passed between files.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi",
         "-pthread"] + (["-DRNN_X86"] if X86 else [])
KERNEL_FLAGS = dict.fromkeys(["threads.cc", "split.cc", "rnn_cpu.cc", "lookup.cc", "isa_baseline.cc"], [])  # besides FLAGS
if X86:
    KERNEL_FLAGS["isa_avx2.cc"] = ["-mavx2", "-mfma"]
    KERNEL_FLAGS["isa_avx512.cc"] = ["-mavx512f", "-mfma"]
OPERATOR_FLAGS = dict.fromkeys(["mxnet_abi.cc", "inference.cc", "cpu.cc", "gpu.cc", "front.cc", "custom_lookup.cc"],
                               ["-I", os.path.join(HERE, KERNELS)])

# Package: its folder. The folders below that have an __init__.py are packages too.
CUDA_SOURCES = "rnn_ops.backends.cuda.kernels"  # compiled where they run, so the sources go along
FOLDERS = {"rnn_ops": "rnn_ops",
           "rnn_ops_timemachine": os.path.join("python", "rnn_ops_timemachine"),
           "rnn_ops_cli": os.path.join("python", "rnn_ops_cli"),
           "rnn_ops_benchmarks": "benchmarks",
           CUDA_SOURCES: "kernels"}
PACKAGES = [name for package, folder in FOLDERS.items()
            for name in [package] + [package + "." + below for below in find_packages(os.path.join(HERE, folder))]]
PACKAGE_DATA = {"": ["py.typed", "*.json", "*.cu"], CUDA_SOURCES: ["codes.h", "cuda/*.cu", "cuda/*.cuh"]}

# From 77 on, which needs Python 3.9, setuptools has a field for a licence's name in SPDX, and warns of the older field.
LICENSE_FIELD = "license_expression" if int(setuptools.__version__.split(".")[0]) >= 77 else "license"

LIBRARY = "rnn_ops.librnn_ops"
SOURCES = {KERNELS: KERNEL_FLAGS, OPERATOR: OPERATOR_FLAGS}  # folder: flags of each source

# MXNet closes its libraries when a process ends, while threads of the kernels may still be asleep in this one: it stays.
LINK_FLAGS = ["-shared", "-pthread"] + (["-Wl,-z,nodelete", "-ldl"] if sys.platform.startswith("linux") else [])


def find_compiler():
    """The C++ compiler's command as a list: $CXX, else c++, g++ or clang++; SystemExit if none is installed."""
    for command in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    raise SystemExit(
        "rnn_ops: no C++ compiler was found (looked for $CXX, c++, g++, clang++). Install one and try again: "
        "'apt-get install g++' on Debian and Ubuntu, 'dnf install gcc-c++' on Fedora, 'xcode-select --install' on macOS.")


def run(commands):
    """Runs the commands side by side; SystemExit if one fails."""
    running = [subprocess.Popen(command) for command in commands]
    if any([process.wait() for process in running]):
        raise SystemExit("rnn_ops: %s could not build the kernels; what it said stands above. "
                         "They need C++17: GCC 9 or newer, or Clang 10 or newer." % commands[0][0])


def compile_sources(work, folder=KERNELS, flags_of=KERNEL_FLAGS, extra=()):
    """Compiles sources to object files in the folder `work` and returns their names. `extra` flags, such as those of a
    sanitizer, go to every source."""
    os.makedirs(work, exist_ok=True)
    objects = {source: os.path.join(work, source + ".o") for source in flags_of}
    run([find_compiler() + FLAGS + flags + list(extra) + ["-c", os.path.join(HERE, folder, source), "-o", objects[source]]
         for source, flags in flags_of.items()])
    return list(objects.values())


class BuildLibraries(build_ext):
    def get_ext_filename(self, name):
        # Not a Python module: no interpreter's tag, and the same name on every system.
        return os.path.join(*name.split(".")) + ".so"

    def build_extension(self, extension):
        output = self.get_ext_fullpath(extension.name)
        os.makedirs(os.path.dirname(output), exist_ok=True)
        objects = [file for folder, flags_of in SOURCES.items()
                   for file in compile_sources(os.path.join(self.build_temp, extension.name), folder, flags_of)]
        run([find_compiler() + LINK_FLAGS + objects + ["-o", output]])


class AnyPythonWheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    setup(
        packages=PACKAGES,
        package_dir=FOLDERS,
        package_data=PACKAGE_DATA,
        include_package_data=False,  # which would add the C++ sources
        ext_modules=[Extension(LIBRARY,
                               sources=[os.path.join(folder, source) for folder in SOURCES for source in SOURCES[folder]],
                               depends=[os.path.join(folder, file) for folder in SOURCES
                                        for file in sorted(os.listdir(os.path.join(HERE, folder)))
                                        if file.endswith((".cc", ".h"))] + [os.path.join("kernels", "codes.h")])],
        cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
        **{LICENSE_FIELD: "Apache-2.0"},
    )
