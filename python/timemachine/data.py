"""From characters to batches: the vocabulary, tokens, and the sequences that the model is trained on.

All of it but one-hot rows works where MXNet is not installed.
"""
import numpy as np


class Vocabulary:
    """The distinct characters of a text in code-point order; a character's token is its place in that order.

    Parameters
    ----------
    characters : str
        At least one; repeated ones count once.
    """

    def __init__(self, characters):
        if not characters:
            raise ValueError("characters: got an empty text, needs at least one character")
        self._code_points = np.unique(_code_points(characters))
        self.symbols = "".join(map(chr, self._code_points))

    def __len__(self):
        return len(self.symbols)

    def missing(self, text):
        """The distinct characters of ``text`` that are not in the vocabulary, in code-point order."""
        return "".join(sorted(set(text) - set(self.symbols)))

    def encode(self, text):
        """str of N characters → tokens, int32 (N,). ValueError where the vocabulary lacks a character."""
        missing = self.missing(text)
        if missing:
            listed = ", ".join(repr(character) for character in missing)
            raise ValueError(f"text: got {listed}, which the vocabulary of {len(self)} characters lacks")
        return np.searchsorted(self._code_points, _code_points(text)).astype(np.int32)

    def decode(self, tokens):
        """Integers (N,), each in [0, V) → str."""
        return "".join(self.symbols[token] for token in tokens)

    def one_hots(self, tokens):
        """Tokens (N,) → NDArray float32 (N, V), one one-hot row a token."""
        from rnn_ops._mxnet import mx
        return mx.nd.one_hot(mx.nd.array(tokens, dtype="int32"), len(self))

    def textify(self, rows):
        """NDArray (N, V), such as one-hot rows or probabilities → str, the likeliest character of each row."""
        return self.decode(rows.argmax(axis=1).asnumpy().astype(np.int64))


def batches(tokens, sequence_length, batch_size):
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
    inputs, labels : int32 (batches, T, B)
        The label of a token is the token after it.

    Raises
    ------
    ValueError
        The text is shorter than one batch and the last label, B·T + 1 tokens.
    """
    T, B = sequence_length, batch_size
    count = (len(tokens) - 1) // T // B
    if count < 1:
        raise ValueError(f"text: got {len(tokens):,} characters, needs {B * T + 1:,} for one batch of "
                         f"{B} sequences of {T} and the last label")

    def arrange(stretch):
        return np.ascontiguousarray(stretch[:B * count * T].reshape(B, count, T).transpose(1, 2, 0))

    return arrange(tokens), arrange(tokens[1:])


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
