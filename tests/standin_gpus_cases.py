"""Several GPUs on the real CuPy with stand-ins below it: run by test_cuda_standin.py, in a process that has 2 or 8 of them.

The stand-in driver (cuda_standin.py) notices a kernel, a stream or memory of one GPU that is used while another one is current.
The fixture `computed` fails then.
"""
import importlib.util
import threading
import time

import numpy as np
import pytest

from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import compiler, variants
from rnn_ops.backends.cuda.launcher import Launcher
from standin_cases import DRIVER, RUNTIME, SHAPES, check, computed, computed_launch, cupy, gpu, random_case  # noqa: F401

ALL = range(RUNTIME.count)
LAST = RUNTIME.count - 1


class On:
    """`cuda` for NumPy arrays: copied to CuPy's on one GPU and back. Another one is current when it is called."""

    def __init__(self, number):
        self._number = number

    def forward(self, *arrays, **options):
        self._call(cuda.forward, arrays, options)

    def backward(self, *arrays, **options):
        self._call(cuda.backward, arrays, options)

    def _call(self, function, arrays, options):
        with cupy.cuda.Device(self._number):
            copies = [cupy.asarray(value) for value in arrays]
            named = {name: cupy.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
        function(*copies, **named)
        with cupy.cuda.Device(self._number):
            for value, copy in [*zip(arrays, copies), *((options[name], named[name]) for name in named)]:
                if isinstance(value, np.ndarray):
                    value[...] = cupy.asnumpy(copy)


def launched_on():
    """The GPUs that something was launched on since the last time."""
    found = {launched.device for launched in DRIVER.launches}
    DRIVER.launches.clear()
    return found


def in_threads(*calls):
    """Calls them all at the same time, and raises what one of them raises."""
    barrier, errors = threading.Barrier(len(calls)), []

    def run(call):
        try:
            barrier.wait()
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


# The stand-in itself.


def test_work_on_the_wrong_gpu_is_noticed(computed, gpu):
    """Memory, a kernel, a stream of GPU 0 while GPU 1 is current; a launch in a thread that has no context."""
    array, stream = cupy.zeros((4, 33), "float32"), cupy.cuda.Stream(non_blocking=True)
    launch = computed_launch(gpu, variants.choose(gpu.device, "float32", 5, 33, "resident"))
    function = gpu.function(launch)
    noticed = []

    def notice(call, *arguments):
        try:
            call(*arguments)
        except Exception:
            pass
        assert DRIVER.errors
        noticed.append(str(DRIVER.errors[0]))
        DRIVER.errors.clear()

    with cupy.cuda.Device(1):
        cupy.zeros(1)
        DRIVER.errors.clear()
        notice(RUNTIME.memsetAsync, array.data.ptr + 4, 0, 8, 0)
        notice(RUNTIME.memcpy, array.data.ptr, np.zeros(1).ctypes.data, 8, 1)
        notice(RUNTIME.streamSynchronize, stream.ptr)
        notice(cupy.RawKernel('extern "C" __global__ void use(float* a) {}', "use"), (1,), (1,), (array,))
        notice(cuda.platform().cuda_driver.launchKernel, function, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0)
    thread = threading.Thread(target=notice, args=(cuda.platform().cuda_driver.launchKernel, function, *[1] * 6, *[0] * 4))
    thread.start()
    thread.join()
    assert noticed == [
        "memory of GPU 0 used while GPU 1 is current", "memory of GPU 0 used while GPU 1 is current",
        "stream or event of GPU 0 used while GPU 1 is current", "memory of GPU 0 used while GPU 1 is current",
        f"kernel {launch.kernel.name} of GPU 0 launched while GPU 1 is current",
        "a thread calls the driver without a context"]


# rnn_ops.backends.cuda.


def test_it_finds_all_gpus():
    assert cuda.platform().count() == len(ALL) > 1
    assert cuda.devices() == [cuda.gpu(0).device] * len(ALL)
    with pytest.raises(ValueError, match=f"GPU {len(ALL)}: this process has {len(ALL)}, numbered from 0"):
        cuda.gpu(len(ALL))


@pytest.mark.parametrize("family", variants.FAMILIES)
def test_the_gpu_of_the_arrays_computes_and_the_one_before_is_current_again(computed, family):
    for number in 0, LAST:
        launched_on()
        with cupy.cuda.Device(1 - min(number, 1)), cupy.cuda.Stream(non_blocking=True) as stream:
            before = RUNTIME.getDevice()
            check(On(number), SHAPES[family], "float32", family == "cluster", variant=family)
            assert RUNTIME.getDevice() == before != number and cupy.cuda.get_current_stream() == stream
        assert launched_on() == {number}
    assert RUNTIME.getDevice() == 0


def test_an_error_makes_the_gpu_before_current_again(computed, monkeypatch):
    monkeypatch.setitem(DRIVER.fail_with, "cuLaunchKernel", 209)
    with pytest.raises(RuntimeError, match="status 209"):
        check(On(1), SHAPES["resident"], "float32", True)
    assert RUNTIME.getDevice() == 0


def test_arrays_on_two_gpus_are_refused(computed):
    arrays, doutputs, _ = random_case((3, 4, 5, 6), "float32", True)
    copies = [*map(cupy.asarray, arrays), cupy.empty(doutputs.shape, "float32")]
    with cupy.cuda.Device(1):
        copies[3] = cupy.asarray(arrays[3])
    with pytest.raises(ValueError, match="Whh: got an array on GPU 1, needs one on GPU 0, as inputs is"):
        cuda.forward(*copies)


def test_a_thread_that_has_never_used_cuda_can_launch(computed, gpu):
    """MXNet's worker threads are such. Tokens, in the resident family: the first thing that happens is a launch."""
    arrays, doutputs, _ = random_case(SHAPES["resident"], "float32", True)
    there = cuda.gpu(1)
    with there.current():
        copies, outputs = [there.to_device(array) for array in arrays], there.empty(doutputs.shape, "float32")
        there.to_host(outputs)

    def launch():
        with there.current():
            Launcher(there).forward(*copies, outputs, variant="resident")

    launched_on()
    in_threads(launch, launch)
    assert launched_on() == {1} and not np.isnan(there.to_host(outputs)).any()


def test_what_mxnets_runtime_has_made_current_is_current_again(gpu):
    """CuPy's runtime does not know of it."""
    def use():
        RUNTIME.set_context(1)
        for current in gpu.current, gpu.default_stream:
            with current():
                assert RUNTIME.context() == 0
            assert RUNTIME.context() == 1
        cuda.platform().device.cache_clear()
        cuda.platform().Runtime(0)
        assert RUNTIME.context() == 1

    in_threads(use)


def test_all_gpus_at_once(computed):
    launched_on()
    for _ in range(3):
        in_threads(*(lambda n=n: check(On(n), SHAPES["resident"], "float32", n % 2 == 0) for n in ALL))
    assert launched_on() == set(ALL)


def test_threads_that_want_the_same_gpu_get_the_same(monkeypatch):
    made, found, platform = [], [], cuda.platform()

    def slowly(index):
        time.sleep(0.05)
        made.append(index)
        return made[-1]

    monkeypatch.setattr(platform, "Runtime", slowly)
    cuda._made.cache_clear()
    try:
        in_threads(*[lambda: found.append(cuda.gpu(1))] * 4)
    finally:
        cuda._made.cache_clear()
    assert made == [1] and found == [1] * 4


def test_threads_that_want_the_same_kernel_load_it_once(gpu, monkeypatch):
    """The one that needs more shared memory gets it, whichever comes first."""
    fitting = [variant for variant in variants.candidates(gpu.device, "float32", 512, 256)[0] if variant.family == "resident"]
    launch = computed_launch(gpu, max(fitting, key=lambda variant: variant.shared))
    small = launch._replace(shared=launch.shared - 1024)
    assert small.shared > 48 << 10
    monkeypatch.setattr(gpu, "_functions", {})
    loaded, compiled = [], type(gpu).compile

    def slowly(self, kernel):
        loaded.append(kernel)
        found = compiled(self, kernel)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(type(gpu), "compile", slowly)
    found = []

    def load(launch):
        with gpu.current():
            found.append(gpu.function(launch))

    in_threads(*[lambda one=one: load(one) for one in (launch, small, small, launch)])
    assert loaded == [launch.kernel] and len(set(found)) == 1
    assert DRIVER.function(found[0]).attributes[8] == launch.shared


def test_gpus_of_one_kind_compile_a_kernel_once(monkeypatch, tmp_path):
    monkeypatch.setenv("RNN_OPS_CACHE", str(tmp_path / "kept"))
    compiled, paths, compile = [], [], compiler.Nvrtc.compile
    monkeypatch.setattr(compiler.Nvrtc, "compile", lambda *arguments: (compiled.append(1), compile(*arguments))[1])
    text = 'extern "C" __global__ void nothing() {}'
    in_threads(*[lambda: paths.append(compiler.cubin_of_text(text, (), 90, RUNTIME.driver_version))] * len(ALL))
    assert compiled == [1] and len(set(paths)) == 1 and len(paths) == len(ALL)


def test_the_gpu_of_the_benchmark_can_be_another_one(computed):
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    found = Gpu(1)
    launched_on()
    with found.current():
        array = found.to_device(np.arange(6, dtype="float32"))
        assert array.device.id == 1 and np.array_equal(found.to_host(array), np.arange(6))
        found.time(lambda n: None, 2, 1e-3)
        found.recorded(lambda: found.runtime.zeros((3,), "float32"))()
        assert found.describe()["devices"] == len(ALL)
        found.free()
    assert launched_on() == {1} and RUNTIME.getDevice() == 0


# MXNet's operators on it, where MXNet is.

if importlib.util.find_spec("mxnet"):
    import rnn_ops
    from rnn_ops._mxnet import mx
    from standin_cases import OnDriver, Operators, library

    @pytest.fixture
    def use():
        yield rnn_ops.use
        rnn_ops.use("cpu")

    class In(Operators):
        """`Operators` for arrays in ``mx.cpu(number)``."""

        def __init__(self, number):
            self._context = mx.cpu(number)

        def forward(self, *arrays, **options):
            with self._context:
                super().forward(*arrays, **options)

        def backward(self, *arrays, **options):
            with self._context:
                super().backward(*arrays, **options)

    @pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
    def test_the_number_of_the_context_is_the_gpus(computed, use, tokens):
        use("cuda")
        for number in ALL:
            launched_on()
            check(In(number), SHAPES["resident"], "float32", tokens)
            assert launched_on() == {number}

    def test_one_gpu_can_compute_for_all_contexts(computed, use):
        use("cuda:1")
        launched_on()
        for number in ALL:
            check(In(number), SHAPES["resident"], "float32", True)
        assert launched_on() == {1}

    def test_all_contexts_at_once(computed, use):
        use("cuda")
        launched_on()
        for _ in range(3):
            in_threads(*(lambda n=n: check(In(n), SHAPES["resident"], "float32", n % 2 == 0) for n in ALL))
        assert launched_on() == set(ALL)

    class OnItsOwn(OnDriver):
        """`OnDriver` as MXNet's worker threads call it: the arrays' GPU is current. CuPy does not know that."""

        def call(self, *arguments, **options):
            def run():
                RUNTIME.set_context(self._device)
                super(OnItsOwn, self).call(*arguments, **options)
                assert RUNTIME.context() == self._device

            in_threads(run)

    @pytest.mark.parametrize("family", ["cluster", "stepwise"])
    def test_the_native_operator_has_programs_for_each_gpu(computed, gpu, monkeypatch, family):
        choose = variants.choose
        monkeypatch.setattr(variants, "choose", lambda device, dtype, B, H, _=None: choose(device, dtype, B, H, family))
        library.rnn_ops_native_forget_programs()
        try:
            for number in (*ALL, *ALL):
                launched_on()
                check(OnItsOwn(gpu.host, device=number), SHAPES[family], "float32", False)
                assert launched_on() == {number}
        finally:
            library.rnn_ops_native_forget_programs()

    def test_in_float64_too(computed, use):
        """Products are cuBLAS's, with a handle for each thread and GPU."""
        use("cuda")
        launched_on()
        in_threads(*(lambda n=n: check(In(n), (3, 5, 4, 33), "float64", False) for n in ALL))
        assert launched_on() == set(ALL)
