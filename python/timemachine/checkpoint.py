"""A trained model in one file: parameters, vocabulary and settings. A crash never costs the one already there."""
import json
import os
from typing import NamedTuple

import numpy as np

from timemachine import data, files, model

FILE = "model.npz"
_FORMAT = "rnn_ops.timemachine/1"


class Checkpoint(NamedTuple):
    """``parameters``: NumPy arrays by name (`model.shapes`); ``settings``: what JSON can hold."""
    parameters: dict
    vocabulary: data.Vocabulary
    settings: dict


def save(path, checkpoint):
    """Write a checkpoint over ``path``: to a temporary name beside it first, which takes its place once it is on disk.

    Raises
    ------
    OSError
        It cannot be written; what was at ``path`` is still there.
    """
    settings = json.dumps(dict(checkpoint.settings, format=_FORMAT))
    with files.replacing(path) as file:
        np.savez(file, symbols=np.array([ord(symbol) for symbol in checkpoint.vocabulary.symbols], np.uint32),
                 settings=np.array(settings), **checkpoint.parameters)


def load(path):
    """Read a checkpoint.

    Parameters
    ----------
    path : str
        The file, or the folder of a run.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        The file is not a checkpoint, is damaged, or its parts do not fit one another.
    """
    if os.path.isdir(path):
        path = os.path.join(path, FILE)
    if not os.path.exists(path):
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        settings = json.loads(str(arrays.pop("settings")))
        symbols = "".join(map(chr, arrays.pop("symbols")))
        vocabulary = data.Vocabulary(symbols)
        known = settings.get("format") == _FORMAT and vocabulary.symbols == symbols
    except Exception as error:  # a damaged archive makes its reader fail in every way there is
        raise ValueError(f"checkpoint: {path} is damaged or not one ({type(error).__name__}: {error})") from error
    if not known:
        raise ValueError(f"checkpoint: {path} is not one of the format {_FORMAT}")
    _check_parameters(path, arrays, len(vocabulary))
    return Checkpoint(arrays, vocabulary, settings)


def _check_parameters(path, arrays, vocabulary_size):
    hidden_size = arrays["bh"].size if "bh" in arrays else 0
    needed = model.shapes(vocabulary_size, hidden_size)
    got = {name: array.shape for name, array in arrays.items()}
    if got != needed:
        raise ValueError(f"checkpoint: {path} holds parameters of shapes {got}, needs {needed}")
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or dtypes.pop() not in (np.float32, np.float64):
        raise ValueError(f"checkpoint: {path} holds parameters of dtypes "
                         f"{[str(array.dtype) for array in arrays.values()]}, needs all float32 or all float64")
