"""The benchmark's GPU (rnn_ops/backends/cuda/cupy_gpu.py) on the real CuPy and cuda_standin.py, for processes.

Our kernels and cuBLAS's products are computed, by the emulator in tests/cuda_host and by NumPy. CuPy's own kernels compute
nothing; so truths are NumPy's, as on a host where CuPy finds no headers of CUDA's.
"""
import ctypes

import cuda_standin


def gpu():
    driver, _ = cuda_standin.install()
    import numpy as np
    from rnn_ops_benchmarks import gpu_work

    from cuda_host import Emulator
    from cuda_host import driver as host_driver
    found = gpu_work.gpu()
    runtime = found.runtime
    version, _ = cuda_standin.cublas_names()
    cublas = ctypes.CDLL(f"libcublas.so.{version}")
    for name, role in cuda_standin.GEMM.items():
        getattr(cublas, f"set_{name}")(ctypes.c_void_p(host_driver.functions()[role]))
    host, now, views = Emulator(runtime.device), [], []
    launch, address = runtime.launch, runtime.address

    def run(launched):
        if now:  # else it is one of CuPy's own, or a micro-benchmark
            host.launch(now[0]._replace(grid=launched.grid, block=launched.block[0], shared=launched.shared),
                        [ctypes.create_string_buffer(value, len(value)) for value in launched.arguments])

    def launch_and_compute(wanted, values):
        now[:] = [wanted]
        try:
            launch(wanted, values)
        finally:
            now.clear()

    def address_of(array):  # which the emulator must know
        views.append(np.frombuffer((ctypes.c_char * array.nbytes).from_address(array.data.ptr), np.uint8))
        host.address(views[-1])
        return address(array)

    runtime.launch, runtime.address, driver.run = launch_and_compute, address_of, run
    return found
