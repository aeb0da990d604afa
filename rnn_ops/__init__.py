"""rnn_ops: the recurrent step h_t = tanh(x_t·Wxh + h_{t-1}·Whh + bh) as fused kernels and MXNet custom operators.

``rnn_ops.rnn_step`` and ``rnn_ops.rnn_sequence`` are the operators, ``rnn_ops.use`` chooses what computes for arrays on
the CPU; ``rnn_ops.gluon`` has them as Gluon layers; ``rnn_ops.reference`` is the same function in plain ndarray
operations, with the same names and signatures; ``rnn_ops.gradcheck`` holds one against the other. ``rnn_ops.backends``
is the layer below, ``cpu`` on NumPy arrays, ``cuda`` on CuPy arrays, and works where MXNet is not installed.
"""
import importlib

from rnn_ops import _mxnet_import

__version__ = "0.1.0"
__all__ = ["rnn_step", "rnn_sequence", "use", "gluon", "reference", "gradcheck", "backends"]


def __getattr__(name):
    if name in ("rnn_step", "rnn_sequence", "use"):  # an ImportError says why the operators cannot be had here
        return getattr(importlib.import_module("rnn_ops.operators"), name)
    if name in ("gluon", "reference", "gradcheck", "backends"):
        return importlib.import_module(f"rnn_ops.{name}")
    raise AttributeError(f"module 'rnn_ops' has no attribute {name!r}")


_mxnet_import.install()
