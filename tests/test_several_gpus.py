"""Several GPUs under MXNet's data parallelism: after ``use("cuda")``, arrays in ``mx.cpu(i)`` are computed on GPU i.

The GPUs are emulators (tests/cuda_host), which count their launches and notice work that comes to the wrong one. The same with
CuPy is in standin_gpus_cases.py.
"""
import threading

import numpy as np
import pytest

import rnn_ops
from cuda_host import Emulator, KernelError, platform
from rnn_ops import gluon, gradcheck
from rnn_ops._mxnet import mx
from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import variants
from rnn_ops.gradcheck import Case
from rnn_ops.operators import custom, devices

H100 = variants.known_device(90, 8)
NAMES = custom.arguments.NAMES
T, B, I, H = 3, 8, 5, 7
KINDS = ["dense", "tokens"]


@pytest.fixture(params=[2, 8])
def gpus(request):
    """So many GPUs. Arrays on the CPU are computed on the one with their context's number."""
    with platform(*[H100] * request.param) as found:
        rnn_ops.use("cuda")
        yield found
        rnn_ops.use("cpu")


two = pytest.mark.parametrize("gpus", [2], indirect=True)


def contexts(gpus):
    return [mx.cpu(number) for number in range(gpus.count())]


def launched(gpus):
    """Launches of each GPU since the last time, by its number."""
    found = {number: len(emulator.launches) for number, emulator in gpus.emulators.items() if emulator.launches}
    for emulator in gpus.emulators.values():
        emulator.launches.clear()
    return found


def draw(kind="dense", dtype="float64"):
    """Arguments and the cotangents of both results, NumPy."""
    (inputs, *floats), cotangents = gradcheck.draw(Case("sequence", T, B, I, H, kind))
    inputs = inputs if kind == "tokens" else inputs.astype(dtype)
    return [inputs, *(array.astype(dtype) for array in floats)], [array.astype(dtype) for array in cotangents]


def here(arrays, context):
    return [mx.nd.array(array, dtype=array.dtype, ctx=context) for array in arrays]


def rows(arrays, part, parts, axes):
    """A part of the batch. ``axes``: of the batch in each array, None if it has none."""
    return [array if axis is None else np.array_split(array, parts, axis=axis)[part] for array, axis in zip(arrays, axes)]


def forward_and_backward(given, cotangents):
    """Results and gradients by their names. Nothing is waited for."""
    variables = {name: array for name, array in zip(NAMES, given) if array.dtype != np.int32}
    for array in variables.values():
        array.attach_grad()
    with mx.autograd.record():
        outputs, state = rnn_ops.rnn_sequence(*given)
    mx.autograd.backward([outputs, state], cotangents)
    return dict({"d" + name: array.grad for name, array in variables.items()}, outputs=outputs, state=state)


# ---- data parallelism


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_split_over_gpus_has_the_gradients_of_one_device(gpus, kind):
    arguments, cotangents = draw(kind)
    rnn_ops.use("cpu")
    whole = {name: array.asnumpy() for name, array in forward_and_backward(
        here(arguments, mx.cpu()), here(cotangents, mx.cpu())).items()}
    rnn_ops.use("cuda")
    assert launched(gpus) == {}
    parts = []
    for number, context in enumerate(contexts(gpus)):
        own = rows(arguments, number, gpus.count(), (1, 0, None, None, None))
        parts.append(forward_and_backward(here(own, context),
                                          here(rows(cotangents, number, gpus.count(), (1, 0)), context)))
    mx.nd.waitall()
    counts = launched(gpus)
    assert sorted(counts) == list(range(gpus.count())) and len(set(counts.values())) == 1
    store = mx.kv.create("device")
    for key in "dWxh", "dWhh", "dbh":
        gradients = [part[key] for part in parts]
        assert [gradient.context for gradient in gradients] == contexts(gpus)
        store.init(key, gradients[0])
        store.push(key, gradients)
        store.pull(key, out=gradients)
        for gradient in gradients:
            assert gradcheck.relative_error(gradient.asnumpy(), whole[key]) <= 1e-12
    joined = {"outputs": 1, "state": 0, "dstate": 0, **({"dinputs": 1} if kind == "dense" else {})}
    for key, axis in joined.items():
        found = np.concatenate([part[key].asnumpy() for part in parts], axis=axis)
        assert gradcheck.relative_error(found, whole[key]) <= 1e-12
    assert launched(gpus) == {}


def network(kind):
    net = mx.gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        if kind == "dense":
            net.add(gluon.RNN(H, 2, input_size=I, dtype="float64"))
        else:
            net.add(gluon.TokenRNN(H, 2, input_size=I, dtype="float64", sparse_grad=kind == "sparse"))
        net.add(mx.gluon.nn.Dense(I, flatten=False, dtype="float64", in_units=H))
    return net


def train(kind, where, hybridize=None):
    """Three training steps with the rows of the batch split over contexts → the parameters by their names."""
    arguments, _ = draw("dense" if kind == "dense" else "tokens")
    labels = np.random.RandomState(1).randint(I, size=(T, B)).astype("float64")
    net = network(kind)
    mx.random.seed(3)
    net.initialize(mx.init.Uniform(0.5), ctx=where)
    if hybridize is not None:
        net.hybridize(**hybridize)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5}, kvstore="device")
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss(batch_axis=1)
    for _ in range(3):
        losses = []
        with mx.autograd.record():
            for number, context in enumerate(where):
                inputs, expected = rows([arguments[0], labels], number, len(where), (1, 1))
                losses.append(loss(net(*here([inputs], context)), *here([expected], context)))
        mx.autograd.backward(losses)
        trainer.step(B)
    for parameter in net.collect_params().values():
        first, *others = [array.asnumpy() for array in parameter.list_data()]
        assert all(np.array_equal(first, other) for other in others)
    return {name: parameter.data(where[0]).asnumpy() for name, parameter in net.collect_params().items()}


@pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=["not", "alloc", "static"])
@pytest.mark.parametrize("kind", KINDS + ["sparse"])
@pytest.mark.slow
@two
def test_a_gluon_trainer_on_two_gpus_learns_what_one_device_learns(gpus, kind, hybridize):
    found = train(kind, contexts(gpus), hybridize)
    counts = launched(gpus)
    assert sorted(counts) == [0, 1] and counts[0] == counts[1]
    rnn_ops.use("cpu")
    wanted = train(kind, [mx.cpu(0)])
    assert sorted(found) == sorted(wanted) and launched(gpus) == {}
    for name, values in wanted.items():
        assert gradcheck.relative_error(found[name], values) <= 1e-12


@pytest.mark.slow
def test_a_gluon_trainer_on_all_gpus(gpus):
    found = train("tokens", contexts(gpus), {})
    assert sorted(launched(gpus)) == list(range(gpus.count()))
    rnn_ops.use("cpu")
    for name, values in train("tokens", [mx.cpu(0)]).items():
        assert gradcheck.relative_error(found[name], values) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_threads_compute_on_their_gpus_at_once(gpus, kind):
    """Each thread has a context of its own, and passes that MXNet runs in its worker threads."""
    arguments, cotangents = draw(kind, "float32")
    found, errors = {}, []
    barrier = threading.Barrier(gpus.count())

    def compute(context):
        try:
            barrier.wait()
            for _ in range(3):
                given = forward_and_backward(here(arguments, context), here(cotangents, context))
                values = {name: array.asnumpy() for name, array in given.items()}
                before = found.setdefault(context.device_id, values)
                assert all(np.array_equal(before[name], array) for name, array in values.items())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=compute, args=(context,)) for context in contexts(gpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and sorted(found) == list(range(gpus.count()))
    counts = launched(gpus)
    assert sorted(counts) == sorted(found) and len(set(counts.values())) == 1
    for values in found.values():  # the same kernels on the same GPUs
        assert all(np.array_equal(found[0][name], array) for name, array in values.items())


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_gpus_compute_side_by_side(gpus, monkeypatch, direction):
    """One thread of the user's is enough: each GPU waits here for all others to have begun."""
    arguments, cotangents = draw("tokens", "float32")
    begun = threading.Barrier(gpus.count(), timeout=60)
    compute = getattr(devices.Offload, direction)

    def wait_and_compute(*given, **named):
        begun.wait()
        return compute(*given, **named)

    monkeypatch.setattr(devices.Offload, direction, wait_and_compute)
    results = [forward_and_backward(here(arguments, context), here(cotangents, context)) for context in contexts(gpus)]
    for found in results:
        assert all(np.array_equal(array.asnumpy(), results[0][name].asnumpy()) for name, array in found.items())
    assert not begun.broken and sorted(launched(gpus)) == list(range(gpus.count()))


# ---- which GPU


@two
@pytest.mark.parametrize("context, number", [(mx.cpu(), 0), (mx.cpu(1), 1), (mx.cpu_pinned(0), 0), (mx.cpu_pinned(1), 1),
                                             (mx.Context("cpu_shared", 0), 0)], ids=str)
def test_every_kind_of_memory_on_the_cpu_has_a_gpu(gpus, context, number):
    arguments, cotangents = draw("tokens", "float32")
    outputs, _ = rnn_ops.rnn_sequence(*here(arguments, context))
    outputs.wait_to_read()
    assert outputs.context.device_id == number and list(launched(gpus)) == [number]


@two
def test_one_gpu_for_all_contexts(gpus):
    arguments, cotangents = draw()
    rnn_ops.use("cuda:1")
    assert devices.in_use() == "cuda:1"
    results = []
    for context in mx.cpu(0), mx.cpu(1), mx.cpu(5), mx.cpu_pinned(0):
        results.append(forward_and_backward(here(arguments, context), here(cotangents, context)))
        mx.nd.waitall()
        assert list(launched(gpus)) == [1]
    for found in results:
        assert all(np.array_equal(results[0][name].asnumpy(), array.asnumpy()) for name, array in found.items())
    rnn_ops.use("cuda:0")
    assert devices.in_use() == "cuda:0"
    rnn_ops.rnn_sequence(*here(arguments, mx.cpu(1)))[0].wait_to_read()
    assert list(launched(gpus)) == [0]


@two
def test_it_says_which_device_is_chosen(gpus):
    assert devices.in_use() == "cuda"
    rnn_ops.use("cpu")
    assert devices.in_use() == "cpu"
    rnn_ops.use("cuda")
    rnn_ops.use(devices.in_use())
    assert devices.in_use() == "cuda"


# ---- a context without a GPU


class Net(mx.gluon.HybridBlock):
    def hybrid_forward(self, F, *values):
        return rnn_ops.rnn_sequence(*values)[0]


def no_gpu(count, context):
    """The sentence of the error."""
    needs = {1: "cpu(0), since this process has 1 GPU", 2: "cpu(0) to cpu(1), since this process has 2 GPUs",
             8: "cpu(0) to cpu(7), since this process has 8 GPUs"}[count]
    return f"inputs: got an array on {context}, needs one on {needs} and use('cuda') computes arrays in cpu(i) on GPU i"


@pytest.mark.parametrize("recording", [False, True], ids=["not recorded", "recorded"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_a_context_without_a_gpu(gpus, kind, recording):
    context = mx.cpu(gpus.count())
    given = here(draw(kind)[0], context)
    step = [given[0][0], *given[1:]]
    given[1].attach_grad()
    for function, values in (rnn_ops.rnn_sequence, given), (rnn_ops.rnn_step, step), (Net(), given):
        with pytest.raises(ValueError) as raised:
            with mx.autograd.record() if recording else mx.autograd.pause():
                function(*values)
        assert str(raised.value) == no_gpu(gpus.count(), context)
    mx.nd.waitall()
    assert launched(gpus) == {}


@pytest.mark.parametrize("hybridize", [False, True], ids=["not hybridized", "hybridized"])
@two
def test_layers_in_a_context_without_a_gpu(gpus, hybridize):
    context = mx.cpu(2)
    dense, tokens = (here(draw(kind, "float32")[0], context) for kind in KINDS)
    layers = gluon.RNN(H, input_size=I), gluon.TokenRNN(H, input_size=I), gluon.RNNCell(H, input_size=I)
    for layer in layers:
        layer.initialize(ctx=context)
        layer.hybridize(hybridize)
    calls = [lambda: layers[0](dense[0]), lambda: layers[1](tokens[0]), lambda: layers[2].unroll(T, dense[0], layout="TNC")]
    for call in calls + ([] if hybridize else [lambda: layers[2](dense[0][0], [dense[1]])]):
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value) == no_gpu(2, context)
    mx.nd.waitall()
    assert launched(gpus) == {}


@pytest.mark.parametrize("hybridize", [{}, {"static_alloc": True, "static_shape": True}], ids=["alloc", "static"])
@two
def test_graphs_in_a_context_without_a_gpu(gpus, capfd, hybridize):
    """The sentence is printed, as MXNet prints all errors of CustomOps; the error comes where the graph is bound or called."""
    context = mx.cpu(2)
    given = here(draw()[0], context)
    symbol = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))))
    net = Net()
    net.hybridize(**hybridize)
    for call in (lambda: symbol.bind(context, given)), (lambda: net(*given)):
        with pytest.raises(mx.MXNetError):
            call()
        assert no_gpu(2, context) in capfd.readouterr().out
    mx.nd.waitall()
    assert launched(gpus) == {}
    net(*here(draw()[0], mx.cpu(1))).wait_to_read()  # the block still works elsewhere
    assert list(launched(gpus)) == [1]


def test_with_one_gpu_the_error_says_so():
    with platform(H100):
        rnn_ops.use("cuda")
        try:
            with pytest.raises(ValueError) as raised:
                rnn_ops.rnn_sequence(*here(draw()[0], mx.cpu(1)))
            assert str(raised.value) == no_gpu(1, mx.cpu(1))
        finally:
            rnn_ops.use("cpu")


@two
def test_a_gpu_that_cannot_be_used(gpus, monkeypatch):
    """One of another kind than GPU 0, say, that no compiler here compiles for."""
    runtime = gpus.Runtime

    def refuse(index):
        if index == 1:
            raise RuntimeError("GPU 1 (sm_90): compute capability 9.0: got NVRTC none, needs 12.1 or newer: pip install it")
        return runtime(index)

    monkeypatch.setattr(gpus, "Runtime", refuse)
    with pytest.raises(RuntimeError, match="GPU 1 .*: compute capability 9.0: got NVRTC none"):
        rnn_ops.rnn_sequence(*here(draw()[0], mx.cpu(1)))
    rnn_ops.rnn_sequence(*here(draw()[0], mx.cpu(0)))[0].wait_to_read()
    assert list(launched(gpus)) == [0]


def test_a_context_without_a_gpu_is_well_on_the_cpu(gpus):
    rnn_ops.use("cpu")
    rnn_ops.rnn_sequence(*here(draw()[0], mx.cpu(9)))[0].wait_to_read()
    assert launched(gpus) == {}


# ---- the emulator


@two
def test_the_emulator_notices_work_on_the_wrong_gpu(gpus):
    first, second = cuda.gpu(0), cuda.gpu(1)
    with first.current():
        array = first.zeros((2, 3), "float32")
        with second.current():
            own = second.to_device(np.ones((3, 3), "float32"))
            with pytest.raises(KernelError, match="memory of GPU 0 on GPU 1"):
                second.address(array[1:])
            with pytest.raises(KernelError, match="memory of GPU 0 on GPU 1"):
                second.multiply(array, own, second.empty((2, 3), "float32"))
            with pytest.raises(KernelError, match="work for GPU 0 while GPU 1 is current"):
                first.empty((2,), "float32")
        first.to_host(array)
    with pytest.raises(KernelError, match="work for GPU 0 while GPU none is current"):
        first.to_host(array)
    Emulator(H100).empty((2,), "float32")  # one that is alone is always current
