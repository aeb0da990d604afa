"""The CustomOps' CUDA path: places, `req`, autograd and errors, with the emulator of tests/cuda_host for a GPU.

MXNet's build for CPUs has no arrays on a GPU, so where the place `Gpu` is tested, mx.cpu(i) stands for mx.gpu(i): the same
operator, the same launches, only that the memory is the CPU's.
"""
import re

import numpy as np
import pytest

import memory
import rnn_ops
from cuda_host import platform
from rnn_ops import gradcheck, info, operators, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import run as kernels_selftest
from rnn_ops.gradcheck import Case
from rnn_ops.operators import custom, devices
from rnn_ops_cli.main import main

H100 = variants.known_device(90, 8)
PLACES = ["gpu", "offload"]


@pytest.fixture(autouse=True)
def custom_operator(monkeypatch):
    """test_native_gpu.py has the native one."""
    monkeypatch.setenv("RNN_OPS_OPERATOR", "custom")


@pytest.fixture
def gpus():
    with platform(H100, variants.known_device(80, 4)) as found:
        yield found


@pytest.fixture
def place(request, gpus, monkeypatch):
    """Arrays on the CPU are computed on in one of the places that use a GPU. Gives the emulators that do it."""
    if request.param == "gpu":
        monkeypatch.setattr(custom, "device_for", lambda context: devices.Gpu(cuda.gpu(context.device_id)))
        yield gpus
    else:
        rnn_ops.use("cuda")
        yield gpus
        rnn_ops.use("cpu")


in_each_place = pytest.mark.parametrize("place", PLACES, indirect=True)


@in_each_place
@pytest.mark.slow
def test_gradients(place):
    cases = [Case("sequence", *shape, input=kind) for shape in [(1, 1, 1, 1), (3, 2, 5, 7), (4, 5, 3, 33)]
             for kind in ("dense", "tokens")]
    cases += [Case("sequence", 3, 2, 5, 7, "tokens", activation="relu"), Case("step", 1, 3, 2, 5, activation="relu"),
              Case("step", 1, 3, 2, 5), Case("step", 1, 3, 2, 5, "tokens"),
              Case("sequence", 3, 2, 5, 7, "tokens", "flat"), Case("sequence", 3, 2, 5, 7, "dense", "saturated")]
    rows = gradcheck.check(cases=cases)
    assert [row for row in rows if not row.passed] == []
    assert {launch.kernel.family for launch in place.emulators[0].launches} >= {"resident", "stepwise", "sums"}


def arrays(tokens=True, H=7, context=None, seed=0):
    (inputs, *floats), cotangents = gradcheck.draw(Case("sequence", 3, 4, 5, H, "tokens" if tokens else "dense"))
    given = [inputs] + [array.astype("float32") for array in floats]
    if not tokens:
        given[0] = inputs.astype("float32")
    return ([mx.nd.array(array, dtype=array.dtype, ctx=context) for array in given],
            [mx.nd.array(array, dtype="float32", ctx=context) for array in cotangents])


def truth(given, cotangents):
    """The reference's gradients in float64, by number of the argument."""
    doubles = [array if array.dtype == np.int32 else array.astype("float64") for array in given]
    for array in doubles[1:]:
        array.attach_grad()
    with mx.autograd.record():
        results = reference.rnn_sequence(*doubles)
    mx.autograd.backward(list(results), [array.astype("float64") for array in cotangents])
    return [result.asnumpy() for result in results], [None] + [array.grad.asnumpy() for array in doubles[1:]]


@in_each_place
@pytest.mark.parametrize("req", ["write", "add", "null"])
def test_every_req_of_a_gradient(place, req):
    given, cotangents = arrays()
    _, wanted = truth(given, cotangents)
    noise = [mx.nd.full(array.shape, 3, dtype=array.dtype) for array in given]
    buffers = [array.copy() for array in noise]
    symbol = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, custom.arguments.NAMES))))
    executor = symbol.bind(mx.cpu(), given, buffers, ["null"] + [req] * 4)
    for _ in range(2):
        executor.forward(is_train=True)
        executor.backward(cotangents)
    times = {"write": 1, "add": 2, "null": 0}[req]
    for buffer, gradient in zip(buffers[1:], wanted[1:]):
        expected = times * gradient + (0 if req == "write" else 3)
        assert np.abs(buffer.asnumpy() - expected).max() <= 1e-5


@in_each_place
@pytest.mark.parametrize("reqs", [("null", "write"), ("write", "null"), ("add", "add"), ("inplace", "write"), ("null", "null")],
                         ids="-".join)
def test_every_req_of_a_result(place, reqs):
    given, cotangents = arrays()
    wanted, _ = truth(given, cotangents)
    operator = custom.Recurrence(custom.device_for(mx.cpu()), step=False)
    results = [mx.nd.full(result.shape, 3) for result in wanted]
    mx.nd.waitall()
    operator.forward(True, list(reqs), given, results, [])
    for result, req, values in zip(results, reqs, wanted):
        expected = {"null": np.full_like(values, 3), "add": values + 3}.get(req, values)
        assert np.abs(result.asnumpy() - expected).max() <= 1e-5


@in_each_place
def test_weights_shared_by_several_calls_and_forward_passes_in_between(place):
    """Two calls before one backward, a call without autograd between them: each backward has its own forward's states."""
    given, _ = arrays()
    for array in given[1:]:
        array.attach_grad(grad_req="add")
    doubles = [array if array.dtype == np.int32 else array.astype("float64") for array in given]
    for array in doubles[1:]:
        array.attach_grad(grad_req="add")
    for function, values in (rnn_ops.rnn_sequence, given), (reference.rnn_sequence, doubles):
        inputs, state, *weights = values
        with mx.autograd.record():
            outputs, last = function(inputs, state, *weights)
            with mx.autograd.pause():
                function(inputs, state * 0, *weights)[0].wait_to_read()
            outputs2, _ = function(inputs, last, *weights)
            loss = (outputs * outputs2).sum()
        loss.backward()
    for ours, theirs in zip(given[1:], doubles[1:]):
        assert gradcheck.relative_error(ours.grad.asnumpy(), theirs.grad.asnumpy()) <= 1e-5


@in_each_place
def test_parameters_changed_in_place_are_used(place):
    given, _ = arrays()
    before = rnn_ops.rnn_sequence(*given)[0].asnumpy()
    for array in given[2:]:
        array *= -0.5
    after = rnn_ops.rnn_sequence(*given)[0].asnumpy()
    wanted = reference.rnn_sequence(*given)[0].asnumpy()
    assert np.abs(after - wanted).max() <= 1e-6 < np.abs(after - before).max()


@in_each_place
@pytest.mark.parametrize("hybridize", [{}, {"static_alloc": True, "static_shape": True}], ids=["alloc", "static"])
def test_in_a_hybridized_block(place, hybridize):
    class Net(mx.gluon.HybridBlock):
        def hybrid_forward(self, F, *values):
            return rnn_ops.rnn_sequence(*values)[0]

    given, cotangents = arrays()
    _, wanted = truth(given, [cotangents[0], cotangents[1] * 0])
    net = Net()
    net.hybridize(**hybridize)
    for array in given[1:]:
        array.attach_grad()
    for _ in range(3):
        with mx.autograd.record():
            outputs = net(*given)
        outputs.backward(cotangents[0])
    for array, gradient in zip(given[1:], wanted[1:]):
        assert gradcheck.relative_error(array.grad.asnumpy(), gradient) <= 1e-5


@in_each_place
def test_errors_come_before_anything_is_launched(place):
    given, _ = arrays()
    given[0][1, 2] = 5
    with pytest.raises(ValueError, match=r"inputs: got token 5 at \[1, 2\], needs 0 <= token < 5"):
        rnn_ops.rnn_sequence(*given)
    symbol = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, custom.arguments.NAMES))))
    executor = symbol.bind(mx.cpu(), given)
    with pytest.raises(mx.MXNetError):
        executor.forward()[0].wait_to_read()
    assert not any(emulator.launches for emulator in place.emulators.values())


@pytest.mark.parametrize("place", ["gpu"], indirect=True)
@pytest.mark.slow
def test_several_gpus_in_one_process(place):
    """Each computes for its own arrays, on the kernels for its own architecture."""
    results = []
    for number in 0, 1:
        given, cotangents = arrays(context=mx.cpu(number), H=230)
        given[1].attach_grad()
        with mx.autograd.record():
            outputs, _ = rnn_ops.rnn_sequence(*given)
        outputs.backward()
        results.append((outputs.asnumpy(), given[1].grad.asnumpy()))
    wanted = reference.rnn_sequence(*arrays(H=230)[0])[0].asnumpy()
    for outputs, _ in results:
        assert np.abs(outputs - wanted).max() <= 1e-5
    assert np.abs(results[0][1] - results[1][1]).max() <= 1e-5
    assert [place.emulators[number].launches[0].kernel.family for number in (0, 1)] == ["cluster", "resident"]


@pytest.mark.parametrize("place", ["gpu"], indirect=True)
def test_on_the_gpu_mxnets_memory_is_used_and_not_copied(place, monkeypatch):
    given, _ = arrays()
    seen = []
    forward = devices.Gpu.forward
    monkeypatch.setattr(devices.Gpu, "forward", lambda self, *values, **options: (
        seen.extend(values), forward(self, *values, **options)))
    outputs, _ = rnn_ops.rnn_sequence(*given)
    outputs.wait_to_read()
    assert [array.ctypes.data for array in seen] == [devices.ndarray.address(array) for array in [*given, outputs]]


def test_nothing_is_copied_without_need(gpus, monkeypatch):
    """For arrays on the CPU: arguments and gradients, and the states one way; what a call copied there goes with it."""
    rnn_ops.use("cuda")
    try:
        given, cotangents = arrays()
        emulator = cuda.gpu(0)
        there, back = [], []
        to_device, to_host = emulator.to_device, emulator.to_host
        monkeypatch.setattr(emulator, "to_device", lambda array: (there.append(array.shape), to_device(array))[1])
        monkeypatch.setattr(emulator, "to_host", lambda array, out=None: (back.append(array.shape), to_host(array, out))[1])
        for array in given[1:]:
            array.attach_grad()
        with mx.autograd.record():
            outputs, _ = rnn_ops.rnn_sequence(*given)
        outputs.wait_to_read()
        shapes = [array.shape for array in given]
        assert there == shapes and back == [outputs.shape]
        there.clear(), back.clear()
        outputs.backward(cotangents[0])
        mx.nd.waitall()
        assert there == shapes[:4] + [outputs.shape, given[1].shape]  # the gradients of both results, not the states
        assert sorted(back) == sorted(shapes[1:])
    finally:
        rnn_ops.use("cpu")


@pytest.mark.parametrize("setting", ["native", ""])
def test_a_gpu_computes_even_if_the_native_operator_is_chosen(gpus, monkeypatch, setting):
    """That one computes where the arrays are."""
    monkeypatch.setenv("RNN_OPS_OPERATOR", setting)
    assert operators.in_use() == "native"
    rnn_ops.use("cuda")
    try:
        assert operators.in_use() == "custom"
        rnn_ops.rnn_sequence(*arrays()[0])[0].wait_to_read()
        assert gpus.emulators[0].launches
    finally:
        rnn_ops.use("cpu")


@pytest.mark.slow
def test_memory_stays_bounded(gpus):
    rnn_ops.use("cuda")
    try:
        given, _ = arrays()
        given[1].attach_grad()

        known = []

        def calls(count):
            for _ in range(count):
                with mx.autograd.record():
                    outputs, _ = rnn_ops.rnn_sequence(*given)
                outputs.backward()
                mx.nd.waitall()  # what is queued has memory too
            emulator = gpus.emulators[0]
            known.append(len(emulator._arrays))
            emulator.launches.clear(), emulator._arrays.clear()  # what the emulator notes down of each is not the operator's

        calls(100)
        # Twice: what something else in the process keeps once is no growth of each call.
        size, blocks = map(min, zip(*(memory.growth(calls, 300) for _ in range(2))))
        assert size < 2 ** 18 and blocks < 200  # one array kept by every call is 300 of Python's blocks
        assert max(known) < 100
    finally:
        rnn_ops.use("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", None, 0, "cpu:0"])
def test_devices_that_do_not_exist(gpus, device):
    with pytest.raises(ValueError, match=r"device: got .*, needs 'cpu', 'cuda' or 'cuda:' and the number of a GPU"):
        rnn_ops.use(device)


def test_a_number_that_no_gpu_has(gpus):
    with pytest.raises(ValueError, match="GPU 2: this process has 2, numbered from 0"):
        rnn_ops.use("cuda:2")
    assert devices.in_use() == "cpu"
    rnn_ops.use("cuda:1")
    try:
        assert devices.in_use() == "cuda:1"
        rnn_ops.rnn_sequence(*arrays()[0])[0].wait_to_read()
        assert list(gpus.emulators) == [1] and gpus.emulators[1].launches
    finally:
        rnn_ops.use("cpu")
    assert devices.in_use() == "cpu"


def test_without_a_gpu_use_says_why():
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError) as raised:
        rnn_ops.use("cuda")
    assert str(raised.value) == cuda.why_not()
    assert devices.in_use() == "cpu"


# ---- the commands

def unwrapped(capfd):
    """What was printed, with its lines put together again."""
    return " ".join(capfd.readouterr().out.split())


@pytest.fixture
def without_processes(monkeypatch):
    """The kernels' self-test runs in processes, which have no stand-in for a GPU; test_cuda_selftest.py has it."""
    monkeypatch.setattr(kernels_selftest, "run", lambda report, full: [])


@pytest.mark.slow
def test_check_runs_on_a_gpu(gpus, without_processes, monkeypatch, capfd):
    monkeypatch.setattr(gradcheck, "default_cases", lambda: [Case("sequence", 3, 2, 5, 7, "tokens"), Case("step", 1, 3, 2, 5)])
    assert main(["check", "--device", "cuda"]) == 0
    assert "custom operator, on sm_90, arrays in mx.cpu() against its reference in MXNet 1.9.1" in unwrapped(capfd)
    assert gpus.emulators[0].launches and devices.in_use() == "cpu"


@pytest.mark.slow
def test_check_fails_where_a_kernel_is_wrong(gpus, without_processes, monkeypatch, capfd):
    monkeypatch.setattr(gradcheck, "default_cases", lambda: [Case("sequence", 3, 2, 5, 7, "tokens")])
    cuda.gpu(0)._edit = lambda family, text: text.replace("(1 - term.h) * (1 + term.h)", "(1 - term.h)")
    assert main(["check", "--device", "cuda"]) == 1
    assert "FAILED sequence T=3 B=2 I=5 H=7 tokens random: float64, reference, dWhh" in unwrapped(capfd)
    assert devices.in_use() == "cpu"


def test_info_says_what_a_gpu_would_run_and_why(gpus, capfd):
    assert main(["info", "--batch-size", "3", "--hidden", "300"]) == 0
    printed = unwrapped(capfd)
    assert "sm_90, compute capability 9.0, 8 multiprocessors, 227 KiB of shared memory a block; newer than MXNet 1.9.1" in printed
    assert re.search(r"GPU 0, B=3, H=300 +cluster: a cluster of \d+ blocks .*; estimated cycles a step \d+; ", printed)
    assert "resident cannot: 300 hidden units: at most 256" in printed
    assert "cluster cannot: compute capability 80: clusters need 90 or more" in printed
    assert "arrays in mx.cpu(i) computed on by the CPU; after rnn_ops.use('cuda') by GPU i" in printed
    assert "after rnn_ops.use('cuda:0') all by GPU 0: each call copies" in printed


def test_info_without_a_gpu_says_why():
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    assert info.collect()["GPU kernels"] == f"none: {cuda.why_not()}"
