"""The reference: the tutorial's recurrent network in plain ``mx.nd`` operations, nothing clever.

The operators are compared with this file, so it stays as close to the equations as it can. It
follows "Recurrent Neural Networks for Language Modeling" of *Deep Learning - The Straight Dope* (Zachary Lipton et
al., chapter 5): one step, the loop over time, the output layer, softmax with temperature, cross-entropy and plain
stochastic gradient descent; gradients come from ``mx.autograd``. float32 and float64.

There is one difference. The tutorial subtracts the maximum of the whole matrix before ``exp``, so a row far below it
underflows to 0, and its logarithm is -inf. Here each row's own maximum is subtracted: the same function without the
underflow.

Shapes: T steps, B batch rows, I input width (V where the input is tokens), H hidden units, V vocabulary.
"""
from typing import Iterable, Sequence, Tuple, Union

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments

__all__ = ["rnn_step", "rnn_sequence", "output_layer", "softmax", "cross_entropy", "language_model_loss", "sgd"]

nd = mx.nd
NDArray = mx.nd.NDArray


def rnn_step(inputs: NDArray, state: NDArray, Wxh: NDArray, Whh: NDArray, bh: NDArray, activation: str = "tanh") -> NDArray:
    """One recurrent step, h = tanh(x·Wxh + h_prev·Whh + bh), or with relu instead of tanh.

    Parameters
    ----------
    inputs : NDArray, floats (B, I) or int32 tokens (B,)
        A token stands for its one-hot row.
    state : NDArray (B, H)
    Wxh, Whh, bh : NDArray (I, H), (H, H), (H,)
    activation : "tanh" or "relu"

    Returns
    -------
    NDArray (B, H)
    """
    arguments.check_activation(activation)
    if inputs.ndim == 1:
        inputs = nd.one_hot(inputs, Wxh.shape[0], dtype=Wxh.dtype)
    return getattr(nd, activation)(nd.dot(inputs, Wxh) + nd.dot(state, Whh) + bh)


def rnn_sequence(inputs: Union[NDArray, Sequence[NDArray]], state: NDArray, Wxh: NDArray, Whh: NDArray, bh: NDArray,
                 activation: str = "tanh") -> Tuple[NDArray, NDArray]:
    """The loop over T steps.

    Parameters
    ----------
    inputs : NDArray, floats (T, B, I) or int32 tokens (T, B), or a list of T arrays, one a step
    state : NDArray (B, H)
        The hidden state before the first step.
    Wxh, Whh, bh : NDArray (I, H), (H, H), (H,)
    activation : "tanh" or "relu"

    Returns
    -------
    outputs : NDArray (T, B, H)
        The hidden state after every step.
    state : NDArray (B, H)
        The one after the last.
    """
    outputs = []
    for x in inputs:
        state = rnn_step(x, state, Wxh, Whh, bh, activation)
        outputs.append(state)
    return nd.stack(*outputs, axis=0), state


def output_layer(states: NDArray, Why: NDArray, by: NDArray) -> NDArray:
    """Logits of the next token: states (..., H), Why (H, V), by (V,) → (..., V)."""
    return nd.dot(states, Why) + by


def softmax(logits: NDArray, temperature: float = 1.0) -> NDArray:
    """Probabilities of each row (last axis) of logits (..., V), sharpened as ``temperature`` falls below 1."""
    scaled = (logits - nd.max(logits, axis=-1, keepdims=True)) / temperature
    exponentials = nd.exp(scaled)
    return exponentials / nd.sum(exponentials, axis=-1, keepdims=True)


def cross_entropy(logits: NDArray, labels: NDArray) -> NDArray:
    """Mean over all rows of -log softmax(logits)[label], in nats.

    logits (..., V); labels are int32 (...) or, as in the tutorial, one-hot rows (..., V) → (1,). The logarithm of
    the softmax is taken term by term, since a probability that underflows has no logarithm.
    """
    if labels.ndim < logits.ndim:
        labels = nd.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    shifted = logits - nd.max(logits, axis=-1, keepdims=True)
    log_probabilities = shifted - nd.log(nd.sum(nd.exp(shifted), axis=-1, keepdims=True))
    return -nd.mean(nd.sum(labels * log_probabilities, axis=-1))


def language_model_loss(tokens: NDArray, labels: NDArray, state: NDArray, Wxh: NDArray, Whh: NDArray, bh: NDArray,
                        Why: NDArray, by: NDArray) -> Tuple[NDArray, NDArray]:
    """The tutorial's whole forward loop: every operation once a step, the loss averaged over batch and time.

    tokens and labels: int32 (T, B) or one-hot (T, B, V); state (B, H) → (loss (1,) in nats, state (B, H)).
    """
    total = 0
    for x, y in zip(tokens, labels):
        state = rnn_step(x, state, Wxh, Whh, bh)
        total = total + cross_entropy(output_layer(state, Why, by), y)
    return total / len(tokens), state


def sgd(parameters: Iterable[NDArray], learning_rate: float) -> None:
    """One training step of plain stochastic gradient descent, in place: p ← p - learning_rate · p.grad."""
    for parameter in parameters:
        parameter[:] = parameter - learning_rate * parameter.grad
