"""A runtime that computes nothing and records what a `launcher.Launcher` does: a program.

A program is for one device and one signature of a call, and all its sizes are final. Playing it takes the addresses of the
arrays; rnn_ops/operators/native/gpu.cc does it without Python, program.py in Python. Memory is named by region (`codes.REGIONS`):
address n·2⁴⁰ + i in a program stands for byte i of region n - 1.
"""
import ctypes
from typing import NamedTuple

import numpy as np

from rnn_ops.backends import codes
from rnn_ops.backends.cuda.launcher import Launch, Launcher

_ALIGNMENT = 256  # bytes, as memory comes from CUDA


class LaunchItem(NamedTuple):
    launch: Launch
    values: bytes     # the arguments, each at a multiple of 8 bytes
    begins: list      # of each argument, in bytes
    addresses: list   # of each address in the values, in bytes


class MultiplyItem(NamedTuple):
    """out (rows, columns) (+)= op(a)·op(b); a and b are row-major with so many columns before they are transposed."""
    a: int
    b: int
    out: int
    rows: int
    columns: int
    inner: int
    a_columns: int
    b_columns: int
    transpose_a: bool
    transpose_b: bool
    accumulate: bool
    dtype: int        # of `codes.DTYPES`


class FillItem(NamedTuple):
    to: int
    value: int        # of each byte
    bytes: int


class CopyItem(NamedTuple):
    to: int
    source: int
    bytes: int


class Recorder:
    """A `Runtime` for the launcher. ``items`` is the program so far, ``workspace`` the bytes that it needs."""

    def __init__(self, device):
        self.device = device
        self.items = []
        self.workspace = 0

    def region(self, name, shape, dtype, offset=0):
        """An array with an address in a region and with no memory."""
        return np.asarray(_Memory((codes.REGIONS.index(name) + 1 << 40) + offset, shape, np.dtype(dtype)))

    def empty(self, shape, dtype):
        array = self.region("workspace", shape, dtype, self.workspace)
        self.workspace += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return array

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    def address(self, array):
        return array.ctypes.data

    def launch(self, launch, arguments):
        values, begins, addresses = b"", [], []
        for argument in arguments:
            begins.append(len(values))
            addresses += [len(values) + offset for offset in _address_offsets(argument)]
            values += bytes(argument)
            values += bytes(-len(values) % 8)
        self.items.append(LaunchItem(launch, values, begins, addresses))

    def multiply(self, a, b, out, transpose_a=False, transpose_b=False, accumulate=False):
        rows, columns = out.shape
        inner = a.shape[0] if transpose_a else a.shape[1]
        self.items.append(MultiplyItem(
            self.address(a), self.address(b), self.address(out), rows, columns, inner, a.shape[1], b.shape[1],
            transpose_a, transpose_b, accumulate, codes.DTYPES[out.dtype]))

    def fill(self, array, value):
        self.items.append(FillItem(self.address(array), value, array.nbytes))

    def copy(self, to, source):
        self.items.append(CopyItem(self.address(to), self.address(source), source.nbytes))


class _Memory:
    """NumPy makes an array from this, without touching its memory."""

    def __init__(self, address, shape, dtype):
        self.__array_interface__ = {"data": (address, False), "shape": tuple(shape), "typestr": dtype.str, "version": 3}


def _address_offsets(value):
    if isinstance(value, ctypes.c_void_p):
        return [0]
    return [getattr(type(value), name).offset for name, kind in getattr(value, "_fields_", []) if kind is ctypes.c_void_p]


def record_forward(device, T, B, I, H, dtype, tokens, activation, with_last_state):
    """The program of a forward pass → Recorder. It copies the last state out of the outputs if ``with_last_state``."""
    recorder = Recorder(device)
    outputs = recorder.region("outputs", (T, B, H), dtype)
    Launcher(recorder).forward(*_arguments(recorder, T, B, I, H, dtype, tokens), recorder.region("bh", (H,), dtype), outputs,
                               activation)
    if with_last_state:
        recorder.copy(recorder.region("last_state", (B, H), dtype), outputs[-1])
    return recorder


def record_backward(device, T, B, I, H, dtype, tokens, activation, with_last_state, fills):
    """The program of a backward pass → Recorder.

    fills : by the name of each gradient that is written: `codes.COMPUTE`, or the value that each of its bytes is set to.
    """
    recorder = Recorder(device)
    inputs, state, Wxh, Whh = _arguments(recorder, T, B, I, H, dtype, tokens)
    shapes = [inputs.shape, (B, H), (I, H), (H, H), (H,)]
    gradients = {}
    for name, shape in zip(codes.GRADIENTS, shapes):
        if name not in fills:
            continue
        gradient = recorder.region(name, shape, inputs.dtype if name == "dinputs" else dtype)
        if fills[name] == codes.COMPUTE:
            gradients[name] = gradient
        else:
            recorder.fill(gradient, fills[name])
    Launcher(recorder).backward(
        inputs, state, Wxh, Whh, recorder.region("outputs", (T, B, H), dtype), recorder.region("doutputs", (T, B, H), dtype),
        recorder.region("dlast_state", (B, H), dtype) if with_last_state else None, activation=activation, **gradients)
    return recorder


def _arguments(recorder, T, B, I, H, dtype, tokens):
    inputs = recorder.region("inputs", (T, B) if tokens else (T, B, I), "int32" if tokens else dtype)
    return inputs, *(recorder.region(*argument, dtype) for argument in (("state", (B, H)), ("Wxh", (I, H)), ("Whh", (H, H))))
