"""Arrays in other CPU contexts than ``mx.cpu(0)``, computed by the CPU: results are where the arguments are, and have the same
bits. MXNet runs each context in threads of its own.
"""
import threading

import numpy as np
import pytest

import rnn_ops
from rnn_ops import gluon, gradcheck, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.gradcheck import Case
from rnn_ops.operators import lookup

T, B, I, H = 3, 4, 5, 7
CONTEXTS = [mx.cpu(1), mx.cpu(7), mx.cpu_pinned(1)]

pytestmark = pytest.mark.usefixtures("operator")


def of_case(kind, context, dtype="float32"):
    """Arguments and cotangents."""
    (inputs, *floats), cotangents = gradcheck.draw(Case("sequence", T, B, I, H, kind))
    inputs = inputs if kind == "tokens" else inputs.astype(dtype)
    given = [inputs, *(array.astype(dtype) for array in floats)]
    return ([mx.nd.array(array, dtype=array.dtype, ctx=context) for array in given],
            [mx.nd.array(array, dtype=dtype, ctx=context) for array in cotangents])


def results_and_gradients(function, given, cotangents, context):
    """As NumPy arrays. All of them are in the context."""
    variables = [array for array in given if array.dtype != np.int32]
    for array in variables:
        array.attach_grad()
    with mx.autograd.record():
        results = function(*given)
    mx.autograd.backward(list(results), cotangents)
    found = [*results, *(array.grad for array in variables)]
    assert {array.context.device_id for array in found} == {context.device_id}
    return [array.asnumpy() for array in found]


def same(found, wanted):
    assert len(found) == len(wanted) and all(np.array_equal(*pair) for pair in zip(found, wanted))


@pytest.mark.parametrize("context", [mx.cpu(1), mx.cpu(7)], ids=str)
@pytest.mark.slow
def test_gradients(context):
    """Everything that `gradcheck` makes is in this context, the reference too."""
    cases = [Case("sequence", T, B, I, H, kind) for kind in gradcheck.INPUTS] + [Case("step", 1, B, I, H)]
    with context:
        assert reference.rnn_sequence(*of_case("tokens", context)[0])[0].context == context
        rows = gradcheck.check(cases=cases)
    assert rows and [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize("kind", gradcheck.INPUTS)
def test_calls_with_and_without_autograd(context, kind):
    for dtype in "float32", "float64":
        wanted = results_and_gradients(rnn_ops.rnn_sequence, *of_case(kind, mx.cpu(0), dtype), mx.cpu(0))
        same(results_and_gradients(rnn_ops.rnn_sequence, *of_case(kind, context, dtype), context), wanted)
        given, _ = of_case(kind, context, dtype)
        outputs, state = rnn_ops.rnn_sequence(*given)  # a short call, which the native operator makes at once
        step = rnn_ops.rnn_step(given[0][0], *given[1:])
        assert {array.context.device_id for array in (outputs, state, step)} == {context.device_id}
        same([outputs.asnumpy(), state.asnumpy(), step.asnumpy()], [*wanted[:2], wanted[0][0]])


def test_a_gradient_that_is_added():
    for context in mx.cpu(0), mx.cpu(1):
        given, cotangents = of_case("dense", context)
        for array in given:
            array.attach_grad(grad_req="add")
        for _ in range(2):
            with mx.autograd.record():
                results = rnn_ops.rnn_sequence(*given)
            mx.autograd.backward(list(results), cotangents)
        once = results_and_gradients(rnn_ops.rnn_sequence, *of_case("dense", context), context)[2:]
        assert all(np.allclose(array.grad.asnumpy(), 2 * gradient, rtol=1e-6) for array, gradient in zip(given, once))


@pytest.mark.slow
def test_a_large_vocabulary():
    """Its rows are looked up."""
    V = lookup.MANY_IN_ARRAYS
    random = np.random.RandomState(0)
    tokens, table = random.randint(V, size=(T, B)), random.uniform(-1, 1, (V, H)).astype("float32")
    found = []
    for context in mx.cpu(0), mx.cpu(1):
        given, cotangents = of_case("tokens", context)
        given[0], given[2] = mx.nd.array(tokens, dtype="int32", ctx=context), mx.nd.array(table, ctx=context)
        found.append(results_and_gradients(rnn_ops.rnn_sequence, given, cotangents, context))
    same(*found)


def test_a_graph_of_symbols():
    symbol = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, arguments.NAMES))))
    found = []
    for context in mx.cpu(0), mx.cpu(1):
        given, cotangents = of_case("tokens", context)
        executor = symbol.bind(context, given, [array.zeros_like() for array in given])
        results = executor.forward(is_train=True)
        executor.backward(cotangents)
        assert {array.context for array in [*results, *executor.grad_arrays]} == {context}
        found.append([array.asnumpy() for array in [*results, *executor.grad_arrays]])
    same(*found)


def layers():
    common = dict(input_size=I, prefix="net_")
    return {
        "RNN": lambda: gluon.RNN(H, 2, "relu", bidirectional=True, use_sequence_length=True, **common),
        "TokenRNN": lambda: gluon.TokenRNN(H, **common),
        "large TokenRNN": lambda: gluon.TokenRNN(H, input_size=lookup.MANY, prefix="net_"),
        "sparse TokenRNN": lambda: gluon.TokenRNN(H, sparse_grad=True, **common),
        "RNNCell": lambda: gluon.RNNCell(H, **common)}


@pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=["not", "alloc", "static"])
@pytest.mark.parametrize("name", layers())
def test_one_block_in_several_contexts(name, hybridize):
    """A block with its parameters in both contexts computes in that of its inputs."""
    where = [mx.cpu(0), mx.cpu(1)]
    net = layers()[name]()
    mx.random.seed(1)
    net.initialize(mx.init.Uniform(0.5), ctx=where)
    if hybridize is not None:
        net.hybridize(**hybridize)
    found = []
    for context in where:
        given, _ = of_case("tokens" if "Token" in name else "dense", context)
        lengths = [mx.nd.array([3, 1, 2, 3], ctx=context)] if name == "RNN" else []
        with mx.autograd.record():
            if name == "RNNCell":
                outputs, states = net.unroll(T, given[0], layout="TNC", merge_outputs=True)
                outputs, states = net.unroll(T, given[0], states, layout="TNC", merge_outputs=True)
            else:
                outputs, states = net(given[0], net.begin_state(B, ctx=context), *lengths)
                outputs, states = net(given[0], states, *lengths)
            loss = (outputs ** 2).sum() + sum(state.sum() for state in states)
        loss.backward()
        gradients = [parameter.grad(context) for _, parameter in sorted(net.collect_params().items())]
        assert {array.context for array in [outputs, *states, *gradients]} == {context}
        found.append([array.asnumpy() for array in [outputs, *states, *gradients]])
    same(*found)


@pytest.mark.parametrize("make", [lambda: gluon.RNN(H, 2, bidirectional=True), lambda: gluon.RNNCell(H)], ids=["RNN", "RNNCell"])
def test_a_block_that_first_sees_inputs_in_another_context(make):
    """Its parameters get their shapes then, in all contexts."""
    net = make()
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    for context in mx.cpu(1), mx.cpu(0):
        inputs = of_case("dense", context)[0][0]
        outputs = net(inputs) if isinstance(net, gluon.RNN) else net.unroll(T, inputs, layout="TNC", merge_outputs=True)[0]
        outputs.wait_to_read()
        assert outputs.context == context


def trained(where, kvstore, sparse, V):
    """The parameters after three training steps with the batch split over contexts."""
    net = gluon.TokenRNN(H, input_size=V, sparse_grad=sparse, dtype="float64", prefix="net_")
    mx.random.seed(2)
    net.initialize(mx.init.Uniform(0.5), ctx=where)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=kvstore)
    tokens = np.random.RandomState(0).randint(V, size=(T, B))
    for _ in range(3):
        losses = []
        with mx.autograd.record():
            for context, part in zip(where, np.array_split(tokens, len(where), axis=1)):
                losses.append((net(mx.nd.array(part, dtype="int32", ctx=context)) ** 2).sum())
        mx.autograd.backward(losses)
        trainer.step(B)
    return [parameter.data(where[-1]).asnumpy() for _, parameter in sorted(net.collect_params().items())]


@pytest.mark.parametrize("kvstore", ["device", "local"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense gradient", "sparse gradient"])
@pytest.mark.parametrize("V", [I, lookup.MANY], ids=["small", "large"])
@pytest.mark.slow
def test_a_trainer_over_several_contexts(kvstore, sparse, V):
    wanted = trained([mx.cpu(0)], None, sparse, V)
    for found, values in zip(trained([mx.cpu(0), mx.cpu(1), mx.cpu(5)], kvstore, sparse, V), wanted):
        assert gradcheck.relative_error(found, values) <= 1e-12


def test_several_contexts_at_once():
    wanted = results_and_gradients(rnn_ops.rnn_sequence, *of_case("dense", mx.cpu(0)), mx.cpu(0))
    barrier, errors = threading.Barrier(4), []

    def compute(context):
        try:
            barrier.wait()
            for _ in range(20):
                same(results_and_gradients(rnn_ops.rnn_sequence, *of_case("dense", context), context), wanted)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=compute, args=(mx.cpu(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_arguments_in_several_contexts_are_refused():
    given, _ = of_case("dense", mx.cpu(1))
    given[3] = given[3].as_in_context(mx.cpu(0))
    with pytest.raises(ValueError, match=r"Whh: got an array on cpu\(0\), needs one on cpu\(1\), the context of inputs"):
        rnn_ops.rnn_sequence(*given)
