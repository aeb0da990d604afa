"""The checks of `rnn_ops.backends.arguments` for tensors."""
import numpy as np
import torch

from rnn_ops.backends import arguments

_DTYPES = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64"), torch.int32: arguments.TOKENS}


def check(inputs, state, Wxh, Whh, bh, activation, signature=arguments.signature):
    """→ `arguments.Signature`. TypeError, ValueError: as `rnn_ops.torch.rnn_sequence`."""
    arguments.check_activation(activation)
    shapes, dtypes, device = [], [], inputs.device
    for name, tensor in zip(arguments.NAMES, (inputs, state, Wxh, Whh, bh)):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: got dtype {str(tensor.dtype)[len('torch.'):]}, needs float32 or float64"
                            + (", or int32 or int64 for tokens" if name == "inputs" else ""))
        if tensor.device != device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, needs one on {device}, the device of inputs")
        shapes.append(tensor.shape)
        dtypes.append(_DTYPES[tensor.dtype])
    return signature(tuple(shapes), tuple(dtypes))


def check_symbolic(*given):
    """`check` where sizes may be symbols, which cannot be looked up in a cache."""
    return check(*given, signature=arguments.signature.__wrapped__)
