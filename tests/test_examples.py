"""The example to learn from: its operator is right, honours every req, and runs as its first lines say."""
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest

from rnn_ops import reference
from rnn_ops._mxnet import mx

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "minimal_custom_op.py")


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(PATH)


def test_it_is_the_step_of_the_reference(example):
    values = [mx.nd.random.normal(shape=shape) for shape in [(3, 5), (3, 4), (5, 4), (4, 4), (4,)]]
    result = mx.nd.Custom(*values, op_type="minimal_step")
    np.testing.assert_allclose(result.asnumpy(), reference.rnn_step(*values).asnumpy(), rtol=1e-6, atol=1e-6)


def test_its_gradients_are_those_of_central_differences(example):
    errors = example["check"]()
    assert list(errors) == ["x", "state", "Wxh", "Whh", "bh"] and max(errors.values()) < 1e-6


def test_a_wrong_gradient_would_be_seen(example, monkeypatch):
    backward = example["Step"].backward
    monkeypatch.setattr(example["Step"], "backward", lambda self, out_grad, **others: backward(
        self, out_grad=[1.001 * out_grad[0]], **others))
    assert min(example["check"]().values()) > 1e-4


def test_it_works_in_a_graph_with_every_req(example):
    names = ["x", "state", "Wxh", "Whh", "bh"]
    step = mx.sym.Custom(*map(mx.sym.Variable, names), op_type="minimal_step")
    values = {name: mx.nd.random.normal(shape=shape)
              for name, shape in zip(names, [(3, 5), (3, 4), (5, 4), (4, 4), (4,)])}
    found = {}
    for req in ("write", "add", "null"):
        gradients = {name: mx.nd.ones(value.shape) for name, value in values.items()}
        bound = step.bind(mx.cpu(), values, gradients, req)
        bound.forward(is_train=True)
        bound.backward(mx.nd.ones((3, 4)))
        found[req] = {name: gradient.asnumpy() for name, gradient in gradients.items()}
    for name in names:
        np.testing.assert_allclose(found["add"][name], found["write"][name] + 1, rtol=1e-5, atol=1e-5)
        assert (found["null"][name] == 1).all() and (found["write"][name] != 1).any()


def test_the_file_runs():
    shown = subprocess.run([sys.executable, PATH], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert shown.startswith("{'x': ") and shown.count("e-") == 5
