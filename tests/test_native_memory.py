"""The native operator and the memory it is given: what MXNet infers is not what an array holds, and what MXNet does not know it
counts wrongly. In processes whose allocator checks every block.
"""
import os
import subprocess
import sys

import numpy as np
import pytest

from rnn_ops._mxnet import mx
from rnn_ops.operators import native

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

DEBUG = "libc_malloc_debug.so.0"  # from glibc 2.34 on; before, every malloc could check
HAS_DEBUG = any(os.path.exists(os.path.join(folder, DEBUG)) for folder in (
    "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"))
SHAPES = {"sequence": [(40, 30, 20), (30, 50), (20, 50), (50, 50), (50,)],
          "step": [(30, 20), (30, 50), (20, 50), (50, 50), (50,)]}

START = """
import itertools, sys, numpy as np
from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops.operators import custom, native
shapes = SHAPES
names = ("inputs", "state", "Wxh", "Whh", "bh")
variables = list(map(mx.sym.var, names))
""".replace("SHAPES", repr(SHAPES))


def run(code, *arguments):
    """(exit status, the lines that it printed) of a Python process under a checking allocator."""
    environment = dict(os.environ, MALLOC_CHECK_="3", OMP_NUM_THREADS="1")
    if HAS_DEBUG:
        environment["LD_PRELOAD"] = DEBUG
    done = subprocess.run([sys.executable, "-c", START + code, *arguments], env=environment, capture_output=True,
                          text=True, cwd=os.path.dirname(os.path.abspath(__file__)))
    return done.returncode, done.stdout.splitlines() if done.stdout else [done.stderr]


@pytest.mark.skipif(not HAS_DEBUG, reason=f"there is no {DEBUG}")
def test_the_allocator_sees_mxnets_overrun_for_an_unknown_shape():
    """The operator as it is, without the nodes that guard.py puts before it."""
    status, printed = run("operator = native.unguarded(*variables, step='0')\n"
                          "operator.infer_shape(state=(3, 7), Wxh=(5, 7), Whh=(7, 7), bh=(7,))\n")
    assert status < 0, printed


@pytest.mark.parametrize("operator", ["sequence", "step"])
def test_any_shapes_may_be_missing(operator):
    """Those that do not follow are an error, the inputs' first; MXNet writes nowhere else."""
    status, printed = run("""
operator = sys.argv[1]
results = getattr(native, "rnn_" + operator)(*variables)
symbol = mx.sym.Group(results) if operator == "sequence" else results
for count in range(6):
    for chosen in itertools.combinations(range(5), count):
        known = {names[index]: shapes[operator][index] for index in chosen}
        for infer in (symbol.infer_shape, symbol.infer_shape_partial, lambda **known: symbol.simple_bind(mx.cpu(), **known)):
            try:
                infer(**known)
                said = "inferred"
            except (mx.MXNetError, RuntimeError) as error:
                said = [line for line in str(error).splitlines() if ": got a shape that is not known" in line][0]
            assert ("inputs: got" in said) == (0 not in chosen), (known, said)
            assert said == "inferred" or chosen[:1] != (0,) or len(set(chosen) & {1, 2, 3, 4}) < 4
print("whole")
""", operator)
    assert status == 0 and printed[-1] == "whole", printed


def test_a_layer_whose_input_has_no_shape():
    status, printed = run("""
for layer in gluon.RNN(5, num_layers=2, bidirectional=True), gluon.TokenRNN(5, input_size=7), gluon.RNN(5, input_size=3):
    result = layer(mx.sym.var("data"))
    try:
        result.infer_shape()
        sys.exit("inferred")
    except mx.MXNetError as error:
        assert "needs (T, B, I) of floats or (T, B) of int32 tokens" in str(error)
print("whole")
""")
    assert status == 0 and printed[-1] == "whole", printed


@pytest.mark.parametrize("module", ["native", "custom"])
def test_a_zero_among_the_dimensions_or_none_is_an_error(module):
    """Of each argument, one after the other, of both operators, called eagerly, in a hybridized block and bound."""
    status, printed = run("""
module = globals()[sys.argv[1]]

class Network(mx.gluon.HybridBlock):
    def hybrid_forward(self, F, *arrays):
        return function(*arrays)

def eagerly(arrays):
    return function(*arrays)

def hybridized(arrays):
    network = Network()
    network.hybridize()
    return network(*arrays)

def bound(arrays):
    results = function(*variables)
    symbol = mx.sym.Group(results) if type(results) is tuple else results
    return symbol.bind(mx.cpu(), dict(zip(names, arrays))).forward()

def evaluate(way, shapes):
    results = way([mx.nd.array(np.ones(shape)) for shape in shapes])
    for result in results if type(results) in (tuple, list) else [results]:
        result.asnumpy()

count = 0
for operator, way in itertools.product(shapes, (eagerly, hybridized, bound)):
    function = getattr(module, "rnn_" + operator)
    right = shapes[operator]
    for index, shape in enumerate(right):
        zeros = [shape[:at] + (0,) + shape[at + 1:] for at in range(len(shape))]
        for other in [*zeros, (0,) * len(shape), (), (0,), (0, 0), (0, 0, 0)]:
            try:
                evaluate(way, right[:index] + [other] + right[index + 1:])
                sys.exit(f"{operator} {way.__name__}: no error where {names[index]} has shape {other}")
            except mx.MXNetError as error:
                count += 1
    evaluate(way, right)
print(count)
""", module)
    assert status == 0 and printed[-1] == str(3 * (35 + 34)), printed


@pytest.mark.parametrize("operator", ["sequence", "step"])
def test_the_sentences(operator):
    """As the operator says them where it computes, and as they are said before MXNet gets there."""
    shapes, function = SHAPES[operator], getattr(native, "rnn_" + operator)
    needs = "(B, I) of floats or (B,) of int32 tokens" if operator == "step" else "(T, B, I) of floats or (T, B) of int32 tokens"
    for index, shape, sentence in [
            (1, (0, 50), "state: got shape (0, 50), needs every dimension to be at least 1"),
            (3, (50, 0), "Whh: got shape (50, 0), needs every dimension to be at least 1"),
            (4, (0,), "bh: got shape (0,), needs every dimension to be at least 1"),
            (0, (), f"inputs: got shape (), needs {needs}"),
            (4, (), "bh: got shape (), needs (50,), (H,) with H = 50 from state"),
            (0, None, f"inputs: got shape (), needs {needs}")]:
        arrays = [mx.nd.array(np.ones(s)) for s in shapes[:index] + [shape or ()] + shapes[index + 1:]]
        if shape is None:
            arrays[index] = mx.nd.NDArray(mx.nd.ndarray._new_empty_handle())
        with pytest.raises(mx.MXNetError) as raised:
            results = function(*arrays)
            (results if operator == "step" else results[0]).asnumpy()
        assert sentence in str(raised.value)


@pytest.mark.parametrize("shape, dtype", [((1,), "float32"), ((1, 1, 1), "float32"), ((4, 3, 7), "float64"), ((12, 7), "float32"),
                                          ((4, 3, 8), "float32")])
def test_a_gradient_that_arrives_in_another_shape_is_an_error(shape, dtype):
    """MXNet hands it over as it is."""
    arrays = [mx.nd.ones(s) for s in [(4, 3, 5), (3, 7), (5, 7), (7, 7), (7,)]]
    arrays[3].attach_grad()
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(*arrays)
    outputs.backward(mx.nd.ones(shape, dtype=dtype))
    text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    with pytest.raises(mx.MXNetError, match=rf"gradient of result outputs: got {dtype} of shape \({text}\), needs float32 of "
                                            r"shape \(4, 3, 7\)"):
        arrays[3].grad.asnumpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operator", ["sequence", "step"])
def test_results_in_the_memory_of_an_argument_are_an_error(operator, dtype):
    """As mx.nd's own function takes them (out=), which is there once the library is loaded."""
    step = str(int(operator == "step"))

    def draw():
        arrays = [mx.nd.random.uniform(-1, 1, shape, dtype=dtype) for shape in [(3, 4), (3, 4), (4, 4), (4, 4), (4,)]]
        return arrays if step == "1" else [arrays[0].reshape((1, 3, 4)), *arrays[1:]]

    arrays = draw()
    wanted = native.unguarded(*arrays, step=step)
    outputs = mx.nd.zeros(arrays[0].shape, dtype=dtype)
    if step == "1":
        overlapping = [(name, arrays[index]) for index, name in enumerate(("inputs", "state"))]
        found = native.unguarded(*arrays, step=step, out=outputs)
        assert np.array_equal(found.asnumpy(), wanted.asnumpy())
    else:
        overlapping = [("inputs", [arrays[0], mx.nd.zeros((3, 4), dtype=dtype)]), ("result state", [outputs, outputs[0]]),
                       ("state", [outputs, arrays[1]])]
    for name, out in overlapping:
        written = "state" if step == "1" or name == "state" else "outputs"
        with pytest.raises(mx.MXNetError, match=f"result {written}: got memory that overlaps {name}, needs memory of its own"):
            found = native.unguarded(*arrays, step=step, out=out)
            (found if step == "1" else found[0]).asnumpy()
