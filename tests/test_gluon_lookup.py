"""TokenRNN with a word-sized vocabulary looks its tokens up: same values, same gradients, nothing in proportion to V but zeros."""
import numpy as np
import pytest
from gluon_cases import HYBRID, assert_same, drawn, drawn_tokens, evaluate, fill, hybridized

from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops.operators import lookup

pytestmark = pytest.mark.usefixtures("operator")

T, N, V, H = 5, 3, 4100, 6
LENGTHS = [2, 0, 5]


def of(kind=gluon.TokenRNN, **options):
    layer = fill(kind(H, prefix="rnn_", input_size=V, **options))
    return layer


def batch(seed=0):
    """Some tokens several times, the first and the last one too."""
    tokens = drawn_tokens((T, N), V, seed).asnumpy()
    tokens[:, 0], tokens[0, 1], tokens[1, 1] = tokens[0, 0], 0, V - 1
    return mx.nd.array(tokens, dtype="int32")


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_equals_the_layer_on_one_hot_rows(activation, lengths, how):
    options = dict(num_layers=2, bidirectional=True, activation=activation, use_sequence_length=lengths is not None)
    own, dense = of(**options), of(gluon.RNN, **options)
    rest = [] if lengths is None else [mx.nd.array(lengths)]
    tokens, states = batch(), drawn((4, N, H), 2)
    wanted = evaluate(lambda h: dense(tokens.one_hot(V, dtype="float64"), h, *rest), [states], dense.collect_params())
    hybridized(own, how)
    assert_same(evaluate(lambda h: own(tokens, h, *rest), [states], own.collect_params()), wanted)


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("req", ["null", "add"])
def test_every_way_to_ask_for_the_gradient(req, how):
    layer, times = of(), 3
    wanted = evaluate(layer, [batch()], layer.collect_params())
    again = hybridized(of(), how)
    again.l0_i2h_weight.grad_req = req
    found = evaluate(again, [batch()], again.collect_params(), times)
    if req == "add":
        found["l0_i2h_weight"] /= times
    assert_same(found, {name: wanted[name] for name in found})


def test_gradients_of_another_batch_leave_nothing_behind():
    layer = of()
    evaluate(layer, [batch(1)], layer.collect_params())
    found = evaluate(layer, [batch(2)], layer.collect_params())["l0_i2h_weight"]
    touched = np.unique(batch(2).asnumpy())
    assert np.abs(found[:, touched]).min(axis=1).max() > 0
    assert not np.delete(found, touched, axis=1).any()


@pytest.mark.parametrize("token", [-1, V, 2 ** 31 - 1])
def test_a_token_that_is_none_is_an_error_where_nobody_has_seen_it_too(token, capfd):
    class Parent(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.layer = of()

        def hybrid_forward(self, F, tokens):
            return self.layer(tokens)

    tokens = batch().asnumpy()
    tokens[2, 1] = token
    net = Parent()
    net.hybridize()
    with pytest.raises(mx.MXNetError):
        net(mx.nd.array(tokens, dtype="int32")).wait_to_read()
    assert f"inputs: got token {token} at [2, 1], needs 0 <= token < {V}" in capfd.readouterr().out
    with pytest.raises(ValueError, match="inputs: got token"):
        net.layer(mx.nd.array(tokens, dtype="int32"))


@pytest.mark.parametrize("symbols", [1, 9, 100, 2000])
def test_sums_of_tokens(symbols):
    random = np.random.RandomState(3)
    tokens, rows = random.randint(symbols, size=50), random.normal(size=(50, 4))
    wanted = np.zeros((symbols, 4))
    np.add.at(wanted, tokens, rows)
    for distinct, sums in lookup.sums_by_token(tokens, rows), lookup.sums_by_product(np, tokens, rows):
        assert np.array_equal(distinct, np.unique(tokens))
        assert np.abs(sums - wanted[distinct]).max() < 1e-12
