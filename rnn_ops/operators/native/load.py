"""Loads the library of the native operator into MXNet, on import. `failure` says why that did not work."""
import ctypes
from typing import Any, Callable, NamedTuple, Optional

from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.operators.native import front, gpu
from rnn_ops.operators.ndarray import Array

NAME = "rnn_ops_native"
_LIBRARY = cpu.library_path()


class Operator(NamedTuple):
    """The operator without guards: `unguarded` calls it."""
    on_ndarrays: Callable
    on_symbols: Callable
    front: front.Front      # the fast way for NDArrays of the CPU
    programs: gpu.Programs  # which the library calls for arrays on a GPU, so they have to stay


def why_not() -> Optional[str]:
    """Why there is no native operator here, as a sentence. None where there is one."""
    return failure


def unguarded(*values: Array, **attributes: str) -> Any:
    """The operator as MXNet knows it, of NDArrays or of Symbols. Its gradients overwrite where MXNet wants a sum (bug 4 in
    _mxnet_bugs.py); nothing is checked before MXNet sees it (bug 5)."""
    return (operator.on_ndarrays if isinstance(values[0], mx.nd.NDArray) else operator.on_symbols)(*values, **attributes)


def _load():
    try:
        # This is mx.library.load without its last part, which makes every function of mx.nd and mx.sym anew and takes 0.4 s.
        mx.base.check_call(mx.base._LIB.MXLoadLib(_LIBRARY.encode(), 0))
    except mx.MXNetError as error:
        raise RuntimeError(f"MXNet {mx.__version__} does not load it, which is made for 1.9.1: {error}") from error
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(NAME.encode(), ctypes.byref(handle)))
    library = ctypes.CDLL(_LIBRARY)
    return Operator(mx.nd.register._make_ndarray_function(handle, NAME, NAME),
                    mx.sym.register._make_symbol_function(handle, NAME, NAME),
                    front.Front(library, handle), gpu.Programs(library))


try:
    operator, failure = _load(), None
except (RuntimeError, AttributeError) as error:  # AttributeError: an MXNet without one of these functions
    operator, failure = None, str(error)
