"""A stand-in for a GPU that computes in NumPy: for rehearsals, and for tests to build defects on."""
import contextlib
import time

import numpy as np

from rnn_ops import numpy_reference
from rnn_ops.backends.cuda import variants


class NumPyGpu:
    """The methods of `cupy_gpu.Gpu`. It is its own launcher and runtime, and stands for any device."""
    xp = np
    patience = 60
    cuda_driver = None

    def __init__(self, device=None):
        self.device = device or variants.known_device(90, 132)
        self.launcher = self.runtime = self
        self.clock, self.l2 = 1e9, 1000

    def current(self):
        return contextlib.nullcontext()

    def describe(self):
        """As a GPU of this kind would."""
        return {"name": f"NumPy as {self.device.name}", "compute_capability": self.device.compute_capability / 10,
                "multiprocessors": self.device.multiprocessors, "shared_memory_per_block": self.device.shared_memory,
                "shared_memory_per_multiprocessor": self.device.shared_memory, "l2_cache": self.l2, "memory": 2 ** 30,
                "clock_khz": 10 ** 6, "measured_clock_khz": 10 ** 6, "memory_clock_khz": 10 ** 6, "driver": None,
                "cuda_driver": "0.0", "cuda_runtime": "0.0", "cupy": "none", "truths": "NumPy", "devices": 1}

    # --- arrays

    def to_device(self, array):
        return array.copy()

    to_host = for_truth = to_device

    def empty(self, shape, dtype=np.float32):
        return np.empty(shape, dtype)

    def spoil(self, array):
        array.fill(np.nan)

    def free(self):
        pass

    def no_pool(self):
        pass

    # --- time

    def wait(self):
        pass

    def measure_clock(self):
        return self.clock

    def time(self, call, count, delay, before=None):
        if before:
            for i in range(count):
                before(i)
        started = time.perf_counter()
        for i in range(count):
            call(i)
        return time.perf_counter() - started + 1e-6, True

    # --- kernels

    def program(self, cubin):
        return lambda one: 1000

    def occupancy(self, launch):
        return 1, None

    def recorded(self, call):
        call()
        return call

    def multiply(self, a, b, out, transpose_a=False, transpose_b=False, accumulate=False):
        product = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
        out[:] = out + product if accumulate else product

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        wrong = np.zeros(inputs.shape, bool)
        if inputs.ndim == 2:
            wrong = (inputs < 0) | (inputs >= len(Wxh))
            inputs = np.where(wrong, 0, inputs)
        outputs[:] = numpy_reference.forward(inputs, state, Wxh, Whh, bh, activation=activation)
        for t, b in np.argwhere(wrong):
            outputs[t:, b] = np.nan

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation="tanh", variant=None,
                 **gradients):
        total = np.zeros_like(outputs) if doutputs is None else doutputs.copy()
        if dlast_state is not None:
            total[-1] += dlast_state
        if inputs.ndim == 2:
            inputs = np.where((inputs < 0) | (inputs >= len(Wxh)), 0, inputs)
        found = numpy_reference.backward(inputs, state, Wxh, Whh, outputs, total, activation=activation)
        for name, array in gradients.items():
            if array is not None:
                array[:] = found[name]
