"""The recurrence as a sequence of launches and matrix products.

This is everything between checked arguments and the hardware: the kernel, its sizes, its arguments, and the order of the work. A
`Runtime` does the work (runtime.py on a GPU, recorder.py for later, the emulator of tests/cuda_host on a CPU):

- ``device``: `variants.Device`
- ``launch(launch, arguments)``: launches a `Launch`; the arguments are ctypes values
- ``multiply(a, b, out, transpose_a, transpose_b, accumulate)``: out (+)= a·b of two-dimensional C-contiguous arrays
- ``empty(shape, dtype)``, ``zeros(shape, dtype)``: arrays; ``address(array)``: of its first element

All work is in the order of one stream, and nothing waits for it. Arrays are C-contiguous and NumPy-like, and the caller has
checked them.
"""
import ctypes
from typing import NamedTuple

import numpy as np

from rnn_ops.backends import codes
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.sources import Kernel

_TOKENS = np.dtype("int32")
_C = {np.dtype("float32"): "float", np.dtype("float64"): "double"}


class Launch(NamedTuple):
    """A kernel and the sizes it is launched with."""
    kernel: Kernel
    grid: tuple       # blocks: x, y, z
    block: int        # threads
    shared: int = 0   # bytes of dynamic shared memory
    cluster: int = 1  # blocks
    cooperative: bool = False


def _fields(pointers, sizes):
    return ([(name, ctypes.c_void_p) for name in pointers.split()] + [(name, ctypes.c_int32) for name in sizes.split()])


class _Forward(ctypes.Structure):  # Forward in passes.cuh
    _fields_ = _fields("tokens Wxh Whh bh h0 h", "T B I H activation")


class _Backward(ctypes.Structure):  # Backward in passes.cuh
    _fields_ = _fields("Whh h dh dh_last da dh0", "T B H activation")


class _Launches:
    """Launches that a call makes later. They write to ``memory``, so this keeps it until then."""

    def __init__(self, runtime, launches, memory):
        self._runtime = runtime
        self._launches = launches  # (Launch, arguments)
        self._memory = memory

    def __call__(self):
        for launch, values in self._launches:
            self._runtime.launch(launch, values)


class Launcher:
    """forward and backward on a Runtime.

    ``variant`` is for experiments: a `variants.Variant` or the name of a family. With None `variants.choose` decides.
    """

    def __init__(self, runtime):
        self._runtime = runtime

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        """As `rnn_ops.backends.cuda.forward`, with checked arguments."""
        T, B, H = outputs.shape
        tokens = inputs.dtype == _TOKENS
        address = self._address
        steps = self._steps("Forward", _Forward(
            tokens=address(inputs if tokens else None), Wxh=address(Wxh), Whh=address(Whh), bh=address(bh),
            h0=address(state), h=address(outputs), T=T, B=B, I=Wxh.shape[0], H=H,
            activation=codes.ACTIVATIONS[activation]), outputs.dtype, variant,
            lambda n: (outputs[n - 1] if n else state, Whh, False))
        if not tokens:  # outputs hold x·Wxh until each step overwrites its part
            self._runtime.multiply(inputs.reshape(T * B, -1), Wxh, outputs.reshape(T * B, H))
        steps()

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state,
                 dinputs=None, dstate=None, dWxh=None, dWhh=None, dbh=None,
                 activation="tanh", variant=None):
        """As `rnn_ops.backends.cuda.backward`, with checked arguments."""
        if all(array is None for array in (dinputs, dstate, dWxh, dWhh, dbh)):
            return
        T, B, H = outputs.shape
        tokens = inputs.dtype == _TOKENS
        da = self._runtime.empty((T, B, H), outputs.dtype)
        rows = da.reshape(T * B, H)
        address = self._address
        # All memory is allocated before anything is launched, so that a MemoryError leaves the results untouched.
        planned = [self._steps("Backward", _Backward(
            Whh=address(Whh), h=address(outputs), dh=address(doutputs), dh_last=address(dlast_state), da=address(da),
            dh0=address(dstate), T=T, B=B, H=H, activation=codes.ACTIVATIONS[activation]), outputs.dtype, variant,
            lambda n: (da[T - 1 - n], Whh, True))]
        if dbh is not None:
            planned.append(self._row_sums(None, rows, dbh.reshape(1, H)))
        if dWxh is not None and tokens:
            planned.append(self._row_sums(inputs, rows, dWxh))
        for each in planned:
            each()
        multiply = self._runtime.multiply
        if dWhh is not None:
            multiply(state, da[0], dWhh, transpose_a=True)
            if T > 1:
                multiply(outputs[:-1].reshape(-1, H), rows[B:], dWhh, transpose_a=True, accumulate=True)
        if dWxh is not None and not tokens:
            multiply(inputs.reshape(T * B, -1), rows, dWxh, transpose_a=True)
        if dinputs is not None:
            multiply(rows, Wxh, dinputs.reshape(T * B, -1), transpose_b=True)

    # Each of these allocates the memory it needs and returns a function that launches.

    def _steps(self, direction, arguments, dtype, variant, factors):
        """All steps of a pass. ``factors(n)``, for stepwise: state n, the matrix, and whether to transpose it."""
        if (arguments.T + 3) * arguments.B >= 2 ** 31:
            variant = "stepwise"  # the other families count rows of (T·B, H) in 32 bits, and read ahead
        if not isinstance(variant, variants.Variant):
            variant = variants.choose(self._runtime.device, dtype, arguments.B, arguments.H, variant)
        if variant.family == "stepwise":
            return self._step_by_step(direction, arguments, dtype, factors)
        values, workspace = [arguments, ctypes.c_int32(variant.rows)], None
        if variant.family == "grid":
            states = 2 * variant.groups * variant.rows * variant.tile.k
            workspace = self._runtime.zeros((states + 32 * variant.groups,), dtype)  # states, then one counter for each group
            values += [self._pointer(workspace), self._pointer(workspace[states:])]
        launch = Launch(
            variant.kernel(direction), (variant.blocks, variant.groups, 1), variant.tile.threads,
            variant.shared, cluster=variant.blocks if variant.family == "cluster" else 1,
            cooperative=variant.family == "grid")
        return _Launches(self._runtime, [(launch, values)], workspace)

    def _step_by_step(self, direction, arguments, dtype, factors):
        T, B, H = arguments.T, arguments.B, arguments.H
        real = _C[np.dtype(dtype)]
        macros = (("PASS", f"{direction}<{real}>"), ("REAL", real))
        kernel = Launch(Kernel("stepwise", f"rnn_stepwise_{direction.lower()}", macros), (-(-B * H // 256), 1, 1), 256)
        sums = self._runtime.empty((B, H), dtype)
        launch, multiply, pointer = self._runtime.launch, self._runtime.multiply, self._pointer(sums)

        def steps():
            if direction == "Backward":  # state 0 is not given
                launch(kernel, [arguments, ctypes.c_int32(0), ctypes.c_void_p()])
            for n in range(T):
                if n == T - 1 and direction == "Backward" and not arguments.dh0:
                    break  # the last product is dh0
                state, matrix, transpose = factors(n)
                multiply(state, matrix, sums, transpose_b=transpose)
                launch(kernel, [arguments, ctypes.c_int32(n), pointer])
        return steps

    def _row_sums(self, tokens, rows, sums):
        """sums[v] = the sum of the rows whose token is v, or of all rows if there are no tokens."""
        N, H = rows.shape
        V = sums.shape[0]
        # One block for 32 rows of each token, but no more than some thousand blocks: that many keep the chip busy.
        chunks = min(-(-N // 32), max(1, 4096 // V))
        chunk_rows = 32 * -(-N // (32 * chunks))
        chunks = -(-N // chunk_rows)
        partials = self._runtime.empty((chunks, V, H), rows.dtype) if chunks > 1 else sums
        macros = (("REAL", _C[np.dtype(rows.dtype)]),)
        launches = [(
            Launch(Kernel("sums", "rnn_sum_rows", macros), (V, chunks, -(-H // 128)), 128),
            [self._pointer(tokens), self._pointer(rows), self._pointer(partials), ctypes.c_int64(N), ctypes.c_int32(H),
             ctypes.c_int32(chunk_rows)])]
        if chunks > 1:
            launches.append((
                Launch(Kernel("sums", "rnn_sum_chunks", macros), (-(-V * H // 256), 1, 1), 256),
                [self._pointer(partials), self._pointer(sums), ctypes.c_int64(V * H), ctypes.c_int32(chunks)]))
        return _Launches(self._runtime, launches, partials)

    def _address(self, array):
        return None if array is None else self._runtime.address(array)

    def _pointer(self, array):
        return ctypes.c_void_p(self._address(array))
