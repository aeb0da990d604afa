"""benchmarks/gpu/mxnet_gpu.py with the CPU in the GPU's place: what it checks passes, and what is wrong is found."""
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import rnn_ops
from cuda_host import platform
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu, cuda
from rnn_ops.backends.cuda import variants
from rnn_ops.operators import custom, ndarray
from rnn_ops_benchmarks import problems
from rnn_ops_benchmarks.gpu import cells, mxnet_checks, mxnet_gpu
from rnn_ops_benchmarks.gpu.mxnet_checks import FAILED, PASSED, SKIPPED, Outcome, Place


def here():
    """The place of the tests."""
    return Place(mx.cpu(), True, cpu, ndarray.view, lambda array: array.ctypes.data, lambda: None, lambda: 10 ** 9)


def without_kernels():
    return here()._replace(has_mxnet_kernels=False)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mxnet_checks, "SHAPES", ((3, 2, 5, 7), (4, 3, 5, 33)))
    monkeypatch.setattr(mxnet_checks, "TUTORIAL", cells.Cell(4, 3, 5, 8))
    monkeypatch.setattr(problems, "TUTORIAL", problems.Shape(4, 3, 5, 8, tokens=True))
    for name, value in dict(QUEUED=60, CALLS=30, SETTLED=10, TIMED=10).items():
        monkeypatch.setattr(mxnet_checks, name, value)


def failures(outcomes):
    return [str(outcome) for outcome in outcomes if outcome.status != PASSED]


@pytest.mark.parametrize("check", mxnet_checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.slow
def test_what_is_right_passes(check, small):
    outcomes = check(here())
    assert outcomes and failures(outcomes) == []
    json.dumps([outcome._asdict() for outcome in outcomes])


@pytest.mark.slow
def test_the_custom_op_passes_with_the_kernels_of_a_gpu(small, monkeypatch):
    """Copied to the machine of tests/cuda_host and back."""
    monkeypatch.setattr(mxnet_checks, "SHAPES", ((3, 2, 5, 7),))
    with platform(variants.known_device(90, 8)) as gpus:
        rnn_ops.use("cuda")
        try:
            assert failures(mxnet_checks.check_custom(here())) == []
        finally:
            rnn_ops.use("cpu")
        assert len(gpus.hosts[0].launches) > 50


def test_every_grad_req_and_operator_is_among_them(small):
    said = [outcome.what for check in (mxnet_checks.check_custom, mxnet_checks.check_native, mxnet_checks.check_unguarded)
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

    monkeypatch.setitem(mxnet_checks.OPERATORS, "CustomOp", operator)


@pytest.mark.parametrize("defect, reason", [
    ("wrong", "outputs has a relative error of "), ("other last state", "the last state is not the last of the outputs"),
    ("fails", "MXNetError: CUDA: no kernel image is available for execution")])
def test_a_wrong_operator_fails(small, monkeypatch, defect, reason):
    replaced(monkeypatch, defect)
    found = failures(mxnet_checks.check_custom(here()))
    assert found and all(line.startswith(FAILED) for line in found)
    assert any(reason in line for line in found), found[:3]


def test_an_argument_that_nobody_asked_for_must_stay(small, monkeypatch):
    monkeypatch.setattr(mx.autograd, "mark_variables", lambda variables, gradients, reqs, _of=mx.autograd.mark_variables:
                        _of(variables, gradients, ["write"] * len(reqs)))
    found = failures(mxnet_checks.check_custom(here()))
    assert any("Whh's gradient was written, and nobody has asked for it" in line for line in found)
    assert any("grad_req add: d" in line for line in found)


def test_a_missing_kernel_of_mxnets_is_no_failure_where_it_has_none(small, monkeypatch):
    replaced(monkeypatch, "fails")
    outcomes = [outcome for outcome in mxnet_checks.check_custom(without_kernels()) if "grad_req" in outcome.what]
    assert {outcome.status for outcome in outcomes} == {SKIPPED}
    assert "needs a kernel of MXNet's own" in outcomes[0].reason
    assert [outcome.status for outcome in mxnet_checks.check_training(without_kernels())] == [SKIPPED]


def test_copies_are_found(small, monkeypatch):
    """A place that computes on copies."""
    from rnn_ops.operators import devices

    class Copying(devices.Cpu):
        def view(self, array):
            return ndarray.view(array).copy() if array.ndim == 1 else ndarray.view(array)

    monkeypatch.setattr(custom, "device_for", lambda context: Copying())
    outcome, = [outcome for outcome in mxnet_checks.check_custom(here()) if "own memory" in outcome.what]
    assert outcome.status == FAILED and "computed at" in outcome.reason


def test_what_comes_late_is_found(small, monkeypatch):
    replaced(monkeypatch, "late")
    outcome = mxnet_checks.check_streams(here())[0]
    assert outcome.status == FAILED and "differ from those of calls that were waited for" in outcome.reason


def test_memory_that_is_gone_is_found(small):
    free = iter(range(10 ** 9, 0, -64))
    found = mxnet_checks.check_memory(here()._replace(free_memory=lambda: next(free)))
    assert {outcome.reason for outcome in found} == {"64 bytes of the device's memory are gone"}
    assert mxnet_checks.check_memory(here()._replace(free_memory=None))[0].status == SKIPPED


# --- the command

def passes(place):
    return [Outcome(f"on {place.context}", PASSED, numbers={"error": 1e-7, "forward": 1234.5})]


def fails(place):
    return [Outcome("this", FAILED, "for a reason"), Outcome("that", SKIPPED, "for another")]


def ends(place):
    os._exit(7)


def hangs(place):
    time.sleep(600)


def test_lines_and_the_result_file(tmp_path, capsys):
    path, result = tmp_path / "result.json", {"complete": False, "outcomes": []}

    def run(check, place):
        if check is fails:
            written = json.loads(path.read_text(encoding="utf-8"))  # as a kill would leave it
            assert len(written["outcomes"]) == 1 and not written["complete"]
        return check(place())

    assert mxnet_gpu.work(result, str(path), (passes, fails), here, run) == 1
    assert capsys.readouterr().out.splitlines() == [
        "PASS    on cpu(0) (error 1e-07, forward 1,234)", "FAIL    this: for a reason", "SKIPPED that: for another",
        f"3 checks, 1 failed. Written: {path}"]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["complete"] and written["outcomes"][0] == {
        "what": "on cpu(0)", "status": "PASS", "reason": "", "numbers": {"error": 1e-7, "forward": 1234.5},
        "check": "passes"}
    assert mxnet_gpu.work(dict(result, outcomes=[]), str(path), (passes,), here, run) == 0


@pytest.mark.slow
def test_a_process_that_ends_or_hangs_is_a_failure(monkeypatch):
    """In processes as the command starts them; they import this file by its name."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.abspath(__file__)))
    import test_benchmarks_gpu_mxnet as importable
    assert mxnet_gpu.in_a_process(importable.passes, importable.here) == importable.passes(here())
    outcome, = mxnet_gpu.in_a_process(importable.ends, importable.here)
    assert outcome == Outcome("ends", FAILED, "its process ended with exit code 7")
    outcome, = mxnet_gpu.in_a_process(importable.hangs, importable.here, seconds=1)
    assert outcome == Outcome("hangs", FAILED, "did not end in time")


def test_without_a_gpu_one_sentence_and_status_2(tmp_path):
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    process = subprocess.run([sys.executable, "-m", "rnn_ops_benchmarks.gpu.mxnet_gpu"], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 2 and process.stdout == "" and list(tmp_path.iterdir()) == []
    assert process.stderr == f"benchmarks.gpu.mxnet_gpu: {cuda.why_not()}.\n"


def test_an_mxnet_for_cpus_is_a_sentence(monkeypatch):
    with platform(variants.known_device(90, 8)):
        monkeypatch.setattr(mx.context, "num_gpus", lambda: 0)
        assert "it needs to be mxnet-cu112" in mxnet_gpu.why_not()
        monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
        assert mxnet_gpu.why_not() is None


def test_help_explains(capsys):
    with pytest.raises(SystemExit):
        mxnet_gpu.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("every grad_req", "20,000", "mx.nd.RNN", "Exit status", "incomplete", "--json"):
        assert word in text


def test_the_bare_kernels_are_timed_on_mxnets_memory(small):
    outcomes = {outcome.what: outcome.numbers for outcome in mxnet_checks.check_cost(here())}
    assert set(outcomes) == {f"{name}: µs a call" for name in ("bare kernels", "CustomOp", "native", "native, unguarded")}
    for numbers in outcomes.values():
        assert set(numbers) == {"forward", "forward+backward", "forward, each waited for"}
        assert all(np.isfinite(value) and value > 0 for value in numbers.values())
