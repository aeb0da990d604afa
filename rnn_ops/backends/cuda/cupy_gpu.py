"""A GPU as self-tests, the workload and benchmarks use it: facts, arrays, waiting with an end, timing by events, graphs.

numpy_gpu.py has a stand-in with the same methods, which computes in NumPy.
"""
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

from rnn_ops import exactness
from rnn_ops.backends.cuda import runtime
from rnn_ops.backends.cuda.launcher import Launcher

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


class Gpu:
    """One GPU with our launcher on it. Use it inside ``with gpu.current():``."""
    xp = cupy  # the array namespace
    patience = 20  # seconds to wait for work of a few: a barrier that some threads never reach does not end

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
        """The GPU and its default stream. PyTorch uses the same one, so events see the work of both."""
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
            problem = exactness.draw(3, 2, 5, 6, np.float64, tokens)
            exact = exactness.evaluate(problem)
            try:
                found = exactness.evaluate(problem.map(cupy.asarray))
                worst = max(exactness.relative_error(self.to_host(found[name]), array) for name, array in exact.items())
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
        """Give unused memory back to the driver, so that PyTorch finds room too."""
        cupy.get_default_memory_pool().free_all_blocks()

    def no_pool(self):
        """From now on allocate every array by itself, so that a memory checker sees where it ends."""
        cupy.cuda.set_allocator(None)

    # --- time

    def wait(self):
        """Wait until all work is done; a TimeoutError if that takes longer than ``patience``.

        Raises CUDA's error if a kernel has failed; the GPU then does nothing more in this process.
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
        """Seconds of ``call(0) ... call(count - 1)`` together on the GPU, and whether that is the GPU's time alone.

        The GPU first spins for ``delay`` seconds, so that all launches are in its queue before the first one starts.
        If they are not, the time is partly Python's, and the second result is False.

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
        """Run ``call`` → a function that launches the same as one CUDA graph in the current stream.

        ``call`` is run twice: once for real, which also compiles and loads kernels (a capture forbids that), and once while
        the graph is captured, when nothing is computed. Its temporary memory comes from a pool that belongs to the graph.
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
                with contextlib.suppress(cuda_runtime.CUDARuntimeError):  # the capture has failed already
                    stream.end_capture()
                raise
            graph = stream.end_capture()

        def launch(_memory=pool):  # keeps the graph's memory for as long as the graph
            graph.launch()
        return launch

    def program(self, cubin):
        """A function that runs one micro-benchmark of a program, given as machine code, and returns its cycles.

        A micro-benchmark has ``kernel``, ``blocks``, ``threads``, ``cluster`` and ``cooperative``.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "program.cubin")
            with open(path, "wb") as file:
                file.write(cubin)
            module = cupy.RawModule(path=path)
            module.get_function("block_barrier")  # loads the program, before the file goes
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
    """The driver's release, such as 550.54.15; None where it cannot be read."""
    try:
        found = re.search(r"\d{3}\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group()


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"
