"""Builds the native operator's library against the MXNet that is installed, once, and keeps it in the user's cache.

A cached file is named after all that it was made from, so that it is never taken for another, and ends with a checksum
of itself (the loader does not look behind an ELF file's own bytes), so that a damaged one is built anew: loading it
could end the process.
"""
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile

# The arithmetic is elsewhere: more than -O1 makes the wait longer and no call shorter.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-pthread")

_HERE = os.path.dirname(os.path.abspath(__file__))
_SOURCE = os.path.join(_HERE, "operator.cc")
# Where rnn_cpu.h is: installed, in a folder of the package; in a source folder, with the CPU kernels.
_KERNELS = (os.path.join(_HERE, "kernels"), os.path.join(_HERE, *[os.pardir] * 3, "kernels", "cpu"))


def library(mxnet_folder, mxnet_version):
    """The path of a library built for this MXNet, from the cache or new.

    Raises
    ------
    RuntimeError
        In a sentence: MXNet has no lib_api.h, there is no compiler, it fails, or there is nowhere to keep the library.
    """
    includes = [os.path.join(mxnet_folder, "include"), os.path.join(mxnet_folder, "src"), _kernels()]
    sources = [_SOURCE, os.path.join(includes[0], "mxnet", "lib_api.h"), os.path.join(includes[1], "lib_api.cc"),
               os.path.join(includes[2], "rnn_cpu.h")]
    for source in sources:
        if not os.path.exists(source):
            raise RuntimeError(f"the native operator is compiled on first use and needs {source}, which is not there")
    compiler = find_compiler()
    version = _run([*compiler, "--version"]).stdout.partition("\n")[0]
    digest = hashlib.sha256(repr((FLAGS, compiler, version, platform.machine())).encode())
    for name in sources:
        with open(name, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    label = re.sub(r"[^\w.+]+", "-", f"{os.path.basename(compiler[0])}-{version.split()[-1] if version else 'unknown'}")
    path = os.path.join(cache(), f"native-mxnet-{mxnet_version}-{label}-{digest.hexdigest()[:16]}.so")
    if not _is_whole(path):
        _build([*compiler, *FLAGS, *(f"-I{folder}" for folder in includes), _SOURCE, "-ldl"], path)
    return path


def cache():
    """The folder that libraries are kept in."""
    # As the XDG specification has it, a relative path there does not count.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".cache"), "rnn_ops")


def find_compiler():
    """The C++ compiler's command as a list: $CXX, else c++, g++ or clang++, as setup.py chooses."""
    for command in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    raise RuntimeError("the native operator is compiled on first use and no C++ compiler was found (looked for $CXX, "
                       "c++, g++, clang++): 'apt-get install g++' on Debian or Ubuntu, 'dnf install gcc-c++' on Fedora")


def _kernels():
    return next((folder for folder in _KERNELS if os.path.isdir(folder)), _KERNELS[0])


def _is_whole(path):
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build(command, path):
    """Compile to a file that appears whole or not at all, whoever else does the same at the same time."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise RuntimeError(f"the native operator cannot be kept in {folder} ({error.strerror}): let XDG_CACHE_HOME "
                           "name a folder that can be written") from error
    with work:
        new = os.path.join(work.name, "new.so")
        done = _run([*command, "-o", new])
        if done.returncode:
            raise RuntimeError("the native operator needs a compiler for C++17 (GCC 9 or newer, or Clang 10 or newer); "
                               f"'{command[0]}' could not build it:\n{done.stderr.strip()}")
        with open(new, "rb+") as file:
            checksum = hashlib.sha256(file.read()).digest()
            file.write(checksum)
        os.replace(new, path)


def _run(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          errors="replace", check=False)
