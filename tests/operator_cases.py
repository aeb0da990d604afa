"""What the tests of the operators share: how they are called and compared with the reference, and arguments that do not fit.

float64, where a wrong term cannot hide behind rounding; `test_gradcheck.py` sees to float32.
"""
import functools

import numpy as np

import rnn_ops
from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES
from rnn_ops.exactness import relative_error
from rnn_ops.gradcheck import Case, draw, values_and_gradients

GRADIENTS = ["d" + name for name in NAMES]
KINDS = ["dense", "tokens"]
ACTIVATIONS = ["tanh", "relu"]
BOUND = 1e-12


def ndarrays(arrays, context=None):
    return [mx.nd.array(array, dtype=array.dtype, ctx=context) for array in arrays]


def variables(arguments, grad_req="write", context=None):
    """NDArrays, of which the floats have gradients."""
    arrays = ndarrays(arguments, context)
    for array in arrays:
        if array.dtype != np.int32:
            array.attach_grad(grad_req=grad_req)
    return arrays


def function_of(case, module=rnn_ops):
    """A module's function as one of the case's arguments alone."""
    return functools.partial(getattr(module, "rnn_" + case.operator), activation=case.activation)


def expected(case):
    """A case's arguments and cotangents, and the reference's results and gradients for them."""
    arguments, cotangents = draw(case)
    return arguments, cotangents, values_and_gradients(function_of(case, reference), arguments, cotangents)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    assert all(error <= BOUND for error in errors.values()), errors


def as_list(results):
    return list(results) if isinstance(results, (tuple, list)) else [results]


def sums(calls):
    """The sums of the results of several calls: outputs and state."""
    return [sum(results[1:], results[0]) for results in zip(*calls)]


def recorded(function, arrays, cotangents):
    """The results of a function of NDArrays, after a backward pass from all of them."""
    with mx.autograd.record():
        results = as_list(function(*arrays))
    mx.autograd.backward(results, ndarrays(cotangents, results[0].context))
    return results


def gradients_of(arrays):
    """The gradients of those arrays that have one, by name. They may be fewer than five, and are then the last."""
    return {name: array.grad.asnumpy() for name, array in zip(GRADIENTS[-len(arrays):], arrays) if array.grad is not None}


def named(results, arrays):
    """The results of a sequence and the gradients of arrays by name."""
    return dict(zip(["outputs", "state"], [result.asnumpy() for result in results]), **gradients_of(arrays))


def assert_gradients(buffers, noise, req, wanted, calls=1):
    """Each gradient buffer, full of noise before, holds what its req asks for."""
    for name in NAMES:
        gradient = calls * wanted.get("d" + name, np.zeros_like(noise[name]))
        if req[name] == "null":
            assert np.array_equal(buffers[name].asnumpy(), noise[name]), name
        elif req[name] == "add":
            assert relative_error(buffers[name].asnumpy() - noise[name], gradient) <= 1e-10, name
        else:
            assert relative_error(buffers[name].asnumpy(), gradient) <= BOUND, name


def check_bind(results, case, req, calls=1, is_train=True):
    """The results of a graph of so many equal calls, and the gradients that it leaves in buffers full of noise."""
    arguments, cotangents, wanted = expected(case)
    random = np.random.RandomState(2)
    noise = {name: random.randint(1, 9, size=array.shape).astype(array.dtype) for name, array in zip(NAMES, arguments)}
    buffers = dict(zip(NAMES, ndarrays(noise.values())))
    executor = mx.sym.Group(as_list(results)).bind(mx.cpu(), dict(zip(NAMES, ndarrays(arguments))), buffers, req)
    found = [result.asnumpy() for result in executor.forward(is_train=is_train)]
    executor.backward(ndarrays(cotangents), is_train=is_train)
    for result, name in zip(found, ["outputs", "state"][-len(found):]):
        assert relative_error(result, calls * wanted[name]) <= BOUND
    assert_gradients(buffers, noise, req, wanted, calls)


def check_add_in_autograd(function):
    """grad_req="add" over three backward passes, the second of a graph that uses the arrays twice."""
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments, "add")
    for uses in (1, 2, 1):
        recorded(lambda *values: sums([function(*values) for _ in range(uses)]), arrays, cotangents)
    assert_same(gradients_of(arrays), {name: 4 * wanted[name] for name in GRADIENTS})


# Arguments that do not fit --------------------------------------------------------------------------------------------

T, B, I, H = 4, 3, 5, 7


def zeros(*shape, dtype="float32"):
    return mx.nd.zeros(shape, dtype=dtype)


def good(**changed):
    """Five arguments of a sequence, some of them changed."""
    return {**dict(inputs=zeros(T, B, I), state=zeros(B, H), Wxh=zeros(I, H), Whh=zeros(H, H), bh=zeros(H)), **changed}


def tokens(*values, dtype="int32"):
    return mx.nd.array(np.resize(values, (T, B)), dtype=dtype)


MISFITS = {  # what to change, and the error
    "rank": (dict(inputs=zeros(3)), ValueError,
             "inputs: got shape (3,), needs (T, B, I) of floats or (T, B) of int32 tokens"),
    "batch": (dict(state=zeros(2, H)), ValueError,
              "state: got shape (2, 7), needs (3, H), (B, H) with B = 3 from inputs"),
    "width": (dict(Wxh=zeros(4, H)), ValueError,
              "Wxh: got shape (4, 7), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state"),
    "transposed": (dict(Wxh=zeros(H, I)), ValueError,
                   "Wxh: got shape (7, 5), needs (5, 7), (I, H) with I = 5 from inputs and H = 7 from state: Wxh.T"),
    "square": (dict(Whh=zeros(6, H)), ValueError, "Whh: got shape (6, 7), needs (7, 7), (H, H) with H = 7 from state"),
    "bias": (dict(bh=zeros(1, H)), ValueError, "bh: got shape (1, 7), needs (7,), (H,) with H = 7 from state"),
    "float tokens": (dict(inputs=tokens(0, 1, dtype="float32")), ValueError,
                     "inputs: got float32 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast "
                     "tokens to int32"),
    "int64 tokens": (dict(inputs=tokens(0, 1, dtype="int64")), TypeError,
                     "inputs: got dtype int64, needs float32, float64 or int32 (tokens); cast tokens to "
                     "int32"),
    "half": (dict(zip(NAMES, (array.astype("float16") for array in good().values()))), TypeError,
             "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    "half state": (dict(state=zeros(B, H, dtype="float16")), TypeError,
                   "state: got dtype float16, needs float32 or float64"),
    "half inputs": (dict(inputs=zeros(T, B, I, dtype="float16")), TypeError,
                    "inputs: got dtype float16, needs float32, float64 or int32 (tokens)"),
    "mixed dtypes": (dict(Whh=zeros(H, H, dtype="float64")), TypeError,
                     "Whh: got dtype float64, needs float32, the dtype of state"),
    "other inputs": (dict(inputs=zeros(T, B, I, dtype="float64")), TypeError,
                     "inputs: got dtype float64, needs float32, the dtype of state"),
    "integer state": (dict(state=zeros(B, H, dtype="int32")), TypeError,
                      "state: got dtype int32, needs float32 or float64"),
    "token too large": (dict(inputs=tokens(0, 1, 4, 2, 5)), ValueError,
                        "inputs: got token 5 at [1, 1], needs 0 <= token < 5, I = 5 from Wxh"),
    "negative token": (dict(inputs=tokens(0, 1, -1)), ValueError,
                       "inputs: got token -1 at [0, 2], needs 0 <= token < 5, I = 5 from Wxh"),
}
