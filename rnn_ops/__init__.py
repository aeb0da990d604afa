"""rnn_ops: the recurrent step h_t = tanh(x_t·Wxh + h_{t-1}·Whh + bh) as fused kernels and MXNet custom operators.

- ``rnn_step`` and ``rnn_sequence`` are the operators; ``use`` chooses the device that computes for arrays on the CPU.
- ``gluon`` has them as Gluon layers, ``reference`` is the same function in plain ndarray operations, with the same names and
  signatures. ``operators`` is the layer below.
- ``backends`` needs no MXNet: ``backends.cpu`` computes on NumPy arrays, ``backends.cuda`` on CuPy arrays.
- ``numpy_reference`` needs no MXNet either: it is the same function in plain NumPy.
- ``torch`` has the function and the layers for PyTorch. It needs PyTorch and no MXNet.
- ``gradcheck`` compares the operators, of MXNet or of PyTorch, with a reference.

Modules are imported when they are first asked for.
"""
import importlib
import importlib.util
from typing import TYPE_CHECKING

from rnn_ops import _mxnet_import

__version__ = "0.2.0"

if TYPE_CHECKING:  # an editor and a type checker see the names with their types, and no `__getattr__` that has every name
    from rnn_ops import backends, gluon, gradcheck, numpy_reference, operators, reference
    from rnn_ops import torch as torch
    from rnn_ops.operators import rnn_sequence, rnn_step, use
    __all__ = ["rnn_step", "rnn_sequence", "use", "gluon", "reference", "operators", "gradcheck", "numpy_reference", "backends"]
else:
    _FUNCTIONS = ["rnn_step", "rnn_sequence", "use"]
    _MXNET_MODULES = ["gluon", "reference", "operators"]
    _MODULES = ["gradcheck", "numpy_reference", "backends"]

    def __getattr__(name):
        if name in _FUNCTIONS:  # an ImportError says why there are no operators here
            return getattr(importlib.import_module("rnn_ops.operators"), name)
        if name in _MXNET_MODULES + _MODULES + ["torch"]:  # not in __all__: `import *` must not hide PyTorch's own name
            return importlib.import_module(f"rnn_ops.{name}")
        if name == "__all__":  # where MXNet is not installed, `import *` and pydoc get the modules that work without
            return (_FUNCTIONS + _MXNET_MODULES if importlib.util.find_spec("mxnet") else []) + _MODULES
        raise AttributeError(f"module 'rnn_ops' has no attribute {name!r}")

    def __dir__():
        return sorted({name for name in globals() if name.startswith("__")}.union(__getattr__("__all__"), ["__all__"]))


_mxnet_import.install()
