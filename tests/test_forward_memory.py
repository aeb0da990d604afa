"""What a forward pass that nobody records keeps: its outputs, and nothing else of their size. By bytes that are asked for and not
given back, of the whole process; the resident set says less."""
import numpy as np
import pytest

import memory
from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.operators import custom, native

T, B, I, H = 200, 16, 77, 64  # outputs of 819 kB; what is packed for a call takes 20 kB, a thread that computes keeps that
CALLS = 10
OUTPUTS = 4 * T * B * H
SPARE = 150_000  # of all calls: less than a fifth of one call's outputs


def arrays(tokens):
    random = np.random.RandomState(0)
    inputs = random.randint(I, size=(T, B)).astype("int32") if tokens else random.randn(T, B, I).astype("float32")
    return [inputs, *(random.uniform(-0.1, 0.1, shape).astype("float32") for shape in ((B, H), (I, H), (H, H), (H,)))]


def of_the_kernel(tokens):
    given = arrays(tokens)

    def call():
        outputs = np.ones((T, B, H), "float32")
        cpu.forward(*given, outputs)
        return outputs
    return call


def of_an_operator(module):
    def make(tokens):
        given = [mx.nd.array(array, dtype=array.dtype) for array in arrays(tokens)]
        for array in given[1:]:
            array.attach_grad()  # which alone records nothing
        return lambda: module.rnn_sequence(*given)
    return make


def of_a_layer(**hybrid):
    def make(tokens):
        inputs, state = (mx.nd.array(array, dtype=array.dtype) for array in arrays(tokens)[:2])
        layer = (gluon.TokenRNN if tokens else gluon.RNN)(H, input_size=I)
        layer.initialize()
        if hybrid:
            layer.hybridize(**hybrid)
        state = [state.expand_dims(0)]
        return lambda: layer(inputs, state)
    return make


MAKERS = {"kernel": of_the_kernel, "native": of_an_operator(native), "custom": of_an_operator(custom), "layer": of_a_layer(),
          "hybridized layer": of_a_layer(active=True), "static layer": of_a_layer(static_alloc=True, static_shape=True)}


def kept_by_calls(call, held):
    """Bytes that CALLS calls keep, their results in `held`, and what is left of them without these."""
    def calls():
        for _ in range(CALLS):
            held.append(call())
        mx.nd.waitall()

    def drop():
        held.clear()
        mx.nd.waitall()

    calls()  # threads, pools and plans are there
    drop()
    measured = []
    for _ in range(3):  # something of before may be given back meanwhile, but not each time
        kept, _ = memory.growth(calls)
        released, _ = memory.growth(drop)
        measured.append((kept, kept + released))
    return min(measured, key=lambda figures: abs(figures[0] - CALLS * OUTPUTS))


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("name", MAKERS)
def test_forward_keeps_its_outputs_alone(name, tokens):
    kept, left = kept_by_calls(MAKERS[name](tokens), [])
    assert CALLS * OUTPUTS - SPARE < kept < CALLS * (OUTPUTS + 4 * B * H) + SPARE
    assert abs(left) < SPARE


def test_what_a_recorded_layer_keeps_would_be_seen():
    call = of_a_layer()(False)

    def recorded():
        with mx.autograd.record():
            return call()

    assert kept_by_calls(recorded, [])[0] > CALLS * (OUTPUTS + 4 * B * H) + SPARE
