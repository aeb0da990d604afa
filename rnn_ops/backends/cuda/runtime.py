"""What the launcher runs on where there is a GPU: CuPy compiles, allocates, multiplies and launches.

Two things CuPy does not do are done one level below it, through the driver functions it wraps: a cooperative launch (CuPy's own
links a library that only a CUDA toolkit brings) and clusters of 16 blocks. CuPy compiles with -ftz=true: float32 numbers below
1.2e-38 count as zero.
"""
import contextlib
import ctypes
import functools

import cupy
import numpy as np
from cupy_backends.cuda.api import driver
from cupy_backends.cuda.libs import cublas

from rnn_ops.backends.cuda import sources, variants

OPTIONS = ("--std=c++17",)

# CUfunction_attribute
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 14
_NO_TRANSPOSE, _TRANSPOSE = 0, 1  # cublasOperation_t


@functools.lru_cache(maxsize=None)
def device(index):
    """The `variants.Device` of a GPU."""
    attributes = cupy.cuda.Device(index).attributes
    return variants.Device(
        cupy.cuda.runtime.getDeviceProperties(index)["name"].decode(),
        10 * attributes["ComputeCapabilityMajor"] + attributes["ComputeCapabilityMinor"],
        attributes["MaxSharedMemoryPerBlockOptin"], attributes["MultiProcessorCount"])


class Runtime:
    """One GPU, CuPy's current stream on it. Methods are called with the device current: ``with runtime.current():``."""

    def __init__(self, index):
        self.index = index
        self.device = device(index)
        self._functions = {}

    @contextlib.contextmanager
    def current(self):
        with cupy.cuda.Device(self.index):
            yield self

    def launch(self, launch, arguments):
        function = self._functions.get(launch)
        if function is None:
            function = self._functions[launch] = _function(launch)
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        start = driver.launchCooperativeKernel if launch.cooperative else driver.launchKernel
        tail = () if launch.cooperative else (0,)  # "extra", another way to give arguments
        start(function.ptr, *launch.grid, launch.block, 1, 1, launch.shared, cupy.cuda.get_current_stream().ptr,
              ctypes.addressof(addresses), *tail)

    def multiply(self, a, b, out, transpose_a=False, transpose_b=False, accumulate=False):
        """By cuBLAS, which takes column-major matrices: outᵀ = op(b)ᵀ·op(a)ᵀ. In full precision, never TF32."""
        rows, columns = out.shape
        inner = a.shape[0] if transpose_a else a.shape[1]
        scalar = ctypes.c_float if out.dtype == np.float32 else ctypes.c_double
        one, beta = scalar(1), scalar(accumulate)
        handle = cupy.cuda.device.get_cublas_handle()
        mode = cublas.getMathMode(handle) if hasattr(cublas, "getMathMode") else None
        cublas.setMathMode(handle, cublas.CUBLAS_DEFAULT_MATH)
        pointers = cublas.getPointerMode(handle)
        cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)
        gemm = cublas.sgemm if out.dtype == np.float32 else cublas.dgemm
        gemm(handle, _TRANSPOSE if transpose_b else _NO_TRANSPOSE, _TRANSPOSE if transpose_a else _NO_TRANSPOSE,
             columns, rows, inner, ctypes.addressof(one), b.data.ptr, b.shape[1], a.data.ptr, a.shape[1],
             ctypes.addressof(beta), out.data.ptr, columns)
        cublas.setPointerMode(handle, pointers)
        if mode is not None:
            cublas.setMathMode(handle, mode)

    def empty(self, shape, dtype):
        return cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        return cupy.zeros(shape, dtype)

    def address(self, array):
        return array.data.ptr


def _function(launch):
    """Compile, or take from CuPy's cache on disk, for the current device."""
    module = cupy.RawModule(code=sources.text(launch.family), options=OPTIONS, name_expressions=(launch.expression,))
    function = module.get_function(launch.expression).kernel
    if launch.shared > 48 * 1024:
        driver.funcSetAttribute(function.ptr, _MAX_DYNAMIC_SHARED, launch.shared)
    if launch.cluster > 8:
        driver.funcSetAttribute(function.ptr, _NON_PORTABLE_CLUSTER, 1)
    return function
