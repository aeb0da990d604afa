"""The recurrence as ``mx.operator.CustomOp``s, registered on import: ``rnn_ops_step`` and ``rnn_ops_sequence``, and the
functions that call them.

Here are shapes, types, ``req`` and errors; memory and arithmetic are a device's (devices.py). A step is a sequence with T = 1.
Besides its arguments, the backward pass needs nothing but the outputs.

An exception in a callback reaches the user in MXNet's way: its traceback is printed, and an MXNetError is raised where
the graph is bound or, if data had to be seen first, at the next wait for a result.
"""
import atexit
from typing import Tuple, Union

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments
from rnn_ops.operators.devices import device_for
from rnn_ops.operators.ndarray import Array

__all__ = ["rnn_step", "rnn_sequence", "call", "looks_at_tokens", "Recurrence", "RecurrenceProp", "Step", "Sequence"]

# A script that ends right after backward() leaves a custom operator in the queue, and MXNet's shutdown hangs or aborts (bug 9 in
# _mxnet_bugs.py). This runs before that.
atexit.register(mx.nd.waitall)

_OVERWRITE = ("write", "inplace")
_UNKNOWN = -1  # a dimension that MXNet does not know yet
_TOKENS_CHECKED = "__rnn_ops_tokens_checked__"  # attribute of a call on NDArrays whose tokens have been looked at


class Recurrence(mx.operator.CustomOp):
    """The operator of one graph node: lets a device compute on the memory that MXNet hands over."""

    def __init__(self, device, step, activation="tanh", tokens_checked=False):
        super().__init__()
        self._device = device
        self._step = step
        self._activation = activation
        self._tokens_checked = tokens_checked

    def forward(self, is_train, req, in_data, out_data, aux):
        if all(r == "null" for r in req):
            return
        device = self._device
        with device.active():
            inputs, state, Wxh, Whh, bh = map(device.view, in_data)
            if not (self._tokens_checked or device.looks_at_tokens):
                device.check_tokens(inputs, len(Wxh))
            outputs = self._room(out_data[0], req[0])
            device.forward(self._sequence(inputs), state, Wxh, Whh, bh, self._sequence(outputs),
                           activation=self._activation)
            self._deliver(out_data[0], req[0], outputs)
            if not self._step and req[1] != "null":
                last_state = self._room(out_data[1], req[1])
                last_state[:] = outputs[-1]
                self._deliver(out_data[1], req[1], last_state)

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        device = self._device
        # MXNet hands over the arrays that the user has given for these, of any shape (bug 7 in _mxnet_bugs.py).
        for name, array, of in zip(("doutputs", "dlast_state"), out_grad, out_data):
            _check_same(name, array, of)
        for name, array, of, r in zip(arguments.NAMES, in_grad, in_data, req):
            if r != "null":
                _check_same("d" + name, array, of)
        with device.active():
            inputs, state, Wxh, Whh = map(device.view, in_data[:4])
            gradients = [None if r == "null" else self._room(array, r) for array, r in zip(in_grad, req)]
            if inputs.dtype == arguments.TOKENS and gradients[0] is not None:
                gradients[0][:] = 0  # which MXNet takes for the gradient of integers
                dinputs = None
            else:
                dinputs = self._sequence(gradients[0])
            device.backward(
                self._sequence(inputs), state, Wxh, Whh, self._sequence(device.view(out_data[0])),
                doutputs=self._sequence(device.view(out_grad[0])),
                dlast_state=None if self._step else device.view(out_grad[1]),
                dinputs=dinputs, dstate=gradients[1], dWxh=gradients[2], dWhh=gradients[3], dbh=gradients[4],
                activation=self._activation)
            for array, r, gradient in zip(in_grad, req, gradients):
                self._deliver(array, r, gradient)

    def _sequence(self, array):
        """The array of one step as that of a sequence of one."""
        return array[np.newaxis] if self._step and array is not None else array

    def _room(self, array, req):
        """Memory to overwrite with a result: MXNet's own where ``req`` allows it, else a temporary."""
        return self._device.view(array) if req in _OVERWRITE else self._device.empty(array.shape, array.dtype)

    def _deliver(self, array, req, result):
        """Add a result where ``req`` says so. A result to be written is in its memory already."""
        if req == "add":
            total = self._device.view(array)
            total += result


class RecurrenceProp(mx.operator.CustomOpProp):
    """Tells MXNet about both operators: arguments, results, and the shapes and types that follow."""
    step = None
    results = None  # letters of the shape by name

    def __init__(self, activation="tanh", **attributes):
        # MXNet hands over every attribute of the node, its own and the user's, and an exception here is a segmentation fault
        # (bug 10 in _mxnet_bugs.py). So `list_arguments`, which may fail, complains about them.
        super().__init__()
        self._activation = activation
        self._tokens_checked = _TOKENS_CHECKED in attributes
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
        # bh and the last state are not needed, but to leave them out is an error (bug 11 in _mxnet_bugs.py). Both are small.
        return [*out_grad, *in_data, *out_data]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        dtypes = [mx.nd.ndarray._DTYPE_MX_TO_NP[code] for code in in_dtypes]
        arguments.check(*[arguments.Described(*known) for known in zip(in_shapes, dtypes)], step=self.step)
        return Recurrence(device_for(ctx), self.step, self._activation, self._tokens_checked)


@mx.operator.register("rnn_ops_step")
class Step(RecurrenceProp):
    """inputs (B, I) or (B,), state, Wxh, Whh, bh → state (B, H)."""
    step = True
    results = {"state": "BH"}


@mx.operator.register("rnn_ops_sequence")
class Sequence(RecurrenceProp):
    """inputs (T, B, I) or (T, B), state, Wxh, Whh, bh → outputs (T, B, H), state (B, H)."""
    step = False
    results = {"outputs": "TBH", "state": "BH"}


def rnn_step(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array, activation: str = "tanh") -> Array:
    """`rnn_ops.rnn_step` on the CustomOp: five NDArrays or five Symbols. Faults are MXNetErrors."""
    return _custom(True, (inputs, state, Wxh, Whh, bh), activation=activation)


def rnn_sequence(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array,
                 activation: str = "tanh") -> Tuple[Array, Array]:
    """`rnn_ops.rnn_sequence` on the CustomOp: five NDArrays or five Symbols. Faults are MXNetErrors."""
    outputs, state = _custom(False, (inputs, state, Wxh, Whh, bh), activation=activation)
    return outputs, state


def call(step: bool, values: Tuple[Array, ...], activation: str) -> Union[Array, Tuple[Array, Array]]:
    """A step or a sequence of five NDArrays, which have been checked with their tokens, or of five Symbols."""
    checked = {_TOKENS_CHECKED: "1"} if isinstance(values[0], mx.nd.NDArray) else {}
    return _custom(step, values, activation=activation, **checked)


def looks_at_tokens(context: mx.Context) -> bool:
    """Whether a call checks that tokens are in [0, I). This operator always does, if need be with a copy that it waits for."""
    return True


def _custom(step, values, **attributes):
    module = mx.nd if isinstance(values[0], mx.nd.NDArray) else mx.sym
    results = module.Custom(*values, op_type="rnn_ops_step" if step else "rnn_ops_sequence", **attributes)
    return results if step else tuple(results)


def _check_same(name, gradient, of):
    """Raise an error where a gradient has not the shape and dtype of the array that it is a gradient of."""
    if gradient.shape != of.shape:
        raise ValueError(f"{name}: got shape {gradient.shape}, needs {of.shape}")
    if gradient.dtype != of.dtype:
        raise TypeError(f"{name}: got dtype {arguments.dtype_name(gradient.dtype)}, needs {np.dtype(of.dtype)}")
