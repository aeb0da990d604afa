"""A run of the benchmark on the real CuPy: the command, its processes and its own GPU, on a stand-in driver.

Left out is what needs hardware: how fast it is, and what CuPy's own kernels compute.
"""
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("cupy")
import cuda_standin  # noqa: E402
from rnn_ops.backends.cuda import compiler  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    version, _ = cuda_standin.cublas_names()
    try:
        compiler.find(90, 1000 * version if version > 11 else 12040)  # the stand-in's driver
    except RuntimeError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("standin")
    cuda_standin.build(str(folder))
    found = dict(cuda_standin.environment(str(folder)), CUDA_PATH=str(folder / "no toolkit"))
    if "RNN_OPS_CACHE" in os.environ:
        found["RNN_OPS_CACHE"] = os.environ["RNN_OPS_CACHE"]
    return dict(found, PYTHONPATH=os.pathsep.join([found["PYTHONPATH"], HERE]))


@pytest.mark.slow
def test_a_run(environment, tmp_path):
    out = tmp_path / "out"
    process = subprocess.run(
        [sys.executable, "-m", "rnn_ops_benchmarks", "--device", "cuda", "--out", str(out), "--gpu", "gpu_standin:gpu", "--sizes",
         "small", "--only", "first", "tutorial", "microbench", "occupancy", "training"], env=environment, cwd=tmp_path,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.returncode == 1, process.stdout
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert "Stand-in H100" in process.stdout
    assert result["gpu"]["clusters"] == [cuda_standin.Driver().clusters[size] for size in (2, 4, 8, 16)]
    ended = {name: its["status"] for name, its in result["parts"].items()}
    # Nothing writes the micro-benchmarks' cycles or the losses.
    done = ("device", "compile", "first-resident", "first-cluster", "first-cluster-barrier", "first-grid", "first-stepwise",
            "tutorial", "occupancy")
    assert ended == {**dict.fromkeys(done, "done"), "microbench": "failed", "training": "failed"}, process.stdout
    for name, found in result["checks"].items():
        family = name.split("-")[1]
        assert found["failed"] == [] and found["families"][family]["right"] == found["count"] > 10
    timed = [row for row in result["rows"] if row["provider"] == "ours"]
    assert {row["family"] for row in timed} == {"resident", "cluster", "grid", "stepwise"}
    assert all(row["status"] == "ok" and row["error"] < 1e-5 for row in timed)
    assert len(result["microbench"]["rows"]) == 49
    for row in result["microbench"]["rows"]:
        assert row["reason"] == ("gave up waiting for another block" if row["blocks"] > 1 else "wrote no result")
    rows = result["occupancy"]["rows"]
    assert all(row["blocks"] >= 1 and (row["clusters"] or 0) >= (row["family"] == "cluster") for row in rows)
    assert all("a loss is off by" in sentence for sentence in result["training"]["failed"]) and result["training"]["failed"]
