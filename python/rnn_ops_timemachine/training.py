"""The tutorial's training loop in MXNet: truncated backpropagation through time with plain stochastic gradient descent."""
import functools
from typing import Callable, Dict, Iterator, Union

import numpy as np

from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import descent, model

nd = mx.nd
Tokens = Union[np.ndarray, nd.NDArray]  # integers (batches, T, B)

_BLOCK = 1 << 20  # tokens that are made an NDArray at once


def batches(tokens: Tokens) -> Iterator[nd.NDArray]:
    """Batches of tokens (batches, T, B), an NDArray or NumPy's integers, as NDArrays of int32.

    They are made some at a time: MXNet's int32 would take four times the memory that the tokens of a large text have.
    """
    if isinstance(tokens, nd.NDArray):
        yield from tokens
        return
    count, T, B = tokens.shape
    step = max(1, _BLOCK // (T * B))
    for start in range(0, count, step):
        yield from nd.array(tokens[start:start + step], dtype="int32")


def train_batches(inputs: Tokens, labels: Tokens, state: nd.NDArray, loss_of: Callable, update: Callable[[], None]
                  ) -> Iterator[float]:
    """`learners.Learner.train_epoch` over any model: ``loss_of(tokens, labels, state)`` gives (loss, state), ``update()``
    takes the step that its gradients ask for. When a loss comes, MXNet may still be at work on the batch's update."""
    try:
        for number, (tokens, targets) in enumerate(zip(batches(inputs), batches(labels)), start=1):
            with mx.autograd.record():
                loss, state = loss_of(tokens, targets, state)
            loss.backward()
            update()
            state = state.detach()
            yield descent.checked(loss.asscalar(), f"of batch {number}")
    finally:
        nd.waitall()  # MXNet can hang at exit while a custom operator, such as the last batch's backward, is queued


def mean_loss(inputs: Tokens, labels: Tokens, state: nd.NDArray, loss_of: Callable) -> float:
    """`learners.Learner.loss` of any model; ``loss_of`` as in `train_batches`."""
    losses = []
    for tokens, targets in zip(batches(inputs), batches(labels)):
        loss, state = loss_of(tokens, targets, state)
        losses.append(loss.asscalar())
    return descent.mean(losses)


class Learner:
    """A `learners.Learner`: the model of model.py with a recurrence. network.py has one for a Gluon network.

    Parameters
    ----------
    arrays : dict
        The first parameters, NumPy arrays by name.
    rnn_sequence : callable
        ``rnn_ops.rnn_sequence``, another one for NDArrays and Symbols, or ``rnn_ops.reference.rnn_sequence``.

    Attributes
    ----------
    parameters : model.Parameters
    """

    def __init__(self, arrays: Dict[str, np.ndarray], rnn_sequence: Callable):
        self.parameters = model.trainable(arrays)
        if rnn_sequence is reference.rnn_sequence:  # plain ndarray, and to stay so
            self._loss_of = functools.partial(model.loss, parameters=self.parameters, rnn_sequence=rnn_sequence)
        else:
            loss = model.Loss(len(self.parameters.by), rnn_sequence)
            self._loss_of = lambda tokens, labels, state: loss(tokens, labels, state, *self.parameters)

    def train_epoch(self, inputs: Tokens, labels: Tokens, learning_rate: float) -> Iterator[float]:
        """As `learners.Learner.train_epoch`; the tokens may be NDArrays too."""
        def update():
            for parameter in self.parameters:
                nd.sgd_update(parameter, parameter.grad, lr=learning_rate, out=parameter)

        return train_batches(inputs, labels, self._no_state(inputs), self._loss_of, update)

    def loss(self, inputs: Tokens, labels: Tokens) -> float:
        """As `learners.Learner.loss`."""
        return mean_loss(inputs, labels, self._no_state(inputs), self._loss_of)

    def arrays(self) -> Dict[str, np.ndarray]:
        """As `learners.Learner.arrays`."""
        return model.arrays(self.parameters)

    def _no_state(self, inputs):
        """The hidden state before the first batch."""
        bias = self.parameters.bh
        return nd.zeros((inputs.shape[2], len(bias)), dtype=bias.dtype)
