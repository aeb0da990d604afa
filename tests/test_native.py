"""The native operator alone: its guards, its attributes, its own errors, and which operator is taken, with one and without.

test_operators.py has its values and gradients, test_operator_errors.py the errors for arguments that do not fit.
"""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import rnn_ops
from operator_cases import (
    BOUND,
    GRADIENTS,
    KINDS,
    B,
    H,
    I,
    T,
    as_list,
    assert_same,
    check_add_in_autograd,
    check_bind,
    expected,
    good,
    gradients_of,
    ndarrays,
    recorded,
    sums,
    tokens,
    variables,
    zeros,
)
from rnn_ops import info, operators, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.backends.arguments import NAMES
from rnn_ops.exactness import relative_error
from rnn_ops.gradcheck import Case, draw
from rnn_ops.operators import native
from rnn_ops.operators.native import guard, load

CALLS = 9  # more than MXNet sums by itself: it then asks operators to add


def unguarded(*values):
    """The bare operator of a sequence on Symbols or NDArrays, without the guards that it needs."""
    results = native.unguarded(*values, step="0", activation="tanh")
    return results[0], results[1]


# Every req ------------------------------------------------------------------------------------------------------------

def test_unguarded_the_operator_overwrites_what_it_should_add_to():
    with pytest.raises(AssertionError):
        check_bind(unguarded(*map(mx.sym.var, NAMES)), Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, "add"))


def test_unguarded_the_operator_overwrites_in_autograd_too():
    with pytest.raises(AssertionError):
        check_add_in_autograd(unguarded)


def test_unwanted_gradients_are_not_computed():
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments)
    recorded(lambda *a: tuple(native.unguarded(*a, step="0", wanted="01010")), arrays, cotangents)
    assert_same({name: arrays[index].grad.asnumpy() for index, name in enumerate(GRADIENTS) if index in (1, 3)},
                {name: wanted[name] for name in ("dstate", "dWhh")})
    assert all(np.isnan(arrays[index].grad.asnumpy()).all() for index in (0, 2, 4))


def test_which_arrays_autograd_knows():
    leaf, constant = mx.nd.ones(3), mx.nd.ones(3)
    leaf.attach_grad()
    with mx.autograd.record():
        known = [leaf, leaf * 2, leaf.reshape((3, 1))]
        unknown = [constant, constant * 2, (leaf * 2).detach()]
        assert all(guard.has_history(array) for array in known)
        assert not any(guard.has_history(array) for array in unknown)


def test_to_ask_autograd_changes_nothing():
    """MXNet marks gradients that a backward pass has written, for Gluon's Trainer to see."""
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7))
    arrays = variables(arguments)
    recorded(native.rnn_sequence, arrays, cotangents)
    assert [array._fresh_grad for array in arrays] == [True] * 5
    arrays[2]._fresh_grad = False
    with mx.autograd.record():
        native.rnn_sequence(*arrays)
    assert [array._fresh_grad for array in arrays] == [True, True, False, True, True]


@pytest.mark.parametrize("recompute", [False, True], ids=["one use", "the inputs once more"])
def test_gradients_that_flow_on(recompute):
    """Arguments that are results of other operators, one of them used by both."""
    arguments, cotangents = draw(Case("sequence", 4, 3, 5, 7))
    gradients = []
    for module in (native, reference):
        leaves = variables(arguments)

        def graph(*leaves):
            arrays = [array * 2 - 0.5 for array in leaves]
            outputs, state = module.rnn_sequence(*arrays)
            return (outputs, state + arrays[0].sum() * arrays[1]) if recompute else (outputs, state)

        recorded(graph, leaves, cotangents)
        gradients.append(gradients_of(leaves))
    assert_same(*gradients)


# Arrays shared by several calls ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("grad_req", ["write", "add"])
@pytest.mark.parametrize("calls", [2, CALLS])
def test_shared_in_one_symbol(calls, grad_req):
    variables = [mx.sym.var(name) for name in NAMES]
    results = sums([native.rnn_sequence(*variables) for _ in range(calls)])
    check_bind(results, Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, grad_req), calls)


def with_plain_identity(*variables):
    return unguarded(*map(mx.sym.identity, variables))


@pytest.mark.parametrize("function", [unguarded, with_plain_identity])
def test_an_identity_is_not_enough_of_a_guard(function):
    """MXNet makes one of the identities of one variable, and asks the operator to add although nobody said "add"."""
    variables = [mx.sym.var(name) for name in NAMES]
    results = sums([function(*variables) for _ in range(CALLS)])
    with pytest.raises(AssertionError):
        check_bind(results, Case("sequence", 4, 3, 5, 7), dict.fromkeys(NAMES, "write"), CALLS)


@pytest.mark.parametrize("saved", [False, True])
def test_one_symbol_composed_several_times(saved):
    """The copies of its nodes have the same inputs and attributes."""
    once = mx.sym.Group(native.rnn_sequence(*map(mx.sym.var, NAMES)))
    once = mx.sym.load_json(once.tojson()) if saved else once
    variables = {name: mx.sym.var("shared_" + name) for name in NAMES}
    results = sums([tuple(once(**variables)) for _ in range(CALLS)])
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    buffers = {"shared_" + name: mx.nd.zeros(array.shape, dtype="float64") for name, array in zip(NAMES, arguments)}
    executor = mx.sym.Group(results).bind(
        mx.cpu(), dict(zip(buffers, ndarrays(arguments))), buffers, "write")
    executor.forward(is_train=True)
    executor.backward(ndarrays(cotangents))
    assert_same({name: buffers["shared_" + name].asnumpy() for name in NAMES},
                {name: CALLS * wanted["d" + name] for name in NAMES})


class Network(mx.gluon.HybridBlock):
    """Several recurrences with one set of weights."""

    def __init__(self, arguments, grad_req, calls):
        super().__init__()
        self._calls = calls
        with self.name_scope():
            for name, array in zip(NAMES[2:], arguments[2:]):
                setattr(self, name, self.params.get(name, shape=array.shape, dtype="float64", grad_req=grad_req,
                                                    init=mx.init.Constant(mx.nd.array(array, dtype="float64"))))
        self.initialize()

    def hybrid_forward(self, F, inputs, state, Wxh, Whh, bh):
        return tuple(sums([native.rnn_sequence(inputs, state, Wxh, Whh, bh) for _ in range(self._calls)]))


HYBRIDIZED = {"not hybridized": None, "hybridized": {}, "static_alloc": dict(static_alloc=True),
              "static_shape": dict(static_alloc=True, static_shape=True)}


@pytest.mark.parametrize("flags", list(HYBRIDIZED.values()), ids=list(HYBRIDIZED))
@pytest.mark.parametrize("grad_req", ["write", "add", "null"])
@pytest.mark.parametrize("calls", [1, 2, CALLS])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_in_a_block(kind, calls, grad_req, flags):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7, kind))
    network = Network(arguments, grad_req, calls)
    if flags is not None:
        network.hybridize(**flags)
    inputs, state = ndarrays(arguments[:2])
    for array in (inputs, state):
        array.attach_grad(grad_req="add")
    passes = 2
    for _ in range(passes):
        results = recorded(network, [inputs, state], cotangents)
    assert relative_error(results[0].asnumpy(), calls * wanted["outputs"]) <= BOUND
    assert relative_error(state.grad.asnumpy(), passes * calls * wanted["dstate"]) <= BOUND
    found = {"d" + name: getattr(network, name).grad().asnumpy() for name in NAMES[2:] if grad_req != "null"}
    if kind == "dense":
        assert relative_error(inputs.grad.asnumpy(), passes * calls * wanted["dinputs"]) <= BOUND
    factor = calls * passes if grad_req == "add" else calls
    assert_same(found, {name: factor * wanted[name] for name in found})


@pytest.mark.filterwarnings("ignore:Cannot decide type")  # MXNet asks for that of a variable alone
def test_export_and_import(tmp_path):
    arguments, cotangents, wanted = expected(Case("sequence", 4, 3, 5, 7))
    network = Network(arguments, "write", 1)
    network.hybridize()
    inputs, state = ndarrays(arguments[:2])
    network(inputs, state)
    network.export(str(tmp_path / "network"))
    block = mx.gluon.SymbolBlock.imports(str(tmp_path / "network-symbol.json"), ["data0", "data1"],
                                         str(tmp_path / "network-0000.params"))
    block.hybridize(static_alloc=True)
    for array in (inputs, state):
        array.attach_grad()
    results = recorded(lambda *a: tuple(sums([block(*a) for _ in range(CALLS)])), [inputs, state], cotangents)
    found = {"outputs": results[0], "dinputs": inputs.grad, "dstate": state.grad}
    assert_same({name: array.asnumpy() for name, array in found.items()},
                {name: CALLS * wanted[name] for name in found})


# Where it runs --------------------------------------------------------------------------------------------------------

def test_the_same_bits_as_the_kernels():
    arguments, _ = draw(Case("sequence", 6, 5, 11, 64, "tokens"))
    arguments = [array if array.dtype == np.int32 else array.astype("float32") for array in arguments]
    outputs = np.empty((6, 5, 64), "float32")
    cpu.forward(*arguments, outputs)
    assert np.array_equal(native.rnn_sequence(*ndarrays(arguments))[0].asnumpy(), outputs)


# What is refused ------------------------------------------------------------------------------------------------------

def test_a_bad_token_of_a_step():
    values = good(inputs=mx.nd.array([0, 9, 1], dtype="int32"))
    with pytest.raises(mx.MXNetError, match=r"inputs: got token 9 at \[1\], needs 0 <= token < 5, I = 5 from Wxh\n"):
        native.rnn_step(**values).wait_to_read()


def test_a_bad_token_is_an_error_at_a_wait_for_the_gradient():
    values = good(inputs=tokens(9))
    values["Wxh"].attach_grad()
    with mx.autograd.record():
        outputs, _ = native.rnn_sequence(**values)
    outputs.backward()
    with pytest.raises(mx.MXNetError, match="inputs: got token 9"):
        values["Wxh"].grad.wait_to_read()


def test_shapes_that_do_not_follow():
    symbol = native.rnn_sequence(*map(mx.sym.var, NAMES))[0]
    with pytest.raises(mx.MXNetError, match=r"Wxh: got a shape that is not known and does not follow from the other "
                                            r"arguments, needs \(I, H\)"):
        symbol.infer_shape(inputs=(T, B), state=(B, H))


@pytest.mark.parametrize("changed, error, sentence", [
    (dict(inputs=[[1, 2]]), TypeError, "inputs: got list, needs an NDArray or a Symbol: mx.nd.array(inputs)"),
    (dict(Wxh=mx.sym.var("Wxh")), TypeError, "Wxh: got Symbol, needs NDArray as inputs is one"),
    (dict(Wxh=zeros(I, H).tostype("row_sparse")), TypeError,
     "Wxh: got an NDArray of storage row_sparse, needs a dense one: tostype('default')"),
    (dict(activation="sigmoid"), ValueError, "activation: got 'sigmoid', needs 'tanh' or 'relu'"),
])
def test_values_that_are_no_arguments(changed, error, sentence):
    with pytest.raises(error) as raised:
        native.rnn_sequence(**good(**changed))
    assert str(raised.value) == sentence


@pytest.mark.parametrize("attributes, sentence", [
    (dict(step="2"), "step: got '2', needs 0 or 1"),
    (dict(activation="x"), "activation: got 'x', needs 'tanh' or 'relu'"),
    (dict(row="yes"), "row: got 'yes', needs 0 or 1"),
    (dict(rank="3"), "rank: got '3', needs 0 or 1"),
    (dict(wanted="11"), "wanted: got '11', needs a 0 or 1 for each of the five arguments"),
    (dict(steps="1"), "attributes: got 'steps', needs step, activation, wanted, row and rank only"),
])
def test_attributes_of_the_operator(attributes, sentence):
    with pytest.raises(mx.MXNetError, match=sentence):
        native.unguarded(*good().values(), **attributes)
    with mx.AttrScope(ctx_group="anything"):  # a note on the node, not for the operator
        native.unguarded(*map(mx.sym.var, NAMES), step="1")


@pytest.mark.parametrize("name, value, needs", [
    ("RNN_OPS_NUM_THREADS", "none", "a number of threads, 1 or more"), ("RNN_OPS_SIMD", "mmx", "one of "), ])
def test_settings_that_name_nothing(monkeypatch, name, value, needs):
    monkeypatch.setenv(name, value)
    with pytest.raises(mx.MXNetError, match=f"{name}: got '{value}', needs {needs}"):
        native.rnn_sequence(**good())[0].wait_to_read()


# The switch between the two ------------------------------------------------------------------------------------------

def op_of(function):
    """The operator in the graph of one of the public functions."""
    results = function(*map(mx.sym.var, NAMES))
    return json.loads(mx.sym.Group(as_list(results)).tojson())["nodes"][-1]["op"]


@pytest.mark.parametrize("setting, op", [(None, "rnn_ops_native"), ("", "rnn_ops_native"), ("native", "rnn_ops_native"),
                                         ("custom", "Custom")])
def test_which_operator_is_taken(monkeypatch, setting, op):
    monkeypatch.delenv("RNN_OPS_OPERATOR", raising=False)
    if setting is not None:
        monkeypatch.setenv("RNN_OPS_OPERATOR", setting)
    assert op_of(rnn_ops.rnn_sequence) == op_of(rnn_ops.rnn_step) == op
    assert {"native": "rnn_ops_native", "custom": "Custom"}[operators.in_use()] == op


def test_without_a_native_operator_the_custom_one_is_taken_unless_the_setting_says_native(monkeypatch):
    monkeypatch.delenv("RNN_OPS_OPERATOR", raising=False)
    monkeypatch.setattr(load, "failure", "the reason")
    assert op_of(rnn_ops.rnn_sequence) == "Custom"
    assert info.collect()["operator"] == "custom (there is no native one: the reason)"
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    sentence = "RNN_OPS_OPERATOR: got 'native', and there is no native operator: the reason"
    with pytest.raises(RuntimeError, match=sentence):
        rnn_ops.rnn_sequence(**good())
    assert info.collect()["operator"] == f"none: {sentence}"
    with pytest.raises(RuntimeError, match="there is no native operator: the reason"):
        native.rnn_sequence(**good())


def test_an_unknown_operator_is_an_error(monkeypatch):
    monkeypatch.setenv("RNN_OPS_OPERATOR", "fast")
    with pytest.raises(ValueError, match="RNN_OPS_OPERATOR: got 'fast', needs 'custom' or 'native'"):
        rnn_ops.rnn_sequence(**good())


def test_info_names_the_operator(monkeypatch):
    for name in "native", "custom":
        monkeypatch.setenv("RNN_OPS_OPERATOR", name)
        assert info.collect()["operator"] == name


@pytest.mark.slow
def test_a_library_that_mxnet_refuses_leaves_the_custom_operator_and_a_reason(tmp_path):
    shutil.copytree(os.path.dirname(rnn_ops.__file__), str(tmp_path / "rnn_ops"), ignore=shutil.ignore_patterns("__pycache__"))
    library = tmp_path / "rnn_ops" / os.path.basename(native.library_path())
    library.write_bytes(library.read_bytes().replace(b"_opRegSize", b"_opRegSiez"))  # a name that MXNet looks for
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import rnn_ops; from rnn_ops.operators import in_use, native; "
            "print(in_use(), '|', native.why_not())")
    environment = {name: value for name, value in os.environ.items() if name != "RNN_OPS_OPERATOR"}
    said = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], universal_newlines=True, env=environment,
                                   cwd=str(tmp_path))
    assert said.startswith("custom | MXNet 1.9.1 does not load it, which is made for 1.9.1: ") and "_opRegSize" in said
