"""Prepares the import of MXNet, whoever imports it, once rnn_ops has been imported.

- Before: settings that would end the process are an ImportError (bug 2 in _mxnet_bugs.py), the CUDA libraries that the GPU wheel
  needs are loaded, and ``numpy.bool`` is lent (bug 1).
- After: ``numpy.bool`` is taken away again, and _mxnet.py registers the operators, so that graphs which hold them can be read
  from files.

To import rnn_ops imports neither MXNet nor NumPy, so those who want the kernels alone do not wait for them.
"""
import contextlib
import importlib
import importlib.abc
import os
import re
import sys


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MXNet where the other finders do, and puts a `_Loader` before its own loader."""

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
    """MXNet's own loader, with our preparations before and after it."""

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
        with contextlib.suppress(Exception):  # MXNet was asked for, and is there; to ask for the operators raises this again
            importlib.import_module("rnn_ops._mxnet")


_FINDER = _Finder()


_MOST_THREADS = 1024  # of MXNet's engine; with 0 threads it waits for ever, with 100,000 it aborts
_ENGINES = "NaiveEngine", "ThreadedEngine", "ThreadedEnginePerDevice"


def why_not():
    """A sentence about the first setting that would make MXNet end the process (bug 2 in _mxnet_bugs.py), or None."""
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
    """Prepare every import of MXNet from now on. If MXNet has been imported already, register the operators at once."""
    if sys.modules.get("mxnet"):  # None there means that MXNet must not be imported
        importlib.import_module("rnn_ops._mxnet")
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
