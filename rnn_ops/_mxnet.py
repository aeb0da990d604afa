"""MXNet for the rest of this package: ``from rnn_ops._mxnet import mx``. An ImportError says why it cannot be imported.

_mxnet_import.py prepares its import. To import this module registers the operators too. _mxnet_bugs.py lists the bugs that we
work around.
"""
import contextlib
import importlib
import importlib.metadata
import importlib.util
import warnings

import numpy

_INSTALL = (
    "This needs MXNet 1.9.1: install rnn_ops[cpu] (mxnet) on a machine without a GPU or rnn_ops[cu112] "
    "(mxnet-cu112) on one with an NVIDIA GPU, never both, because the two packages install the same module 'mxnet' "
    "over each other. On PyTorch tensors rnn_ops.torch works without MXNet.")


def installed_wheels():
    """The names of the installed distributions that bring the module mxnet. Two are a fault (bug 3 in _mxnet_bugs.py)."""
    def installed(name):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.distribution(name)

    return [name for name in ("mxnet", "mxnet-cu102", "mxnet-cu110", "mxnet-cu112", "mxnet-cu117") if installed(name)]


def import_mxnet():
    """Import MXNet and return the module.

    Raises
    ------
    ImportError
        In one sentence: MXNet is not installed (which extra to install), NumPy is 2.0 or newer (which NumPy to
        install), or MXNet's own import failed (why).
    """
    if importlib.util.find_spec("mxnet") is None:
        raise ImportError(_INSTALL)
    wheels = installed_wheels()
    if len(wheels) > 1:
        warnings.warn(f"{' and '.join(wheels)} are both installed and have written the same module 'mxnet' over each other: "
                      f"'pip uninstall {' '.join(wheels)}', then install one of them", stacklevel=2)
    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ImportError(f"MXNet 1.9.1 cannot be imported with NumPy {numpy.__version__}: install 'numpy<2'.")
    try:
        import mxnet
    except Exception as error:  # of any kind: from a library that is missing to a warning under PYTHONWARNINGS=error
        driver = (" That is the NVIDIA driver, which mxnet-cu112 needs: on a machine without one uninstall it and install "
                  "rnn_ops[cpu].") if "libcuda.so" in str(error) else ""
        raise ImportError(f"MXNet is installed but cannot be imported: {error}.{driver}") from error
    return mxnet


mx = import_mxnet()
with contextlib.suppress(ImportError):  # without compiled kernels; to ask for the operators raises it again
    importlib.import_module("rnn_ops.operators")
