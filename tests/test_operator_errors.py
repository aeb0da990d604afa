"""What the operators refuse, and with which words: at once for NDArrays, in MXNet's way for Symbols."""
import contextlib

import numpy as np
import pytest

import rnn_ops
from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES

pytestmark = pytest.mark.usefixtures("operator")

T, B, I, H = 4, 3, 5, 7


def zeros(*shape, dtype="float32"):
    return mx.nd.zeros(shape, dtype=dtype)


def good(**changed):
    return {**dict(inputs=zeros(T, B, I), state=zeros(B, H), Wxh=zeros(I, H), Whh=zeros(H, H), bh=zeros(H)), **changed}


def tokens(*values, dtype="int32"):
    return mx.nd.array(np.resize(values, (T, B)), dtype=dtype)


# From NDArrays alone, and true of Symbols bound to the same arrays too.
MISFITS = {
    "rank": (dict(inputs=zeros(3)), ValueError,
             "inputs: got shape (3,), needs (T, B, I) of floats or (T, B) of int32 tokens"),
    "batch": (dict(state=zeros(2, H)), ValueError,
              "state: got shape (2, 7), needs (3, H), (B, H) with B = 3 from inputs"),
    "width": (dict(Wxh=zeros(4, H)), ValueError,
              "Wxh: got shape (4, 7), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state"),
    "transposed": (dict(Wxh=zeros(H, I)), ValueError,
                   "Wxh: got shape (7, 5), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state: Wxh.T"),
    "square": (dict(Whh=zeros(6, H)), ValueError, "Whh: got shape (6, 7), needs (7, 7), (H, H) with H = 7 from state"),
    "bias": (dict(bh=zeros(1, H)), ValueError, "bh: got shape (1, 7), needs (7,), (H,) with H = 7 from state"),
    "float tokens": (dict(inputs=tokens(0, 1, dtype="float32")), ValueError,
                     "inputs: got float32 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast "
                     "tokens with astype('int32')"),
    "int64 tokens": (dict(inputs=tokens(0, 1, dtype="int64")), TypeError,
                     "inputs: got dtype int64, needs float32, float64 or int32 (tokens); cast tokens with "
                     "astype('int32')"),
    "half": (dict(zip(NAMES, (array.astype("float16") for array in good().values()))), TypeError,
             "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    "mixed dtypes": (dict(Whh=zeros(H, H, dtype="float64")), TypeError,
                     "Whh: got dtype float64, needs float32, the dtype of state"),
    "integer state": (dict(state=zeros(B, H, dtype="int32")), TypeError,
                      "state: got dtype int32, needs float32 or float64"),
    "token too large": (dict(inputs=tokens(0, 1, 4, 2, 5)), ValueError,
                        "inputs: got token 5 at [1, 1], needs 0 <= token < 5, I = 5 from Wxh"),
    "negative token": (dict(inputs=tokens(0, 1, -1)), ValueError,
                       "inputs: got token -1 at [0, 2], needs 0 <= token < 5, I = 5 from Wxh"),
}


@pytest.mark.parametrize("changed, error, sentence", list(MISFITS.values()), ids=list(MISFITS))
def test_misfits_of_ndarrays(changed, error, sentence):
    with pytest.raises(error) as raised:
        rnn_ops.rnn_sequence(**good(**changed))
    assert str(raised.value) == sentence


@contextlib.contextmanager
def sentence_of_symbols(operator, error, sentence, capfd):
    """Inside, MXNet raises an error of its own. It has the native operator's sentence; of a CustomOp, MXNet prints what was
    raised."""
    with pytest.raises((mx.MXNetError, RuntimeError)) as raised:
        yield
    if operator == "native":
        assert f"[0] {sentence}" in str(raised.value)
        assert "[1]" not in str(raised.value)  # no message of an earlier error
    else:
        assert f"{error}: {sentence}" in capfd.readouterr().out


@pytest.mark.parametrize("changed, error, sentence", list(MISFITS.values()), ids=list(MISFITS))
def test_misfits_of_symbols(changed, error, sentence, operator, capfd):
    """Afterwards all is well again."""
    symbol = mx.sym.Group(list(rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))))
    if operator == "native" and sentence.startswith("bh: got shape (1, 7)"):  # MXNet's own words for a number of dimensions
        sentences = pytest.raises(mx.MXNetError, match=r"Error in operator rnn_ops_bh_\d+: .* \[1,7\]")
    else:
        sentences = sentence_of_symbols(operator, error.__name__, sentence + "\n", capfd)
    with sentences:
        symbol.bind(mx.cpu(), good(**changed)).forward()[0].wait_to_read()
    assert (symbol.bind(mx.cpu(), good()).forward()[0].asnumpy() == 0).all()


OTHERS = {
    "list of lists": (dict(inputs=[[1, 2]]), TypeError,
                      "inputs[0]: got list, needs an NDArray or a Symbol: mx.nd.array(inputs[0])"),
    "list of NumPy": (dict(inputs=[zeros(B, I), np.zeros((B, I), "float32")]), TypeError,
                      "inputs[1]: got numpy.ndarray, needs an NDArray or a Symbol: mx.nd.array(inputs[1])"),
    "empty list": (dict(inputs=[]), ValueError, "inputs: got an empty list, needs one array a step"),
    "ragged list": (dict(inputs=[zeros(B, I), zeros(B, 2)]), ValueError,
                    "inputs[1]: got float32 of shape (3, 2), needs float32 of shape (3, 5), as inputs[0]"),
    "list of states": (dict(state=[zeros(B, H)]), TypeError,
                       "state: got list, needs an NDArray or a Symbol: state[0]"),
    "generator": (dict(inputs=(zeros(B, I) for _ in range(T))), TypeError,
                  "inputs: got generator, needs an NDArray or a Symbol: list(inputs)"),
    "NumPy": (dict(state=np.zeros((B, H), "float32")), TypeError,
              "state: got numpy.ndarray, needs an NDArray or a Symbol: mx.nd.array(state)"),
    "nothing": (dict(bh=None), TypeError, "bh: got NoneType, needs an NDArray or a Symbol"),
    "parameter": (dict(Wxh=mx.gluon.Parameter("Wxh", shape=(I, H))), TypeError,
                  "Wxh: got mxnet.gluon.parameter.Parameter, needs an NDArray or a Symbol: Wxh.data()"),
    "Symbol among NDArrays": (dict(Wxh=mx.sym.var("Wxh")), TypeError,
                              "Wxh: got Symbol, needs NDArray as inputs is one"),
    "NDArray among Symbols": ({**{name: mx.sym.var(name) for name in NAMES}, "bh": zeros(H)}, TypeError,
                              "bh: got NDArray, needs Symbol as inputs is one"),
    "sparse": (dict(Wxh=zeros(I, H).tostype("row_sparse")), TypeError,
               "Wxh: got an NDArray of storage row_sparse, needs a dense one: tostype('default')"),
    "mx.np": (dict(Whh=zeros(H, H).as_np_ndarray()), TypeError,
              "Whh: got one of the mx.np arrays, needs one of the mx.nd or mx.sym kind: as_nd_ndarray()"),
    "mx.sym.np": ({name: mx.sym.var(name).as_np_ndarray() for name in NAMES}, TypeError,
                  "inputs: got one of the mx.np arrays, needs one of the mx.nd or mx.sym kind: as_nd_ndarray()"),
    "mixed contexts": (dict(Whh=zeros(H, H).as_in_context(mx.cpu(1))), ValueError,
                       "Whh: got an array on cpu(1), needs one on cpu(0), the context of inputs"),
}


@pytest.mark.parametrize("changed, error, sentence", list(OTHERS.values()), ids=list(OTHERS))
def test_what_is_no_argument(changed, error, sentence):
    with pytest.raises(error) as raised:
        rnn_ops.rnn_sequence(**good(**changed))
    assert str(raised.value) == sentence


def test_a_gpu_context_is_refused_in_words():
    from rnn_ops.backends import cuda
    from rnn_ops.operators.devices import device_for

    if not cuda.why_not():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"inputs: got an array on gpu\(0\), needs one on cpu, since .*"):
        device_for(mx.gpu(0))


@pytest.mark.parametrize("changed, sentence", [
    (dict(), "inputs: got shape (4, 3, 5), needs (B, I) of floats or (B,) of int32 tokens"),
    (dict(inputs=mx.nd.array([0, 9, 1], dtype="int32")),
     "inputs: got token 9 at [1], needs 0 <= token < 5, I = 5 from Wxh"),
])
def test_misfits_of_a_step(changed, sentence):
    with pytest.raises(ValueError) as raised:
        rnn_ops.rnn_step(**good(**changed))
    assert str(raised.value) == sentence


def test_empty_arrays_of_ndarrays():
    with mx.util.np_shape(True):  # else MXNet has no empty arrays
        with pytest.raises(ValueError) as raised:
            rnn_ops.rnn_sequence(**good(inputs=zeros(0, B, I)))
        assert rnn_ops.rnn_sequence(**good())[0].shape == (T, B, H)
    assert str(raised.value) == "inputs: got shape (0, 3, 5), needs every dimension to be at least 1"


def test_empty_arrays_of_symbols(operator, capfd):
    symbol = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    with mx.util.np_shape(True):
        with sentence_of_symbols(operator, "ValueError",
                                 "inputs: got shape (0, 3, 5), needs every dimension to be at least 1\n", capfd):
            symbol.bind(mx.cpu(), good(inputs=zeros(0, B, I))).forward()[0].wait_to_read()


def test_sparse_arrays_of_symbols(operator, capfd):
    symbol = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    values = good(Wxh=mx.nd.ones((I, H)).tostype("row_sparse"), inputs=mx.nd.ones((T, B, I)))
    if operator == "native":  # MXNet makes a dense array of it
        assert np.allclose(symbol.bind(mx.cpu(), values).forward()[0].asnumpy(), np.tanh(I))
    else:
        with sentence_of_symbols(operator, "TypeError", "Wxh: got an array of storage row_sparse, needs a dense one\n", capfd):
            symbol.bind(mx.cpu(), values).forward()[0].wait_to_read()


def test_simple_bind_that_takes_tokens_for_floats(operator, capfd):
    """MXNet gives float32 to every argument whose dtype it is not told."""
    symbol = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    sentence = ("inputs: got float32 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast tokens with "
                "astype('int32')\n")
    with sentence_of_symbols(operator, "ValueError", sentence, capfd):
        symbol.simple_bind(mx.cpu(), inputs=(T, B), Wxh=(I, H)).forward()[0].wait_to_read()
