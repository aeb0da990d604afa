"""A `Runtime` (see rnn_ops/backends/cuda/launcher.py): its device is the emulator in emulator.h and its arrays are NumPy's."""
import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cuda_host import driver
from rnn_ops.backends.cuda import sources

_HERE = os.path.dirname(os.path.abspath(__file__))
_COMPILER = os.environ.get("CXX", "g++").split()
# -g1: functions and lines, which is what `_line` reads. -fno-gnu-unique: kernels of one name in many libraries share nothing.
_FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-gnu-unique"]
_EMULATOR = ["-std=c++17", "-O2", "-g", "-fPIC", "-shared"]
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

_FOLDER = "RNN_OPS_CUDA_HOST"  # the variable that names it
MOST_THREADS = 1024  # a block
_one_at_a_time = threading.Lock()
_of_thread = threading.local()  # its `stack`: the emulators that are current, the innermost last


class KernelError(Exception):
    """A kernel broke a rule; where."""


class CompileError(Exception):
    """The compiler's own words."""


class _Launch(ctypes.Structure):  # emulator_launch
    _fields_ = [("grid", ctypes.c_int32 * 3), ("block", ctypes.c_int32), ("cluster", ctypes.c_int32),
                ("cooperative", ctypes.c_int32), ("shared", ctypes.c_int64), ("seed", ctypes.c_uint32),
                ("regions", ctypes.c_int32), ("begins", ctypes.POINTER(ctypes.c_uint64)),
                ("sizes", ctypes.POINTER(ctypes.c_uint64))]


class _Error(ctypes.Structure):  # emulator_error
    _fields_ = [("message", ctypes.c_char * 1000), ("access", ctypes.c_uint64), ("other_access", ctypes.c_uint64)]


@functools.lru_cache(maxsize=None)
def _folder():
    """The folder of compiled files, for this process and the processes that it starts."""
    if _FOLDER not in os.environ:
        os.environ[_FOLDER] = tempfile.mkdtemp(prefix="rnn_ops_cuda_host_")
        atexit.register(shutil.rmtree, os.environ[_FOLDER], ignore_errors=True)
    return os.environ[_FOLDER]


def _compile(command, output):
    """Run a compiler → the path of its output, which has a temporary name until it is complete."""
    path = f"{output}.{os.getpid()}.{threading.get_ident()}"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer for the compiler
    done = subprocess.run(command + ["-o", path], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8", errors="replace")
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}")
    os.replace(path, output)
    return output


@functools.lru_cache(maxsize=None)
def _emulator(sanitize):
    path = os.path.join(_folder(), f"libemulator{'_sanitized' * sanitize}.so")
    if not os.path.exists(path):
        _compile(_COMPILER + _EMULATOR + _SANITIZERS * sanitize + [os.path.join(_HERE, "emulator.cc"), "-ldl"], path)
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    library.emulator_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_Launch), ctypes.POINTER(_Error)]
    return library


def _twin():
    with open(os.path.join(_HERE, "primitives.cuh"), encoding="utf-8") as file:
        return file.read()


@functools.lru_cache(maxsize=None)
def _library(text, kernel, sanitize):
    """The path of a kernel's library: its compiled text and a function that calls it."""
    name = hashlib.sha256(f"{text}{kernel}{sanitize}".encode()).hexdigest()[:24]
    output = os.path.join(_folder(), name + ".so")
    if os.path.exists(output):
        return output
    source = os.path.join(_folder(), f"{name}.{os.getpid()}.{threading.get_ident()}.cc")
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(f"#define {name} {value}\n" for name, value in (("NAME", kernel.name),) + kernel.macros)
        file.write(f'#include "device.h"\n{text}\nusing Kernel = Entry<&{kernel.name}>;\n'
                   'extern "C" void run(void** arguments) { Kernel::run(arguments); }\n'
                   'extern "C" const int* sizes() { return Kernel::SIZES; }\n'
                   'extern "C" int count() { return Kernel::COUNT; }\n')
    # -fsanitize=thread for compiling only and not for linking, since the emulator defines its functions.
    check = _SANITIZERS if sanitize else ["-fsanitize=thread"]
    compiled = _compile(_COMPILER + _FLAGS + check + ["-I", _HERE, "-c", source], source[:-3] + ".o")
    return _compile(_COMPILER + ["-shared"] + _SANITIZERS * sanitize + [compiled], output)


def text_of(family):
    """The text of a family with the twin of primitives.cuh in it."""
    return sources.text(family, {"primitives.cuh": _twin()})


def compile_kernels(kernels, sanitize=False):
    """Compile kernels side by side, for Emulators to find when they need them."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda kernel: _library(text_of(kernel.family), kernel, sanitize), dict.fromkeys(kernels)))


class Emulator:
    """An emulator that claims to be ``device``.

    Parameters
    ----------
    device : variants.Device
    seed : int
        Draws the order of the first launch's threads and deliveries. Each later launch has the next seed. An error names the
        seed of its launch: the first launch of an Emulator with that seed fails in the same way.
    edit : callable
        A function: family and text of its kernels → the text to compile instead.
    sanitize : bool
        Compile with AddressSanitizer and UBSan instead of the emulator's own checks. Python must run with their library.
    index : int or None
        The GPU's number if there may be several. Then it is a KernelError if work comes while another one is current, or no one,
        and if it uses another one's memory.
    """

    def __init__(self, device, seed=0, edit=None, sanitize=False, index=None):
        self.device = device
        self.index = index
        self.launches = []  # each Launch, for tests to look at
        self._seed = seed
        self._edit = edit
        self._sanitize = sanitize
        self._arrays = {}  # (address, bytes) → all owners of the memory: one thread's view may go while another one's is in use
        self._arrays_guard = threading.Lock()

    @contextlib.contextmanager
    def current(self):
        stack = _of_thread.__dict__.setdefault("stack", [])
        stack.append(self)
        try:
            yield self
        finally:
            stack.pop()

    default_stream = current

    def _check_current(self):
        stack = getattr(_of_thread, "stack", [])
        if self.index is not None and (not stack or stack[-1] is not self):
            raise KernelError(f"work for GPU {self.index} while GPU {stack[-1].index if stack else 'none'} is current")

    def _own(self, array):
        """The array, whose memory from now on is this GPU's."""
        array = array.view(_Array)
        array.home = self
        return array

    def _check_own(self, *arrays):
        for array in arrays:
            home = getattr(array, "home", self)
            if self.index is not None and home is not self:
                raise KernelError(f"memory of GPU {home.index} on GPU {self.index}")

    def launch(self, launch, arguments):
        self._check_current()
        with _one_at_a_time:  # MXNet calls operators from several threads
            self._launch(launch, arguments)

    def _launch(self, launch, arguments):
        device = self.device
        blocks = int(np.prod(launch.grid))
        if not (launch.block <= MOST_THREADS and launch.block % 32 == 0 and launch.shared <= device.shared_memory
                and min(launch.grid) >= 1 and launch.grid[0] < 2 ** 31 and max(launch.grid[1:]) < 65536):
            raise KernelError(f"{device.name} cannot launch {launch}")
        if launch.cooperative and blocks > device.multiprocessors:
            raise KernelError(f"{blocks} blocks at once on {device.multiprocessors} multiprocessors: {launch}")
        if launch.cluster > 1 and (device.compute_capability < 90 or launch.cluster > 16 or launch.grid[0] % launch.cluster):
            raise KernelError(f"no such cluster on {device.name}: {launch}")
        self.launches.append(launch)
        text = text_of(launch.kernel.family)
        if self._edit:
            text = self._edit(launch.kernel.family, text)
        emulator = _emulator(self._sanitize)
        path = _library(text, launch.kernel, self._sanitize)
        kernel = ctypes.CDLL(path)
        kernel.sizes.restype = ctypes.POINTER(ctypes.c_int)
        sizes, needed = [ctypes.sizeof(value) for value in arguments], kernel.sizes()[:kernel.count()]
        if sizes != needed:
            raise KernelError(f"{launch.kernel}: arguments of {sizes} bytes, needs {needed}")
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        with self._arrays_guard:
            alive = {region: [owner for owner in owners if owner() is not None] for region, owners in self._arrays.items()}
            self._arrays = {region: owners for region, owners in alive.items() if owners}
            regions = list(self._arrays)
        begins = (ctypes.c_uint64 * len(regions))(*(address for address, _ in regions))
        lengths = (ctypes.c_uint64 * len(regions))(*(size for _, size in regions))
        seed = self._seed
        self._seed += 1
        how = _Launch(launch.grid, launch.block, launch.cluster, launch.cooperative, launch.shared, seed,
                      len(regions), begins, lengths)
        error = _Error()
        if emulator.emulator_run(kernel.run, addresses, how, error):
            raise KernelError(f"{launch.kernel}: {error.message.decode()}" + "".join(
                f"\n  {what} {_line(path, code)}" for what, code in
                (("at", error.access), ("the other at", error.other_access)) if code)
                + f"\n  again: the first launch of Emulator(..., seed={seed})")

    def function(self, launch):
        """A number for driver.py to launch the kernel by."""
        self._check_current()
        return driver.number_of(self, launch)

    def functions(self):
        return driver.functions()

    def argument_sizes(self, kernel):
        """In bytes."""
        _emulator(self._sanitize)  # whose functions the kernel's library needs
        library = ctypes.CDLL(_library(text_of(kernel.family), kernel, self._sanitize))
        library.sizes.restype = ctypes.POINTER(ctypes.c_int)
        return library.sizes()[:library.count()]

    def multiply(self, a, b, out, transpose_a=False, transpose_b=False, accumulate=False):
        self._check_current()
        self._check_own(a, b, out)
        product = driver.product(a.T if transpose_a else a, b.T if transpose_b else b)
        out[...] = out + product if accumulate else product

    def empty(self, shape, dtype):
        self._check_current()
        return self._own(np.full(shape, np.nan, dtype))  # NaN, so that reading before writing shows

    def zeros(self, shape, dtype):
        self._check_current()
        return self._own(np.zeros(shape, dtype))

    def address(self, array):
        """A launch may use the array from now on, for as long as its memory is there."""
        assert array.flags.c_contiguous
        self._check_own(array)
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        with self._arrays_guard:
            self._arrays.setdefault((array.ctypes.data, array.nbytes), []).append(weakref.ref(owner))
        return array.ctypes.data

    def view(self, address, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._own(np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape))

    def to_device(self, array):
        self._check_current()
        return self._own(np.array(array))

    def to_host(self, array, out=None):
        self._check_current()
        self._check_own(array)
        out = np.empty(array.shape, array.dtype) if out is None else out
        out[...] = array
        return out

    def synchronize(self):
        self._check_current()


class _Array(np.ndarray):
    """An array in the memory of an `Emulator`, its ``home``; so are its parts."""

    def __array_finalize__(self, of):
        if hasattr(of, "home"):
            self.home = of.home


def _line(path, code):
    """file:line of an address of code; that of the call before it, which is where the access was."""
    found = subprocess.run(["addr2line", "-i", "-e", path, hex(code - 1)], stdout=subprocess.PIPE, text=True).stdout
    lines = [os.path.basename(line).split(" ")[0] for line in found.splitlines()]  # the innermost inlined function first
    return next((line for line in lines if not line.startswith("primitives.cuh:")), None) or hex(code)
