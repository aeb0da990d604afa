"""Matrix products by cuBLAS through its C functions: row-major, in full precision, in a stream.

CuPy's own functions cannot be captured into a CUDA graph, and everything that uses CuPy shares the settings of their handle.
"""
import ctypes
import threading

import numpy as np

_NO_TRANSPOSE, _TRANSPOSE = 0, 1  # cublasOperation_t
_int, _pointer = ctypes.c_int, ctypes.c_void_p


class Blas:
    """cuBLAS on one GPU, which must be current.

    Each thread has a handle, made when it is first needed. It keeps cuBLAS's default settings: no TF32, scalars in the CPU's
    memory. When the thread ends, another one may have it: a handle has memory on the GPU, and PyTorch's DataParallel makes new
    threads for each batch.

    Parameters
    ----------
    functions : dict
        {what a function does: its address}, as `runtime.Runtime.functions` gives it.
    """

    def __init__(self, functions):
        def function(name, *types):
            return ctypes.CFUNCTYPE(_int, *types)(functions[name])

        self._create = function("create_handle", ctypes.POINTER(_pointer))
        self._set_stream = function("set_stream", _pointer, _pointer)
        self._gemms = {np.dtype(real): (real, function(
            name, _pointer, *[_int] * 5, _pointer, _pointer, _int, _pointer, _int, _pointer, _pointer, _int))
            for name, real in (("multiply_float", ctypes.c_float), ("multiply_double", ctypes.c_double))}
        self._of_thread = threading.local()
        self._free = []

    def multiply(self, stream, dtype, a, b, out, transpose_a, transpose_b, accumulate):
        """out (+)= op(a)·op(b). Matrices are (address, rows, columns), a and b before they are transposed.

        cuBLAS takes column-major matrices: outᵀ = op(b)ᵀ·op(a)ᵀ. RuntimeError: cuBLAS has failed; it has the status.
        """
        (a, a_rows, a_columns), (b, _, b_columns), (out, rows, columns) = a, b, out
        real, gemm = self._gemms[np.dtype(dtype)]
        one, beta = real(1), real(accumulate)
        handle = self._handle()
        _check(self._set_stream(handle, stream), "cublasSetStream")
        _check(gemm(handle, _TRANSPOSE if transpose_b else _NO_TRANSPOSE, _TRANSPOSE if transpose_a else _NO_TRANSPOSE,
                    columns, rows, a_rows if transpose_a else a_columns, ctypes.addressof(one), b, b_columns, a, a_columns,
                    ctypes.addressof(beta), out, columns), "cublas gemm")

    def has_handle(self):
        """Whether there is a handle for this thread, so that its next product makes none."""
        return hasattr(self._of_thread, "lent") or bool(self._free)

    def _handle(self):
        if not hasattr(self._of_thread, "lent"):
            try:
                handle = self._free.pop()
            except IndexError:
                handle = _pointer()
                _check(self._create(ctypes.byref(handle)), "cublasCreate")
            self._of_thread.lent = _Lent(handle, self._free)
        return self._of_thread.lent.handle


class _Lent:
    """A thread's handle, which goes to a list when the thread ends."""

    def __init__(self, handle, free):
        self.handle = handle
        self._free = free

    def __del__(self):
        self._free.append(self.handle)


def _check(status, function):
    if status:
        raise RuntimeError(f"{function} failed with status {status}")
