"""Are the operators right? Their values and gradients are compared with the reference and with central differences.

The cases, their random numbers and the bounds are the same for MXNet and PyTorch. The reference is `rnn_ops.reference` for MXNet
and `rnn_ops.numpy_reference` for PyTorch, whose check needs no MXNet. How each calls an operator and gets its gradients is in
`rnn_ops.operators.autograd` and `rnn_ops.torch.autograd`.

Every case draws random arguments and a random cotangent (the gradient that arrives) for every result, and compares each
result and each gradient with another way to compute it:

- ``float64, reference``: the operator against the reference.
- ``float64, differences``: the operator's gradients against central differences of its own results.
- ``float64, reference's differences``: the reference's gradients against central differences of its results.
- ``float32, reference``: the float32 operator against the float64 reference on the same (float32) arguments.

Errors and the bound of float32 are those of `rnn_ops.exactness`; the second of the two is the truth.

``rnn-ops check`` runs it all; from Python, `check` takes other operators and other cases.
"""
import importlib
import itertools
import math
import numbers
from types import ModuleType
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional

import numpy as np

from rnn_ops.backends.arguments import NAMES, check_activation
from rnn_ops.exactness import FLOAT64_BOUND, float32_bound, relative_error

# Central differences, (f(x+s) - f(x-s)) / 2s, are off by s²/6·f''' from cutting off the Taylor series, with s = 2^-14
# 6e-10·f''', and from rounding: f adds up N elements, each off by about eps, eps·√N / 2s together, for the largest case
# (N = 524,288) 1e-9. Relative to f', the bound leaves room for an f''' of 100 times f', or an f' of 0.01.
STEP = 2.0 ** -14
DIFFERENCES_BOUND = 1e-7

# Tensors up to this size are differenced element by element, larger ones along a few random directions.
ELEMENTWISE = 64
DIRECTIONS = 4

COMPARISONS = ("float64, reference", "float64, differences", "float64, reference's differences", "float32, reference")
GRADIENTS = tuple("d" + name for name in NAMES)
TENSORS = ("outputs", "state") + GRADIENTS
OPERATORS, INPUTS, VALUES = ("sequence", "step"), ("dense", "tokens"), ("random", "one token", "saturated", "flat")
FRAMEWORKS = {"mxnet": "rnn_ops.operators.autograd", "torch": "rnn_ops.torch.autograd"}  # name: module


class Case(NamedTuple):
    """One set of arguments. A step has T = 1."""
    operator: str  # one of OPERATORS
    T: int
    B: int
    I: int
    H: int
    input: str = "dense"  # one of INPUTS
    values: str = "random"  # one of VALUES; "one token" for tokens only
    activation: str = "tanh"  # or "relu"

    def check(self) -> None:
        """Raise a ValueError that names the first field that has no meaning."""
        for name, known in [("operator", OPERATORS), ("input", INPUTS), ("values", VALUES)]:
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, needs {' or '.join(map(repr, known))}")
        check_activation(self.activation)
        for name in "TBIH":
            size = getattr(self, name)
            if not isinstance(size, numbers.Integral) or size < 1:
                raise ValueError(f"{name}: got {size!r}, needs an integer of at least 1")
        if self.operator == "step" and self.T != 1:
            raise ValueError(f"T: got {self.T}, needs 1 for a step")
        if self.values == "one token" and self.input != "tokens":
            raise ValueError(f"values: got 'one token', needs another word for {self.input} inputs")

    def __str__(self):
        words = f"{self.operator} T={self.T} B={self.B} I={self.I} H={self.H} {self.input} {self.values}"
        return words if self.activation == "tanh" else f"{words} {self.activation}"


class Row(NamedTuple):
    """One tensor of one case, compared."""
    case: Case
    comparison: str
    tensor: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def default_cases() -> List[Case]:
    """The grid of `check`: ones, primes and the workload's shape, dense and tokens, saturated states, and relu."""
    sequences = [(1, 1, 1, 1), (1, 2, 3, 5), (2, 1, 1, 3), (5, 3, 1, 2), (7, 1, 4, 1), (3, 2, 5, 7), (4, 5, 13, 11),
                 (31, 17, 23, 37), (64, 1, 77, 256), (64, 32, 77, 256)]
    steps = [(1, 1, 1), (1, 3, 2), (3, 5, 7), (17, 23, 37), (32, 77, 256)]
    shapes = [("sequence",) + shape for shape in sequences] + [("step", 1) + shape for shape in steps]
    cases = [Case(*shape, input=kind) for shape, kind in itertools.product(shapes, ("dense", "tokens"))]
    for shape in [(3, 2, 5, 7), (31, 17, 23, 37)]:
        cases.append(Case("sequence", *shape, input="tokens", values="one token"))
        cases += [Case("sequence", *shape, input=kind, values=values)
                  for kind, values in itertools.product(("dense", "tokens"), ("saturated", "flat"))]
    # Smaller ones for relu: central differences are wrong where a step crosses 0, and of many elements some are that near.
    shapes = [("sequence", 1, 1, 1, 1), ("sequence", 7, 1, 4, 1), ("sequence", 3, 2, 5, 7), ("sequence", 4, 5, 13, 11),
              ("step", 1, 3, 5, 7)]
    cases += [Case(*shape, input=kind, activation="relu") for shape, kind in itertools.product(shapes, ("dense", "tokens"))]
    return cases


def _framework(name: str) -> ModuleType:
    """The module of a framework in FRAMEWORKS. An ImportError says why it cannot be had."""
    if name not in FRAMEWORKS:
        raise ValueError(f"framework: got {name!r}, needs {' or '.join(map(repr, FRAMEWORKS))}")
    return importlib.import_module(FRAMEWORKS[name])


def check(rnn_step: Optional[Callable] = None, rnn_sequence: Optional[Callable] = None, cases: Optional[Iterable[Case]] = None,
          report: Optional[Callable] = None, framework: str = "mxnet") -> List[Row]:
    """Compare operators with the reference and with central differences.

    Parameters
    ----------
    rnn_step, rnn_sequence : callable
        The operators to check; with the arguments and results of those of `rnn_ops`, which are the default. With PyTorch the
        default is `rnn_ops.torch.rnn_sequence`, and a step is a sequence of one.
    cases : iterable of Case
        By default those of `default_cases`.
    report : callable
        Called with (number of the case, number of cases, case, its rows) after every case.
    framework : "mxnet" or "torch"

    Returns
    -------
    list of Row
        One for each case, comparison and tensor. The check has passed if all of them have.

    Raises
    ------
    ValueError
        A field of a case has no meaning. Nothing has been computed.

    Examples
    --------
    >>> from rnn_ops import gradcheck
    >>> all(row.passed for row in gradcheck.check(cases=[gradcheck.Case("sequence", 2, 1, 3, 4)]))
    True
    """
    cases = default_cases() if cases is None else list(cases)
    for case in cases:
        case.check()
    autograd = _framework(framework)
    functions = autograd.functions(rnn_step, rnn_sequence)
    rows = []
    for number, case in enumerate(cases, 1):
        new = list(_check_case(case, autograd.Differentiated(functions[case.operator], case.activation),
                               autograd.truth(case.operator, case.activation)))
        rows += new
        if report:
            report(number, len(cases), case, new)
    return rows


def _check_case(case, operator, truth):
    arguments, cotangents = draw(case)

    ours, theirs = (_by_name(function, arguments, cotangents) for function in (operator, truth))
    for tensor in ours:
        yield Row(case, "float64, reference", tensor, relative_error(ours[tensor], theirs[tensor]), FLOAT64_BOUND)
    for function, found, comparison in ((operator, ours, "float64, differences"),
                                        (truth, theirs, "float64, reference's differences")):
        for tensor, error in _errors_of_differences(function, found, arguments, cotangents):
            yield Row(case, comparison, tensor, error, DIFFERENCES_BOUND)

    single, cotangents = ([_as(np.float32, array) for array in arrays] for arrays in (arguments, cotangents))
    ours, theirs = (_by_name(function, single, cotangents) for function in (operator, truth))
    exact = _by_name(truth, *([_as(np.float64, array) for array in arrays] for arrays in (single, cotangents)))
    for tensor in ours:
        bound = float32_bound(relative_error(theirs[tensor], exact[tensor]))
        yield Row(case, "float32, reference", tensor, relative_error(ours[tensor], exact[tensor]), bound)


def draw(case: Case) -> tuple:
    """(arguments, cotangents) of a case, as lists of NumPy arrays; always the same ones.

    `exactness.draw` draws for other checks. Here the states stay away from ±1 for every shape, so that central differences
    are exact, and the README states the errors of these numbers.
    """
    case.check()
    random = np.random.RandomState(0)
    steps = () if case.operator == "step" else (case.T,)
    if case.input == "dense":
        inputs = random.uniform(-1, 1, size=steps + (case.B, case.I))
    elif case.values == "one token":
        inputs = np.full(steps + (case.B,), case.I // 2, np.int32)
    else:
        inputs = random.randint(case.I, size=steps + (case.B,)).astype(np.int32)
    # The argument of tanh is about 1 at most, however long its sums: neither linear nor flat, and nothing grows from
    # step to step.
    state = random.uniform(-1, 1, size=(case.B, case.H))
    Wxh = random.uniform(-0.5, 0.5, size=(case.I, case.H)) / math.sqrt(case.I if case.input == "dense" else 1)
    Whh = random.uniform(-0.5, 0.5, size=(case.H, case.H)) / math.sqrt(case.H)
    bh = random.uniform(-0.3, 0.3, size=case.H)
    if case.values == "saturated":  # many states within 1e-3 of ±1, others not
        Wxh, bh = 10 * Wxh, 10 * bh
    elif case.values == "flat":  # every state is ±1 to the last bit, every gradient exactly 0
        bh = np.sign(bh) * 1000
    shapes = [steps + (case.B, case.H)] + ([(case.B, case.H)] if steps else [])
    return [inputs, state, Wxh, Whh, bh], [random.normal(size=shape) for shape in shapes]


def _as(dtype, array):
    """Floats in another precision; tokens as they are."""
    return array if array.dtype == np.int32 else array.astype(dtype)


def values_and_gradients(function: Callable, arguments: list, cotangents: list,
                         framework: str = "mxnet") -> Dict[str, np.ndarray]:
    """Every result and every gradient of a step or a sequence by its name in TENSORS, as NumPy arrays."""
    return _by_name(_framework(framework).Differentiated(function), arguments, cotangents)


def _by_name(function, arguments, cotangents):
    results, gradients = function.results_and_gradients(arguments, cotangents)
    found = dict(zip(("outputs", "state") if len(results) == 2 else ("state",), results))
    found.update((name, gradient) for name, gradient in zip(GRADIENTS, gradients) if gradient is not None)
    return found


def _errors_of_differences(function, found, arguments, cotangents):
    """Yield (name, error) of each gradient in ``found``, against central differences of the results."""
    def results_at(index, value):
        return function.results(arguments[:index] + [value] + arguments[index + 1:])

    random = np.random.RandomState(1)
    for index, tensor in enumerate(GRADIENTS):
        if tensor not in found:
            continue
        size, shape = found[tensor].size, found[tensor].shape
        if size <= ELEMENTWISE:
            directions = np.eye(size)
        else:  # of length 1 too, so that a step is as small as one along an element
            directions = random.choice([-1.0, 1.0], size=(DIRECTIONS, size)) / math.sqrt(size)
        differences = []
        for direction in directions:
            move = STEP * direction.reshape(shape)
            ends = results_at(index, arguments[index] + move), results_at(index, arguments[index] - move)
            # The results are subtracted before they are added up: the sum then rounds in proportion to the difference.
            difference = sum(np.vdot(a - b, cotangent) for a, b, cotangent in zip(*ends, cotangents))
            differences.append(difference / (2 * STEP))
        yield tensor, relative_error(directions @ found[tensor].ravel(), np.array(differences))
