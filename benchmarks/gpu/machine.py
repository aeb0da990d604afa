"""The GPU: its facts, arrays there and back, waiting with an end, and timing by events."""
import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cupy
import numpy as np
from cupy.cuda import runtime as cuda_runtime
from rnn_ops.backends.cuda import runtime
from rnn_ops.backends.cuda.launcher import Launcher

PATIENCE = 60  # seconds for what should take milliseconds: a barrier that not all reach never ends
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

    def __init__(self, index=0):
        self.runtime = runtime.Runtime(index)
        self.device = self.runtime.device
        self.launcher = Launcher(self.runtime)
        self._attributes = cupy.cuda.Device(index).attributes
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
            "shared_memory_per_block": self.device.shared_memory,
            "shared_memory_per_multiprocessor": self._attributes["MaxSharedMemoryPerMultiprocessor"],
            "l2_cache": self.l2,
            "memory": properties["totalGlobalMem"],
            "clock_khz": self._attributes["ClockRate"],
            "measured_clock_khz": round(self.measure_clock() / 1e3),
            "memory_clock_khz": self._attributes["MemoryClockRate"],
            "driver": _driver(),
            "cuda_driver": _version(cuda_runtime.driverGetVersion()),
            "cuda_runtime": _version(cuda_runtime.runtimeGetVersion()),
            "cupy": cupy.__version__,
        }

    # --- arrays

    def to_device(self, array):
        return cupy.asarray(array)

    def to_host(self, array):
        self.wait()
        return cupy.asnumpy(array)

    def empty(self, shape, dtype=np.float32):
        return cupy.empty(shape, dtype)

    def free(self):
        """Give back what nobody uses, so that PyTorch finds room too."""
        cupy.get_default_memory_pool().free_all_blocks()

    def no_pool(self):
        """Every array an allocation of its own, so that a tool sees where it ends."""
        cupy.cuda.set_allocator(None)

    # --- time

    def wait(self):
        """Until all is done; a TimeoutError where that takes longer than PATIENCE.

        Raises what CUDA says where a kernel has failed; the device then answers nothing else in this process.
        """
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
        deadline = time.monotonic() + PATIENCE
        while True:
            status = cuda_runtime.eventQuery(event.ptr)
            if status == _SUCCESS:
                return
            if status != _NOT_READY:
                event.synchronize()  # raises
            if time.monotonic() > deadline:
                raise TimeoutError(f"the GPU has not finished within {PATIENCE} s: a kernel hangs")
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

    def compile(self, variants, progress=None):
        """Compile the kernels of ``variants`` on all cores, before they are needed one by one.

        CuPy's cache on disk then has them. What does not compile is not told here but by the launch that needs it.
        """
        wanted = dict.fromkeys(variant.kernel(direction) for variant in variants
                               if variant.family != "stepwise" for direction in ("Forward", "Backward"))

        def compile_one(kernel):
            with self.current(), contextlib.suppress(cupy.cuda.compiler.CompileException):
                self.runtime.compile(kernel)

        with ThreadPoolExecutor() as pool:
            for number, _ in enumerate(pool.map(compile_one, wanted), 1):
                if progress:
                    progress(number, len(wanted))


def _driver():
    """The driver's release, such as 550.54.15; None where the system does not tell."""
    try:
        found = re.search(r"\d{3}\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group()


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"
