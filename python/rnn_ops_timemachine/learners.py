"""Learners compute the training steps of a run: one for each ``--step``.

MXNet, CuPy or PyTorch is imported for the step that is taken and not before, so that each step works where the libraries of the
others are not installed.
"""
import importlib
import importlib.util
from typing import Dict, Iterator, Optional, Protocol

import numpy as np

from rnn_ops.backends import cuda


class Learner(Protocol):
    """A model that learns. Tokens are integers (batches, T, B), such as `data.batch_views` gives."""

    def train_epoch(self, inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> Iterator[float]:
        """Train on every batch once, in order → the batches' losses in nats, one after the other.

        The hidden state is zero before the first batch and carried from each batch to the next; no gradient flows from one
        batch into another. A FloatingPointError says that training has diverged: a loss has no finite perplexity.
        """

    def loss(self, inputs: np.ndarray, labels: np.ndarray) -> float:
        """The mean loss of the batches, the state carried as in training, with nothing learnt."""

    def arrays(self) -> Dict[str, np.ndarray]:
        """The parameters by the names of `parameters.NAMES`; a FloatingPointError if one is not finite."""


def default() -> str:
    """The step that a run takes if none is given: the operator that `rnn_ops.rnn_sequence` is, or, where MXNet is not
    installed, "cuda" if a GPU is there for it, else "torch" if PyTorch is."""
    try:
        return _import("rnn_ops.operators").in_use()
    except ImportError:
        if cuda.why_not() is None:
            return "cuda"
        if _has_torch():
            return "torch"
        raise


def why_not(step: str) -> Optional[str]:
    """Why a step cannot be computed here, as a sentence, or None.

    Raises
    ------
    ImportError
        MXNet or PyTorch cannot be imported.
    ValueError
        An environment variable that the kernels read is wrong.
    """
    if step == "cuda":
        reason = cuda.why_not()
        return reason and f"nothing can be computed on a GPU here: {reason}"
    if step == "torch" and not _has_torch():
        return "PyTorch is not installed: install rnn_ops[torch]"
    reason = _import("rnn_ops.operators").native.why_not() if step == "native" else None
    _import(_MODULES[step])
    cpu = _import("rnn_ops.backends.cpu")
    cpu.threads(), cpu.simd()
    return reason and f"there is no native operator: {reason}"


def make(step: str, arrays: Dict[str, np.ndarray], exchange=None) -> Learner:
    """The learner for a step that `why_not` has nothing against, with these first parameters.

    ``exchange``: one that works for the step, or None.
    """
    module = _import(_MODULES[step])
    if step == "cuda":
        return module.Learner(arrays)
    if step in ("gluon", "torch"):
        return module.Learner(arrays, exchange)
    recurrence = _import("rnn_ops.reference" if step == "reference" else f"rnn_ops.operators.{step}")
    return module.Learner(arrays, recurrence.rnn_sequence, exchange)


def versions(step: str) -> Dict[str, str]:
    """The version of the library that a step is computed with, by its name."""
    name = {"cuda": "cupy", "torch": "torch"}.get(step, "mxnet")
    return {name: importlib.import_module(name).__version__}


_MODULES = {"native": "rnn_ops_timemachine.training", "custom": "rnn_ops_timemachine.training",
            "reference": "rnn_ops_timemachine.training", "gluon": "rnn_ops_timemachine.network",
            "cuda": "rnn_ops_timemachine.cuda_training", "torch": "rnn_ops_timemachine.torch_training"}


def refuse_to_split(step: str) -> None:
    """Raise a ValueError where a step does not split batches."""
    where = {"cuda": "one GPU and does not split batches (--ctx, --kvstore, --workers)",
             "torch": "one device, such as --ctx 'gpu(0)', and does not split batches (--kvstore, --workers)"}.get(step)
    if where:
        raise ValueError(f"step: got {step!r}, which trains on {where}")


def _has_torch():
    return importlib.util.find_spec("torch") is not None


def _import(name):
    """A module. Its import may fail with any exception for a user's setting (PYTHONWARNINGS=error raises warnings): that
    becomes an ImportError too."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"an import failed: {type(error).__name__}: {error}") from error
