"""The tutorial's training loop: truncated backpropagation through time with plain stochastic gradient descent."""
import functools
import math

import numpy as np

from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import model, settings

nd = mx.nd

_BLOCK = 1 << 20  # tokens that are made NDArrays at once


def learning_rate_of(epoch, initial, since=1):
    """The learning rate of an epoch, counted from 1: ``initial`` in the epoch ``since``, halved at every 100th after
    it, as far down as float32 goes."""
    return max(math.ldexp(initial, since // 100 - epoch // 100), float(settings.LEARNING_RATES.tiny))


def moving_average(average, loss):
    """The exponential moving average after one more loss; ``average`` is None before the first."""
    return loss if average is None else 0.99 * average + 0.01 * loss


def perplexity(loss):
    """exp(loss): how many equally likely characters the model hesitates between."""
    return math.exp(loss)


class Batches:
    """Batches of tokens, NumPy (batches, T, B) of any integers, as NDArrays of int32 that are made while they are gone through.

    MXNet's int32 would take four times the memory that the tokens of a large text have.
    """

    def __init__(self, tokens):
        self._tokens, self.shape = tokens, tokens.shape

    def __iter__(self):
        count, T, B = self.shape
        step = max(1, _BLOCK // (T * B))
        for start in range(0, count, step):
            yield from nd.array(self._tokens[start:start + step], dtype="int32")


def train_epoch(parameters, inputs, labels, learning_rate, rnn_sequence):
    """Train on every batch once, in order: a generator of the batches' losses.

    The hidden state is zero before the first batch and carried from each batch to the next; no gradient flows from
    one batch into another.

    Parameters
    ----------
    parameters : model.Parameters
        Updated in place.
    inputs, labels : NDArray int32 (batches, T, B), or `Batches`
    learning_rate : float
    rnn_sequence : callable
        ``rnn_ops.rnn_sequence`` or ``rnn_ops.reference.rnn_sequence``.

    Yields
    ------
    float
        In nats. MXNet may still be at work on the batch's update, but not on its loss.

    Raises
    ------
    FloatingPointError
        A loss whose perplexity is not a finite number: training has diverged.
    """
    return _train(parameters, inputs, labels, learning_rate, functools.partial(
        model.loss, parameters=parameters, rnn_sequence=rnn_sequence))


def _train(parameters, inputs, labels, learning_rate, loss_of):
    """`train_epoch` with any ``loss_of`` as `train_batches` takes it."""
    def update():
        for parameter in parameters:
            nd.sgd_update(parameter, parameter.grad, lr=learning_rate, out=parameter)

    return train_batches(inputs, labels, _no_state(parameters, inputs), loss_of, update)


def _no_state(parameters, inputs):
    """The hidden state before the first batch."""
    return nd.zeros((inputs.shape[2], len(parameters.bh)), dtype=parameters.bh.dtype)


def train_batches(inputs, labels, state, loss_of, update):
    """The loop of `train_epoch` over any model: ``loss_of(tokens, labels, state)`` gives (loss, state), ``update()``
    takes the step that its gradients ask for."""
    try:
        for batch, (tokens, targets) in enumerate(zip(inputs, labels), start=1):
            with mx.autograd.record():
                loss, state = loss_of(tokens, targets, state)
            loss.backward()
            update()
            state = state.detach()
            loss = _number(loss)
            if not settings.is_loss(loss):
                raise FloatingPointError(f"training has diverged: the loss of batch {batch} is {loss}")
            yield loss
    finally:
        nd.waitall()  # MXNet can hang at exit while a custom operator, such as the last batch's backward, is queued


def mean_loss(inputs, labels, state, loss_of):
    """The mean of the batches' losses, the state carried from each to the next, with nothing learnt. ``loss_of`` is as
    in `train_batches`; so is the error where the mean is no finite perplexity's loss."""
    losses = []
    for tokens, targets in zip(inputs, labels):
        loss, state = loss_of(tokens, targets, state)
        losses.append(_number(loss))
    mean = float(np.mean(losses))
    if not settings.is_loss(mean):
        raise FloatingPointError(f"training has diverged: the loss on the validation part is {mean}")
    return mean


def _number(loss):
    """A loss as a float. One just below 0, which rounding makes of a text that leaves nothing to guess, is 0."""
    loss = float(loss.asscalar())
    return 0.0 if -math.inf < loss <= 0 else loss


class Learner:
    """Trains the model of model.py with a recurrence. network.py has the same for a Gluon network.

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

    def __init__(self, arrays, rnn_sequence):
        self.parameters = model.trainable(arrays)
        if rnn_sequence is reference.rnn_sequence:  # plain ndarray, and to stay so
            self._loss_of = functools.partial(model.loss, parameters=self.parameters, rnn_sequence=rnn_sequence)
        else:
            loss = model.Loss(len(self.parameters.by), rnn_sequence)
            self._loss_of = lambda tokens, labels, state: loss(tokens, labels, state, *self.parameters)

    def train_epoch(self, inputs, labels, learning_rate):
        """As the function of that name."""
        return _train(self.parameters, inputs, labels, learning_rate, self._loss_of)

    def loss(self, inputs, labels):
        """The mean loss of batches, as `mean_loss`, from a hidden state of zeros."""
        return mean_loss(inputs, labels, _no_state(self.parameters, inputs), self._loss_of)

    def arrays(self):
        """The parameters as NumPy arrays by name; a FloatingPointError where one is no longer finite."""
        return model.arrays(self.parameters)
