"""Vocabulary and batches, with the tutorial's sanity checks."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_ops_timemachine import data

TEXT = "".join(chr(ord("a") + (7 * i * i + i) % 26) for i in range(1000))


def test_the_books_batches(book):
    vocabulary = data.Vocabulary(book.characters)
    tokens = vocabulary.encode(book.characters)
    assert len(vocabulary) == 77 and tokens.shape == (179_533,) and tokens.dtype == np.int32
    inputs, labels = data.batches(tokens, 64, 32)
    assert inputs.shape == labels.shape == (87, 64, 32)
    assert vocabulary.decode(inputs[0, :, 0]) == "Project Gutenberg's The Time Machine, by H. G. (Herbert George) "
    assert vocabulary.decode(inputs[0, :, 1]) == "vement of the barometer. Yesterday it was so high, yesterday nig"
    assert vocabulary.decode(inputs[10, :, 3]) == "te, but the twisted crystalline bars lay unfinished upon the\nben"
    assert vocabulary.decode(labels[10, :, 3]) == "e, but the twisted crystalline bars lay unfinished upon the\nbenc"


@pytest.mark.parametrize("T, B", [(1, 1), (1, 7), (13, 1), (8, 4), (333, 3), (64, 5)])
def test_batches_are_contiguous_rows(T, B):
    vocabulary = data.Vocabulary(TEXT)
    inputs, labels = data.batches(vocabulary.encode(TEXT), T, B)
    count = (len(TEXT) - 1) // T // B
    for tokens in (inputs, labels):
        assert tokens.shape == (count, T, B) and tokens.dtype == np.int32 and tokens.flags.c_contiguous
    # Row b of a batch goes on in row b of the next one, and row b + 1 begins where row b ends.
    rows = [vocabulary.decode(inputs[:, :, b].ravel()) for b in range(B)]
    assert "".join(rows) == TEXT[:count * T * B]
    shifted = [vocabulary.decode(labels[:, :, b].ravel()) for b in range(B)]
    assert "".join(shifted) == TEXT[1:count * T * B + 1]


def test_tokens_of_few_symbols_take_little_memory():
    for symbols, dtype in (1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"):
        characters = "".join(chr(code) for code in range(0x10000, 0x10000 + symbols))
        vocabulary = data.Vocabulary(characters)
        tokens = vocabulary.encode(characters[::-1], vocabulary.dtype)
        assert tokens.dtype == dtype and (tokens == np.arange(symbols)[::-1]).all()
    inputs, labels = data.batch_views(tokens, 8, 4)
    true = data.batches(tokens.astype(np.int32), 8, 4)
    assert np.shares_memory(inputs, tokens) and np.shares_memory(labels, tokens)
    assert (inputs == true[0]).all() and (labels == true[1]).all()


def test_a_text_longer_than_a_chunk(monkeypatch):
    whole = data.Vocabulary(TEXT + "é")
    monkeypatch.setattr(data, "_CHUNK", 7)
    vocabulary = data.Vocabulary(TEXT + "é")
    assert vocabulary.symbols == whole.symbols and vocabulary.missing("!" + TEXT + "ä") == "!ä"
    assert vocabulary.decode(vocabulary.encode(TEXT + "é")) == TEXT + "é"


def test_one_batch_needs_its_last_label():
    tokens = np.zeros(4 * 3 + 1, np.int32)
    assert data.batches(tokens, 4, 3)[0].shape == (1, 4, 3)
    with pytest.raises(ValueError, match="text: got 12 characters, needs 13 for one batch of 3 sequences of 4"):
        data.batches(tokens[:-1], 4, 3)


@given(st.text(st.characters(), min_size=1))
def test_encode_and_decode_any_text(text):
    vocabulary = data.Vocabulary(text)
    assert vocabulary.symbols == "".join(sorted(set(text)))
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32 and tokens.max() == len(vocabulary) - 1 and tokens.min() == 0
    assert vocabulary.decode(tokens) == text


def test_a_character_that_the_vocabulary_lacks_is_named():
    with pytest.raises(ValueError, match="text: got '!', 'é', which the vocabulary of 26 characters lacks"):
        data.Vocabulary("abcdefghijklmnopqrstuvwxyz").encode("aéb!é")
    with pytest.raises(ValueError, match="text: got '一', '丁', .* and 246 more, which"):
        data.Vocabulary("abc").encode("".join(map(chr, range(0x4e00, 0x4f00))))
    with pytest.raises(ValueError, match="characters: got an empty text"):
        data.Vocabulary("")
