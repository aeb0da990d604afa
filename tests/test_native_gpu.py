"""The native operator's GPU half, down to the launch. It is called as MXNet calls it, and the emulator of tests/cuda_host stands
behind the functions of the driver and of cuBLAS.

MXNet's build for CPUs has no arrays on a GPU, so `Native` does MXNet's part: it calls the function that the library has
registered for "gpu" with addresses, shapes and a stream.
"""
import ctypes

import numpy as np
import pytest

from cuda_host import Emulator, driver, platform
from recurrence_cases import check, evaluate, random_case, run
from rnn_ops.backends.cuda import recorder, variants
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.operators import native  # importing it gives the library its recorder

library = ctypes.CDLL(native.library_path())
library._msgGet.restype = None
STREAM, OTHER_STREAM = 0x5000, 0x6000
_TYPES = {np.dtype("float32"): 0, np.dtype("float64"): 1, np.dtype("int32"): 4}
_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


class NativeError(Exception):
    """The sentence that MXNet would raise."""


def _registered():
    """The functions for ("forward" | "backward", "cpu" | "gpu") that the library registers with MXNet."""
    strings, passes = ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_void_p)
    devices, found, count = [strings(), strings()], [passes(), passes()], [ctypes.c_int(), ctypes.c_int()]
    name, number, other = ctypes.c_char_p(), ctypes.c_int(), ctypes.c_void_p()
    ref = ctypes.byref
    library._opRegGet(0, ref(name), ref(number), ref(devices[0]), ref(found[0]), ref(count[0]), ref(devices[1]), ref(found[1]),
                      ref(count[1]), ref(other), ref(other), ref(number), *[ref(ctypes.c_void_p()) for _ in range(5)])
    assert name.value == b"rnn_ops_native"
    return {(direction, devices[i][j].decode()): found[i][j]
            for i, direction in enumerate(("forward", "backward")) for j in range(count[i].value)}


class Native:
    """`forward` and `backward` as every backend has them, through the native operator on an emulator of a platform."""

    def __init__(self, gpus, device=0, step=False, stream=STREAM):
        self._gpus, self._device, self._step, self.stream = gpus, device, step, stream
        self.workspaces = []

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh"):
        results = [outputs[0]] if self._step else [outputs, np.full_like(state, np.nan)]
        given = [inputs[0] if self._step else inputs, state, Wxh, Whh, bh]
        self.call("forward", given, results, activation=activation)
        if not self._step:
            assert np.array_equal(results[1], outputs[-1], equal_nan=True)

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, dinputs=None, activation="tanh", wanted="11111",
                 **gradients):
        bh = np.zeros(len(Whh), state.dtype)
        cut = (lambda array: array[0]) if self._step else (lambda array: array)
        if dinputs is None:
            dinputs = np.full(inputs.shape, 7, "int32")
        out = [cut(dinputs)] + [gradients["d" + name] for name in ("state", "Wxh", "Whh", "bh")]
        if self._step:
            given = [doutputs[0] + dlast_state, inputs[0], state, Wxh, Whh, bh, outputs[0]]
        else:
            given = [doutputs, dlast_state, inputs, state, Wxh, Whh, bh, outputs, outputs[-1].copy()]
        self.call("backward", given, out, activation=activation, wanted=wanted)
        if inputs.dtype == np.int32:
            assert not dinputs.any()

    def call(self, direction, given, out, addresses=None, **attributes):
        """Does the work of MXNet's dispatcher. addresses: the address of all arrays, for arrays without memory."""
        attributes = {"step": str(int(self._step)), **attributes}
        names, values = (_strings(words) for words in (attributes, attributes.values()))
        allocate = _Allocate(self._allocate)
        keep, described = [], []
        for arrays in given, out:
            shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
            keep.append(shapes)
            described.append([
                (ctypes.c_void_p * len(arrays))(*map(ctypes.addressof, shapes)), _ints(array.ndim for array in arrays),
                (ctypes.c_void_p * len(arrays))(*(self._address(array, addresses) for array in arrays)),
                _ints(_TYPES[array.dtype] for array in arrays), None, None, _ints(self._device for _ in arrays), len(arrays)])
        driver.errors.clear()
        done = library._opCallFCompute(
            ctypes.c_void_p(_registered()[direction, "gpu"]), names, values, len(attributes), *described[0], *described[1],
            None, None, allocate, None, ctypes.c_void_p(self.stream), *[None] * 14)
        if driver.errors:
            raise driver.errors[0]
        if not done:
            assert library._msgSize() == 1
            text = ctypes.c_char_p()
            library._msgGet(0, ctypes.byref(text))
            raise NativeError(text.value.decode())

    def _address(self, array, addresses):
        if addresses is not None:
            return addresses
        return self._emulator().address(array) if self._device in self._gpus.emulators else array.ctypes.data

    def _emulator(self):
        return self._gpus.emulators[self._device]

    def _allocate(self, _, size):
        self.workspaces.append(np.full(size, 0xff, np.uint8))  # NaN wherever it is read before it is written
        return self._emulator().address(self.workspaces[-1])


def _ints(numbers):
    numbers = list(numbers)
    return (ctypes.c_int * len(numbers))(*numbers)


def _strings(words):
    return (ctypes.c_char_p * len(words))(*(word.encode() for word in words))


@pytest.fixture
def on():
    """A function: architecture, multiprocessors → `Native` on such an emulator, the only one."""
    contexts = []

    def emulator(architecture, multiprocessors, **options):
        context = platform(variants.known_device(architecture, multiprocessors))
        gpus = context.__enter__()
        contexts.append(context)
        gpus.emulators[0] = gpus.Runtime(0)
        from rnn_ops.backends import cuda
        assert cuda.gpu(0) is gpus.emulators[0]
        return Native(gpus, **options)

    library.rnn_ops_native_forget_programs()
    driver.streams.clear()
    yield emulator
    for context in contexts:
        context.__exit__(None, None, None)
    library.rnn_ops_native_forget_programs()
    driver.fail_with.clear()


# Shapes that the chooser gives to each family.
SHAPES = {
    "resident": (80, 8, (4, 3, 5, 31)), "cluster": (90, 8, (3, 3, 5, 257)), "grid": (80, 16, (3, 2, 5, 257)),
    "stepwise": (80, 1, (3, 5, 4, 300)), "one": (90, 132, (1, 1, 1, 1)),
}
shapes = pytest.mark.parametrize("architecture, multiprocessors, shape", list(SHAPES.values()), ids=list(SHAPES))
kinds = pytest.mark.parametrize("tokens, activation", [(False, "tanh"), (True, "tanh"), (True, "relu")],
                                ids=["dense", "tokens", "tokens-relu"])


def launches_of(native):
    return native._emulator().launches


@kinds
@shapes
@pytest.mark.slow
def test_values_and_gradients(on, architecture, multiprocessors, shape, tokens, activation):
    check(on(architecture, multiprocessors), shape, "float32", tokens, activation=activation)


@pytest.mark.parametrize("tokens", [False, True])
def test_double_precision(on, tokens):
    check(on(70, 80), (4, 3, 5, 33), "float64", tokens)


@kinds
def test_a_step(on, tokens, activation):
    check(on(80, 8, step=True), (1, 3, 5, 31), "float32", tokens, activation=activation)


def test_the_families_are_all_tried():
    for family, (architecture, multiprocessors, (_, B, _, H)) in SHAPES.items():
        chosen = variants.choose(variants.known_device(architecture, multiprocessors), "float32", B, H)
        assert chosen.family == family or family == "one"


@kinds
@shapes
def test_the_launches_are_those_of_the_launcher(on, architecture, multiprocessors, shape, tokens, activation):
    """Kernel, grid, block, shared memory, cluster, cooperative or not, and the same bits."""
    case = random_case(shape, "float32", tokens)
    native = on(architecture, multiprocessors)
    emulator = Emulator(variants.known_device(architecture, multiprocessors))
    found = [run(backend, *case, activation=activation) for backend in (native, Launcher(emulator))]
    assert launches_of(native) == emulator.launches and emulator.launches
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[1])


def test_all_work_is_in_mxnets_stream_and_each_stream_has_a_cublas_handle(on):
    case = random_case((3, 5, 4, 300), "float32", False)
    native = on(80, 1)  # step by step
    before = len(driver._handles)
    for stream in STREAM, OTHER_STREAM, STREAM:
        native.stream = stream
        driver.streams.clear()
        run(native, *case)
        assert set(driver.streams) == {stream} and len(driver.streams) > 10
    assert driver._handles[before:] == [STREAM, OTHER_STREAM]


def test_python_records_once_for_each_signature(on, monkeypatch):
    asked = []
    for name in "record_forward", "record_backward":
        record = getattr(recorder, name)

        def noted(*args, _name=name, _record=record, **how):
            asked.append(_name)
            return _record(*args, **how)

        monkeypatch.setattr(recorder, name, noted)
    native = on(80, 8)
    case, longer = (random_case((T, 3, 5, 31), "float32", True) for T in (4, 5))
    for _ in range(3):
        run(native, *case)
    assert asked == ["record_forward", "record_backward"]
    run(native, *longer)
    run(native, *case, activation="relu")
    assert len(asked) == 6
    for _ in range(2):
        native.backward(*case[0][:4], np.zeros((4, 3, 31), "f"), *case[1:], wanted="01010",
                        **{"d" + name: np.empty_like(array) for name, array in zip(("state", "Wxh", "Whh", "bh"), case[0][1:])})
    assert len(asked) == 7


def test_the_number_of_programs_is_limited(on, monkeypatch):
    lengths, record = [], recorder.record_forward
    monkeypatch.setattr(recorder, "record_forward", lambda *args, **how: (lengths.append(how["T"]), record(*args, **how))[1])
    native = on(80, 8)
    case = random_case((1, 1, 1, 1), "float32", True)
    run(native, *case)
    for T in range(2, 1030):  # nothing is launched: a token is outside
        arrays, *_ = random_case((T, 1, 1, 1), "float32", True)
        driver.fail_with["launch"] = 1
        with pytest.raises(NativeError):
            native.forward(*arrays, np.empty((T, 1, 1), "f"))
    driver.fail_with.clear()
    run(native, *case)
    assert lengths == [*range(1, 1030), 1]  # forgotten by now


@pytest.mark.parametrize("wanted", ["01010", "00100", "00001", "10000", "00000"])
def test_gradients_that_are_not_wanted_are_not_computed(on, wanted):
    shape = 4, 3, 5, 31
    arrays, doutputs, dlast_state = random_case(shape, "float32", False)
    truth = evaluate(arrays, doutputs, dlast_state, np.float64)
    native = on(80, 8)
    gradients = {"d" + name: np.full_like(array, 7)
                 for name, array in zip(("inputs", "state", "Wxh", "Whh", "bh"), arrays)}
    native.backward(*arrays[:4], truth["outputs"].astype("f"), doutputs, dlast_state, wanted=wanted, **gradients)
    for (name, gradient), want in zip(gradients.items(), wanted):
        if want == "1":
            assert np.abs(gradient - truth[name]).max() < 1e-5 * max(1, np.abs(truth[name]).max())
        else:
            assert np.isnan(gradient).all()
    if wanted == "00000":
        assert launches_of(native) == []


def test_a_token_outside_makes_nan_without_waiting(on):
    arrays, *_ = random_case((4, 3, 5, 31), "float32", True)
    native = on(80, 8)
    for token in 5, -1, 2 ** 31 - 1:
        arrays[0][1, 2] = token
        outputs = np.empty((4, 3, 31), "f")
        native.forward(*arrays, outputs)
        poisoned = np.zeros((4, 3, 31), bool)
        poisoned[1:, 2] = True
        assert np.array_equal(np.isnan(outputs), poisoned)


def test_without_a_gpu_the_error_says_why(on):
    from rnn_ops.backends import cuda
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    arrays, *_ = random_case((4, 3, 5, 31), "float32", True)

    class Nothing:
        emulators = {}

    with pytest.raises(NativeError) as raised:
        Native(Nothing).forward(*arrays, np.empty((4, 3, 31), "f"))
    assert str(raised.value) == cuda.why_not()


@pytest.mark.parametrize("function, sentence, architecture, multiprocessors, shape", [
    ("launch", "cuLaunchKernel failed with status 701", *SHAPES["resident"]),
    ("launch_cooperative", "cuLaunchCooperativeKernel failed with status 701", *SHAPES["grid"]),
    ("multiply_float", "cublas gemm failed with status 701", *SHAPES["stepwise"]),
    ("create_handle", "cublasCreate failed with status 701", *SHAPES["stepwise"]),
    ("set_stream", "cublasSetStream failed with status 701", *SHAPES["stepwise"]),
    ("copy", "cuMemcpyDtoDAsync failed with status 701", *SHAPES["resident"]),
    ("fill", "cuMemsetD8Async failed with status 701", *SHAPES["grid"]),
])
def test_a_failure_of_the_driver_is_an_error_and_the_next_call_works(
        on, function, sentence, architecture, multiprocessors, shape):
    native = on(architecture, multiprocessors)
    case = random_case(shape, "float32", False)
    driver.fail_with[function] = 701
    with pytest.raises(NativeError) as raised:
        run(native, *case)
    assert str(raised.value) == sentence
    driver.fail_with.clear()
    check(native, shape, "float32", False)


def test_a_workspace_beyond_mxnets_limit_is_an_error(on):
    """Before anything is touched: the arrays are none."""
    T, B, I, H = 2100, 1024, 5, 256
    native = on(80, 108)

    class Shape:
        def __init__(self, *shape, dtype="float32"):
            self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(dtype)

    tokens, outputs, state = Shape(T, B, dtype="int32"), Shape(T, B, H), Shape(B, H)
    weights = [Shape(I, H), Shape(H, H), Shape(H)]
    with pytest.raises(NativeError, match=r"inputs: got a sequence with a workspace of 2\d{9} bytes, needs at most 2 GiB"):
        native.call("backward", [outputs, state, tokens, state, *weights, outputs, state], [tokens, state, *weights],
                    addresses=1 << 50)
    assert launches_of(native) == []


@pytest.mark.slow
def test_the_caller_may_be_any_thread_and_gpu(on):
    """Two GPUs, each with kernels for its own architecture."""
    with platform(variants.known_device(90, 8), variants.known_device(80, 16)) as gpus:
        from rnn_ops.backends import cuda
        library.rnn_ops_native_forget_programs()
        cuda.gpu(0), cuda.gpu(1)
        case = random_case((3, 2, 5, 257), "float32", True)
        found = [run(Native(gpus, device=index), *case) for index in (0, 1)]
        assert gpus.emulators[0].launches[0].kernel.family == "cluster" and gpus.emulators[1].launches[0].kernel.family == "grid"
    for name in found[0]:
        assert np.abs(found[0][name] - found[1][name]).max() < 1e-4
