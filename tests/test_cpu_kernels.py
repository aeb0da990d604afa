"""The CPU backend: right on every shape, SIMD level and number of threads, the same bits each time, no stray access."""
import concurrent.futures
import ctypes
import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrence_cases import check, random_case, run
from rnn_ops.backends import arguments, cpu

HERE = os.path.dirname(os.path.abspath(__file__))

# 1s, primes, and sizes around every tile: 6 or 12 rows, panels of 4 to 32 columns, blocks of 256 for sums (128 for gradients').
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 1, 8), (3, 5, 2, 9), (2, 6, 3, 15), (5, 7, 3, 16), (2, 11, 4, 17),
          (3, 12, 5, 31), (2, 13, 3, 32), (7, 1, 4, 33), (4, 4, 9, 65), (2, 25, 7, 127), (3, 2, 5, 129),
          (2, 33, 8, 255), pytest.param((64, 32, 77, 256), marks=pytest.mark.slow), (3, 9, 70, 257), (2, 3, 10, 513),
          (5, 27, 259, 6), (2, 64, 257, 13), (67, 1, 2, 3), (1, 70, 77, 100),
          (2, 10, 5, 512), (2, 19, 3, 1024)]  # rows 4 KiB apart, float64 and float32, and more than a set of the L1 cache holds


@pytest.fixture(params=cpu.simd_levels())
def simd(request, monkeypatch):
    monkeypatch.setenv("RNN_OPS_SIMD", request.param)
    assert cpu.simd() == request.param


@pytest.mark.parametrize("activation", arguments.ACTIVATIONS)
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_forward_and_backward(simd, shape, dtype, tokens, activation):
    check(cpu, shape, dtype, tokens, activation=activation)


@pytest.mark.parametrize("activation", arguments.ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_stays_nan(simd, dtype, activation):
    arrays, doutputs, _ = random_case((3, 3, 5, 33), dtype, tokens=True)
    arrays[1][2, 7] = np.nan  # the state of the last row, which ends within a vector
    outputs = np.zeros_like(doutputs)
    cpu.forward(*arrays, outputs, activation=activation)
    assert np.isnan(outputs[:, 2]).all() and np.isfinite(outputs[:, :2]).all()


def test_another_activation_is_refused():
    arrays, doutputs, dlast_state = random_case((2, 3, 4, 5), "float32", tokens=True)
    outputs, gradient = np.zeros_like(doutputs), np.zeros_like(arrays[3])
    with pytest.raises(ValueError, match="activation: got 'gelu', needs 'tanh' or 'relu'"):
        cpu.forward(*arrays, outputs, activation="gelu")
    with pytest.raises(ValueError, match="activation: got None, needs 'tanh' or 'relu'"):
        cpu.backward(*arrays[:4], outputs, doutputs, dlast_state, dWhh=gradient, activation=None)
    assert (outputs == 0).all() and (gradient == 0).all()


def test_relu_is_0_with_derivative_0_at_0():
    arrays = [np.zeros(shape, "float32") for shape in [(2, 3, 4), (3, 17), (4, 17), (17, 17), (17,)]]
    ones = np.ones((2, 3, 17), "float32")
    results = run(cpu, arrays, ones, ones[0], activation="relu")
    assert (results["outputs"] == 0).all() and (results["dbh"] == 0).all()


@settings(max_examples=150)
@given(T=st.integers(1, 9), B=st.integers(1, 40), I=st.integers(1, 90), H=st.integers(1, 140),
       dtype=st.sampled_from(["float32", "float64"]), tokens=st.booleans(), level=st.sampled_from(cpu.simd_levels()),
       activation=st.sampled_from(arguments.ACTIVATIONS), seed=st.integers(0, 2 ** 31))
def test_any_shape(T, B, I, H, dtype, tokens, level, activation, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNN_OPS_SIMD", level)
        check(cpu, (T, B, I, H), dtype, tokens, seed, activation)


@pytest.mark.parametrize("wanted", [("dstate",), ("dWxh",), ("dWhh",), ("dbh",), ("dinputs",), ()])
def test_each_gradient_alone_and_gradients_left_out(wanted):
    case = random_case((4, 5, 6, 20), "float64", tokens=False)
    everything = run(cpu, *case)
    arrays, doutputs, dlast_state = case
    shapes = dict(zip(("dinputs", "dstate", "dWxh", "dWhh", "dbh"), (array.shape for array in arrays)))
    gradients = {name: np.full(shapes[name], np.nan) for name in wanted}
    cpu.backward(*arrays[:4], everything["outputs"], doutputs, dlast_state, **gradients)
    for name in wanted:
        assert np.array_equal(gradients[name], everything[name])


@pytest.mark.parametrize("left_out", ["doutputs", "dlast_state", "both"])
def test_no_gradient_means_zeros(left_out):
    arrays, doutputs, dlast_state = random_case((4, 5, 6, 20), "float64", tokens=True)
    given_ = {"doutputs": doutputs, "dlast_state": dlast_state}
    zeros = {name: np.zeros_like(array) if left_out in (name, "both") else array for name, array in given_.items()}
    nones = {name: None if left_out in (name, "both") else array for name, array in given_.items()}
    outputs = run(cpu, arrays, doutputs, dlast_state)["outputs"]
    results = []
    for gradient in zeros, nones:
        results.append(np.full_like(arrays[3], np.nan))
        cpu.backward(*arrays[:4], outputs, gradient["doutputs"], gradient["dlast_state"], dWhh=results[-1])
    assert np.array_equal(*results)


@pytest.mark.parametrize("activation", arguments.ACTIVATIONS)
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 33, 77, 256), (3, 64, 10, 100), (64, 32, 77, 256)],
                         ids=lambda shape: "x".join(map(str, shape)))
def test_bits_do_not_depend_on_threads(monkeypatch, shape, dtype, tokens, activation):
    case = random_case(shape, dtype, tokens)
    results = []
    for threads in 1, 2, 3, 7:
        monkeypatch.setenv("RNN_OPS_NUM_THREADS", str(threads))
        assert cpu.threads() == threads
        results.append(run(cpu, *case, activation=activation))
    for name in results[0]:
        assert all(np.array_equal(results[0][name], other[name]) for other in results[1:]), name


FUSED = [level for level in cpu.simd_levels() if level != "baseline"]  # those with fused multiply-adds


def on_each(levels, evaluate):
    """What `evaluate` returns on each SIMD level."""
    results = []
    for level in levels:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RNN_OPS_SIMD", level)
            results.append(evaluate())
    return results


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has one SIMD level with fused multiply-adds")
@pytest.mark.parametrize("activation", arguments.ACTIVATIONS)
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bits_do_not_depend_on_the_simd_level(shape, dtype, tokens, activation):
    case = random_case(shape, dtype, tokens)
    first, *others = on_each(FUSED, lambda: run(cpu, *case, activation=activation))
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has one SIMD level with fused multiply-adds")
@settings(max_examples=100, deadline=None)
@given(T=st.integers(1, 5), B=st.integers(1, 60), I=st.integers(1, 300), H=st.integers(1, 600),
       dtype=st.sampled_from(["float32", "float64"]), tokens=st.booleans(), seed=st.integers(0, 2 ** 31))
def test_bits_do_not_depend_on_the_simd_level_at_any_shape(T, B, I, H, dtype, tokens, seed):
    case = random_case((T, B, I, H), dtype, tokens, seed)
    first, *others = on_each(FUSED, lambda: run(cpu, *case))
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has one SIMD level with fused multiply-adds")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_has_the_same_bits_on_each_level(dtype):
    x = every_float32(1e-30, 30, 1009).astype(dtype)
    x = np.concatenate([x, -x, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)])
    first, *others = on_each(FUSED, lambda: cpu.tanh(x).tobytes())
    assert others and all(other == first for other in others)


def test_a_row_does_not_depend_on_its_neighbours():
    arrays, doutputs, dlast_state = random_case((5, 23, 9, 70), "float32", tokens=True)
    inputs, state, *weights = arrays
    whole = run(cpu, arrays, doutputs, dlast_state)
    for rows in slice(0, 1), slice(3, 5), slice(4, 11), slice(10, 23):
        part = run(cpu, [np.ascontiguousarray(inputs[:, rows]), state[rows].copy(), *weights],
                   np.ascontiguousarray(doutputs[:, rows]), dlast_state[rows].copy())
        assert np.array_equal(part["outputs"], whole["outputs"][:, rows])
        assert np.array_equal(part["dstate"], whole["dstate"][rows])


def test_same_bits_every_time():
    case = random_case((16, 32, 77, 256), "float32", tokens=False)
    first = run(cpu, *case)
    for _ in range(20):
        again = run(cpu, *case)
        assert all(np.array_equal(first[name], again[name]) for name in first)


def test_concurrent_callers():
    cases = [random_case((9, 20 + i, 11, 90), "float32", tokens=i % 2 == 0, seed=i) for i in range(4)]
    alone = [run(cpu, *case) for case in cases]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: [run(cpu, *case) for case in cases], range(40)):
            for got, expected in zip(results, alone):
                assert all(np.array_equal(got[name], expected[name]) for name in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", "2")
    arrays, doutputs, _ = random_case((20, 32, 7, 128), "float32", tokens=True)
    outputs = np.empty_like(doutputs)
    cpu.forward(*arrays, outputs)  # the parent's threads are running now
    child = os.fork()
    if child == 0:
        again = np.full_like(outputs, np.nan)
        cpu.forward(*arrays, again)
        os._exit(0 if np.array_equal(again, outputs) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("variables, threads", [
    ({"RNN_OPS_NUM_THREADS": "1"}, 1), ({"RNN_OPS_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": "1"}, 1),
    ({"OMP_NUM_THREADS": "2"}, 2), ({"RNN_OPS_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2)])
def test_thread_limits_are_obeyed(tmp_path, variables, threads):
    """In a process of its own, whose threads are counted before and after; NumPy and MXNet have started theirs at import."""
    code = (
        "import os, numpy as np; from rnn_ops.backends import cpu\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "x, h0, Wxh, Whh, bh = (np.zeros(n, 'f') for n in [(8, 64, 9), (64, 256), (9, 256), (256, 256), 256])\n"
        "h = np.zeros((8, 64, 256), 'f')\n"
        "cpu.forward(x, h0, Wxh, Whh, bh, h)\n"
        "cpu.backward(x, h0, Wxh, Whh, h, h, None, dWhh=np.empty_like(Whh), dWxh=np.empty_like(Wxh))\n"
        "print(cpu.threads(), len(os.listdir('/proc/self/task')) - before + 1)")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", code], env=dict(environment, **variables), check=True,
                         cwd=str(tmp_path), stdout=subprocess.PIPE, text=True)
    assert ran.stdout.split() == [str(threads), str(threads)]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("variables, wanted, threads", [
    ({}, 1, 1), ({}, 3, 3), ({"OMP_NUM_THREADS": "1"}, 2, 2), ({"RNN_OPS_NUM_THREADS": "2"}, 1, 2),
    ({"OMP_NUM_THREADS": "2"}, 0, 2)])
def test_a_call_names_its_most_threads(tmp_path, variables, wanted, threads):
    """RNN_OPS_NUM_THREADS comes first. The gradients are large enough to be filled with zeros by several threads."""
    code = (
        "import os, numpy as np; from rnn_ops.backends import arguments, cpu\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "given = [np.zeros(n, 'f') for n in [(8, 64, 300), (64, 256), (300, 256), (256, 256), 256]]\n"
        "h, signature, at = np.zeros((8, 64, 256), 'f'), arguments.check(*given), [array.ctypes.data for array in given]\n"
        f"cpu.run_forward(signature, 'tanh', {wanted}, None, *at, h.ctypes.data)\n"
        "written = [np.empty_like(array) for array in [*given, h]]\n"
        f"cpu.run_backward(signature, 'tanh', {wanted}, None, *at[:4], h.ctypes.data, h.ctypes.data, None,\n"
        "                 *[array.ctypes.data for array in written])\n"
        "print(len(os.listdir('/proc/self/task')) - before + 1)")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", code], env=dict(environment, **variables), check=True,
                         cwd=str(tmp_path), stdout=subprocess.PIPE, text=True)
    assert ran.stdout.split() == [str(threads)]


class OpenMP:
    """The function of an OpenMP runtime that shares work among threads, and what it was called with."""

    def __init__(self, times):
        self.counts = []
        kind = ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

        def parallel(body, data, threads, flags):
            self.counts.append(threads)
            running = [threading.Thread(target=body, args=(data,)) for _ in range(times)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()

        self._function = kind(parallel)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value


@pytest.mark.parametrize("times", [1, 2, 5])
def test_an_openmp_runtime_shares_the_work(monkeypatch, times):
    """It may run the body as often as it likes. The results keep their bits."""
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", "3")
    arrays, doutputs, _ = random_case((9, 37, 70, 130), "float32", tokens=False)
    results = []
    for openmp in None, OpenMP(times):
        outputs, gradients = np.empty_like(doutputs), [np.full_like(array, np.nan) for array in arrays]
        signature, at = arguments.check(*arrays), [array.ctypes.data for array in arrays]
        address, da = openmp and openmp.address, np.empty_like(outputs)
        cpu.run_forward(signature, "tanh", 0, address, *at, outputs.ctypes.data)
        cpu.run_backward(signature, "tanh", 0, address, *at[:4], outputs.ctypes.data, doutputs.ctypes.data, None,
                         *[array.ctypes.data for array in [*gradients, da]])
        results.append([outputs, *gradients])
    assert len(openmp.counts) > 3 and set(openmp.counts) <= {2, 3}
    for own, shared in zip(*results):
        assert np.array_equal(own, shared)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_leaves_openmp_alone():
    arrays, doutputs, _ = random_case((20, 32, 7, 128), "float32", tokens=True)
    outputs, signature = np.empty_like(doutputs), arguments.check(*arrays)
    at = [array.ctypes.data for array in [*arrays, outputs]]
    openmp = OpenMP(2)
    cpu.run_forward(signature, "tanh", 2, openmp.address, *at)
    called = len(openmp.counts)
    child = os.fork()
    if child == 0:
        again = np.full_like(outputs, np.nan)
        cpu.run_forward(signature, "tanh", 2, openmp.address, *at[:5], again.ctypes.data)
        os._exit(0 if np.array_equal(again, outputs) and len(openmp.counts) == called else 1)
    assert called and os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_an_error(monkeypatch, value):
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", value)
    arrays, doutputs, _ = random_case((2, 3, 4, 5), "float32", tokens=False)
    outputs = np.full_like(doutputs, np.nan)
    with pytest.raises(ValueError, match="RNN_OPS_NUM_THREADS: got '%s', needs" % value):
        cpu.forward(*arrays, outputs)
    assert np.isnan(outputs).all()


def test_an_unknown_simd_level_is_an_error(monkeypatch):
    monkeypatch.setenv("RNN_OPS_SIMD", "mmx")
    with pytest.raises(ValueError, match="RNN_OPS_SIMD: got 'mmx', needs one of .*baseline"):
        run(cpu, *random_case((2, 3, 4, 5), "float32", tokens=True))


@pytest.mark.parametrize("token, position", [(-1, (0, 0)), (5, (1, 2)), (2 ** 31 - 1, (2, 3)), (-2 ** 31, (1, 0))])
def test_a_token_outside_the_vocabulary_is_an_error(token, position):
    arrays, doutputs, dlast_state = random_case((3, 4, 5, 6), "float32", tokens=True)
    outputs = run(cpu, arrays, doutputs, dlast_state)["outputs"]
    arrays[0][position] = token
    message = r"inputs: got token %d at \[%d, %d\], needs 0 <= token < 5" % (token, *position)
    untouched = np.full_like(outputs, np.nan)
    with pytest.raises(ValueError, match=message):
        cpu.forward(*arrays, untouched)
    gradient = np.full_like(arrays[3], np.nan)
    with pytest.raises(ValueError, match=message):
        cpu.backward(*arrays[:4], outputs, doutputs, dlast_state, dWhh=gradient)
    assert np.isnan(untouched).all() and np.isnan(gradient).all()


BAD_BUFFERS = {
    "not an array": (lambda a: a.tolist(), TypeError, "needs a NumPy array"),
    "dtype": (lambda a: a.astype("float64"), TypeError, "got dtype float64, needs float32"),
    "shape": (lambda a: np.concatenate([a, a]), ValueError, r"got shape \(.*\), needs \("),
    "strided": (lambda a: np.asfortranarray(a) if a.ndim > 1 else np.repeat(a, 2)[::2], ValueError, "needs a C-contiguous"),
    "unaligned": (lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1, count=a.size).reshape(a.shape),
                  ValueError, "unaligned"),
}


@pytest.mark.parametrize("fault", BAD_BUFFERS)
@pytest.mark.parametrize("name", ["outputs", "doutputs", "dlast_state", "dinputs", "dstate", "dWxh", "dWhh", "dbh"])
def test_buffers_that_do_not_fit_are_errors(name, fault):
    spoil, error, message = BAD_BUFFERS[fault]
    arrays, doutputs, dlast_state = random_case((3, 4, 5, 6), "float32", tokens=False)
    outputs = run(cpu, arrays, doutputs, dlast_state)["outputs"]
    buffers = dict(outputs=outputs, doutputs=doutputs, dlast_state=dlast_state,
                   **{"d" + n: np.empty_like(a) for n, a in zip(arguments.NAMES, arrays)})
    buffers[name] = spoil(buffers[name])
    with pytest.raises(error, match=name + ": .*" + message):
        cpu.backward(*arrays[:4], **buffers)


@pytest.mark.parametrize("name", [*arguments.NAMES, "outputs"])
def test_none_instead_of_an_array_is_an_error(name):
    arrays, doutputs, _ = random_case((3, 4, 5, 6), "float32", tokens=False)
    buffers = dict(zip(arguments.NAMES, arrays), outputs=doutputs)
    buffers[name] = None
    with pytest.raises(TypeError, match=name + ": got NoneType"):
        cpu.forward(**buffers)


def test_read_only_and_strided_arguments():
    arrays, doutputs, dlast_state = random_case((3, 4, 5, 6), "float32", tokens=False)
    for array in (*arrays, doutputs, dlast_state):
        array.flags.writeable = False  # inputs may be
    assert np.isfinite(run(cpu, arrays, doutputs, dlast_state)["dWhh"]).all()
    with pytest.raises(ValueError, match="outputs: got a read-only array"):
        cpu.forward(*arrays, doutputs)
    with pytest.raises(ValueError, match="Whh: got a strided"):
        cpu.forward(*arrays[:3], arrays[3].T, arrays[4], np.empty_like(doutputs))
    with pytest.raises(ValueError, match="dinputs: got an array, needs None"):
        tokens = random_case((3, 4, 5, 6), "float32", tokens=True)[0]
        cpu.backward(*tokens[:4], doutputs, doutputs, dlast_state, dinputs=np.empty((3, 4, 5), "f"))


def every_float32(low, high, step):
    """Every `step`-th float32 from low to high, both positive."""
    first, last = np.array([low, high], np.float32).view(np.int32)
    return np.arange(first, last, step, dtype=np.int32).view(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.slow
def test_tanh(simd, dtype):
    """At most 4 ulp. (Measured with AVX2 over every float32 from 1e-30 to 10: 2.57; over 8 million float64: 2.55.)"""
    x = every_float32(1e-30, 30, 101)
    if dtype == "float64":
        x = x.astype(dtype) * (1 + 1e-9)
    got = cpu.tanh(x)
    truth = np.tanh(x.astype(np.longdouble))
    ulp = np.spacing(truth.astype(dtype))
    assert np.max(np.abs(got - truth) / ulp) <= 4
    assert np.array_equal(cpu.tanh(-x), -got)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, np.finfo(dtype).smallest_subnormal], dtype)
    expected = np.array([0.0, -0.0, 1, -1, np.nan, 1, -1, np.finfo(dtype).smallest_subnormal], dtype)
    assert cpu.tanh(special).tobytes() == expected.tobytes()


def test_nan_stays_nan_in_backward():
    arrays, doutputs, dlast_state = random_case((3, 4, 5, 33), "float32", tokens=True)
    arrays[1][2, 7] = np.nan  # the state of row 2
    results = run(cpu, arrays, doutputs, dlast_state)
    assert np.isnan(results["dbh"]).all()


def test_saturated_states_have_no_gradient():
    arrays, doutputs, dlast_state = random_case((3, 4, 5, 33), "float32", tokens=True)
    arrays[4][:] = 50  # bh: tanh is 1 to the last bit
    results = run(cpu, arrays, doutputs, dlast_state)
    assert (results["outputs"] == 1).all()
    assert all((results[name] == 0).all() for name in results if name != "outputs")


# --- the sources, compiled for a watched run ------------------------------------------------------------------------

def load_setup():
    spec = importlib.util.spec_from_file_location("rnn_ops_setup", os.path.join(HERE, "..", "setup.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_driver(folder, flags, flags_of=None):
    """Compiles the kernels and tests/kernels_driver.cc with extra flags: the program."""
    setup = load_setup()
    objects = setup.compile_sources(str(folder), flags_of=flags_of or setup.KERNEL_FLAGS, extra=flags)
    program = str(folder / "driver")
    setup.run([setup.find_compiler() + ["-std=c++17", "-pthread", "-I", os.path.join(setup.HERE, setup.KERNELS), *flags,
                                        os.path.join(HERE, "kernels_driver.cc"), *objects, "-o", program]])
    return program


def run_driver(program, **variables):
    """What the program prints; it fails where a result is wrong."""
    environment = dict(os.environ, RNN_OPS_NUM_THREADS="3", TSAN_OPTIONS="halt_on_error=1", **variables)
    ran = subprocess.run([program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.slow
def test_sanitizers(tmp_path, sanitizer):
    flags = ["-fsanitize=" + sanitizer, "-fno-sanitize-recover=all", "-g", "-O1"]
    assert "float32" in run_driver(build_driver(tmp_path, flags))


@pytest.mark.skipif("avx2" not in cpu.simd_levels(), reason="needs AVX2 to stand in for AVX-512")
@pytest.mark.slow
def test_avx512_code_on_narrower_hardware(tmp_path):
    """Vectors of 64 bytes and tiles of 12 rows, compiled to pairs of AVX2 instructions: the logic of the AVX-512 level
    runs on any machine, with the bits of AVX2; only the instructions themselves need the processor."""
    setup = load_setup()
    flags_of = {**setup.KERNEL_FLAGS, "isa_avx512.cc": setup.KERNEL_FLAGS["isa_avx2.cc"]}
    program = build_driver(tmp_path, ["-O1", "-D__builtin_cpu_supports(feature)=1"], flags_of)
    wide, narrow = (run_driver(program, RNN_OPS_SIMD=level) for level in ("avx512", "avx2"))
    assert wide.startswith("avx512") and narrow.startswith("avx2") and "bits" in wide
    assert wide.split("bits")[1] == narrow.split("bits")[1]
