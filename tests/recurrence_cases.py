"""The recurrence on random arguments, and how far a backend is from float64: for the tests of every backend.

`rnn_ops.exactness` draws problems for self-tests and benchmarks. These have larger recurrent weights, so that gradients reach
further back, and a tighter bound.
"""
import numpy as np

from rnn_ops import numpy_reference
from rnn_ops.exactness import FLOAT32_FACTOR, FLOAT32_FLOOR


def random_case(shape, dtype, tokens, seed=0):
    """(arguments of forward, doutputs, dlast_state) with gradients that reach far back."""
    T, B, I, H = shape
    random = np.random.RandomState(seed)

    def uniform(*size, scale=1.0):
        return random.uniform(-scale, scale, size).astype(dtype)

    inputs = random.randint(I, size=(T, B)).astype(np.int32) if tokens else uniform(T, B, I)
    arrays = (inputs, uniform(B, H), uniform(I, H, scale=I ** -0.5), uniform(H, H, scale=1.7 * H ** -0.5), uniform(H))
    return arrays, uniform(T, B, H), uniform(B, H)


def run(backend, arrays, doutputs, dlast_state, **options):
    """Results by name; elements that the backend does not write are NaN. `options` go to both of its functions."""
    inputs, state, Wxh, Whh, bh = arrays
    outputs = np.full(doutputs.shape, np.nan, state.dtype)
    backend.forward(*arrays, outputs, **options)
    wanted = {"dstate": state, "dWxh": Wxh, "dWhh": Whh, "dbh": bh}
    if inputs.ndim == 3:
        wanted["dinputs"] = inputs
    gradients = {name: np.full(array.shape, np.nan, state.dtype) for name, array in wanted.items()}
    backend.backward(inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, **gradients, **options)
    return dict(gradients, outputs=outputs)


class _InOrder(np.ndarray):
    """A matrix whose products add one term after the other."""
    __module__ = "numpy"  # NumPy's other functions take it

    def __matmul__(self, other):
        left, right = np.asarray(self), np.asarray(other)
        total = np.zeros(left.shape[:-1] + right.shape[1:], left.dtype)
        for k in range(len(right)):
            total += left[..., k:k + 1] * right[k]
        return total.view(_InOrder)


def evaluate(arrays, doutputs, dlast_state, dtype, activation="tanh", signs=None):
    """The same in plain NumPy at the given precision. ``signs``: outputs that say where relu is above 0, or None."""
    inputs, *floats = (array if array.dtype == np.int32 else array.astype(dtype) for array in arrays)
    outputs = numpy_reference.forward(inputs, *floats, activation=activation)
    states = outputs if signs is None else np.where(signs > 0, np.maximum(outputs, np.finfo(dtype).tiny), 0)
    doutputs = doutputs.astype(dtype)
    doutputs[-1] += dlast_state.astype(dtype)
    return dict(numpy_reference.backward(inputs, *floats[:3], states, doutputs, activation=activation), outputs=outputs)


def errors(got, truth, shape):
    """The largest error of each result, relative to its largest value. Sums of n random terms, which are about √n large,
    may cancel to far less; the error is then that of the terms."""
    T, B, I, H = shape
    usual = {"dWxh": 0.1 * np.sqrt(T * B), "dWhh": 0.1 * np.sqrt(T * B), "dbh": 0.1 * np.sqrt(T * B)}
    return {name: np.max(np.abs(got[name] - truth[name])) / max(np.max(np.abs(truth[name])), usual.get(name, 0.1))
            for name in truth}


def check(backend, shape, dtype, tokens, seed=0, activation="tanh", **options):
    """Compare with float64. The bound of float32 is three times the error of plain NumPy in float32, with BLAS's sums or
    with sums of one term after the other, or half the floor of `exactness` (1.9e-6) if both happen to be exact. The bound of
    float64 is the length of the longest chain of roundings, since nothing more exact is at hand."""
    case = random_case(shape, dtype, tokens, seed)

    def errors_of(results):
        # Where relu's argument rounds to the other side of 0, its derivative is rightly another one: the truth of the
        # gradients takes each result's own side. The truth of the outputs is the same for all.
        signs = results["outputs"] if activation == "relu" else None
        return errors(results, evaluate(*case, np.float64, activation, signs), shape)

    got = errors_of(run(backend, *case, activation=activation, **options))
    if dtype == "float32":
        arrays, *gradients = case
        in_order = tuple(array.view(_InOrder) for array in arrays), *gradients
        measured = [errors_of(evaluate(*numbers, dtype, activation)) for numbers in (case, in_order)]
        bound = {name: max(FLOAT32_FACTOR * max(errors[name] for errors in measured), FLOAT32_FLOOR / 2) for name in got}
    else:
        T, B, I, H = shape
        bound = dict.fromkeys(got, (32 + T * (H + I)) * 2.0 ** -53)
    assert all(got[name] <= bound[name] for name in bound), (got, bound)
