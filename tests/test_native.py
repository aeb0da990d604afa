"""The native operator gives the reference's values and gradients with every req, however MXNet calls it; what it
refuses; and what is taken where it is not to be had.

float64 where nothing else is said, where a wrong term cannot hide behind rounding.
"""
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_ops
from rnn_ops import info, operators, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.backends.arguments import NAMES
from rnn_ops.gradcheck import Case, draw, values_and_gradients
from rnn_ops.exactness import relative_error
from rnn_ops.operators import native
from rnn_ops.operators.native import guard, load

GRADIENTS = ["d" + name for name in NAMES]
KINDS = ["dense", "tokens"]
ACTIVATIONS = ["tanh", "relu"]
BOUND = 1e-12
CALLS = 9  # more than MXNet sums by itself: it then asks operators to add


def ndarrays(arrays, context=None):
    return [mx.nd.array(array, dtype=array.dtype, ctx=context) for array in arrays]


def reference_of(case):
    """The reference as a function of the case's arguments."""
    function = getattr(reference, "rnn_" + case.operator)
    return lambda *arrays: function(*arrays, activation=case.activation)


def native_of(case):
    function = getattr(native, "rnn_" + case.operator)
    return lambda *arrays: function(*arrays, activation=case.activation)


def unguarded(*values):
    """The bare operator of a sequence on Symbols or NDArrays, as somebody would call it who does not know."""
    on_ndarrays, on_symbols = load.operator[:2]
    operator = on_ndarrays if isinstance(values[0], mx.nd.NDArray) else on_symbols
    results = operator(*values, step="0", activation="tanh")
    return results[0], results[1]


def expected(case):
    """A case's arguments and cotangents, and the reference's results and gradients for them."""
    arguments, cotangents = draw(case)
    return arguments, cotangents, values_and_gradients(reference_of(case), arguments, cotangents)


def assert_same(found, wanted, bound=BOUND):
    assert found.keys() == wanted.keys()
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    assert all(error <= bound for error in errors.values()), errors


def as_list(results):
    return list(results) if isinstance(results, (tuple, list)) else [results]


def sums(calls):
    """The sums of the results of several calls: outputs and state."""
    return [sum(results[1:], results[0]) for results in zip(*calls)]


def recorded(function, arrays, cotangents):
    with mx.autograd.record():
        results = as_list(function(*arrays))
    mx.autograd.backward(results, ndarrays(cotangents))
    return results


# Values and gradients -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [
    ("sequence", 1, 1, 1, 1), ("sequence", 2, 1, 1, 1), ("sequence", 1, 33, 3, 7), ("sequence", 63, 3, 1, 5),
    ("sequence", 5, 1, 77, 257), ("sequence", 3, 8, 13, 64), ("sequence", 64, 32, 77, 256),
    ("step", 1, 1, 1, 1), ("step", 1, 33, 3, 7), ("step", 1, 32, 77, 256),
], ids=lambda shape: "-".join(map(str, shape)))
def test_equals_the_reference(shape, kind, activation):
    case = Case(*shape, input=kind, activation=activation)
    arguments, cotangents, wanted = expected(case)
    assert_same(values_and_gradients(native_of(case), arguments, cotangents), wanted)


@settings(max_examples=60)
@given(st.sampled_from(["sequence", "step"]), st.integers(1, 9), st.integers(1, 19), st.integers(1, 40),
       st.integers(1, 70), st.sampled_from(KINDS), st.sampled_from(ACTIVATIONS))
def test_equals_the_reference_at_any_shape(operator, T, B, I, H, kind, activation):
    case = Case(operator, 1 if operator == "step" else T, B, I, H, kind, activation=activation)
    arguments, cotangents, wanted = expected(case)
    assert_same(values_and_gradients(native_of(case), arguments, cotangents), wanted)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_one_of_the_results_is_enough(kind, used):
    case = Case("sequence", 4, 3, 5, 7, kind)
    arguments, cotangents = draw(case)
    gradients = []
    for function in (native.rnn_sequence, reference.rnn_sequence):
        arrays = ndarrays(arguments)
        floats = [array for array in arrays if array.dtype != np.int32]
        for array in floats:
            array.attach_grad()
        recorded(lambda *a: function(*a)[used], arrays, [cotangents[used]])
        gradients.append({index: array.grad.asnumpy() for index, array in enumerate(floats)})
    assert_same(*gradients)


def test_nothing_else_is_written():
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7))
    arrays = ndarrays(arguments)
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        results = native.rnn_sequence(*arrays)
    before = [result.asnumpy() for result in results]
    mx.autograd.backward(list(results), ndarrays(cotangents))
    mx.nd.waitall()
    for array, argument in zip([*arrays, *results], [*arguments, *before]):
        assert np.array_equal(array.asnumpy(), argument)


def test_nan_stays_nan():
    arguments, _ = draw(Case("sequence", 4, 3, 5, 7))
    arguments[0][1, 2, 0] = np.nan
    outputs, state = native.rnn_sequence(*ndarrays(arguments))
    poisoned = np.zeros((4, 3, 7), bool)
    poisoned[1:, 2] = True  # from that step on, in that row
    assert np.array_equal(np.isnan(outputs.asnumpy()), poisoned)
    assert np.array_equal(np.isnan(state.asnumpy()), poisoned[-1])


# Every req ------------------------------------------------------------------------------------------------------------

def assert_gradients(buffers, noise, req, wanted, calls=1):
    """Each gradient buffer, full of noise before, holds what its req asks for."""
    for name in NAMES:
        gradient = calls * wanted.get("d" + name, np.zeros_like(noise[name]))
        if req[name] == "null":
            assert np.array_equal(buffers[name].asnumpy(), noise[name]), name
        elif req[name] == "add":
            assert relative_error(buffers[name].asnumpy() - noise[name], gradient) <= 1e-10, name
        else:
            assert relative_error(buffers[name].asnumpy(), gradient) <= BOUND, name


def check_bind(results, case, req, calls=1):
    """The gradients that a graph of so many equal calls leaves in buffers full of noise."""
    arguments, cotangents, wanted = expected(case)
    random = np.random.RandomState(2)
    noise = {name: random.randint(1, 9, size=array.shape).astype(array.dtype) for name, array in zip(NAMES, arguments)}
    buffers = dict(zip(NAMES, ndarrays(noise.values())))
    executor = mx.sym.Group(results).bind(mx.cpu(), dict(zip(NAMES, ndarrays(arguments))), buffers, req)
    found = executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))
    for result, name in zip(found, ["outputs", "state"][-len(found):]):
        assert relative_error(result.asnumpy(), calls * wanted[name]) <= BOUND
    assert_gradients(buffers, noise, req, wanted, calls)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["null", "write", "add"]), min_size=5, max_size=5), st.sampled_from(KINDS),
       st.sampled_from(["sequence", "step"]))
def test_bind_with_a_grad_req_for_each(reqs, kind, operator):
    case = Case(operator, 1 if operator == "step" else 4, 3, 5, 7, kind)
    check_bind(as_list(native_of(case)(*map(mx.sym.var, NAMES))), case, dict(zip(NAMES, reqs)))


def test_unguarded_the_operator_overwrites_what_it_should_add_to():
    with pytest.raises(AssertionError):
        check_bind(unguarded(*map(mx.sym.var, NAMES)), Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, "add"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("req", ["null", "write", "add"])
def test_simple_bind(req, kind):
    """Shapes and dtypes that are not given follow from those that are."""
    case = Case("sequence", 4, 3, 5, 7, kind)
    arguments, cotangents, wanted = expected(case)
    executor = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES))).simple_bind(
        mx.cpu(), grad_req=req, inputs=arguments[0].shape, Wxh=(5, 7), bh=(7,),
        type_dict={"inputs": arguments[0].dtype, "Wxh": "float64"})
    noise = {}
    for name, array in zip(NAMES, arguments):
        executor.arg_dict[name][:] = mx.nd.array(array, dtype=array.dtype)
        noise[name] = np.full(array.shape, 5, array.dtype)
        if req != "null":
            executor.grad_dict[name][:] = 5
    outputs, state = executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))
    assert_same({"outputs": outputs.asnumpy(), "state": state.asnumpy()}, {n: wanted[n] for n in ("outputs", "state")})
    if req != "null":
        assert_gradients(executor.grad_dict, noise, dict.fromkeys(NAMES, req), wanted)


def check_add_in_autograd(function):
    """Three backward passes, each of a graph in which the arrays are used twice."""
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = ndarrays(arguments)
    for array in arrays:
        array.attach_grad(grad_req="add")
    for uses in (1, 2, 1):
        recorded(lambda *a: tuple(sums([function(*a) for _ in range(uses)])), arrays, cotangents)
    assert_same({name: array.grad.asnumpy() for name, array in zip(GRADIENTS, arrays)},
                {name: 4 * wanted[name] for name in GRADIENTS})


def test_grad_req_add_in_autograd():
    check_add_in_autograd(native.rnn_sequence)


def test_unguarded_the_operator_overwrites_in_autograd_too():
    with pytest.raises(AssertionError):
        check_add_in_autograd(unguarded)


def test_grad_req_add_of_tokens():
    """The gradient of tokens is zero: nothing is added."""
    tokens, *floats = ndarrays(draw(Case("sequence", 4, 3, 5, 7, "tokens"))[0])
    tokens.attach_grad(grad_req="add")
    floats[1].attach_grad()
    tokens.grad[:] = 3
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(tokens, *floats)
    outputs.backward()
    assert (tokens.grad.asnumpy() == 3).all() and (floats[1].grad.asnumpy() != 0).any()


@pytest.mark.parametrize("grad_req", ["write", "add"])
@pytest.mark.parametrize("with_gradient", [[1], [0, 2], [2, 3, 4], [3], [4]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_only_some_arrays_have_a_gradient(kind, with_gradient, grad_req):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    arrays = ndarrays(arguments)
    for index in with_gradient:
        arrays[index].attach_grad(grad_req=grad_req)
    for _ in range(2):
        recorded(native.rnn_sequence, arrays, cotangents)
    factor = 2 if grad_req == "add" else 1
    for index in with_gradient:
        if arguments[index].dtype != np.int32:
            assert relative_error(arrays[index].grad.asnumpy(), factor * wanted[GRADIENTS[index]]) <= BOUND


def test_what_nobody_can_ask_for_is_not_computed():
    on_ndarrays, _ = load.operator[:2]
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = ndarrays(arguments)
    for array in arrays:
        array.attach_grad()
    recorded(lambda *a: tuple(on_ndarrays(*a, step="0", wanted="01010")), arrays, cotangents)
    assert_same({name: arrays[index].grad.asnumpy() for index, name in enumerate(GRADIENTS) if index in (1, 3)},
                {name: wanted[name] for name in ("dstate", "dWhh")})
    assert all(np.isnan(arrays[index].grad.asnumpy()).all() for index in (0, 2, 4))


def test_which_arrays_autograd_knows():
    leaf, constant = mx.nd.ones(3), mx.nd.ones(3)
    leaf.attach_grad()
    with mx.autograd.record():
        known = [leaf, leaf * 2, leaf.reshape((3, 1))]
        unknown = [constant, constant * 2, (leaf * 2).detach()]
        assert all(guard.has_history(array) for array in known)
        assert not any(guard.has_history(array) for array in unknown)


def test_to_ask_autograd_changes_nothing():
    """MXNet marks gradients that a backward pass has written, for Gluon's Trainer to see."""
    arrays = ndarrays(draw(Case("sequence", 4, 3, 5, 7))[0])
    for array in arrays:
        array.attach_grad()
    outputs, _ = recorded(native.rnn_sequence, arrays, draw(Case("sequence", 4, 3, 5, 7))[1])
    assert [array._fresh_grad for array in arrays] == [True] * 5
    arrays[2]._fresh_grad = False
    with mx.autograd.record():
        native.rnn_sequence(*arrays)
    assert [array._fresh_grad for array in arrays] == [True, True, False, True, True]


@pytest.mark.parametrize("recompute", [False, True], ids=["one use", "the inputs once more"])
def test_gradients_that_flow_on(recompute):
    """Arguments that are results of other operators, one of them used by both."""
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7))
    gradients = []
    for module in (native, reference):
        leaves = ndarrays(arguments)
        for array in leaves:
            array.attach_grad()

        def graph(*leaves):
            arrays = [array * 2 - 0.5 for array in leaves]
            outputs, state = module.rnn_sequence(*arrays)
            return (outputs, state + arrays[0].sum() * arrays[1]) if recompute else (outputs, state)

        recorded(graph, leaves, cotangents)
        gradients.append({name: array.grad.asnumpy() for name, array in zip(NAMES, leaves)})
    assert_same(*gradients)


def test_second_derivatives_are_refused():
    arrays = ndarrays(draw(Case("sequence", 4, 3, 5, 7))[0])
    arrays[2].attach_grad()
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(*arrays)
        gradient, = mx.autograd.grad(outputs, [arrays[2]], create_graph=True)
    with pytest.raises(mx.MXNetError, match="_backward_.* is non-differentiable"):
        gradient.backward()


# Arrays shared by several calls ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("grad_req", ["write", "add"])
@pytest.mark.parametrize("calls", [2, CALLS])
def test_shared_in_one_symbol(calls, grad_req):
    variables = [mx.sym.var(name) for name in NAMES]
    results = sums([native.rnn_sequence(*variables) for _ in range(calls)])
    check_bind(results, Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, grad_req), calls)


def with_plain_identity(*variables):
    return unguarded(*map(mx.sym.identity, variables))


@pytest.mark.parametrize("function", [unguarded, with_plain_identity])
def test_an_identity_is_not_enough_of_a_guard(function):
    """MXNet makes one of the identities of one variable, and asks the operator to add although nobody said "add"."""
    variables = [mx.sym.var(name) for name in NAMES]
    results = sums([function(*variables) for _ in range(CALLS)])
    with pytest.raises(AssertionError):
        check_bind(results, Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, "write"), CALLS)


@pytest.mark.parametrize("saved", [False, True])
def test_one_symbol_composed_several_times(saved):
    """The copies of its nodes have the same inputs and attributes."""
    once = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES)))
    once = mx.sym.load_json(once.tojson()) if saved else once
    variables = {name: mx.sym.var("shared_" + name) for name in NAMES}
    results = sums([tuple(once(**variables)) for _ in range(CALLS)])
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    buffers = {"shared_" + name: mx.nd.zeros(array.shape, dtype="float64") for name, array in zip(NAMES, arguments)}
    executor = mx.sym.Group(results).bind(
        mx.cpu(), dict(zip(buffers, ndarrays(arguments))), buffers, "write")
    executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))
    assert_same({name: buffers["shared_" + name].asnumpy() for name in NAMES},
                {name: CALLS * wanted["d" + name] for name in NAMES})


class Network(mx.gluon.HybridBlock):
    """Several recurrences with one set of weights."""

    def __init__(self, arguments, grad_req, calls):
        super().__init__()
        self._calls = calls
        with self.name_scope():
            for name, array in zip(NAMES[2:], arguments[2:]):
                setattr(self, name, self.params.get(name, shape=array.shape, dtype="float64", grad_req=grad_req,
                                                    init=mx.init.Constant(mx.nd.array(array, dtype="float64"))))
        self.initialize()

    def hybrid_forward(self, F, inputs, state, Wxh, Whh, bh):
        return tuple(sums([native.rnn_sequence(inputs, state, Wxh, Whh, bh) for _ in range(self._calls)]))


HYBRIDIZED = {"not hybridized": None, "hybridized": {}, "static_alloc": dict(static_alloc=True),
              "static_shape": dict(static_alloc=True, static_shape=True)}


@pytest.mark.parametrize("flags", list(HYBRIDIZED.values()), ids=list(HYBRIDIZED))
@pytest.mark.parametrize("grad_req", ["write", "add", "null"])
@pytest.mark.parametrize("calls", [1, 2, CALLS])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_in_a_block(kind, calls, grad_req, flags):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    network = Network(arguments, grad_req, calls)
    if flags is not None:
        network.hybridize(**flags)
    inputs, state = ndarrays(arguments[:2])
    for array in (inputs, state):
        array.attach_grad(grad_req="add")
    for passes in (1, 2):
        results = recorded(network, [inputs, state], cotangents)
    assert relative_error(results[0].asnumpy(), calls * wanted["outputs"]) <= BOUND
    assert relative_error(state.grad.asnumpy(), passes * calls * wanted["dstate"]) <= BOUND
    found = {"d" + name: getattr(network, name).grad().asnumpy() for name in NAMES[2:] if grad_req != "null"}
    if kind == "dense":
        assert relative_error(inputs.grad.asnumpy(), passes * calls * wanted["dinputs"]) <= BOUND
    factor = calls * passes if grad_req == "add" else calls
    assert_same(found, {name: factor * wanted[name] for name in found})


@pytest.mark.filterwarnings("ignore:Cannot decide type")  # MXNet asks for that of a variable alone
def test_export_and_import(tmp_path):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    network = Network(arguments, "write", 1)
    network.hybridize()
    inputs, state = ndarrays(arguments[:2])
    network(inputs, state)
    network.export(str(tmp_path / "network"))
    block = mx.gluon.SymbolBlock.imports(str(tmp_path / "network-symbol.json"), ["data0", "data1"],
                                         str(tmp_path / "network-0000.params"))
    block.hybridize(static_alloc=True)
    for array in (inputs, state):
        array.attach_grad()
    results = recorded(lambda *a: tuple(sums([block(*a) for _ in range(CALLS)])), [inputs, state], cotangents)
    found = {"outputs": results[0], "dinputs": inputs.grad, "dstate": state.grad}
    assert_same({name: array.asnumpy() for name, array in found.items()},
                {name: CALLS * wanted[name] for name in found})


# Where it runs --------------------------------------------------------------------------------------------------------

def test_several_cpu_contexts():
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    for context, results_in in [(mx.cpu(0), mx.cpu(0)), (mx.cpu(1), mx.cpu(1)), (mx.Context("cpu_shared"), mx.cpu(0))]:
        arrays = ndarrays(arguments, context)
        for array in arrays:
            array.attach_grad()
        with mx.autograd.record():
            results = native.rnn_sequence(*arrays)
        mx.autograd.backward(list(results), ndarrays(cotangents, results_in))
        assert all(result.context == results_in for result in results)
        assert_same({name: array.grad.asnumpy() for name, array in zip(GRADIENTS, arrays)},
                    {name: wanted[name] for name in GRADIENTS})


def test_threads_get_exact_results():
    cases = [Case("sequence", 6, 5, 11, 64, "tokens"), Case("sequence", 3, 4, 9, 33), Case("step", 1, 8, 7, 129)]
    work = [(native_of(case), *draw(case)) for case in cases]
    alone = [values_and_gradients(*job) for job in work]
    wrong = []

    def repeat(job, wanted):
        for _ in range(60):
            found = values_and_gradients(*job)
            wrong.extend(name for name in wanted if not np.array_equal(found[name], wanted[name]))

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(work, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_same_bits_as_the_kernels():
    arguments, _ = draw(Case("sequence", 6, 5, 11, 64, "tokens"))
    arguments = [array if array.dtype == np.int32 else array.astype("float32") for array in arguments]
    outputs = np.empty((6, 5, 64), "float32")
    cpu.forward(*arguments, outputs)
    assert np.array_equal(native.rnn_sequence(*ndarrays(arguments))[0].asnumpy(), outputs)


# Inference ------------------------------------------------------------------------------------------------------------

def test_shapes_are_inferred():
    everything = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES)))
    weights = [(5, 7), (7, 7), (7,)]
    assert everything.infer_shape(inputs=(4, 3, 5), state=(3, 7)) == (
        [(4, 3, 5), (3, 7)] + weights, [(4, 3, 7), (3, 7)], [])
    assert everything.infer_shape(inputs=(4, 3), Wxh=(5, 7)) == ([(4, 3), (3, 7)] + weights, [(4, 3, 7), (3, 7)], [])
    step = native.rnn_step(*map(mx.sym.var, NAMES))
    assert step.infer_shape(inputs=(3,), bh=(7,), Wxh=(5, 0)) == ([(3,), (3, 7)] + weights, [(3, 7)], [])


@pytest.mark.parametrize("known, types", [
    (dict(inputs="float64"), ["float64"] * 5), (dict(bh="float32"), ["float32"] * 5),
    (dict(inputs="int32"), ["int32"] + ["float32"] * 4),
    (dict(inputs="int32", Whh="float64"), ["int32"] + ["float64"] * 4),
])
def test_types_are_inferred(known, types):
    found, results, _ = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES))).infer_type(**known)
    assert [np.dtype(dtype) for dtype in found] == types and [np.dtype(dtype) for dtype in results] == types[1:3]


# What is refused ------------------------------------------------------------------------------------------------------

T, B, I, H = 4, 3, 5, 7


def zeros(*shape, dtype="float32"):
    return mx.nd.zeros(shape, dtype=dtype)


def good(**changed):
    return {**dict(inputs=zeros(T, B, I), state=zeros(B, H), Wxh=zeros(I, H), Whh=zeros(H, H), bh=zeros(H)), **changed}


def tokens(*values, dtype="int32"):
    return mx.nd.array(np.resize(values, (T, B)), dtype=dtype)


MISFITS = {
    "rank": (dict(inputs=zeros(3)), "inputs: got shape (3,), needs (T, B, I) of floats or (T, B) of int32 tokens"),
    "batch": (dict(state=zeros(2, H)), "state: got shape (2, 7), needs (3, H), (B, H) with B = 3 from inputs"),
    "width": (dict(Wxh=zeros(4, H)),
              "Wxh: got shape (4, 7), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state"),
    "square": (dict(Whh=zeros(6, H)), "Whh: got shape (6, 7), needs (7, 7), (H, H) with H = 7 from state"),
    "bias": (dict(bh=zeros(1, H)), "bh: got shape (1, 7), needs (7,), (H,) with H = 7 from state"),
    "float tokens": (dict(inputs=tokens(0, 1, dtype="float32")),
                     "inputs: got float32 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast "
                     "tokens with astype('int32')"),
    "int64 tokens": (dict(inputs=tokens(0, 1, dtype="int64")),
                     "inputs: got dtype int64, needs float32, float64 or int32 (tokens); cast tokens with "
                     "astype('int32')"),
    "half": ({name: array.astype("float16") for name, array in good().items()},
             "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    "half state": (dict(state=zeros(B, H, dtype="float16")), "state: got dtype float16, needs float32 or float64"),
    "half inputs": (dict(inputs=zeros(T, B, I, dtype="float16")),
                    "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    "mixed dtypes": (dict(Whh=zeros(H, H, dtype="float64")),
                     "Whh: got dtype float64, needs float32, the dtype of state"),
    "other inputs": (dict(inputs=zeros(T, B, I, dtype="float64")),
                     "inputs: got dtype float64, needs float32, the dtype of state"),
    "integer state": (dict(state=zeros(B, H, dtype="int32")), "state: got dtype int32, needs float32 or float64"),
    "token too large": (dict(inputs=tokens(0, 1, 4, 2, 5)),
                        "inputs: got token 5 at [1, 1], needs 0 <= token < 5, I = 5 from Wxh"),
    "negative token": (dict(inputs=tokens(0, 1, -1)),
                       "inputs: got token -1 at [0, 2], needs 0 <= token < 5, I = 5 from Wxh"),
}


def run_sequence(**values):
    native.rnn_sequence(**values)[0].wait_to_read()


def run_symbol(**values):
    symbol = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES)))
    symbol.bind(mx.cpu(), values).forward()[0].wait_to_read()


@pytest.mark.parametrize("run", [run_sequence, run_symbol])
@pytest.mark.parametrize("changed, sentence", list(MISFITS.values()), ids=list(MISFITS))
def test_misfits(changed, sentence, run):
    with pytest.raises(mx.MXNetError) as raised:
        run(**good(**changed))
    if run is run_symbol and changed.keys() == {"bh"}:  # its number of dimensions is seen to by a node of MXNet's
        assert "Error in operator rnn_ops_bh_" in str(raised.value) and "[1,7]" in str(raised.value)
    else:
        assert f"[0] {sentence}\n" in str(raised.value)
        assert "[1]" not in str(raised.value)  # no message of an earlier error
    run(**good())


def test_a_bad_token_of_a_step():
    values = good(inputs=mx.nd.array([0, 9, 1], dtype="int32"))
    with pytest.raises(mx.MXNetError, match=r"inputs: got token 9 at \[1\], needs 0 <= token < 5, I = 5 from Wxh\n"):
        native.rnn_step(**values).wait_to_read()


def test_a_bad_token_is_told_of_where_the_gradient_is_waited_for():
    values = good(inputs=tokens(9))
    values["Wxh"].attach_grad()
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(**values)
    outputs.backward()
    with pytest.raises(mx.MXNetError, match="inputs: got token 9"):
        values["Wxh"].grad.wait_to_read()


def test_empty_arrays():
    with mx.util.np_shape(True):  # else MXNet has no empty arrays
        with pytest.raises(mx.MXNetError, match=r"inputs: got shape \(0, 3, 5\), needs every dimension to be "):
            native.rnn_sequence(**good(inputs=zeros(0, B, I)))
        assert native.rnn_sequence(**good())[0].shape == (T, B, H)


def test_shapes_that_do_not_follow():
    symbol = native.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    with pytest.raises(mx.MXNetError, match=r"Wxh: got a shape that is not known and does not follow from the other "
                                            r"arguments, needs \(I, H\)"):
        symbol.infer_shape(inputs=(T, B), state=(B, H))


@pytest.mark.parametrize("changed, error, sentence", [
    (dict(inputs=[[1, 2]]), TypeError, "inputs: got list, needs an NDArray or a Symbol: mx.nd.array(inputs)"),
    (dict(Wxh=mx.sym.var("Wxh")), TypeError, "Wxh: got Symbol, needs NDArray as inputs is one"),
    (dict(Wxh=zeros(I, H).tostype("row_sparse")), TypeError,
     "Wxh: got an NDArray of storage row_sparse, needs a dense one: tostype('default')"),
    (dict(activation="sigmoid"), ValueError, "activation: got 'sigmoid', needs 'tanh' or 'relu'"),
])
def test_what_is_no_argument(changed, error, sentence):
    with pytest.raises(error) as raised:
        native.rnn_sequence(**good(**changed))
    assert str(raised.value) == sentence


def test_sparse_arrays_of_symbols():
    symbol = native.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    values = good(Wxh=mx.nd.ones((I, H)).tostype("row_sparse"), inputs=mx.nd.ones((T, B, I)))
    outputs = symbol.bind(mx.cpu(), values).forward()
    assert np.allclose(outputs[0].asnumpy(), np.tanh(I))  # MXNet has made a dense array of it


@pytest.mark.parametrize("attributes, sentence", [
    (dict(step="2"), "step: got '2', needs 0 or 1"),
    (dict(activation="x"), "activation: got 'x', needs 'tanh' or 'relu'"),
    (dict(row="yes"), "row: got 'yes', needs 0 or 1"),
    (dict(rank="3"), "rank: got '3', needs 0 or 1"),
    (dict(wanted="11"), "wanted: got '11', needs a 0 or 1 for each of the five arguments"),
    (dict(steps="1"), "attributes: got 'steps', needs step, activation, wanted, row and rank only"),
])
def test_attributes_of_the_operator(attributes, sentence):
    on_ndarrays, on_symbols = load.operator[:2]
    with pytest.raises(mx.MXNetError, match=sentence):
        on_ndarrays(*good().values(), **attributes)
    with mx.AttrScope(ctx_group="anything"):  # a note on the node, not for the operator
        on_symbols(*map(mx.sym.var, NAMES), step="1")


@pytest.mark.parametrize("name, value, needs", [
    ("RNN_OPS_NUM_THREADS", "none", "a number of threads, 1 or more"), ("RNN_OPS_SIMD", "mmx", "one of "), ])
def test_settings_that_name_nothing(monkeypatch, name, value, needs):
    monkeypatch.setenv(name, value)
    with pytest.raises(mx.MXNetError, match=f"{name}: got '{value}', needs {needs}"):
        run_sequence(**good())


# The switch between the two ------------------------------------------------------------------------------------------

def op_of(function):
    """The operator in the graph of one of the public functions."""
    results = function(*map(mx.sym.var, NAMES))
    return json.loads(mx.sym.Group(as_list(results)).tojson())["nodes"][-1]["op"]


@pytest.mark.parametrize("setting, op", [(None, "rnn_ops_native"), ("", "rnn_ops_native"), ("native", "rnn_ops_native"),
                                         ("custom", "Custom")])
def test_which_operator_is_taken(monkeypatch, setting, op):
    monkeypatch.delenv("RNN_OPS_OPERATOR", raising=False)
    if setting is not None:
        monkeypatch.setenv("RNN_OPS_OPERATOR", setting)
    assert op_of(rnn_ops.rnn_sequence) == op_of(rnn_ops.rnn_step) == op
    assert {"native": "rnn_ops_native", "custom": "Custom"}[operators.in_use()] == op


def test_where_there_is_none_the_custom_operator_is_taken_unless_the_native_one_is_asked_for(monkeypatch):
    monkeypatch.delenv("RNN_OPS_OPERATOR", raising=False)
    monkeypatch.setattr(load, "failure", "the reason")
    assert op_of(rnn_ops.rnn_sequence) == "Custom"
    assert info.collect()["operator"] == "custom (there is no native one: the reason)"
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    sentence = "RNN_OPS_OPERATOR: got 'native', and there is no native operator: the reason"
    with pytest.raises(RuntimeError, match=sentence):
        rnn_ops.rnn_sequence(**good())
    assert info.collect()["operator"] == f"none: {sentence}"
    with pytest.raises(RuntimeError, match="there is no native operator: the reason"):
        native.rnn_sequence(**good())


def test_an_operator_there_is_not(monkeypatch):
    monkeypatch.setenv("RNN_OPS_OPERATOR", "fast")
    with pytest.raises(ValueError, match="RNN_OPS_OPERATOR: got 'fast', needs 'custom' or 'native'"):
        rnn_ops.rnn_sequence(**good())


def test_info_names_the_operator(monkeypatch):
    for name in "native", "custom":
        monkeypatch.setenv("RNN_OPS_OPERATOR", name)
        assert info.collect()["operator"] == name


@pytest.mark.slow
def test_where_mxnet_does_not_take_the_library_the_custom_operator_is_taken_and_why_is_said(tmp_path):
    shutil.copytree(os.path.dirname(rnn_ops.__file__), str(tmp_path / "rnn_ops"), ignore=shutil.ignore_patterns("__pycache__"))
    library = tmp_path / "rnn_ops" / os.path.basename(native.library_path())
    library.write_bytes(library.read_bytes().replace(b"_opRegSize", b"_opRegSiez"))  # a name that MXNet looks for
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import rnn_ops; from rnn_ops.operators import in_use, native; "
            "print(in_use(), '|', native.why_not())")
    environment = {name: value for name, value in os.environ.items() if name != "RNN_OPS_OPERATOR"}
    said = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], universal_newlines=True, env=environment,
                                   cwd=str(tmp_path))
    assert said.startswith("custom | MXNet 1.9.1 does not load it, which is made for 1.9.1: ") and "_opRegSize" in said


@pytest.mark.slow
def test_a_graph_is_read_by_a_process_that_has_called_nothing(tmp_path):
    symbol = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES)))
    symbol.save(str(tmp_path / "graph.json"))
    code = "import sys, rnn_ops; from rnn_ops._mxnet import mx; print(mx.sym.load(sys.argv[1]).list_arguments()[0])"
    printed = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "graph.json")], universal_newlines=True,
                                      cwd=str(tmp_path))
    assert printed == "inputs\n"
