"""CUDA C++ to machine code by NVRTC, without a GPU and without CuPy; the results are kept on disk.

CuPy compiles too, but with the NVRTC of its own CUDA version, one kernel at a time, and only if there is a driver. This module
chooses an NVRTC that fits the architecture and the driver. It can compile kernels in processes side by side, and without a GPU,
for other machines.

A cubin's file name is a hash of everything that it depends on. The folder is $RNN_OPS_CACHE, else $XDG_CACHE_HOME/rnn_ops, else
~/.cache/rnn_ops.
"""
import atexit
import concurrent.futures
import contextlib
import ctypes
import functools
import glob
import hashlib
import multiprocessing
import os
import re
import shutil
import struct
import tempfile
import threading
from typing import NamedTuple

from rnn_ops.backends.cuda import libraries, sources

_SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2")  # the last is that of all versions 11.2 to 11.8
_VERBOSE = "--ptxas-options=-v"  # for `resources`
_FTZ = "-ftz=true"  # float32 numbers below 1.2e-38 count as zero

_compiling = threading.Lock()  # several GPUs of one kind want the same kernel at the same time
_elsewhere = {}  # path → path of the same cubin, if its folder cannot be written


class CompileError(Exception):
    """A kernel does not compile; the message is the compiler's."""


class Compiled(NamedTuple):
    cubin: bytes
    log: str


class Resources(NamedTuple):
    """One kernel's resources as ptxas reports them: registers of a thread, and bytes."""
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


class Nvrtc:
    """One version of NVRTC, loaded beside others. ``version`` is a tuple such as (13, 0)."""

    def __init__(self, path):
        self.path = path
        self._library = ctypes.CDLL(path)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = major.value, minor.value
        with contextlib.suppress(OSError):  # NVRTC opens this later by name, and that of 13's wheel not in its own folder
            ctypes.CDLL(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.{}.{}".format(*self.version)))
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        architectures = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(architectures))
        self.architectures = tuple(architectures)

    def __str__(self):
        return f"NVRTC {self.version[0]}.{self.version[1]}"

    def compile(self, text, options, architecture):
        """Compile a text for a compute capability such as 90 → `Compiled`. CompileError: it does not compile."""
        library, program = self._library, ctypes.c_void_p()
        words = [f"--gpu-architecture=sm_{architecture}", _VERBOSE, *options]
        with _locale_kept():
            self._check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None))
            try:
                status = library.nvrtcCompileProgram(
                    program, len(words), (ctypes.c_char_p * len(words))(*[word.encode() for word in words]))
                log = self._get("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
                if status:
                    raise CompileError(log or f"{self} failed with status {status}")
                return Compiled(self._get("CUBIN", program), log)
            finally:
                library.nvrtcDestroyProgram(ctypes.byref(program))

    def _get(self, what, program):
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        found = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, found))
        return found.raw

    def _check(self, status):
        if status:
            raise CompileError(f"NVRTC ({self.path}) answered with status {status}")


@functools.lru_cache(maxsize=None)
def find(architecture, driver=None):
    """The oldest NVRTC here that compiles for an architecture.

    Parameters
    ----------
    architecture : int
        Compute capability, 90 for 9.0.
    driver : int or None
        The newest CUDA that the driver knows, as cudaDriverGetVersion gives it (12040 for 12.4). The driver cannot load machine
        code of a newer major version. None if no driver will load it.

    Raises
    ------
    RuntimeError
        No compiler is installed. The message says which one to install.
    """
    oldest, before = _versions(architecture)
    held_back = driver is not None and (driver // 1000 + 1, 0) < before  # by the driver
    if held_back:
        before = driver // 1000 + 1, 0
    here = found()
    in_range = [nvrtc for nvrtc in here if oldest <= nvrtc.version < before]
    fitting = [nvrtc for nvrtc in in_range if architecture in nvrtc.architectures]
    if fitting:
        return fitting[0]
    if in_range:  # an architecture that is newer than those versions
        oldest = in_range[-1].version[0], in_range[-1].version[1] + 1
    known = f"for CUDA {driver // 1000}.{driver % 1000 // 10}" if held_back else ""
    got = " and ".join(f"{nvrtc.version[0]}.{nvrtc.version[1]}" for nvrtc in here) or "none"
    needs = f"compute capability {architecture / 10}: got NVRTC {got}, needs {oldest[0]}.{oldest[1]} or newer"
    if oldest >= before:
        raise RuntimeError(f"{needs} and a driver for CUDA {oldest[0]} or newer, got one {known}: update the driver")
    if before[0] < 100:
        needs += f" and older than {before[0]}.0" + (f", since the driver is {known}" if held_back else "")
    package = f"nvidia-cuda-nvrtc-cu{oldest[0]}" if before <= (13, 0) else "nvidia-cuda-nvrtc"
    raise RuntimeError(f"{needs}: pip install {package}")


def _versions(architecture):
    """For an architecture, the first NVRTC version that fits and the first one that is too new."""
    if architecture > 90:
        return (12, 8), (100, 0)
    if architecture == 90:
        return (12, 1), (100, 0)  # 11.8 knows the architecture, but not st.async, which is PTX ISA 8.1
    return (11, 2), (100, 0) if architecture >= 75 else (13, 0)


@functools.lru_cache(maxsize=None)
def found():
    """Every NVRTC here, the oldest first: in pip's wheels, on the loader's path, in a CUDA toolkit."""
    toolkit = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    paths = [path for folder in libraries.nvidia_folders() for soname in _SONAMES
             for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "lib", soname)))]
    paths += _SONAMES
    paths += [os.path.join(toolkit, "lib64", soname) for soname in _SONAMES]
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, AttributeError):  # not there, or not an NVRTC
            nvrtc = Nvrtc(path)
            found.setdefault(nvrtc.version, nvrtc)
    return [found[version] for version in sorted(found)]


def options(kernel):
    """All options of a `sources.Kernel` except the architecture."""
    return (*kernel.options, _FTZ)


def compiled(kernel, architecture, driver=None):
    """A `sources.Kernel` as `Compiled`. It is always compiled, never taken from the disk."""
    return find(architecture, driver).compile(sources.text(kernel.family), options(kernel), architecture)


def cubin(kernel, architecture, driver=None):
    """The path of a file with a `sources.Kernel`'s machine code; it is compiled if it is not on disk."""
    return cubin_of_text(sources.text(kernel.family), options(kernel), architecture, driver)


def cubin_of_text(text, options, architecture, driver=None):
    """As `cubin`, of any text with any options."""
    nvrtc = find(architecture, driver)
    path = _path(text, options, architecture, nvrtc)
    if _is_whole(path):
        return path
    with _compiling:
        for kept in path, _elsewhere.get(path, path):  # another thread may have compiled it
            if _is_whole(kept):
                return kept
        return _store(nvrtc.compile(text, options, architecture).cubin, path)


def compile_all(kernels, architecture, driver=None, progress=None):
    """`cubin` of many kernels, compiled in processes side by side: NVRTC compiles one program at a time in a process.

    ``progress(done, total)`` is called after each. Returns {kernel: path or CompileError}. The processes start as those of
    `multiprocessing` do: a script that calls this needs ``if __name__ == "__main__":``.
    """
    kernels = list(dict.fromkeys(kernels))
    nvrtc = find(architecture, driver)
    paths = {kernel: _path(sources.text(kernel.family), options(kernel), architecture, nvrtc) for kernel in kernels}
    results = {kernel: path for kernel, path in paths.items() if _is_whole(path)}
    missing = [kernel for kernel in kernels if kernel not in results]
    if progress:
        progress(len(results), len(kernels))
    if missing:
        processes = min(len(missing), len(os.sched_getaffinity(0)))
        with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(compiled, kernel, architecture, driver): kernel for kernel in missing}
            for job in concurrent.futures.as_completed(jobs):
                kernel = jobs[job]
                try:
                    results[kernel] = _store(job.result().cubin, paths[kernel])
                except CompileError as error:
                    results[kernel] = error
                except concurrent.futures.process.BrokenProcessPool as error:
                    results[kernel] = CompileError(f"{kernel}: the process that compiled it has ended: {error}")
                if progress:
                    progress(len(results), len(kernels))
    return {kernel: results[kernel] for kernel in kernels}


def folder():
    """Where cubins are kept."""
    return os.environ.get("RNN_OPS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "rnn_ops")


def resources(log, name):
    """The `Resources` of a kernel, by its name, from the log of a compilation."""
    section = re.search(rf"Compiling entry function '{re.escape(name)}'(.*?)(?=Compiling entry function|\Z)", log, re.S)
    text = section.group(1)
    stack, stores, loads = map(int, re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text).groups())
    registers = int(re.search(r"Used (\d+) registers", text).group(1))
    shared = re.search(r"(\d+) bytes smem", text)
    return Resources(registers, stack, stores, loads, int(shared.group(1)) if shared else 0)


def _path(text, options, architecture, nvrtc):
    parts = (text, *options, f"sm_{architecture}", *nvrtc.version)
    return os.path.join(folder(), hashlib.sha256(repr(parts).encode()).hexdigest()[:32] + ".cubin")


def _store(machine_code, path):
    """Write a file under a temporary name and rename it, so that no process reads an unfinished file → its path.

    If the folder cannot be written, the file goes to a folder that exists as long as this process.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return _write(machine_code, path)
    except OSError:
        _elsewhere[path] = _write(machine_code, os.path.join(_own_folder(), os.path.basename(path)))
        return _elsewhere[path]


def _write(machine_code, path):
    number, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    try:
        with os.fdopen(number, "wb") as file:
            file.write(machine_code)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


@functools.lru_cache(maxsize=None)
def _own_folder():
    found = tempfile.mkdtemp(prefix="rnn_ops_cubins_")
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _is_whole(path):
    """Whether a file exists and is a 64-bit ELF file up to the end of its headers. NVRTC writes the headers last."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    if content[:5] != b"\x7fELF\x02" or len(content) < 64:
        return False
    begins = struct.unpack_from("<QQ", content, 32)  # of the program headers, of the section headers
    sizes = struct.unpack_from("<HHHH", content, 54)  # of a program header, their count; of a section header, their count
    return sizes[3] > 0 and len(content) >= max(begins[0] + sizes[0] * sizes[1], begins[1] + sizes[2] * sizes[3])


@contextlib.contextmanager
def _locale_kept():
    """Restores the thread's locale after a call of NVRTC, which leaves it at "C". Python would then read and write files as
    ASCII. (Seen with NVRTC 11.8.)"""
    uselocale = ctypes.CDLL(None).uselocale
    uselocale.argtypes, uselocale.restype = [ctypes.c_void_p], ctypes.c_void_p
    before = uselocale(None)
    try:
        yield
    finally:
        uselocale(before)
