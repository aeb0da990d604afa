"""The settings and the state of a run, and the one place that says which values they can have.

They come from the command line and, with --resume, from a checkpoint, which may come from anybody.
"""
import math
import re
import reprlib
from typing import Any, Dict, NamedTuple, Optional

import numpy as np

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"  # the files of a run whose sizes its checkpoint holds
MAY_CHANGE = ("epochs", "patience", "learning_rate", "step")  # settings that may be new when a run is resumed
STEPS = ("native", "custom", "gluon", "reference", "cuda", "torch")  # `learners` has one for each
LEARNING_RATES = np.finfo(np.float32)  # MXNet's update takes no others
LARGEST_LOSS = 709  # the exponential of a larger one, the perplexity, is infinite


class Settings(NamedTuple):
    """The settings of a run. The defaults are the tutorial's, except for its 2,000 epochs.

    ``step``, one of STEPS, names the learner that computes the training steps:

    - "native": our native operator, and "custom": our CustomOp in Python, in the model of model.py;
    - "gluon": our layer in a Gluon network;
    - "reference": the tutorial's recurrence in mx.nd operations;
    - "cuda": the CUDA kernels alone on a GPU, without MXNet;
    - "torch": our operator in a PyTorch training, without MXNet.
    """
    text: str = "timemachine"
    step: Optional[str] = None  # None: `learners.default`
    epochs: int = 15
    hidden: Optional[int] = None  # None: 256, or those of the model that the run begins with
    seed: int = 0
    learning_rate: float = 0.5
    batch_size: int = 32
    sequence_length: int = 64
    validation: float = 0.0  # part of the text, at its end, that is held out to measure the loss on; 0: none
    patience: int = 0  # the run stops after so many epochs without a new minimum of the loss on that part; 0: never

    def check(self) -> None:
        """Raise a ValueError that names the first setting with an impossible value."""
        _check(self._asdict(), Settings._fields)
        if self.patience and not self.validation:
            raise ValueError(f"patience: got {self.patience}, needs a validation part: --validation 0.1 holds out a tenth")


class State(NamedTuple):
    """Where a run stands after an epoch, besides its parameters.

    ``written``: the sizes of its metrics and samples by file name. ``learning_rate_since``: the first epoch with the
    learning rate of the settings. ``best_epoch``, ``best_loss``: of the smallest loss on the validation part, None before
    the first. ``sha256``: of the text. ``rnn_ops``: the version that wrote this.
    """
    epoch: int
    moving_loss: Optional[float]
    sha256: str
    written: dict
    rnn_ops: str
    learning_rate_since: int = 1
    best_epoch: Optional[int] = None
    best_loss: Optional[float] = None


_LATER = ("validation", "patience", "learning_rate_since", "best_epoch", "best_loss")  # not in checkpoints of 0.1.0
_DEFAULTS = dict(Settings._field_defaults, **State._field_defaults)


def check_saved(saved: Dict[str, Any]) -> Dict[str, Any]:
    """Check the settings and the state of a checkpoint, by name in one dict; those that version 0.1.0 did not have are added.

    Raises
    ------
    ValueError
        A name is missing or unknown, a value has another type or is out of range, or two contradict one another.
    """
    needed = set(Settings._fields + State._fields)
    if set(saved) == needed - set(_LATER):
        saved = dict(saved, **{name: _DEFAULTS[name] for name in _LATER})
    if set(saved) != needed:
        raise ValueError(f"settings: got {reprlib.repr(sorted(saved))}, needs {', '.join(sorted(needed))}")
    _check(saved, Settings._fields + State._fields)
    Settings(**{name: saved[name] for name in Settings._fields}).check()
    epoch, best = saved["epoch"], saved["best_epoch"]
    for name, fits, needs in (
            ("epoch", epoch <= saved["epochs"], f"at most the epochs, {saved['epochs']}"),
            ("moving_loss", (saved["moving_loss"] is None) == (epoch == 0), "a number after the first epoch and none before"),
            ("learning_rate_since", saved["learning_rate_since"] <= epoch + 1, f"at most {epoch + 1}, the next epoch"),
            ("best_epoch", (best is not None) == bool(saved["validation"] and epoch) and (best or 0) <= epoch,
             "an epoch that is done if there is a validation part, else none"),
            ("best_loss", (saved["best_loss"] is None) == (best is None), "a number if there is a best epoch, else none")):
        if not fits:
            raise ValueError(f"{name}: got {saved[name]!r}, needs {needs}")
    return saved


def _check(values, names):
    for name in names:
        fits, needs = _RANGES[name]
        if not fits(values[name]):
            raise ValueError(f"{name}: got {reprlib.repr(values[name])}, needs {needs}")


def is_integer(value: Any, least: int = 0, most: int = 2 ** 63 - 1) -> bool:
    """Whether a value is an int (True is none) from ``least`` to ``most``."""
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite float or int from ``least`` to ``most``."""
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def is_loss(value: Any) -> bool:
    """Whether a value can be a loss of a run: a number whose perplexity is finite."""
    return is_number(value, 0, LARGEST_LOSS)


def _integer(least):
    return lambda value: is_integer(value, least), f"an integer of at least {least}, below 2^63"


def _matching(pattern, needs):
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, needs


def _or_none(check):
    fits, needs = check
    return lambda value: value is None or fits(value), f"{needs}, or none"


_LOSS = (is_loss, f"a number from 0 to {LARGEST_LOSS}")
_RANGES = {  # by name: whether a value is possible, and the words for possible values
    "text": _matching(r"[^\0]{1,4096}", "the name of a text or the path of a file"),
    "step": (lambda value: value in STEPS, f"one of {', '.join(STEPS)}"),
    "learning_rate": (lambda value: is_number(value, LEARNING_RATES.tiny, LEARNING_RATES.max),
                      f"a number from {LEARNING_RATES.tiny:.1e} to {LEARNING_RATES.max:.1e}"),
    "validation": (lambda value: is_number(value, 0) and value < 1, "a number from 0, below 1"),
    "moving_loss": _or_none(_LOSS), "best_loss": _or_none(_LOSS), "best_epoch": _or_none(_integer(1)),
    "sha256": _matching("[0-9a-f]{64}", "64 hexadecimal digits"),
    "rnn_ops": _matching(r"[\w.+-]{1,64}", "a version"),
    "written": (lambda value: type(value) is dict and set(value) == {METRICS, SAMPLES} and all(map(is_integer, value.values())),
                f"the sizes of {METRICS} and {SAMPLES}"),
    **{name: _integer(least) for name, least in (
        ("epochs", 1), ("hidden", 1), ("seed", 0), ("batch_size", 1), ("sequence_length", 1), ("patience", 0), ("epoch", 0),
        ("learning_rate_since", 1))},
}
