"""The benchmark's part about MXNet's arrays on a GPU, benchmarks/gpu_mxnet.py, with the CPU in the GPU's place."""
import json
import sys

import numpy as np
import pytest
from rnn_ops_benchmarks import folder, gpu_mxnet, gpu_report, gpu_work, problems
from rnn_ops_benchmarks.rehearsal import made_up
from rnn_ops_benchmarks.worker import FAILED, NOT_OFFERED, OK

from cuda_host import platform
from rnn_ops._mxnet import mx
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.numpy_gpu import NumPyGpu
from rnn_ops.operators import selftest
from test_operator_selftest import here, without_kernels


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_mxnet, "TUTORIAL", problems.Shape(4, 3, 5, 8, tokens=True))
    monkeypatch.setattr(gpu_mxnet, "_SECONDS", 0.001)


@pytest.mark.parametrize("name", gpu_mxnet.PROVIDERS)
@pytest.mark.slow
def test_right_operators_are_timed(name, small):
    rows = gpu_mxnet.measure(here(), name)
    assert [row["direction"] for row in rows] == (["training step"] if "training" in name else ["forward", "forward+backward"])
    for row in rows:
        assert (row["status"], row["provider"], row["shape"]) == (OK, name, [4, 3, 5, 8]), row
        assert all(np.isfinite(row[figure]) and row[figure] > 0 for figure in ("wall", "wall_waited"))
        assert row.get("error", 0) < 1e-5
    json.dumps(rows)


def test_the_training_steps_need_mxnets_kernels():
    row, = gpu_mxnet.measure(without_kernels(), "training with ndarray loop")
    assert row["status"] == NOT_OFFERED and "MXNet has no kernel of its own for this GPU" in row["reason"]


def passes(target):
    return {"forward": {"wall": 1.2345e-3, "wall_waited": 2e-3}}


def breaks(target):
    raise KeyboardInterrupt("as if the process had ended")


def fails(target):
    raise ValueError("for a reason")


def test_the_part_of_the_command_goes_on_behind_a_provider_that_ended_its_process(tmp_path, monkeypatch):
    results = folder.Folder(str(tmp_path))
    results.make()
    part = gpu_work.Work("mxnet", results, NumPyGpu(), "small", 60, ())
    monkeypatch.setattr(gpu_mxnet, "PROVIDERS", {
        name: ("tokens", body) for name, body in (("this", passes), ("other", breaks), ("that", fails))})
    monkeypatch.setattr(selftest, "gpu", here)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    with platform(variants.known_device(80, 8)):
        with pytest.raises(KeyboardInterrupt):
            gpu_work._mxnet(part)
        assert gpu_work._mxnet(part) == gpu_work.FOUND
    found = results.read(folder.RESULTS, "mxnet")
    assert [(row["provider"], row["direction"], row["status"]) for row in found["rows"]] == [
        ("this", "forward", OK), ("that", None, FAILED)]
    assert found["failed"] == ["other: its process has ended, or hung until it was", "that: ValueError: for a reason"]
    lines = gpu_report.markdown(dict(made_up(), mxnet=found)).splitlines()
    assert "| this | tokens | forward | 1,234 | 2,000 |  |" in lines
    assert "| that | tokens | failed: ValueError: for a reason |  |  |  |" in lines


def test_without_mxnet_or_its_gpu_the_part_is_left_out(tmp_path, monkeypatch):
    part = gpu_work.Work("mxnet", folder.Folder(str(tmp_path)), NumPyGpu(), "small", 60, ())
    with pytest.raises(gpu_work.LeftOut):  # no GPU here, or an MXNet for CPUs
        gpu_work._mxnet(part)
    monkeypatch.setitem(sys.modules, "rnn_ops.operators.selftest", None)
    monkeypatch.delattr("rnn_ops.operators.selftest")
    with pytest.raises(gpu_work.LeftOut, match="selftest"):
        gpu_work._mxnet(part)
