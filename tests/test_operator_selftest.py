"""The operators' self-test with the CPU in the GPU's place: right operators pass, and any defect is found."""
import json
import os
import time

import pytest

import rnn_ops
from cuda_host import platform
from rnn_ops import gradcheck
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import run as kernels_selftest
from rnn_ops.operators import custom, ndarray, selftest
from rnn_ops.operators.selftest import FAILED, PASSED, SKIPPED, Outcome, Target
from rnn_ops_cli.main import main


def here():
    """The target of the tests."""
    return Target(mx.cpu(), True, cpu, ndarray.view, lambda array: array.ctypes.data, lambda: None, lambda: 10 ** 9)


def without_kernels():
    return here()._replace(has_mxnet_kernels=False)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(selftest, "SHAPES", ((3, 2, 5, 7), (4, 3, 5, 33)))
    for name, value in dict(QUEUED=60, CALLS=30, SETTLED=10).items():
        monkeypatch.setattr(selftest, name, value)


def failures(outcomes):
    return [str(outcome) for outcome in outcomes if outcome.status != PASSED]


@pytest.mark.parametrize("check", selftest.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.slow
def test_what_is_right_passes(check, small):
    outcomes = check(here())
    assert outcomes and failures(outcomes) == []
    json.dumps([outcome._asdict() for outcome in outcomes])


@pytest.mark.slow
def test_the_custom_op_passes_with_the_kernels_of_a_gpu(small, monkeypatch):
    """Copied to the emulator of tests/cuda_host and back."""
    monkeypatch.setattr(selftest, "SHAPES", ((3, 2, 5, 7),))
    with platform(variants.known_device(90, 8)) as gpus:
        rnn_ops.use("cuda")
        try:
            assert failures(selftest.check_custom(here())) == []
        finally:
            rnn_ops.use("cpu")
        assert len(gpus.emulators[0].launches) > 50


def test_every_grad_req_and_operator_is_among_them(small):
    said = [outcome.what for check in (selftest.check_custom, selftest.check_native, selftest.check_unguarded)
            for outcome in check(here())]
    for operator in "CustomOp", "native":
        for grad_req in "write", "null", "add":
            for kind in "tokens float32 tanh", "tokens float32 relu", "dense float64 tanh":
                assert f"{operator}: 4×3×5×33 {kind}, grad_req {grad_req}" in said
    assert len(said) == len(set(said)) == 2 * 3 * 12 + 12 + 1


# --- what is wrong

def replaced(monkeypatch, defect):
    """The CustomOp with a defect."""
    calls = []

    def operator(inputs, state, *weights, activation):
        calls.append(0)
        outputs, last = custom.rnn_sequence(inputs, state, *weights, activation=activation)
        if defect == "wrong":
            outputs, last = outputs * 1.001, last * 1.001
        if defect == "other last state":
            last = last + 1
        if defect == "late":  # reads what has been overwritten since: by other bits in some calls
            last = last + (len(calls) % 61 == 0) * 1e-6
        if defect == "fails":
            raise mx.MXNetError("CUDA: no kernel image is available\nfor execution")
        return outputs, last

    monkeypatch.setitem(selftest.OPERATORS, "CustomOp", operator)


@pytest.mark.parametrize("defect, reason", [
    ("wrong", "outputs has a relative error of "), ("other last state", "the last state is not the last of the outputs"),
    ("fails", "MXNetError: CUDA: no kernel image is available for execution")])
def test_a_wrong_operator_fails(small, monkeypatch, defect, reason):
    replaced(monkeypatch, defect)
    found = failures(selftest.check_custom(here()))
    assert found and all(line.startswith(FAILED) for line in found)
    assert any(reason in line for line in found), found[:3]


def test_a_gradient_with_grad_req_null_must_stay(small, monkeypatch):
    monkeypatch.setattr(mx.autograd, "mark_variables", lambda variables, gradients, reqs, _of=mx.autograd.mark_variables:
                        _of(variables, gradients, ["write"] * len(reqs)))
    found = failures(selftest.check_custom(here()))
    assert any("Whh's gradient was written, although its grad_req is null" in line for line in found)
    assert any("grad_req add: d" in line for line in found)


def test_a_missing_kernel_of_mxnets_is_no_failure_where_it_has_none(small, monkeypatch):
    replaced(monkeypatch, "fails")
    outcomes = [outcome for outcome in selftest.check_custom(without_kernels()) if "grad_req" in outcome.what]
    assert {outcome.status for outcome in outcomes} == {SKIPPED}
    assert "MXNet has no kernel of its own for this GPU" in outcomes[0].reason


def test_copies_are_found(small, monkeypatch):
    """A device that computes on copies."""
    from rnn_ops.operators import devices

    class Copying(devices.Cpu):
        def view(self, array):
            return ndarray.view(array).copy() if array.ndim == 1 else ndarray.view(array)

    monkeypatch.setattr(custom, "device_for", lambda context: Copying())
    outcome, = [outcome for outcome in selftest.check_custom(here()) if "own memory" in outcome.what]
    assert outcome.status == FAILED and "computed at" in outcome.reason


def test_what_comes_late_is_found(small, monkeypatch):
    replaced(monkeypatch, "late")
    outcome = selftest.check_streams(here())[0]
    assert outcome.status == FAILED and "differ from those of calls that were waited for" in outcome.reason


def test_memory_that_is_gone_is_found(small):
    free = iter(range(10 ** 9, 0, -64))
    found = selftest.check_memory(here()._replace(free_memory=lambda: next(free)))
    assert {outcome.reason for outcome in found} == {"64 bytes of the GPU's memory are gone"}
    assert selftest.check_memory(here()._replace(free_memory=None))[0].status == SKIPPED


# --- each check in a process of its own

def passes(target):
    return [Outcome(f"on {target.context}", PASSED, numbers={"error": 1e-7, "forward": 1234.5})]


def fails(target):
    return [Outcome("this", FAILED, "for a reason"), Outcome("that", SKIPPED, "for another")]


def ends(target):
    os._exit(7)


def hangs(target):
    time.sleep(600)


def raises(target):
    raise ValueError("no such\nthing")


def test_an_outcome_as_a_line():
    assert list(map(str, passes(here()) + fails(here()))) == [
        "PASS    on cpu(0) (error 1e-07, forward 1,234)", "FAIL    this: for a reason", "SKIPPED that: for another"]


@pytest.mark.slow
def test_a_process_that_ends_or_hangs_is_a_failure(monkeypatch):
    """The processes import this file by its name."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.abspath(__file__)))
    monkeypatch.setattr(selftest, "SECONDS", 15)
    import test_operator_selftest as importable
    outcomes = []
    selftest.run(outcomes.append, (importable.passes, importable.ends, importable.hangs, importable.raises, importable.fails),
                 importable.here)
    assert outcomes == passes(here()) + [
        Outcome("ends", FAILED, "its process ended with exit code 7"), Outcome("hangs", FAILED, "did not end within 15 s"),
        Outcome("raises", FAILED, "ValueError: no such thing")] + fails(here())


def test_an_mxnet_for_cpus_is_a_sentence(monkeypatch):
    with platform(variants.known_device(90, 8)):
        monkeypatch.setattr(mx.context, "num_gpus", lambda: 0)
        assert "it needs to be mxnet-cu112" in selftest.why_not()
        monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
        assert selftest.why_not() is None


# --- the command

def one_of_each(target):
    return [Outcome("this", FAILED, "for a reason"), Outcome("that", SKIPPED, "for another"), Outcome("these", PASSED)]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_command_checks_arrays_on_a_gpu(capability, monkeypatch, capfd, tmp_path):
    """``rnn-ops check --device cuda`` where MXNet is built for CUDA; for Hopper, which MXNet has no kernels for, with --full."""
    monkeypatch.setattr(kernels_selftest, "run", lambda report, full: [])
    monkeypatch.setattr(gradcheck, "default_cases", lambda: [gradcheck.Case("step", 1, 3, 2, 5)])
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    asked = []

    def run(report, checks):
        asked.append(checks)
        for outcome in one_of_each(None):
            report(outcome)

    monkeypatch.setattr(selftest, "run", run)
    with platform(variants.known_device(capability, 8)):
        for options in [], ["--full"]:
            path = tmp_path / "check.json"
            status = main(["check", "--device", "cuda", "--json", str(path), *options])
            stdout, record = capfd.readouterr().out, json.loads(path.read_text())
            if capability == 90 and not options:
                assert status == 0 and any("MXNet 1.9.1 has no kernels" in sentence for sentence in record["left_out"])
                continue
            assert status == 1 and not record["passed"] and len(record["arrays_on_gpu"]) == 3
            assert "FAIL    this: for a reason\n3 checks, 1 failed, 1 skipped\n" in stdout and "SKIPPED" not in stdout
            assert not any("mx.gpu(0)" in sentence for sentence in record["left_out"])
    assert asked == ([selftest.SHORT] if capability == 80 else []) + [selftest.CHECKS]
