"""A call on NDArrays through the library's front: gradients of every kind with and without MXNet's notes, which arrays get a
guard, what is computed in the thread that calls, arrays in every state, and that nothing is kept."""
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memory
import rnn_ops
from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.backends.arguments import NAMES
from rnn_ops.exactness import relative_error
from rnn_ops.gradcheck import Case, draw, values_and_gradients
from rnn_ops.operators import native
from rnn_ops.operators.native import calls, front, guard, load

T, B, I, H = 4, 3, 5, 7
BOUND = 1e-12


CALL = native.call


def new_front():
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(load.NAME.encode(), ctypes.byref(handle)))
    return front.Front(ctypes.CDLL(native.library_path()), handle)


@pytest.fixture(scope="module", params=["notes", "no notes"])
def notes(request):
    """The front as it is, and as where autograd's notes are not to be read."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no notes":
            patch.setattr(front, "_INFO_TYPE", "a name that is not there")
        patch.setattr(load, "operator", load.operator._replace(front=new_front()))
        yield request.param
    new_front()


@pytest.fixture(scope="module", autouse=True)
def nothing_else():
    """Calls in this file go through the front, unless they say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "call", None)
        patch.setattr(calls, "call", None)
        yield


def arrays_of(kind="dense", dtype="float64", step=False):
    arguments, _ = draw(Case("step" if step else "sequence", 1 if step else T, B, I, H, kind))
    return [mx.nd.array(a, dtype=a.dtype if a.dtype == np.int32 else dtype) for a in arguments]


def nodes(result):
    """(operator, its attributes) of each node that autograd has recorded for a result, but variables."""
    graph = json.loads(mx.autograd.get_symbol(result).tojson())
    return [(node["op"], node.get("attrs", {})) for node in graph["nodes"] if node["op"] != "null"]


# Gradients ------------------------------------------------------------------------------------------------------------

def prepare(array, how, random):
    """(The gradient or None, a function to what is given to the operator, which is recorded.)"""
    leaf = array.copy()
    request, made = how
    if request is None:
        return None, lambda: leaf
    leaf.attach_grad(grad_req=request)
    leaf.grad[:] = mx.nd.array(random.randint(1, 9, size=leaf.shape), dtype=leaf.dtype)
    constant = leaf * 0 + 0.25 if array.dtype != np.int32 else leaf * 0
    return leaf.grad, {"itself": lambda: leaf, "a sum": lambda: leaf + constant, "a product": lambda: leaf * 2}[made]


def gradients_of(function, arguments, hows, uses, chained, used):
    random = np.random.RandomState(3)
    gradients, givens = zip(*(prepare(array, how, random) for array, how in zip(arguments, hows)))
    with mx.autograd.record():
        inputs, state, *weights = [given() for given in givens]
        total = 0
        for _ in range(uses):
            result = function(inputs, state, *weights)
            outputs, last = result if isinstance(result, tuple) else (result, result)
            total = total + [outputs.sum(), (last * last).sum()][used]
            state = last if chained else state
    if any(how[0] not in (None, "null") for how in hows):
        total.backward()
    return [None if gradient is None else gradient.asnumpy() for gradient in gradients]


HOWS = st.tuples(st.sampled_from([None, "null", "write", "write", "add", "add"]),
                 st.sampled_from(["itself", "itself", "a sum", "a product"]))


@pytest.mark.parametrize("operator", ["sequence", "step"])
@settings(max_examples=80)
@given(hows=st.lists(HOWS, min_size=5, max_size=5), kind=st.sampled_from(["dense", "tokens"]), uses=st.sampled_from([1, 2, 9]),
       chained=st.booleans(), used=st.integers(0, 1), public=st.booleans())
def test_gradients_of_every_kind(notes, operator, hows, kind, uses, chained, used, public):
    """Of arrays that are attached or not, or made of others in ways that hand a gradient on as it is, used once or often, by
    calls that share their arrays or follow one another."""
    if kind == "tokens":
        hows[0] = (hows[0][0], "itself")
    arguments = arrays_of(kind, step=operator == "step")
    found, wanted = (gradients_of(getattr(module, "rnn_" + operator), arguments, hows, uses, chained, used)
                     for module in (rnn_ops if public else native, reference))
    for name, how, one, other in zip(NAMES, hows, found, wanted):
        if one is not None and one.dtype != np.int32:
            assert relative_error(one, other) <= 1e-10, (name, how)


@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_the_tutorial_s_loop(notes, grad_req):
    """64 calls with the same weights, and the state of the one before."""
    arguments, _ = draw(Case("sequence", 64, B, I, H))
    gradients = []
    for loop in (True, False):
        inputs, state, *weights = [mx.nd.array(a, dtype=a.dtype) for a in arguments]
        for weight in weights:
            weight.attach_grad(grad_req=grad_req)
        for _ in range(2):
            with mx.autograd.record():
                if loop:
                    last = state
                    for x in inputs:
                        last = rnn_ops.rnn_step(x, last, *weights)
                else:
                    last = rnn_ops.rnn_sequence(inputs, state, *weights)[1]
                loss = (last * last).sum()
            loss.backward()
        gradients.append([weight.grad.asnumpy() for weight in weights])
    assert all(relative_error(*pair) <= BOUND for pair in zip(*gradients))


def test_two_losses_that_share_arrays_and_are_freed_one_by_one(notes):
    """No node of one call is another's."""
    inputs, *others = arrays_of()  # autograd forgets what is attached to nothing with the first loss

    def losses():
        for array in others:
            array.attach_grad()
        with mx.autograd.record():
            return [native.rnn_sequence(inputs * scale, *others)[0].sum() for scale in (1, 2)]

    wanted = []
    for each in (0, 1):
        losses()[each].backward()
        wanted.append([array.grad.asnumpy() for array in others])
    for loss, gradients in zip(losses(), wanted):
        loss.backward()
        assert all(np.array_equal(array.grad.asnumpy(), gradient) for array, gradient in zip(others, gradients))


def test_a_gradient_by_autograd_grad(notes):
    """It is written, whatever was said of the array's own."""
    arguments, cotangents = draw(Case("sequence", T, B, I, H))
    wanted = values_and_gradients(reference.rnn_sequence, arguments, cotangents)
    for request in ("write", "add"):
        arrays = [mx.nd.array(a, dtype=a.dtype) for a in arguments]
        for array in arrays:
            array.attach_grad(grad_req=request)
        with mx.autograd.record():
            results = rnn_ops.rnn_sequence(*arrays)
        found = mx.autograd.grad(list(results), arrays, [mx.nd.array(c, dtype=c.dtype) for c in cotangents])
        assert all(relative_error(one.asnumpy(), wanted["d" + name]) <= BOUND for one, name in zip(found, NAMES))


def test_an_array_attached_anew_between_two_calls(notes):
    """The gradients of each call go where they were to go when it was made."""
    inputs, state, Wxh, Whh, bh = arrays_of()
    Whh.attach_grad()
    before = Whh.grad
    with mx.autograd.record():
        first, state = native.rnn_sequence(inputs, state, Wxh, Whh, bh)
        Whh.attach_grad(grad_req="add")
        Whh.grad[:] = 1
        second, state = native.rnn_sequence(inputs, state, Wxh, Whh, bh)
        loss = first.sum() + second.sum()
    loss.backward()
    copy = Whh.copy()
    copy.attach_grad()
    other = Whh.copy()
    other.attach_grad()
    inputs, state, Wxh, _, bh = arrays_of()
    with mx.autograd.record():
        first, state = reference.rnn_sequence(inputs, state, Wxh, copy, bh)
        second, state = reference.rnn_sequence(inputs, state, Wxh, other, bh)
        loss = first.sum() + second.sum()
    loss.backward()
    assert relative_error(before.asnumpy(), copy.grad.asnumpy()) <= BOUND
    assert relative_error(Whh.grad.asnumpy() - 1, other.grad.asnumpy()) <= BOUND


@pytest.mark.parametrize("where", ["the gradient that arrives", "the argument", "the other weight's gradient"])
def test_a_gradient_in_memory_that_the_call_still_reads(notes, where):
    arguments, _ = draw(Case("step", 1, H, H, H))  # all but bh are of one shape
    arrays = [mx.nd.array(a, dtype=a.dtype) for a in arguments]
    cotangent = mx.nd.array(np.random.RandomState(5).uniform(-1, 1, (H, H)))
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        result = reference.rnn_step(*arrays)
    result.backward(cotangent.astype("float64"))
    wanted = [array.grad.asnumpy() for array in arrays]
    arrays = [mx.nd.array(a, dtype=a.dtype) for a in arguments]
    state, Whh = arrays[1], arrays[3]
    if where == "the gradient that arrives":
        state.attach_grad()
        state.grad[:] = cotangent
        checked, arriving = [(state, 1)], state.grad
    elif where == "the argument":
        mx.autograd.mark_variables([state, Whh], [state.reshape((H, H)), Whh.copy()])
        checked, arriving = [(state, 1), (Whh, 3)], cotangent.astype("float64")
    else:
        shared = mx.nd.zeros((H, H), dtype="float64")
        mx.autograd.mark_variables([arrays[2], Whh], [shared, shared])
        checked, arriving = [(Whh, 3)], cotangent.astype("float64")
    with mx.autograd.record():
        result = rnn_ops.rnn_step(*arrays)
    result.backward(arriving)
    for array, index in checked:
        found = array if where == "the argument" and array is state else array.grad
        assert relative_error(found.asnumpy(), wanted[index]) <= BOUND


# Guards ---------------------------------------------------------------------------------------------------------------

def test_which_arrays_get_a_guard(notes):
    inputs, state, Wxh, Whh, bh = arrays_of()
    others = inputs.copy()
    state.attach_grad(grad_req="null")
    Wxh.attach_grad()
    Whh.attach_grad(grad_req="add")
    bh.attach_grad(stype="row_sparse")
    with mx.autograd.record():
        outputs, last = native.rnn_sequence(inputs, state, Wxh, Whh, bh)
        recorded = nodes(outputs)
        assert [op for op, _ in recorded[:-1]] == ["Reshape"] * (2 if notes == "notes" else 4)
        assert recorded[-1] == ("rnn_ops_native", {"wanted": "..111" if notes == "notes" else ".1111"})
        follower, _ = native.rnn_sequence(others, last, Wxh, Whh * 2, bh)
        guards = len([op for op, _ in nodes(follower) if op == "Reshape"]) - len(recorded[:-1])
        assert guards == (2 if notes == "notes" else 4)  # Whh is made by another operator, the state by this one


def test_arrays_that_autograd_does_not_know_make_no_node(notes):
    arrays = arrays_of()
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(*arrays)
        assert not guard.has_history(outputs)
    arrays[3].attach_grad()
    with mx.autograd.record():
        with mx.autograd.pause():
            assert not guard.has_history(native.rnn_sequence(*arrays)[0])
        outputs, _ = native.rnn_sequence(*arrays)
        assert guard.has_history(outputs) and not guard.has_history(outputs.detach())


# What is computed in the thread that calls ----------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["dense", "tokens"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("steps", [1, 2, 400], ids="{} steps".format)  # of which the last is MXNet's to compute
def test_the_same_bits_either_way(kind, dtype, activation, steps):
    arguments, _ = draw(Case("sequence", steps, B, I, H, kind))
    arguments = [a if a.dtype == np.int32 else a.astype(dtype) for a in arguments]
    wanted = np.empty((steps, B, H), dtype)
    cpu.forward(*arguments, wanted, activation)
    outputs, state = rnn_ops.rnn_sequence(*(mx.nd.array(a, dtype=a.dtype) for a in arguments), activation=activation)
    assert np.array_equal(outputs.asnumpy(), wanted) and np.array_equal(state.asnumpy(), wanted[-1])
    assert outputs.context == state.context == mx.cpu() and outputs.dtype == np.dtype(dtype)
    if steps == 1:
        arguments[0] = arguments[0][0]
        state = rnn_ops.rnn_step(*(mx.nd.array(a, dtype=a.dtype) for a in arguments), activation=activation)
        assert np.array_equal(state.asnumpy(), wanted[0])


def slowly(array):
    """The same values in an array that MXNet is still busy with, for some milliseconds."""
    busy = mx.nd.ones((500, 500))
    for _ in range(3):
        busy = mx.nd.dot(busy, busy) * 0 + 1
    return (array + (busy[0, 0] - 1).astype(array.dtype)).reshape(array.shape)


@pytest.mark.parametrize("index", range(5), ids=NAMES)
@pytest.mark.parametrize("kind", ["dense", "tokens"])
def test_arrays_that_are_still_to_be_written(kind, index):
    arrays = arrays_of(kind)
    wanted = rnn_ops.rnn_sequence(*arrays)[0].asnumpy()
    for function in (rnn_ops.rnn_sequence, native.rnn_sequence):
        given = list(arrays)
        given[index] = slowly(arrays[index])
        assert np.array_equal(function(*given)[0].asnumpy(), wanted)
        given[index] = given[index].copy()
        given[index][:] = slowly(arrays[index])  # and in the middle of their life
        assert np.array_equal(function(*given)[0].asnumpy(), wanted)


@pytest.mark.parametrize("busy", [False, True])
def test_a_later_write_is_not_seen(busy):
    arrays = arrays_of()
    wanted = rnn_ops.rnn_sequence(*arrays)[0].asnumpy()
    given = [array.copy() for array in arrays]
    if busy:
        given[1] = slowly(given[1])
    outputs, _ = rnn_ops.rnn_sequence(*given)
    for array in given:
        array[:] = 7
    assert np.array_equal(outputs.asnumpy(), wanted)


def test_backward_reads_the_values_at_its_call(notes):
    inputs, state, *weights = arrays_of()
    for weight in weights:
        weight.attach_grad()
    gradients = []
    for change in (False, True):
        given = [slowly(inputs), state.copy()]
        with mx.autograd.record():
            outputs, _ = native.rnn_sequence(*given, *weights)
        outputs.backward()
        if change:
            for array in (*given, *weights):
                array[:] = 7
        gradients.append([weight.grad.asnumpy() for weight in weights])
    assert all(np.array_equal(*pair) for pair in zip(*gradients))


def test_views_into_other_arrays():
    arguments, _ = draw(Case("sequence", T, B, I, H))
    wanted = rnn_ops.rnn_sequence(*(mx.nd.array(a, dtype=a.dtype) for a in arguments))[0].asnumpy()
    views = []
    for array in arguments:
        whole = mx.nd.array(np.stack([np.full_like(array, 9), array, np.full_like(array, 9)]), dtype=array.dtype)
        views.append(whole[1])
    for view in views:
        view.attach_grad()
    assert np.array_equal(rnn_ops.rnn_sequence(*views)[0].asnumpy(), wanted)
    with mx.autograd.record():
        outputs, _ = rnn_ops.rnn_sequence(*views)
    outputs.backward()
    assert np.array_equal(outputs.asnumpy(), wanted) and all((view.grad.asnumpy() != 0).any() for view in views)


def test_an_array_in_another_layout():
    """What a convolution leaves, MKL-DNN has in an order of its own."""
    images = mx.nd.random.uniform(-1, 1, (16, 16, 24))
    kernel = mx.nd.random.uniform(-1, 1, (16, 16, 3))
    weights = [mx.nd.random.uniform(-1, 1, shape) for shape in ((16, H), (24, H), (H, H), (H,))]
    for wait in (False, True):
        for record in (False, True):
            inputs = mx.nd.Convolution(images, kernel, kernel=3, num_filter=16, pad=1, no_bias=True)
            copy = mx.nd.Convolution(images, kernel, kernel=3, num_filter=16, pad=1, no_bias=True).asnumpy()
            if wait:
                inputs.wait_to_read()
            weights[2].attach_grad()
            with mx.autograd.record() if record else mx.autograd.pause():
                outputs, _ = rnn_ops.rnn_sequence(inputs, *weights)
            wanted = np.empty(outputs.shape, "float32")
            cpu.forward(copy, *(weight.asnumpy() for weight in weights), wanted)
            assert np.array_equal(outputs.asnumpy(), wanted)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("index", [0, 3])
def test_an_array_whose_computation_has_failed(index, record):
    """Its error comes with the result, or at once with tokens, which are waited for."""
    arrays = arrays_of("tokens" if index == 0 else "dense")
    for function in (rnn_ops.rnn_sequence, native.rnn_sequence):
        wrong = mx.nd.zeros((T, B), dtype="int32") + 99
        failed = native.unguarded(wrong, *arrays[1:], step="0")[0]
        given = list(arrays)
        given[index] = failed.reshape(-1)[:arrays[index].size].reshape(arrays[index].shape).astype(arrays[index].dtype)
        given[1].attach_grad()
        with pytest.raises(mx.MXNetError, match="token 99"):
            with mx.autograd.record() if record else mx.autograd.pause():
                function(*given)[0].wait_to_read()
        with contextlib.suppress(mx.MXNetError):
            mx.nd.waitall()
    assert np.isfinite(rnn_ops.rnn_sequence(*arrays)[0].asnumpy()).all()


def test_inputs_of_another_context_than_its_memory():
    for kind in ("cpu_shared",):
        arrays = [array.as_in_context(mx.Context(kind, 0)) for array in arrays_of()]
        outputs, state = rnn_ops.rnn_sequence(*arrays)
        assert outputs.context == state.context == mx.cpu(0)
        assert np.array_equal(outputs.asnumpy(), rnn_ops.rnn_sequence(*arrays_of())[0].asnumpy())
    arrays = [array.as_in_context(mx.cpu(1)) for array in arrays_of()]
    assert rnn_ops.rnn_sequence(*arrays)[0].context == mx.cpu(1)


def test_readers_beside_a_writer_see_one_of_its_values():
    """The lock of MXNet's engine holds for what is computed in the thread that calls."""
    width = 4000  # so many rows of Wxh that to read them takes a while
    inputs = mx.nd.random.uniform(-0.01, 0.01, (T, B, width))
    _, state, _, Whh, bh = arrays_of(dtype="float32")
    values = [mx.nd.full((width, H), value) for value in (0.25, -0.5)]
    wanted = [rnn_ops.rnn_sequence(inputs, state, value, Whh, bh)[0].asnumpy() for value in values]
    shared, stop, strange = values[0].copy(), threading.Event(), []

    def write():
        while not stop.is_set():
            for value in values:
                shared[:] = value
            shared.wait_to_read()

    def read():
        for _ in range(300):
            found = rnn_ops.rnn_sequence(inputs, state, shared, Whh, bh)[0].asnumpy()
            strange.extend([] if any(np.array_equal(found, each) for each in wanted) else [found])

    writer, readers = threading.Thread(target=write), [threading.Thread(target=read) for _ in range(3)]
    for thread in [writer, *readers]:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    writer.join()
    assert not strange


def test_a_short_call_needs_no_other_thread():
    """MXNet's own is kept busy meanwhile."""
    arrays = arrays_of()
    wanted = rnn_ops.rnn_sequence(*arrays)[0].asnumpy()
    done, waited = threading.Event(), []
    wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: waited.append(done.wait(20)))
    array, context = mx.nd.ones(1), (ctypes.c_int * 2)(1, 0)
    busy = (ctypes.c_void_p * 1)(array.handle)
    mx.base.check_call(mx.base._LIB.MXEnginePushSyncND(wait, None, None, context, None, 0, busy, 1, None, 0, b"wait"))
    try:
        assert np.array_equal(rnn_ops.rnn_sequence(*arrays)[0].asnumpy(), wanted)
        with mx.autograd.record():  # which concerns no array of these
            assert np.array_equal(rnn_ops.rnn_sequence(*arrays)[0].asnumpy(), wanted)
        assert not waited
    finally:
        done.set()
        mx.nd.waitall()
    assert waited == [True]


def test_invisible_gradients_are_not_written():
    """Of a large table that is not trained, to fill its gradient would take longer than all the rest."""
    arrays = arrays_of()
    for array in arrays:
        array.attach_grad()
        array.grad[:] = 3
    with mx.autograd.record():
        outputs, _ = native.unguarded(*arrays, step="0", wanted="0.1..")
    outputs.backward()
    found = [array.grad.asnumpy() for array in arrays]
    assert np.isnan(found[0]).all() and (found[2] != 3).all()
    assert all((found[index] == 3).all() for index in (1, 3, 4))


# What is refused ------------------------------------------------------------------------------------------------------

def outcome(function, values, activation):
    """What comes of a call: its error in words, or the numbers."""
    try:
        results = function(*values, activation=activation)
        return [result.asnumpy().tolist() for result in (results if isinstance(results, tuple) else [results])]
    except (TypeError, ValueError) as error:
        return type(error), str(error)


SIZES = st.sampled_from([0, 0, 0, 0, 1, -1])  # added to a size that fits
DTYPES = st.sampled_from(["float32"] * 6 + ["float64", "float16", "int32", "int64", "uint8"])
VALUES = st.sampled_from([0, 1, 4, 4, 5, -1, 2 ** 31 - 1])


@pytest.mark.parametrize("operator", ["sequence", "step"])
@settings(max_examples=150)
@given(data=st.data())
def test_errors_have_the_same_words(operator, data):
    """Without the front, which leaves that to others, and with it."""
    sizes = dict(T=4, B=3, I=5, H=6)
    tokens = data.draw(st.booleans())
    patterns = [("T" if operator == "sequence" else "") + ("B" if tokens else "BI"), "BH", "IH", "HH", "H"]
    odd = data.draw(st.sets(st.integers(0, 4), max_size=2))
    arrays = []
    for index, pattern in enumerate(patterns):
        shape = [sizes[letter] for letter in pattern]
        dtype = "int32" if tokens and index == 0 else "float32"
        context = mx.cpu()
        if index in odd:
            shape = [size + data.draw(SIZES) for size in shape] + [1] * data.draw(st.sampled_from([0, 0, 1, 2]))
            dtype, context = data.draw(DTYPES), data.draw(st.sampled_from([mx.cpu(), mx.cpu(), mx.cpu(1)]))
        arrays.append(mx.nd.ones(shape, dtype=dtype, ctx=context))
    if tokens and data.draw(st.booleans()):
        arrays[0].reshape(-1)[-1] = data.draw(VALUES)
    activation = data.draw(st.sampled_from(["tanh", "relu", "tanh", "sin"]))
    function = getattr(rnn_ops, "rnn_" + operator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "call", CALL)
        found = outcome(function, arrays, activation)
        patch.setattr(native, "quick_call", lambda *_, **__: None)
        wanted = outcome(function, arrays, activation)
    assert found == wanted


# Processes ------------------------------------------------------------------------------------------------------------

TRAIN = """
import os, sys
import rnn_ops
from rnn_ops._mxnet import mx

def train():
    arrays = [mx.nd.ones(shape) / 4 for shape in [(3, 2, 4), (2, 5), (4, 5), (5, 5), (5,)]]
    for array, request in zip(arrays, [None, "write", "add", "write", "add"]):
        if request:
            array.attach_grad(grad_req=request)
    plain = rnn_ops.rnn_sequence(*arrays)[0].sum().asscalar()
    for _ in range(2):
        with mx.autograd.record():
            state = arrays[1]
            for x in arrays[0]:
                state = rnn_ops.rnn_step(x, state, *arrays[2:])
        state.backward()
    return " ".join("%.5f" % value for value in [plain, *(float(a.grad.sum().asscalar()) for a in arrays[1:])])
"""


def train(code="print(train())", **environment):
    done = subprocess.run([sys.executable, "-c", TRAIN + code], env={**os.environ, **environment}, timeout=100,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=os.path.dirname(os.path.abspath(__file__)))
    assert done.returncode == 0, done.stdout
    return done.stdout.split("\n")[-2]


@pytest.mark.slow
def test_with_every_engine_and_after_a_fork():
    wanted = train()
    assert len(wanted.split()) == 5
    for environment in (dict(MXNET_ENGINE_TYPE="NaiveEngine"), dict(MXNET_ENGINE_TYPE="ThreadedEngine"),
                        dict(MXNET_CPU_WORKER_NTHREADS="3", RNN_OPS_NUM_THREADS="3"), dict(MXNET_EXEC_BULK_EXEC_TRAIN="0")):
        assert train(**environment) == wanted, environment
    forked = train("""
before = train()
child = os.fork()
if child == 0:
    sys.stdout.write(train() + "\\n")
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert train() == before
""")
    assert forked == wanted


# Nothing is kept ------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_no_growth_for_any_outcome_of_a_call(notes, monkeypatch):
    monkeypatch.setattr(native, "call", CALL)  # those that fail are looked at there
    inputs, state, *weights = arrays_of("tokens", "float32")
    images, kernel = mx.nd.ones((T, B, 24)), mx.nd.ones((16, B, 3))
    others = [mx.nd.ones(shape) for shape in ((16, H), (24, H), (H, H), (H,))]
    wrong, long = inputs + 99, mx.nd.zeros((900, B), dtype="int32")
    for index, weight in enumerate(weights):
        weight.attach_grad(grad_req=["write", "add", "write"][index])

    def calls(count):
        for index in range(count):
            rnn_ops.rnn_sequence(inputs, state, *weights)
            if index % 4 == 0:
                with mx.autograd.record():
                    outputs, last = rnn_ops.rnn_sequence(inputs, state, *weights)
                    outputs, last = rnn_ops.rnn_sequence(inputs, last, *weights)
                (outputs if index % 8 else last).backward()
            if index % 5 == 0:
                rnn_ops.rnn_sequence(long, state, *weights)
                with pytest.raises(ValueError):
                    rnn_ops.rnn_sequence(wrong, state, *weights)
                with pytest.raises(ValueError):
                    rnn_ops.rnn_sequence(inputs, state, *weights[::-1])
            if index % 10 == 0:  # a layout of MKL-DNN
                convolved = mx.nd.Convolution(images, kernel, kernel=3, num_filter=16, pad=1, no_bias=True)
                rnn_ops.rnn_sequence(convolved, *others)[0].wait_to_read()
            if index % 50 == 0:
                mx.nd.waitall()
        mx.nd.waitall()

    calls(1500)
    size, blocks = memory.growth(calls, 5000)
    assert size < 1e6 and blocks < 1000
