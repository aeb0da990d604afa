"""What the operators refuse, and with which words: at once for NDArrays, in MXNet's way for Symbols and at the operators' own
functions."""
import contextlib

import numpy as np
import pytest

import rnn_ops
from operator_cases import MISFITS, B, H, I, T, as_list, good, tokens, zeros
from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES
from rnn_ops.operators import custom, devices, native

pytestmark = pytest.mark.usefixtures("operator")


@pytest.mark.parametrize("changed, error, sentence", list(MISFITS.values()), ids=list(MISFITS))
def test_misfits_of_ndarrays(changed, error, sentence):
    with pytest.raises(error) as raised:
        rnn_ops.rnn_sequence(**good(**changed))
    assert str(raised.value) == sentence


@contextlib.contextmanager
def sentence_of_mxnet(operator, error, sentence, capfd):
    """Inside, MXNet raises an error of its own. It has the native operator's sentence; a CustomOp's exception is printed."""
    with pytest.raises((mx.MXNetError, RuntimeError)) as raised:
        yield
    if operator == "native":
        assert f"[0] {sentence}\n" in str(raised.value)
        assert "[1]" not in str(raised.value)  # no message of an earlier error
    else:
        assert f"{error}: {sentence}\n" in capfd.readouterr().out


def own_function(operator, values):
    """Of the operator itself, which leaves all checks to it."""
    return {"native": native, "custom": custom}[operator].rnn_sequence(**values)[0]


def bound_symbol(operator, values):
    return mx.sym.Group(as_list(rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES)))).bind(mx.cpu(), values).forward()[0]


@pytest.mark.parametrize("run", [own_function, bound_symbol])
@pytest.mark.parametrize("changed, error, sentence", list(MISFITS.values()), ids=list(MISFITS))
def test_misfits_that_the_operator_finds(changed, error, sentence, run, operator, capfd):
    """Afterwards all is well again."""
    if operator == "native" and run is bound_symbol and changed.keys() == {"bh"}:  # MXNet's own words for its dimensions
        sentences = pytest.raises(mx.MXNetError, match=r"Error in operator rnn_ops_bh_\d+: .* \[1,7\]")
    else:
        sentences = sentence_of_mxnet(operator, error.__name__, sentence, capfd)
    with sentences:
        run(operator, good(**changed)).wait_to_read()
    assert (run(operator, good()).asnumpy() == 0).all()


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
def test_values_that_are_no_arguments(changed, error, sentence):
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


def test_empty_arrays(operator, capfd):
    sentence = "inputs: got shape (0, 3, 5), needs every dimension to be at least 1"
    with mx.util.np_shape(True):  # else MXNet has no empty arrays
        with pytest.raises(ValueError) as raised:
            rnn_ops.rnn_sequence(**good(inputs=zeros(0, B, I)))
        assert str(raised.value) == sentence
        for run in own_function, bound_symbol:
            with sentence_of_mxnet(operator, "ValueError", sentence, capfd):
                run(operator, good(inputs=zeros(0, B, I))).wait_to_read()
            assert run(operator, good()).shape == (T, B, H)


def test_sparse_arrays_of_symbols(operator, capfd):
    symbol = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    values = good(Wxh=mx.nd.ones((I, H)).tostype("row_sparse"), inputs=mx.nd.ones((T, B, I)))
    if operator == "native":  # MXNet makes a dense array of it
        assert np.allclose(symbol.bind(mx.cpu(), values).forward()[0].asnumpy(), np.tanh(I))
    else:
        with sentence_of_mxnet(operator, "TypeError", "Wxh: got an array of storage row_sparse, needs a dense one", capfd):
            symbol.bind(mx.cpu(), values).forward()[0].wait_to_read()


def test_simple_bind_that_takes_tokens_for_floats(operator, capfd):
    """MXNet gives float32 to every argument whose dtype it is not told."""
    symbol = rnn_ops.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    sentence = ("inputs: got float32 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast tokens to "
                "int32")
    with sentence_of_mxnet(operator, "ValueError", sentence, capfd):
        symbol.simple_bind(mx.cpu(), inputs=(T, B), Wxh=(I, H)).forward()[0].wait_to_read()


def test_a_custom_operator_looks_at_tokens_once(monkeypatch, capfd):
    """Of NDArrays before the call, of Symbols in it. On a GPU each look copies the tokens and waits for them."""
    class Device(devices.Cpu):
        looks_at_tokens = False  # as on a GPU

        @staticmethod
        def check_tokens(tokens, symbols):
            looks.append(tokens.shape)
            devices.Cpu.check_tokens(tokens, symbols)

    looks = []
    monkeypatch.setenv("RNN_OPS_OPERATOR", "custom")
    monkeypatch.setattr(custom, "device_for", lambda context: Device())
    rnn_ops.rnn_sequence(**good(inputs=tokens(0, 4)))[0].wait_to_read()
    assert looks == []
    bound_symbol("custom", good(inputs=tokens(0, 4))).wait_to_read()
    assert looks == [(T, B)]
    for function in own_function, bound_symbol:
        with sentence_of_mxnet("custom", "ValueError", MISFITS["token too large"][2], capfd):
            function("custom", good(inputs=tokens(0, 1, 4, 2, 5))).wait_to_read()


@pytest.mark.parametrize("name, wrong, error, sentence", [
    ("Whh", zeros(2, 2), "ValueError", "dWhh: got shape (2, 2), needs (7, 7)"),
    ("state", zeros(B, H, dtype="float64"), "TypeError", "dstate: got dtype float64, needs float32"),
])
def test_gradients_that_do_not_fit_a_custom_operator(name, wrong, error, sentence, capfd):
    """MXNet hands over any array that it is given, and the kernels trust its size. test_native_memory.py has the native one."""
    symbol = mx.sym.Group(list(custom.rnn_sequence(*map(mx.sym.var, NAMES))))
    executor = symbol.bind(mx.cpu(), good(), {**good(), name: wrong})
    executor.forward(is_train=True)
    with sentence_of_mxnet("custom", error, sentence, capfd):
        executor.backward([zeros(T, B, H), zeros(B, H)])
        mx.nd.waitall()


def test_cotangents_that_do_not_fit_a_custom_operator(capfd):
    values = good()
    values["bh"].attach_grad()
    with mx.autograd.record():
        results = custom.rnn_sequence(**values)
    with sentence_of_mxnet("custom", "ValueError", "doutputs: got shape (2, 2), needs (4, 3, 7)", capfd):
        mx.autograd.backward(list(results), [zeros(2, 2), zeros(B, H)])
        mx.nd.waitall()
