"""rnn_ops.gluon.RNN and TokenRNN are MXNet's layer: values, every gradient, states, all that Gluon does with a layer.

Truth in float64 is the stack of cells that MXNet unfuses its layer into. MXNet 1.9.1's fused layer on the CPU is right
in float32 only. In float64 its relu has float32's precision, and its gradients of several layers are wrong: those of
lower layers where the inputs need no gradient, as in training, and of some from three layers on in any case.
"""
import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from gluon_cases import HYBRID, assert_same, drawn, drawn_tokens, evaluate, fill, flat, hybridized
from rnn_ops import gluon
from rnn_ops._mxnet import mx

T, N, C, H = 5, 3, 4, 6
LENGTHS = [2, 5, 1]
stock = mx.gluon.rnn

each_way = pytest.mark.parametrize("how", HYBRID)


def of(kind, **options):
    return kind(H, prefix="rnn_", **{"input_size": C, **options})


def inputs_of(layer, dtype="float64"):
    """Inputs and the states to begin with."""
    shape = (T, N, C) if layer._layout == "TNC" else (N, T, C)
    return drawn(shape, 1, dtype), drawn(layer.state_info(N)[0]["shape"], 2, dtype)


def cells(layer):
    """The layer as MXNet's stack of cells, called as the layer is."""
    stack = layer._unfuse()

    def call(inputs, states=None):
        begin = None if states is None else list(states)
        if begin is None:
            begin = stack.begin_state(batch_size=N, dtype=inputs.dtype)
        outputs, last = stack.unroll(T, inputs, begin, layout=layer._layout, merge_outputs=True)
        return outputs if states is None else (outputs, mx.nd.stack(*last, axis=0))

    return call


# Values and gradients -------------------------------------------------------------------------------------------------

@each_way
@pytest.mark.parametrize("with_states", [True, False], ids=["states", "none"])
@pytest.mark.parametrize("layout", ["TNC", "NTC"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_float64_equals_mxnets_cells(activation, num_layers, bidirectional, layout, with_states, how):
    options = dict(activation=activation, num_layers=num_layers, bidirectional=bidirectional, layout=layout)
    own, theirs = (fill(of(kind, **options)) for kind in (gluon.RNN, stock.RNN))
    arrays = inputs_of(own)[:2 if with_states else 1]
    wanted = evaluate(cells(theirs), arrays, theirs.collect_params())
    assert_same(evaluate(hybridized(own, how), arrays, own.collect_params()), wanted)


@pytest.mark.parametrize("layout", ["TNC", "NTC"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_float32_equals_mxnets_layer_and_files_load_both_ways(tmp_path, activation, num_layers, bidirectional, layout):
    options = dict(activation=activation, num_layers=num_layers, bidirectional=bidirectional, layout=layout)
    found = {}
    for saver, loader in (gluon.RNN, stock.RNN), (stock.RNN, gluon.RNN):
        fill(of(saver, **options), "float32").save_parameters(str(tmp_path / "file"))
        layer = of(loader, input_size=0, **options)
        layer.load_parameters(str(tmp_path / "file"))
        found[loader] = evaluate(layer, inputs_of(layer, "float32"), layer.collect_params())
    assert_same(found[gluon.RNN], found[stock.RNN], 1e-5)


@each_way
@pytest.mark.parametrize("needed", [[], [0], [1]], ids=["neither", "inputs", "states"])
def test_inputs_and_states_that_need_no_gradient(needed, how):
    own, theirs = (fill(of(kind, num_layers=3, activation="tanh")) for kind in (gluon.RNN, stock.RNN))
    arrays = [array if i in needed else array.copy() for i, array in enumerate(inputs_of(own))]
    wanted = evaluate(cells(theirs), arrays, theirs.collect_params())
    assert len([name for name in wanted if "gradient" in name]) == len(needed)
    assert_same(evaluate(hybridized(own, how), arrays, own.collect_params()), wanted)


def test_tokens_are_their_one_hot_rows():
    for layout in "TNC", "NTC":
        options = dict(num_layers=2, bidirectional=True, layout=layout, activation="tanh")
        own, theirs = (fill(of(kind, **options)) for kind in (gluon.TokenRNN, stock.RNN))
        tokens, states = drawn_tokens((T, N) if layout == "TNC" else (N, T), C), inputs_of(theirs)[1]
        rows = tokens.one_hot(C, dtype="float64")
        wanted = evaluate(cells(theirs), (rows, states), theirs.collect_params())
        for how in HYBRID:
            found = evaluate(hybridized(own, how), (tokens, states), own.collect_params())
            assert_same(found, wanted)


@each_way
@pytest.mark.parametrize("reqs", ["add", "write", "null in turn", "add in turn", "write in turn"])
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
@pytest.mark.slow
def test_every_way_to_ask_for_gradients(kind, reqs, how):
    """`add` adds up, `null` leaves the others right. "In turn": one parameter alone, the others the other way."""
    times, options = 3, dict(num_layers=2, bidirectional=True, activation="tanh")
    layer = fill(of(kind, **options))
    arrays = (drawn_tokens((T, N), C), inputs_of(layer)[1]) if kind is gluon.TokenRNN else inputs_of(layer)
    wanted = evaluate(layer, arrays, layer.collect_params())
    alone, others = {"null in turn": ("null", "write"), "add in turn": ("add", "null"),
                     "write in turn": ("write", "add")}.get(reqs, (reqs, reqs))
    for chosen in layer.collect_params() if alone != others else [None]:
        again = hybridized(fill(of(kind, **options)), how)
        for name, parameter in again.collect_params().items():
            parameter.grad_req = alone if name == chosen else others
        found = evaluate(again, arrays, again.collect_params(), times)
        for name, parameter in again.collect_params().items():
            if parameter.grad_req == "add":
                found[name[len("rnn_"):]] /= times
        assert_same(found, {name: wanted[name] for name in found}, 1e-11)


@each_way
def test_gradients_of_inputs_and_states_add_up(how):
    layer = hybridized(fill(of(gluon.RNN, num_layers=2, bidirectional=True)), how)
    arrays = inputs_of(layer)
    wanted = evaluate(layer, arrays, layer.collect_params())
    for array in arrays:
        array.attach_grad("add")
    found = evaluate(layer, arrays, layer.collect_params(), times=3)
    for name in "gradient 0", "gradient 1":
        found[name] /= 3
    assert_same(found, wanted)


@each_way
def test_one_block_called_twice_and_blocks_that_share_parameters(how):
    """The gradient of a parameter is the sum over all calls, whichever block they went through."""
    found = {}
    for kind in gluon.RNN, stock.RNN:
        first = fill(of(kind, activation="tanh"))
        second = of(kind, activation="tanh", dtype="float64", params=first.params)
        assert second.l0_h2h_weight is first.l0_h2h_weight
        hybridized(first, how), hybridized(second, how)
        found[kind] = evaluate(lambda x, h: [first(x), first(x * 2), second(x, h)], inputs_of(first),
                               first.collect_params())
    assert_same(found[gluon.RNN], found[stock.RNN])


# Rows of different lengths --------------------------------------------------------------------------------------------

def rows_alone(layer, inputs, states):
    """What use_sequence_length must give: each row by itself, cut off at its own end, through MXNet's layer."""
    time, batch = layer._layout.find("T"), layer._layout.find("N")
    outputs, last = [], []
    for row, length in enumerate(LENGTHS):
        alone = inputs.slice_axis(batch, row, row + 1).slice_axis(time, 0, length)
        output, (state,) = layer(alone, states.slice_axis(1, row, row + 1))
        shape = list(output.shape)
        shape[time] = T - length
        outputs.append(mx.nd.concat(output, mx.nd.zeros(shape, dtype="float64"), dim=time) if length < T else output)
        last.append(state)
    return mx.nd.concat(*outputs, dim=batch), mx.nd.concat(*last, dim=1)


@each_way
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("layout", ["TNC", "NTC"])
def test_rows_end_at_their_lengths(layout, bidirectional, how):
    options = dict(num_layers=2, bidirectional=bidirectional, layout=layout, activation="tanh")
    own, theirs = fill(of(gluon.RNN, use_sequence_length=True, **options)), fill(of(stock.RNN, **options))
    arrays = inputs_of(own)
    wanted = evaluate(lambda *arrays: rows_alone(theirs, *arrays), arrays, theirs.collect_params())
    hybridized(own, how)
    for dtype in "int32", "float32", "float64":
        lengths = mx.nd.array(LENGTHS, dtype=dtype)
        assert_same(evaluate(lambda x, h: own(x, h, lengths), arrays, own.collect_params()), wanted)


@each_way
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_rows_end_at_their_lengths_with_relu(kind, how):
    """Against our own layer: MXNet's has float32's precision there. One array of states serves all rows."""
    options = dict(num_layers=2, bidirectional=True, activation="relu")
    own, alone = fill(of(kind, use_sequence_length=True, **options)), fill(of(kind, **options))
    states = inputs_of(own)[1]
    inputs = drawn_tokens((T, N), C) if kind is gluon.TokenRNN else inputs_of(own)[0]
    arrays = [states] if kind is gluon.TokenRNN else [states, inputs]
    wanted = evaluate(lambda h, x=inputs: rows_alone(alone, x, h), arrays, alone.collect_params())
    hybridized(own, how)
    assert_same(evaluate(lambda h, x=inputs: own(x, h, mx.nd.array(LENGTHS)), arrays, own.collect_params()), wanted)


@each_way
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_states_behind_the_end_of_a_row_cannot_grow(kind, how):
    """relu has no bound: 120 steps that multiply by 3 would be infinite in float32, and the gradient of Whh NaN."""
    steps, longest = 120, 4
    layer = fill(kind(H, activation="relu", input_size=C, use_sequence_length=True), "float32")
    layer.l0_h2h_weight.set_data(3 * mx.nd.eye(H))
    layer.l0_i2h_bias.set_data(mx.nd.ones(H))
    hybridized(layer, how)
    lengths = mx.nd.array([1 + row % longest for row in range(N)])
    inputs = drawn_tokens((steps, N), C) if kind is gluon.TokenRNN else drawn((steps, N, C), 1, "float32")
    states = drawn((1, N, H), 2, "float32")
    found, wanted = (evaluate(lambda h: layer(x, h, lengths), [states], layer.collect_params())
                     for x in (inputs, inputs[:longest]))
    outputs = found.pop("result 0")
    assert np.array_equal(outputs[:longest], wanted.pop("result 0")) and not outputs[longest:].any()
    assert_same(found, wanted, 1e-6)


@each_way
def test_inputs_behind_the_end_of_a_row_do_not_matter(how):
    options = dict(num_layers=2, bidirectional=True, use_sequence_length=True, activation="tanh")
    lengths = mx.nd.array(LENGTHS)
    behind = np.arange(T)[:, None] >= np.array(LENGTHS)
    for kind, junk in (gluon.RNN, np.nan), (gluon.TokenRNN, -1):
        layer = hybridized(fill(of(kind, **options)), how)
        inputs, states = drawn_tokens((T, N), C) if kind is gluon.TokenRNN else inputs_of(layer)[0], inputs_of(layer)[1]
        spoilt = inputs.asnumpy()
        spoilt[behind] = junk
        spoilt = mx.nd.array(spoilt, dtype=inputs.dtype)
        if kind is gluon.RNN:
            spoilt.attach_grad()
        wanted, found = (evaluate(lambda x, h: layer(x, h, lengths), (x, states), layer.collect_params())
                         for x in (inputs, spoilt))
        assert_same(found, wanted, 0)


def in_parent(layer):
    """The layer inside a hybridized network: nobody sees the lengths before MXNet runs."""
    class Parent(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__(prefix="net_")
            self.layer = layer

        def hybrid_forward(self, F, inputs, states, lengths):
            outputs, (last,) = self.layer(inputs, states, lengths)
            return outputs, last

    return Parent()


@pytest.mark.parametrize("how", ["eager", "hybrid", "parent", "static parent"])
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_row_of_length_0_keeps_its_state(kind, activation, how, operator):
    options = dict(num_layers=2, bidirectional=True, activation=activation)
    layer, alone = fill(of(kind, use_sequence_length=True, **options)), fill(of(kind, **options))
    states = inputs_of(layer)[1]
    inputs = drawn_tokens((T, N), C) if kind is gluon.TokenRNN else inputs_of(layer)[0]
    arrays = [states] if kind is gluon.TokenRNN else [states, inputs]
    if "parent" in how:
        net = in_parent(layer)
        net.hybridize(**HYBRID["static" if "static" in how else "hybrid"])
    else:
        net = hybridized(layer, how)

    def rows_with_steps(h, x=inputs):
        outputs, (last,) = alone(x.slice_axis(1, 1, 3), h.slice_axis(1, 1, 3))
        return (mx.nd.concat(mx.nd.zeros((T, 1, 2 * H), dtype="float64"), outputs, dim=1),
                mx.nd.concat(h.slice_axis(1, 0, 1), last, dim=1))

    wanted = evaluate(rows_with_steps, arrays, alone.collect_params())
    found = evaluate(lambda h, x=inputs: net(x, h, mx.nd.array([0, T, T])), arrays, layer.collect_params())
    assert_same(found, wanted)
    assert not net(inputs, states, mx.nd.zeros(N))[0].asnumpy().any()


@pytest.mark.parametrize("lengths, meant", [
    ([T + 1, 2, 4], [T, 2, 4]), ([-1, 2, 4], [0, 2, 4]), ([np.nan, 2, 4], [0, 2, 4]), ([1.5, 2, 4], [2, 2, 4]),
    ([np.inf, 2 ** 31, -np.inf], [T, T, 0])])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_lengths_that_nobody_has_seen_have_a_meaning(activation, lengths, meant, operator):
    layer = fill(of(gluon.RNN, use_sequence_length=True, bidirectional=True, activation=activation))
    net = in_parent(layer)
    net.hybridize()
    found, wanted = (evaluate(lambda *a: net(*a, mx.nd.array(each)), inputs_of(layer), layer.collect_params())
                     for each in (lengths, meant))
    assert_same(found, wanted, 0)


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_width_of_the_inputs_is_found_out(how, activation, lengths, operator):
    options = dict(num_layers=2, bidirectional=True, activation=activation, use_sequence_length=lengths is not None)
    arguments = (None,) if lengths is None else (None, mx.nd.array(lengths))
    layer = hybridized(of(gluon.RNN, input_size=0, **options), how)
    layer.initialize()
    assert layer(mx.nd.ones((T, N, C)), *arguments).shape == (T, N, 2 * H)
    assert layer.l0_i2h_weight.shape == layer.r0_i2h_weight.shape == (H, C)
    symbol = of(gluon.RNN, input_size=0, **options)(mx.sym.var("x"), None, *map(mx.sym.var, ["n"][:len(arguments) - 1]))
    shapes = symbol.infer_shape(x=(T, N, C), **({} if lengths is None else {"n": (N,)}))[0]
    assert shapes[symbol.list_arguments().index("rnn_l0_i2h_weight")] == (H, C)


# States that are carried on ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    dict(), dict(num_layers=2, bidirectional=True), dict(layout="NTC"), dict(use_sequence_length=True),
    dict(num_layers=2, dropout=0.3, layout="NTC"), dict(bidirectional=True, use_sequence_length=True, layout="NTC")], ids=str)
@pytest.mark.parametrize("used", ["outputs", *(pytest.param(used, marks=pytest.mark.slow) for used in ("states", "both"))])
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_a_state_that_was_not_detached_is_a_constant(kind, used, options, operator):
    """As with MXNet's layer: books carry the state on and forget that detach() gives a new one."""
    losses = {}
    for detach in True, False:
        layer = fill(of(kind, activation="tanh", **options), "float32")
        trainer = mx.gluon.Trainer(layer.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=None)
        shape = (T, N) if layer._layout == "TNC" else (N, T)
        inputs = drawn_tokens(shape, C) if kind is gluon.TokenRNN else drawn(shape + (C,), 1, "float32").detach()
        lengths = mx.nd.array(LENGTHS) if options.get("use_sequence_length") else None
        states, losses[detach] = layer.begin_state(N), []
        mx.random.seed(1)
        for _ in range(3):
            with mx.autograd.record():
                outputs, states = layer(inputs, states, lengths)
                loss = sum({"outputs": [outputs.sum()], "states": [states[0].sum()],
                            "both": [outputs.sum(), states[0].sum()]}[used])
            loss.backward()
            trainer.step(1)
            losses[detach].append(loss.asscalar())
            if detach:
                states = [state.detach() for state in states]
    assert losses[True] == losses[False] and len(set(losses[True])) == 3


def test_a_state_that_was_not_detached_is_a_constant_of_mx_np_too(operator):
    mx.npx.set_np()
    try:
        layer = of(gluon.RNN, activation="tanh", num_layers=2)
        layer.initialize()
        states = layer.begin_state(N)
        for _ in range(3):
            with mx.autograd.record():
                outputs, states = layer(mx.np.ones((T, N, C)), states)
                loss = outputs.sum()
            loss.backward()
        assert type(states[0]) is mx.np.ndarray and np.abs(layer.l0_h2h_weight.grad().asnumpy()).max() > 0
    finally:
        mx.npx.reset_np()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("merge_outputs", [False, True])
def test_a_state_of_an_unrolled_cell_that_was_not_detached_is_a_constant(merge_outputs, lengths, operator):
    losses = {}
    for detach in True, False:
        cell = fill(gluon.RNNCell(H, input_size=C, prefix="rnn_"), "float32")
        states, losses[detach] = cell.begin_state(N), []
        for _ in range(3):
            with mx.autograd.record():
                outputs, states = cell.unroll(T, drawn((N, T, C), 1, "float32").detach(), states, merge_outputs=merge_outputs,
                                              valid_length=None if lengths is None else mx.nd.array(lengths))
                loss = sum(output.sum() for output in flat(outputs))
            loss.backward()
            losses[detach].append(loss.asscalar())
            if detach:
                states = [state.detach() for state in states]
    assert losses[True] == losses[False] and len(set(losses[True])) == 3


def test_a_layer_that_has_been_called_is_copied_and_pickled():
    layer = fill(of(gluon.RNN, num_layers=2), "float32")
    inputs = inputs_of(layer, "float32")[0]
    wanted = layer(inputs).asnumpy()
    twin = copy.deepcopy(layer)
    layer.l0_i2h_weight.set_data(0 * layer.l0_i2h_weight.data())
    assert np.array_equal(twin(inputs).asnumpy(), wanted)
    pickle.loads(pickle.dumps(layer._one_node))  # MXNet's parameters are not pickled; nothing of ours is in the way


# What is MXNet's own --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    {}, dict(num_layers=2, dropout=0.3), dict(bidirectional=True, layout="NTC", dtype="float64"), dict(input_size=0)],
    ids=str)
def test_names_shapes_and_initial_values_are_mxnets(options):
    own, theirs = (of(kind, i2h_bias_initializer="ones", h2h_weight_initializer=mx.init.Uniform(0.3), **options)
                   for kind in (gluon.RNN, stock.RNN))
    assert repr(own) == repr(theirs)
    values = []
    for layer in own, theirs:
        mx.random.seed(3)
        layer.initialize(mx.init.Normal(0.1))
        dtype = options.get("dtype", "float32")
        outputs = layer(inputs_of(layer, dtype)[0])
        assert outputs.dtype == np.dtype(dtype) and [s.shape for s in layer.begin_state(N)] == [
            inputs_of(layer)[1].shape]
        values.append([(name, p.data().dtype, p.data().asnumpy()) for name, p in layer.collect_params().items()])
    assert repr(own) == repr(theirs)
    for (name, dtype, found), (their_name, their_dtype, wanted) in zip(*values):
        assert name == their_name and dtype == their_dtype and np.array_equal(found, wanted)
    kinds = gluon.RNN, stock.RNN  # without a prefix, MXNet's own
    assert [kind(H).prefix.rstrip("0123456789_") for kind in kinds] == ["rnn", "rnn"]


def test_dropout_is_one_between_layers_while_training():
    options = dict(num_layers=2, activation="tanh", bidirectional=True)
    layer = fill(of(gluon.RNN, dropout=0.5, **options))
    inputs = inputs_of(layer)[0]
    lower = of(stock.RNN, activation="tanh", bidirectional=True)
    upper = stock.RNN(H, activation="tanh", bidirectional=True, input_size=2 * H)
    for part, number in (lower, "0"), (upper, "1"):
        part.initialize()
        part.cast("float64")
        for name, parameter in layer._reg_params.items():
            if name[1] == number:
                getattr(part, name[0] + "0" + name[2:]).set_data(parameter.data())
    assert np.abs((layer(inputs) - upper(lower(inputs))).asnumpy()).max() <= 1e-12
    with mx.autograd.train_mode():
        mx.random.seed(5)
        found = layer(inputs)
        mx.random.seed(5)
        wanted = upper(mx.nd.Dropout(lower(inputs), p=0.5))
        assert np.abs((found - wanted).asnumpy()).max() <= 1e-12
        assert np.abs((found - upper(lower(inputs))).asnumpy()).max() > 1e-3


class Language(mx.gluon.HybridBlock):
    """A network around a layer: what the layer sees is a graph, and the size of the batch is not known in it."""

    def __init__(self, layer, begins):
        super().__init__(prefix="net_")
        self._begins = begins
        self.layer = layer
        self.out = mx.gluon.nn.Dense(2, flatten=False, in_units=H * layer._dir, prefix="net_out_")

    def hybrid_forward(self, F, inputs):
        if not self._begins:
            return self.out(self.layer(inputs))
        outputs, (last,) = self.layer(inputs, self.layer.begin_state(N if F is mx.nd else 0, F.zeros))
        return self.out(outputs), last


@pytest.mark.parametrize("begins", [False, True], ids=["none", "begin_state"])
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
@pytest.mark.slow
def test_a_network_is_exported_and_imported(tmp_path, kind, begins):
    options = dict(num_layers=2, bidirectional=True, activation="tanh")
    tokens = kind is gluon.TokenRNN
    net = Language(of(kind, input_size=C if tokens else 0, **options), begins)
    net.initialize(mx.init.Normal(0.5))
    inputs = drawn_tokens((T, N), C) if tokens else drawn((T, N, C), 1, "float32")
    net.hybridize(static_alloc=True, static_shape=True)
    wanted = evaluate(net, (inputs,), net.collect_params())
    assert net.layer.l0_i2h_weight.shape == (H, C)
    net.hybridize(False)
    assert_same(evaluate(net, (inputs,), net.collect_params()), wanted, 1e-6)
    net.hybridize()
    net(inputs)
    net.export(str(tmp_path / "net"))
    block = mx.gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    found = evaluate(block, (inputs,), block.collect_params())
    assert_same({name: found[name] for name in wanted if "result" in name},
                {name: array for name, array in wanted.items() if "result" in name}, 1e-6)
    np.save(str(tmp_path / "inputs"), inputs.asnumpy())
    np.save(str(tmp_path / "wanted"), wanted["result 0"])
    code = ("import sys, numpy as np, rnn_ops; from rnn_ops._mxnet import mx; folder = sys.argv[1]\n"
            "net = mx.gluon.SymbolBlock.imports(folder + '/net-symbol.json', ['data'], folder + '/net-0000.params')\n"
            "inputs = np.load(folder + '/inputs.npy'); outputs = net(mx.nd.array(inputs, dtype=inputs.dtype))\n"
            "outputs = outputs[0] if isinstance(outputs, list) else outputs\n"
            "print(np.abs(outputs.asnumpy() - np.load(folder + '/wanted.npy')).max() < 1e-6)")
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                         cwd=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (0, "True\n")


def test_a_layer_with_lengths_is_exported_and_imported(tmp_path):
    layer = fill(of(gluon.RNN, use_sequence_length=True, bidirectional=True), "float32")
    layer.hybridize()
    inputs, states = inputs_of(layer, "float32")
    lengths = mx.nd.array(LENGTHS)
    wanted = layer(inputs, states, lengths)[0].asnumpy()
    layer.export(str(tmp_path / "net"))
    block = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data0", "data1", "data2"], str(tmp_path / "net-0000.params"))
    assert np.array_equal(block(inputs, states, lengths)[0].asnumpy(), wanted)


def test_a_module_binds_it():
    layer = fill(of(gluon.RNN, num_layers=2, activation="tanh"), "float32")
    module = mx.mod.Module(layer(mx.sym.var("data")), label_names=None)
    module.bind([("data", (T, N, C))])
    module.init_params(arg_params={name: p.data() for name, p in layer.collect_params().items()})
    inputs = inputs_of(layer, "float32")[0]
    module.forward(mx.io.DataBatch([inputs]), is_train=False)
    assert np.abs((module.get_outputs()[0] - layer(inputs)).asnumpy()).max() <= 1e-6


@each_way
@pytest.mark.slow
def test_training_on_two_contexts_is_that_of_mxnets_layer_on_one(how):
    """Batches from a DataLoader, the last one smaller; Trainer; momentum, so that an error stays."""
    data, target = drawn((10, T, C), 1, "float32"), drawn((10, T, H), 2, "float32")
    final = {}
    for kind, contexts in (stock.RNN, [mx.cpu(0)]), (gluon.RNN, [mx.cpu(0), mx.cpu(1)]):
        layer = fill(of(kind, layout="NTC", num_layers=2, activation="tanh"), "float32")
        layer.collect_params().reset_ctx(contexts)
        hybridized(layer, how)
        trainer = mx.gluon.Trainer(layer.collect_params(), "sgd", {"learning_rate": 0.005, "momentum": 0.9})
        losses = []
        for _ in range(3):
            for x, y in mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(data, target), batch_size=4):
                parts = zip(*(mx.gluon.utils.split_and_load(array, contexts) for array in (x, y)))
                with mx.autograd.record():
                    parts = [((layer(x) - y) ** 2).sum() for x, y in parts]
                mx.autograd.backward(parts)
                trainer.step(len(x))
                losses.append(sum(part.asscalar() for part in parts) / len(x))
        assert losses[-1] < losses[0]
        final[kind] = {name: p.data(contexts[-1]).asnumpy() for name, p in layer.collect_params().items()}
    assert_same(final[gluon.RNN], final[stock.RNN], 1e-5)


@each_way
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_mx_np_arrays_too(kind, how):
    layer = fill(of(kind, num_layers=2, bidirectional=True, activation="tanh"), "float32")
    inputs = drawn_tokens((T, N), C) if kind is gluon.TokenRNN else inputs_of(layer, "float32")[0]
    wanted = evaluate(layer, (inputs,), layer.collect_params())
    mx.npx.set_np()
    try:
        again = hybridized(of(kind, num_layers=2, bidirectional=True, activation="tanh"), how)
        again.initialize()
        for p, q in zip(again.collect_params().values(), layer.collect_params().values()):
            p.set_data(q.data().as_np_ndarray())
        x = mx.np.array(inputs.asnumpy(), dtype=inputs.dtype)
        with mx.autograd.record():
            outputs = again(x)
            loss = (outputs * drawn(outputs.shape, 50, "float32").as_np_ndarray()).sum()
        loss.backward()
        assert type(outputs) is mx.np.ndarray
        found = {name[len("rnn_"):]: p.grad().asnumpy() for name, p in again.collect_params().items()}
        found["result 0"] = outputs.asnumpy()
    finally:
        mx.npx.reset_np()
    assert_same(found, {name: array for name, array in wanted.items() if name != "gradient 0"}, 1e-5)


@each_way
@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_gradients_are_row_sparse_with_sparse_grad(kind, how, operator):
    dense, sparse = (hybridized(fill(of(kind, num_layers=2), "float32"), how) for _ in range(2))
    inputs = drawn_tokens((T, N), C) if kind is gluon.TokenRNN else inputs_of(dense, "float32")[0]
    wanted = evaluate(dense, (inputs,), dense.collect_params())
    values = [parameter.data().copy() for parameter in sparse.collect_params().values()]
    for parameter, value in zip(sparse.collect_params().values(), values):
        parameter._grad_stype = "row_sparse" if "weight" in parameter.name else "default"
        parameter.initialize(force_reinit=True)
        parameter.set_data(value)
    found = evaluate(sparse, (inputs,), sparse.collect_params())
    assert sparse.l0_i2h_weight.grad().stype == "row_sparse"
    assert_same(found, wanted, 1e-6)


@pytest.mark.parametrize("kind", [gluon.RNN, gluon.TokenRNN])
def test_batches_of_the_workers_of_a_data_loader(kind, operator):
    """Their arrays are on cpu_shared(0)."""
    tokens = np.random.RandomState(1).randint(C, size=(2 * N, T)).astype("int32")
    data = tokens if kind is gluon.TokenRNN else np.eye(C, dtype="float32")[tokens]
    layer = fill(of(kind, layout="NTC", use_sequence_length=True), "float32")
    loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(data, np.full(2 * N, 3, "float32")), batch_size=N, num_workers=2)
    for hybridize in False, True:
        layer.hybridize(hybridize)
        for batch, (inputs, lengths) in enumerate(loader):
            assert inputs.context.device_type == "cpu_shared"
            with mx.autograd.record():
                outputs = layer(inputs, None, lengths)
            outputs.backward()
            wanted = layer(mx.nd.array(data[N * batch:N * (batch + 1)], dtype=data.dtype), None, mx.nd.full(N, 3))
            assert np.array_equal(outputs.asnumpy(), wanted.asnumpy())


def test_mixed_precision(tmp_path):
    """After amp.init, which changes MXNet for good: in a process of its own. The layers compute in their own dtype."""
    code = """
import sys, rnn_ops, numpy as np
from rnn_ops._mxnet import mx
from rnn_ops import gluon
from mxnet.contrib import amp
mx.random.seed(1)
layers = [gluon.RNN(6, 2, input_size=4), gluon.TokenRNN(6, input_size=4), gluon.RNNCell(6, input_size=4)]
x, tokens = mx.nd.random.normal(shape=(5, 3, 4)), mx.nd.zeros((5, 3), dtype="int32")
calls = [lambda l: l(x), lambda l: l(tokens), lambda l: l.unroll(5, x, layout="TNC", merge_outputs=True)[0]]
for layer in layers: layer.initialize()
wanted = [call(layer).asnumpy() for call, layer in zip(calls, layers)]
amp.init("bfloat16")
half = mx.nd.amp_cast(x, dtype=mx.nd.ndarray._DTYPE_MX_TO_NP[12])
calls.append(lambda l: l(half))
layers.append(layers[0])
wanted.append(layers[0](mx.nd.amp_cast(half, dtype="float32")).asnumpy())
for call, layer, result in zip(calls, layers, wanted):
    for hybridize in False, True:
        layer.hybridize(hybridize)
        found = call(layer)
        assert found.dtype == np.float32 and np.abs(found.asnumpy() - result).max() < 1e-6
print("whole")
"""
    assert subprocess.check_output([sys.executable, "-c", code], cwd=str(tmp_path), universal_newlines=True).endswith("whole\n")


def test_attributes_and_threads_are_not_the_layers_matter(operator):
    layer, cell = (fill(kind(H, input_size=C), "float32") for kind in (gluon.RNN, gluon.RNNCell))
    inputs = drawn((T, N, C), 1, "float32")
    with mx.AttrScope(colour="red"):
        layer(inputs), cell.unroll(T, inputs, layout="TNC")
    wanted, failed = cell.unroll(T, inputs, layout="TNC", merge_outputs=True)[0].asnumpy(), []

    def unroll():
        try:
            for _ in range(50):
                found = cell.unroll(T, inputs, layout="TNC", merge_outputs=True)[0].asnumpy()
                assert np.array_equal(found, wanted)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=unroll) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not failed


# What cannot be done --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layer, arrays, error, sentence", [
    (dict(), [mx.nd.zeros((T, N), dtype="int32")], ValueError, "inputs: got shape (5, 3), needs three dimensions, TNC"),
    (dict(), [mx.nd.zeros((T, N, C), dtype="float16")], TypeError, "inputs: got dtype float16, needs float32"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C))], TypeError,
     "sequence_length: got None, needs the steps of each row, (N,)"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, -1, 2])], ValueError,
     "sequence_length: got [1.0, -1.0, 2.0], needs integers from 0 to 5, the steps of inputs"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, 6, 2])], ValueError,
     "sequence_length: got [1.0, 6.0, 2.0], needs integers from 0 to 5"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, 1.5, 2])], ValueError,
     "sequence_length: got [1.0, 1.5, 2.0], needs integers from 0 to 5"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, np.nan, 2])], ValueError,
     "sequence_length: got [1.0, nan, 2.0], needs integers from 0 to 5"),
    (dict(), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, 2, 3])], ValueError,
     "sequence_length: got one, needs None, since the layer was made without use_sequence_length=True"),
    (dict(), [mx.nd.zeros((N, T, C)), mx.nd.zeros((1, N, H))], ValueError,
     "states: got shape (1, 3, 6), needs (1, 5, 6): inputs have 5 rows in the layout TNC of this layer"),
    (dict(), [np.zeros((T, N, C), "float32")], TypeError,
     "inputs: got numpy.ndarray, needs an NDArray or a Symbol: mx.nd.array(inputs)"),
    (dict(), [mx.nd.zeros((T, N, C + 1))], ValueError,
     "Wxh: got shape (4, 6), needs (5, 6), (I, H) with I = 5 from inputs and H = 6 from state"),
    (dict(), [mx.nd.zeros((T, N, C)), mx.nd.zeros((1, N, H), dtype="float64")], TypeError,
     "Wxh: got dtype float32, needs float64, the dtype of state"),
    (dict(), [mx.nd.zeros((T, N, C), dtype="float64")], TypeError,
     "inputs: got dtype float64, needs float32, the dtype of the parameters"),
    (dict(), [mx.nd.zeros((T, N, C)), [mx.nd.zeros((1, N, H))] * 2], ValueError,
     "states: got a list of 2, needs one array, (1, 0, 6)"),
    (dict(), [mx.nd.zeros((T, N, C)), []], ValueError, "states: got a list of 0, needs one array"),
    (dict(use_sequence_length=True), [mx.sym.var("x")], TypeError, "sequence_length: got None, needs the steps of each row"),
    (dict(use_sequence_length=True), [mx.nd.zeros((T, N, C)), None, mx.nd.array([1, 2])], ValueError,
     "sequence_length: got shape (2,), needs (3,)"),
])
def test_arrays_that_do_not_fit(layer, arrays, error, sentence):
    layer = of(gluon.RNN, **layer)
    layer.initialize()
    with pytest.raises(error) as raised:
        layer(*arrays)
    assert sentence in str(raised.value)


def test_tokens_that_are_none():
    layer = fill(of(gluon.TokenRNN), "float32")
    for inputs, sentence in (
            (mx.nd.zeros((T, N)), "inputs: got float32 of shape (5, 3), needs int32 tokens in two dimensions, TN;"),
            (mx.nd.zeros((T, N, C)), "inputs: got float32 of shape (5, 3, 4), needs int32 tokens in two"),
            (mx.nd.full((T, N), C, dtype="int32"), "inputs: got token 4 at [0, 0], needs 0 <= token < 4")):
        with pytest.raises(ValueError) as raised:
            layer(inputs)
        assert sentence in str(raised.value)


@pytest.mark.parametrize("make, sentence", [
    (lambda: gluon.RNN(H, activation="sigmoid"), "activation: got 'sigmoid', needs 'tanh' or 'relu'"),
    (lambda: gluon.TokenRNN(H), "input_size: got 0, needs the number of different tokens"),
])
def test_layers_that_cannot_be(make, sentence):
    with pytest.raises(ValueError) as raised:
        make()
    assert sentence in str(raised.value)
