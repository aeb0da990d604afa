"""The tutorial's training loss, and the same in six steps that end at ours: ladder.py times them, the README shows them.

Every rung is the smallest change of the one before, and gives the same loss and gradients. The first is the loop of
"Recurrent Neural Networks for Language Modeling" in *Deep Learning - The Straight Dope*, with its functions under their
names, except that parameters are an argument; `softmax` and the update are in `rnn_ops.reference`.

Shapes: T steps, B batch rows, H hidden units, V vocabulary. A list of one-hot rows is one array (B, V) a step, and an array
(T, B, V) does as well.
"""
from typing import Callable, NamedTuple

from rnn_ops import rnn_sequence, rnn_step
from rnn_ops._mxnet import mx
from rnn_ops.reference import softmax
from rnn_ops_timemachine import model

nd = mx.nd


class Rung(NamedTuple):
    """One way to compute the loss of a batch."""
    name: str
    make: Callable  # make(V) → loss(inputs, labels, state, parameters) → (loss (1,), state (B, H))
    tokens: bool = False  # of its inputs: int32 (T, B) instead of a list of one-hot rows
    label_tokens: bool = False  # the same of its labels

    def batch(self, tokens, labels, V, dtype="float32"):
        """Inputs and labels as this rung takes them, from int32 NDArrays (T, B)."""
        return (tokens if self.tokens else list(nd.one_hot(tokens, V, dtype=dtype)),
                labels if self.label_tokens else list(nd.one_hot(labels, V, dtype=dtype)))


def simple_rnn(inputs, state, parameters, temperature=1.0):
    """The tutorial's network → (probabilities of the next symbol, (B, V) for each step; the last state)."""
    Wxh, Whh, bh, Why, by = parameters
    outputs = []
    for x in inputs:
        state = nd.tanh(nd.dot(x, Wxh) + nd.dot(state, Whh) + bh)
        outputs.append(softmax(nd.dot(state, Why) + by, temperature))
    return outputs, state


def cross_entropy(yhat, y):
    """The tutorial's: mean over the rows of -log of the probability at the label."""
    return -nd.mean(nd.sum(y * nd.log(yhat), axis=-1))


def average_ce_loss(outputs, labels):
    """The tutorial's: mean of `cross_entropy` over the steps."""
    total = 0
    for yhat, y in zip(outputs, labels):
        total = total + cross_entropy(yhat, y)
    return total / len(outputs)


def simple_rnn_of_steps(inputs, state, parameters, temperature=1.0):
    """Our step in the tutorial's loop."""
    Wxh, Whh, bh, Why, by = parameters
    outputs = []
    for x in inputs:
        state = rnn_step(x, state, Wxh, Whh, bh)
        outputs.append(softmax(nd.dot(state, Why) + by, temperature))
    return outputs, state


def simple_rnn_of_a_sequence(inputs, state, parameters, temperature=1.0):
    """All steps in one call; the rest is still done step by step."""
    Wxh, Whh, bh, Why, by = parameters
    states, state = rnn_sequence(inputs, state, Wxh, Whh, bh)
    outputs = []
    for h in states:
        outputs.append(softmax(nd.dot(h, Why) + by, temperature))
    return outputs, state


def simple_rnn_without_a_loop(inputs, state, parameters, temperature=1.0):
    """The output layer once as well; outputs are one array (T, B, V), which `average_ce_loss` walks through as a list."""
    Wxh, Whh, bh, Why, by = parameters
    states, state = rnn_sequence(inputs, state, Wxh, Whh, bh)
    return softmax(nd.dot(states, Why) + by, temperature), state


def loss_without_a_loop(inputs, labels, state, parameters):
    """The loss once too, from logits, where no probability can underflow. Labels are int32 (T, B)."""
    Wxh, Whh, bh, Why, by = parameters
    states, state = rnn_sequence(inputs, state, Wxh, Whh, bh)
    logits = nd.dot(states, Why) + by
    return -nd.mean(nd.pick(nd.log_softmax(logits), labels)), state


def _of_steps(network):
    """A rung's ``make`` from a network with outputs by the step."""
    def loss(inputs, labels, state, parameters):
        outputs, state = network(inputs, state, parameters)
        return average_ce_loss(outputs, labels), state
    return lambda V: loss


def _hybridized(V):
    block = model.Loss(V, rnn_sequence)
    return lambda inputs, labels, state, parameters: block(inputs, labels, state, *parameters)


RUNGS = (
    Rung("the tutorial's loop", _of_steps(simple_rnn)),
    Rung("rnn_step in the loop", _of_steps(simple_rnn_of_steps)),
    Rung("rnn_sequence for the loop", _of_steps(simple_rnn_of_a_sequence)),
    Rung("the output layer once", _of_steps(simple_rnn_without_a_loop)),
    Rung("the loss once", lambda V: loss_without_a_loop, label_tokens=True),
    Rung("tokens, no one-hot rows", lambda V: loss_without_a_loop, tokens=True, label_tokens=True),
    Rung("one hybridized block", _hybridized, tokens=True, label_tokens=True),
)
