"""The operator that looks tokens up in a large table, alone and before `rnn_sequence` and `rnn_step`: rows, sums and errors."""
import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import rnn_ops
from gluon_cases import HYBRID, assert_same, drawn, evaluate, hybridized
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.operators import devices, lookup
from rnn_ops.operators.native import guard

H = 7
BATCHES = {  # of so many symbols
    "distinct": (50, np.random.RandomState(1).permutation(50)[:30].reshape(10, 3)),
    "repeated": (2100, np.random.RandomState(2).choice([0, 7, 2099, 255, 256, 257], (9, 5))),
    "all the same": (70000, np.full((6, 4), 65536)),
    "one": (300, np.array([[299]])),
    "as many as symbols": (6, np.array([[5, 0, 5], [1, 1, 2]])),
    "more than symbols": (5, np.array([[4, 0, 4], [1, 1, 2]])),
    "one symbol": (1, np.zeros((3, 2), int)),
}


def numbers(shape, dtype, seed=0):
    return np.random.RandomState(seed).normal(size=shape).astype(dtype)


def run(layout, inputs, table, req, cotangents, step=False, start=3):
    """(results, gradients) of the operator in a graph, where every gradient holds ``start`` before."""
    symbol = mx.sym.Group(lookup.of_batch(mx.sym.var("inputs"), mx.sym.var("table"), layout, step))
    arrays = [mx.nd.array(array, dtype=array.dtype) for array in (inputs, table)]
    gradients = [mx.nd.full(array.shape, start, dtype=array.dtype) for array in arrays]
    executor = symbol.bind(mx.cpu(), arrays, args_grad=gradients, grad_req=req)
    results = executor.forward(is_train=True)
    executor.backward([mx.nd.array(array, dtype=result.dtype) for array, result in zip(cotangents, results)])
    return [result.asnumpy() for result in results], [gradient.asnumpy() for gradient in gradients]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["VH", "HV"])
@pytest.mark.parametrize("name", BATCHES)
def test_rows_and_their_sums_to_the_bit(name, layout, dtype):
    """Sums run in the order of the batch, as NumPy's add.at has them."""
    V, tokens = BATCHES[name]
    tokens = tokens.astype("int32")
    table = numbers((V, H), dtype)
    own = tokens.size < V
    arrived = numbers((tokens.size if own else V, H), dtype, 1)
    wanted = np.zeros((V, H), dtype)
    np.add.at(wanted, tokens.ravel() if own else np.arange(V), arrived)
    given = np.ascontiguousarray(table if layout == "VH" else table.T)
    for req in "write", "add", "null":
        (inputs, Wxh), (dtokens, gradient) = run(layout, tokens, given, req, [np.zeros(tokens.shape), arrived])
        assert inputs.dtype == np.int32 and np.array_equal(Wxh[inputs], table[tokens])
        assert Wxh.shape == arrived.shape
        gradient = gradient if layout == "VH" else gradient.T
        assert np.array_equal(gradient, {"write": wanted, "add": 3 + wanted, "null": np.full_like(wanted, 3)}[req]), req
        assert np.array_equal(dtokens, np.full_like(tokens, 0 if req == "write" else 3))


@pytest.mark.parametrize("wanted", [["inputs"], ["table"]])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_gradient_that_nobody_wants_is_not_written(tokens, wanted):
    inputs = np.array([[3, 0], [3, 8]], "int32") if tokens else numbers((4, 3, 9), "float64")
    table, arrived = numbers((9, H), "float64"), np.ones((4 if tokens else 9, H))
    _, gradients = run("VH", inputs, table, {name: "write" if name in wanted else "null" for name in ("inputs", "table")},
                       (np.ones(inputs.shape), arrived))
    assert [name for name, gradient in zip(("inputs", "table"), gradients) if (gradient != 3).any()] == wanted


@pytest.mark.parametrize("req", ["write", "add", "null"])
def test_floats_and_their_table_pass_through(req):
    inputs, table = numbers((4, 3, 9), "float64"), numbers((9, H), "float64", 1)
    cotangents = numbers((4, 3, 9), "float64", 2), numbers((9, H), "float64", 3)
    results, gradients = run("VH", inputs, table, req, cotangents)
    assert all(map(np.array_equal, results, (inputs, table)))
    wanted = {"write": cotangents, "add": [3 + array for array in cotangents], "null": [np.full_like(a, 3) for a in cotangents]}
    assert all(map(np.array_equal, gradients, wanted[req]))


def test_tokens_of_a_step_have_one_dimension_and_floats_two():
    tokens, table = np.array([8, 0, 8], "int32"), numbers((9, H), "float64")
    (inputs, Wxh), _ = run("VH", tokens, table, "write", [np.zeros(3), numbers((3, H), "float64")], step=True)
    assert np.array_equal(inputs, [0, 1, 2]) and np.array_equal(Wxh, table[tokens])
    floats = numbers((3, 9), "float64", 1)
    (inputs, Wxh), _ = run("VH", floats, table, "write", [floats, table], step=True)
    assert np.array_equal(inputs, floats) and np.array_equal(Wxh, table)


@pytest.mark.parametrize("layout", ["VH", "HV"])
def test_the_bits_do_not_depend_on_the_number_of_threads(layout, monkeypatch):
    V, units = 5003, 130  # enough for three threads
    tokens = np.random.RandomState(0).randint(40, size=(37, 29)).astype("int32") * 125
    table, arrived = numbers((V, units), "float32"), numbers((37 * 29, units), "float32", 1)
    found = []
    for threads in "1", "2", "3":
        monkeypatch.setenv("RNN_OPS_NUM_THREADS", threads)
        given = table if layout == "VH" else table.T.copy()
        results, gradients = run(layout, tokens, given, "write", [np.zeros((37, 29)), arrived])
        found.append([*results, *gradients])
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    wanted = np.zeros((V, units), "float32")
    np.add.at(wanted, tokens.ravel(), arrived)
    assert np.array_equal(found[0][3] if layout == "VH" else found[0][3].T, wanted)


def test_graphs_of_earlier_versions_are_read():
    tokens, table = np.array([[3, 0], [3, 1]], "int32"), numbers((H, 4), "float64")
    symbol = mx.sym.Custom(mx.sym.var("tokens"), mx.sym.var("i2h_weight"), op_type="rnn_ops_lookup")
    arrays = [mx.nd.array(array, dtype=array.dtype) for array in (tokens, table)]
    gradient, arrived = mx.nd.zeros((H, 4), dtype="float64"), numbers((4, H), "float64", 1)
    executor = symbol.bind(mx.cpu(), arrays, args_grad={"i2h_weight": gradient})
    assert np.array_equal(executor.forward(is_train=True)[0].asnumpy(), table.T[tokens.ravel()])
    executor.backward([mx.nd.array(arrived, dtype="float64")])
    wanted = np.zeros((4, H))
    np.add.at(wanted, tokens.ravel(), arrived)
    assert np.array_equal(gradient.asnumpy().T, wanted)


@pytest.mark.parametrize("engine", ["ThreadedEnginePerDevice", "NaiveEngine"])
def test_a_token_that_is_none_is_an_error_with_a_sentence(engine, tmp_path):
    code = """
from rnn_ops._mxnet import mx
from rnn_ops.operators import lookup
table = mx.nd.ones((4000, 2))
for token in -1, 4000, -2 ** 31:
    tokens = mx.nd.array([[1, 2, 0], [3, token, 5]], dtype="int32")
    for call in (lambda: lookup.of_batch(tokens, table, "VH")[1],
                 lambda: mx.nd.Custom(tokens, op_type="rnn_ops_lookup", symbols=4000)):
        try:
            call().wait_to_read()
        except mx.MXNetError as error:
            print(error)
print(lookup.of_batch(mx.nd.array([[1, 2]], dtype="int32"), table, "VH")[1].sum().asscalar())  # it goes on
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=dict(os.environ, MXNET_ENGINE_TYPE=engine), cwd=str(tmp_path))
    sentences = [f"inputs: got token {token} at [1, 1], needs 0 <= token < 4000, I = 4000 from Wxh"
                 for token in (-1, 4000, -2 ** 31)]
    printed = [line for sentence in sentences for line in 2 * [f"Error in rnn_ops_lookup: {sentence}", sentence]]
    assert done.stdout.splitlines() == printed + ["4.0"], done.stdout + done.stderr


@pytest.mark.parametrize("attributes, sentence", [
    (dict(layout="HW"), "layout: got 'HW', needs VH or HV"),
    (dict(symbols="0"), "symbols: got '0', needs a number of symbols, 1 or more"),
    (dict(layout="VH", step="2"), "step: got '2', needs 0 or 1"),
    (dict(hidden="7"), "attributes: got 'hidden', needs layout, step and symbols only"),
])
def test_attributes_that_it_does_not_know(attributes, sentence, capfd):
    with pytest.raises(mx.MXNetError):
        mx.nd.Custom(mx.nd.zeros((1, 1), dtype="int32"), mx.nd.ones((2, 2)), op_type="rnn_ops_lookup", **attributes)
    assert sentence in capfd.readouterr().out


def test_integers_that_are_no_tokens_are_an_error():
    with pytest.raises(mx.MXNetError, match="inputs: got an array that is not of int32, needs tokens"):
        lookup.of_batch(mx.nd.ones((1, 1)), mx.nd.ones((4, 2)), "HV")[1].wait_to_read()


@pytest.mark.parametrize("tokens, table", [((0, 3), (9, H)), ((2, 0), (9, H)), ((2, 3), (0, H)), ((2, 3), (9, 0)), ((), (9, H)),
                                           ((2, 3), (9,))], ids=str)
@pytest.mark.parametrize("layout", ["VH", "HV"])
def test_empty_arrays_are_errors(layout, tokens, table):
    with mx.util.np_shape(True):
        arrays = mx.nd.zeros(tokens, dtype="int32"), mx.nd.zeros(table[::-1] if layout == "HV" else table)
        with pytest.raises(mx.MXNetError):
            lookup.of_batch(*arrays, layout)[1].wait_to_read()


def test_memory_for_a_gradient_of_another_size_is_not_written():
    symbol = lookup.of_batch(mx.sym.var("inputs"), mx.sym.var("table", shape=(9, H)), "VH")[1]
    gradient = mx.nd.full((9, H), 3)
    executor = symbol.bind(mx.cpu(), [mx.nd.zeros((2, 3), dtype="int32"), mx.nd.zeros((10, H))], args_grad={"table": gradient})
    with pytest.raises(mx.MXNetError, match="gradient of Wxh: got memory for 63 values, needs 70"):
        executor.forward(is_train=True)
        executor.backward(mx.nd.ones((6, H)))
        mx.nd.waitall()
    assert (gradient == 3).asnumpy().all()


# Before a recurrence --------------------------------------------------------------------------------------------------

T, B, V = 5, 3, 10100
TOKENS = mx.nd.array(np.array([[0, V - 1, 7], [7, 7, 9], [0, 0, 0], [1, 2, 3], [V - 1, 4, 4]]), dtype="int32")


class Sequence(mx.gluon.HybridBlock):
    def __init__(self, function, size=V):
        super().__init__(prefix="")
        self._function = function
        with self.name_scope():
            for name, shape in dict(Wxh=(size, H), Whh=(H, H), bh=(H,)).items():
                setattr(self, name, self.params.get(name, shape=shape, dtype="float64"))
                getattr(self, name).initialize()
                getattr(self, name).set_data(drawn(shape, len(name) + shape[0] % 5))

    def hybrid_forward(self, F, inputs, state, Wxh, Whh, bh):
        return self._function(inputs, state, Wxh, Whh, bh)


def found(function, inputs, how="eager", req="write", size=V, times=1):
    block = hybridized(Sequence(function, size), how)
    block.Wxh.grad_req = req
    return evaluate(block, [inputs, drawn(tuple(inputs.shape[-2 if inputs.dtype != np.int32 else -1:][:1]) + (H,), 9)],
                    block.collect_params(), times)


@pytest.mark.parametrize("how", HYBRID)
@pytest.mark.parametrize("req", ["write", "add", "null"])
@pytest.mark.parametrize("function", [rnn_ops.rnn_sequence, rnn_ops.rnn_step], ids=["sequence", "step"])
def test_the_functions_give_the_same_as_one_hot_rows(function, req, how, operator):
    tokens = TOKENS if function is rnn_ops.rnn_sequence else TOKENS[0]
    times = 3 if req == "add" else 1
    got = found(function, tokens, how, req, times=times)
    wanted = found(function, tokens.one_hot(V, dtype="float64"))
    assert ("Wxh" in got) == (req != "null")
    if req == "add":
        got["Wxh"] /= times
    assert_same(got, {name: wanted[name] for name in got})


@pytest.mark.parametrize("how", HYBRID)
def test_the_table_may_be_of_floats_too(how, operator):
    """In a graph nobody knows what the inputs will be."""
    floats = drawn((T, B, 2100), 4)
    got = found(rnn_ops.rnn_sequence, floats, how, size=2100)
    block = Sequence(rnn_ops.rnn_sequence, 2100)
    wanted = evaluate(block, [floats, drawn((B, H), 9)], block.collect_params())
    assert_same(got, wanted)


def test_a_graph_copies_no_table(monkeypatch):
    """That of a Gluon block."""
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    monkeypatch.setattr(guard, "in_block", lambda: True)
    shapes = {"inputs": (T, B), "state": (B, H), "Whh": (H, H), "bh": (H,)}
    arguments = [mx.sym.var(name, shape=(V, H) if name == "Wxh" else None) for name in ("inputs", "state", "Wxh", "Whh", "bh")]
    internals = rnn_ops.rnn_sequence(*arguments)[0].get_internals()
    _, sizes, _ = internals.infer_shape(**shapes)
    large = [name for name, shape in zip(internals.list_outputs(), sizes) if V in shape]
    assert large == ["Wxh"]
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)  # on which it would be Python's
    assert not [name for name in rnn_ops.rnn_sequence(*arguments)[0].get_internals().list_outputs() if "custom" in name]


@pytest.mark.parametrize("size", [2047, 2048])
def test_a_graph_of_unknown_inputs_is_refused_and_not_written_past(size, monkeypatch):
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    arguments = [mx.sym.var(name, shape=(size, H) if name == "Wxh" else None) for name in ("inputs", "state", "Wxh", "Whh", "bh")]
    with pytest.raises(mx.MXNetError, match="inputs: got a shape that is not known"):
        rnn_ops.rnn_sequence(*arguments)[0].infer_shape(state=(B, H))


def test_tokens_outside_the_vocabulary_are_errors(operator):
    block = Sequence(rnn_ops.rnn_sequence)
    tokens, state = TOKENS.copy(), drawn((B, H), 9)
    tokens[3, 1] = V
    sentence = rf"inputs: got token {V} at \[3, 1\], needs 0 <= token < {V}, I = {V} from Wxh"
    for recording in False, True:
        with pytest.raises(ValueError, match=sentence), mx.autograd.record(recording):
            block(tokens, state)
    block.hybridize()
    with pytest.raises(mx.MXNetError, match=sentence if operator == "native" else None):
        block(tokens, state)[0].wait_to_read()


@pytest.mark.parametrize("function", [rnn_ops.rnn_sequence, rnn_ops.rnn_step], ids=["sequence", "step"])
def test_a_gradient_may_be_row_sparse(function, monkeypatch):
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    tokens = TOKENS if function is rnn_ops.rnn_sequence else TOKENS[0]
    found = []
    for stype in "default", "row_sparse":
        arrays = [drawn(shape, seed, "float32") for seed, shape in enumerate([(B, H), (V, H), (H, H), (H,)])]
        arrays[1].attach_grad(stype=stype)
        with mx.autograd.record():
            results = function(tokens, *arrays)
            loss = ((results[0] if isinstance(results, tuple) else results) ** 2).sum()
        loss.backward()
        found.append([array.grad for array in arrays])
    assert found[1][1].stype == "row_sparse"
    assert np.array_equal(found[1][1].indices.asnumpy(), np.unique(tokens.asnumpy()))
    for dense, sparse in zip(*found):
        assert np.abs(dense.asnumpy() - sparse.asnumpy()).max() <= 1e-6 * np.abs(dense.asnumpy()).max()


@pytest.mark.slow
def test_it_touches_no_memory_of_others(tmp_path):
    """Under AddressSanitizer and UBSan."""
    from test_native_sanitizers import load_setup, run_sanitized
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    kernels = load_setup().compile_sources(str(tmp_path / "kernels"), extra=flags)
    status, printed = run_sanitized(tmp_path, kernels, [
        "test_lookup.py", "-k", "bit or pass_through or step or threads or gpus or versions or empty or another_size"])
    assert status == 0 and " passed" in printed, printed


# On a GPU -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layout, step", [("VH", False), ("HV", False), ("VH", True), (None, False)])
@pytest.mark.parametrize("req", ["write", "add", "null"])
@pytest.mark.parametrize("symbols", [4, 50])
def test_the_operator_of_gpus_gives_the_same(symbols, req, layout, step):
    """On NumPy's arrays, of which CuPy's are a copy."""
    tokens = np.array([3, 0, 3, 2, 2, 2] if step else [[3, 0, 3], [2, 2, 2]], "int32")
    table = numbers((symbols, H) if layout == "VH" else (H, symbols), "float64")
    own = tokens.size < symbols or layout is None
    arrived = numbers((tokens.size if own else symbols, H), "float64", 1)
    if layout:
        (inputs, Wxh), gradients = run(layout, tokens, table, req, [np.zeros(tokens.shape), arrived], step)
        results = [inputs, Wxh, tokens if own else np.zeros(1, "int32")]
    else:
        results = [table.T[tokens.ravel()]]
        wanted = np.zeros((symbols, H))
        np.add.at(wanted, tokens.ravel(), arrived)
        gradients = {"write": [0 * tokens, wanted.T], "add": [3 + 0 * tokens, 3 + wanted.T],
                     "null": [3 + 0 * tokens, np.full_like(wanted.T, 3)]}[req]
    given, taken = ([mx.nd.array(array, dtype=array.dtype) for array in arrays] for arrays in ((tokens, table), results))
    empty = [mx.nd.full(array.shape, 3, dtype=array.dtype) for array in taken]
    operator = lookup.Lookup(devices.Cpu(), 0, 1 if step else 2, layout)
    mx.nd.waitall()  # MXNet calls an operator when its arrays are ready; here nobody else waits for them
    operator.forward(True, ["write"] * len(taken), given, empty, [])
    for array, wanted in zip(empty, results):
        assert np.array_equal(array.asnumpy(), wanted)
    gradient = [mx.nd.full(array.shape, 3, dtype=array.dtype) for array in given]
    cotangents = [mx.nd.array(arrived, dtype="float64")]
    if layout:
        cotangents = [mx.nd.zeros(tokens.shape, dtype="int32"), *cotangents, mx.nd.zeros(taken[2].shape, dtype="int32")]
    mx.nd.waitall()
    operator.backward([req] * 2, cotangents, given, taken, gradient, [])
    for array, wanted in zip(gradient, gradients):
        assert np.abs(array.asnumpy() - wanted).max() < 1e-12
    with pytest.raises(ValueError, match="inputs: got token 3 at"):
        lookup.Lookup(devices.Cpu(), 3, 2, None).forward(True, ["write"], given[:1], empty[:1], [])


def test_the_operator_in_cplusplus_asks_python_for_it(capfd):
    """Where there is no GPU, Python's answer is an error that only it can give."""
    from rnn_ops.backends import cuda
    if not cuda.why_not():
        pytest.skip("there is a GPU")

    class Callbacks(ctypes.Structure):
        _fields_ = [("count", ctypes.c_int), ("functions", ctypes.POINTER(ctypes.c_void_p)),
                    ("states", ctypes.POINTER(ctypes.c_void_p))]

    def create(context):
        shape = (ctypes.c_uint * 2)(2, 2)
        shapes = (ctypes.POINTER(ctypes.c_uint) * 2)(*2 * [ctypes.cast(shape, ctypes.POINTER(ctypes.c_uint))])
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, *6 * [ctypes.c_void_p])(of.functions[6])
        done = function(context, 2, ctypes.cast(shapes, ctypes.c_void_p), ctypes.cast((ctypes.c_int * 2)(2, 2), ctypes.c_void_p),
                        ctypes.cast((ctypes.c_int * 2)(4, 0), ctypes.c_void_p), ctypes.addressof(made), of.states[6], None)
        return done, capfd.readouterr().out

    library, of, made = ctypes.CDLL(cpu.library_path()), Callbacks(), Callbacks()
    names, values = (ctypes.c_char_p * 1)(b"layout"), (ctypes.c_char_p * 1)(b"HV")
    assert library.rnn_ops_lookup(b"rnn_ops_lookup", 1, names, values, ctypes.byref(of))
    delete = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    done, printed = create(b"gpu(0)")
    assert not done and "inputs: got an array on gpu(0), needs one on cpu, since" in printed and "Traceback" in printed
    library.rnn_ops_lookup_use_gpu(None)
    try:
        assert create(b"gpu(0)") == (0, "Error in rnn_ops_lookup: inputs: got an array on gpu(0), needs one on cpu(), or a "
                                        "process in which Python has imported rnn_ops\n")
    finally:
        library.rnn_ops_lookup_use_gpu(lookup._gpu_creator)
    assert create(b"cpu_shared(0)")[0] == 1
    delete(made.functions[0])(made.states[0])
    delete(of.functions[0])(of.states[0])


@pytest.mark.parametrize("V", [2047, 2048])
def test_inference_is_the_same_for_any_size_of_the_table(V, monkeypatch):
    """The dtype from the state, the batch from the state, a row-sparse gradient: where no block says what a variable is."""
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    names = ("inputs", "state", "Wxh", "Whh", "bh")
    symbols = dict(zip(names, map(mx.sym.var, names)), Wxh=mx.sym.var("Wxh", shape=(V, H)))
    outputs, _ = rnn_ops.rnn_sequence(*(symbols[name] for name in names))
    dtypes = dict(zip(outputs.list_arguments(), outputs.infer_type(inputs="int32", state="float64")[0]))
    assert dtypes["Wxh"] == np.float64
    assert outputs.infer_shape(inputs=(4, 3), state=(3, H))[1] == [(4, 3, H)]
    given = {"inputs": mx.nd.array([[1], [2]], dtype="int32"), "state": mx.nd.ones((1, H)), "Wxh": mx.nd.ones((V, H)),
             "Whh": mx.nd.zeros((H, H)), "bh": mx.nd.zeros(H)}
    executor = outputs.bind(mx.cpu(), given, args_grad={"Wxh": mx.nd.sparse.zeros("row_sparse", (V, H))})
    executor.forward(is_train=True)
    executor.backward(mx.nd.ones((2, 1, H)))
    assert np.flatnonzero(executor.grad_dict["Wxh"].asnumpy().any(axis=1)).tolist() == [1, 2]
