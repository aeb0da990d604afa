"""Gluon blocks that stand in for MXNet's: ``RNN`` and ``RNNCell``, and ``TokenRNN``, which takes tokens.

They are subclasses of ``mx.gluon.rnn.RNN`` and ``mx.gluon.rnn.RNNCell`` of MXNet 1.9.1 and replace the computation.
Parameters, states, saving, loading, hybridizing and exporting are MXNet's own. We use some private names of MXNet's base classes;
they cannot change, because 1.9.1 is its last release.
"""
import contextlib
import sys
import types
from typing import Any

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.layer_graph import WEIGHTS, layer_graph, mask, matrices, with_dense_gradients, within
from rnn_ops.operators import in_use, looks_at_tokens, rnn_step
from rnn_ops.operators.devices import check_context
from rnn_ops.operators.native import guard
from rnn_ops.operators.ndarray import no_array
from rnn_ops.operators.one_node import OneNode

__all__ = ["RNN", "RNNCell", "TokenRNN"]

_format_sequence = mx.gluon.rnn.rnn_cell._format_sequence


class RNN(mx.gluon.rnn.RNN):
    """An Elman RNN of one or more layers, h_t = act(x_t·Wxhᵀ + b_xh + h_{t-1}·Whhᵀ + b_hh): `mx.gluon.rnn.RNN` on our kernels.

    A network needs nothing but another import. Parameters saved by one layer load into the other.

    Parameters
    ----------
    hidden_size, num_layers, activation, layout, dropout, bidirectional, input_size, dtype, prefix, params, \
i2h_weight_initializer, h2h_weight_initializer, i2h_bias_initializer, h2h_bias_initializer, use_sequence_length
        As in `mx.gluon.rnn.RNN`, in its order and with its defaults. ``activation`` is "relu" or "tanh",
        ``dtype`` "float32" or "float64".

    Inputs
    ------
    inputs : NDArray or Symbol (T, N, C), or (N, T, C) with layout "NTC"
    states : NDArray or Symbol (num_layers · directions, N, hidden_size), a list of one, or None for zeros
    sequence_length : NDArray or Symbol (N,), only with use_sequence_length
        The number of steps of each row, integers from 0 to T. Outputs behind a row's end are 0, its last state is the one at
        its own end, and the reversed direction starts there; inputs behind it do not matter. A row of length 0 keeps its
        initial state. (MXNet has this on GPUs only.) Other lengths are a ValueError. A graph cannot check them: there step t
        belongs to a row if t is less than its length, so -1 and NaN count as 0, 1.5 as 2, and T + 1 as T.

    Outputs
    -------
    outputs : (T, N, hidden_size · directions), or (N, T, ...) with layout "NTC"
    states : a list of one, shaped as the states that came in; left out if none came in
    """

    def __init__(self, hidden_size: int, num_layers: int = 1, activation: str = "relu", *args: Any, **kwargs: Any) -> None:
        arguments.check_activation(activation)
        super().__init__(hidden_size, num_layers, activation, *args, **kwargs)
        self._one_node = OneNode()

    _takes_tokens = False

    def __call__(self, inputs, states=None, sequence_length=None, **kwargs):
        if sequence_length is not None and not self._use_sequence_length:
            raise ValueError("sequence_length: got one, needs None, since the layer was made without use_sequence_length=True")
        if sequence_length is None and self._use_sequence_length:
            raise TypeError("sequence_length: got None, needs the steps of each row, (N,)")
        if isinstance(states, (list, tuple)) and len(states) != 1:
            raise ValueError(f"states: got a list of {len(states)}, needs one array, {self.state_info()[0]['shape']}")
        if not self._takes_tokens:
            inputs = _from_amp(inputs, self._dtype)
        states = _each(states, lambda state: _from_amp(state, self._dtype))
        if not isinstance(inputs, mx.sym.Symbol):  # a Symbol has nothing to check yet
            if not isinstance(inputs, mx.nd.NDArray):
                raise TypeError(no_array("inputs", inputs))
            self._check_inputs(inputs)
            _check_not_empty(inputs)
            check_context(inputs.context)
            inputs, states, sequence_length = _each((inputs, states, sequence_length), _in_cpu)
            steps, rows = (inputs.shape[self._layout.find(letter)] for letter in "TN")
            self._check_states(states, rows)
            if self._use_sequence_length:
                _check_lengths("sequence_length", sequence_length, steps, rows)
            self._check_tokens(inputs, sequence_length)
        return super().__call__(inputs, states, sequence_length, **kwargs)

    def _check_inputs(self, inputs):
        if inputs.ndim != 3:
            raise ValueError(f"inputs: got shape {inputs.shape}, needs three dimensions, {self._layout}; "
                             "TokenRNN takes tokens")

    def _check_tokens(self, inputs, lengths):
        pass

    def _check_states(self, states, rows):
        needed = self.state_info(rows)[0]["shape"]
        for state in [] if states is None else states if isinstance(states, (list, tuple)) else [states]:
            if not isinstance(state, mx.nd.NDArray):
                raise TypeError(no_array("states", state))
            if state.shape != needed:
                raise ValueError(f"states: got shape {state.shape}, needs {needed}: inputs have {rows} rows in the layout "
                                 f"{self._layout} of this layer")

    def _forward_kernel(self, F, inputs, states, sequence_length, **kwargs):
        """MXNet's own layer calls this to compute: (outputs, [states])."""
        values = inputs, states[0], sequence_length, kwargs
        compute = self._of_symbols if F is mx.sym else self._of_ndarrays
        if not mx.util.is_np_array():
            outputs, states = compute(*values)
            return outputs, [states]
        outputs, states = compute(*_each(values, lambda value: value.as_nd_ndarray()))
        return outputs.as_np_ndarray(), [states.as_np_ndarray()]

    def _of_ndarrays(self, inputs, states, lengths, weights):
        time, rows = (inputs.shape[self._layout.find(letter)] for letter in "TN")
        dtype = weights["l0_h2h_weight"].dtype
        if not self._takes_tokens and inputs.dtype != dtype:
            raise TypeError(f"inputs: got dtype {arguments.dtype_name(inputs.dtype)}, needs {np.dtype(dtype)}, the dtype of the "
                            "parameters")
        first = [arguments.Described(shape, array.dtype) for shape, array in (
            ((time, rows) + inputs.shape[2:], inputs), (states.shape[1:], states), self._first_weight(weights),
            *((weights[kind].shape[::-1], weights[kind]) for kind in ("l0_h2h_weight", "l0_i2h_bias")))]
        arguments.check(*first)
        constant = not guard.has_history(inputs)

        def compute(inputs, states, lengths, *values):
            return self._of_symbols(inputs, states, lengths, dict(zip(weights, values)), constant)

        return self._one_node((in_use(), constant, lengths is None), compute, [inputs, states, lengths, *weights.values()])

    def _first_weight(self, weights):
        """The shape of the first Wxh, and the array that holds it."""
        return weights["l0_i2h_weight"].shape[::-1], weights["l0_i2h_weight"]

    def _of_symbols(self, inputs, states, lengths, weights, constant=False):
        F = mx.sym
        weights = with_dense_gradients(self, weights)
        time_major = self._layout == "TNC"
        activation = self._mode[len("rnn_"):]
        sequence = inputs if time_major else F.swapaxes(inputs, dim1=0, dim2=1)
        if lengths is not None:
            lengths = within(sequence, lengths)
            sequence = mask(sequence, lengths)
        count = self._num_layers * self._dir
        if count > 1:
            states = list(F.split(states, num_outputs=count, axis=0, squeeze_axis=True))
        else:
            states = [F.reshape(states, shape=(-3, 0))]
        last_states = []
        for layer in range(self._num_layers):
            if layer > 0 and self._dropout > 0:
                sequence = F.Dropout(sequence, p=self._dropout)
            sides = []
            for side in "lr"[:self._dir]:
                own = {kind: weights.get(f"{side}{layer}_{kind}") for kind in WEIGHTS + ("i2h_table",)}
                outputs, state = layer_graph(
                    sequence, states[len(last_states)], own, activation, self._hidden_size, lengths, side == "r",
                    self._input_size if self._takes_tokens and layer == 0 else None, constant and layer == 0)
                sides.append(outputs)
                last_states.append(state)
            sequence = F.concat(*sides, dim=2) if self._dir == 2 else sides[0]
        outputs = sequence if time_major else F.swapaxes(sequence, dim1=0, dim2=1)
        return outputs, F.stack(*last_states, axis=0)


class TokenRNN(RNN):
    """`RNN` on tokens. A token stands for its one-hot row, and that row is never made.

    The parameters are those of an `RNN` whose input is the one-hot rows. Without ``sparse_grad`` they load from and into one.

    Parameters
    ----------
    input_size : int
        The number of different tokens. It must be given, because it cannot be read off a batch.
    sparse_grad : bool
        Whether the gradients for the tokens are row-sparse, as those of `mx.gluon.nn.Embedding` can be: a `mx.gluon.Trainer`
        then updates only the rows of a batch's tokens. Each row of such a gradient is a token. So the first layer has
        ``l0_i2h_table`` (and ``r0_i2h_table`` if bidirectional) of shape (input_size, hidden_size) instead of its transpose,
        ``l0_i2h_weight``. To load one into the other is an error; ``l0_i2h_table.set_data(weight.T)`` does it.
    Others
        As in `RNN`.

    Inputs
    ------
    inputs : int32 NDArray or Symbol (T, N), or (N, T) with layout "NTC"
        Tokens, 0 <= token < input_size.
    states, sequence_length
        As in `RNN`; outputs too.
    """

    def __init__(self, *args: Any, sparse_grad: bool = False, **kwargs: Any) -> None:
        if sparse_grad not in (False, True):
            raise ValueError(f"sparse_grad: got {sparse_grad!r}, needs True or False")
        self._sparse_grad = bool(sparse_grad)
        super().__init__(*args, **kwargs)
        if self._input_size < 1:
            raise ValueError(f"input_size: got {self._input_size}, needs the number of different tokens")

    _takes_tokens = True

    def _register_param(self, name, shape, init, dtype):
        if not self._sparse_grad or name not in ("l0_i2h_weight", "r0_i2h_weight"):
            return super()._register_param(name, shape, init, dtype)
        name = _as_table(name)
        table = self.params.get(name, shape=shape[::-1], init=init, dtype=dtype, grad_stype="row_sparse")
        setattr(self, name, table)
        return table

    def _first_weight(self, weights):
        return (weights["l0_i2h_table"].shape, weights["l0_i2h_table"]) if self._sparse_grad else super()._first_weight(weights)

    def _collect_params_with_prefix(self, prefix=""):
        """The parameters by their names in files. MXNet's layer does not know i2h_table, so it is shown i2h_weight."""
        names = {_as_weight(name): name for name in self._reg_params}
        known = types.SimpleNamespace(_reg_params=names, _children=self._children)
        found = mx.gluon.rnn.RNN._collect_params_with_prefix(known, prefix)
        return {_as_table(key) if name.endswith("_table") else key: self._reg_params[name] for key, name in found.items()}

    def __repr__(self):
        if not self._sparse_grad:
            return super().__repr__()
        options = {"num_layers": self._num_layers if self._num_layers > 1 else None, "dropout": self._dropout,
                   "bidirectional": self._dir == 2}
        shown = "".join(f", {name}={value}" for name, value in options.items() if value)
        return f"{type(self).__name__}({self._input_size} -> {self._hidden_size}, {self._layout}{shown}, sparse_grad=True)"

    def _unfuse(self):
        if self._sparse_grad:
            raise ValueError("sparse_grad: got True, needs False, as cells take their inputs by i2h_weight")
        return super()._unfuse()

    def begin_state(self, batch_size=0, func=mx.nd.zeros, **kwargs):
        # Called with the dtype of the inputs (bug 19 in _mxnet_bugs.py).
        if "dtype" in kwargs and np.dtype(kwargs["dtype"]) == arguments.TOKENS:
            kwargs["dtype"] = self._dtype
        return super().begin_state(batch_size, func, **kwargs)

    def _check_inputs(self, inputs):
        if inputs.ndim != 2 or inputs.dtype != arguments.TOKENS:
            raise ValueError(f"inputs: got {np.dtype(inputs.dtype)} of shape {inputs.shape}, needs int32 tokens in two "
                             f"dimensions, {self._layout[:2]}; cast them to int32")

    def _check_tokens(self, inputs, lengths):
        if not looks_at_tokens(inputs.context):
            return
        tokens = inputs.asnumpy()
        if lengths is not None:  # tokens behind the end of a row do not matter
            time = self._layout.find("T")
            steps = np.expand_dims(np.arange(tokens.shape[time]), 1 - time)
            tokens = np.where(steps < np.expand_dims(lengths.asnumpy(), time), tokens, 0)
        arguments.check_tokens(tokens, self._input_size)


def _as_table(name):
    return name.replace("i2h_weight", "i2h_table")


def _as_weight(name):
    return name.replace("i2h_table", "i2h_weight")


class RNNCell(mx.gluon.rnn.RNNCell):
    """One step of an Elman RNN, `mx.gluon.rnn.RNNCell`; `unroll` is one operator for all steps.

    Parameters
    ----------
    hidden_size, activation, input_size, prefix, params, i2h_weight_initializer, h2h_weight_initializer, \
i2h_bias_initializer, h2h_bias_initializer
        As in `mx.gluon.rnn.RNNCell`, in its order and with its defaults; ``activation`` is "tanh" or "relu".
    """

    def __init__(self, hidden_size: int, activation: str = "tanh", *args: Any, **kwargs: Any) -> None:
        arguments.check_activation(activation)
        super().__init__(hidden_size, activation, *args, **kwargs)
        self._one_node = OneNode()

    def hybrid_forward(self, F, inputs, states, **weights):
        inputs, states = _each((inputs, states), lambda value: _from_amp(value, self.i2h_weight.dtype))
        if F is mx.sym:
            weights = with_dense_gradients(self, weights)
        output = rnn_step(inputs, states[0], *matrices(F, weights), activation=self._activation)
        output = _named(F, output, f"t{self._counter}_out")
        return output, [output]

    def unroll(self, length, inputs, begin_state=None, layout="NTC", merge_outputs=None, valid_length=None):
        """All steps of a sequence, with the arguments and the results of `mx.gluon.rnn.RNNCell.unroll`."""
        self.reset()
        listed = isinstance(inputs, (list, tuple))
        for value in inputs if listed else [inputs]:
            if not isinstance(value, (mx.nd.NDArray, mx.sym.Symbol)):
                raise TypeError(no_array("inputs", value))
            if isinstance(value, mx.nd.NDArray):
                _check_not_empty(value)
                check_context(value.context)
        inputs, begin_state, valid_length = _each((inputs, begin_state, valid_length), _in_cpu)
        inputs, begin_state = _each((inputs, begin_state), lambda value: _from_amp(value, self.i2h_weight.dtype))
        sequence, _, F, batch_size = _format_sequence(length, inputs, "TNC" if listed else layout, True)
        if not listed and layout == "NTC":
            sequence = F.swapaxes(sequence, dim1=0, dim2=1)
        if F is mx.nd and sequence.shape[0] != length:
            raise ValueError(f"length: got {length}, needs {sequence.shape[0]}, the steps of inputs")
        if begin_state is None:
            where = {"ctx": sequence.context} if F is mx.nd else {}
            begin_state = self.begin_state(batch_size, F.zeros, dtype=self.i2h_weight.dtype, **where)
        if valid_length is not None and F is mx.nd:
            _check_lengths("valid_length", valid_length, length, batch_size)
        weights = self._weights(F, sequence, begin_state)
        # Arrays need no names, and threads cannot share a scope.
        with self.name_scope() if F is mx.sym else contextlib.nullcontext():
            outputs, state = self._all_steps(F, sequence, begin_state[0], valid_length, weights)
            if merge_outputs is None:
                merge_outputs = valid_length is not None
            if merge_outputs:
                outputs = outputs if layout == "TNC" else F.swapaxes(outputs, dim1=0, dim2=1)
            else:
                steps = _format_sequence(length, outputs, "TNC", False)[0]
                outputs = [_named(F, step, f"t{t}_out") for t, step in enumerate(steps)]
        return outputs, [state]

    def _all_steps(self, F, sequence, state, lengths, weights):
        """sequence (T, N, C) → outputs (T, N, H), state (N, H), from NDArrays by way of `OneNode`."""
        def compute(sequence, state, lengths, *values):
            if lengths is not None:
                lengths = within(sequence, lengths)
                sequence = mask(sequence, lengths)
            own = with_dense_gradients(self, dict(zip(weights, values)))
            return layer_graph(sequence, state, own, self._activation, self._hidden_size, lengths, constant=constant)

        constant = F is mx.nd and not guard.has_history(sequence)
        arrays = [sequence, state, lengths, *weights.values()]
        return compute(*arrays) if F is mx.sym else self._one_node((in_use(), constant, lengths is None), compute, arrays)

    def _weights(self, F, sequence, begin_state):
        """The parameters by their names, as arrays or Symbols. Their shapes may still be open."""
        if F is mx.sym:
            return {name: parameter.var() for name, parameter in self._reg_params.items()}
        if any(parameter._deferred_init for parameter in self._reg_params.values()):
            self._deferred_infer_shape(sequence[0], begin_state)
            for parameter in self._reg_params.values():
                parameter._finish_deferred_init()
        return {name: parameter.data(sequence.context) for name, parameter in self._reg_params.items()}


def _named(F, value, name):
    """The value under the name that MXNet's cell gives it in a graph. Arrays have no names."""
    return F.identity(value, name=name) if F is mx.sym else value


def _check_lengths(name, lengths, steps, rows):
    if not isinstance(lengths, mx.nd.NDArray):
        raise TypeError(f"{name}: got {type(lengths).__name__}, needs an NDArray ({rows},), the steps of each row")
    if lengths.shape != (rows,):
        raise ValueError(f"{name}: got shape {lengths.shape}, needs ({rows},), the steps of each row")
    values = lengths.asnumpy()
    if not ((values >= 0) & (values <= steps) & (values == np.floor(values))).all():
        raise ValueError(f"{name}: got {values.tolist()}, needs integers from 0 to {steps}, the steps of inputs")


def _from_amp(value, dtype):
    """A value in the layer's own dtype, if MXNet's mixed precision (AMP) is in use. AMP leaves the recurrence in its dtype, as it
    does with MXNet's layers."""
    amp = sys.modules.get("mxnet.contrib.amp.amp")  # MXNet does not import it by itself
    if amp is None or not amp._amp_initialized or not isinstance(value, (mx.nd.NDArray, mx.sym.Symbol)):
        return value
    return (mx.sym if isinstance(value, mx.sym.Symbol) else mx.nd).amp_cast(value, dtype=np.dtype(dtype).name)


def _check_not_empty(inputs):
    if 0 in inputs.shape:
        raise ValueError(f"inputs: got shape {inputs.shape}, needs every dimension to be at least 1")


def _in_cpu(value):
    """An array in memory that processes share, as from a DataLoader's workers, copied to mx.cpu() (bug 16 in _mxnet_bugs.py);
    others as they are."""
    shared = isinstance(value, mx.nd.NDArray) and value.context.device_type in ("cpu_shared", "cpu_pinned")
    return value.as_in_context(mx.cpu(value.context.device_id)) if shared else value


def _each(values, function):
    """The function of each value, also of those in dicts, tuples and lists. None stays None."""
    if isinstance(values, dict):
        return {key: _each(value, function) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_each(value, function) for value in values)
    return None if values is None else function(values)
