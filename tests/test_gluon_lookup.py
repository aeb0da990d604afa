"""TokenRNN with a word-sized vocabulary looks its tokens up: same values and gradients, nothing in proportion to V but zeros."""
import numpy as np
import pytest

from gluon_cases import HYBRID, assert_same, drawn, drawn_tokens, evaluate, fill, hybridized
from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops.operators import lookup, native
from test_native_alone import ALONE, CLEAN, run

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


@pytest.mark.parametrize("how", HYBRID)
def test_more_tokens_than_symbols(how):
    """The whole weight is then handed over, transposed."""
    def layer(kind):
        return fill(kind(2, input_size=2048, activation="relu", use_sequence_length=True))

    own, dense = layer(gluon.TokenRNN), layer(gluon.RNN)
    tokens, lengths = drawn_tokens((2, 1030), 2048), drawn_tokens((1030,), 3).astype("float32")
    states = drawn((1, 1030, 2), 2)
    wanted = evaluate(lambda h: dense(tokens.one_hot(2048, dtype="float64"), h, lengths), [states], dense.collect_params())
    hybridized(own, how)
    assert_same(evaluate(lambda h: own(tokens, h, lengths), [states], own.collect_params()), wanted)


@pytest.mark.parametrize("how", HYBRID)
def test_a_weight_whose_gradient_is_row_sparse(how):
    layer = fill(of(), "float32")
    wanted = evaluate(layer, [batch()], layer.collect_params())
    again = of()
    again.l0_i2h_weight._grad_stype = "row_sparse"
    hybridized(fill(again, "float32"), how)
    assert_same(evaluate(again, [batch()], again.collect_params()), wanted, 1e-6)
    assert again.l0_i2h_weight.grad().stype == "row_sparse"


def test_a_frozen_weight_gets_no_gradient():
    layer = of()
    wanted = evaluate(layer, [batch()], layer.collect_params())
    layer.l0_i2h_weight.grad_req = "null"
    found = evaluate(layer, [batch()], layer.collect_params())
    assert_same(found, {name: array for name, array in wanted.items() if name != "l0_i2h_weight"})
    with pytest.raises(RuntimeError):
        layer.l0_i2h_weight.grad()


@pytest.mark.parametrize("token", [-1, V, 2 ** 31 - 1])
def test_a_token_outside_is_an_error_in_a_graph_too(token, capfd):
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


# sparse_grad ------------------------------------------------------------------------------------------------------------

def with_table(**options):
    """A layer with a table, and one with a weight of the same values."""
    sparse, dense = (gluon.TokenRNN(H, prefix="rnn_", **options, **more) for more in (dict(sparse_grad=True), {}))
    fill(dense, "float32")
    sparse.initialize()
    for name, parameter in dense._reg_params.items():
        is_table = name in ("l0_i2h_weight", "r0_i2h_weight")
        own = sparse._reg_params[name.replace("weight", "table") if is_table else name]
        own.set_data(parameter.data().T if is_table else parameter.data())
    return sparse, dense


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("symbols", [9, V])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_table_gives_the_same_as_a_weight(lengths, symbols, how):
    sparse, dense = with_table(input_size=symbols, num_layers=2, bidirectional=True, use_sequence_length=lengths is not None)
    rest = [] if lengths is None else [mx.nd.array(lengths)]
    tokens = drawn_tokens((T, N), symbols)
    wanted = evaluate(lambda x: dense(x, None, *rest), [tokens], dense.collect_params())
    hybridized(sparse, how)
    found = evaluate(lambda x: sparse(x, None, *rest), [tokens], sparse.collect_params())
    for side in "lr":
        assert getattr(sparse, f"{side}0_i2h_table").grad().stype == "row_sparse"
        found[f"{side}0_i2h_weight"] = found.pop(f"{side}0_i2h_table").T
    assert_same(found, wanted, 1e-5)
    if lengths is None:
        assert np.array_equal(sparse.l0_i2h_table.grad().indices.asnumpy(), np.unique(tokens.asnumpy()))


@pytest.mark.parametrize("optimizer", [dict(optimizer="sgd", learning_rate=0.1, momentum=0.9, wd=0.01),
                                       dict(optimizer="adam", learning_rate=0.01)], ids=lambda options: options["optimizer"])
@pytest.mark.parametrize("how", HYBRID)
def test_a_trainer_updates_the_rows_that_it_would_of_an_embedding(how, optimizer):
    own = gluon.TokenRNN(H, activation="tanh", input_size=50, sparse_grad=True)
    embedding, rnn = mx.gluon.nn.Embedding(50, H, sparse_grad=True), mx.gluon.rnn.RNN(H, activation="tanh", input_size=H)
    stock = mx.gluon.nn.HybridSequential()
    stock.add(embedding, rnn)
    for net in own, stock:
        net.initialize(mx.init.Normal(0.3))
    embedding.weight.set_data(own.l0_i2h_table.data())
    rnn.l0_i2h_weight.set_data(mx.nd.eye(H))
    rnn.l0_i2h_weight.grad_req = "null"
    rnn.l0_h2h_weight.set_data(own.l0_h2h_weight.data())
    options = dict(optimizer, lazy_update=True)
    name, before = options.pop("optimizer"), own.l0_i2h_table.data().asnumpy().copy()
    trainers = [mx.gluon.Trainer(hybridized(net, how).collect_params(), name, dict(options)) for net in (own, stock)]
    seen = set()
    for step in range(4):
        tokens = drawn_tokens((T, N), 50, step)
        seen.update(tokens.asnumpy().ravel().tolist())
        for net, trainer in zip((own, stock), trainers):
            with mx.autograd.record():
                loss = (net(tokens) ** 2).mean()
            loss.backward()
            trainer.step(1)
    found = own.l0_i2h_table.data().asnumpy()
    assert np.abs(found - embedding.weight.data().asnumpy()).max() < 1e-5
    assert {row for row in range(50) if (found[row] != before[row]).any()} == seen and len(seen) < 50


def test_a_table_is_saved_and_loaded_and_never_taken_for_a_weight(tmp_path):
    options = dict(input_size=H, num_layers=2, bidirectional=True)  # as many symbols as units: the shapes are the same
    sparse, dense = with_table(**options)
    again, file = gluon.TokenRNN(H, sparse_grad=True, prefix="rnn_", **options), str(tmp_path / "file")
    for save, load in ("save_parameters", "load_parameters"), ("save", "load"):
        def of(net, name):
            return getattr(net if name.endswith("parameters") else net.collect_params(), name)

        of(sparse, save)(file)
        of(again, load)(file)
        assert all((a.data() == b.data()).asnumpy().all()
                   for a, b in zip(sparse.collect_params().values(), again.collect_params().values()))
        with pytest.raises(AssertionError, match="i2h_weight.* is missing in file"):
            of(dense, load)(file)
        of(dense, save)(file)
        with pytest.raises(AssertionError, match="i2h_table.* is missing in file"):
            of(again, load)(file)
    with pytest.raises(ValueError, match="sparse_grad: got True, needs False"):
        sparse._unfuse()
    assert repr(sparse) == f"TokenRNN({H} -> {H}, TNC, num_layers=2, bidirectional=True, sparse_grad=True)"


def test_a_token_outside_a_table_is_an_error_in_a_graph_too(operator):
    sparse, _ = with_table(input_size=9)
    tokens = drawn_tokens((T, N), 9)
    tokens[2, 1] = 9
    symbol, values = sparse(mx.sym.var("data")), {name: p.data() for name, p in sparse.collect_params().items()}
    with pytest.raises(mx.MXNetError, match=r"inputs: got token 9 at \[2, 1\], needs 0 <= token < 9"):
        symbol.bind(mx.cpu(), dict(values, data=tokens)).forward()[0].wait_to_read()
    with pytest.raises(ValueError, match="inputs: got token 9"):
        sparse(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_an_exported_network_runs_without_rnn_ops(sparse, tmp_path, operator):
    if operator == "custom":
        pytest.skip("its recurrence is in Python")
    net = with_table(input_size=V)[not sparse]
    net.hybridize()
    with mx.autograd.record():
        outputs = net(batch())
    outputs.backward()
    net.export(str(tmp_path / "net"))
    table = net.l0_i2h_table if sparse else net.l0_i2h_weight
    np.savez(str(tmp_path / "net.npz"), inputs=batch().asnumpy(), outputs=outputs.asnumpy(), gradient=table.grad().asnumpy())
    code = ALONE + """
wanted = np.load(folder + "/net.npz")
net = mx.gluon.SymbolBlock.imports(folder + "/net-symbol.json", ["data0", "data1"], folder + "/net-0000.params")
weight, = [p for name, p in net.collect_params().items() if "l0_i2h_" in name and "bias" not in name]
sparse = weight.name.endswith("table")  # of which MXNet reads no gradient's storage from a file: it then refuses to train
with mx.autograd.record(not sparse):
    outputs = net(mx.nd.array(wanted["inputs"], dtype="int32"), mx.nd.zeros((1, %d, %d)))
    outputs = outputs[0] if isinstance(outputs, list) else outputs
assert np.allclose(outputs.asnumpy(), wanted["outputs"], atol=1e-6)
if not sparse:
    outputs.backward()
    assert np.allclose(weight.grad().asnumpy(), wanted["gradient"], atol=1e-6)
""" % (N, H) + CLEAN
    run(code, tmp_path, native.library_path())


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("later", [7, 2 * 10 ** 9])
def test_the_gradient_is_that_of_the_tokens_that_were_looked_up(how, later):
    """Not of those that a loop has filled the array with since; nor is memory of others written to."""
    layer = hybridized(of(), how)
    tokens = mx.nd.array([[1, 2]], dtype="int32")
    with mx.autograd.record():
        loss = layer(tokens).sum()
    tokens[:] = later
    loss.backward()
    assert np.flatnonzero(layer.l0_i2h_weight.grad().asnumpy().any(axis=0)).tolist() == [1, 2]
