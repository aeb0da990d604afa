"""The function that users call. It checks that the arguments are tensors; `operator` checks everything else.

It calls one operator and nothing that Python alone could do, so that torch.compile and torch.export see through it.
"""
from typing import Tuple

import torch

from rnn_ops.backends import arguments
from rnn_ops.torch import operator

__all__ = ["rnn_sequence"]


def rnn_sequence(inputs: torch.Tensor, state: torch.Tensor, Wxh: torch.Tensor, Whh: torch.Tensor, bh: torch.Tensor,
                 activation: str = "tanh") -> Tuple[torch.Tensor, torch.Tensor]:
    """The recurrence h_t = tanh(x_t·Wxh + h_{t-1}·Whh + bh) over T steps as one PyTorch operator, ``rnn_ops::rnn_sequence``.

    The loop of "Recurrent Neural Networks for Language Modeling" in *Deep Learning - The Straight Dope*, chapter 5, without
    the output layer. Both results may be used, and gradients flow from both.

    Parameters
    ----------
    inputs : tensor, floats (T, B, I) or int32 or int64 tokens (T, B)
        A token stands for its one-hot row and picks a row of Wxh.
    state : tensor (B, H)
        h_0, the hidden state before the first step.
    Wxh, Whh, bh : tensor (I, H), (H, H), (H,)
    activation : "tanh" or "relu"
        The function of the sum; the tutorial's is tanh.

    All on one CPU or CUDA device; the floats all float32 or all float64.

    Returns
    -------
    outputs : tensor (T, B, H)
        The hidden state after every step.
    state : tensor (B, H)
        The one after the last step.

    Raises
    ------
    TypeError
        An argument that is no tensor, or has another dtype.
    ValueError
        Shapes that do not fit one another, an empty tensor, tensors on several devices, a token outside [0, I), an unknown
        activation.
    RuntimeError
        There is no GPU that can be used: why. Or a first call with these shapes while a CUDA graph is captured.

    Notes
    -----
    Differentiable any number of times. The first gradient is the hand-written backward pass. The gradient of that is made of
    PyTorch's own operations, one step after the other, and only where a graph of the gradient is asked for (``create_graph``).

    Under `torch.autocast` floats of 16 bits are cast to float32 and the recurrence is computed in float32, where `torch.nn.RNN`
    computes in 16 bits.

    On a CUDA device nothing waits for the GPU, so tokens are not looked at: one outside [0, I) makes the states of its row NaN.

    Examples
    --------
    >>> import torch
    >>> from rnn_ops.torch import rnn_sequence
    >>> inputs, state = torch.ones(7, 2, 4), torch.zeros(2, 5)
    >>> Wxh, Whh, bh = torch.ones(4, 5, requires_grad=True), torch.zeros(5, 5), torch.zeros(5)
    >>> outputs, state = rnn_sequence(inputs, state, Wxh, Whh, bh)
    >>> (outputs.sum() + state.sum()).backward()
    >>> outputs.shape, state.shape, Wxh.grad.shape
    (torch.Size([7, 2, 5]), torch.Size([2, 5]), torch.Size([4, 5]))
    """
    for name, value in zip(arguments.NAMES, (inputs, state, Wxh, Whh, bh)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, needs a tensor")
        if value.layout is not torch.strided:
            raise TypeError(f"{name}: got a tensor with the layout {value.layout}, needs torch.strided")
    if inputs.dtype is torch.int64:  # what int32 cannot hold stays outside [0, I)
        inputs = inputs.clamp(-2 ** 31, 2 ** 31 - 1).int()
    call = operator.rnn_sequence if torch.compiler.is_compiling() else operator.call
    return call(inputs, state, Wxh, Whh, bh, activation)
