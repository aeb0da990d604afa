"""The operators and their reference, differentiated by MXNet's autograd, on NumPy arrays: MXNet's part of `rnn_ops.gradcheck`.

New arrays go to MXNet's current context.
"""
import functools

import numpy as np

from rnn_ops import operators, reference
from rnn_ops._mxnet import mx


def functions(rnn_step=None, rnn_sequence=None):
    """{"step": function, "sequence": function}; by default the operators."""
    return {"step": rnn_step or operators.rnn_step, "sequence": rnn_sequence or operators.rnn_sequence}


def truth(operator, activation):
    """`rnn_ops.reference`, differentiated; operator: "step" or "sequence"."""
    return Differentiated(getattr(reference, f"rnn_{operator}"), activation)


class Differentiated:
    """A step or a sequence of NDArrays, as a function of NumPy arrays."""

    def __init__(self, function, activation="tanh"):
        self._function = function if activation == "tanh" else functools.partial(function, activation=activation)

    def results(self, arguments):
        """The results, as a list."""
        return [result.asnumpy() for result in self._call(map(_ndarray, arguments))]

    def results_and_gradients(self, arguments, cotangents):
        """(results, gradients of the arguments): two lists, with None for the gradient of tokens."""
        arrays = list(map(_ndarray, arguments))
        variables = [None if array.dtype == np.int32 else array for array in arrays]
        for array in filter(lambda array: array is not None, variables):
            array.attach_grad()
        with mx.autograd.record():
            results = self._call(arrays)
        mx.autograd.backward(results, list(map(_ndarray, cotangents)))
        return ([result.asnumpy() for result in results],
                [None if array is None else array.grad.asnumpy() for array in variables])

    def _call(self, arrays):
        results = self._function(*arrays)
        return list(results) if isinstance(results, (tuple, list)) else [results]


def _ndarray(array):
    return mx.nd.array(array, dtype=array.dtype)
