"""Checkpoints: what is saved comes back, nothing damaged is taken, nothing good is overwritten by half a file."""
import os

import numpy as np
import pytest

from timemachine import checkpoint, data, files, model

VOCABULARY = data.Vocabulary("\0\n abcé时😀")


SETTINGS = dict(text="/books/é", step="native", epochs=4, hidden=6, seed=2 ** 40, learning_rate=0.5, batch_size=32,
                sequence_length=64, validation=0.1, patience=2, epoch=3, moving_loss=0.1 + 0.2, sha256="0f" * 32,
                written={"metrics.jsonl": 300, "samples.txt": 0}, rnn_ops="0.1.0", learning_rate_since=2, best_epoch=1,
                best_loss=2.5)


@pytest.fixture
def saved():
    return checkpoint.Checkpoint(model.initialise(len(VOCABULARY), 6, seed=2), VOCABULARY, SETTINGS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_saved_comes_back(tmp_path, saved, dtype):
    saved = saved._replace(parameters={name: array.astype(dtype) for name, array in saved.parameters.items()})
    checkpoint.save(str(tmp_path / checkpoint.FILE), saved)
    assert os.listdir(tmp_path) == [checkpoint.FILE]
    for path in (str(tmp_path), str(tmp_path / checkpoint.FILE)):
        loaded = checkpoint.load(path)
        assert list(loaded.parameters) == list(saved.parameters)
        for name, array in loaded.parameters.items():
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, saved.parameters[name])
        assert loaded.vocabulary.symbols == VOCABULARY.symbols
        assert loaded.settings == SETTINGS


def test_a_damaged_file_is_never_taken(tmp_path, saved):
    path = tmp_path / checkpoint.FILE
    checkpoint.save(str(path), saved)
    good = path.read_bytes()
    random = np.random.RandomState(0)
    for length in [0, 1, 100, *random.randint(0, len(good), 40), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="checkpoint: .* is damaged or not one"):
            checkpoint.load(str(path))
    refused = 0
    for position in random.randint(0, len(good), 300):  # one wrong byte: an error, or a byte that nobody reads
        damaged = bytearray(good)
        damaged[position] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(str(path))
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            for name, array in loaded.parameters.items():
                np.testing.assert_array_equal(array, saved.parameters[name])
            assert loaded.vocabulary.symbols == VOCABULARY.symbols
    assert refused > 200


def test_other_files_are_not_checkpoints(tmp_path):
    path = tmp_path / "other"
    with pytest.raises(FileNotFoundError, match="checkpoint: .*other does not exist"):
        checkpoint.load(str(path))
    with pytest.raises(FileNotFoundError, match=f"checkpoint: .*{checkpoint.FILE} does not exist"):
        checkpoint.load(str(tmp_path))
    path.write_text("some text")
    with pytest.raises(ValueError, match="damaged or not one"):
        checkpoint.load(str(path))
    with open(path, "wb") as file:
        np.savez(file, Wxh=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="damaged or not one .*settings"):
        checkpoint.load(str(path))


@pytest.mark.parametrize("change, message", [
    (dict(Whh=np.zeros((6, 5), np.float32)), r"shapes .*'Whh': \(6, 5\).*, needs .*'Whh': \(6, 6\)"),
    (dict(Wxh=np.zeros((8, 6), np.float32)), r"'Wxh': \(8, 6\).*, needs .*'Wxh': \(9, 6\)"),
    (dict(bh=np.zeros((), np.float32)), r"'bh': \(\), .*needs .*'bh': \(6,\)"),
    (dict(extra=np.zeros(1, np.float32)), "got the parts .*, needs"),
    (dict(by=np.zeros(9, np.float64)), "needs all float32 or all float64"),
])
def test_parts_that_do_not_fit_are_named(tmp_path, saved, change, message):
    checkpoint.save(str(tmp_path / "x"), saved._replace(parameters=dict(saved.parameters, **change)))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(str(tmp_path / "x"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(str(path)) as file:
            file.write(b"new, but not all of i")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with files.replacing(str(path)) as file:
        file.write(b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]
