"""The operators give the reference's values and gradients, however MXNet calls them: autograd, bind, blocks, every req.

test_native.py has more on the native operator.
"""
import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_ops
from operator_cases import (
    ACTIVATIONS,
    BOUND,
    GRADIENTS,
    KINDS,
    as_list,
    assert_gradients,
    assert_same,
    check_add_in_autograd,
    check_bind,
    expected,
    function_of,
    gradients_of,
    named,
    ndarrays,
    recorded,
    variables,
)
from rnn_ops import gradcheck, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES
from rnn_ops.exactness import relative_error
from rnn_ops.gradcheck import Case, draw, values_and_gradients
from rnn_ops.operators import api as public
from rnn_ops.operators import custom, devices
from rnn_ops.operators.ndarray import view

pytestmark = pytest.mark.usefixtures("operator")

REQS = ["null", "write", "add"]
PAIRS_OF_REQS = list(itertools.product(["null", "write", "inplace", "add"], repeat=2))


def symbol(case):
    return mx.sym.Group(as_list(function_of(case)(*map(mx.sym.var, NAMES))))


# Values and gradients -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [
    ("sequence", 1, 1, 1, 1), ("sequence", 2, 1, 1, 1), ("sequence", 1, 33, 3, 7), ("sequence", 63, 3, 1, 5),
    ("sequence", 5, 1, 77, 257), ("sequence", 3, 8, 13, 64), ("sequence", 2, 3, 129, 1030),
    ("sequence", 64, 32, 77, 256),
    ("step", 1, 1, 1, 1), ("step", 1, 33, 3, 7), ("step", 1, 1, 77, 257), ("step", 1, 32, 77, 256),
], ids=lambda shape: "-".join(map(str, shape)))
def test_equals_the_reference(shape, kind, activation):
    case = Case(*shape, input=kind, activation=activation)
    arguments, cotangents, wanted = expected(case)
    assert_same(values_and_gradients(function_of(case), arguments, cotangents), wanted)


@settings(max_examples=60)
@given(st.sampled_from(["sequence", "step"]), st.integers(1, 9), st.integers(1, 19), st.integers(1, 40),
       st.integers(1, 70), st.sampled_from(KINDS), st.sampled_from(["random", "flat"]), st.sampled_from(ACTIVATIONS))
def test_equals_the_reference_at_any_shape(operator, T, B, I, H, kind, values, activation):
    case = Case(operator, 1 if operator == "step" else T, B, I, H, kind, values, activation)
    arguments, cotangents, wanted = expected(case)
    assert_same(values_and_gradients(function_of(case), arguments, cotangents), wanted)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_one_of_the_results_is_enough(kind, used):
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7, kind))
    gradients = []
    for module in (rnn_ops, reference):
        arrays = variables(arguments)
        recorded(lambda *values: module.rnn_sequence(*values)[used], arrays, [cotangents[used]])
        gradients.append(gradients_of(arrays))
    assert_same(*gradients)


def test_nothing_else_is_written():
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments)
    with mx.autograd.record():
        results = rnn_ops.rnn_sequence(*arrays)
    before = [result.asnumpy() for result in results]
    mx.autograd.backward(list(results), ndarrays(cotangents))
    mx.nd.waitall()
    for array, argument in zip([*arrays, *results], [*arguments, *before]):
        assert np.array_equal(array.asnumpy(), argument)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_larger_arrays(kind):
    """Memory that starts anywhere, and whose surroundings stay as they are."""
    case = Case("sequence", 4, 3, 5, 7, kind)
    arguments, cotangents, wanted = expected(case)
    whole = [mx.nd.array(np.concatenate([array[:1], array, array[:1]]), dtype=array.dtype) for array in arguments]
    parts = [array[1:-1] for array in whole]
    floats = [(name, part) for name, part in zip(GRADIENTS, parts) if part.dtype != np.int32]
    spare = {name: mx.nd.full((part.shape[0] + 2,) + part.shape[1:], 9, dtype="float64") for name, part in floats}
    mx.autograd.mark_variables([part for _, part in floats], [spare[name][1:-1] for name, _ in floats])
    results = recorded(rnn_ops.rnn_sequence, parts, cotangents)
    assert_same({**named(results, []), **{name: array[1:-1].asnumpy() for name, array in spare.items()}}, wanted)
    for array in spare.values():
        assert (array[0].asnumpy() == 9).all() and (array[-1].asnumpy() == 9).all()


def test_another_cpu_context():
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments, context=mx.cpu(1))
    results = recorded(rnn_ops.rnn_sequence, arrays, cotangents)
    assert {result.context for result in results} == {mx.cpu(1)}
    assert_same(named(results, arrays), wanted)


def test_nan_stays_nan():
    arguments, _ = draw(Case("sequence", 4, 3, 5, 7))
    arguments[0][1, 2, 0] = np.nan
    outputs, state = rnn_ops.rnn_sequence(*ndarrays(arguments))
    poisoned = np.zeros((4, 3, 7), bool)
    poisoned[1:, 2] = True  # from that step on, in that row
    assert np.array_equal(np.isnan(outputs.asnumpy()), poisoned)
    assert np.array_equal(np.isnan(state.asnumpy()), poisoned[-1])


@pytest.mark.parametrize("module", [public, gradcheck], ids=lambda module: module.__name__)
def test_the_examples_of_the_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0


# Autograd -------------------------------------------------------------------------------------------------------------

def test_grad_req_add_in_autograd():
    check_add_in_autograd(rnn_ops.rnn_sequence)


def test_grad_req_add_of_tokens():
    """The gradient of tokens is zero: nothing is added."""
    tokens, *floats = ndarrays(draw(Case("sequence", 4, 3, 5, 7, "tokens"))[0])
    tokens.attach_grad(grad_req="add")
    floats[1].attach_grad()
    tokens.grad[:] = 3
    with mx.autograd.record():
        outputs, _ = rnn_ops.rnn_sequence(tokens, *floats)
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
        recorded(rnn_ops.rnn_sequence, arrays, cotangents)
    factor = 2 if grad_req == "add" else 1
    found = {name: gradient for name, gradient in gradients_of(arrays).items() if name in wanted}
    assert_same(found, {name: factor * wanted[name] for name in found})
    assert len(found) == len(with_gradient) - (kind == "tokens" and 0 in with_gradient)


@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_weights_shared_by_several_calls(grad_req):
    """Three chunks of a sequence, the state carried, then single steps: one set of weights, one backward."""
    arguments, _ = draw(Case("sequence", 8, 3, 5, 7, "tokens"))
    random = np.random.RandomState(3)
    cotangent = random.normal(size=(8, 3, 7))
    gradients = []
    for module in (rnn_ops, reference):
        tokens, *floats = variables(arguments, grad_req)
        with mx.autograd.record():
            state, *weights = floats
            first, state = module.rnn_sequence(tokens[:3], state, *weights)
            second, state = module.rnn_sequence(tokens[3:6], state, *weights)
            steps = []
            for token in tokens[6:]:
                state = module.rnn_step(token, state, *weights)
                steps.append(state)
            everything = mx.nd.concat(first, second, mx.nd.stack(*steps), dim=0)
        everything.backward(mx.nd.array(cotangent, dtype="float64"))
        gradients.append(gradients_of(floats))
    assert_same(*gradients)


def test_one_array_for_two_arguments():
    """With I = H, one array can be both weights; its gradient is the sum."""
    arguments, cotangents = draw(Case("sequence", 4, 3, 7, 7))
    gradients = []
    for module in (rnn_ops, reference):
        inputs, state, weight, _, bh = ndarrays(arguments)
        weight.attach_grad()
        recorded(module.rnn_sequence, [inputs, state, weight, weight, bh], cotangents)
        gradients.append({"dW": weight.grad.asnumpy()})
    assert_same(*gradients)


def test_gradient_after_a_forward_in_predict_mode():
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments)
    with mx.autograd.record(train_mode=False):
        results = rnn_ops.rnn_sequence(*arrays)
    mx.autograd.backward(list(results), ndarrays(cotangents), train_mode=False)
    assert_same(named(results, arrays), wanted)


def test_second_derivatives_are_refused(operator):
    arrays = ndarrays(draw(Case("sequence", 4, 3, 5, 7))[0])
    arrays[2].attach_grad()
    with mx.autograd.record():
        outputs, _ = rnn_ops.rnn_sequence(*arrays)
        gradient, = mx.autograd.grad(outputs, [arrays[2]], create_graph=True)
    name = {"native": r"\w+", "custom": "Custom"}[operator]  # of which operator in the graph MXNet says so first
    with pytest.raises(mx.MXNetError, match=f"_backward_{name} is non-differentiable"):
        gradient.backward()


def test_beside_another_custom_operator():
    """MXNet remembers which arrays a backward needs for one custom operator only, whichever was made last."""
    @mx.operator.register("rnn_ops_test_first_of_nine")
    class FirstOfNine(mx.operator.CustomOpProp):
        def list_arguments(self):
            return [f"x{index}" for index in range(9)]

        def create_operator(self, ctx, in_shapes, in_dtypes):
            return First()

    class First(mx.operator.CustomOp):
        def forward(self, is_train, req, in_data, out_data, aux):
            self.assign(out_data[0], req[0], in_data[0])

        def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
            for index, (r, gradient) in enumerate(zip(req, in_grad)):
                self.assign(gradient, r, out_grad[0] if index == 0 else 0 * out_grad[0])

    arguments, cotangents, wanted = expected(Case("step", 1, 3, 5, 7))
    arguments, cotangents = ([array.astype("float32") for array in arrays] for arrays in (arguments, cotangents))
    arrays = variables(arguments)
    with mx.autograd.record():
        state = mx.nd.Custom(*[rnn_ops.rnn_step(*arrays)] * 9, op_type="rnn_ops_test_first_of_nine")
    state.backward(mx.nd.array(cotangents[0]))
    for name, gradient in gradients_of(arrays).items():
        assert relative_error(gradient, wanted[name]) <= 1e-5


# A list of one array a step ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [rnn_ops, reference], ids=["operator", "reference"])
@pytest.mark.parametrize("together", [list, tuple])
def test_a_list_of_ndarrays(module, kind, together):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    inputs, others = together(variables(arguments[0])), variables(arguments[1:])
    results = recorded(lambda *others: module.rnn_sequence(inputs, *others), others, cotangents)
    found = named(results, others)
    if kind == "dense":
        found["dinputs"] = np.stack([array.grad.asnumpy() for array in inputs])
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 4])
def test_a_list_of_symbols(T, kind):
    arguments, cotangents, wanted = expected(Case("sequence", T, 3, 5, 7, kind))
    names = [f"x{t}" for t in range(T)] + list(NAMES[1:])
    variables = [mx.sym.var(name) for name in names]
    outputs, state = rnn_ops.rnn_sequence(variables[:T], *variables[T:])
    arrays = dict(zip(names, ndarrays([*arguments[0], *arguments[1:]])))
    gradients = {name: array.zeros_like() for name, array in arrays.items() if array.dtype != np.int32}
    executor = mx.sym.Group([outputs, state]).bind(
        mx.cpu(), arrays, gradients, {name: "write" if name in gradients else "null" for name in names})
    results = executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))
    found = {name: array.asnumpy() for name, array in zip(("outputs", "state"), results)}
    found.update(("d" + name, gradients[name].asnumpy()) for name in NAMES[1:])
    if kind == "dense":
        found["dinputs"] = np.stack([gradients[name].asnumpy() for name in names[:T]])
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [rnn_ops, reference], ids=["operator", "reference"])
def test_a_state_carried_on_without_detach(module, kind):
    """As the tutorial's loop does: backward ends where the batch began, since the last one's graph is gone."""
    arguments, cotangents = draw(Case("sequence", 12, 3, 5, 7, kind))
    found, wanted = {}, {}
    for results, detached, split in ((found, False, list), (wanted, True, lambda array: array)):
        sequence = module.rnn_sequence if results is found else reference.rnn_sequence
        inputs, state, *weights = ndarrays(arguments)
        for array in weights:
            array.attach_grad()
        for batch in range(3):
            chunk = split(inputs[4 * batch:4 * batch + 4])
            with mx.autograd.record():
                outputs, state = sequence(chunk, state, *weights)
                loss = (outputs * mx.nd.array(cotangents[0][4 * batch:4 * batch + 4], dtype="float64")).sum()
            loss.backward()
            state = state.detach() if detached else state
            results[f"state {batch}"] = state.asnumpy()
            results.update((f"{name} {batch}", array.grad.asnumpy()) for name, array in zip(GRADIENTS[2:], weights))
    assert_same(found, wanted)


# Symbols --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("operator", ["sequence", "step"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("req", REQS)
def test_bind_with_one_grad_req(req, kind, operator, is_train):
    case = Case(operator, 1 if operator == "step" else 4, 3, 5, 7, kind)
    check_bind(symbol(case), case, dict.fromkeys(NAMES, req), is_train=is_train)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(REQS), min_size=5, max_size=5), st.sampled_from(KINDS), st.sampled_from(["sequence", "step"]))
def test_bind_with_a_grad_req_for_each(reqs, kind, operator):
    case = Case(operator, 1 if operator == "step" else 4, 3, 5, 7, kind)
    check_bind(symbol(case), case, dict(zip(NAMES, reqs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("req", REQS)
def test_simple_bind(req, kind):
    """Shapes and dtypes that are not given follow from the given ones."""
    case = Case("sequence", 4, 3, 5, 7, kind)
    arguments, cotangents, wanted = expected(case)
    executor = symbol(case).simple_bind(
        mx.cpu(), grad_req=req, inputs=arguments[0].shape, Wxh=(5, 7),
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


def test_weights_shared_by_several_calls_in_one_symbol():
    case = Case("sequence", 4, 3, 5, 7)
    arguments, cotangents, _ = expected(case)
    variables = [mx.sym.var(name) for name in NAMES]
    _, state = rnn_ops.rnn_sequence(*variables)
    outputs, state = rnn_ops.rnn_sequence(variables[0], state, *variables[2:])
    buffers = [mx.nd.full(array.shape, 3, dtype="float64") for array in arguments]
    executor = mx.sym.Group([outputs, state]).bind(mx.cpu(), ndarrays(arguments), buffers, "add")
    executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))

    def twice(inputs, state, *weights):
        return reference.rnn_sequence(inputs, reference.rnn_sequence(inputs, state, *weights)[1], *weights)

    wanted = values_and_gradients(twice, arguments, cotangents)
    assert_same({name: buffer.asnumpy() - 3 for name, buffer in zip(GRADIENTS, buffers)},
                {name: wanted[name] for name in GRADIENTS})


def test_shapes_are_inferred(operator):
    outputs, state = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))
    everything = mx.sym.Group([outputs, state])
    weights = [(5, 7), (7, 7), (7,)]
    assert everything.infer_shape(inputs=(4, 3, 5), state=(3, 7)) == (
        [(4, 3, 5), (3, 7)] + weights, [(4, 3, 7), (3, 7)], [])
    assert everything.infer_shape(inputs=(4, 3), Wxh=(5, 7)) == ([(4, 3), (3, 7)] + weights, [(4, 3, 7), (3, 7)], [])
    if operator == "custom":
        assert everything.infer_shape_partial(state=(3, 7)) == (
            [(), (3, 7), (0, 7), (7, 7), (7,)], [(0, 3, 7), (3, 7)], [])
    else:  # a native operator has no way to say "not known yet"
        with pytest.raises(mx.MXNetError, match="inputs: got a shape that is not known and does not follow from the other"):
            everything.infer_shape_partial(state=(3, 7))
    step = rnn_ops.rnn_step(*map(mx.sym.var, NAMES))
    assert step.infer_shape(inputs=(3,), bh=(7,), Wxh=(5, 0)) == ([(3,), (3, 7)] + weights, [(3, 7)], [])


@pytest.mark.parametrize("known, types", [
    (dict(inputs="float64"), ["float64"] * 5), (dict(bh="float32"), ["float32"] * 5),
    (dict(inputs="int32"), ["int32"] + ["float32"] * 4),
    (dict(inputs="int32", Whh="float64"), ["int32"] + ["float64"] * 4),
])
def test_types_are_inferred(known, types):
    found, results, _ = symbol(Case("sequence", 1, 1, 1, 1)).infer_type(**known)
    assert [np.dtype(dtype) for dtype in found] == types and [np.dtype(dtype) for dtype in results] == types[1:3]


# Every req, seen from inside ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reqs", PAIRS_OF_REQS, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_honours_req(kind, reqs):
    arguments, _, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    results = [mx.nd.full(wanted[name].shape, 5, dtype="float64") for name in ("outputs", "state")]
    operator = custom.Recurrence(devices.Cpu(), step=False)
    mx.nd.waitall()
    operator.forward(True, list(reqs), ndarrays(arguments), results, [])
    for result, req, name in zip(results, reqs, ("outputs", "state")):
        goal = {"null": 5, "write": wanted[name], "inplace": wanted[name], "add": 5 + wanted[name]}[req]
        assert np.abs(result.asnumpy() - goal).max() <= 1e-14


@pytest.mark.parametrize("reqs", PAIRS_OF_REQS, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_backward_asks_for_the_gradients_of_req(kind, reqs):
    """Where it may, the device computes into MXNet's memory itself. It is asked only for gradients that somebody wants."""
    class Device(devices.Cpu):
        def backward(self, *arguments, activation, **gradients):
            self.gradients = gradients
            for gradient in gradients.values():
                if gradient is not None and gradient.shape == (5, 7):
                    gradient[:] = 2

    arguments, _, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    device = Device()
    results = ndarrays([wanted["outputs"], wanted["state"]])
    buffers = [mx.nd.full(array.shape, 5, dtype=array.dtype) for array in arguments]
    req = [reqs[0], reqs[1], reqs[0], "null", "write"]
    mx.nd.waitall()
    custom.Recurrence(device, step=False).backward(req, results, ndarrays(arguments), results, buffers, [])
    for name, buffer, r in zip(GRADIENTS, buffers, req):
        found = device.gradients[name]
        if r == "null" or (name == "dinputs" and kind == "tokens"):
            assert found is None, name
        else:
            assert (found.ctypes.data == view(buffer).ctypes.data) == (r != "add"), name
    assert (buffers[2].asnumpy() == {"null": 5, "write": 2, "inplace": 2, "add": 7}[req[2]]).all()
    if kind == "tokens":
        assert (buffers[0].asnumpy() == {"null": 5, "write": 0, "inplace": 0, "add": 5}[req[0]]).all()


# Gluon ----------------------------------------------------------------------------------------------------------------

class Network(mx.gluon.HybridBlock):
    """Two recurrences, one on top of the other, with one set of recurrent weights, and a sum at the end."""

    def __init__(self, step=False):
        super().__init__()
        self.step = step
        with self.name_scope():
            for name, shape in (("Wxh", (5, 7)), ("top", (7, 7)), ("Whh", (7, 7)), ("bh", (7,))):
                setattr(self, name, self.params.get(name, shape=shape, dtype="float64"))

    def hybrid_forward(self, F, inputs, state, Wxh, top, Whh, bh):
        module = reference if F is None else rnn_ops
        if self.step:
            below = module.rnn_step(inputs, state, Wxh, Whh, bh)
            return module.rnn_step(below, state, top, Whh, bh)
        below, last = module.rnn_sequence(inputs, state, Wxh, Whh, bh)
        outputs, last = module.rnn_sequence(below, last, top, Whh, bh)
        return (F or mx.nd).concat(outputs, (F or mx.nd).expand_dims(last, axis=0), dim=0)


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("hybridize", [None, dict(static_alloc=False), dict(static_alloc=True),
                                       dict(static_alloc=True, static_shape=True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_hybridized_block(kind, hybridize, step):
    """grad_req='add' over several batches, and batches of changing size, through one block."""
    network = Network(step)
    network.initialize(mx.init.Uniform(0.5))
    network.collect_params().setattr("grad_req", "add")
    if hybridize is not None:
        network.hybridize(**hybridize)
    random = np.random.RandomState(4)
    parameters = [getattr(network, name) for name in ("Wxh", "top", "Whh", "bh")]
    truth = [parameter.data().copy() for parameter in parameters]
    for array in truth:
        array.attach_grad(grad_req="add")
    for batch in (3, 3, 8, 2, 3):
        arguments, _ = draw(Case("step" if step else "sequence", 1 if step else 4, batch, 5, 7, kind))
        inputs, state = ndarrays(arguments[:2])
        with mx.autograd.record():
            found = network(inputs, state)
            wanted = network.hybrid_forward(None, inputs, state, *truth)
        cotangent = mx.nd.array(random.normal(size=wanted.shape), dtype="float64")
        mx.autograd.backward([found, wanted], [cotangent, cotangent])
        assert relative_error(found.asnumpy(), wanted.asnumpy()) <= BOUND
    for parameter, array in zip(parameters, truth):
        assert relative_error(parameter.grad().asnumpy(), array.grad.asnumpy()) <= BOUND, parameter.name


# Arrays of other kinds ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [[0], [1, 2], [0, 1, 2, 3, 4]], ids=str)
def test_memory_that_processes_share_is_the_cpus(kind, shared):
    """A DataLoader's workers hand over arrays on cpu_shared(0)."""
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    arrays = ndarrays(arguments)
    for index in shared:
        arrays[index] = arrays[index].as_in_context(mx.Context("cpu_shared", 0))
    for array in arrays:
        if array.dtype != np.int32:
            array.attach_grad()
    results = recorded(rnn_ops.rnn_sequence, arrays, cotangents)
    assert_same(named(results, arrays), wanted)
    assert {result.context.device_type for result in results} == {"cpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_to_be_row_sparse(kind, operator, capfd):
    """In float32, as MXNet makes such gradients. A CustomOp has dense ones only, and says so."""
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    arrays, cotangents = ([array.astype("float32") if array.dtype == np.float64 else array for array in arrays]
                          for arrays in (ndarrays(arguments), cotangents))
    arrays[2].attach_grad(stype="row_sparse")
    with mx.autograd.record():
        results = rnn_ops.rnn_sequence(*arrays)
    if operator == "custom":
        with pytest.raises(mx.MXNetError):
            mx.autograd.backward(list(results), ndarrays(cotangents))
        assert "TypeError: Wxh: got a gradient of storage row_sparse, needs a dense one: attach_grad()" in capfd.readouterr().out
        return
    mx.autograd.backward(list(results), ndarrays(cotangents))
    assert arrays[2].grad.stype == "row_sparse"
    assert relative_error(arrays[2].grad.asnumpy(), wanted["dWxh"]) <= 1e-5


def test_bfloat16_is_refused_by_its_name():
    """As MXNet's automatic mixed precision makes it."""
    arrays = [mx.nd.amp_cast(mx.nd.ones(shape), dtype=mx.nd.ndarray._DTYPE_MX_TO_NP[12])
              for shape in [(4, 3, 5), (3, 7), (5, 7), (7, 7), (7,)]]
    with pytest.raises(TypeError) as raised:
        rnn_ops.rnn_sequence(*arrays)
    assert str(raised.value) == ("inputs: got dtype bfloat16, needs float32, float64 or int32 (tokens); "
                                 "mx.nd.amp_cast(inputs, dtype='float32')")


def test_attributes_that_the_custom_operator_does_not_know():
    arrays = [mx.nd.ones(shape) for shape in [(4, 3, 5), (3, 7), (5, 7), (7, 7), (7,)]]
    for attributes in dict(activation="sigmoid"), dict(hidden="7"):
        with pytest.raises(mx.MXNetError):  # a segmentation fault once
            mx.nd.Custom(*arrays, op_type="rnn_ops_sequence", **attributes)
