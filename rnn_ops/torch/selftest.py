"""PyTorch's own checks of the operators: are they differentiable twice, and registered as torch.compile and torch.export need it?

`torch.autograd.gradcheck` and `gradgradcheck` on the small cases of `rnn_ops.gradcheck`, `torch.library.opcheck` on a call with
floats and one with tokens. ``rnn-ops check --framework torch`` runs them.
"""
import functools
from typing import List, NamedTuple

import torch

from rnn_ops import gradcheck
from rnn_ops.torch import functions, operator

SMALL = 200  # elements of all arguments: gradcheck calls the operator twice for each
REGISTRATION = gradcheck.Case("sequence", 3, 2, 5, 7)
_TESTS = {"gradcheck": torch.autograd.gradcheck, "gradgradcheck": torch.autograd.gradgradcheck}


class Outcome(NamedTuple):
    """One check of one case."""
    check: str
    case: gradcheck.Case
    reason: str = ""  # why it failed

    @property
    def passed(self) -> bool:
        return not self.reason

    def __str__(self):
        return f"{self.check}, {self.case}" + (f": {self.reason}" if self.reason else "")


def run() -> List[Outcome]:
    """Run every check. New tensors go to PyTorch's default device."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)  # gradgradcheck draws the gradients that arrive
        for case in gradcheck.default_cases():
            arguments, _ = gradcheck.draw(case)
            if case.operator == "sequence" and sum(array.size for array in arguments) <= SMALL:
                for name, test in _TESTS.items():
                    found.append(_attempt(name, case, test, functools.partial(functions.rnn_sequence, activation=case.activation),
                                          _tensors(arguments)))
    for kind in gradcheck.INPUTS:
        case = REGISTRATION._replace(input=kind)
        found.append(_attempt("opcheck", case, torch.library.opcheck, operator.rnn_sequence,
                              (*_tensors(gradcheck.draw(case)[0]), case.activation)))
    return found


def _tensors(arguments):
    return [tensor.requires_grad_(tensor.is_floating_point()) for tensor in map(torch.tensor, arguments)]


def _attempt(name, case, test, *arguments):
    try:
        test(*arguments)
    except Exception as error:  # every failure belongs into the list
        return Outcome(name, case, " ".join(f"{type(error).__name__}: {error}".split())[:300])
    return Outcome(name, case)
