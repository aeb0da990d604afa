"""Checkpoints: what is saved comes back, nothing damaged is taken, nothing good is overwritten by half a file."""
import io
import json
import os
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from rnn_ops_timemachine import checkpoint, data, files
from rnn_ops_timemachine.parameters import initialise

VOCABULARY = data.Vocabulary("\0\n abcé时😀")


SETTINGS = dict(text="/books/é", step="native", epochs=4, hidden=6, seed=2 ** 40, learning_rate=0.5, batch_size=32,
                sequence_length=64, validation=0.1, patience=2, epoch=3, moving_loss=0.1 + 0.2, sha256="0f" * 32,
                written={"metrics.jsonl": 300, "samples.txt": 0}, rnn_ops="0.1.0", learning_rate_since=2, best_epoch=1,
                best_loss=2.5)


@pytest.fixture
def saved():
    return checkpoint.Checkpoint(initialise(len(VOCABULARY), 6, seed=2), VOCABULARY, SETTINGS)


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


def archive(path, saved, change=lambda parts: None, compression=zipfile.ZIP_STORED):
    """Write a checkpoint whose parts, NumPy files by name, are first changed."""
    checkpoint.save(str(path), saved)
    with zipfile.ZipFile(str(path)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(str(path), "w", compression) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def declared(shape, dtype="<f4", order=False, content=b""):
    """A NumPy file that declares an array, whatever it holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr=dtype, fortran_order=order, shape=shape))
    return file.getvalue() + content


def with_settings(**changes):
    """What changes settings: None takes one away."""
    def change(parts):
        settings = dict(SETTINGS, format="rnn_ops.timemachine/2")
        settings.update(changes)
        parts["settings.npy"] = npy(np.array(json.dumps({k: v for k, v in settings.items() if v is not ABSENT})))
    return change


ABSENT = object()


def with_part(name, content):
    return lambda parts: parts.__setitem__(f"{name}.npy", content)


def with_symbols(*code_points, dtype=np.uint32):
    return with_part("symbols", npy(np.array(code_points, dtype)))


def with_weight(name, value):
    def change(parts):
        array = np.load(io.BytesIO(parts[f"{name}.npy"]))
        array.flat[-1] = value
        parts[f"{name}.npy"] = npy(array)
    return change


@pytest.mark.parametrize("change, message", [
    # settings: the keys, their types and ranges, and what they say together
    (with_settings(written={"/etc/passwd": 0, "samples.txt": 0}), "written: got .*needs the sizes of metrics.jsonl and"),
    (with_settings(written={"metrics.jsonl": 0, "samples.txt": 0, "../x": 0}), "written: got"),
    (with_settings(written={"metrics.jsonl": -1, "samples.txt": 0}), "written: got"),
    (with_settings(written={"metrics.jsonl": 1.0, "samples.txt": 0}), "written: got"),
    (with_settings(written=["metrics.jsonl", "samples.txt"]), "written: got"),
    (with_settings(more=1), "settings: got .*needs batch_size, best_epoch"),
    (with_settings(sha256=ABSENT), "settings: got"),
    (with_settings(best_epoch=ABSENT, best_loss=ABSENT), "settings: got"),
    (with_settings(format="rnn_ops.timemachine/9"), "is not one of the formats"),
    (with_settings(format=ABSENT), "is not one of the formats"),
    (with_settings(text=""), "text: got"), (with_settings(text="a\0b"), "text: got"), (with_settings(text=3), "text: got"),
    (with_settings(text="x" * 5000), "text: got"),
    (with_settings(step="../native"), "step: got .*needs one of"), (with_settings(step=["native"]), "step: got"),
    (with_settings(epochs=0), "epochs: got 0"), (with_settings(epochs="4"), "epochs: got"),
    (with_settings(epochs=True, epoch=1, learning_rate_since=1), "epochs: got True"),
    (with_settings(epochs=10 ** 30), "epochs: got"),
    (with_settings(hidden=6.0), "hidden: got 6.0"), (with_settings(hidden=-6), "hidden: got -6"),
    (with_settings(hidden=7), "holds parameters of shapes"), (with_settings(hidden=10 ** 12), "holds parameters of shapes"),
    (with_settings(seed=-1), "seed: got -1"), (with_settings(batch_size=0), "batch_size: got 0"),
    (with_settings(sequence_length=None), "sequence_length: got None"),
    (with_settings(learning_rate=0), "learning_rate: got 0"), (with_settings(learning_rate=1e39), "learning_rate: got"),
    (with_settings(learning_rate=float("nan")), "hold NaN"), (with_settings(moving_loss=float("inf")), "hold Infinity"),
    (with_settings(moving_loss=None), "moving_loss: got None"), (with_settings(moving_loss=-1), "moving_loss: got -1"),
    (with_settings(moving_loss=710), "moving_loss: got 710"),
    (with_settings(epoch=5), "epoch: got 5, needs at most the epochs, 4"), (with_settings(epoch=-1), "epoch: got -1"),
    (with_settings(epoch=0), "moving_loss: got 0.3.*none before"),
    (with_settings(learning_rate_since=5), "learning_rate_since: got 5, needs at most 4"),
    (with_settings(best_epoch=4), "best_epoch: got 4"), (with_settings(best_epoch=None, best_loss=None), "best_epoch: got None"),
    (with_settings(best_loss=None), "best_loss: got None"), (with_settings(best_loss="2"), "best_loss: got"),
    (with_settings(validation=1), "validation: got 1"), (with_settings(validation=0), "patience: got 2, needs a validation"),
    (with_settings(validation=0, patience=0), "best_epoch: got 1"),
    (with_settings(patience=-2), "patience: got -2"), (with_settings(rnn_ops="\x1b[31m"), "rnn_ops: got"),
    (with_settings(sha256="0F" * 32), "sha256: got"), (with_settings(sha256=None), "sha256: got None"),
    (with_part("settings", npy(np.array("[]"))), "is not one of the formats"),
    (with_part("settings", npy(np.array("{"))), "damaged or not one"),
    (with_part("settings", npy(np.array("[" * 100000))), "damaged or not one .RecursionError"),
    (with_part("settings", npy(np.array(["{}"]))), "settings is <U2 .1,., needs a text"),
    (with_part("settings", npy(np.array(b"{}"))), "settings is .S2 .*, needs a text"),
    (with_part("settings", npy(np.array("x" * 300000))), "settings is 1,200,128 bytes long"),
    # symbols
    (with_symbols(*range(0xd800, 0xd809)), "surrogates"), (with_symbols(1, 2, 3, 4, 5, 6, 7, 9, 8), "in their order"),
    (with_symbols(1, 2, 3, 4, 5, 6, 7, 8, 8), "in their order"), (with_symbols(0, 1, 2, 3, 4, 5, 6, 7, 0x110000), "code points"),
    (with_symbols(1, 2, dtype=np.int64), "symbols is int64"), (with_symbols(), "symbols are not"),
    (with_symbols(1, 2, 3), "holds parameters of shapes"),
    (with_part("symbols", npy(np.zeros((3, 3), np.uint32))), "symbols is uint32"),
    (with_part("symbols", npy(np.zeros(3 << 20, np.uint32))), "symbols is 12,583,040 bytes long, needs at most"),
    # parameters
    (with_weight("Wxh", np.nan), "Wxh holds NaN or infinity"), (with_weight("by", -np.inf), "by holds NaN or infinity"),
    (with_part("Whh", npy(np.zeros((6, 6), ">f4"))), "dtypes"), (with_part("Whh", npy(np.zeros((6, 6), np.float16))), "dtypes"),
    (with_part("Whh", npy(np.zeros((6, 6), np.complex64))), "dtypes"),
    (with_part("Whh", npy(np.array([{"a": object}] * 6))), "Whh declares object"),  # would run code if it were unpickled
    (lambda parts: parts.pop("by.npy"), "needs .*'by'"),
    (lambda parts: parts.update({"more.npy": b""}), "got the parts"),
    (lambda parts: parts.update({"../../evil.npy": parts.pop("by.npy")}), "got the parts"),
    # more declared than there is: shapes are looked at before memory is taken
    (with_part("Whh", declared((10 ** 9, 10 ** 9))), "Whh declares float32"),
    (with_part("Whh", declared((-1, -36), content=b"\0" * 144)), "damaged or not one|holds parameters of shapes"),
    (with_part("Whh", declared((6, 6), content=b"\0" * 140)), "Whh declares float32"),
    (with_part("Whh", declared((6, 6), content=b"\0" * 148)), "Whh declares float32"),
    (with_part("Whh", b"\x93NUMPY\3\0" + struct.pack("<I", 2 ** 31)), "format of NumPy's"),
    (with_part("Whh", b"\x93NUMPY\1\0" + struct.pack("<H", 4) + b"((((" ), "damaged or not one"),
    (with_part("Whh", b""), "damaged or not one"), (with_part("Whh", b"not NumPy's"), "damaged or not one"),
])
def test_a_file_that_no_run_writes_is_refused_in_a_line(tmp_path, saved, change, message):
    path = tmp_path / "model.npz"
    archive(path, saved)
    checkpoint.load(str(path))
    archive(path, saved, change)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(str(path))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000 and str(error.value).isprintable()
    assert str(path) in str(error.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, saved):
    path = tmp_path / "model.npz"
    archive(path, saved, with_part("Whh", declared((6, 6), content=bytes(100 << 20))), zipfile.ZIP_DEFLATED)
    assert os.path.getsize(path) < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="is compressed, needs to be stored as it is"):
        checkpoint.load(str(path))
    with open(path, "wb") as file:  # the end of an archive that says that its directory is what comes before, 1 GB
        file.truncate(1 << 30)
        file.seek(1 << 30)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60000, 60000, 1 << 30, 0, 0))
    with pytest.raises(ValueError, match="declares a part far larger"):
        checkpoint.load(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(ValueError, match="damaged or not one"):
        checkpoint.load(str(path))


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / checkpoint.FILE)
    for path in tmp_path, tmp_path / checkpoint.FILE, "/dev/zero":
        with pytest.raises(OSError, match="is a directory, pipe or device, needs to be a plain file"):
            checkpoint.load(str(path))
    os.remove(tmp_path / checkpoint.FILE)
    os.mkdir(tmp_path / checkpoint.FILE)
    with pytest.raises(OSError, match="is a directory"):
        checkpoint.load(str(tmp_path))


def test_a_checkpoint_of_version_0_1_0_is_read(tmp_path, saved):
    """One as that version wrote it: the settings below, under format 1."""
    old = {name: value for name, value in SETTINGS.items() if name not in (
        "validation", "patience", "learning_rate_since", "best_epoch", "best_loss")}
    with open(tmp_path / "old.npz", "wb") as file:
        np.savez(file, symbols=np.array([ord(symbol) for symbol in VOCABULARY.symbols], np.uint32),
                 settings=np.array(json.dumps(dict(old, format="rnn_ops.timemachine/1"))), **saved.parameters)
    loaded = checkpoint.load(str(tmp_path / "old.npz"))
    assert loaded.settings == dict(old, validation=0.0, patience=0, learning_rate_since=1, best_epoch=None, best_loss=None)
    np.testing.assert_array_equal(loaded.parameters["Why"], saved.parameters["Why"])


def test_files_are_written_through_nobodys_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in "a", "a.tmp":
        os.symlink(outside, tmp_path / name)
    with files.replacing(str(tmp_path / "a")) as file:
        file.write(b"new")
    assert outside.read_text() == "mine" and (tmp_path / "a").read_text() == "new" and not os.path.islink(tmp_path / "a")
    os.symlink(outside, tmp_path / "b")
    os.mkfifo(tmp_path / "c")
    for name in "b", "c":
        for change in (lambda path: files.append(path, "x"), lambda path: files.cut(path, 0), files.size,
                       lambda path: files.read(path, 10)):
            with pytest.raises(OSError, match="needs to be a plain file"):
                change(str(tmp_path / name))
    assert outside.read_text() == "mine"


def test_a_file_with_a_second_name_is_copied_before_it_changes(tmp_path):
    (tmp_path / "file").write_text("one two")
    os.link(tmp_path / "file", tmp_path / "backup")
    files.cut(str(tmp_path / "file"), 3)
    files.append(str(tmp_path / "file"), "!")
    assert (tmp_path / "file").read_text() == "one!" and (tmp_path / "backup").read_text() == "one two"


def test_files_get_the_modes_that_the_user_has_set(tmp_path):
    before = os.umask(0o027)
    try:
        files.append(str(tmp_path / "a"), "x")
        with files.replacing(str(tmp_path / "b")) as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in "ab"] == [0o640, 0o640]
