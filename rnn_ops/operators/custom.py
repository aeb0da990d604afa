"""The recurrence as ``mx.operator.CustomOp``s, registered on import: ``rnn_ops_step`` and ``rnn_ops_sequence``, and the
functions that call them.

Shapes, types, ``req`` and errors; memory and arithmetic are those of a place (places.py). A step is a sequence with T = 1.
Besides its arguments, the backward pass needs nothing but the outputs.

An exception in a callback reaches the user in MXNet's way: its traceback is printed, and an MXNetError is raised where
the graph is bound or, if data had to be seen first, at the next wait for a result.
"""
import atexit

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators.devices import device_for

# A script that ends right after backward() leaves a custom operator in the queue. MXNet's own shutdown then waits for it,
# or takes its threads away, while it needs the interpreter: a hang or an abort. This runs before that.
atexit.register(mx.nd.waitall)

_OVERWRITE = ("write", "inplace")
_UNKNOWN = -1  # a dimension that MXNet does not know yet


class Recurrence(mx.operator.CustomOp):
    """The operator of one graph node: computes in its place on the memory that MXNet hands over."""

    def __init__(self, place, step, activation="tanh"):
        super().__init__()
        self._place = place
        self._step = step
        self._activation = activation

    def forward(self, is_train, req, in_data, out_data, aux):
        if all(r == "null" for r in req):
            return
        place = self._place
        with place.active():
            inputs, state, Wxh, Whh, bh = map(place.view, in_data)
            outputs = self._room(out_data[0], req[0])
            place.forward(self._sequence(inputs), state, Wxh, Whh, bh, self._sequence(outputs),
                          activation=self._activation)
            self._deliver(out_data[0], req[0], outputs)
            if not self._step and req[1] != "null":
                last_state = self._room(out_data[1], req[1])
                last_state[:] = outputs[-1]
                self._deliver(out_data[1], req[1], last_state)

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        place = self._place
        with place.active():
            inputs, state, Wxh, Whh = map(place.view, in_data[:4])
            gradients = [None if r == "null" else self._room(array, r) for array, r in zip(in_grad, req)]
            if inputs.dtype == arguments.TOKENS and gradients[0] is not None:
                gradients[0][:] = 0  # what MXNet takes for the gradient of integers
                dinputs = None
            else:
                dinputs = self._sequence(gradients[0])
            place.backward(
                self._sequence(inputs), state, Wxh, Whh, self._sequence(place.view(out_data[0])),
                doutputs=self._sequence(place.view(out_grad[0])),
                dlast_state=None if self._step else place.view(out_grad[1]),
                dinputs=dinputs, dstate=gradients[1], dWxh=gradients[2], dWhh=gradients[3], dbh=gradients[4],
                activation=self._activation)
            for array, r, gradient in zip(in_grad, req, gradients):
                self._deliver(array, r, gradient)

    def _sequence(self, array):
        """The array of one step as that of a sequence of one."""
        return array[np.newaxis] if self._step and array is not None else array

    def _room(self, array, req):
        """Memory to overwrite with a result: MXNet's own where ``req`` allows it, else a temporary."""
        return self._place.view(array) if req in _OVERWRITE else self._place.empty(array.shape, array.dtype)

    def _deliver(self, array, req, result):
        """Put a result where ``req`` wants it. What was to be written is there already."""
        if req == "add":
            total = self._place.view(array)
            total += result


class _Recurrence(mx.operator.CustomOpProp):
    """What both operators say of themselves: arguments, results, and the shapes and types that follow."""
    step = None
    results = None  # letters of the shape by name

    def __init__(self, activation="tanh", **attributes):
        # MXNet hands over every attribute of the node: its own notes (control flow leaves some) and the user's. An exception
        # here is a segmentation fault, so what is wrong with them waits for the first question that may fail.
        super().__init__()
        self._activation = activation
        self._unknown = [name for name in attributes if not name.startswith("__")]

    def list_arguments(self):
        if self._unknown:
            raise TypeError(f"attributes: got {self._unknown[0]!r}, needs activation only")
        arguments.check_activation(self._activation)
        return list(arguments.NAMES)

    def list_outputs(self):
        return list(self.results)

    def infer_shape(self, in_shape):
        known = [shape or None for shape in in_shape]  # MXNet gives no dimensions where it knows none
        sizes = arguments.sizes(known, self.step)

        def fill_in(patterns):
            return [[sizes.get(letter, _UNKNOWN) for letter in pattern] for pattern in patterns]

        return fill_in(arguments.letters(known[0], self.step)), fill_in(self.results.values())

    def infer_type(self, in_type):
        floats = [dtype for dtype in in_type if dtype not in (None, np.int32)]
        if floats:
            dtype = floats[0]
        else:  # MXNet's default, once something is known
            dtype = np.float32 if np.int32 in in_type else None
        return [dtype if known is None else known for known in in_type], [dtype] * len(self.results)

    def infer_storage_type(self, in_stype):
        for name, stype in zip(arguments.NAMES, in_stype):
            if stype != "default":
                raise TypeError(f"{name}: got an array of storage {stype}, needs a dense one")
        return super().infer_storage_type(in_stype)

    def infer_storage_type_backward(self, ograd_stype, in_stype, out_stype, igrad_stype, aux_stype):
        for name, stype in zip(arguments.NAMES, igrad_stype):
            if stype not in ("default", "undefined"):
                raise TypeError(f"{name}: got a gradient of storage {stype}, needs a dense one: attach_grad()")
        return super().infer_storage_type_backward(ograd_stype, in_stype, out_stype, igrad_stype, aux_stype)

    def declare_backward_dependency(self, out_grad, in_data, out_data):
        # Of these, bh and the last state are not needed. Left out, they reach the backward callback as arrays with no
        # storage, which MXNet 1.9.1 trips over ("unknown storage type: -1") where another custom operator with other
        # dependencies is in use: it remembers those of one operator only, the latest. Both are small.
        return [*out_grad, *in_data, *out_data]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        dtypes = [mx.nd.ndarray._DTYPE_MX_TO_NP[code] for code in in_dtypes]
        arguments.check(*[arguments.Described(*known) for known in zip(in_shapes, dtypes)], step=self.step)
        return Recurrence(device_for(ctx), self.step, self._activation)


@mx.operator.register("rnn_ops_step")
class Step(_Recurrence):
    """inputs (B, I) or (B,), state, Wxh, Whh, bh → state (B, H)."""
    step = True
    results = {"state": "BH"}


@mx.operator.register("rnn_ops_sequence")
class Sequence(_Recurrence):
    """inputs (T, B, I) or (T, B), state, Wxh, Whh, bh → outputs (T, B, H), state (B, H)."""
    step = False
    results = {"outputs": "TBH", "state": "BH"}


def rnn_step(inputs, state, Wxh, Whh, bh, activation="tanh"):
    """`rnn_ops.rnn_step` on the CustomOp: five NDArrays or five Symbols. Faults are MXNetErrors."""
    return _call("rnn_ops_step", (inputs, state, Wxh, Whh, bh), activation)


def rnn_sequence(inputs, state, Wxh, Whh, bh, activation="tanh"):
    """`rnn_ops.rnn_sequence` on the CustomOp: five NDArrays or five Symbols. Faults are MXNetErrors."""
    outputs, state = _call("rnn_ops_sequence", (inputs, state, Wxh, Whh, bh), activation)
    return outputs, state


def _call(op_type, values, activation):
    module = mx.nd if isinstance(values[0], mx.nd.NDArray) else mx.sym
    return module.Custom(*values, op_type=op_type, activation=activation)
