"""rnn_ops.gluon.RNNCell is MXNet's cell: one step, unroll in all its forms, inside MXNet's other cells, in graphs."""
import numpy as np
import pytest

from gluon_cases import HYBRID, assert_same, drawn, evaluate, fill, hybridized
from rnn_ops import gluon
from rnn_ops._mxnet import mx

T, N, C, H = 5, 3, 4, 6
LENGTHS = [2, 5, 1]
stock = mx.gluon.rnn
KINDS = gluon.RNNCell, stock.RNNCell

each_way = pytest.mark.parametrize("how", HYBRID)


def both(**options):
    """(our cell, MXNet's) with the same random parameters."""
    return [fill(kind(H, prefix="rnn_", **{"input_size": C, **options})) for kind in KINDS]


def sequence(layout="NTC"):
    return drawn((N, T, C) if layout == "NTC" else (T, N, C), 1)


@each_way
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_one_step(activation, how):
    found, wanted = (evaluate(lambda x, h: hybridized(cell, how)(x, [h]), (drawn((N, C), 1), drawn((N, H), 2)),
                              cell.collect_params()) for cell in both(activation=activation))
    assert_same(found, wanted)


@each_way
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("merge_outputs", [None, False, True])
@pytest.mark.parametrize("listed", [False, True], ids=["array", "list"])
@pytest.mark.parametrize("layout", ["NTC", "TNC"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_unroll(activation, layout, listed, merge_outputs, lengths, how):
    evaluated, kinds = [], []
    for cell in both(activation=activation):
        hybridized(cell, how)
        arrays = [drawn((N, C), t) for t in range(T)] if listed else [sequence(layout)]

        def unroll(state, *arrays):
            outputs, states = cell.unroll(
                T, list(arrays) if listed else arrays[0], [state], layout, merge_outputs,
                None if lengths is None else mx.nd.array(lengths))
            kinds.append((type(outputs), type(states), len(states)))
            return outputs, states

        evaluated.append(evaluate(unroll, [drawn((N, H), 9), *arrays], cell.collect_params()))
    assert kinds[0] == kinds[1]
    if lengths and listed:  # what lies behind every row's end has a gradient of zeros in both
        assert np.abs(evaluated[0]["gradient 5"][[0, 2]]).max() == 0
    assert_same(*evaluated)


def test_inputs_behind_the_end_of_a_row_do_not_matter():
    cell = both()[0]
    spoilt = sequence().asnumpy()
    spoilt[np.arange(T) >= np.array(LENGTHS)[:, None]] = np.nan
    spoilt = mx.nd.array(spoilt, dtype="float64")
    spoilt.attach_grad()
    wanted, found = (evaluate(lambda x: cell.unroll(T, x, valid_length=mx.nd.array(LENGTHS)), [x],
                              cell.collect_params()) for x in (sequence(), spoilt))
    assert_same(found, wanted, 0)


@pytest.mark.parametrize("merge_outputs", [False, True])
def test_a_sequence_of_one(merge_outputs):
    found, wanted = (evaluate(lambda x, h: cell.unroll(1, [x], [h], merge_outputs=merge_outputs),
                              (drawn((N, C), 1), drawn((N, H), 9)), cell.collect_params()) for cell in both())
    assert_same(found, wanted)


@each_way
def test_gradients_that_add_up(how):
    cell = both()[0]
    arrays = sequence(), drawn((N, H), 9)

    def unroll(x, h):
        return cell.unroll(T, x, [h], merge_outputs=True)

    wanted = evaluate(unroll, arrays, cell.collect_params())
    for reqs in ["add"] * 4, ["add", "null", "null", "write"], ["null", "add", "write", "add"]:
        hybridized(cell, how)
        for parameter, req in zip(cell.collect_params().values(), reqs):
            parameter.grad_req = "null"  # a new gradient of zeros comes with the next one
            parameter.grad_req = req
        found = evaluate(unroll, arrays, cell.collect_params(), times=3)
        for name, parameter in cell.collect_params().items():
            if parameter.grad_req == "add":
                found[name[len("rnn_"):]] /= 3
        assert_same(found, {name: wanted[name] for name in found})


def test_shapes_are_found_out_and_states_have_the_dtype_of_the_parameters():
    cell = gluon.RNNCell(H, input_size=0)
    cell.cast("float64")
    cell.initialize()
    outputs, (state,) = cell.unroll(T, sequence(), merge_outputs=True)
    assert cell.i2h_weight.shape == (H, C)
    assert outputs.shape == (N, T, H) and outputs.dtype == state.dtype == np.float64
    again = cell.unroll(T, sequence(), [mx.nd.zeros((N, H), dtype="float64")], merge_outputs=True)[0]
    assert np.array_equal(outputs.asnumpy(), again.asnumpy()) and np.abs(outputs.asnumpy()).max() > 0


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_names_are_mxnets_and_files_load_both_ways(tmp_path, activation):
    own, theirs = both(activation=activation)
    assert repr(own) == repr(theirs) and list(own.collect_params()) == list(theirs.collect_params())
    for saver, loader in (own, gluon.RNNCell), (own, stock.RNNCell), (theirs, gluon.RNNCell):
        saver.save_parameters(str(tmp_path / "file"))
        cell = loader(H, activation=activation, prefix="rnn_")
        cell.load_parameters(str(tmp_path / "file"), cast_dtype=True, dtype_source="saved")
        for name, parameter in cell.collect_params().items():
            assert np.array_equal(parameter.data().asnumpy(), saver.collect_params()[name].data().asnumpy())
    # without a prefix, MXNet's own
    assert [kind(H).prefix.rstrip("0123456789_") for kind in KINDS] == ["rnn", "rnn"]


# Inside MXNet's other cells -------------------------------------------------------------------------------------------

def stack(kind):
    cell = stock.HybridSequentialRNNCell(prefix="")
    cell.add(kind(H, input_size=C, prefix="a_"))
    cell.add(stock.ResidualCell(kind(H, "relu", input_size=H, prefix="b_")))
    cell.add(stock.BidirectionalCell(kind(H, input_size=H, prefix="c_"), kind(H, "relu", input_size=H, prefix="d_")))
    return cell


def zoneout(kind):
    return stock.ZoneoutCell(kind(H, input_size=C, prefix="a_"), 0.3, 0.2)


def residual(kind):
    return stock.ResidualCell(kind(C, input_size=C, prefix="a_"))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("layout", ["NTC", "TNC"])
@pytest.mark.parametrize("make", [stack, zoneout, residual])
def test_inside_other_cells(make, layout, lengths):
    evaluated = []
    for kind in KINDS:
        cell = fill(make(kind))
        states = [drawn(state["shape"], 20 + i) for i, state in enumerate(cell.state_info(N))]

        def unroll(x, *states):
            mx.random.seed(1)  # zoneout draws
            return cell.unroll(T, x, list(states), layout, True, None if lengths is None else mx.nd.array(lengths))

        evaluated.append(evaluate(unroll, [sequence(layout), *states], cell.collect_params()))
    assert_same(*evaluated)


# Graphs ---------------------------------------------------------------------------------------------------------------

class Unrolled(mx.gluon.HybridBlock):
    """A network that unrolls a cell: as a rule the size of the batch is not known in its graph."""

    def __init__(self, cell, merge_outputs):
        super().__init__(prefix="net_")
        self._merge_outputs = merge_outputs
        self.cell = cell

    def hybrid_forward(self, F, inputs):
        outputs, (state,) = self.cell.unroll(T, inputs, merge_outputs=self._merge_outputs)
        return F.concat(*outputs, dim=1) if isinstance(outputs, list) else outputs, state


@pytest.mark.parametrize("merge_outputs", [False, True])
def test_in_a_network_that_is_exported_and_imported(tmp_path, merge_outputs):
    inputs = sequence().astype("float32")
    inputs.attach_grad()
    evaluated = []
    for cell in both():
        net = Unrolled(cell, merge_outputs)
        net.cast("float32")
        net.hybridize(static_alloc=True, static_shape=True)
        evaluated.append(evaluate(net, (inputs,), cell.collect_params()))
        net.export(str(tmp_path / "net"))
        block = mx.gluon.SymbolBlock.imports(
            str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
        for i, output in enumerate(block(inputs)):
            assert np.abs(output.asnumpy() - evaluated[-1][f"result {i}"]).max() <= 1e-6
    assert_same(*evaluated, 1e-5)


@pytest.mark.parametrize("listed", [False, True], ids=["array", "list"])
def test_symbols_have_the_names_that_mxnet_gives_them(listed):
    names = []
    for cell in both():
        inputs = [mx.sym.var(f"t{t}") for t in range(T)] if listed else mx.sym.var("data")
        outputs, _ = cell.unroll(T, inputs)
        group = mx.sym.Group(outputs)
        shapes = {f"t{t}": (N, C) for t in range(T)} if listed else {"data": (N, T, C)}
        assert group.infer_shape(**shapes)[1] == [(N, H)] * T
        names.append((group.list_outputs(), sorted(group.list_arguments())))
    assert names[0] == names[1]
    assert names[0][0] == [f"rnn_t{t}_out_output" for t in range(T)]


def test_a_step_of_symbols_too():
    outputs = [cell(mx.sym.var("data"), cell.begin_state(func=mx.sym.zeros))[0] for cell in both()]
    assert outputs[0].list_outputs() == outputs[1].list_outputs()
    assert [output.infer_shape(data=(N, C))[1] for output in outputs] == [[(N, H)]] * 2


# What cannot be done --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, sentence", [
    (lambda cell: gluon.RNNCell(H, "sigmoid"), "activation: got 'sigmoid', needs 'tanh' or 'relu'"),
    (lambda cell: cell.unroll(T - 1, sequence()), "length: got 4, needs 5, the steps of inputs"),
    (lambda cell: cell.unroll(T, sequence(), valid_length=mx.nd.array([1, 2, 6])),
     "valid_length: got [1.0, 2.0, 6.0], needs integers from 0 to 5"),
    (lambda cell: cell.unroll(T, sequence(), valid_length=mx.nd.array([1, 2])),
     "valid_length: got shape (2,), needs (3,)"),
    (lambda cell: cell(drawn((N, C + 1), 1), [drawn((N, H), 2)]), "Wxh: got shape (4, 6), needs (5, 6)"),
])
def test_refusals(call, sentence):
    with pytest.raises(ValueError) as raised:
        call(both()[0])
    assert sentence in str(raised.value)
