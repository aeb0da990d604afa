"""From characters to batches: the vocabulary, tokens, and the sequences that the model is trained on. Needs NumPy alone."""
from typing import Iterable, Tuple

import numpy as np

CODE_POINTS = 0x110000  # of Unicode
_CHUNK = 1 << 20  # characters that are worked on at once, so that the copies in between stay small


class Vocabulary:
    """The distinct characters of a text in code-point order; a character's token is its index.

    Parameters
    ----------
    characters : str
        At least one; repeated ones count once.
    """

    def __init__(self, characters: str):
        if not characters:
            raise ValueError("characters: got an empty text, needs at least one character")
        self._code_points = _distinct(characters)
        self.symbols = "".join(map(chr, self._code_points))

    def __len__(self) -> int:
        return len(self.symbols)

    def missing(self, text: str) -> str:
        """The distinct characters of ``text`` that are not in the vocabulary, in code-point order."""
        return "".join(map(chr, np.setdiff1d(_distinct(text), self._code_points)))

    @property
    def dtype(self) -> np.dtype:
        """The smallest dtype of unsigned integers that holds every token."""
        return np.min_scalar_type(len(self) - 1)

    def encode(self, text: str, dtype=np.int32) -> np.ndarray:
        """str of N characters → tokens, ``dtype`` (N,). ValueError where the vocabulary lacks a character."""
        token_of = np.full(CODE_POINTS, -1, np.int32)
        token_of[self._code_points] = np.arange(len(self))
        tokens, start = np.empty(len(text), dtype), 0
        for chunk in _chunks(text):
            found = token_of[chunk]
            if found.min() < 0:
                raise ValueError(f"text: got {listed(self.missing(text))}, which the vocabulary of {len(self)} characters lacks")
            tokens[start:start + len(found)] = found
            start += len(found)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Integers (N,), each in [0, V) → str."""
        return "".join(self.symbols[token] for token in tokens)


def listed(characters: str, most: int = 10) -> str:
    """Characters for a message: the first ``most`` of them, and how many more there are."""
    more = f" and {len(characters) - most:,} more" if len(characters) > most else ""
    return ", ".join(map(repr, characters[:most])) + more


def batches(tokens: np.ndarray, sequence_length: int, batch_size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Cut a text into batches whose rows go on from one batch to the next.

    The text's whole sequences are dealt out so that each of the B batch rows gets one contiguous stretch of the text,
    T tokens of it a batch. The state after a batch is thus the state before the next one.

    Parameters
    ----------
    tokens : int32 (N,)
    sequence_length, batch_size : int
        T and B.

    Returns
    -------
    inputs, labels : int32 (batches, T, B), C-contiguous
        The label of a token is the token after it.

    Raises
    ------
    ValueError
        The text is shorter than one batch and the last label, B·T + 1 tokens.
    """
    inputs, labels = batch_views(tokens, sequence_length, batch_size)
    return np.ascontiguousarray(inputs), np.ascontiguousarray(labels)


def batch_views(tokens: np.ndarray, sequence_length: int, batch_size: int) -> Tuple[np.ndarray, np.ndarray]:
    """`batches` of tokens of any dtype as views of ``tokens``, which take no memory of their own."""
    T, B = sequence_length, batch_size
    count = (len(tokens) - 1) // T // B
    if count < 1:
        raise ValueError(f"text: got {len(tokens):,} characters, needs {B * T + 1:,} for one batch of "
                         f"{B} sequences of {T} and the last label")

    def arrange(stretch):
        return stretch[:B * count * T].reshape(B, count, T).transpose(1, 2, 0)

    return arrange(tokens), arrange(tokens[1:])


def _distinct(text):
    """The distinct code points of a text, in order."""
    used = np.zeros(CODE_POINTS, bool)
    for chunk in _chunks(text):
        used[chunk] = True
    return np.flatnonzero(used)


def _chunks(text):
    """The code points of a text, some at a time."""
    for start in range(0, len(text), _CHUNK):
        yield np.frombuffer(text[start:start + _CHUNK].encode("utf-32-le", "surrogatepass"), dtype="<u4")
