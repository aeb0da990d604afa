"""Emulators instead of GPUs: a platform for `rnn_ops.backends.cuda.platform`, with `Emulator` for `Runtime`."""
import contextlib

import numpy as np

from cuda_host.emulator import Emulator
from rnn_ops.backends import cuda


class Platform:
    """As the module rnn_ops/backends/cuda/runtime.py, for NumPy arrays."""

    def __init__(self, *devices):
        self._devices = devices
        self.emulators = {}  # those in use, by number

    def count(self):
        return len(self._devices)

    def versions(self):
        return "emulators of tests/cuda_host"

    def device(self, index):
        return self._devices[index]

    def nvrtc(self, index):
        return "the C++ compiler"

    def Runtime(self, index):
        emulator = self.emulators[index] = Emulator(self._devices[index], index=index)
        return emulator

    def array(self, name, value):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name}: got {type(value).__name__}, needs an array in the memory of a GPU")
        return value

    def index(self, array):
        return getattr(array, "gpu", 0)


class OnGPU(np.ndarray):
    """An array that says which GPU it is on: ``array.view(OnGPU)``, then ``array.gpu = 1``."""


@contextlib.contextmanager
def platform(*devices):
    """Inside, `rnn_ops.backends.cuda` finds these devices and no others."""
    found, stand_in = cuda.platform, Platform(*devices)
    cuda.platform = lambda: stand_in
    cuda._made.cache_clear()
    try:
        yield stand_in
    finally:
        cuda.platform = found
        cuda._made.cache_clear()
