"""NumPy's BLAS, held to RNN_OPS_NUM_THREADS.

The BLAS obeys OMP_NUM_THREADS by itself, but our own variable only if told. OpenBLAS, which NumPy's wheels bring, has
functions for that; another BLAS (MKL, Accelerate) keeps to its own variables, and ``threads`` says None for it.
"""
import ctypes
import os
import threading

import numpy as np

_PREFIXES_AND_SUFFIXES = (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", ""))  # how builds rename OpenBLAS


def _find_openblas():
    """(get, set) of the number of threads of the OpenBLAS that NumPy has loaded, or None."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if "openblas" in line.lower() and "/numpy" in line}
    except OSError:  # not Linux
        return None
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for prefix, suffix in _PREFIXES_AND_SUFFIXES:
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            if get is not None:
                return get, getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
    return None


_openblas = _find_openblas()
_held = threading.Lock()  # the number of threads is one for the whole process


def threads():
    """How many threads the BLAS uses when nobody limits it, or None where it cannot be asked."""
    return _openblas[0]() if _openblas else None


def matmul(a, b, out, limit):
    """``numpy.matmul(a, b, out=out)`` on at most ``limit`` threads; the BLAS is left as it was found."""
    if "RNN_OPS_NUM_THREADS" not in os.environ or _openblas is None:
        return np.matmul(a, b, out=out)
    get, set_ = _openblas
    with _held:
        before = get()
        if before <= limit:
            return np.matmul(a, b, out=out)
        set_(limit)
        try:
            return np.matmul(a, b, out=out)
        finally:
            set_(before)
