"""rnn_ops/backends/cuda on the real CuPy with stand-ins below it (cuda_standin.py): run by test_cuda_standin.py, in a
process that finds the stand-in driver.

The launches are run by the emulator of tests/cuda_host on the arrays' memory, the products by NumPy.
"""
import ctypes
import importlib.util

import numpy as np
import pytest

import cuda_standin

DRIVER, RUNTIME = cuda_standin.install()

import cupy  # noqa: E402

from cuda_host import Emulator  # noqa: E402
from cuda_host import driver as host_driver  # noqa: E402
from recurrence_cases import check, random_case  # noqa: E402
from rnn_ops import info  # noqa: E402
from rnn_ops.backends import cuda  # noqa: E402
from rnn_ops.backends.cuda import compiler, variants  # noqa: E402
from rnn_ops.backends.cuda.launcher import Launch  # noqa: E402

VERSION, _ = cuda_standin.cublas_names()
NONE_FOUND = "compute capability 9.0: got NVRTC none, needs 12.1 or newer: pip install it"
SHAPES = {"resident": (3, 5, 7, 33), "cluster": (3, 3, 5, 257), "grid": (3, 2, 5, 1030), "stepwise": (3, 5, 4, 300)}


def none_found(architecture, driver=None):
    """Replaces `compiler.find`."""
    raise RuntimeError(NONE_FOUND)


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
    host_driver.runtime = RUNTIME
    return gpu


@pytest.fixture
def computed(gpu, monkeypatch):
    """Inside, launches of our kernels compute. The list of all `Launch`es whose function was asked for."""
    host, asked, launches, views = Emulator(gpu.device), [], {}, []
    function, address = type(gpu).function, type(gpu).address

    def function_of(self, launch):
        found = function(self, launch)
        asked.append(launch)
        launches[DRIVER.function(found)] = launch
        return found

    def run(launched):
        wanted = launches.get(launched.function)  # none where it is one of CuPy's own
        if wanted is None:
            return
        assert launched.function.name == wanted.kernel.name and launched.block[1:] == (1, 1)
        assert launched.cooperative == wanted.cooperative
        host.launch(wanted._replace(grid=launched.grid, block=launched.block[0], shared=launched.shared),
                    [ctypes.create_string_buffer(value, len(value)) for value in launched.arguments])

    def address_of(self, array):  # which the machine must know
        views.append(np.frombuffer((ctypes.c_char * array.nbytes).from_address(array.data.ptr), np.uint8))
        host.address(views[-1])
        return address(self, array)

    monkeypatch.setattr(type(gpu), "function", function_of)
    monkeypatch.setattr(type(gpu), "address", address_of)
    monkeypatch.setattr(type(gpu), "host", host, raising=False)
    monkeypatch.setattr(DRIVER, "run", run)
    yield asked
    errors = DRIVER.errors + host_driver.errors
    DRIVER.errors.clear()
    host_driver.errors.clear()
    assert errors == [], errors


def test_it_finds_the_gpu():
    assert cuda.why_not() is None and cuda.platform().count() == 1
    assert cuda.devices() == [variants.Device("Stand-in H100", 90, 232448, 132, (66, 32, 16, 7))]
    built = {11: "11.8", 13: "13.0"}[VERSION]
    assert cuda.platform().versions() == f"CuPy {cupy.__version__} for CUDA {built}, driver for CUDA 13.0"


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("family", variants.FAMILIES)
def test_values_and_gradients(computed, family, tokens):
    check(OnCuPy(), SHAPES[family], "float32", tokens, variant=family)
    assert {launch.kernel.family for launch in computed} <= {family, "sums"}
    assert any(launch.kernel.family == family for launch in computed)


def test_double_precision(computed):
    check(OnCuPy(), (3, 5, 4, 33), "float64", False)


# What an argument may be.

def test_arrays_of_others_are_taken_as_they_are(gpu):
    array = cupy.zeros((2, 3), "float32")

    class Interface:
        __cuda_array_interface__ = array.__cuda_array_interface__

    class Dlpack:
        __dlpack__ = array.__dlpack__
        __dlpack_device__ = array.__dlpack_device__

    for other in array, Interface(), Dlpack():
        taken = cuda.platform().array("x", other)
        assert type(taken) is cupy.ndarray and (taken.data.ptr, taken.shape) == (array.data.ptr, array.shape)
        assert cuda.platform().index(taken) == 0
    for other in np.zeros(3), [1.0], None:
        with pytest.raises(TypeError, match=f"x: got {type(other).__name__}, needs an array in the memory of a GPU"):
            cuda.platform().array("x", other)


def test_what_is_refused_is_refused_before_anything_is_launched(computed):
    arrays, doutputs, _ = random_case((3, 4, 5, 6), "float32", True)
    copies = [*map(cupy.asarray, arrays), cupy.empty(doutputs.shape, "float32")]
    DRIVER.launches.clear()
    copies[3] = cupy.asarray(np.asfortranarray(arrays[3]), order="F")
    with pytest.raises(ValueError, match="Whh: got a strided array, needs a C-contiguous one"):
        cuda.forward(*copies)
    copies[0], copies[3] = cupy.asarray(np.full((3, 4), 5, "int32")), cupy.asarray(arrays[3])
    with pytest.raises(ValueError, match=r"inputs: got token 5 at \[0, 0\], needs 0 <= token < 5"):
        cuda.forward(*copies)
    assert DRIVER.launches == []


# Memory, as the operators use it.

def test_memory_of_others_is_seen_and_copied(gpu):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    with gpu.current(), gpu.default_stream():
        copy = gpu.to_device(array)
        view = gpu.view(gpu.address(copy), (3, 2), np.dtype("float32"))
        assert view.data.ptr == copy.data.ptr and view.shape == (3, 2)
        assert np.array_equal(gpu.to_host(view), array.reshape(3, 2))
        out = np.empty((2, 3), "float32")
        assert gpu.to_host(copy, out) is out and np.array_equal(out, array)
        assert not gpu.to_host(gpu.zeros((5,), "int32")).any()
        gpu.synchronize()


def test_no_memory_is_a_sentence(gpu):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 1)
    try:
        with gpu.current(), pytest.raises(MemoryError, match=r"GPU 0 \(Stand-in H100\) has no memory for an array of "
                                                             r"\(99999, 9999\) float32 that the recurrence needs"):
            gpu.empty((99999, 9999), "float32")
    finally:
        pool.set_limit(size=0)


# What the driver is asked and what it answers.

def test_a_graph_and_a_stream_of_ones_own(computed, gpu):
    """Launches, products and memory go to the stream that is current."""
    arrays, doutputs, dlast = random_case(SHAPES["grid"], "float32", False)
    copies = [cupy.asarray(array) for array in arrays]
    stream = cupy.cuda.Stream(non_blocking=True)
    outputs = cupy.empty(doutputs.shape, "float32")
    DRIVER.launches.clear()
    host_driver.streams.clear()
    with stream:
        cuda.forward(*copies, outputs, variant="grid")
    assert {launched.stream for launched in DRIVER.launches} | set(host_driver.streams) == {stream.ptr}


def test_attributes_allow_what_is_launched(computed, gpu):
    """More than 48 KiB of shared memory for those kernels that need it, clusters of 16 for the cluster family."""
    found, _ = variants.candidates(gpu.device, "float32", 32, 256)
    cluster = [variant for variant in found if variant.family == "cluster"]
    resident = [variant for variant in found if variant.family == "resident"]
    assert cluster and resident
    for variant in cluster + resident:
        launch = computed_launch(gpu, variant)
        function = DRIVER.function(gpu.function(launch))
        assert function.attributes.get(8, 48 << 10) >= launch.shared
        assert function.attributes.get(14, 0) == (variant.family == "cluster")


def computed_launch(gpu, variant):
    """The `Launch` of a variant's forward pass."""
    return Launch(variant.kernel("Forward"), (variant.blocks, variant.groups, 1), variant.tile.threads, variant.shared,
                  cluster=variant.blocks if variant.family == "cluster" else 1, cooperative=variant.family == "grid")


def test_occupancy(gpu):
    for family, clusters in ("cluster", True), ("resident", False):
        variant = variants.choose(gpu.device, "float32", 32, 256, family)
        blocks, active = gpu.occupancy(computed_launch(gpu, variant))
        assert blocks >= 1 and active == (DRIVER.clusters[variant.blocks] if clusters else None)


def test_what_the_driver_says_against_clusters_is_an_error(gpu, monkeypatch):
    monkeypatch.setitem(DRIVER.fail_with, "cuOccupancyMaxActiveClusters", 912)
    platform = cuda.platform()
    platform.device.cache_clear()
    assert platform.device(0).clusters == variants.estimated_clusters(90, 132)  # of which nothing more depends
    platform.device.cache_clear()
    with pytest.raises(RuntimeError, match="cuOccupancyMaxActiveClusters failed with status 912"):
        gpu.occupancy(computed_launch(gpu, variants.choose(gpu.device, "float32", 32, 256, "cluster")))


def test_without_a_compiler_clusters_are_estimated_and_the_gpu_is_refused_in_a_sentence(gpu, monkeypatch):
    monkeypatch.setattr(compiler, "find", none_found)
    platform = cuda.platform()
    platform.device.cache_clear()
    try:
        assert platform.device(0).clusters == variants.estimated_clusters(90, 132)
        with pytest.raises(RuntimeError) as raised:
            platform.Runtime(0)
        assert str(raised.value) == "GPU 0 (Stand-in H100): " + NONE_FOUND
    finally:
        platform.device.cache_clear()


def test_no_gpu_is_a_sentence(monkeypatch):
    platform = cuda.platform()

    def none():
        raise platform.cuda_runtime.CUDARuntimeError(100)

    monkeypatch.setattr(platform.cuda_runtime, "getDeviceCount", none)
    assert "the NVIDIA driver finds no GPU that this CuPy can use (cudaErrorNoDevice" in cuda.why_not()
    monkeypatch.setattr(platform.cuda_runtime, "getDeviceCount", lambda: 0)
    assert "there is no GPU: see that nvidia-smi lists one" in cuda.why_not()
    assert cuda.devices() == []


@pytest.mark.parametrize("function", ["cuModuleLoad", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel",
                                      "cuLaunchCooperativeKernel"])
def test_what_the_driver_refuses_is_an_error_and_the_next_call_is_well(computed, gpu, monkeypatch, function):
    family = "grid" if function == "cuLaunchCooperativeKernel" else "cluster"
    cupy.clear_memo()  # of the modules that are loaded
    monkeypatch.setattr(gpu, "_functions", {})
    with monkeypatch.context() as failing:
        failing.setitem(DRIVER.fail_with, function, 209)
        with pytest.raises(RuntimeError, match="status 209"):
            check(OnCuPy(), SHAPES[family], "float32", True, variant=family)
    check(OnCuPy(), SHAPES[family], "float32", True, variant=family)


def test_info_says_what_compiles_and_how_many_clusters_run(monkeypatch):
    facts = info.collect()
    assert facts["GPU kernels"] == f"compiled on first use, run by {cuda.platform().versions()}"
    assert facts["GPU 0"].startswith("Stand-in H100, compute capability 9.0, 132 multiprocessors, 227 KiB")
    assert facts["GPU 0, clusters"] == "66 of 2, 32 of 4, 16 of 8, 7 of 16 blocks at once"
    assert facts["GPU 0, compiler"] == str(compiler.find(90, RUNTIME.driver_version))
    assert facts["GPU 0, compiler"] in facts["CUDA compilers"] and compiler.folder() in facts["CUDA compilers"]
    monkeypatch.setattr(compiler, "find", none_found)
    assert info.collect()["GPU 0, compiler"] == "none: GPU 0 (Stand-in H100): " + NONE_FOUND


# The GPU of self-tests and benchmarks on it.


def test_the_gpu_of_the_benchmark(computed):
    """Facts, arrays, events, graphs: what is called of CuPy exists and takes what it is given."""
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    gpu = Gpu()
    with gpu.current():
        facts = gpu.describe()
        assert (facts["name"], facts["compute_capability"], facts["l2_cache"]) == ("Stand-in H100", 9.0, 50 << 20)
        array = np.arange(6, dtype="float32")
        assert np.array_equal(gpu.to_host(gpu.to_device(array)), array)
        called = []
        seconds, _ = gpu.time(called.append, 3, 1e-3, before=called.append)
        assert called == [0, 1, 2, 0, 1, 2] and seconds == 1e-3
        calls = []
        gpu.recorded(lambda: calls.append(RUNTIME.capturing is not None))()
        assert calls == [False, True] and RUNTIME.graphs == 1
        gpu.free()


def test_the_training_of_the_workload(computed):
    """An epoch, launch by launch and as a graph. Only our kernels compute; CuPy's own are compiled, loaded and launched."""
    from rnn_ops_timemachine import cuda_training, parameters
    random = np.random.default_rng(0)
    inputs, labels = random.integers(7, size=(2, 2, 3, 4), dtype=np.int32)
    graphs = RUNTIME.graphs
    for record in False, True:
        learner = cuda_training.Learner(parameters.initialise(7, 32, seed=0), record=record)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DRIVER, "run", None)
            for _ in range(2):
                assert len(list(learner.train_epoch(inputs, labels, 0.5))) == 2
        assert learner.arrays()["Why"].shape == (32, 7)
    assert RUNTIME.graphs == graphs + 1


# MXNet's operators on it, where MXNet is.

if importlib.util.find_spec("mxnet"):
    import rnn_ops
    from rnn_ops._mxnet import mx
    from rnn_ops.operators import custom, devices
    from test_native_gpu import STREAM, Native, library

    class Operators:
        """`rnn_ops.rnn_sequence` and MXNet's autograd as a backend."""

        def forward(self, *arrays, activation="tanh"):
            *given, outputs = arrays
            self.given = [mx.nd.array(array, dtype=array.dtype) for array in given]
            for array in self.given[given[0].dtype == np.int32:]:
                array.attach_grad()
            with mx.autograd.record():
                self.results = rnn_ops.rnn_sequence(*self.given, activation=activation)
            outputs[...] = self.results[0].asnumpy()
            assert np.array_equal(self.results[1].asnumpy(), outputs[-1])

        def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation="tanh", **gradients):
            mx.autograd.backward(list(self.results), [mx.nd.array(array, dtype=array.dtype) for array in (doutputs, dlast_state)])
            for name, array in zip(("inputs", "state", "Wxh", "Whh", "bh"), self.given):
                if "d" + name in gradients:
                    gradients["d" + name][...] = array.grad.asnumpy()

    @pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
    def test_arrays_on_the_cpu_are_computed_on_the_gpu(computed, tokens):
        """`use("cuda")`: arguments are copied there, results back."""
        rnn_ops.use("cuda")
        try:
            check(Operators(), (3, 5, 7, 33), "float32", tokens)
        finally:
            rnn_ops.use("cpu")
        assert {launch.kernel.family for launch in computed} <= {"resident", "cluster", "sums"} and computed

    @pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
    def test_arrays_on_the_gpu_are_computed_in_place(computed, gpu, monkeypatch, tokens):
        """Those are really MXNet's on the CPU, which the stand-in takes for a GPU's. In the legacy default stream."""
        monkeypatch.setenv("RNN_OPS_OPERATOR", "custom")
        monkeypatch.setattr(custom, "device_for", lambda context: devices.Gpu(gpu))
        DRIVER.launches.clear()
        check(Operators(), (3, 5, 7, 33), "float32", tokens)
        assert computed and {launched.stream for launched in DRIVER.launches} == {0}

    class OnDriver(Native):
        """The native operator, on memory that the stand-in takes for a GPU's."""

        def __init__(self, host, **options):
            super().__init__(None, **options)
            self._emulator = lambda: host

        def _address(self, array, addresses):
            return self._emulator().address(array)

    @pytest.mark.parametrize("family", variants.FAMILIES)
    def test_the_native_operator_launches_by_itself(computed, gpu, monkeypatch, family):
        """What Python records is what the driver is called with, in MXNet's stream, and computes the same."""
        choose = variants.choose
        monkeypatch.setattr(variants, "choose", lambda device, dtype, B, H, _=None: choose(device, dtype, B, H, family))
        library.rnn_ops_native_forget_programs()
        DRIVER.launches.clear()
        host_driver.streams.clear()
        try:
            check(OnDriver(gpu.host), SHAPES[family], "float32", False)
        finally:
            library.rnn_ops_native_forget_programs()
        assert {launched.stream for launched in DRIVER.launches} | set(host_driver.streams) == {STREAM}
        assert any(launch.kernel.family == family for launch in computed)
