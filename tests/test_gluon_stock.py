"""rnn_ops.gluon against mx.gluon.rnn and against the reference: the same outputs, states and gradients of everything.

Weights are random. MXNet's own tests set them to zero, which no gradient from step to step survives.
"""
import numpy as np
import pytest

import rnn_ops
from rnn_ops import gluon, reference
from rnn_ops._mxnet import mx

T, N, C, H = 5, 3, 4, 6
# In float64, MXNet's layer computes relu no better than float32 would (2.4e-7 off), and of three layers and more on a CPU it
# gives the middle ones' i2h_weight a wrong gradient. In float32 it is right.
STOCK, TRUTH = {"float64": 1e-6, "float32": 1e-5}, 1e-12
OPTIONS = {
    "plain": {}, "relu": dict(activation="relu"), "layers": dict(num_layers=3), "bidirectional": dict(bidirectional=True),
    "both": dict(num_layers=2, bidirectional=True), "NTC": dict(layout="NTC"),
    "all": dict(num_layers=2, bidirectional=True, layout="NTC", activation="relu")}


def pair(tmp_path, options, dtype="float64", ours=gluon.RNN, theirs=mx.gluon.rnn.RNN, **more):
    """(stock layer, our layer) with the same random parameters, ours loaded from what the other saved."""
    options = {"activation": "tanh", "input_size": C, **options, **more}
    stock, own = (kind(H, dtype=dtype, prefix="rnn_", **options) for kind in (theirs, ours))
    stock.initialize(mx.init.Normal(0.5))
    for name, parameter in stock.collect_params().items():
        parameter.set_data(mx.nd.array(np.random.RandomState(len(name)).normal(0, 0.5, parameter.shape), dtype=dtype))
    stock.save_parameters(str(tmp_path / "saved"))
    own.load_parameters(str(tmp_path / "saved"))
    return stock, own


def drawn(shape, dtype="float64", seed=0):
    array = mx.nd.array(np.random.RandomState(seed).normal(size=shape), dtype=dtype)
    array.attach_grad()
    return array


def inputs_for(options, dtype="float64"):
    shape = (N, T, C) if options.get("layout") == "NTC" else (T, N, C)
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return drawn(shape, dtype), drawn((count, N, H), dtype, 1)


class Reference:
    """The layer written out with `rnn_ops.reference`, on another layer's parameters."""

    def __init__(self, layer, num_layers=1, bidirectional=False, layout="TNC", activation="tanh"):
        self.collect_params = layer.collect_params
        self._directions = "lr" if bidirectional else "l"
        self._layers, self._layout, self._activation = num_layers, layout, activation

    def __call__(self, inputs, states):
        weights = {name[len("rnn_"):]: parameter.data() for name, parameter in self.collect_params().items()}
        sequence, last_states = inputs if self._layout == "TNC" else inputs.swapaxes(0, 1), []
        for layer in range(self._layers):
            both = []
            for direction in self._directions:
                i2h_weight, h2h_weight, i2h_bias, h2h_bias = (
                    weights[f"{direction}{layer}_{name}"] for name in ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias"))
                turned = sequence if direction == "l" else sequence.flip(0)
                outputs, last = reference.rnn_sequence(
                    turned, states[0][len(last_states)], i2h_weight.T, h2h_weight.T, i2h_bias + h2h_bias, self._activation)
                both.append(outputs if direction == "l" else outputs.flip(0))
                last_states.append(last)
            sequence = mx.nd.concat(*both, dim=2)
        return sequence if self._layout == "TNC" else sequence.swapaxes(0, 1), [mx.nd.stack(*last_states)]


def evaluate(layer, values, times=1):
    """Results and all gradients, by name, of a random function of the results."""
    inputs, state = values
    for value in values:
        value.attach_grad()
    for _ in range(times):
        with mx.autograd.record():
            outputs, (last,) = layer(inputs, [state])
            loss = (outputs * drawn(outputs.shape, outputs.dtype, 2)).sum()
            loss = loss + (last * drawn(last.shape, last.dtype, 3)).sum()
        loss.backward()
    found = {"outputs": outputs, "last": last, "dinputs": inputs.grad, "dstate": state.grad}
    found.update((name, parameter.grad()) for name, parameter in layer.collect_params().items())
    return {name: array.asnumpy() for name, array in found.items()}


def assert_same(found, wanted, bound=STOCK["float64"]):
    assert found.keys() == wanted.keys() and len(found) >= 8
    for name, array in wanted.items():
        assert np.abs(array).max() > 0, name
        assert np.abs(found[name] - array).max() <= bound * max(1, np.abs(array).max()), name


@pytest.mark.parametrize("hybridize", [None, {}, dict(static_alloc=True, static_shape=True)], ids=["eager", "hybrid", "static"])
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_values_and_gradients(tmp_path, options, hybridize):
    stock, own = pair(tmp_path, options)
    if hybridize is not None:
        own.hybridize(**hybridize)
    found = evaluate(own, inputs_for(options))
    if options.get("num_layers", 1) < 3:
        assert_same(found, evaluate(stock, inputs_for(options)))
    assert_same(found, evaluate(Reference(own, **options), inputs_for(options)), TRUTH)


@pytest.mark.parametrize("options", [OPTIONS["all"], OPTIONS["layers"]], ids=["all", "layers"])
def test_float32(tmp_path, options):
    stock, own = pair(tmp_path, options, "float32")
    assert_same(evaluate(own, inputs_for(options, "float32")), evaluate(stock, inputs_for(options, "float32")),
                STOCK["float32"])


@pytest.mark.parametrize("hybrid", [False, True])
def test_gradients_that_add_up(tmp_path, hybrid):
    """Where MXNet's own `a + b` of two parameters would lose one's gradient."""
    stock, own = pair(tmp_path, OPTIONS["both"])
    wanted = evaluate(stock, inputs_for(OPTIONS["both"]))
    own.collect_params().setattr("grad_req", "add")
    if hybrid:
        own.hybridize()
    found = evaluate(own, inputs_for(OPTIONS["both"]), times=3)
    for name in own.collect_params():
        assert np.abs(found[name] - 3 * wanted[name]).max() <= 1e-11, name


def test_parameters_go_back_too(tmp_path):
    stock, own = pair(tmp_path, OPTIONS["both"])
    for parameter in own.collect_params().values():
        parameter.set_data(parameter.data() * 2)
    own.save_parameters(str(tmp_path / "ours"))
    stock.load_parameters(str(tmp_path / "ours"))
    assert_same(evaluate(own, inputs_for(OPTIONS["both"])), evaluate(stock, inputs_for(OPTIONS["both"])))


@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_shapes_are_found_out_and_the_name_is_mxnets(options):
    options = {"activation": "tanh", **options}
    own, stock = gluon.RNN(H, prefix="rnn_", **options), mx.gluon.rnn.RNN(H, prefix="rnn_", **options)
    assert repr(own) == repr(stock) and list(own.collect_params()) == list(stock.collect_params())
    for layer in own, stock:
        layer.initialize()
        results = layer(inputs_for(options)[0].astype("float32"))  # no states in, none out
        assert isinstance(results, mx.nd.NDArray)
    assert repr(own) == repr(stock)
    assert [p.shape for p in own.collect_params().values()] == [p.shape for p in stock.collect_params().values()]


def test_dropout_is_between_layers_and_while_training(tmp_path):
    stock, own = pair(tmp_path, OPTIONS["both"], dropout=0.5)
    values = inputs_for(OPTIONS["both"])
    assert np.abs(own(values[0]).asnumpy() - stock(values[0]).asnumpy()).max() <= 1e-12
    with mx.autograd.train_mode():
        assert np.abs(own(values[0]).asnumpy() - own(values[0]).asnumpy()).max() > 1e-3
    _, single = pair(tmp_path, {}, dropout=0.5)
    with mx.autograd.train_mode():
        assert np.array_equal(single(values[0]).asnumpy(), single(values[0]).asnumpy())


@pytest.mark.parametrize("options", [{}, OPTIONS["both"], OPTIONS["all"]], ids=["plain", "both", "all"])
def test_rows_of_different_lengths(tmp_path, options):
    """Each row is what it would be alone, cut off at its own end."""
    _, own = pair(tmp_path, options)
    _, masked = pair(tmp_path, options, use_sequence_length=True)
    masked.load_parameters(str(tmp_path / "saved"))
    inputs, state = inputs_for(options)
    lengths = [2, 5, 3]
    outputs, (last,) = masked(inputs, [state], mx.nd.array(lengths))
    time = 1 if options.get("layout") == "NTC" else 0
    for row, length in enumerate(lengths):
        alone = inputs.slice_axis(1 - time, row, row + 1).slice_axis(time, 0, length)
        found, (found_last,) = own(alone, [state.slice_axis(1, row, row + 1)])
        of_row = outputs.slice_axis(1 - time, row, row + 1)
        assert np.abs(of_row.slice_axis(time, 0, length).asnumpy() - found.asnumpy()).max() <= 1e-12
        assert np.abs(last.slice_axis(1, row, row + 1).asnumpy() - found_last.asnumpy()).max() <= 1e-12
        if length < T:
            assert (of_row.slice_axis(time, length, None).asnumpy() == 0).all()


def test_tokens_are_their_one_hot_rows(tmp_path):
    for options in {}, OPTIONS["both"], OPTIONS["all"]:
        dense, own = pair(tmp_path, options, theirs=gluon.RNN, ours=gluon.TokenRNN)
        shape = (N, T) if options.get("layout") == "NTC" else (T, N)
        tokens = mx.nd.array(np.random.RandomState(0).randint(C, size=shape), dtype="int32")
        rows, state = tokens.one_hot(C, dtype="float64"), inputs_for(options)[1]
        rows.attach_grad()
        wanted, found = evaluate(dense, (rows, state)), evaluate(own, (tokens, state))
        for name in wanted:
            if name != "dinputs":
                assert np.abs(found[name] - wanted[name]).max() <= 1e-12, name


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_cell(tmp_path, activation):
    stock, own = (kind(H, activation=activation, input_size=C, prefix="cell_") for kind in
                  (mx.gluon.rnn.RNNCell, gluon.RNNCell))
    stock.initialize(mx.init.Normal(0.5))
    stock.save_parameters(str(tmp_path / "cell"))
    own.load_parameters(str(tmp_path / "cell"))
    x, state = drawn((N, C), "float32"), drawn((N, H), "float32", 1)
    for cell in stock, own:
        cell.reset()
    (a, _), (b, _) = stock(x, [state]), own(x, [state])
    assert np.abs(a.asnumpy() - b.asnumpy()).max() <= 1e-6
    gradients = []
    for cell in stock, own:
        sequence = drawn((N, T, C), "float32")
        with mx.autograd.record():
            outputs, (last,) = cell.unroll(T, sequence, [state], layout="NTC", merge_outputs=True)
            loss = (outputs * drawn(outputs.shape, "float32", 2)).sum() + last.sum()
        loss.backward()
        gradients.append([outputs.asnumpy(), last.asnumpy(), sequence.grad.asnumpy()] +
                         [p.grad().asnumpy() for p in cell.collect_params().values()])
    for ours, theirs in zip(*gradients):
        assert np.abs(ours - theirs).max() <= 1e-5 and np.abs(theirs).max() > 0


def test_export_and_import(tmp_path):
    _, own = pair(tmp_path, OPTIONS["both"], "float32")
    own.hybridize()
    inputs, state = inputs_for(OPTIONS["both"], "float32")
    wanted = own(inputs, [state])[0].asnumpy()
    own.export(str(tmp_path / "net"))
    block = mx.gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data0", "data1"], str(tmp_path / "net-0000.params"))
    assert np.array_equal(block(inputs, state)[0].asnumpy(), wanted)


def test_training_on_several_contexts():
    """One step on two halves of a batch is one step on the whole."""
    contexts, results = [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], []
    data, target = drawn((4, T, C), "float32"), drawn((4, T, H), "float32", 5)
    for context in contexts:
        mx.random.seed(1)
        net = gluon.RNN(H, layout="NTC", activation="tanh", input_size=C, prefix="net_")
        net.initialize(mx.init.Normal(0.3), ctx=context)
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
        for _ in range(3):
            parts = zip(mx.gluon.utils.split_and_load(data, context), mx.gluon.utils.split_and_load(target, context))
            with mx.autograd.record():
                losses = [((net(x) - y) ** 2).sum() for x, y in parts]
            for loss in losses:
                loss.backward()
            trainer.step(4)
        results.append({name: p.data(context[-1]).asnumpy() for name, p in net.collect_params().items()})
    for name in results[0]:
        assert np.abs(results[0][name] - results[1][name]).max() <= 1e-5, name


def test_batches_of_a_data_loader():
    dataset = mx.gluon.data.ArrayDataset(mx.nd.random.normal(shape=(7, T, C)), mx.nd.arange(7))
    net = gluon.RNN(H, layout="NTC", activation="tanh")
    net.initialize()
    shapes = [net(x).shape for x, _ in mx.gluon.data.DataLoader(dataset, batch_size=3)]
    assert shapes == [(3, T, H), (3, T, H), (1, T, H)]


def test_what_is_refused():
    with pytest.raises(ValueError, match="activation: got 'gelu', needs 'tanh' or 'relu'"):
        gluon.RNN(H, activation="gelu")
    with pytest.raises(ValueError, match="input_size: got 0, needs the number of different tokens"):
        gluon.TokenRNN(H)
    layer = gluon.RNN(H)
    layer.initialize()
    with pytest.raises(ValueError, match="inputs: got shape .*, needs three dimensions"):
        layer(mx.nd.ones((T, N)))
    tokens = gluon.TokenRNN(H, input_size=C)
    tokens.initialize()
    with pytest.raises(ValueError, match="inputs: got float32 of shape .* needs int32 tokens"):
        tokens(mx.nd.ones((T, N)))
    with pytest.raises(ValueError, match="inputs: got token 4 at"):
        tokens(mx.nd.full((T, N), 4, dtype="int32"))
    masked = gluon.RNN(H, use_sequence_length=True)
    masked.initialize()
    with pytest.raises(ValueError, match="sequence_length: got .*, needs numbers from 1 to 5"):
        masked(mx.nd.ones((T, N, C)), sequence_length=mx.nd.array([1, 6, 2]))
    assert rnn_ops.gluon is gluon
