"""The operator, differentiated by PyTorch's autograd, on NumPy arrays, and its truth: PyTorch's part of `rnn_ops.gradcheck`.

There is no operator for a step. A step is a sequence of T = 1 of which only the last state is used, so a gradient arrives at that
alone.

New tensors go to PyTorch's default device: ``with torch.device("cuda"):`` checks there.
"""
import functools

import torch

from rnn_ops import numpy_reference
from rnn_ops.backends.arguments import NAMES
from rnn_ops.exactness import Problem, evaluate
from rnn_ops.torch import functions as public


def functions(rnn_step=None, rnn_sequence=None):
    """{"step": function, "sequence": function}; by default the operator, and the step is made of the sequence."""
    sequence = rnn_sequence or public.rnn_sequence
    return {"step": rnn_step or functools.partial(_step, sequence), "sequence": sequence}


def _step(sequence, inputs, *others, **options):
    return sequence(inputs[None], *others, **options)[1]


class Differentiated:
    """A step or a sequence of tensors, as a function of NumPy arrays."""

    def __init__(self, function, activation="tanh"):
        self._function = function if activation == "tanh" else functools.partial(function, activation=activation)

    def results(self, arguments):
        """The results, as a list."""
        with torch.no_grad():
            return _arrays(self._call(map(torch.tensor, arguments)))

    def results_and_gradients(self, arguments, cotangents):
        """(results, gradients of the arguments): two lists, with None for the gradient of tokens."""
        tensors = list(map(torch.tensor, arguments))
        variables = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
        results = self._call(tensors)
        found = iter(_arrays(torch.autograd.grad(results, variables, list(map(torch.tensor, cotangents)))))
        return _arrays(results), [next(found) if tensor.requires_grad else None for tensor in tensors]

    def _call(self, tensors):
        results = self._function(*tensors)
        return list(results) if isinstance(results, (tuple, list)) else [results]


def _arrays(tensors):
    return [tensor.numpy(force=True) for tensor in tensors]


def truth(operator, activation):
    """`rnn_ops.numpy_reference`, whose gradients are written by hand; operator: "step" or "sequence"."""
    return _Truth(operator == "step", activation)


class _Truth:
    def __init__(self, step, activation):
        self._step, self._activation = step, activation

    def results(self, arguments):
        inputs, *others = arguments
        outputs = numpy_reference.forward(inputs[None] if self._step else inputs, *others, self._activation)
        return [outputs[-1]] if self._step else [outputs, outputs[-1]]

    def results_and_gradients(self, arguments, cotangents):
        inputs, *others = arguments
        doutputs, dlast_state = (None, *cotangents) if self._step else cotangents
        found = evaluate(Problem(inputs[None] if self._step else inputs, *others, doutputs, dlast_state, self._activation))
        gradients = [found.get(f"d{name}") for name in NAMES]
        if self._step and gradients[0] is not None:
            gradients[0] = gradients[0][0]
        return self.results(arguments), gradients
