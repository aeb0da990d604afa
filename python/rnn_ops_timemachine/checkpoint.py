"""A trained model in one file: parameters, vocabulary and settings. A crash never costs the one already there.

A file may come from anybody. So it is read only if it holds exactly what `save` writes, and the shapes that its parts declare
are compared with those of its vocabulary and hidden size before the first parameter is read.
"""
import io
import json
import os
import reprlib
import warnings
import zipfile
from typing import NamedTuple

import numpy as np

from rnn_ops_timemachine import data, files, parameters, settings

FILE = "model.npz"
_FORMATS = "rnn_ops.timemachine/1", "rnn_ops.timemachine/2"  # the last one is written; 0.1.0 wrote the first
_MOST_BYTES = {"settings": 1 << 20, "symbols": 8 << 20}  # of the parts that are read before their lengths are known


class Checkpoint(NamedTuple):
    """``parameters``: NumPy arrays by name (`parameters.shapes`); ``settings``: `settings.Settings` and `settings.State`, by
    name in one dict."""
    parameters: dict
    vocabulary: data.Vocabulary
    settings: dict


def save(path: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint over ``path``: to a temporary name beside it first, which takes its place once it is on disk.

    Raises
    ------
    OSError
        It cannot be written; the file that was at ``path`` is still there.
    """
    with files.replacing(path) as file:
        _write(file, checkpoint)


def load(path: str) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : str
        The file, or the folder of a run.

    Raises
    ------
    OSError
        It does not exist or cannot be read.
    ValueError
        The file is not a checkpoint, is damaged, or its parts do not fit one another.
    """
    if os.path.isdir(path):
        path = os.path.join(path, FILE)
    try:
        descriptor = files.open_plain(path, follow=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint: {path} does not exist") from None
    try:
        with _SmallReads(io.FileIO(descriptor)) as file, warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns where it guesses at a header
            return _read(file)
    except _Misfit as error:
        raise ValueError(f"checkpoint: {path}: {error}") from None
    except MemoryError as error:
        raise ValueError(f"checkpoint: {path} needs more memory than this machine has ({error})") from error
    except Exception as error:  # a damaged archive can raise any exception in its reader
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint: {path} is damaged or not one ({type(error).__name__}: {said})") from error


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of a checkpoint's file."""
    with io.BytesIO() as file:
        _write(file, checkpoint)
        return file.getvalue()


def from_bytes(content: bytes) -> Checkpoint:
    """A checkpoint from its file's content; a ValueError if that is none."""
    with _SmallReads(io.BytesIO(content)) as file:
        return _read(file)


class _Misfit(ValueError):
    """A part that can be read but does not belong to a checkpoint."""


class _SmallReads(io.BufferedReader):
    """Refuses large reads: zipfile would believe an archive that declares a directory of gigabytes."""
    _MOST = 1 << 20

    def read(self, size=-1):
        content = super().read(self._MOST + 1 if size is None or size < 0 or size > self._MOST else size)
        if len(content) > self._MOST:
            raise ValueError("it declares a part far larger than a checkpoint has")
        return content


def _write(file, checkpoint):
    text = json.dumps(dict(checkpoint.settings, format=_FORMATS[-1]))
    np.savez(file, symbols=np.array([ord(symbol) for symbol in checkpoint.vocabulary.symbols], np.uint32),
             settings=np.array(text), **checkpoint.parameters)


def _read(file):
    with zipfile.ZipFile(file) as archive:
        headers = _headers(archive)
        text = _array(archive, headers, "settings", lambda shape, dtype: shape == () and dtype.kind == "U", "a text")
        symbols = _array(archive, headers, "symbols", lambda shape, dtype: len(shape) == 1 and dtype == np.uint32,
                         "uint32 of one dimension")
        saved, vocabulary = _settings(str(text)), _vocabulary(symbols)
        _check_parameters({name: headers[name] for name in parameters.NAMES}, len(vocabulary), saved["hidden"])
        arrays = {name: _array(archive, headers, name) for name in parameters.NAMES}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise _Misfit(f"{name} holds NaN or infinity, needs finite numbers")
    return Checkpoint(arrays, vocabulary, saved)


def _headers(archive):
    """The (shape, dtype) that every array declares, by name; a `_Misfit` where the parts are others than `save` writes."""
    members = archive.infolist()
    names = [member.filename[:-len(".npy")] for member in members]
    needed = ["symbols", "settings", *parameters.NAMES]
    if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in needed):
        got = reprlib.repr([member.filename for member in members])
        raise _Misfit(f"is damaged or not one (got the parts {got}, needs {needed})")
    headers = {}
    for name, member in zip(names, members):
        if member.compress_type != zipfile.ZIP_STORED:
            raise _Misfit(f"{name} is compressed, needs to be stored as it is")
        if member.file_size > _MOST_BYTES.get(name, member.file_size):
            raise _Misfit(f"{name} is {member.file_size:,} bytes long, needs at most {_MOST_BYTES[name]:,}")
        with archive.open(member) as part:
            if np.lib.format.read_magic(part) != (1, 0):
                raise _Misfit(f"{name} is in a format of NumPy's other than 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(part)
            header = part.tell()
        numbers = 1
        for length in shape:
            numbers *= length
        if dtype.hasobject or header + numbers * dtype.itemsize != member.file_size:
            raise _Misfit(f"{name} declares {dtype} {shape} and is {member.file_size:,} bytes long")
        headers[name] = shape, dtype
    return headers


def _array(archive, headers, name, fits=lambda shape, dtype: True, needs=""):
    if not fits(*headers[name]):
        shape, dtype = headers[name]
        raise _Misfit(f"{name} is {dtype} {shape}, needs {needs}")
    with archive.open(f"{name}.npy") as part:
        return np.lib.format.read_array(part, allow_pickle=False)


def _settings(text):
    def refuse(constant):
        raise _Misfit(f"its settings hold {constant}")

    saved = json.loads(text, parse_constant=refuse)
    if type(saved) is not dict or saved.pop("format", None) not in _FORMATS:
        raise _Misfit(f"is not one of the formats {', '.join(_FORMATS)}")
    try:
        return settings.check_saved(saved)
    except ValueError as error:
        raise _Misfit(error) from None


def _vocabulary(symbols):
    if not len(symbols) or (np.diff(symbols.astype(np.int64)) <= 0).any() or symbols[-1] >= data.CODE_POINTS:
        raise _Misfit("its symbols are not the code points of one or more characters, in their order")
    if ((symbols >= 0xd800) & (symbols < 0xe000)).any():
        raise _Misfit("its symbols hold surrogates, which are no characters")
    return data.Vocabulary("".join(map(chr, symbols)))


def _check_parameters(headers, vocabulary_size, hidden_size):
    needed = parameters.shapes(vocabulary_size, hidden_size)
    got = {name: shape for name, (shape, _) in headers.items()}
    if got != needed:
        raise _Misfit(f"holds parameters of shapes {got}, needs {needed}")
    dtypes = [dtype for _, dtype in headers.values()]
    if len(set(dtypes)) > 1 or dtypes[0] not in (np.float32, np.float64):
        raise _Misfit(f"holds parameters of dtypes {[str(dtype) for dtype in dtypes]}, needs all float32 or all float64")
