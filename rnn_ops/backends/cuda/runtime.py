"""The `Runtime` on a real GPU: CuPy loads kernels, allocates memory and launches.

Four things are done one level below CuPy: compiler.py compiles the kernels, launches may be cooperative (CuPy's own way links a
library that only a CUDA toolkit has) or have clusters of 16 blocks, and matrix products can be captured into a CUDA graph
(blas.py).
"""
import contextlib
import ctypes
import functools
import threading

import cupy
import numpy as np
from cupy_backends.cuda.api import driver as cuda_driver
from cupy_backends.cuda.api import runtime as cuda_runtime

from rnn_ops.backends.cuda import compiler, variants
from rnn_ops.backends.cuda.blas import Blas

_PROBE = 'extern "C" __global__ void probe() {}'  # launched with all shared memory, so that a block takes a whole multiprocessor
# CUfunction_attribute
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 14
_CLUSTER_DIMENSION = 4  # CUlaunchAttributeID
_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType


class _LaunchAttribute(ctypes.Structure):  # CUlaunchAttribute, with one member of its union
    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_char * 4), ("cluster", ctypes.c_uint * 3),
                ("rest", ctypes.c_char * 52)]


class _LaunchConfig(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_LaunchAttribute)), ("count", ctypes.c_uint)]


_Fill = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p)
_Copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
_DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}  # the oldest driver for a CUDA version (CUDA Toolkit Release Notes)


def count():
    """The number of GPUs. A RuntimeError says why there are none."""
    try:
        return cuda_runtime.getDeviceCount()
    except cuda_runtime.CUDARuntimeError as error:
        cuda = cuda_driver.get_build_version() // 1000  # CuPy's; the CUDA runtime does not say without a driver
        newer = f" and that the driver is {_DRIVERS[cuda]} or newer for CUDA {cuda}" if cuda in _DRIVERS else ""
        raise RuntimeError(
            f"the NVIDIA driver finds no GPU that this CuPy can use ({error}): see that nvidia-smi lists one, that "
            f"CUDA_VISIBLE_DEVICES does not hide it{newer}") from None


def versions():
    """Versions as text: CuPy, CUDA as CuPy was built for, the driver's newest CUDA."""
    def number(version):
        return f"{version // 1000}.{version % 1000 // 10}"

    built, driven = number(cuda_runtime.runtimeGetVersion()), number(cuda_runtime.driverGetVersion())
    return f"CuPy {cupy.__version__} for CUDA {built}, driver for CUDA {driven}"


def array(name, value):
    """An array in the memory of a GPU as a cupy.ndarray, without a copy."""
    if isinstance(value, cupy.ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return cupy.asarray(value)
    if hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] in (_CUDA, _CUDA_MANAGED):
        return cupy.from_dlpack(value)
    raise TypeError(f"{name}: got {type(value).__name__}, needs an array in the memory of a GPU: a cupy.ndarray or an "
                    "array with __cuda_array_interface__ or __dlpack__")


def index(array):
    """The number of the GPU that an array is on."""
    return array.device.id


def nvrtc(index):
    """The `compiler.Nvrtc` that compiles for a GPU. A RuntimeError, which names the GPU, says what to install."""
    gpu = device(index)
    try:
        return compiler.find(gpu.compute_capability, cuda_runtime.driverGetVersion())
    except RuntimeError as error:
        raise RuntimeError(f"GPU {index} ({gpu.name}): {error}") from None


@functools.lru_cache(maxsize=None)
def device(index):
    """The `variants.Device` of a GPU."""
    gpu = cupy.cuda.Device(index)
    attributes = gpu.attributes
    found = variants.Device(
        cuda_runtime.getDeviceProperties(index)["name"].decode(), int(gpu.compute_capability),
        attributes["MaxSharedMemoryPerBlockOptin"], attributes["MultiProcessorCount"])
    return found._replace(clusters=_clusters(index, found))


def _clusters(index, device):
    """`Device.clusters`, measured, or estimated if they cannot be measured. An estimate costs speed at most."""
    if device.compute_capability < 90:
        return ()
    try:
        path = compiler.cubin_of_text(_PROBE, (), device.compute_capability, cuda_runtime.driverGetVersion())
        with _current(index):
            probe = cupy.RawModule(path=path).get_function("probe").kernel
            cuda_driver.funcSetAttribute(probe.ptr, _MAX_DYNAMIC_SHARED, device.shared_memory)
            cuda_driver.funcSetAttribute(probe.ptr, _NON_PORTABLE_CLUSTER, 1)
            return tuple(
                _active_clusters(probe.ptr, size, 32, device.shared_memory) for size in variants.CLUSTER_SIZES)
    except RuntimeError:  # no compiler, or a driver that refuses
        return variants.estimated_clusters(device.compute_capability, device.multiprocessors)


def _active_clusters(function, size, threads, shared):
    """How many clusters of ``size`` blocks run at once."""
    attribute = _LaunchAttribute(id=_CLUSTER_DIMENSION, cluster=(size, 1, 1))
    config = _LaunchConfig((size, 1, 1), (threads, 1, 1), shared, None, ctypes.pointer(attribute), 1)
    count = ctypes.c_int()
    status = ctypes.CDLL("libcuda.so.1").cuOccupancyMaxActiveClusters(
        ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    _check(status, "cuOccupancyMaxActiveClusters")
    return count.value


def _check(status, function):
    if status:
        raise RuntimeError(f"{function} failed with status {status}")


@contextlib.contextmanager
def _current(index):
    """Makes a GPU current in this thread. At the end the one before is current again.

    MXNet and CuPy have a CUDA runtime each, and neither of them knows what the other one has made current. The driver knows.
    """
    before = cuda_driver.ctxGetCurrent()
    try:
        with cupy.cuda.Device(index):
            yield
    finally:
        if before:
            cuda_driver.ctxSetCurrent(before)


class Runtime:
    """One GPU, and on it the stream that CuPy has current. Methods need the GPU to be current: ``with runtime.current():``."""

    def __init__(self, index):
        self.index = index
        self.device = device(index)
        nvrtc(index)  # fails now instead of at the first launch
        with _current(index):
            cuda_runtime.memGetInfo()  # makes the context, if this is the first use of the GPU
            self._context = cuda_driver.ctxGetCurrent()
        functions = self.functions()
        self.blas = Blas(functions)
        self._fill = _Fill(functions["fill"])
        self._copy = _Copy(functions["copy"])
        self._functions = {}  # sources.Kernel → function and the dynamic shared memory it may have
        self._one_at_a_time = threading.Lock()  # for `_functions`: several threads may compute on one GPU

    @contextlib.contextmanager
    def current(self):
        """Makes the GPU current in this thread, as `_current` does."""
        with _current(self.index):
            # The runtime may leave this to its next call. Our launches go to the driver, which needs it now.
            cuda_driver.ctxSetCurrent(self._context)
            yield self

    @contextlib.contextmanager
    def default_stream(self):
        """As `current`, and with the legacy default stream as the current one."""
        with self.current(), cupy.cuda.Stream.null:
            yield self

    def launch(self, launch, arguments):
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.start(self.function(launch), launch, addresses, cupy.cuda.get_current_stream().ptr)

    def start(self, function, launch, arguments, stream):
        """As `launch`, of a CUfunction in a stream. arguments: a ctypes array of the arguments' addresses."""
        start = cuda_driver.launchCooperativeKernel if launch.cooperative else cuda_driver.launchKernel
        tail = () if launch.cooperative else (0,)  # "extra", another way to give arguments
        start(function, *launch.grid, launch.block, 1, 1, launch.shared, stream, ctypes.addressof(arguments), *tail)

    def function(self, launch):
        """The CUfunction of a launch, a number that stays valid. It may use as much shared memory as the launch needs."""
        with self._one_at_a_time:
            function, shared = self._functions.get(launch.kernel) or (self.compile(launch.kernel), 48 * 1024)
            if launch.shared > shared:
                shared = launch.shared
                cuda_driver.funcSetAttribute(function.ptr, _MAX_DYNAMIC_SHARED, shared)
            self._functions[launch.kernel] = function, shared
            return function.ptr

    def compile(self, kernel):
        """The function of a `sources.Kernel`, compiled or taken from the cache on disk."""
        path = compiler.cubin(kernel, self.device.compute_capability, cuda_runtime.driverGetVersion())
        function = cupy.RawModule(path=path).get_function(kernel.name).kernel
        if kernel.family == "cluster":  # 16 blocks are allowed only on request
            cuda_driver.funcSetAttribute(function.ptr, _NON_PORTABLE_CLUSTER, 1)
        return function

    def occupancy(self, launch):
        """How many blocks of a launch fit on a multiprocessor, and how many of its clusters run at once, None without."""
        function = self.function(launch)
        blocks = cuda_driver.occupancyMaxActiveBlocksPerMultiprocessor(function, launch.block, launch.shared)
        if launch.cluster == 1:
            return blocks, None
        return blocks, _active_clusters(function, launch.cluster, launch.block, launch.shared)

    def multiply(self, a, b, out, transpose_a=False, transpose_b=False, accumulate=False):
        """By cuBLAS, in full precision, never TF32."""
        def matrix(array):
            return array.data.ptr, *array.shape

        self.blas.multiply(cupy.cuda.get_current_stream().ptr, out.dtype, matrix(a), matrix(b), matrix(out),
                            transpose_a, transpose_b, accumulate)

    def empty(self, shape, dtype):
        try:
            return cupy.empty(shape, dtype)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(
                f"GPU {self.index} ({self.device.name}) has no memory for an array of {shape} {np.dtype(dtype)} that the "
                "recurrence needs besides its arguments: take a smaller batch or fewer steps, or free memory "
                f"(cupy.get_default_memory_pool().free_all_blocks()). {error}") from None

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array.data.memset_async(0, array.nbytes)
        return array

    def address(self, array):
        return array.data.ptr

    # For the operators.

    def view(self, address, shape, dtype):
        """An array over memory of this GPU that someone else owns."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = cupy.cuda.UnownedMemory(address, size, None, self.index)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    # For programs, which know addresses and streams only.

    @contextlib.contextmanager
    def driver_current(self):
        """As `current`, for the driver and cuBLAS alone: CuPy does not know of it."""
        before = cuda_driver.ctxGetCurrent()
        if before != self._context:
            cuda_driver.ctxSetCurrent(self._context)
        try:
            yield
        finally:
            if before != self._context:
                cuda_driver.ctxSetCurrent(before)  # 0 is a thread that has none

    def fill(self, address, value, size, stream):
        _check(self._fill(address, value, size, stream), "cuMemsetD8Async")

    def copy(self, to, source, size, stream):
        _check(self._copy(to, source, size, stream), "cuMemcpyDtoDAsync")

    def check_not_capturing(self, stream):
        """Raise a RuntimeError if a stream is captured into a CUDA graph: a first call needs one that is not."""
        if stream and cuda_runtime.streamIsCapturing(stream):  # the default stream cannot be captured
            raise RuntimeError("stream: got one that is captured into a CUDA graph, needs a call with the same shapes and dtypes "
                               "before the capture, forward and backward: a first call loads kernels and cuBLAS")

    def to_device(self, array):
        """A copy of a NumPy array; the array may be changed afterwards."""
        copy = self.empty(array.shape, array.dtype)
        copy.set(array)
        return copy

    def to_host(self, array, out=None):
        """A copy as a NumPy array, in `out` if it is given. Waits until the array is computed."""
        return array.get(out=out)

    def functions(self):
        """{what it does: address} of the functions of the driver and of cuBLAS that the native operator calls."""
        driver, version = ctypes.CDLL("libcuda.so.1"), cuda_runtime.runtimeGetVersion() // 1000
        try:
            # CuPy finds and loads cuBLAS. CuPy 14 looks into pip's wheels only on `from` ...
            from cupy_backends.cuda.libs import cublas  # noqa: F401
            blas = ctypes.CDLL(f"libcublas.so.{version}")  # ... and this is that one
        except (ImportError, OSError) as error:
            package = "nvidia-cublas" + f"-cu{version}" * (version < 13)
            reason = " ".join(str(error).split())
            raise RuntimeError(f"cuBLAS cannot be loaded ({reason}): pip install {package}") from error
        found = {
            "launch": driver.cuLaunchKernel, "launch_cooperative": driver.cuLaunchCooperativeKernel,
            "fill": driver.cuMemsetD8Async, "copy": driver.cuMemcpyDtoDAsync_v2,
            "create_handle": blas.cublasCreate_v2, "set_stream": blas.cublasSetStream_v2,
            "multiply_float": blas.cublasSgemm_v2, "multiply_double": blas.cublasDgemm_v2}
        return {name: ctypes.cast(function, ctypes.c_void_p).value for name, function in found.items()}

    def synchronize(self):
        """Wait for everything launched in this thread's stream."""
        cupy.cuda.get_current_stream().synchronize()
