"""One layer in one direction, as a graph of Symbols: our operator, and around it the things that Gluon's layers have besides.

Gluon's weights are transposed and there are two biases; a direction may be reversed; rows may end before the last step; the
rows of a large vocabulary are looked up.
"""
from rnn_ops._mxnet import mx
from rnn_ops.operators import lookup, rnn_sequence
from rnn_ops.operators.native import guard

F = mx.sym

WEIGHTS = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")


def layer_graph(inputs, state, weights, activation, hidden_size, lengths=None, reverse=False, symbols=None, constant=False):
    """One layer in one direction: inputs (T, N, C) → outputs (T, N, H), last state (N, H).

    ``lengths`` comes from `within`; ``symbols`` is how many there are, where the inputs are tokens (T, N); ``constant`` says
    that nobody wants the gradient of the inputs. Wxh is among the weights as i2h_weight (H, C) or, for tokens with a row-sparse
    gradient, as i2h_table (V, H)."""
    if reverse:
        inputs = _reverse(inputs, lengths)
    table = weights.get("i2h_table")
    looked_up = symbols is not None and (table is not None or symbols >= lookup.MANY)
    if looked_up:
        Whh, bh = hidden_matrices(F, weights)
    else:
        Wxh, Whh, bh = matrices(F, weights)
    silence = lengths if activation == "relu" else None
    if symbols is None:
        if silence is not None:
            inputs, Wxh = _silenced(inputs, Wxh, silence, weights["i2h_weight"], hidden_size)
        if constant:
            inputs = F.BlockGrad(inputs, attr={guard.CONSTANT: "1"})
    elif looked_up:
        if table is not None:
            inputs, Wxh = lookup.sparse_of_batch(inputs, table, symbols, hidden_size)
        else:
            inputs, Wxh = lookup.of_batch(inputs, weights["i2h_weight"], "HV")
        if silence is not None:
            inputs = F.SequenceMask(inputs + 1, silence, use_sequence_length=True)
            Wxh = F.concat(_silence(F.slice_axis(Wxh, axis=0, begin=0, end=1)), Wxh, dim=0)
    elif silence is not None:
        inputs = F.SequenceMask(inputs, silence, use_sequence_length=True, value=symbols)
        Wxh = F.concat(Wxh, _silence(F.slice_axis(Wxh, axis=0, begin=0, end=1)), dim=0)
    outputs, last_state = rnn_sequence(inputs, state, Wxh, Whh, bh, activation=activation)
    if lengths is not None:
        last = F.SequenceLast(outputs, F.maximum(lengths, 1), use_sequence_length=True)
        last_state = F.where(lengths, last, state)  # a row of length 0 keeps its own
        outputs = mask(outputs, lengths)
    return _reverse(outputs, lengths) if reverse else outputs, last_state


def _silenced(inputs, Wxh, lengths, i2h_weight, hidden_size):
    """Inputs (T, N, C) and Wxh with one input more: it is 0 inside a row and 1 behind its end, and its weights are `_silence`."""
    behind = F.SequenceMask(F.zeros_like(F.slice_axis(inputs, axis=2, begin=0, end=1)), lengths, use_sequence_length=True,
                            value=1)
    # A product of one input gives a row of the right length. From it MXNet infers the weight's width, which it cannot do
    # through concat.
    one = F.slice_axis(F.slice_axis(inputs, axis=0, begin=0, end=1), axis=1, begin=0, end=1)
    row = F.FullyConnected(one, i2h_weight, num_hidden=hidden_size, no_bias=True)
    return F.concat(inputs, behind, dim=2), F.concat(Wxh, _silence(row), dim=0)


def _silence(row):
    """The row of Wxh that inputs pick behind the end of a row of the batch: with -1e30 in each sum, relu makes every state 0.

    Without it the states behind the end may grow from step to step until they are infinite, since relu has no bound. Their
    gradients are 0, and 0 times infinity would put NaN into that of Whh."""
    return F.zeros_like(row) - 1e30


def within(sequence, lengths):
    """Lengths as float32, each an integer from 0 to T: the number of steps t that are less than it.

    In a graph nobody has looked at the lengths, and MXNet's sequence operators read and write out of bounds for wrong ones
    (bug 15 in _mxnet_bugs.py).
    """
    steps = F.cast(F.contrib.arange_like(sequence, axis=0), "float32")
    inside = F.broadcast_lesser(F.expand_dims(steps, axis=0), F.expand_dims(F.cast(lengths, "float32"), axis=1))
    return F.sum(inside, axis=1)


def with_dense_gradients(block, weights):
    """The Symbols of a block's parameters, those with a row-sparse gradient behind a reshape. MXNet's reshape can make such a
    gradient of a dense one, and its transpose ends the process (bug 13 in _mxnet_bugs.py)."""
    def sparse(name):
        return block._reg_params[name]._grad_stype != "default" and not name.endswith("i2h_table")

    return {name: mx.sym.reshape(weight, shape=(-2,)) if sparse(name) else weight for name, weight in weights.items()}


def matrices(F, weights):
    """Wxh, Whh and bh of Gluon's parameters."""
    return (F.transpose(weights["i2h_weight"]), *hidden_matrices(F, weights))


def hidden_matrices(F, weights):
    """Whh and bh."""
    # Not `+`, which gives the second bias a wrong gradient in a hybridized block (bug 12 in _mxnet_bugs.py).
    return F.transpose(weights["h2h_weight"]), F.broadcast_add(weights["i2h_bias"], weights["h2h_bias"])


def mask(sequence, lengths):
    """A sequence (T, N, ...) with zeros behind the end of each row."""
    return F.SequenceMask(sequence, lengths, use_sequence_length=True)


def _reverse(sequence, lengths):
    """Each row of (T, N, ...) from its own end to its start; behind the end nothing changes."""
    if lengths is None:
        steps = F.contrib.arange_like(sequence, axis=0)  # MXNet's reverse takes eight times as long as this
        return F.take(sequence, F.broadcast_sub(F.max(steps), steps), axis=0)
    return F.SequenceReverse(sequence, lengths, use_sequence_length=True)
