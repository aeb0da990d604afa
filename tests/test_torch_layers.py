"""`rnn_ops.torch.RNN` and `rnn_ops.torch.TokenRNN` against `torch.nn.RNN`."""
import copy
import io
import pickle
import subprocess
import sys
import warnings
from unittest import mock

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn.utils import rnn as packing  # noqa: E402

from rnn_ops.torch import RNN, TokenRNN, layers  # noqa: E402
from torch_cases import ddp_worker, pair, results, same  # noqa: E402

SIZES = st.sampled_from([1, 2, 3, 5, 7])
OPTIONS = dict(num_layers=st.integers(1, 3), nonlinearity=st.sampled_from(["tanh", "relu"]), bias=st.booleans(),
               batch_first=st.booleans(), dropout=st.sampled_from([0.0, 0.4, 1.0]), bidirectional=st.booleans())


@st.composite
def cases(draw):
    """(options of a layer, sizes T, B, I, H, how the input is laid out, whether hx is given, training, `layers.SPARE`)"""
    options = draw(st.fixed_dictionaries(OPTIONS))
    sizes = draw(st.tuples(*[SIZES] * 4))
    lengths = draw(st.lists(st.integers(1, sizes[0]), min_size=sizes[1], max_size=sizes[1]))
    layout = draw(st.sampled_from(["batched", "unbatched", "packed", "packed sorted"]))
    return options, sizes, lengths, layout, draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([0, 3, layers.SPARE]))


def laid_out(sequence, lengths, layout, batch_first):
    """Time-major data as the input of a layer."""
    if layout == "unbatched":
        return sequence[:, 0]
    if layout == "batched":
        return sequence.transpose(0, 1) if batch_first else sequence
    if layout == "packed sorted":
        return packing.pack_padded_sequence(sequence, sorted(lengths, reverse=True))
    return packing.pack_padded_sequence(sequence, lengths, enforce_sorted=False)


def check(case, tokens, dtype=torch.float64):
    options, (T, B, I, H), lengths, layout, given_state, training, spare = case
    torch.manual_seed(1)
    theirs, ours = pair(TokenRNN if tokens else RNN, I, H, dtype=dtype, **options)
    if tokens:
        symbols = torch.randint(I, (T, B), dtype=[torch.int32, torch.int64][T % 2])
        sequence = torch.nn.functional.one_hot(symbols.long(), I).to(dtype)
    else:
        symbols = sequence = torch.randn(T, B, I, dtype=dtype)
    count = options["num_layers"] * (1 + options["bidirectional"])
    hx = torch.randn(count, *([] if layout == "unbatched" else [B]), H, dtype=dtype) if given_state else None
    with mock.patch.object(layers, "SPARE", spare):
        found = [results(layer.train(training), laid_out(input, lengths, layout, options["batch_first"]), hx)
                 for layer, input in ((theirs, sequence), (ours, symbols))]
    if tokens:
        del found[0]["input"]
    same(*found)


@settings(max_examples=300)
@given(case=cases())
def test_outputs_states_and_gradients_are_those_of_torch(case):
    check(case, tokens=False)


@settings(max_examples=150)
@given(case=cases())
def test_tokens_give_what_their_one_hot_rows_give(case):
    check(case, tokens=True)


@pytest.mark.parametrize("layout", ["batched", "unbatched", "packed"])
def test_tokens_of_a_large_vocabulary_give_what_their_one_hot_rows_give(layout):
    options = dict(num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0, bidirectional=True)
    check((options, (5, 3, layers.MANY, 4), [2, 5, 1], layout, True, True, layers.SPARE), tokens=True)


def test_relu_does_not_overflow_behind_the_end_of_a_row(monkeypatch):
    monkeypatch.setattr(layers, "SPARE", 1000)
    layer = RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.fill_(4)  # 4 to the power of 64 is infinite in float32
    outputs, h_n = layer(packing.pack_sequence([torch.zeros(80, 1), torch.ones(1, 1)]))
    (outputs.data.sum() + h_n.sum()).backward()
    assert layer.weight_ih_l0.grad == 2 and layer.weight_hh_l0.grad == 0


def test_a_large_vocabulary_is_not_copied(monkeypatch):
    seen = []
    sequence = layers.rnn_sequence
    monkeypatch.setattr(layers, "rnn_sequence", lambda *arguments: seen.append(arguments[2].shape) or sequence(*arguments))
    layer = TokenRNN(layers.MANY, 4)
    layer(torch.zeros(5, 3, dtype=torch.int64))
    assert seen == [(15, 4)]


@pytest.mark.parametrize("V", [7, layers.MANY])
@pytest.mark.parametrize("token", [-1, 1])
def test_a_token_outside_the_vocabulary_is_named(V, token):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    tokens[1, 2] = token if token < 0 else V
    with pytest.raises(ValueError, match=rf"inputs: got token {tokens[1, 2]} at \[1, 2\], needs 0 <= token < {V}"):
        TokenRNN(V, 4)(tokens)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(64, 1, 7, 31), (31, 5, 13, 64)])
def test_float32_is_as_exact_as_torch(sizes, nonlinearity):
    T, B, I, H = sizes
    errors = {}  # by result: the largest of torch.nn.RNN and of ours, over some seeds
    for seed in range(5):
        torch.manual_seed(seed)
        layer = torch.nn.RNN(I, H, 2, nonlinearity, bidirectional=True)
        input, hx = torch.randn(T, B, I), torch.randn(4, B, H)
        truth = results(copy.deepcopy(layer).double(), input.double(), hx.double())
        for which, kind in enumerate([torch.nn.RNN, RNN]):
            other = kind(I, H, 2, nonlinearity, bidirectional=True)
            other.load_state_dict(layer.state_dict())
            for name, found in results(other, input, hx).items():
                error = ((found - truth[name]).abs().max() / truth[name].abs().max()).item()
                largest = errors.setdefault(name, [0, 0])
                largest[which] = max(largest[which], error)
    for name, (theirs, ours) in errors.items():
        assert ours <= 3 * theirs + torch.finfo(torch.float32).eps, (name, ours, theirs)


def test_the_same_seed_makes_the_same_parameters_and_state_dicts_load_both_ways():
    for options in dict(), dict(num_layers=2, bidirectional=True), dict(bias=False, nonlinearity="relu", batch_first=True):
        torch.manual_seed(3)
        theirs = torch.nn.RNN(5, 7, **options)
        for kind in RNN, TokenRNN:
            torch.manual_seed(3)
            ours = kind(5, 7, **options)
            same(theirs.state_dict(), ours.state_dict(), 0)
            assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]
            assert repr(ours) == repr(theirs).replace("RNN(", kind.__name__ + "(")
            theirs.load_state_dict(ours.state_dict(), strict=True)
            ours.load_state_dict(theirs.state_dict(), strict=True)
            ours.reset_parameters()


def test_positional_arguments_are_those_of_torch():
    given = (5, 7, 2, "relu", False, True, 0.5, True)
    theirs, ours = torch.nn.RNN(*given), RNN(*given)
    for name in ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional",
                 "mode"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("kind", [RNN, TokenRNN])
def test_copies_compute_the_same(kind):
    layer = kind(5, 7, 2, bidirectional=True)
    input = torch.randint(5, (4, 3)) if kind is TokenRNN else torch.randn(4, 3, 5)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    layer.flatten_parameters()
    expected = layer(input)[0]
    for other in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False):
        assert type(other) is kind
        assert torch.equal(other(input)[0], expected)
        with torch.no_grad():  # its parameters are its own
            other.weight_hh_l1.zero_()
        assert not torch.equal(other(input)[0], expected)
    assert torch.equal(layer(input)[0], expected)


def test_another_dtype_computes_in_it():
    layer, input = RNN(5, 7), torch.randn(4, 3, 5)
    expected = layer(input)[0]
    assert layer.double()(input.double())[0].dtype is torch.float64
    assert torch.equal(layer.float()(input)[0], expected)
    assert torch.equal(layer.to("cpu", torch.float32)(input)[0], expected)


def test_weights_that_are_replaced_are_used():
    layer, other, input = RNN(5, 7), RNN(5, 7).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    found = torch.func.functional_call(layer, dict(other.named_parameters()), (input,))
    assert torch.equal(found[0], other(input)[0])
    torch.nn.utils.parametrizations.weight_norm(other, "weight_hh_l0")
    before = other(input)[0]
    with torch.no_grad():
        other.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(other(input)[0], before)


MISUSES = {
    "an unknown nonlinearity": lambda kind: kind(5, 7, nonlinearity="sigmoid"),
    "projections": lambda kind: kind(5, 7, proj_size=2),
    "a dropout above 1": lambda kind: kind(5, 7, dropout=1.5),
    "no hidden units": lambda kind: kind(5, 0),
    "no layers": lambda kind: kind(5, 7, 0),
    "one dimension": lambda kind: kind(5, 7)(torch.zeros(5)),
    "four dimensions": lambda kind: kind(5, 7)(torch.zeros(1, 2, 3, 5)),
    "another width": lambda kind: kind(5, 7)(torch.zeros(4, 3, 6)),
    "another dtype": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5, dtype=torch.float64)),
    "tokens": lambda kind: kind(5, 7)(torch.zeros(4, 3, dtype=torch.int64)),
    "hx of another batch": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5), torch.zeros(1, 2, 7)),
    "hx of other layers": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5), torch.zeros(2, 3, 7)),
    "hx of another width": lambda kind: kind(5, 7)(torch.zeros(4, 5), torch.zeros(1, 8)),
    "hx without a batch": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5), torch.zeros(1, 7)),
    "hx with a batch": lambda kind: kind(5, 7)(torch.zeros(4, 5), torch.zeros(1, 1, 7)),
    "an input on another device": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5, device="meta")),
    "hx on another device": lambda kind: kind(5, 7)(torch.zeros(4, 3, 5), torch.zeros(1, 3, 7, device="meta")),
    "no steps": lambda kind: kind(5, 7)(torch.zeros(0, 3, 5)),
    "packed data of another width": lambda kind: kind(5, 7)(packing.pack_sequence([torch.zeros(4, 6)])),
    "packed data of three dimensions": lambda kind: kind(5, 7)(packing.pack_sequence([torch.zeros(4, 2, 5)])),
    "packed data and hx of another batch": lambda kind: kind(5, 7)(packing.pack_sequence([torch.zeros(4, 5)]),
                                                                   torch.zeros(1, 2, 7)),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_errors_are_those_of_torch(misuse):
    found = []
    for kind in torch.nn.RNN, RNN:
        with pytest.raises(Exception) as error:
            misuse(kind)
        found.append((error.type, str(error.value)))
    assert found[0] == found[1]


def test_hx_of_another_dtype_is_an_error_of_torchs_type():
    for kind, text in (torch.nn.RNN, "dtype"), (RNN, "hx: got dtype float64, needs float32, the dtype of the parameters"):
        with pytest.raises(RuntimeError, match=text):
            kind(5, 7)(torch.zeros(4, 3, 5), torch.zeros(1, 3, 7, dtype=torch.float64))


@pytest.mark.parametrize("input, error, text", [
    (torch.zeros(4, 3), ValueError, "input: got dtype float32, needs int32 or int64, since it has tokens"),
    (torch.zeros(4, 3, 5, dtype=torch.int64), ValueError, r"input: got shape \(4, 3, 5\), needs one or two dimensions"),
    (packing.pack_sequence([torch.zeros(4, 5, dtype=torch.int64)]), RuntimeError,
     r"input: got shape \(4, 5\) in a PackedSequence"),
])
def test_errors_for_tokens(input, error, text):
    with pytest.raises(error, match=text):
        TokenRNN(5, 7)(input)


def test_hx_of_another_batch_is_an_error_for_tokens_too():
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        TokenRNN(5, 7)(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(1, 2, 7))


def test_halves_are_refused():
    with pytest.raises(TypeError, match="^RNN: got parameters of bfloat16, needs float32 or float64$"):
        RNN(5, 7, dtype=torch.bfloat16)(torch.zeros(4, 3, 5, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", [RNN, TokenRNN])
def test_an_empty_batch_has_empty_outputs(kind):
    layer = kind(5, 7, 2, bidirectional=True)
    outputs, h_n = layer(torch.zeros(4, 0, dtype=torch.int64) if kind is TokenRNN else torch.zeros(4, 0, 5))
    assert outputs.shape == (4, 0, 14) and h_n.shape == (4, 0, 7)
    outputs.sum().backward()
    assert all(not parameter.grad.any() for parameter in layer.parameters())


def test_under_autocast_it_computes_in_float32():
    first, layer, input = torch.nn.Linear(4, 5), RNN(5, 7, 2, bidirectional=True), torch.randn(6, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        between = first(input)
        outputs, h_n = layer(between)
    assert between.dtype is torch.bfloat16 and outputs.dtype is h_n.dtype is torch.float32
    expected = layer(between.float())
    assert torch.equal(outputs, expected[0]) and torch.equal(h_n, expected[1])
    outputs.sum().backward()
    assert first.weight.grad.dtype is layer.weight_hh_l0.grad.dtype is torch.float32


def test_torch_jit_script_is_a_clear_error():
    with pytest.raises(RuntimeError, match="torch.jit.script: got a rnn_ops.torch.TokenRNN, needs a layer in TorchScript"):
        torch.jit.script(torch.nn.Sequential(TokenRNN(5, 7)))


def test_torch_jit_trace_takes_it():
    layer, input = RNN(5, 7, 2, bidirectional=True), torch.randn(4, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing as such
        traced = torch.jit.trace(layer, (input,))
    assert torch.equal(traced(2 * input)[0], layer(2 * input)[0])


class Net(torch.nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(5, 7, 2, **options)
        self.linear = torch.nn.Linear(7 * (1 + self.rnn.bidirectional), 2)

    def forward(self, input, hx=None):
        outputs, h_n = self.rnn(input, hx)
        return self.linear(outputs), h_n


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(bidirectional=True, batch_first=True, nonlinearity="relu", bias=False)],
                         ids=["plain", "others"])
@pytest.mark.parametrize("kind", [RNN, TokenRNN])
def test_torch_compile_makes_one_graph(kind, options):
    net = Net(kind, dtype=torch.float64, **options)
    net.double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for T, B in (4, 3), (6, 5):  # the second time with symbols for sizes
        input = torch.randint(5, (T, B)) if kind is TokenRNN else torch.randn(T, B, 5, dtype=torch.float64)
        hx = torch.randn(4 if options else 2, T if options else B, 7, dtype=torch.float64)
        same(results(net, input, hx), results(net, input, hx, call=compiled))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RNN, TokenRNN])
def test_torch_export_takes_other_sizes(kind):
    net = Net(kind, bidirectional=True)

    def example(T, B):
        return torch.randint(5, (T, B)) if kind is TokenRNN else torch.randn(T, B, 5)

    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = torch.export.export(net, (example(4, 3),), dynamic_shapes=(sizes,)).module()
    input = example(6, 5)
    for found, expected in zip(exported(input), net(input)):
        assert torch.equal(found, expected)


def test_data_parallel_passes_through_to_it():
    net, input = Net(RNN), torch.randn(4, 3, 5)
    assert torch.equal(torch.nn.DataParallel(net, dim=1)(input)[0], net(input)[0])
    replica = net.rnn._replicate_for_data_parallel()
    for name, parameter in net.rnn.named_parameters():
        setattr(replica, name, 2 * parameter)
    doubled = RNN(5, 7, 2)
    doubled.load_state_dict({name: 2 * value for name, value in net.rnn.state_dict().items()})
    assert torch.equal(replica(input)[0], doubled(input)[0])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_have_the_gradients_of_one(tmp_path, start):
    program = ddp_worker.__code__.co_filename
    workers = [start([sys.executable, program, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for worker in workers:
        assert "Error" not in worker.communicate(timeout=120)[1]
        assert worker.returncode == 0
    whole = ddp_worker(None, None)
    for rank in range(2):
        same(whole, torch.load(tmp_path / f"{rank}.pt"))


@pytest.mark.parametrize("counts", [[3, 0, 1], [3, -1, 2], [1, 2, 1], [3, 1, 0], [2, 1]], ids=str)
def test_packed_data_that_nobody_has_packed_is_an_error(counts):
    for nonlinearity in "tanh", "relu":
        packed = packing.PackedSequence(torch.randn(4, 3), torch.tensor(counts, dtype=torch.int64))
        with pytest.raises(ValueError, match="^batch_sizes: got .*, needs numbers of rows, 1 or more, none of them larger"):
            RNN(3, 5, nonlinearity=nonlinearity)(packed)


def test_another_default_device_changes_nothing():
    rows = packing.pack_sequence([torch.randn(n, 3) for n in (5, 4, 4, 1)])
    tokens = torch.randint(3000, (4, 2))
    layer, of_tokens = RNN(3, 5, bidirectional=True), TokenRNN(3000, 5)
    expected = layer(rows)[0].data, of_tokens(tokens)[0]
    torch.set_default_device("meta")
    try:
        found = layer(rows)[0].data, of_tokens(tokens)[0]
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(*each) for each in zip(expected, found))
