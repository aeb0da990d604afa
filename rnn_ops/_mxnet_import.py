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


# The environment variables, after MXNET_, that MXNet 1.9.1 ends the process or fails for where their values are no such ones.
_INTEGERS = """
    CPU_PARALLEL_RAND_COPY CPU_PARALLEL_SIZE CPU_PRIORITY_NTHREADS CPU_TEMP_COPY CPU_WORKER_NTHREADS
    DISABLE_MKLDNN_CONV_OPT DISABLE_MKLDNN_FC_OPT DISABLE_MKLDNN_FUSE_CONV_BN DISABLE_MKLDNN_FUSE_CONV_RELU
    DISABLE_MKLDNN_FUSE_CONV_SUM DISABLE_MKLDNN_TRANSFORMER_OPT EXEC_BULK_EXEC_MAX_NODE_TRAIN
    EXEC_BULK_EXEC_MAX_NODE_TRAIN_BWD EXEC_BULK_EXEC_MAX_NODE_TRAIN_FWD EXEC_INPLACE_GRAD_SUM_CAP GPU_COPY_NTHREADS
    GPU_PARALLEL_RAND_COPY GPU_TEMP_COPY GPU_WORKER_NTHREADS MKLDNN_CACHE_NUM MP_OPENCV_NUM_THREADS MP_WORKER_NTHREADS
    OMP_MAX_THREADS PROFILER_AUTOSTART PROFILER_MODE
""".split()
_BOOLEANS = """
    DISABLE_MKLDNN_FUSE_FC_ELTWISE DISABLE_MKLDNN_QEM_FLOAT_OUTPUT DISABLE_MKLDNN_QEM_FUSE_ALL
    DISABLE_MKLDNN_QFC_FLOAT_OUTPUT DISABLE_MKLDNN_QFC_FUSE_ALL DISABLE_MKLDNN_QTRANSFORMER_FLOAT_OUTPUT
    DISABLE_MKLDNN_QTRANSFORMER_FUSE_ALL ELIMINATE_COMMON_EXPR ENGINE_INFO EXEC_BULK_EXEC_INFERENCE EXEC_BULK_EXEC_TRAIN
    INFER_STORAGE_TYPE_VERBOSE_LOGGING KVSTORE_LOGTREE MEM_PLAN_VERBOSE_LOGGING MKLDNN_ENABLED OUTPUT_TUNING_DATA
    VERBOSE_TUNING_INFO
""".split()
_THREADS = "CPU_WORKER_NTHREADS", "CPU_PRIORITY_NTHREADS"  # of these it waits for ever where there are none
_MOST_THREADS = 1024
_ENGINE = "MXNET_ENGINE_TYPE"
_ENGINES = "NaiveEngine", "ThreadedEngine", "ThreadedEnginePerDevice"


def why_not():
    """The setting that MXNet would end the process for, or fail for, once it is imported, as a sentence, or None."""
    for name, fits, needs in _settings():
        value = os.environ.get(name)
        if value is None or not value and name != _ENGINE:  # which alone must not be empty
            continue
        if not fits(value):
            return f"{name}: got {value!r}, needs {needs}, or MXNet 1.9.1 ends the process"
    return None


def _settings():
    """(name, whether a value fits, what it needs to be) of the variables that why_not() looks at."""
    for name in ["OMP_NUM_THREADS", *(f"MXNET_{name}" for name in _INTEGERS)]:
        yield name, _is_integer, "one whole number"
    for name in _THREADS:
        yield f"MXNET_{name}", lambda value: 1 <= int(value) <= _MOST_THREADS, f"a number from 1 to {_MOST_THREADS}"
    for name in _BOOLEANS:
        yield f"MXNET_{name}", lambda value: value.lower() in ("0", "1", "false", "true"), "0, 1, false or true"
    yield "MXNET_USE_NUM_CORES_OPERATOR_TUNING", lambda value: _is_integer(value) and int(value) >= 0, "a number from 0"
    yield "MXNET_TUNING_WEIGHT_SCALE", lambda value: re.fullmatch(r"[0-9]+(\.[0-9]*)?", value), "a number such as 0.25"
    yield _ENGINE, lambda value: value in _ENGINES, f"one of {', '.join(_ENGINES)}"


def _is_integer(value):
    return re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) is not None and abs(int(value)) < 2 ** 31


def install():
    """From now on; where MXNet has been imported already, the operators are registered at once."""
    if sys.modules.get("mxnet"):  # None: whoever put it there wants no MXNet
        importlib.import_module("rnn_ops._mxnet")
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
