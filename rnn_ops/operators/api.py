"""The functions that users call, in front of the operators: the native one, and the CustomOp where there is none.

They check NDArrays before MXNet sees them, since an exception in the caller's thread says more than an MXNetError at
some later wait. What the native operator's own front finds right (`native.quick_call`) is not checked again here. Symbols have
nothing to check yet: their errors come from the operators when they are bound or run.
"""
import os

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators import custom, lookup, native
from rnn_ops.operators.ndarray import view
from rnn_ops.operators.devices import in_use, device_for


def rnn_step(inputs, state, Wxh, Whh, bh, activation="tanh"):
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
        An argument that is not a dense NDArray (or not a Symbol, where others are), or of another dtype: all floats
        must be float32 or all float64, and tokens int32.
    ValueError
        Shapes that do not fit one another, an empty array, a token outside [0, I), arrays on several contexts or on
        one that has no kernels, another activation.
    MXNetError
        The same faults in a graph of Symbols, when it is bound or at the first wait for a result.

    Notes
    -----
    Differentiable once in every float argument: to differentiate a gradient once more raises an MXNetError. It names
    ``_backward_rnn_ops_native``, ``_backward_reshape`` or ``_backward_Custom``, the first operator on the way back.

    On a GPU the native operator waits for nothing, not even to look at tokens: one outside [0, I) makes the states of its row
    NaN and is no error.

    Examples
    --------
    >>> import rnn_ops
    >>> from rnn_ops._mxnet import mx
    >>> tokens = mx.nd.array([3, 1], dtype="int32")
    >>> Wxh, Whh, bh = mx.nd.ones((4, 5)), mx.nd.zeros((5, 5)), mx.nd.zeros(5)
    >>> rnn_ops.rnn_step(tokens, mx.nd.zeros((2, 5)), Wxh, Whh, bh).shape
    (2, 5)
    """
    return _call("rnn_step", True, (inputs, state, Wxh, Whh, bh), activation)


def rnn_sequence(inputs, state, Wxh, Whh, bh, activation="tanh"):
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
    >>> from rnn_ops._mxnet import mx
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
    outputs, state = _call("rnn_sequence", False, (inputs, state, Wxh, Whh, bh), activation)
    return outputs, state


def choice():
    """Which operator `rnn_step` and `rnn_sequence` take: "native" or "custom".

    What RNN_OPS_OPERATOR names; else the native one, unless `rnn_ops.operators.native.why_not` says that there is none. After
    `use("cuda")` the custom one in any case: to copy arrays to a GPU and back is its business.

    Raises
    ------
    ValueError
        RNN_OPS_OPERATOR names neither.
    RuntimeError
        It names the native operator, and there is none: why.
    """
    name = os.environ.get("RNN_OPS_OPERATOR", "")
    if name not in ("", "custom", "native"):
        raise ValueError(f"RNN_OPS_OPERATOR: got {name!r}, needs 'custom' or 'native'")
    if name == "custom" or in_use() != "cpu":
        return "custom"
    reason = native.why_not()
    if reason and name:
        raise RuntimeError(f"RNN_OPS_OPERATOR: got 'native', and there is no native operator: {reason}")
    return "custom" if reason else "native"


def _stacked(inputs):
    """A list of one array a step, such as the tutorial's, as one array."""
    for t, value in enumerate(inputs):
        if type(value) not in (mx.nd.NDArray, mx.sym.Symbol) or type(value) is not type(inputs[0]):
            raise TypeError(arguments.no_array(f"inputs[{t}]", value))
        if isinstance(value, mx.nd.NDArray) and (value.shape, value.dtype) != (inputs[0].shape, inputs[0].dtype):
            raise ValueError(f"inputs[{t}]: got {np.dtype(value.dtype)} of shape {value.shape}, needs "
                             f"{np.dtype(inputs[0].dtype)} of shape {inputs[0].shape}, as inputs[0]")
    if not inputs:
        raise ValueError("inputs: got an empty list, needs one array a step")
    module = mx.nd if isinstance(inputs[0], mx.nd.NDArray) else mx.sym
    return module.stack(*inputs, axis=0)


def _call(name, step, values, activation):
    arguments.check_activation(activation)
    operator = native if choice() == "native" else custom
    if operator is native:
        results = native.quick_call(step, values, activation, check_tokens=True)
        if results is not None:
            return results
    if all(type(value) is mx.nd.NDArray for value in values):
        _check(step, values, operator)
    elif not all(type(value) is mx.sym.Symbol for value in values):
        raise TypeError(_why_not(values))
    if operator is native:
        return native.call(step, lookup.small(step, *values), activation)
    return getattr(operator, name)(*values, activation=activation)


def _check(step, arrays, operator):
    signature = arguments.check(*arrays, step=step)
    inputs = arrays[0]
    context = inputs.context
    for name, array in zip(arguments.NAMES, arrays):
        if _device(array.context) != _device(context):
            raise ValueError(f"{name}: got an array on {array.context}, needs one on {context}, the context of inputs")
    device_for(context)
    # On a GPU the native operator waits for nothing, not even to see the tokens: a wrong one makes NaN.
    if signature.tokens and not (operator is native and context.device_type == "gpu"):
        inputs.wait_to_read()
        tokens = inputs.asnumpy() if context.device_type == "gpu" else view(inputs)
        arguments.check_tokens(tokens, signature.I)


def _device(context):
    """The kind and number of what computes on a context's memory: the CPU on that of cpu_pinned and cpu_shared too."""
    return context.device_type.split("_")[0], context.device_id


def _why_not(values):
    """What keeps these values, which are neither all NDArrays nor all Symbols, from being arguments."""
    for name, value in zip(arguments.NAMES, values):
        if isinstance(value, mx.nd.sparse.BaseSparseNDArray):
            return f"{name}: got an NDArray of storage {value.stype}, needs a dense one: tostype('default')"
        if isinstance(value, (mx.np.ndarray, mx.sym.numpy._Symbol)):
            return f"{name}: got one of the mx.np arrays, needs one of the mx.nd or mx.sym kind: as_nd_ndarray()"
        if type(value) not in (mx.nd.NDArray, mx.sym.Symbol):
            return arguments.no_array(name, value)
    kind = type(values[0])
    name, value = next((n, v) for n, v in zip(arguments.NAMES, values) if type(v) is not kind)
    return f"{name}: got {type(value).__name__}, needs {kind.__name__} as inputs is one"
