"""The arguments of the recurrence: their shapes, dtypes and token values, and the errors for everything else.

Nothing here computes or imports MXNet. Only ``shape`` and ``dtype`` of arrays are read, so NumPy arrays at the door of the
kernels and NDArrays at the door of the operators get the same checks and the same sentences.

Shapes are written in letters, one for each dimension: T steps, B batch rows, I input width, H hidden units. A letter
stands for one size wherever it appears, whichever argument it was first read from.
"""
import functools
from typing import NamedTuple

import numpy as np

from rnn_ops.backends import codes

NAMES = codes.ARGUMENTS
FLOATS = tuple(codes.DTYPES)
TOKENS = np.dtype("int32")
ACTIVATIONS = tuple(codes.ACTIVATIONS)

_STATE_AND_WEIGHTS = ("BH", "IH", "HH", "H")
_DENSE = {False: "TBI", True: "BI"}  # by step: the letters of a float input, of tokens all but the last


class Signature(NamedTuple):
    """The sizes and kinds of one call. ``I`` is the number of symbols where the input is tokens."""
    T: int
    B: int
    I: int
    H: int
    dtype: np.dtype
    tokens: bool


class Described(NamedTuple):
    """An array as `check` sees it."""
    shape: tuple
    dtype: np.dtype


def check(inputs, state, Wxh, Whh, bh=None, step=False):
    """Check the arguments of a recurrence against one another → their sizes and kinds.

    Parameters
    ----------
    inputs : float (T, B, I) or int32 tokens (T, B); with ``step`` float (B, I) or int32 tokens (B,)
    state, Wxh, Whh : float (B, H), (I, H), (H, H)
    bh : float (H,), or None (in the backward pass)
    step : bool
        One step instead of a sequence; T is then 1.

    Returns
    -------
    Signature

    Raises
    ------
    TypeError
        Not an array, or a dtype that is not allowed there: floats are all float32 or all float64, tokens int32.
    ValueError
        A wrong number of dimensions, shapes that do not fit one another, or an empty dimension.
    """
    shapes, dtypes = [], []
    for name, array in zip(NAMES, (inputs, state, Wxh, Whh) if bh is None else (inputs, state, Wxh, Whh, bh)):
        try:
            shapes.append(tuple(array.shape))
            dtypes.append(np.dtype(array.dtype))
        except (AttributeError, TypeError):
            raise TypeError(f"{name}: got {type(array).__name__}, needs an array") from None
    return signature(tuple(shapes), tuple(dtypes), step)


@functools.lru_cache(maxsize=1024)  # a loop asks the same each time, and a step may take less time than this
def signature(shapes, dtypes, step=False):
    """`check` of shapes and NumPy dtypes, each a tuple of tuples."""
    dtype, tokens = check_dtypes(dtypes)
    if tokens == ("I" in letters(shapes[0], step)[0]):
        cast = "" if tokens else "; cast tokens to int32"
        raise ValueError(f"inputs: got {dtypes[0]} of shape {tuple(shapes[0])}, needs {_needed_inputs(step)}{cast}")
    size = sizes(shapes, step)
    return Signature(size.get("T", 1), size["B"], size["I"], size["H"], dtype, tokens)


def check_dtypes(dtypes):
    """Check the dtypes of (inputs, state, Wxh, Whh[, bh]) → (dtype of the floats, whether the inputs are tokens)."""
    tokens = dtypes[0] == TOKENS
    if not tokens and dtypes[0] not in FLOATS:
        cast = "; cast tokens to int32" if dtypes[0].kind in "iub" else ""
        if dtypes[0].names:  # MXNet's bfloat16, which its mixed precision makes
            cast = "; mx.nd.amp_cast(inputs, dtype='float32')"
        raise TypeError(f"inputs: got dtype {dtype_name(dtypes[0])}, needs float32, float64 or int32 (tokens){cast}")
    dtype = dtypes[1]
    for name, got in zip(NAMES[1:], dtypes[1:]):
        if got not in FLOATS:
            raise TypeError(f"{name}: got dtype {dtype_name(got)}, needs float32 or float64")
        if got != dtype:
            raise TypeError(f"{name}: got dtype {dtype_name(got)}, needs {dtype}, the dtype of state")
    if not tokens and dtypes[0] != dtype:
        raise TypeError(f"inputs: got dtype {dtype_name(dtypes[0])}, needs {dtype}, the dtype of state")
    return dtype, tokens


def letters(inputs_shape, step=False):
    """The letters of each argument's shape. The number of dimensions of the inputs says whether they are dense or tokens; if
    their shape is not known (None), they have no letters.
    """
    if inputs_shape is None:
        return ("",) + _STATE_AND_WEIGHTS
    dense = _DENSE[step]
    if len(inputs_shape) not in (len(dense), len(dense) - 1):
        raise ValueError(f"inputs: got shape {tuple(inputs_shape)}, needs {_needed_inputs(step)}")
    return (dense[:len(inputs_shape)],) + _STATE_AND_WEIGHTS


def sizes(shapes, step=False):
    """Read the size of each letter off the shapes that are known, and see that they fit one another.

    Parameters
    ----------
    shapes : sequence of shapes of (inputs, state, Wxh, Whh[, bh])
        An unknown shape is None, an unknown dimension is negative.

    Returns
    -------
    dict
        Size by letter, without the letters that no known shape has.

    Raises
    ------
    ValueError
        A wrong number of dimensions, an empty one, or shapes that do not fit one another.
    """
    found = {}
    patterns = letters(shapes[0], step)
    for index, (pattern, shape) in enumerate(zip(patterns, shapes)):
        if shape is None:
            continue
        if len(shape) != len(pattern):
            raise _misfit(index, patterns, shapes)
        for letter, size in zip(pattern, shape):
            if size == 0:
                raise ValueError(f"{NAMES[index]}: got shape {tuple(shape)}, needs every dimension to be at least 1")
            if size > 0 and found.setdefault(letter, size) != size:
                raise _misfit(index, patterns, shapes)
    return found


def check_activation(activation):
    """Raise a ValueError if the activation is not one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, needs {' or '.join(map(repr, ACTIVATIONS))}")


def check_tokens(tokens, I):
    """Raise a ValueError that names the first token outside [0, I), if any. tokens: NumPy int32 array."""
    if tokens.view(np.uint32).max() < I:  # as unsigned numbers, negative ones lie above every I
        return
    position = int(np.argmax(tokens.view(np.uint32) >= I))
    raise bad_token(tokens.flat[position], position, tokens.shape, I)


def bad_token(token, position, shape, I):
    """The error for a token outside [0, I), the one at this position of the tokens in C order."""
    where = ", ".join(str(index) for index in np.unravel_index(position, shape))
    return ValueError(f"inputs: got token {token} at [{where}], needs 0 <= token < {I}, I = {I} from Wxh")


def dtype_name(dtype):
    """A dtype's name. MXNet's bfloat16 is a record of one field, and the field has the name."""
    dtype = np.dtype(dtype)
    return dtype.names[0] if dtype.names else dtype


def check_apart(written, read):
    """Raise a ValueError if an array to be written shares memory with another one; it names both.

    written, read: for each array its name, the address where it begins, and the array, which is C-contiguous or None.
    """
    blocks = [(name, begin, begin + array.nbytes) for name, begin, array in written + read if array is not None]
    for index in range(sum(array is not None for _, _, array in written)):
        name, begin, end = blocks[index]
        for other, other_begin, other_end in blocks[index + 1:]:
            if begin < other_end and other_begin < end:
                raise ValueError(f"{name}: got memory that overlaps {other}, needs memory of its own")


def _misfit(index, patterns, shapes):
    """The error for the argument at ``index``, which does not fit those before it; they fit one another."""
    sizes, sources = {}, {}
    for name, pattern, shape in zip(NAMES, patterns[:index], shapes):
        for letter, size in zip(pattern, shape or ()):
            if size > 0 and letter not in sizes:
                sizes[letter], sources[letter] = size, name
    pattern = patterns[index]
    needed = _brackets(pattern)
    known = [letter for letter in dict.fromkeys(pattern) if letter in sizes]
    if known:
        why = " and ".join(f"{letter} = {sizes[letter]} from {sources[letter]}" for letter in known)
        needed = f"{_brackets([str(sizes.get(letter, letter)) for letter in pattern])}, {needed} with {why}"
        turned = zip(pattern, shapes[index][::-1])
        if len(shapes[index]) == len(pattern) == 2 and all(sizes.get(letter, size) == size for letter, size in turned):
            needed += f": {NAMES[index]}.T"
    return ValueError(f"{NAMES[index]}: got shape {tuple(shapes[index])}, needs {needed}")


def _brackets(words):
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _needed_inputs(step):
    return "(B, I) of floats or (B,) of int32 tokens" if step else "(T, B, I) of floats or (T, B) of int32 tokens"
