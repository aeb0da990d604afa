"""The one place that imports MXNet.

MXNet 1.9.1 looks for ``numpy.bool`` while it is imported. NumPy dropped that alias in 1.24, so it is lent for the
import and taken away again: NumPy is left as it was found. The GPU wheel of MXNet needs CUDA libraries, which are loaded
before it. Everything else in this package says ``from rnn_ops._mxnet import mx``.
"""
import importlib.util

import numpy

from rnn_ops.backends.cuda import libraries

_INSTALL = (
    "This needs MXNet 1.9.1: install rnn_ops[cpu] (mxnet) on a machine without a GPU or rnn_ops[cu112] "
    "(mxnet-cu112) on one with an NVIDIA GPU, never both, because the two packages install the same module 'mxnet' "
    "over each other.")


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
    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ImportError(f"MXNet 1.9.1 cannot be imported with NumPy {numpy.__version__}: install 'numpy<2'.")
    libraries.load_for("mxnet-cu112")
    lend = "bool" not in vars(numpy)
    if lend:
        numpy.bool = numpy.bool_
    try:
        import mxnet
    except (ImportError, OSError, AttributeError) as error:
        driver = (" That is the NVIDIA driver, which mxnet-cu112 needs: on a machine without one uninstall it and install "
                  "rnn_ops[cpu].") if "libcuda.so" in str(error) else ""
        raise ImportError(f"MXNet is installed but cannot be imported: {error}.{driver}") from error
    finally:
        if lend:
            del numpy.bool
    return mxnet


mx = import_mxnet()
