"""A stand-in for `rnn_ops.backends.cuda.cupy_gpu.Gpu` that trains on the emulator of the CUDA kernels."""
import contextlib

import numpy as np

from cuda_host import Emulator
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher


class EmulatedGpu:
    """The part of `cupy_gpu.Gpu` that training needs, on the emulator. ``defect`` names what is wrong with it."""
    xp = np

    def __init__(self, architecture=90, defect=None):
        self.device, self.defect = variants.known_device(architecture, 16), defect
        self.runtime = Emulator(self.device)
        self._multiply, self.products, self.recordings = self.runtime.multiply, 0, 0
        self.runtime.multiply = self.multiply
        self.launcher = Launcher(self.runtime)

    def current(self):
        return contextlib.nullcontext()

    def multiply(self, a, b, out, **how):
        self._multiply(a, b, out, **how)
        self.products += 1
        if self.defect == "other bits" and self.products == 100:
            out[0, 0] += 1e-6
        if self.defect == "wrong":
            out *= 1.1
        if self.defect == "diverges":
            out *= 1e30

    def recorded(self, call):
        if self.defect == "cannot record":
            raise RuntimeError("operation not permitted\n when stream is capturing")
        self.recordings += 1
        call()  # once before it is captured
        return call

    def to_device(self, array):
        return array.copy()

    to_host = for_truth = to_device

    def wait(self):
        pass
