"""The gradient check passes on the operators and fails on every planted error."""
import json
import math
import os
import re

import numpy as np
import pytest

from rnn_ops import gradcheck, operators, reference
from rnn_ops._mxnet import mx
from rnn_ops.backends import cuda
from rnn_ops.gradcheck import Case
from rnn_ops.operators import custom, devices
from rnn_ops_cli.main import main

CASES = [Case("sequence", 3, 2, 2, 3), Case("sequence", 4, 3, 2, 2, "tokens"), Case("step", 1, 2, 2, 3)]


class Planted(devices.Cpu):
    """Computes in NumPy, written from the equations, with one error; "" is none."""

    def __init__(self, fault):
        self.fault = fault

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation):
        projected = Wxh[inputs] if inputs.dtype == np.int32 else inputs @ Wxh
        for t in range(len(inputs)):
            outputs[t] = state = np.tanh(projected[t] + state @ Whh + bh)
        if self.fault == "outputs slightly off":
            outputs *= 1 + 1e-8
        if self.fault == "float32 outputs slightly off" and outputs.dtype == np.float32:
            outputs *= 1 + 1e-5
        if self.fault == "nan in outputs":
            outputs[0, 0, 0] = np.nan

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state,
                 dinputs=None, dstate=None, dWxh=None, dWhh=None, dbh=None, activation="tanh"):
        T = len(outputs)
        da = np.empty_like(outputs)
        dh = np.zeros_like(state)
        if dlast_state is not None and self.fault != "last state's gradient dropped":
            dh += dlast_state
        for t in reversed(range(T)):
            if t < T - 1 or self.fault != "gradient of the last output dropped":
                dh = dh + doutputs[t]
            derivative = 1 - outputs[t] ** 2
            if self.fault == "derivative forgotten at the first step" and t == 0:
                derivative = 1
            if self.fault == "derivative 1 - h":
                derivative = 1 - outputs[t]
            da[t] = dh * derivative
            dh = da[t] @ (Whh if self.fault == "Whh not transposed" else Whh.T)
            if self.fault == "no gradient from step to step":
                dh = np.zeros_like(dh)
        dstate[:] = 0 if self.fault == "dstate forgotten" else dh
        rows = da[:, :-1] if self.fault == "dbh without the last row" else da
        dbh[:] = rows.sum(axis=(0, 1))
        before = np.concatenate([state[np.newaxis], outputs[:-1]])
        if self.fault == "dWhh of the same step's state":
            before = outputs
        if self.fault == "dWhh without the initial state":
            before[0] = 0
        dWhh[:] = np.einsum("tbi,tbj->ij", before, da)
        if self.fault == "dWhh transposed":
            dWhh[:] = dWhh.T.copy()
        if inputs.dtype != np.int32:
            dWxh[:] = np.einsum("tbi,tbj->ij", inputs, da)
            dinputs[:] = da @ Wxh.T
        elif self.fault == "a repeated token overwrites":
            dWxh[:] = 0
            dWxh[inputs] += da
        else:
            dWxh[:] = 0
            np.add.at(dWxh, inputs, da)
        gradients = dict(dinputs=dinputs, dstate=dstate, dWxh=dWxh, dWhh=dWhh, dbh=dbh)
        name, _, what = self.fault.partition(" ")
        gradient = gradients.get(name)
        if gradient is not None and what == "slightly off":
            gradient *= 1 + 1e-6
        if gradient is not None and what == "one element off":
            gradient.flat[-1] += 1e-6
        if gradient is not None and what == "nan":
            gradient.flat[0] = np.nan
        if gradient is not None and what == "in half precision" and gradient.dtype == np.float32:
            gradient[:] = gradient.astype(np.float16)


def plant(op_type, operator):
    """Register an operator that is ours in everything but the backend → function(fault) → a function to check."""
    @mx.operator.register(op_type)
    class Operator(operator):
        def __init__(self, fault):
            super().__init__()
            self.fault = fault

        def create_operator(self, ctx, in_shapes, in_dtypes):
            return custom.Recurrence(Planted(self.fault), self.step)

    return lambda fault: lambda *arrays: mx.nd.Custom(*arrays, op_type=op_type, fault=fault)


planted_step = plant("rnn_ops_test_planted_step", custom.Step)
planted_sequence = plant("rnn_ops_test_planted_sequence", custom.Sequence)


def failures(fault):
    """(comparison, tensor) of every failed row."""
    rows = gradcheck.check(planted_step(fault), planted_sequence(fault), CASES)
    return {(row.comparison, row.tensor) for row in rows if not row.passed}


def test_the_copy_without_a_fault_passes():
    assert failures("") == set()


@pytest.mark.parametrize("gradient", gradcheck.GRADIENTS)
@pytest.mark.parametrize("what", ["slightly off", "one element off", "nan"])
@pytest.mark.slow
def test_an_error_in_one_gradient(gradient, what):
    """It is caught in that gradient, in float64 by both comparisons, and nowhere else."""
    failed = failures(f"{gradient} {what}")
    assert {tensor for _, tensor in failed} == {gradient}
    assert failed >= {("float64, reference", gradient), ("float64, differences", gradient)}


@pytest.mark.parametrize("gradient", gradcheck.GRADIENTS)
@pytest.mark.slow
def test_an_error_in_float32_alone(gradient):
    assert failures(f"{gradient} in half precision") == {("float32, reference", gradient)}


@pytest.mark.parametrize("fault, tensors", [
    ("last state's gradient dropped", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("gradient of the last output dropped", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("derivative forgotten at the first step", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("derivative 1 - h", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("Whh not transposed", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("no gradient from step to step", {"dinputs", "dstate", "dWxh", "dWhh", "dbh"}),
    ("dstate forgotten", {"dstate"}),
    ("dbh without the last row", {"dbh"}),
    ("dWhh of the same step's state", {"dWhh"}),
    ("dWhh without the initial state", {"dWhh"}),
    ("dWhh transposed", {"dWhh"}),
    ("a repeated token overwrites", {"dWxh"}),
])
@pytest.mark.slow
def test_an_error_in_the_backward_pass(fault, tensors):
    failed = failures(fault)
    for comparison in ("float64, reference", "float64, differences", "float32, reference"):
        assert {tensor for found, tensor in failed if found == comparison} == tensors, comparison
    assert not [tensor for comparison, tensor in failed if comparison == "float64, reference's differences"]


@pytest.mark.slow
def test_an_error_in_the_results():
    assert failures("outputs slightly off") >= {("float64, reference", "outputs"), ("float64, reference", "state")}
    assert failures("nan in outputs") >= {("float64, reference", "outputs"), ("float32, reference", "outputs")}
    assert failures("float32 outputs slightly off") >= {("float32, reference", name) for name in ("outputs", "state")}


def test_an_error_in_the_reference_is_not_agreed_with(monkeypatch):
    """Where operator and reference share a wrong gradient, the central differences tell."""
    wrong = planted_step("dstate forgotten"), planted_sequence("dstate forgotten")
    monkeypatch.setattr(reference, "rnn_step", wrong[0])
    monkeypatch.setattr(reference, "rnn_sequence", wrong[1])
    failed = {(row.comparison, row.tensor) for row in gradcheck.check(*wrong, cases=CASES) if not row.passed}
    assert failed == {("float64, differences", "dstate"), ("float64, reference's differences", "dstate")}


@pytest.mark.parametrize("fields, said", [
    (dict(operator="foo"), "operator: got 'foo', needs 'sequence' or 'step'"),
    (dict(input="Tokens"), "input: got 'Tokens', needs 'dense' or 'tokens'"),
    (dict(values="foo"), "values: got 'foo', needs 'random' or 'one token' or 'saturated' or 'flat'"),
    (dict(values="one token"), "values: got 'one token', needs another word for dense inputs"),
    (dict(activation="Tanh"), "activation: got 'Tanh', needs 'tanh' or 'relu'"),
    (dict(T=0), "T: got 0, needs an integer of at least 1"), (dict(H=-3), "H: got -3, needs an integer of at least 1"),
    (dict(B=2.0), "B: got 2.0, needs an integer of at least 1"), (dict(operator="step"), "T: got 3, needs 1 for a step")])
def test_a_case_without_a_meaning_is_named_before_anything_is_computed(fields, said):
    def rnn_sequence(*_):
        raise AssertionError("it computes")

    wrong = CASES[0]._replace(**fields)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        gradcheck.check(rnn_sequence=rnn_sequence, cases=[CASES[0], wrong])
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        gradcheck.draw(wrong)


def test_relative_error():
    error = gradcheck.relative_error
    assert error(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 0.5
    assert error(np.array([1e-9, 4.0]), np.array([0.0, 4.0])) == 2.5e-10  # of the largest element
    assert error(np.zeros(2), np.zeros(2)) == 0
    assert error(np.array([0.0, 1e-300]), np.zeros(2)) == math.inf
    for bad in (np.nan, np.inf):
        assert error(np.array([bad]), np.array([1.0])) == math.inf
        assert error(np.array([1.0]), np.array([bad])) == math.inf
        assert error(np.array([bad]), np.array([bad])) == math.inf


@pytest.mark.slow
def test_rnn_ops_check_passes(tmp_path, capfd):
    """The whole grid, as `rnn-ops check` runs it."""
    path = tmp_path / "check.json"
    before = os.umask(0o027)
    try:
        assert main(["check", "--json", str(path)]) == 0
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640  # as every other file's here
    printed = capfd.readouterr().out
    for line in ("worst relative error", "differences", "0 failed"):
        assert line in printed
    assert max(map(len, printed.splitlines())) <= 80
    record = json.loads(path.read_text())
    assert list(record) == ["rnn_ops", "numpy", "device", "mxnet", "operator", "rows", "seconds", "passed", "left_out"]
    assert record["passed"] and record["device"] == "cpu" and record["operator"] == operators.in_use()
    assert record["left_out"] == []
    rows = record["rows"]
    assert {row["comparison"] for row in rows} == set(gradcheck.COMPARISONS)
    assert {row["tensor"] for row in rows} == set(gradcheck.TENSORS)
    assert any((row["T"], row["B"], row["I"], row["H"], row["input"]) == (64, 32, 77, 256, "tokens") for row in rows)
    assert all(row["error"] <= row["bound"] for row in rows)
    assert [file.name for file in tmp_path.iterdir()] == ["check.json"]


def test_rnn_ops_check_fails(tmp_path, capfd, monkeypatch):
    rows = gradcheck.check(planted_step("dbh nan"), planted_sequence("dbh nan"), CASES)
    monkeypatch.setattr(gradcheck, "check", lambda **_: rows)
    path = tmp_path / "check.json"
    assert main(["check", "--json", str(path)]) == 1
    line = "FAILED  step T=1 B=2 I=2 H=3 dense random:\n        float64, reference, dbh: inf > 1.00e-09\n"
    printed = capfd.readouterr().out
    assert line in printed and max(map(len, printed.splitlines())) <= 80
    record = json.loads(path.read_text())
    assert not record["passed"]
    assert {row["tensor"] for row in record["rows"] if row["error"] is None} == {"dbh"}


def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path, capfd):
    path = tmp_path / "missing" / "check.json"
    assert main(["check", "--json", str(path)]) == 2
    assert capfd.readouterr().err == f"rnn-ops: error: cannot write {path}: No such file or directory\n"


def test_a_folder_is_no_file_to_write(tmp_path, capfd):
    assert main(["check", "--json", str(tmp_path)]) == 2
    assert capfd.readouterr().err == f"rnn-ops: error: cannot write {tmp_path}: Is a directory\n"


def test_a_full_disk_is_said_after_the_table(capfd, monkeypatch):
    rows = gradcheck.check(cases=CASES[:1])
    monkeypatch.setattr(gradcheck, "check", lambda **_: rows)
    assert main(["check", "--json", "/dev/full"]) == 1
    printed, said = capfd.readouterr()
    assert ", 0 failed\n" in printed and said == "rnn-ops: error: cannot write /dev/full: No space left on device\n"


def test_cuda_is_refused_in_words(capfd):
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    assert main(["check", "--device", "cuda"]) == 2
    assert capfd.readouterr().err == f"rnn-ops: error: {cuda.why_not()}\n"
