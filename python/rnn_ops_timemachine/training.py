"""The tutorial's training loop in MXNet: truncated backpropagation through time with plain stochastic gradient descent.

The rows of a batch may be split over several contexts and several workers: each has a replica of the model, and an exchange sums
the replicas' gradients.
"""
import functools
import hashlib
import struct
from typing import Callable, Dict, Iterator, List, Optional, Protocol, Union

import numpy as np

from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import descent, model
from rnn_ops_timemachine.exchange import Contexts

nd = mx.nd
Tokens = Union[np.ndarray, nd.NDArray]  # integers (batches, T, B)

_BLOCK = 1 << 20  # tokens that are made an NDArray at once


def batches(tokens: Tokens, context: Optional[mx.Context] = None) -> Iterator[nd.NDArray]:
    """Batches of tokens (batches, T, B), an NDArray or NumPy's integers, as NDArrays of int32.

    They are made some at a time: MXNet's int32 would take four times the memory that the tokens of a large text have.
    """
    if isinstance(tokens, nd.NDArray):
        yield from tokens if context is None else tokens.as_in_context(context)
        return
    count, T, B = tokens.shape
    step = max(1, _BLOCK // (T * B))
    for start in range(0, count, step):
        yield from nd.array(tokens[start:start + step], dtype="int32", ctx=context)


class Replica(Protocol):
    """The model on one context. Its state is that of its rows of the batch."""
    context: mx.Context
    gradients: List[nd.NDArray]  # in the order of `parameters.NAMES`; `loss` and backward fill them

    def loss(self, tokens: nd.NDArray, labels: nd.NDArray, state: nd.NDArray):
        """tokens, labels (T, B) → the mean loss (1,) in nats, the state after the last step."""

    def no_state(self, rows: int) -> nd.NDArray:
        """The hidden state before the first batch."""

    def update(self, learning_rate: float) -> None:
        """Take the step that the gradients ask for."""

    def arrays(self) -> Dict[str, np.ndarray]:
        """As `learners.Learner.arrays`."""


class Replicas:
    """A `learners.Learner` of one replica for each context of an exchange.

    Each replica has the gradient of its rows' part of the batch's mean loss. The sum of them all is the gradient of the batch,
    and every replica takes the same step by it. So all replicas have the same parameters, to the bit.

    Parameters
    ----------
    replicas : list of Replica
    exchange : exchange.Contexts or exchange.Workers
    """

    def __init__(self, replicas: List[Replica], exchange):
        self._replicas, self._exchange = replicas, exchange
        exchange.begin(replicas[0].gradients)

    def train_epoch(self, inputs: Tokens, labels: Tokens, learning_rate: float) -> Iterator[float]:
        """As `learners.Learner.train_epoch`; the tokens may be NDArrays too. When a loss comes, MXNet may still be at work on
        the batch's update."""
        alone, weights = self._exchange.alone, self._weights(inputs)
        heads = None if alone else [nd.full(1, weight, replica.context, replica.gradients[0].dtype)
                                    for weight, replica in zip(weights, self._replicas)]
        try:
            for number, losses in enumerate(self._losses(inputs, labels, mx.autograd.record), start=1):
                mx.autograd.backward(losses, heads)
                loss = losses[0] if alone else self._sum(losses, weights)
                for replica in self._replicas:
                    replica.update(learning_rate)
                yield descent.checked(loss.asscalar() if alone else loss, f"of batch {number}")
        finally:
            nd.waitall()  # MXNet can hang at exit while a custom operator, such as the last batch's backward, is queued

    def loss(self, inputs: Tokens, labels: Tokens) -> float:
        """As `learners.Learner.loss`."""
        weights = self._weights(inputs)
        means = [_mean(losses, weights) for losses in self._losses(inputs, labels)]
        if self._exchange.workers > 1:
            means = [sum(map(_number, self._exchange.round(None, _note(np.mean(means)))))]
        return descent.mean(means)

    def arrays(self) -> Dict[str, np.ndarray]:
        """As `learners.Learner.arrays`. A RuntimeError where the workers' parameters are not the same."""
        arrays = self._replicas[0].arrays()
        if self._exchange.workers > 1:
            digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).digest()[:8]
            for rank, other in enumerate(self._exchange.round(None, digest)):
                if other != digest:
                    raise RuntimeError(f"the parameters of worker {rank} are no longer those of worker {self._exchange.rank}")
        return arrays

    def _losses(self, inputs, labels, scope=mx.autograd.pause):
        """For each batch the replicas' losses, computed inside ``scope``."""
        rows = self._exchange.rows(inputs.shape[2])
        states = [replica.no_state(end - begin) for replica, (begin, end) in zip(self._replicas, rows)]
        parts = [batches(_rows(tokens, *part), None if self._exchange.alone else replica.context)
                 for tokens in (inputs, labels) for replica, part in zip(self._replicas, rows)]
        for tokens in zip(*parts):
            with scope():
                found = [replica.loss(*pair, state) for replica, pair, state in zip(
                    self._replicas, zip(tokens, tokens[len(rows):]), states)]
            states = [state.detach() for _, state in found]
            yield [loss for loss, _ in found]

    def _weights(self, inputs):
        """The replicas' parts of a batch's mean loss."""
        return [(end - begin) / inputs.shape[2] for begin, end in self._exchange.rows(inputs.shape[2])]

    def _sum(self, losses, weights):
        """Sum the gradients over all replicas of all workers → the batch's loss."""
        notes = self._exchange.round([replica.gradients for replica in self._replicas], _note(_mean(losses, weights)))
        return sum(map(_number, notes))


class Learner(Replicas):
    """A `learners.Learner`: the model of model.py with a recurrence. network.py has one for a Gluon network.

    Parameters
    ----------
    arrays : dict
        The first parameters, NumPy arrays by name.
    rnn_sequence : callable
        ``rnn_ops.rnn_sequence``, another one for NDArrays and Symbols, or ``rnn_ops.reference.rnn_sequence``.
    exchange : exchange.Contexts or exchange.Workers
        By default one context, ``mx.cpu()``.

    Attributes
    ----------
    parameters : model.Parameters
        Of the first replica.
    """

    def __init__(self, arrays: Dict[str, np.ndarray], rnn_sequence: Callable, exchange=None):
        exchange = exchange or Contexts()
        super().__init__([_Replica(arrays, rnn_sequence, context) for context in exchange.contexts], exchange)
        self.parameters = self._replicas[0].parameters


class _Replica:
    """A `Replica` of the model of model.py."""

    def __init__(self, arrays, rnn_sequence, context):
        self.context = context
        self.parameters = model.trainable(arrays, context)
        self.gradients = [parameter.grad for parameter in self.parameters]
        if rnn_sequence is reference.rnn_sequence:  # plain ndarray, and to stay so
            self.loss = functools.partial(model.loss, parameters=self.parameters, rnn_sequence=rnn_sequence)
        else:
            loss = model.Loss(len(self.parameters.by), rnn_sequence)
            self.loss = lambda tokens, labels, state: loss(tokens, labels, state, *self.parameters)

    def no_state(self, rows):
        bias = self.parameters.bh
        return nd.zeros((rows, len(bias)), self.context, bias.dtype)

    def update(self, learning_rate):
        for parameter in self.parameters:
            nd.sgd_update(parameter, parameter.grad, lr=learning_rate, out=parameter)

    def arrays(self):
        return model.arrays(self.parameters)


def _rows(tokens, begin, end):
    """Some rows of the batches, without a copy where they are all of them."""
    return tokens if end - begin == tokens.shape[2] else tokens[:, :, begin:end]


def _mean(losses, weights):
    """This worker's part of a batch's mean loss."""
    return sum(weight * float(loss.asscalar()) for loss, weight in zip(losses, weights))


def _note(loss):
    """A number as the eight bytes that a round can carry for each worker."""
    return struct.pack("<d", loss)


def _number(note):
    return struct.unpack("<d", note)[0]
