"""The operators inside MXNet's control flow and under attributes of nodes: same values and gradients as in a plain loop."""
import numpy as np
import pytest

import rnn_ops
from gluon_cases import HYBRID, assert_same, drawn, evaluate, fill, hybridized
from rnn_ops import gluon
from rnn_ops._mxnet import mx

pytestmark = pytest.mark.usefixtures("operator")

T, N, C, H = 5, 3, 4, 6
NAMES = "inputs", "state", "Wxh", "Whh", "bh"


class Function(mx.gluon.HybridBlock):
    """A function of F and arrays as a block."""

    def __init__(self, function):
        super().__init__()
        self._function = function

    def hybrid_forward(self, F, *arrays):
        return self._function(F, *arrays)


def arrays(dtype="float64"):
    return [drawn(shape, seed, dtype) for seed, shape in enumerate([(T, N, C), (N, H), (C, H), (H, H), (H,)])]


def foreach(F, x, s, Wxh, Whh, bh):
    def body(x, states):
        state = rnn_ops.rnn_step(x, states[0], Wxh, Whh, bh)
        return state, [state]

    outputs, states = F.contrib.foreach(body, x, [s])
    return outputs, states[0]


def foreach_over_sequences(F, x, s, Wxh, Whh, bh):
    """Each item of the loop is a sequence of one step."""
    def body(x, states):
        outputs, state = rnn_ops.rnn_sequence(F.expand_dims(x, axis=0), states[0], Wxh, Whh, bh)
        return F.squeeze(outputs, axis=0), [state]

    outputs, states = F.contrib.foreach(body, x, [s])
    return outputs, states[0]


def while_loop(F, x, s, Wxh, Whh, bh):
    def body(t, state):
        inputs = F.squeeze(F.take(x, t), axis=0)
        state = rnn_ops.rnn_step(inputs, state, Wxh, Whh, bh)
        return state, [t + 1, state]

    outputs, (_, state) = F.contrib.while_loop(lambda t, _: t < T, body, [F.zeros((1,), dtype="float64"), s], max_iterations=T)
    return outputs, state


def cond(F, x, s, Wxh, Whh, bh):
    def sequence():
        outputs, state = rnn_ops.rnn_sequence(x, s, Wxh, Whh, bh)
        return [outputs, state]

    return F.contrib.cond(F.sum(s * s) >= 0, sequence, lambda: [F.broadcast_add(F.dot(x, Wxh), bh), s])


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("loop", [foreach, foreach_over_sequences, while_loop, cond], ids=lambda loop: loop.__name__)
def test_control_flow(loop, how):
    dtype, bound = ("float32", 1e-5) if loop is cond else ("float64", 1e-12)  # MXNet's cond takes no float64 in a graph
    wanted = evaluate(lambda *a: rnn_ops.rnn_sequence(*a), arrays(dtype), {})
    assert_same(evaluate(hybridized(Function(loop), how), arrays(dtype), {}), wanted, bound)


def test_gradients_add_up_in_control_flow():
    """More calls than MXNet sums by itself, each in a loop, with grad_req add."""
    calls = 9
    wanted = evaluate(lambda *a: rnn_ops.rnn_sequence(*a), arrays(), {})
    values = arrays()
    for array in values:
        array.attach_grad("add")
    block = Function(lambda F, *a: [sum(each[1:], each[0]) for each in zip(*(foreach(F, *a) for _ in range(calls)))])
    block.hybridize()
    found = evaluate(block, values, {})
    assert_same({name: array / calls for name, array in found.items()}, wanted)


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("lengths", [None, [2, 5, 1]])
def test_dynamic_unroll_of_a_cell(lengths, how):
    class Unrolled(mx.gluon.HybridBlock):
        def __init__(self, cell):
            super().__init__(prefix="net_")
            self.cell = cell

        def hybrid_forward(self, F, x, s, *lengths):
            outputs, states = mx.gluon.contrib.rnn.rnn_cell.dynamic_unroll(
                self.cell, x, [s], layout="TNC", valid_length=lengths[0] if lengths else None)
            return outputs, states[0]

    evaluated = []
    for kind in gluon.RNNCell, mx.gluon.rnn.RNNCell:
        net = hybridized(Unrolled(fill(kind(H, input_size=C, prefix="rnn_"), "float32")), how)
        rest = [] if lengths is None else [mx.nd.array(lengths)]
        evaluated.append(evaluate(lambda x, s: net(x, s, *rest), arrays("float32")[:2], net.cell.collect_params()))
    assert_same(*evaluated, 1e-5)


@pytest.mark.parametrize("attributes", [
    dict(ctx_group="dev1"), dict(lr_mult="2"), dict(force_mirroring="True"), dict(__mine__="x"), dict(__a__="1", __b__="")],
    ids=str)
@pytest.mark.parametrize("function", [rnn_ops.rnn_step, rnn_ops.rnn_sequence])
def test_attributes_of_nodes(function, attributes):
    values = arrays()
    if function is rnn_ops.rnn_step:
        values[0] = values[0][0]
    values = dict(zip(NAMES, values))
    plain = mx.sym.Group(list(function(*map(mx.sym.var, NAMES))))
    with mx.AttrScope(**attributes):
        noted = mx.sym.Group(list(function(*map(mx.sym.var, NAMES))))
    wanted, *found = ([result.asnumpy() for result in symbol.bind(mx.cpu(), values).forward()]
                      for symbol in (plain, noted, mx.sym.load_json(noted.tojson())))
    for results in found:
        assert all(map(np.array_equal, results, wanted))


def test_a_monitor_sees_finite_values():
    values = dict(zip(NAMES, arrays()))
    executor = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES)))).bind(
        mx.cpu(), values, {name: mx.nd.zeros_like(array) for name, array in values.items()})
    seen = {}
    monitor = mx.monitor.Monitor(1, stat_func=lambda array: array.copy(), monitor_all=True)
    monitor.install(executor)
    for _ in range(5):  # what is not written holds what was there before
        junk = mx.nd.full((64, 1024), np.nan)
        junk.wait_to_read()
        del junk
        monitor.tic()
        executor.forward(is_train=True)
        seen.update((name, array) for _, name, array in monitor.toc())
    assert seen and not [name for name, array in seen.items() if "nan" in str(array)]
