"""The functions of the CUDA driver and of cuBLAS that the native operator calls, with `Emulator`s and NumPy behind them.

Their arguments are those of the real ones: addresses as numbers, arguments of kernels as pointers, matrices column by column.
"""
import ctypes

import numpy as np

from rnn_ops.backends.cuda.launcher import Launch

_launches = []   # (Emulator, a Launch with the kernel) by number of the function, counted from 1
streams = []     # of each call, in order; cuBLAS calls have that of their handle
_handles = []    # of cuBLAS: the stream of each, by number, counted from 1
_homes = []      # the GPU of each handle, if there is a `runtime`
runtime = None   # a `cuda_standin.Runtime`, if the memory is its. It knows which GPU is current
fail_with = {}   # name of a function → the status that it returns instead of doing anything

_int, _unsigned, _pointer, _address, _size = ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t


def number_of(emulator, launch):
    _launches.append((emulator, launch))
    return len(_launches)


def _launch(name, function, grid, block, shared, stream, arguments):
    def call():
        emulator, known = _launches[function - 1]
        values = [(ctypes.c_char * size).from_address(address) for size, address in
                  zip(emulator.argument_sizes(known.kernel), ctypes.cast(arguments, ctypes.POINTER(_pointer)))]
        assert block[1:] == (1, 1)
        streams.append(stream)
        with emulator.current():  # MXNet's threads have it current
            emulator.launch(Launch(known.kernel, grid, block[0], shared, known.cluster, name == "launch_cooperative"),
                            values)
    return _status(name, call)


def _cu_launch_kernel(function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
    assert not extra
    return _launch("launch", function, (gx, gy, gz), (bx, by, bz), shared, stream, arguments)


def _cu_launch_cooperative_kernel(function, gx, gy, gz, bx, by, bz, shared, stream, arguments):
    return _launch("launch_cooperative", function, (gx, gy, gz), (bx, by, bz), shared, stream, arguments)


def _cu_memset_d8_async(to, value, count, stream):
    return _status("fill", lambda: (streams.append(stream), ctypes.memset(to, value, count)))


def _cu_memcpy_dtod_async(to, source, count, stream):
    return _status("copy", lambda: (streams.append(stream), ctypes.memmove(to, source, count)))


def _cublas_create(handle):
    def call():
        _handles.append(None)
        _homes.append(runtime and runtime.of_context())
        handle[0] = len(_handles)
    return _status("create_handle", call)


def _cublas_set_stream(handle, stream):
    return _status("set_stream", lambda: _handles.__setitem__(handle - 1, stream))


def product(a, b):
    """a·b from copies that have one layout. BLAS may sum in another order for another layout, and products here and in
    `Emulator.multiply` must have the same bits."""
    return np.array(a, order="C") @ np.array(b, order="C")


def _gemm(name, real):
    dtype = np.dtype(real)

    def matrix(address, leading, columns):
        return np.frombuffer((real * (leading * columns)).from_address(address), dtype).reshape(columns, leading).T

    def gemm(handle, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        def call():
            streams.append(_handles[handle - 1])
            if runtime:
                runtime.check(_handles[handle - 1], a, b, c)
                assert _homes[handle - 1] == runtime.of_context(), "a cuBLAS handle of another GPU"
            left = matrix(a, lda, m).T[:, :k] if transpose_a else matrix(a, lda, k)[:m]
            right = matrix(b, ldb, k).T[:, :n] if transpose_b else matrix(b, ldb, n)[:k]
            out = matrix(c, ldc, n)[:m]
            assert left.shape == (m, k) and right.shape == (k, n) and alpha[0] == 1
            found = product(right.T, left.T).T  # the row-major product that was asked for
            out[...] = out * beta[0] + found if beta[0] else found
        return _status(name, call)

    scalar = ctypes.POINTER(real)
    return ctypes.CFUNCTYPE(_int, _pointer, *[_int] * 5, scalar, _pointer, _int, _pointer, _int, scalar, _pointer, _int)(gemm)


errors = []  # exceptions of calls, which cannot go through C


def _status(name, call):
    if name in fail_with:
        return fail_with[name]
    try:
        call()
        return 0
    except Exception as error:  # from ctypes there is no way out for it
        errors.append(error)
        return 719  # CUDA_ERROR_LAUNCH_FAILED


_CALLBACKS = {
    "launch": ctypes.CFUNCTYPE(_int, _pointer, *[_unsigned] * 7, _pointer, _pointer, _pointer)(_cu_launch_kernel),
    "launch_cooperative": ctypes.CFUNCTYPE(_int, _pointer, *[_unsigned] * 7, _pointer, _pointer)(_cu_launch_cooperative_kernel),
    "fill": ctypes.CFUNCTYPE(_int, _address, ctypes.c_ubyte, _size, _pointer)(_cu_memset_d8_async),
    "copy": ctypes.CFUNCTYPE(_int, _address, _address, _size, _pointer)(_cu_memcpy_dtod_async),
    "create_handle": ctypes.CFUNCTYPE(_int, ctypes.POINTER(_pointer))(_cublas_create),
    "set_stream": ctypes.CFUNCTYPE(_int, _pointer, _pointer)(_cublas_set_stream),
    "multiply_float": _gemm("multiply_float", ctypes.c_float),
    "multiply_double": _gemm("multiply_double", ctypes.c_double),
}


def functions():
    """Their addresses, as `Runtime.functions` gives those of the real ones."""
    return {name: ctypes.cast(callback, _pointer).value for name, callback in _CALLBACKS.items()}
