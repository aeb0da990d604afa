"""The recurrence on the CPU: the compiled kernels (kernels/cpu) on NumPy arrays.

``forward`` and ``backward`` check their arguments and make one call into the shared library, which writes into arrays of the
caller. The call releases the GIL, and calls may run concurrently.

Shapes are written in letters: T steps, B batch rows, I input width (with tokens, the size of the vocabulary), H hidden units.
"""
import ctypes
import numbers
import os
from typing import Optional, Tuple

import numpy as np

from rnn_ops.backends import arguments, codes, library

_LIBRARY = library.path()

_SIZES = [(name, ctypes.c_int64) for name in "TBIH"] + [("dtype", ctypes.c_int32), ("activation", ctypes.c_int32)]
_COUNTS = [("threads", ctypes.c_int64), ("openmp", ctypes.c_void_p), ("bad_token", ctypes.c_int64)]


def _buffers(*names):
    return [(name, ctypes.c_void_p) for name in names]


class _ForwardArgs(ctypes.Structure):  # rnn_cpu_forward_args
    _fields_ = _SIZES + _buffers("tokens", "x", "h0", "Wxh", "Whh", "bh", "h") + _COUNTS


class _BackwardArgs(ctypes.Structure):  # rnn_cpu_backward_args
    _fields_ = (_SIZES + _buffers("tokens", "x", "h0", "Wxh", "Whh", "h", "dh", "dh_last", "da",
                                  "dx", "dh0", "dWxh", "dWhh", "dbh") + _COUNTS)


def _load():
    library = ctypes.CDLL(_LIBRARY)
    library.rnn_cpu_forward.argtypes = [ctypes.POINTER(_ForwardArgs)]
    library.rnn_cpu_backward.argtypes = [ctypes.POINTER(_BackwardArgs)]
    library.rnn_cpu_tanh.argtypes = [ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    library.rnn_cpu_split.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_int, ctypes.c_int64,
                                      ctypes.c_int64, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)]
    library.rnn_cpu_multiply_adds.argtypes = [ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64,
                                              ctypes.POINTER(ctypes.c_double)]
    library.rnn_cpu_simd.restype = library.rnn_cpu_simd_levels.restype = ctypes.c_char_p
    return library


_library = _load()


def forward(inputs: np.ndarray, state: np.ndarray, Wxh: np.ndarray, Whh: np.ndarray, bh: np.ndarray, outputs: np.ndarray,
            activation: str = "tanh") -> None:
    """h_t = f(x_t·Wxh + h_{t-1}·Whh + bh) for all T steps, f(a) = tanh(a) or relu(a) = max(a, 0); f(NaN) is NaN.

    Parameters
    ----------
    inputs : float (T, B, I) or int32 tokens (T, B)
    state : float (B, H), the state before the first step
    Wxh, Whh, bh : float (I, H), (H, H), (H,)
    outputs : float (T, B, H), overwritten with the state after every step
    activation : "tanh" or "relu"

    All C-contiguous NumPy arrays; the floats all float32 or all float64. ``outputs`` overlaps none of the others.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, dtype, shape or memory layout, ``outputs`` in the memory of another, or a token outside
        [0, I): nothing is written.
        Also if RNN_OPS_NUM_THREADS, RNN_OPS_SIMD or ``activation`` has an invalid value.
    MemoryError
    """
    arguments.check_activation(activation)
    signature = arguments.check(inputs, state, Wxh, Whh, bh)
    T, B, _, H, dtype, _ = signature
    given = dict(inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, bh=bh)
    addresses = {name: _pointer(name, array) for name, array in given.items()}
    written = _pointer("outputs", outputs, (T, B, H), dtype, written=True)
    arguments.check_apart([("outputs", written, outputs)],
                          [(name, addresses[name], array) for name, array in given.items()])
    run_forward(signature, activation, 0, None, *addresses.values(), written)


def run_forward(signature: arguments.Signature, activation: str, threads: int, openmp: Optional[int], inputs: int, state: int,
                Wxh: int, Whh: int, bh: int, outputs: int) -> None:
    """`forward` of arguments that are checked but for the values of tokens, by the addresses of their memory.

    threads: the most that the call uses if RNN_OPS_NUM_THREADS is not set; 0 for `threads()`.
    openmp: address of GOMP_parallel in the OpenMP runtime whose threads share the work; None for threads of our own.
    """
    T, B, I, H, dtype, tokens = signature
    args = _ForwardArgs(T, B, I, H, codes.DTYPES[dtype], codes.ACTIVATIONS[activation], inputs if tokens else None,
                        None if tokens else inputs, state, Wxh, Whh, bh, outputs, threads, openmp)
    status = _library.rnn_cpu_forward(args)
    if status:
        _raise_for(status, args)


def backward(inputs: np.ndarray, state: np.ndarray, Wxh: np.ndarray, Whh: np.ndarray, outputs: np.ndarray,
             doutputs: Optional[np.ndarray], dlast_state: Optional[np.ndarray],
             dinputs: Optional[np.ndarray] = None, dstate: Optional[np.ndarray] = None, dWxh: Optional[np.ndarray] = None,
             dWhh: Optional[np.ndarray] = None, dbh: Optional[np.ndarray] = None, activation: str = "tanh") -> None:
    """Backward through time: from the gradients of the results to those of the arguments of `forward`.

    With h_t = f(a_t), da_t = (dh_t + da_{t+1}·Whhᵀ)·f'(a_t), where f' = 1 - h_t² for tanh, and for relu 1 where
    h_t > 0, else 0; then dWhh = Σ h_{t-1}ᵀ·da_t, dWxh = Σ x_tᵀ·da_t, dbh = Σ da_t, dx_t = da_t·Wxhᵀ and
    dstate = da_0·Whhᵀ.

    Parameters
    ----------
    inputs, state, Wxh, Whh : as given to `forward`
    outputs : float (T, B, H), as written by `forward`
    doutputs : float (T, B, H) or None for zeros, the gradient of ``outputs``
    dlast_state : float (B, H) or None for zeros, the gradient of the last state, which adds to that of ``outputs[-1]``
    dinputs, dstate, dWxh, dWhh, dbh : float of the shapes of the arguments, or None for a gradient that is not wanted
        Overwritten. Tokens have no gradient. None of them overlaps another argument.
    activation : "tanh" or "relu", as given to `forward`

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `forward`.
    """
    arguments.check_activation(activation)
    signature = arguments.check(inputs, state, Wxh, Whh)
    T, B, I, H, dtype, tokens = signature
    if tokens and dinputs is not None:
        raise ValueError("dinputs: got an array, needs None: tokens have no gradient")
    read = [("inputs", _pointer("inputs", inputs), inputs), ("state", _pointer("state", state), state),
            ("Wxh", _pointer("Wxh", Wxh), Wxh), ("Whh", _pointer("Whh", Whh), Whh)]
    for name, array, shape in (("outputs", outputs, (T, B, H)), ("doutputs", doutputs, (T, B, H)),
                               ("dlast_state", dlast_state, (B, H))):
        optional = None if array is None and name != "outputs" else _pointer(name, array, shape, dtype)
        read.append((name, optional, array))
    written = []
    for name, array, shape in (("dinputs", dinputs, (T, B, I)), ("dstate", dstate, (B, H)), ("dWxh", dWxh, (I, H)),
                               ("dWhh", dWhh, (H, H)), ("dbh", dbh, (H,))):
        written.append((name, None if array is None else _pointer(name, array, shape, dtype, written=True), array))
    arguments.check_apart(written, read)
    da = np.empty((T, B, H), dtype)
    run_backward(signature, activation, 0, None, *(address for _, address, _ in read + written), da.ctypes.data)


def run_backward(signature: arguments.Signature, activation: str, threads: int, openmp: Optional[int], inputs: int, state: int,
                 Wxh: int, Whh: int, outputs: int, doutputs: Optional[int], dlast_state: Optional[int], dinputs: Optional[int],
                 dstate: Optional[int], dWxh: Optional[int], dWhh: Optional[int], dbh: Optional[int], da: int) -> None:
    """`backward` by addresses, as `run_forward`. da: memory for the gradient of the argument of tanh or relu, (T, B, H)."""
    T, B, I, H, dtype, tokens = signature
    args = _BackwardArgs(T, B, I, H, codes.DTYPES[dtype], codes.ACTIVATIONS[activation], inputs if tokens else None,
                         None if tokens else inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, da, dinputs, dstate, dWxh,
                         dWhh, dbh, threads, openmp)
    status = _library.rnn_cpu_backward(args)
    if status:
        _raise_for(status, args)


def tanh(x: np.ndarray) -> np.ndarray:
    """tanh as the kernels compute it, for measuring its error: float32 or float64 array → a new array."""
    if not isinstance(x, np.ndarray) or x.dtype not in codes.DTYPES:
        raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, needs an array of float32 or float64")
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    _raise_for(_library.rnn_cpu_tanh(codes.DTYPES[x.dtype], x.size, x.ctypes.data, y.ctypes.data))
    return y


def multiply_adds(rounds: int, threads: int = 1, level: Optional[str] = None, dtype: str = "float32") -> int:
    """Do nothing but multiply-adds in registers and return their number, for measuring the processor's peak.

    Parameters
    ----------
    rounds : int, for each thread, from 1 to 2**24
    threads : int, from 1 to `threads()`
    level : one of `simd_levels`; by default the one in use
    dtype : "float32" or "float64"
    """
    allowed = _library.rnn_cpu_threads()
    if allowed == 0:
        _raise_for(codes.BAD_THREADS)
    for name, value, most in (("rounds", rounds, 2 ** 24), ("threads", threads, allowed)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value <= most:
            raise ValueError(f"{name}: got {value!r}, needs a whole number from 1 to {most:,}")
    if level is not None and level not in simd_levels():
        raise ValueError(f"level: got {level!r}, needs one of {', '.join(simd_levels())}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, needs 'float32' or 'float64'")
    count = ctypes.c_double()
    _raise_for(_library.rnn_cpu_multiply_adds(None if level is None else level.encode(), codes.DTYPES[np.dtype(dtype)], threads,
                                              rounds, count))
    return int(count.value)


def library_path() -> str:
    """The file with the kernels and the native MXNet operator. ``mx.library.load`` takes it in programs that do not import
    rnn_ops. It needs no other file of the package and no Python."""
    return _LIBRARY


def threads() -> int:
    """How many threads a call may use: RNN_OPS_NUM_THREADS, else OMP_NUM_THREADS, else the processors allowed."""
    count = _library.rnn_cpu_threads()
    if count == 0:
        _raise_for(codes.BAD_THREADS)
    return count


def split(B: int, H: int, dtype: str = "float32", thread_count: Optional[int] = None, l1: int = 0,
          l2: int = 0) -> Tuple[int, int]:
    """How the threads of a call share each step of B rows and H hidden units: (groups of rows, groups of columns).

    Threads that own columns of the same rows meet at every step. The split (kernels/cpu/split.cc) does not change results.

    Parameters
    ----------
    thread_count : int, or None for `threads()`; a call with little work uses fewer
    l1, l2 : bytes of a core's own caches, or 0 for those of this machine
    """
    simd()  # raises if RNN_OPS_SIMD is no level
    thread_count = threads() if thread_count is None else thread_count
    for name, value, least in ("B", B, 1), ("H", H, 1), ("thread_count", thread_count, 1), ("l1", l1, 0), ("l2", l2, 0):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value < 2 ** 31:
            raise ValueError(f"{name}: got {value!r}, needs a whole number, {least} or more")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, needs 'float32' or 'float64'")
    rows, columns = ctypes.c_int(), ctypes.c_int()
    _library.rnn_cpu_split(B, H, codes.DTYPES[np.dtype(dtype)], thread_count, l1, l2, rows, columns)
    return rows.value, columns.value


def simd_levels() -> Tuple[str, ...]:
    """The SIMD levels that this build and this processor have, the best first, e.g. ('avx2', 'baseline')."""
    return tuple(_library.rnn_cpu_simd_levels().decode().split())


def simd() -> str:
    """The SIMD level in use: RNN_OPS_SIMD, else the best of `simd_levels`."""
    name = _library.rnn_cpu_simd()
    if name is None:
        _raise_for(codes.BAD_SIMD)
    return name.decode()


def _pointer(name, array, shape=None, dtype=None, written=False):
    """The address of a NumPy array's memory, after checking that the kernels can work on it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: got {type(array).__name__}, needs a NumPy array")
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{name}: got dtype {array.dtype}, needs {dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, needs {shape}")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name}: got a strided or unaligned array, needs a C-contiguous one (numpy.ascontiguousarray)")
    if written and not flags.writeable:
        raise ValueError(f"{name}: got a read-only array, needs one that can be written")
    return array.ctypes.data


def _raise_for(status, args=None):
    if status == codes.BAD_TOKEN:
        token = ctypes.cast(args.tokens, ctypes.POINTER(ctypes.c_int32))[args.bad_token]
        raise arguments.bad_token(token, args.bad_token, (args.T, args.B), args.I)
    if status == codes.NO_MEMORY:
        raise MemoryError("no memory for packed copies of Wxh and Whh")
    if status == codes.BAD_THREADS:
        raise ValueError(
            f"RNN_OPS_NUM_THREADS: got {os.environ.get('RNN_OPS_NUM_THREADS')!r}, needs a number of threads, 1 or more, "
            "at most 65,536")
    if status == codes.BAD_SIMD:
        raise ValueError(f"RNN_OPS_SIMD: got {os.environ.get('RNN_OPS_SIMD')!r}, needs one of {', '.join(simd_levels())}")
