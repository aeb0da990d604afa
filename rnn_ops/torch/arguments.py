"""The checks of `rnn_ops.backends.arguments` for tensors."""
import numpy as np
import torch

from rnn_ops.backends import arguments

_DTYPES = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64"), torch.int32: arguments.TOKENS}


def check(given, activation, signature=arguments.signature):
    """Check (inputs, state, Wxh, Whh[, bh]) as `arguments.check` → `arguments.Signature`.

    TypeError, ValueError: as `rnn_ops.torch.rnn_sequence`.
    """
    arguments.check_activation(activation)
    try:
        dtypes = tuple([_DTYPES[tensor.dtype] for tensor in given])
    except KeyError:
        raise _wrong_dtype(given) from None
    return signature(tuple([tensor.shape for tensor in given]), dtypes)


def check_symbolic(given, activation):
    """`check` where sizes may be symbols, which cannot be looked up in a cache."""
    return check(given, activation, arguments.signature.__wrapped__)


def check_device(given):
    """Raise a ValueError if not all of (inputs, state, Wxh, Whh, bh) are on one device. (On CPUs the dispatcher knows.)"""
    device = given[0].device
    for name, tensor in zip(arguments.NAMES, given):
        if tensor.device != device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, needs one on {device}, the device of inputs")


def check_backward(signature, outputs, doutputs, dlast_state, device, wanted):
    """Check what a backward pass has besides the arguments."""
    T, B, _, H, dtype, tokens = signature
    if len(wanted) != 5:
        raise ValueError(f"wanted: got {len(wanted)} flags, needs 5, for dinputs, dstate, dWxh, dWhh and dbh")
    if tokens and wanted[0]:
        raise ValueError("wanted: got True for dinputs, needs False: tokens have no gradient")
    for name, tensor, shape in (("outputs", outputs, (T, B, H)), ("doutputs", doutputs, (T, B, H)),
                                ("dlast_state", dlast_state, (B, H))):
        if tensor is not None and (tensor.shape != shape or _DTYPES.get(tensor.dtype) != dtype or tensor.device != device):
            raise ValueError(f"{name}: got {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} on {tensor.device}, "
                             f"needs {dtype} of shape {shape} on {device}")


def _wrong_dtype(given):
    name, tensor = next((name, tensor) for name, tensor in zip(arguments.NAMES, given) if tensor.dtype not in _DTYPES)
    tokens = ", or int32 or int64 for tokens" if name == "inputs" else ""
    return TypeError(f"{name}: got dtype {dtype_name(tensor.dtype)}, needs float32 or float64{tokens}")


def dtype_name(dtype):
    """float32 for torch.float32."""
    return str(dtype)[len("torch."):]
