"""Gluon blocks that stand in for MXNet's: ``RNN`` and ``RNNCell``, and ``TokenRNN``, which takes tokens.

They are subclasses of ``mx.gluon.rnn.RNN`` and ``mx.gluon.rnn.RNNCell`` of MXNet 1.9.1 that replace what computes:
parameters, states, saving, loading, hybridizing and exporting are MXNet's own. MXNet's bases are reached through names
that it calls private; 1.9.1 is its last release.
"""
import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators import rnn_sequence, rnn_step

__all__ = ["RNN", "RNNCell", "TokenRNN"]

_format_sequence = mx.gluon.rnn.rnn_cell._format_sequence


class RNN(mx.gluon.rnn.RNN):
    """An Elman RNN of one or more layers, h_t = act(x_t·Wxhᵀ + b_xh + h_{t-1}·Whhᵀ + b_hh): `mx.gluon.rnn.RNN` on our kernels.

    To change the import is all that a network needs. Parameters saved by one load into the other.

    Parameters
    ----------
    hidden_size, num_layers, activation, layout, dropout, bidirectional, input_size, dtype, prefix, params, \
i2h_weight_initializer, h2h_weight_initializer, i2h_bias_initializer, h2h_bias_initializer, use_sequence_length
        Those of `mx.gluon.rnn.RNN`, in its order and with its defaults: ``activation`` is "relu" unless it is "tanh".
        ``dtype`` is "float32" or "float64".

    Inputs
    ------
    inputs : NDArray or Symbol (T, N, C), or (N, T, C) with layout "NTC"
    states : NDArray or Symbol (num_layers · directions, N, hidden_size), a list of one, or None for zeros
    sequence_length : NDArray or Symbol (N,), only with use_sequence_length
        The number of steps of each row, from 1 to T. Outputs behind a row's end are 0, its last state is that at its
        own end, and the reversed direction starts there; inputs behind it do not matter. (MXNet has this on GPUs only.)

    Outputs
    -------
    outputs : (T, N, hidden_size · directions), or (N, T, ...) with layout "NTC"
    states : a list of one, shaped as the states that came in; left out where none came in
    """

    def __init__(self, hidden_size, num_layers=1, activation="relu", *args, **kwargs):
        arguments.check_activation(activation)
        super().__init__(hidden_size, num_layers, activation, *args, **kwargs)

    _padding_token = None  # one that no input is, where inputs are tokens

    def __call__(self, inputs, states=None, sequence_length=None, **kwargs):
        if isinstance(inputs, mx.nd.NDArray):  # a Symbol has nothing to check yet
            self._check_inputs(inputs)
            if self._use_sequence_length:
                _check_lengths("sequence_length", sequence_length, *(inputs.shape[self._layout.find(c)] for c in "TN"))
        return super().__call__(inputs, states, sequence_length, **kwargs)

    def _check_inputs(self, inputs):
        if inputs.ndim != 3:
            raise ValueError(f"inputs: got shape {inputs.shape}, needs three dimensions, {self._layout}; "
                             "TokenRNN takes tokens")

    def _forward_kernel(self, F, inputs, states, sequence_length, **kwargs):
        """What MXNet's own layer calls to compute: (outputs, [states])."""
        values = inputs, states[0], sequence_length, kwargs
        if not mx.util.is_np_array():
            outputs, states = self._compute(F, *values)
            return outputs, [states]
        outputs, states = self._compute(F, *_each(values, "as_nd_ndarray"))
        return outputs.as_np_ndarray(), [states.as_np_ndarray()]

    def _compute(self, F, inputs, states, lengths, weights):
        time_major = self._layout == "TNC"
        activation = self._mode[len("rnn_"):]
        sequence = inputs if time_major else F.swapaxes(inputs, dim1=0, dim2=1)
        if lengths is not None:
            sequence = _mask(F, sequence, lengths)
        count = self._num_layers * self._dir
        if count > 1:
            states = list(F.split(states, num_outputs=count, axis=0, squeeze_axis=True))
        else:
            states = [F.reshape(states, shape=(-3, 0))]
        last_states = []
        for layer in range(self._num_layers):
            if layer > 0 and self._dropout > 0:
                sequence = F.Dropout(sequence, p=self._dropout)
            directions = []
            for direction in "lr"[:self._dir]:
                own = {kind: weights[f"{direction}{layer}_{kind}"] for kind in _WEIGHTS}
                outputs, state = _direction(F, sequence, states[len(last_states)], own, activation, lengths,
                                            direction == "r", self._padding_token if layer == 0 else None)
                directions.append(outputs)
                last_states.append(state)
            sequence = F.concat(*directions, dim=2) if self._dir == 2 else directions[0]
        outputs = sequence if time_major else F.swapaxes(sequence, dim1=0, dim2=1)
        return outputs, F.stack(*last_states, axis=0)


class TokenRNN(RNN):
    """`RNN` on tokens: each stands for its one-hot row, which is never made.

    The parameters are those of an `RNN` whose input is the one-hot rows, and load from and into one.

    Parameters
    ----------
    input_size : int
        The number of different tokens. It must be given, since tokens do not tell it.
    Others
        Those of `RNN`.

    Inputs
    ------
    inputs : int32 NDArray or Symbol (T, N), or (N, T) with layout "NTC"
        Tokens, 0 <= token < input_size.
    states, sequence_length
        As of `RNN`; outputs too.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._input_size < 1:
            raise ValueError(f"input_size: got {self._input_size}, needs the number of different tokens")

    @property
    def _padding_token(self):
        return self._input_size

    def begin_state(self, batch_size=0, func=mx.nd.zeros, **kwargs):
        # MXNet's layer asks for states of the dtype of its inputs, and states are no tokens.
        if "dtype" in kwargs and np.dtype(kwargs["dtype"]) == arguments.TOKENS:
            kwargs["dtype"] = self._dtype
        return super().begin_state(batch_size, func, **kwargs)

    def _check_inputs(self, inputs):
        if inputs.ndim != 2 or inputs.dtype != arguments.TOKENS:
            raise ValueError(f"inputs: got {np.dtype(inputs.dtype)} of shape {inputs.shape}, needs int32 tokens in two "
                             f"dimensions, {self._layout[:2]}; cast them with astype('int32')")


class RNNCell(mx.gluon.rnn.RNNCell):
    """One step of an Elman RNN, `mx.gluon.rnn.RNNCell`; `unroll` is one operator for all steps.

    Parameters
    ----------
    hidden_size, activation, input_size, prefix, params, i2h_weight_initializer, h2h_weight_initializer, \
i2h_bias_initializer, h2h_bias_initializer
        Those of `mx.gluon.rnn.RNNCell`, in its order and with its defaults; ``activation`` is "tanh" or "relu".
    """

    def __init__(self, hidden_size, activation="tanh", *args, **kwargs):
        arguments.check_activation(activation)
        super().__init__(hidden_size, activation, *args, **kwargs)

    def hybrid_forward(self, F, inputs, states, **weights):
        output = rnn_step(inputs, states[0], *_matrices(F, weights), activation=self._activation)
        output = _named(F, output, f"t{self._counter}_out")
        return output, [output]

    def unroll(self, length, inputs, begin_state=None, layout="NTC", merge_outputs=None, valid_length=None):
        """All steps of a sequence: `mx.gluon.rnn.RNNCell.unroll`, its arguments and its results."""
        self.reset()
        listed = isinstance(inputs, (list, tuple))
        sequence, _, F, batch_size = _format_sequence(length, inputs, "TNC" if listed else layout, True)
        if not listed and layout == "NTC":
            sequence = F.swapaxes(sequence, dim1=0, dim2=1)
        if F is mx.nd and sequence.shape[0] != length:
            raise ValueError(f"length: got {length}, needs {sequence.shape[0]}, the steps of inputs")
        if begin_state is None:
            where = {"ctx": sequence.context} if F is mx.nd else {}
            begin_state = self.begin_state(batch_size, F.zeros, dtype=self.i2h_weight.dtype, **where)
        if valid_length is not None:
            if F is mx.nd:
                _check_lengths("valid_length", valid_length, length, batch_size)
            sequence = _mask(F, sequence, valid_length)
        weights = self._weights(F, sequence, begin_state)
        with self.name_scope():
            outputs, state = _direction(F, sequence, begin_state[0], weights, self._activation, valid_length)
            if merge_outputs is None:
                merge_outputs = valid_length is not None
            if merge_outputs:
                outputs = outputs if layout == "TNC" else F.swapaxes(outputs, dim1=0, dim2=1)
            else:
                steps = _format_sequence(length, outputs, "TNC", False)[0]
                outputs = [_named(F, step, f"t{t}_out") for t, step in enumerate(steps)]
        return outputs, [state]

    def _weights(self, F, sequence, begin_state):
        """The parameters by their names, as arrays or Symbols. Their shapes may still be open."""
        if F is mx.sym:
            return {name: parameter.var() for name, parameter in self._reg_params.items()}
        if any(parameter._deferred_init for parameter in self._reg_params.values()):
            self._deferred_infer_shape(sequence[0], begin_state)
            for parameter in self._reg_params.values():
                parameter._finish_deferred_init()
        return {name: parameter.data(sequence.context) for name, parameter in self._reg_params.items()}


_WEIGHTS = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")


def _direction(F, inputs, state, weights, activation, lengths, reverse=False, padding_token=None):
    """One layer in one direction: inputs (T, N, C) or tokens (T, N) → outputs (T, N, H), last state (N, H)."""
    if reverse:
        inputs = _reverse(F, inputs, lengths)
    Wxh, Whh, bh = _matrices(F, weights)
    if lengths is not None and activation == "relu":
        inputs, Wxh = _silenced(F, inputs, Wxh, lengths, padding_token)
    outputs, state = rnn_sequence(inputs, state, Wxh, Whh, bh, activation=activation)
    if lengths is not None:
        state = F.SequenceLast(outputs, lengths, use_sequence_length=True)
        outputs = _mask(F, outputs, lengths)
    return _reverse(F, outputs, lengths) if reverse else outputs, state


def _silenced(F, inputs, Wxh, lengths, padding_token):
    """Inputs and Wxh with one more input, which is 1 behind the end of a row and there makes every state 0.

    relu has no bound: without this, states that grow from step to step behind the end of a row may become infinite, and
    their zero gradients then NaN in that of Whh.
    """
    silence = F.zeros_like(F.slice_axis(Wxh, axis=0, begin=0, end=1)) - 1e30
    if padding_token is None:
        behind = F.SequenceMask(F.zeros_like(F.slice_axis(inputs, axis=2, begin=0, end=1)), lengths,
                                use_sequence_length=True, value=1)
        inputs = F.concat(inputs, behind, dim=2)
    else:
        inputs = F.SequenceMask(inputs, lengths, use_sequence_length=True, value=padding_token)
    return inputs, F.concat(Wxh, silence, dim=0)


def _matrices(F, weights):
    """Wxh, Whh and bh of Gluon's parameters."""
    i2h_weight, h2h_weight, i2h_bias, h2h_bias = (weights[kind] for kind in _WEIGHTS)
    # Not `+`: in a hybridized block MXNet 1.9.1 then gives the second bias a wrong gradient with grad_req 'add', and
    # where the first is not written too.
    return F.transpose(i2h_weight), F.transpose(h2h_weight), F.broadcast_add(i2h_bias, h2h_bias)


def _mask(F, sequence, lengths):
    return F.SequenceMask(sequence, lengths, use_sequence_length=True)


def _reverse(F, sequence, lengths):
    """Each row of (T, N, ...) from its own end to its start; what lies behind the end stays."""
    if lengths is None:
        return F.reverse(sequence, axis=0)
    return F.SequenceReverse(sequence, lengths, use_sequence_length=True)


def _named(F, value, name):
    """The value under the name that MXNet's cell gives it in a graph; an array has no name."""
    return F.identity(value, name=name) if F is mx.sym else value


def _check_lengths(name, lengths, steps, rows):
    if not isinstance(lengths, mx.nd.NDArray):
        raise TypeError(f"{name}: got {type(lengths).__name__}, needs an NDArray ({rows},), the steps of each row")
    if lengths.shape != (rows,):
        raise ValueError(f"{name}: got shape {lengths.shape}, needs ({rows},), the steps of each row")
    values = lengths.asnumpy()
    if not (values.min() >= 1 and values.max() <= steps):
        raise ValueError(f"{name}: got {values.tolist()}, needs numbers from 1 to {steps}, the steps of inputs")


def _each(values, method):
    """Values, those in a dict too, each after its method; None stays None."""
    if isinstance(values, dict):
        return {key: _each(value, method) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_each(value, method) for value in values)
    return None if values is None else getattr(values, method)()
