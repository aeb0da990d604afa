"""The functions that users call, in front of the two operators: the native one, and the CustomOp if there is no native one.

NDArrays are checked before MXNet sees them, because an exception in the caller's thread says more than an MXNetError at some
later wait. Arguments that the native operator's quick way has found to be right are not checked again here. There is nothing
to check of Symbols yet: the operators raise their errors when a graph is bound or run.
"""
import os
from typing import Sequence, Tuple, Union

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators import custom, devices, lookup, native, ndarray
from rnn_ops.operators.ndarray import Array

__all__ = ["rnn_step", "rnn_sequence", "in_use", "looks_at_tokens"]

_OPERATORS = {"native": native, "custom": custom}


def rnn_step(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array, activation: str = "tanh") -> Array:
    """One recurrent step, h = tanh(x·Wxh + h_prev·Whh + bh), as one MXNet operator.

    The step of "Recurrent Neural Networks for Language Modeling" in *Deep Learning - The Straight Dope*, chapter 5. For
    more than one step, `rnn_sequence` is many times faster: the call of an operator costs more than a step.

    Parameters
    ----------
    inputs : NDArray or Symbol, floats (B, I) or int32 tokens (B,)
        A token stands for its one-hot row and picks a row of Wxh.
    state : NDArray or Symbol (B, H)
        h_prev, the hidden state before the step.
    Wxh, Whh, bh : NDArray or Symbol (I, H), (H, H), (H,)
    activation : "tanh" or "relu"
        The function of the sum; the tutorial's is tanh.

    Returns
    -------
    NDArray or Symbol (B, H)
        The hidden state after the step.

    Raises
    ------
    TypeError
        An argument that is not a dense NDArray (or not a Symbol, if others are), or has another dtype: floats must
        be all float32 or all float64, and tokens int32.
    ValueError
        Shapes that do not fit one another, an empty array, a token outside [0, I), arrays on several contexts or on
        one that has no kernels, an unknown activation.
    MXNetError
        The same faults in a graph of Symbols, when it is bound or at the first wait for a result.

    Notes
    -----
    Differentiable once in every float argument. To differentiate a gradient again raises an MXNetError that names
    ``_backward_rnn_ops_native``, ``_backward_reshape`` or ``_backward_Custom``, the first operator on the way back.

    On a GPU the native operator does not wait to look at tokens. A token outside [0, I) is no error there: it makes the states of
    its row NaN.

    Examples
    --------
    >>> import rnn_ops
    >>> import mxnet as mx
    >>> tokens = mx.nd.array([3, 1], dtype="int32")
    >>> Wxh, Whh, bh = mx.nd.ones((4, 5)), mx.nd.zeros((5, 5)), mx.nd.zeros(5)
    >>> rnn_ops.rnn_step(tokens, mx.nd.zeros((2, 5)), Wxh, Whh, bh).shape
    (2, 5)
    """
    return _call(True, (inputs, state, Wxh, Whh, bh), activation)


def rnn_sequence(inputs: Union[Array, Sequence[Array]], state: Array, Wxh: Array, Whh: Array, bh: Array,
                 activation: str = "tanh") -> Tuple[Array, Array]:
    """The recurrence h_t = tanh(x_t·Wxh + h_{t-1}·Whh + bh) over T steps as one MXNet operator.

    The loop of "Recurrent Neural Networks for Language Modeling" in *Deep Learning - The Straight Dope*, chapter 5,
    without the output layer. Both results may be used, and gradients flow from both.

    Parameters
    ----------
    inputs : NDArray or Symbol, floats (T, B, I) or int32 tokens (T, B), or a list of T arrays, one a step
        A token stands for its one-hot row and picks a row of Wxh.
    state : NDArray or Symbol (B, H)
        h_0, the hidden state before the first step.
    Wxh, Whh, bh : NDArray or Symbol (I, H), (H, H), (H,)
    activation : "tanh" or "relu"
        The function of the sum; the tutorial's is tanh.

    Returns
    -------
    outputs : NDArray or Symbol (T, B, H)
        The hidden state after every step.
    state : NDArray or Symbol (B, H)
        The one after the last step.

    Raises
    ------
    TypeError, ValueError, MXNetError
        As `rnn_step` does; its notes hold too.

    Examples
    --------
    >>> import rnn_ops
    >>> import mxnet as mx
    >>> inputs, state = mx.nd.ones((7, 2, 4)), mx.nd.zeros((2, 5))
    >>> Wxh, Whh, bh = mx.nd.ones((4, 5)), mx.nd.zeros((5, 5)), mx.nd.zeros(5)
    >>> Wxh.attach_grad()
    >>> with mx.autograd.record():
    ...     outputs, state = rnn_ops.rnn_sequence(inputs, state, Wxh, Whh, bh)
    ...     loss = outputs.sum() + state.sum()
    >>> loss.backward()
    >>> outputs.shape, state.shape, Wxh.grad.shape
    ((7, 2, 5), (2, 5), (4, 5))
    """
    if isinstance(inputs, (list, tuple)):
        inputs = _stacked(inputs)
    outputs, state = _call(False, (inputs, state, Wxh, Whh, bh), activation)
    return outputs, state


def in_use() -> str:
    """Which operator `rnn_step` and `rnn_sequence` take: "native" or "custom".

    The environment variable RNN_OPS_OPERATOR names one. Without it the native one is taken, unless
    `rnn_ops.operators.native.why_not` says why it cannot be loaded. After `use("cuda")` the custom one is always taken, because
    it alone copies arrays to a GPU and back.

    Raises
    ------
    ValueError
        RNN_OPS_OPERATOR names neither.
    RuntimeError
        It names the native operator, and there is no native operator: why.
    """
    name = os.environ.get("RNN_OPS_OPERATOR", "")
    if name not in ("", *_OPERATORS):
        raise ValueError(f"RNN_OPS_OPERATOR: got {name!r}, needs 'custom' or 'native'")
    if name == "custom" or devices.in_use() != "cpu":
        return "custom"
    reason = native.why_not()
    if reason and name:
        raise RuntimeError(f"RNN_OPS_OPERATOR: got 'native', and there is no native operator: {reason}")
    return "custom" if reason else "native"


def looks_at_tokens(context: mx.Context) -> bool:
    """Whether the operator in use refuses tokens outside [0, I) in arrays of this context."""
    return _OPERATORS[in_use()].looks_at_tokens(context)


def _stacked(inputs):
    """A list of one array a step, such as the tutorial's, as one array."""
    for t, value in enumerate(inputs):
        if type(value) not in (mx.nd.NDArray, mx.sym.Symbol) or type(value) is not type(inputs[0]):
            raise TypeError(ndarray.no_array(f"inputs[{t}]", value))
        if isinstance(value, mx.nd.NDArray) and (value.shape, value.dtype) != (inputs[0].shape, inputs[0].dtype):
            raise ValueError(f"inputs[{t}]: got {np.dtype(value.dtype)} of shape {value.shape}, needs "
                             f"{np.dtype(inputs[0].dtype)} of shape {inputs[0].shape}, as inputs[0]")
    if not inputs:
        raise ValueError("inputs: got an empty list, needs one array a step")
    module = mx.nd if isinstance(inputs[0], mx.nd.NDArray) else mx.sym
    return module.stack(*inputs, axis=0)


def _call(step, values, activation):
    arguments.check_activation(activation)
    operator = _OPERATORS[in_use()]
    if operator is native:
        results = native.quick_call(step, values, activation, check_tokens=True)
        if results is not None:
            return results
    if ndarray.are_ndarrays(values):
        _check(step, values, operator)
    if operator is native:
        values = lookup.small(step, *values)
    return operator.call(step, values, activation)


def _check(step, arrays, operator):
    signature = arguments.check(*arrays, step=step)
    inputs = arrays[0]
    context = inputs.context
    for name, array in zip(arguments.NAMES, arrays):
        if _device(array.context) != _device(context):
            raise ValueError(f"{name}: got an array on {array.context}, needs one on {context}, the context of inputs")
    devices.check_context(context)
    if signature.tokens and operator.looks_at_tokens(context):
        arguments.check_tokens(inputs.asnumpy(), signature.I)


def _device(context):
    """The kind and number of the device whose kernels work on a context's memory: for cpu_pinned and cpu_shared it is the CPU."""
    return context.device_type.split("_")[0], context.device_id
