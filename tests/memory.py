"""How much memory this process holds: what it has asked for and not given back, of the C library and of Python.

Its resident size says less: it keeps what a busy machine needed at one time.
"""
import ctypes
import gc
import sys

_libc = ctypes.CDLL(None)
_wide = hasattr(_libc, "mallinfo2")  # since glibc 2.33; before, the counters are of 32 bits and wrap


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t if _wide else ctypes.c_uint32) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


_mallinfo = _libc.mallinfo2 if _wide else _libc.mallinfo
_mallinfo.restype = _MallInfo


def growth(work, *arguments):
    """Call `work` → (bytes, Python's own small blocks) that are held afterwards and were not before."""
    before = _held()
    work(*arguments)
    now = _held()
    size = now[0] - before[0]
    return size if _wide else (size + 2 ** 31) % 2 ** 32 - 2 ** 31, now[1] - before[1]


def _held():
    gc.collect()
    info = _mallinfo()
    return info.uordblks + info.hblkhd, sys.getallocatedblocks()
