"""The GPU: its facts, arrays there and back, waiting with an end, and timing by events."""
import contextlib
import ctypes
import functools
import os
import re
import tempfile
import time
from pathlib import Path

import cupy
import numpy as np
from cupy.cuda import runtime as cuda_runtime
from cupy_backends.cuda.api import driver
from rnn_ops.backends.cuda import runtime
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.exactness import relative_error

from . import checks

_NON_PORTABLE_CLUSTER = 14  # CUfunction_attribute
_SAME = 1e-12  # relative difference of two float64 results
_SPUN = 2e-3   # seconds that are waited for without sleeping
_SUCCESS, _NOT_READY = 0, 600  # cudaError_t
_SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""


class Machine:
    """One GPU with our launcher on it: what checks.py, providers.py and training.py need. Used with its device current."""
    xp = cupy  # the array namespace
    patience = 20  # seconds for what should take at most a few: a barrier that not all reach never ends

    def __init__(self, index=0):
        self.runtime = runtime.Runtime(index)
        self.device = self.runtime.device
        self.launcher = Launcher(self.runtime)
        self._attributes = cupy.cuda.Device(index).attributes
        self.cuda_driver = cuda_runtime.driverGetVersion()
        self.clock = 1e3 * self._attributes["ClockRate"]  # cycles a second at most
        self.l2 = self._attributes["L2CacheSize"]
        self._spin = cupy.RawKernel(_SPIN, "spin")

    def current(self):
        """The GPU and its default stream, which is PyTorch's too, so that events see what both do."""
        return self.runtime.default_stream()

    def describe(self):
        """Facts by name, for the screen and the result file."""
        properties = cuda_runtime.getDeviceProperties(self.runtime.index)
        return {
            "name": self.device.name,
            "compute_capability": self.device.compute_capability / 10,
            "multiprocessors": self.device.multiprocessors,
            "clusters": self.device.clusters,
            "shared_memory_per_block": self.device.shared_memory,
            "shared_memory_per_multiprocessor": self._attributes["MaxSharedMemoryPerMultiprocessor"],
            "l2_cache": self.l2,
            "memory": properties["totalGlobalMem"],
            "clock_khz": self._attributes["ClockRate"],
            "measured_clock_khz": round(self.measure_clock() / 1e3),
            "memory_clock_khz": self._attributes["MemoryClockRate"],
            "driver": _driver(),
            "cuda_driver": _version(self.cuda_driver),
            "cuda_runtime": _version(cuda_runtime.runtimeGetVersion()),
            "cupy": cupy.__version__,
            "devices": runtime.count(),
            "truths": self.why_no_truths or "CuPy",
        }

    # --- arrays

    def to_device(self, array):
        return cupy.asarray(array)

    def to_host(self, array):
        self.wait()
        return cupy.asnumpy(array)

    def for_truth(self, array):
        """A NumPy array where truths are computed in float64: on the GPU, if CuPy's own kernels work here."""
        return array if self.why_no_truths else cupy.asarray(array)

    @functools.cached_property
    def why_no_truths(self):
        """Why truths are not computed by CuPy, or None: tried once, against NumPy."""
        for tokens in (True, False):
            problem = checks.draw(3, 2, 5, 6, np.float64, tokens)
            exact = checks.evaluate(problem)
            try:
                found = checks.evaluate(checks.Problem(*map(cupy.asarray, problem.arrays)))
                worst = max(relative_error(self.to_host(found[name]), array) for name, array in exact.items())
            except Exception as error:  # mostly a compiler's, that CUDA's headers are not installed
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return f"NumPy: CuPy's own kernels do not work here: {reason}"
            if not worst < _SAME:
                return f"NumPy: CuPy differs from it in float64 by a relative {worst:.1e}"
        return None

    def empty(self, shape, dtype=np.float32):
        return cupy.empty(shape, dtype)

    def spoil(self, array):
        """Fill with NaN, by no kernel."""
        array.data.memset_async(0xff, array.nbytes)

    def free(self):
        """Give back what nobody uses, so that PyTorch finds room too."""
        cupy.get_default_memory_pool().free_all_blocks()

    def no_pool(self):
        """Every array an allocation of its own, so that a tool sees where it ends."""
        cupy.cuda.set_allocator(None)

    # --- time

    def wait(self):
        """Until all is done; a TimeoutError where that takes longer than ``patience``.

        Raises what CUDA says where a kernel has failed; the device then answers nothing else in this process.
        """
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
        began = time.monotonic()
        while True:
            status = cuda_runtime.eventQuery(event.ptr)
            if status == _SUCCESS:
                return
            if status != _NOT_READY:
                event.synchronize()  # raises
            waited = time.monotonic() - began
            if waited > self.patience:
                raise TimeoutError(f"the GPU has not finished within {self.patience} s: a kernel hangs")
            if waited > _SPUN:
                time.sleep(1e-4)

    def time(self, call, count, delay, before=None):
        """Seconds of ``call(0) ... call(count - 1)`` together on the GPU, and whether nothing but the GPU counts.

        The GPU first spins for ``delay`` seconds, so that all launches are in its queue before the first one starts.
        Where they are not, the time is partly Python's, and the second result is False.

        Parameters
        ----------
        call : callable
            Called with 0, 1, ...; launches and does not wait.
        before : callable or None
            Called likewise, all of it before the clock starts.
        """
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        self._spin((1,), (1,), (np.int64(delay * self.clock),))
        if before:
            for i in range(count):
                before(i)
        start.record()
        for i in range(count):
            call(i)
        end.record()
        queued = cuda_runtime.eventQuery(start.ptr) == _NOT_READY
        self.wait()
        return 1e-3 * cupy.cuda.get_elapsed_time(start, end), queued

    def measure_clock(self):
        """Cycles a second that a multiprocessor makes now, by its own counter against events."""
        cycles = int(0.02 * self.clock)
        rates = []
        for _ in range(3):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            self._spin((1,), (1,), (np.int64(cycles),))
            end.record()
            self.wait()
            rates.append(cycles / (1e-3 * cupy.cuda.get_elapsed_time(start, end)))
        return max(rates)

    # --- kernels

    def recorded(self, call):
        """A function that launches all that ``call`` launches, as one CUDA graph in the current stream.

        ``call`` is run once before, to compile and load what a capture cannot, and once while it is captured, when nothing
        is computed. What memory it takes and gives back belongs to the graph: it comes from a pool of its own.
        """
        pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self.wait()  # the stream does not wait for the current one
        with cupy.cuda.using_allocator(pool.malloc), stream:
            call()
            stream.synchronize()
            stream.begin_capture()
            try:
                call()
            except BaseException:
                with contextlib.suppress(cuda_runtime.CUDARuntimeError):  # of a capture that has failed
                    stream.end_capture()
                raise
            graph = stream.end_capture()

        def launch(_memory=pool):  # which must not go before the graph
            graph.launch()
        return launch

    def program(self, cubin):
        """A function that runs a `microbench.Measurement` of a program, machine code as bytes, and returns its cycles."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "program.cubin")
            with open(path, "wb") as file:
                file.write(cubin)
            module = cupy.RawModule(path=path)
            module.get_function("block_barrier")  # which loads it, before the file goes
        found, sink = cupy.zeros(1, np.int64), cupy.zeros(1024, np.int32)
        scratch = cupy.zeros(2 ** 20, np.float32)

        def run(one):
            function = module.get_function(one.kernel).kernel
            if one.cluster > 8:
                driver.funcSetAttribute(function.ptr, _NON_PORTABLE_CLUSTER, 1)
            found.data.memset_async(0xff, found.nbytes)
            scratch.data.memset_async(0, scratch.nbytes)
            values = [ctypes.c_void_p(array.data.ptr) for array in (found, sink, scratch)]
            addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            start = driver.launchCooperativeKernel if one.cooperative else driver.launchKernel
            tail = () if one.cooperative else (0,)
            start(function.ptr, one.blocks, 1, 1, one.threads, 1, 1, 0, cupy.cuda.get_current_stream().ptr,
                  ctypes.addressof(addresses), *tail)
            return int(self.to_host(found)[0])
        return run

    def occupancy(self, launch):
        """(blocks that a multiprocessor runs at once, clusters that the GPU runs at once or None) for a launch."""
        return self.runtime.occupancy(launch)


def _driver():
    """The driver's release, such as 550.54.15; None where the system does not tell."""
    try:
        found = re.search(r"\d{3}\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group()


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"
