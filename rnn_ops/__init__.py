"""rnn_ops: the recurrent step h_t = tanh(x_t·Wxh + h_{t-1}·Whh + bh) as fused kernels and MXNet custom operators.

- ``rnn_step`` and ``rnn_sequence`` are the operators; ``use`` chooses the device that computes for arrays on the CPU.
- ``gluon`` has them as Gluon layers, ``reference`` is the same function in plain ndarray operations, with the same names and
  signatures, and ``gradcheck`` compares the two. ``operators`` is the layer below.
- ``backends`` needs no MXNet: ``backends.cpu`` computes on NumPy arrays, ``backends.cuda`` on CuPy arrays.
"""
import importlib

from rnn_ops import _mxnet_import

__version__ = "0.2.0"

_FUNCTIONS = ["rnn_step", "rnn_sequence", "use"]
_MODULES = ["gluon", "reference", "gradcheck", "operators", "backends"]
__all__ = _FUNCTIONS + _MODULES


def __getattr__(name):
    if name in _FUNCTIONS:  # an ImportError says why there are no operators here
        return getattr(importlib.import_module("rnn_ops.operators"), name)
    if name in _MODULES:
        return importlib.import_module(f"rnn_ops.{name}")
    raise AttributeError(f"module 'rnn_ops' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


_mxnet_import.install()
