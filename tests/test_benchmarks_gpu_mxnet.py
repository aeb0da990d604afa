"""benchmarks/gpu/mxnet_timing.py with the CPU in the GPU's place."""
import json
import sys

import numpy as np
import pytest

from cuda_host import platform
from rnn_ops._mxnet import mx
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.numpy_gpu import NumPyGpu
from rnn_ops.operators import selftest
from rnn_ops_benchmarks import problems
from rnn_ops_benchmarks.gpu import cells, folder, mxnet_timing, tables, work
from rnn_ops_benchmarks.gpu.rehearsal import made_up
from test_operator_selftest import failures, here, without_kernels


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mxnet_timing, "TUTORIAL", cells.Cell(4, 3, 5, 8))
    monkeypatch.setattr(mxnet_timing, "TIMED", 10)
    monkeypatch.setattr(problems, "TUTORIAL", problems.Shape(4, 3, 5, 8, tokens=True))


@pytest.mark.parametrize("part", mxnet_timing.PARTS, ids=lambda part: part.__name__)
@pytest.mark.slow
def test_right_operators_are_timed(part, small):
    outcomes = part(here())
    assert outcomes and failures(outcomes) == []
    json.dumps([outcome._asdict() for outcome in outcomes])


def test_the_tutorials_loop_needs_mxnets_kernels():
    assert [outcome.status for outcome in mxnet_timing.time_training(without_kernels())] == [selftest.SKIPPED]


def test_the_bare_kernels_are_timed_on_mxnets_memory(small):
    outcomes = {outcome.what: outcome.numbers for outcome in mxnet_timing.time_cost(here())}
    assert set(outcomes) == {f"{name}: µs a call" for name in ("bare kernels", "CustomOp", "native", "native, unguarded")}
    for numbers in outcomes.values():
        assert set(numbers) == {"forward", "forward+backward", "forward, each waited for"}
        assert all(np.isfinite(value) and value > 0 for value in numbers.values())


def passes(target):
    return [selftest.Outcome("this", selftest.PASSED, numbers={"forward": 1234.5})]


def breaks(target):
    raise RuntimeError("as if the process had ended")


def fails(target):
    return [selftest.Outcome("that", selftest.FAILED, "for a reason")]


def test_the_part_of_the_command_goes_on_behind_a_piece_that_ended_its_process(tmp_path, monkeypatch):
    results = folder.Folder(str(tmp_path))
    results.make()
    part = work.Work("mxnet", results, NumPyGpu(), "small", 60, ())
    monkeypatch.setattr(mxnet_timing, "PARTS", (passes, breaks, fails))
    monkeypatch.setattr(selftest, "gpu", here)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    with platform(variants.known_device(80, 8)):
        with pytest.raises(RuntimeError):
            work._mxnet(part)
        assert work._mxnet(part) == work.FOUND
    found = results.read(folder.RESULTS, "mxnet")
    assert found["lines"] == ["PASS    this (forward 1,234)", "FAIL    that: for a reason"]
    assert found["failed"] == ["breaks: its process has ended, or hung until it was", "FAIL    that: for a reason"]
    assert "- PASS    this (forward 1,234)" in tables.markdown(dict(made_up(), mxnet=found)).splitlines()


def test_without_mxnet_or_its_gpu_the_part_is_left_out(tmp_path, monkeypatch):
    part = work.Work("mxnet", folder.Folder(str(tmp_path)), NumPyGpu(), "small", 60, ())
    with pytest.raises(work.LeftOut):  # no GPU here, or an MXNet for CPUs
        work._mxnet(part)
    monkeypatch.setitem(sys.modules, "rnn_ops.operators.selftest", None)
    monkeypatch.delattr("rnn_ops.operators.selftest")
    with pytest.raises(work.LeftOut, match="selftest"):
        work._mxnet(part)
