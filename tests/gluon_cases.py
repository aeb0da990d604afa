"""What the tests of rnn_ops.gluon share: random arrays, random parameters, and all gradients of a random function."""
import numpy as np

from rnn_ops._mxnet import mx

HYBRID = {"eager": None, "hybrid": {}, "static": dict(static_alloc=True, static_shape=True)}


def drawn(shape, seed, dtype="float64"):
    array = mx.nd.array(np.random.RandomState(seed).normal(size=shape), dtype=dtype)
    array.attach_grad()
    return array


def drawn_tokens(shape, V, seed=0):
    return mx.nd.array(np.random.RandomState(seed).randint(V, size=shape), dtype="int32")


def fill(block, dtype="float64"):
    """Random parameters, the same for blocks whose parameters differ in prefix only."""
    block.cast(dtype)
    for seed, parameter in enumerate(block.collect_params().values()):
        parameter.initialize(force_reinit=True)
        parameter.set_data(drawn(parameter.shape, 100 + seed, dtype) * 0.5)
    return block


def hybridized(block, how):
    if HYBRID[how] is not None:
        block.hybridize(**HYBRID[how])
    return block


def flat(results):
    """The arrays of an array or of nested lists of them."""
    if isinstance(results, mx.nd.NDArray):
        return [results]
    return [array for result in results for array in flat(result)]


def evaluate(function, arrays, parameters, times=1):
    """Results of function(*arrays) and the gradients of a random sum of them, in arrays and parameters (by name)."""
    for _ in range(times):
        with mx.autograd.record():
            results = flat(function(*arrays))
            loss = sum((result * drawn(result.shape, 50 + i, result.dtype)).sum() for i, result in enumerate(results))
        loss.backward()
    found = {f"result {i}": result for i, result in enumerate(results)}
    found.update((f"gradient {i}", array.grad) for i, array in enumerate(arrays) if array.grad is not None)
    for parameter in parameters.values():
        if parameter.grad_req != "null":
            found[parameter.name[len(parameters.prefix):]] = parameter.grad()
    return {name: array.asnumpy().copy() for name, array in found.items()}


def assert_same(found, wanted, bound=1e-12):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        scale = np.abs(array).max()
        assert found[name].shape == array.shape and scale > 0, name
        error = np.abs(found[name] - array).max() / scale
        assert error <= bound, f"{name}: {error}"  # a NaN fails too
