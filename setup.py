"""Builds the CPU kernels (kernels/cpu) into one shared library with the system's C++ compiler.

The rest of the package's description is in pyproject.toml. The library is loaded with ctypes and knows nothing of
Python, so one build serves every Python version. Each SIMD level is a source file of its own with its own flags; the
level is chosen when the kernels run.
"""
import os
import platform
import shlex
import shutil
import subprocess

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = os.path.join(HERE, "kernels", "cpu")
LIBRARY = "_cpu_kernels"
X86 = platform.machine().lower() in ("x86_64", "amd64")

# -ffp-contract=fast lets a·b + c become one fused multiply-add, which is faster and more exact. Nothing looser: sums
# keep their order, NaN and infinity their meaning. -Wno-psabi: vectors wider than a level's registers are never
# passed between files.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi",
         "-pthread"] + (["-DRNN_X86"] if X86 else [])
FLAGS_OF = {"threads.cc": [], "rnn_cpu.cc": [], "isa_baseline.cc": []}
if X86:
    FLAGS_OF["isa_avx2.cc"] = ["-mavx2", "-mfma"]
    FLAGS_OF["isa_avx512.cc"] = ["-mavx512f", "-mfma"]


def find_compiler():
    """The C++ compiler's command as a list: $CXX, else c++, g++ or clang++; SystemExit where there is none."""
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
        raise SystemExit("rnn_ops: %s could not build the CPU kernels; what it said stands above. "
                         "They need C++17: GCC 9 or newer, or Clang 10 or newer." % commands[0][0])


def compile_kernels(work, extra=(), flags_of=FLAGS_OF):
    """Compiles the sources to object files in the folder `work` and returns their names. `extra` flags, such as those
    of a sanitizer, go to every source."""
    os.makedirs(work, exist_ok=True)
    objects = {source: os.path.join(work, source + ".o") for source in flags_of}
    run([find_compiler() + FLAGS + flags + list(extra) + ["-c", os.path.join(SOURCES, source), "-o", objects[source]]
         for source, flags in flags_of.items()])
    return list(objects.values())


class BuildKernels(build_ext):
    def get_ext_filename(self, name):
        # Not a Python module: no interpreter's tag, and the same name on every system.
        return os.path.join(*name.split(".")) + ".so"

    def build_extension(self, extension):
        output = self.get_ext_fullpath(extension.name)
        os.makedirs(os.path.dirname(output), exist_ok=True)
        run([find_compiler() + ["-shared", "-pthread"] + compile_kernels(self.build_temp) + ["-o", output]])


class AnyPythonWheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("rnn_ops.backends." + LIBRARY,
                               sources=[os.path.join("kernels", "cpu", name) for name in FLAGS_OF],
                               depends=[os.path.join("kernels", "cpu", name) for name in sorted(os.listdir(SOURCES))])],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
    )
