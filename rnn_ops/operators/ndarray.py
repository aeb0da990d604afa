"""NDArrays: whether values are some, where their memory is, and on the CPU as NumPy arrays, without a copy."""
import ctypes
import types
from typing import TypeVar

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES

Array = TypeVar("Array", mx.nd.NDArray, mx.sym.Symbol)

# NumPy wants a buffer with a size. One that is larger than any array serves all of them and costs a third of what the
# other ways do. `view` is called some ten times in each call of an operator.
_Buffer = ctypes.c_char * 2 ** 46


def are_ndarrays(values) -> bool:
    """True for five NDArrays, False for five Symbols. For others a TypeError says which value is wrong and what to write."""
    kind = type(values[0])
    if kind in (mx.nd.NDArray, mx.sym.Symbol) and all(type(value) is kind for value in values):
        return kind is mx.nd.NDArray
    for name, value in zip(NAMES, values):
        if isinstance(value, mx.nd.sparse.BaseSparseNDArray):
            raise TypeError(f"{name}: got an NDArray of storage {value.stype}, needs a dense one: tostype('default')")
        if isinstance(value, (mx.np.ndarray, mx.sym.numpy._Symbol)):
            raise TypeError(f"{name}: got one of the mx.np arrays, needs one of the mx.nd or mx.sym kind: as_nd_ndarray()")
        if type(value) not in (mx.nd.NDArray, mx.sym.Symbol):
            raise TypeError(no_array(name, value))
    name, value = next((n, v) for n, v in zip(NAMES, values) if type(v) is not kind)
    raise TypeError(f"{name}: got {type(value).__name__}, needs {kind.__name__} as inputs is one")


def no_array(name: str, value) -> str:
    """The sentence for a value that is neither an NDArray nor a Symbol: what it is, and what to write instead."""
    kind = type(value)
    where = f"{kind.__module__}.{kind.__name__}".replace("builtins.", "")
    remedy = ""
    if isinstance(value, (list, tuple)) and value and all(hasattr(item, "asnumpy") for item in value):
        remedy = f": {name}[0]" if len(value) == 1 else f": mx.nd.stack(*{name})"
    elif where == "mxnet.gluon.parameter.Parameter":
        remedy = f": {name}.data()"
    elif where.startswith("torch."):
        remedy = f": mx.nd.array({name}.numpy())"
    elif isinstance(value, types.GeneratorType):
        remedy = f": list({name})"
    elif isinstance(value, (np.ndarray, np.generic, list, tuple)):
        remedy = f": mx.nd.array({name})"
    return f"{name}: got {where}, needs an NDArray or a Symbol{remedy}"


def address(array):
    """Where the memory of a dense NDArray begins, on the CPU or on a GPU. Waits for nothing."""
    pointer = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value


def view(array):
    """A NumPy array over the memory of a dense NDArray on the CPU.

    Nothing is copied, waited for or kept alive: the NDArray must be ready to be read or written, as all are inside a
    callback of a custom operator, and must outlive the view.
    """
    return np.ndarray(array.shape, array.dtype, _Buffer.from_address(address(array)))
