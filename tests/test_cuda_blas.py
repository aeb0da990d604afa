"""cuBLAS through its C functions, with NumPy behind them (tests/cuda_host/driver.py)."""
import threading

import numpy as np
import pytest

from cuda_host import driver
from rnn_ops.backends.cuda.blas import Blas


@pytest.fixture
def blas():
    yield Blas(driver.functions())
    driver.fail_with.clear()


def multiply(blas, a, b, out, stream=0x5000, transpose_a=False, transpose_b=False, accumulate=False):
    matrices = [(array.ctypes.data, *array.shape) for array in (a, b, out)]
    driver.errors.clear()
    blas.multiply(stream, out.dtype, *matrices, transpose_a, transpose_b, accumulate)
    assert driver.errors == []


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products(blas, dtype, transpose_a, transpose_b, accumulate):
    random = np.random.default_rng(0)
    a, b, out = (random.standard_normal(shape).astype(dtype) for shape in (
        (5, 3) if transpose_a else (3, 5), (4, 5) if transpose_b else (5, 4), (3, 4)))
    expected = (a.T if transpose_a else a) @ (b.T if transpose_b else b) + accumulate * out
    multiply(blas, a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate)
    np.testing.assert_allclose(out, expected, rtol=1e-5 if dtype == "float32" else 1e-13)


def test_each_product_is_in_the_stream_it_is_given_and_a_thread_has_one_handle(blas):
    a, handles = np.ones((2, 2)), len(driver._handles)
    driver.streams.clear()
    for stream in 0x5000, 0x6000, 0x5000:
        multiply(blas, a, a, np.empty((2, 2)), stream)
    assert driver.streams == [0x5000, 0x6000, 0x5000] and len(driver._handles) == handles + 1
    thread = threading.Thread(target=multiply, args=(blas, a, a, np.empty((2, 2))))
    thread.start()
    thread.join()
    assert len(driver._handles) == handles + 2


def test_threads_have_handles_of_their_own_and_the_next_ones_take_them_over(blas):
    a, handles = np.ones((2, 2)), len(driver._handles)
    barrier, had_one = threading.Barrier(2), []

    def use():
        had_one.append(blas.has_handle())
        barrier.wait()
        multiply(blas, a, a, np.empty((2, 2)))
        barrier.wait()
        had_one.append(blas.has_handle())

    for _ in range(3):
        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert had_one == [False] * 2 + [True] * 10 and len(driver._handles) == handles + 2


@pytest.mark.parametrize("function, sentence", [
    ("create_handle", "cublasCreate failed with status 13"), ("set_stream", "cublasSetStream failed with status 13"),
    ("multiply_float", "cublas gemm failed with status 13")])
def test_a_failure_of_cublas_is_an_error(blas, function, sentence):
    a = np.ones((2, 2), "float32")
    driver.fail_with[function] = 13
    with pytest.raises(RuntimeError, match=sentence):
        multiply(blas, a, a, np.empty_like(a))
    driver.fail_with.clear()
    multiply(blas, a, a, np.empty_like(a))
