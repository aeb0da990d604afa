"""Let a model continue a text, one character at a time.

NumPy does the steps: a single row is a few microseconds of arithmetic. A call of an operator, or even the argument checks of
the CPU kernels, would take several times as long.
"""
import math
from typing import Dict, Iterator, Sequence, Union

import numpy as np

from rnn_ops_timemachine import data

_PIECE = 64  # characters, a few milliseconds' work

Seed = Union[int, Sequence[int]]


def sample(parameters: Dict[str, np.ndarray], vocabulary: data.Vocabulary, prompt: str, length: int, temperature: float,
           seed: Seed) -> str:
    """Continue a text.

    Parameters
    ----------
    parameters : dict
        NumPy arrays by name, as in `checkpoint.Checkpoint`.
    vocabulary : data.Vocabulary
    prompt : str
        The model reads it first, from a hidden state of zeros: at least one character, all in the vocabulary.
    length : int
        How many characters to add, at least 1.
    temperature : float
        Greater than 0: the logits are divided by it before the softmax. Near 0 the likeliest character is taken; at 1 the
        probabilities are those that were trained.
    seed : int or sequence of int
        At least 0. The same seed gives the same text.

    Returns
    -------
    str
        The continuation, without the prompt.

    Raises
    ------
    ValueError
    FloatingPointError
        A logit is not finite: the parameters are too large to compute with.
    """
    return "".join(stream(parameters, vocabulary, prompt, length, temperature, seed))


def stream(parameters: Dict[str, np.ndarray], vocabulary: data.Vocabulary, prompt: str, length: int, temperature: float,
           seed: Seed) -> Iterator[str]:
    """As `sample`, but an iterator over pieces of the continuation. Each piece is made when its turn comes, so memory holds
    one. A ValueError is raised at once."""
    _check(vocabulary, prompt, length, temperature, seed)
    return _pieces(parameters, vocabulary, prompt, length, temperature, np.random.default_rng(seed))


def _pieces(parameters, vocabulary, prompt, length, temperature, random):
    Wxh, Whh, bh, Why, by = (parameters[name] for name in ("Wxh", "Whh", "bh", "Why", "by"))
    with _quiet():
        projected = Wxh + bh
        state = np.zeros(len(bh), bh.dtype)
        for token in vocabulary.encode(prompt):
            state = np.tanh(projected[token] + state @ Whh)
    while length:
        tokens = []
        with _quiet():
            for threshold in random.random(min(length, _PIECE)):
                token = _choose(state @ Why + by, temperature, threshold)
                tokens.append(token)
                state = np.tanh(projected[token] + state @ Whh)
        length -= len(tokens)
        yield vocabulary.decode(tokens)


def _quiet():
    """No warnings: a sum that overflows is seen in the logits, and a logit over a tiny temperature becomes exp(-inf) = 0 on
    purpose."""
    return np.errstate(over="ignore", invalid="ignore")


def _choose(logits, temperature, threshold):
    """Draw from softmax(logits / temperature) by a number from [0, 1): the first index where the cumulative sum is above
    that part of the total."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the logits are not finite: the model's parameters are too large")
    cumulative = np.cumsum(np.exp((logits - logits.max()).astype(np.float64) / temperature))
    return int(np.searchsorted(cumulative, threshold * cumulative[-1], side="right"))


def _check(vocabulary, prompt, length, temperature, seed):
    if not prompt:
        raise ValueError("prompt: got an empty text, needs at least one character")
    missing = vocabulary.missing(prompt)
    if missing:
        raise ValueError(f"prompt: got {data.listed(missing)}, not among the {len(vocabulary):,} symbols that the model knows")
    if length < 1:
        raise ValueError(f"length: got {length}, needs at least 1")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: got {temperature}, needs a finite number greater than 0")
    if np.min(seed) < 0:
        raise ValueError(f"seed: got {seed}, needs at least 0")
