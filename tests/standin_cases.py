"""rnn_ops/backends/cuda on the real CuPy with stand-ins below it (cuda_standin.py): run by test_cuda_standin.py, in a process
that finds the stand-in driver.

The launches are run by the machine of tests/cuda_host on the arrays' memory, the products by NumPy.
"""
import ctypes

import numpy as np
import pytest

import cuda_standin

DRIVER, RUNTIME = cuda_standin.install()

import cupy  # noqa: E402
from cuda_host import Host  # noqa: E402
from cuda_host import driver as host_driver  # noqa: E402
from recurrence_cases import check, random_case  # noqa: E402
from rnn_ops.backends import cuda  # noqa: E402
from rnn_ops.backends.cuda import compiler, sources, variants  # noqa: E402

VERSION, _ = cuda_standin.cublas_names()
SHAPES = {"resident": (3, 5, 7, 33), "cluster": (3, 3, 5, 257), "grid": (3, 2, 5, 1030), "stepwise": (3, 5, 4, 300)}


class OnCuPy:
    """`cuda` for NumPy arrays: copied to CuPy's and back."""

    def forward(self, *arrays, **options):
        self._call(cuda.forward, arrays, options)

    def backward(self, *arrays, **options):
        self._call(cuda.backward, arrays, options)

    def _call(self, function, arrays, options):
        copies = [cupy.asarray(value) for value in arrays]
        named = {name: cupy.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
        function(*copies, **named)
        for value, copy in [*zip(arrays, copies), *((options[name], named[name]) for name in named)]:
            if isinstance(value, np.ndarray):
                value[...] = cupy.asnumpy(copy)


@pytest.fixture(scope="module")
def gpu():
    """GPU 0, whose cuBLAS is NumPy."""
    gpu = cuda.gpu(0)
    cublas = ctypes.CDLL(f"libcublas.so.{VERSION}")
    for name, role in cuda_standin.GEMM.items():
        getattr(cublas, f"set_{name}")(ctypes.c_void_p(host_driver.functions()[role]))
    return gpu


@pytest.fixture
def computed(gpu, monkeypatch):
    """Inside, launches of our kernels compute. The list of all `Launch`es."""
    host, asked, launch, address, views = Host(gpu.device), [], type(gpu).launch, type(gpu).address, []

    def run(launched):
        wanted = asked[-1]
        assert launched.function.name == wanted.kernel.name and launched.block[1:] == (1, 1)
        assert launched.cooperative == wanted.cooperative
        host.launch(wanted._replace(grid=launched.grid, block=launched.block[0], shared=launched.shared),
                    [ctypes.create_string_buffer(value, len(value)) for value in launched.arguments])

    def address_of(self, array):  # which the machine must know
        memory = (ctypes.c_char * array.nbytes).from_address(array.data.ptr)
        views.append(np.frombuffer(memory, np.uint8))
        host.address(views[-1])
        return address(self, array)

    monkeypatch.setattr(type(gpu), "launch", lambda self, wanted, values: (asked.append(wanted), launch(self, wanted, values)))
    monkeypatch.setattr(type(gpu), "address", address_of)
    monkeypatch.setattr(DRIVER, "run", run)
    yield asked
    assert DRIVER.errors == [] and host_driver.errors == []


def test_it_finds_the_gpu():
    assert cuda.why_not() is None and cuda.platform().count() == 1
    assert cuda.devices() == [variants.Device("Stand-in H100", 90, 232448, 132, (66, 31, 15, 7))]
    assert cuda.platform().versions() == {
        11: f"CuPy {cupy.__version__} for CUDA 11.8, driver for CUDA 12.4",
        13: f"CuPy {cupy.__version__} for CUDA 13.0, driver for CUDA 13.0"}[VERSION]


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("family", variants.FAMILIES)
def test_values_and_gradients(computed, family, tokens):
    check(OnCuPy(), SHAPES[family], "float32", tokens, variant=family)
    assert {launch.kernel.family for launch in computed} <= {family, "sums"}
    assert any(launch.kernel.family == family for launch in computed)


def test_double_precision(computed):
    check(OnCuPy(), (3, 5, 4, 33), "float64", False)
