"""Calls of the native operator. The functions for users are in rnn_ops/operators/api.py; these are one layer below."""
from typing import Optional, Tuple, Union

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators import ndarray
from rnn_ops.operators.native import guard, load
from rnn_ops.operators.ndarray import Array


def rnn_step(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array, activation: str = "tanh") -> Array:
    """`rnn_ops.rnn_step` on the native operator. Faults in shapes, dtypes and tokens are MXNetErrors, at once or at the
    next wait for a result; a RuntimeError says why there is no native operator."""
    return _checked_call(True, (inputs, state, Wxh, Whh, bh), activation)


def rnn_sequence(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array,
                 activation: str = "tanh") -> Tuple[Array, Array]:
    """`rnn_ops.rnn_sequence` on the native operator; errors as those of `rnn_step`."""
    outputs, state = _checked_call(False, (inputs, state, Wxh, Whh, bh), activation)
    return outputs, state


def quick_call(step: bool, values: Tuple[Array, ...], activation: str,
               check_tokens: bool = False) -> Optional[Union[Array, Tuple[Array, Array]]]:
    """What `call` gives for NDArrays of the CPU that fit one another, in a fraction of the time; None for anything else. With
    check_tokens, a token outside [0, I) does not fit either."""
    return load.operator.front.call(step, values, activation, check_tokens)


def call(step: bool, values: Tuple[Array, ...], activation: str) -> Union[Array, Tuple[Array, Array]]:
    """A step or a sequence of five NDArrays or five Symbols, and a known activation. NDArrays have dimensions."""
    step = "01"[step]
    if isinstance(values[0], mx.sym.Symbol):
        return load.operator.on_symbols(
            *guard.guarded_symbols(values, step), step=step, activation=activation,
            wanted="".join("01"[value.attr(guard.CONSTANT) is None] for value in values), __ext_extra_inputs__="1")
    if not mx.autograd.is_recording():
        return load.operator.on_ndarrays(*values, step=step, activation=activation)
    wanted = [guard.has_history(value) for value in values]
    values = [guard.guarded_ndarray(value) if known else value for value, known in zip(values, wanted)]
    return load.operator.on_ndarrays(*values, step=step, activation=activation,
                                     wanted="".join("01"[known] for known in wanted))


def looks_at_tokens(context: mx.Context) -> bool:
    """Whether a call checks that tokens are in [0, I). On a GPU it does not wait for them, and a wrong one makes NaN."""
    return context.device_type != "gpu"


def _checked_call(step, values, activation):
    arguments.check_activation(activation)
    if load.failure:
        raise RuntimeError(f"there is no native operator: {load.failure}")
    results = quick_call(step, values, activation)
    if results is not None:
        return results
    if ndarray.are_ndarrays(values):
        _check_dimensions(values, step)
    return call(step, values, activation)


def _check_dimensions(arrays, step):
    """Raise an MXNetError where an array has no dimensions: no such array may come to the operator (bug 5 in _mxnet_bugs.py).
    The operator itself finds every other fault."""
    shapes = [array.shape or () for array in arrays]  # an array that never had memory has the shape None
    if not all(shapes):
        try:
            arguments.sizes(shapes, step)
        except ValueError as error:
            raise mx.MXNetError(str(error)) from None
