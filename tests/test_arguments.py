"""The checks at the doors: what they accept, what they say of it, and the sentence for everything else."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_ops.backends import arguments

T, B, I, H = 4, 3, 5, 7


def floats(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def tokens(*shape, dtype="int32"):
    return np.zeros(shape, dtype)


def good(**changed):
    return {**dict(inputs=floats(T, B, I), state=floats(B, H), Wxh=floats(I, H), Whh=floats(H, H), bh=floats(H)),
            **changed}


@given(st.tuples(*[st.integers(1, 300)] * 4), st.booleans(), st.booleans(), st.sampled_from(["float32", "float64"]),
       st.booleans())
def test_good_arguments_are_described(sizes, as_tokens, step, dtype, with_bias):
    T, B, I, H = sizes
    lead = () if step else (T,)
    inputs = tokens(*lead, B) if as_tokens else np.broadcast_to(floats(dtype=dtype), lead + (B, I))
    bias = [floats(H, dtype=dtype)] if with_bias else []
    found = arguments.check(inputs, floats(B, H, dtype=dtype), floats(I, H, dtype=dtype), floats(H, H, dtype=dtype),
                            *bias, step=step)
    assert found == (1 if step else T, B, I, H, np.dtype(dtype), as_tokens)


NEEDS = "needs (T, B, I) of floats or (T, B) of int32 tokens"
STEP_NEEDS = "needs (B, I) of floats or (B,) of int32 tokens"


@pytest.mark.parametrize("changed, error, sentence", [
    (dict(inputs=[1, 2]), TypeError, "inputs: got list, needs an array"),
    (dict(inputs=None), TypeError, "inputs: got NoneType, needs an array"),
    (dict(bh=0.5), TypeError, "bh: got float, needs an array"),
    (dict(inputs=floats(3)), ValueError, f"inputs: got shape (3,), {NEEDS}"),
    (dict(inputs=floats(1, 2, 3, 4)), ValueError, f"inputs: got shape (1, 2, 3, 4), {NEEDS}"),
    (dict(inputs=floats(T, B)), ValueError,
     f"inputs: got float32 of shape (4, 3), {NEEDS}; cast tokens to int32"),
    (dict(inputs=tokens(T, B, I)), ValueError, f"inputs: got int32 of shape (4, 3, 5), {NEEDS}"),
    (dict(inputs=floats(T, B, 6)), ValueError,
     "Wxh: got shape (5, 7), needs (6, 7), (I, H) with I = 6 from inputs and H = 7 from state"),
    (dict(state=floats(H)), ValueError, "state: got shape (7,), needs (3, H), (B, H) with B = 3 from inputs"),
    (dict(state=floats(2, H)), ValueError, "state: got shape (2, 7), needs (3, H), (B, H) with B = 3 from inputs"),
    (dict(state=floats(1, B, H)), ValueError,
     "state: got shape (1, 3, 7), needs (3, H), (B, H) with B = 3 from inputs"),
    (dict(Wxh=floats(H, I)), ValueError,
     "Wxh: got shape (7, 5), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state: Wxh.T"),
    (dict(inputs=tokens(T, B), Wxh=floats(I, 6)), ValueError,
     "Wxh: got shape (5, 6), needs (I, 7), (I, H) with H = 7 from state"),
    (dict(Whh=floats(6, H)), ValueError, "Whh: got shape (6, 7), needs (7, 7), (H, H) with H = 7 from state"),
    (dict(Whh=floats(H)), ValueError, "Whh: got shape (7,), needs (7, 7), (H, H) with H = 7 from state"),
    (dict(bh=floats(1, H)), ValueError, "bh: got shape (1, 7), needs (7,), (H,) with H = 7 from state"),
    (dict(bh=floats(8)), ValueError, "bh: got shape (8,), needs (7,), (H,) with H = 7 from state"),
    (dict(inputs=floats(0, B, I)), ValueError, "inputs: got shape (0, 3, 5), needs every dimension to be at least 1"),
    (dict(inputs=tokens(T, B), Wxh=floats(0, H)), ValueError,
     "Wxh: got shape (0, 7), needs every dimension to be at least 1"),
    (dict(inputs=tokens(T, B, dtype="int64")), TypeError,
     "inputs: got dtype int64, needs float32, float64 or int32 (tokens); cast tokens to int32"),
    (dict(inputs=floats(T, B, I, dtype="float16")), TypeError,
     "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    (dict(inputs=floats(T, B, I, dtype="float64")), TypeError,
     "inputs: got dtype float64, needs float32, the dtype of state"),
    (dict(state=floats(B, H, dtype="int32")), TypeError, "state: got dtype int32, needs float32 or float64"),
    (dict(Wxh=floats(I, H, dtype="float64")), TypeError, "Wxh: got dtype float64, needs float32, the dtype of state"),
    (dict(bh=floats(H, dtype=">f4")), TypeError, "bh: got dtype >f4, needs float32 or float64"),
])
def test_misfits_are_named(changed, error, sentence):
    with pytest.raises(error) as raised:
        arguments.check(**good(**changed))
    assert str(raised.value) == sentence


@pytest.mark.parametrize("name", arguments.NAMES)
def test_no_argument_is_a_scalar(name):
    with pytest.raises(ValueError, match=rf"^{name}: got shape \(\), needs "):
        arguments.check(**good(**{name: floats()}))


@pytest.mark.parametrize("inputs, sentence", [
    (floats(T, B, I), f"inputs: got shape (4, 3, 5), {STEP_NEEDS}"),
    (tokens(T, B), f"inputs: got int32 of shape (4, 3), {STEP_NEEDS}"),
    (floats(B), f"inputs: got float32 of shape (3,), {STEP_NEEDS}; cast tokens to int32"),
])
def test_a_step_takes_one_dimension_less(inputs, sentence):
    with pytest.raises(ValueError) as raised:
        arguments.check(**good(inputs=inputs), step=True)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("token, position", [(-1, (0, 0)), (I, (2, 1)), (2 ** 31 - 1, (3, 2)), (-2 ** 31, (1, 2))])
def test_a_token_outside_is_named(token, position):
    array = tokens(T, B)
    arguments.check_tokens(array, I)
    array[3, 2] = I  # the first one counts
    array[position] = token
    with pytest.raises(ValueError) as raised:
        arguments.check_tokens(array, I)
    assert str(raised.value) == (
        f"inputs: got token {token} at [{position[0]}, {position[1]}], needs 0 <= token < 5, I = 5 from Wxh")


def test_sizes_come_from_known_shapes():
    unknown = None
    assert arguments.sizes([(4, 3), unknown, (5, 7), unknown, unknown]) == dict(T=4, B=3, I=5, H=7)
    assert arguments.sizes([unknown, (3, -1), unknown, (-1, 7), unknown]) == dict(B=3, H=7)
    with pytest.raises(ValueError, match=r"bh: got shape \(6,\), needs \(7,\), \(H,\) with H = 7 from Whh"):
        arguments.sizes([unknown, unknown, unknown, (-1, 7), (6,)])
