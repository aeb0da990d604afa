"""How far a result may be from the truth: problems drawn at random, their truth, errors, and bounds on errors.

All checks and benchmarks of the recurrence share these. Needs NumPy alone; a problem's arrays may be CuPy's.
"""
import math
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import numpy as np

from rnn_ops import numpy_reference

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
FLOAT64_BOUND = 1e-9

# float32 rounds differently in every order of summation. So a result may be three times as far off as another float32
# evaluation of the same arguments, plus a floor for where that one happens to be exact. The floor: 4 ulp in a tanh near 1 are
# 2 eps, thus 4 eps in the derivative 1 - h², a relative 16 eps where that is 1/4; and once more for the sums.
FLOAT32_FACTOR = 3
FLOAT32_FLOOR = 32 * float(np.finfo(np.float32).eps)


class Problem(NamedTuple):
    """Arguments of forward and backward, NumPy's or CuPy's arrays. Either gradient of the results may be None."""
    inputs: Any
    state: Any
    Wxh: Any
    Whh: Any
    bh: Any
    doutputs: Optional[Any]
    dlast_state: Optional[Any]
    activation: str = "tanh"

    @property
    def arrays(self) -> tuple:
        return self[:-1]

    @property
    def shape(self) -> Tuple[int, int, int]:
        """T, B, H"""
        return len(self.inputs), *self.state.shape

    def map(self, function: Callable) -> "Problem":
        """The problem with ``function`` applied to each array."""
        return Problem(*(array if array is None else function(array) for array in self.arrays), self.activation)

    def astype(self, dtype) -> "Problem":
        """The floats in another precision, tokens as they are."""
        return self.map(lambda array: array if array.dtype == np.int32 else array.astype(dtype))


def draw(T: int, B: int, I: int, H: int, dtype=FLOAT32, tokens: bool = True, scale: float = 1,
         activation: str = "tanh") -> Problem:
    """A Problem, always the same one for the same shape. A ``scale`` of 10 saturates most states."""
    random = np.random.RandomState(0)
    inputs = random.randint(I, size=(T, B)).astype(np.int32) if tokens else random.randn(T, B, I)
    state = random.uniform(-1, 1, size=(B, H))
    Wxh, Whh, bh = (weights(random, size, H) for size in ((I, H), (H, H), (H,)))
    doutputs = random.randn(T, B, H)
    dlast_state = np.random.RandomState(1).standard_normal((B, H))
    # float64 gets the numbers of float32, so that both are given the same problem.
    return Problem(inputs, state, scale * Wxh, Whh, scale * bh, doutputs, dlast_state,
                   activation).astype(FLOAT32).astype(dtype)


def weights(random: np.random.RandomState, size: Tuple[int, ...], H: int) -> np.ndarray:
    """float32 weights: so large that tanh bends and gradients reach far back, so small that it does not saturate."""
    return random.uniform(-1, 1, size=size).astype(np.float32) / np.float32(np.sqrt(H))


def evaluate(problem: Problem) -> Dict[str, Any]:
    """outputs and all gradients by name, in the problem's own precision, on its own kind of arrays."""
    outputs = numpy_reference.forward(*problem[:5], activation=problem.activation)
    doutputs = (numpy_reference.namespace(outputs).zeros_like(outputs) if problem.doutputs is None
                else problem.doutputs.copy())
    if problem.dlast_state is not None:
        doutputs[-1] += problem.dlast_state
    return dict(numpy_reference.backward(*problem[:4], outputs, doutputs, activation=problem.activation), outputs=outputs)


def bounds(problem: Problem, truth: Dict[str, np.ndarray], evaluate: Callable = evaluate) -> Dict[str, float]:
    """The largest error allowed for each tensor."""
    if problem.state.dtype == FLOAT64:
        return dict.fromkeys(truth, FLOAT64_BOUND)
    return {name: float32_bound(relative_error(array, truth[name])) for name, array in evaluate(problem).items()}


def float32_bound(error: float) -> float:
    """The largest error allowed in float32 where another float32 evaluation has this error."""
    return FLOAT32_FACTOR * error + FLOAT32_FLOOR


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|, b the truth: relative to its largest element, so that elements near zero count for no more
    than they weigh. Where b is all zero, 0 if a is too, else infinite. Infinite where either is not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    difference, scale = np.abs(a - b).max(), np.abs(b).max()
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / scale)


def different_cells(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements differ in any bit."""
    bits = f"u{a.dtype.itemsize}"
    return int(np.count_nonzero(np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)))
