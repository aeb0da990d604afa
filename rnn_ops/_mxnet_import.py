"""What is done around the import of MXNet, whoever imports it, once rnn_ops has been imported.

MXNet 1.9.1 looks for ``numpy.bool`` while it is imported. NumPy dropped that alias in 1.24, so it is lent for the
import and taken away again: NumPy is left as it was found. The GPU wheel of MXNet needs CUDA libraries, which are loaded
before it. After it _mxnet.py registers the operators, so that graphs which hold them can be read from files.

Importing rnn_ops imports neither MXNet nor NumPy: whoever takes the kernels alone does not wait for them.
"""
import contextlib
import importlib
import importlib.abc
import os
import re
import sys


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MXNet where the others find it, with a `_Loader` before its own."""

    def find_spec(self, name, path=None, target=None):
        if name != "mxnet":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        reason = why_not()
        if reason:
            raise ImportError(reason)
        import numpy
        from rnn_ops.backends.cuda import libraries
        module.__spec__.loader = module.__loader__ = self._loader
        libraries.load_for("mxnet-cu112")
        lend = "bool" not in vars(numpy)
        if lend:
            numpy.bool = numpy.bool_
        try:
            self._loader.exec_module(module)
        finally:
            if lend:
                del numpy.bool
        sys.meta_path.remove(_FINDER)
        with contextlib.suppress(Exception):  # it is MXNet that is wanted; who wants the operators is told
            importlib.import_module("rnn_ops._mxnet")


_FINDER = _Finder()


_MOST_THREADS = 1024  # of MXNet's engine; it waits for ever with none, and aborts with 100,000
_ENGINES = "NaiveEngine", "ThreadedEngine", "ThreadedEnginePerDevice"


def why_not():
    """The setting that MXNet would end the process for, once it is imported, as a sentence, or None."""
    for name, fits, needs in [
            ("OMP_NUM_THREADS", lambda value: not value or _is_integer(value), "one whole number"),
            ("MXNET_CPU_WORKER_NTHREADS",
             lambda value: not value or _is_integer(value) and 1 <= int(value) <= _MOST_THREADS,
             f"a number from 1 to {_MOST_THREADS}"),
            ("MXNET_ENGINE_TYPE", lambda value: value in _ENGINES, f"one of {', '.join(_ENGINES)}")]:
        value = os.environ.get(name)
        if value is not None and not fits(value):
            return f"{name}: got {value!r}, needs {needs}, or MXNet 1.9.1 ends the process"
    return None


def _is_integer(value):
    return re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) is not None and abs(int(value)) < 2 ** 31


def install():
    """From now on; where MXNet has been imported already, the operators are registered at once."""
    if sys.modules.get("mxnet"):  # None: whoever put it there wants no MXNet
        importlib.import_module("rnn_ops._mxnet")
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
