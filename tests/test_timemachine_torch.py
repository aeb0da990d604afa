"""`rnn-ops train --step torch`: the learner in PyTorch, and runs in processes that have no MXNet."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rnn_ops import info
from rnn_ops_timemachine import checkpoint, job
from timemachine_cases import book_file, content_of, metrics_of, one_line
from timemachine_cases import train as train_run
from training_cases import WORDS, descend, problem, train

torch = pytest.importorskip("torch")
from rnn_ops_timemachine import torch_training  # noqa: E402


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 2e-5)])
def test_several_epochs_are_those_of_numpy(dtype, bound):
    arrays, inputs, labels = problem(dtype)
    before = {name: array.copy() for name, array in arrays.items()}
    true, true_arrays = descend({name: array.astype("float64") for name, array in arrays.items()}, inputs, labels, 4)
    assert true[-1].mean() < 0.9 * true[0].mean()
    learner = torch_training.Learner(arrays)
    assert np.abs(train(learner, inputs.astype(np.uint8), labels.astype(np.uint8), 4) - true).max() < bound
    found = learner.arrays()
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert array.dtype == dtype and np.abs(array - true_arrays[name]).max() < bound, name
        assert np.array_equal(arrays[name], before[name])  # the learner has its own


def test_the_same_training_gives_the_same_bits():
    arrays, inputs, labels = problem("float32")
    first, again = (torch_training.Learner(arrays) for _ in range(2))
    assert np.array_equal(train(first, inputs, labels, 3), train(again, inputs, labels, 3))
    for name, array in first.arrays().items():
        assert np.array_equal(array, again.arrays()[name])


def test_the_validation_loss_learns_nothing_and_disturbs_nothing():
    arrays, inputs, labels = problem("float64", batches=4)
    true, _ = descend(arrays, inputs[:1], labels[:1], 1)
    alone, among = (torch_training.Learner(arrays) for _ in range(2))
    assert among.loss(inputs[:1], labels[:1]) == pytest.approx(true[0, 0], rel=1e-12)
    expected = train(alone, inputs, labels, 2)
    first = list(among.train_epoch(inputs, labels, 0.5))
    before = among.arrays()
    assert 0 < among.loss(inputs, labels) < 10
    assert all(np.array_equal(before[name], array) for name, array in among.arrays().items())
    assert np.array_equal([first, list(among.train_epoch(inputs, labels, 0.5))], expected)
    assert not np.array_equal(before["Whh"], among.arrays()["Whh"])  # a copy, which training leaves alone


def test_a_row_far_below_another_has_a_finite_loss():
    arrays, inputs, labels = problem("float32", batches=1)
    arrays["by"][0] = 500
    loss, = torch_training.Learner(arrays).train_epoch(inputs, labels, 0)
    assert np.isfinite(loss) and loss > 250


def test_training_that_diverges_is_an_error():
    arrays, inputs, labels = problem("float32")
    learner = torch_training.Learner(arrays)
    with pytest.raises(FloatingPointError, match="training has diverged: the loss of batch 2 is "):
        list(learner.train_epoch(inputs, labels, 1e38))
    arrays["Whh"][0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="training has diverged: Whh is no longer finite"):
        torch_training.Learner(arrays).arrays()


# --- as a run

def command(*words, blocked=(), **settings):
    """(exit status, stdout, stderr) of a command in a process that lacks some modules."""
    code = (f"import sys; sys.modules.update(dict.fromkeys({list(blocked)}))\nfrom rnn_ops_cli.main import main\n"
            "status = main(sys.argv[1:])\nassert 'mxnet' not in sys.modules or sys.modules['mxnet'] is None\nsys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True,
                          env=dict(os.environ, COLUMNS="1000", **settings))
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_needs_neither_mxnet_nor_cupy(tmp_path):
    """It takes the step by itself, is resumed to the same bits, validated, sampled from, and begins another one."""
    def call(*words):
        return command(*words, blocked=["mxnet", "cupy"])

    book, whole, out = tmp_path / "words.txt", str(tmp_path / "whole"), str(tmp_path / "run")
    book.write_text(WORDS * 6)
    options = ["--text", str(book), "--hidden", "8", "--batch-size", "3", "--sequence-length", "7", "--validation", "0.2"]
    assert call("train", *options, "--epochs", "3", "--out", whole)[::2] == (0, "")
    status, stdout, stderr = call("train", *options, "--epochs", "2", "--out", out)
    assert (status, stderr) == (0, "") and "torch step" in stdout
    status, stdout, stderr = call("train", "--resume", "--epochs", "3", "--out", out)
    assert (status, stderr) == (0, "") and "epochs 3 to 3" in stdout
    assert [line["validation_loss"] for line in metrics_of(out)] == [line["validation_loss"] for line in metrics_of(whole)]
    for name, array in checkpoint.load(whole).parameters.items():
        assert np.array_equal(array, checkpoint.load(out).parameters[name])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["step"] == "torch" and len(record["sessions"]) == 2
    assert set(record["sessions"][0]["versions"]) == {"python", "numpy", "torch", "rnn_ops"}
    status, stdout, stderr = call("sample", "--checkpoint", out, "--prompt", "the cat", "--length", "20")
    assert (status, stderr, len(stdout)) == (0, "", 28)
    other = ["--batch-size", "3", "--sequence-length", "7", "--epochs", "1", "--ctx", "cpu(0)", "--out", str(tmp_path / "other")]
    assert call("train", "--text", str(book), "--init-from", out, *other)[::2] == (0, "")
    session, = json.loads((tmp_path / "other" / "run.json").read_text())["sessions"]
    assert session["ctx"] == "cpu(0)" and session["step"] == "torch"


@pytest.mark.slow
def test_where_mxnet_is_installed_it_is_not_imported(book_file, tmp_path):
    """Its import would halve the threads of PyTorch. `command` looks for it."""
    out = str(tmp_path / "out")
    small = ["--text", book_file, "--hidden", "8", "--batch-size", "3", "--sequence-length", "7", "--epochs", "1"]
    assert command("train", *small, "--step", "torch", "--out", out)[::2] == (0, "")
    for words in ["--ctx", "cpu(0)"], []:
        assert command("train", "--resume", *words, "--out", out, "--epochs", "2")[::2] == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("torch", "native"), ("native", "torch")])
def test_a_run_goes_on_with_another_step(train_run, first, then):
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    _, whole, _, _ = train_run("--epochs", "4", "--step", first, out="whole")
    assert train_run("--epochs", "2", "--step", first, out="parts")[0] == 0
    status, parts, stdout, stderr = train_run("--resume", "--step", then, "--epochs", "4", out="parts")
    assert (status, stderr) == (0, "") and f"{then} step; epochs 3 to 4" in stdout
    expected, found = ([line["loss"] for line in metrics_of(folder)] for folder in (whole, parts))
    assert found[:2] == expected[:2] and found[2:] == pytest.approx(expected[2:], rel=1e-5) and expected[3] < expected[2]
    for name, array in checkpoint.load(whole).parameters.items():
        np.testing.assert_allclose(checkpoint.load(parts).parameters[name], array, atol=1e-5)
    record = json.loads(content_of(parts)["run.json"])
    assert [session["step"] for session in record["sessions"]] == [first, then] and record["settings"]["step"] == then
    assert train_run("--resume", "--epochs", "5", out="parts")[2].count(f"{then} step; epochs 5 to 5") == 1  # it stays


@pytest.mark.parametrize("options, said", [
    (["--kvstore", "local"], "step: got 'torch', which trains on one device, such as --ctx 'gpu(0)', and does not split batches "
                             "(--kvstore, --workers)"),
    (["--workers", "2"], "step: got 'torch', which trains on one device, such as --ctx 'gpu(0)', and does not split batches"),
    (["--ctx", "cpu(0),cpu(1)"], "ctx: got 'cpu(0),cpu(1)', needs one such as gpu(0): the torch step trains on one device"),
    (["--ctx", "cpu"], "ctx: got 'cpu', needs cpu(0), or several"),
    (["--ctx", "gpu(7)"], f"ctx: got gpu(7), but PyTorch finds {torch.cuda.device_count()} GPUs")])
def test_what_it_cannot_do_is_named(train_run, options, said):
    status, folder, stdout, stderr = train_run("--step", "torch", *options)
    assert (status, stdout) == (2, "") and not os.path.exists(folder)
    one_line(stderr, f"rnn-ops: error: {said}")


def test_workers_are_refused_before_they_start(train_run, monkeypatch):
    monkeypatch.setattr(job, "run", None)
    status, _, stdout, stderr = train_run("--step", "torch", "--workers", "2")
    assert (status, stdout) == (2, "")
    one_line(stderr, "rnn-ops: error: step: got 'torch', which trains on one device")


def test_info_names_the_version():
    assert info.collect()["PyTorch"] == torch.__version__


def test_a_gpu_is_named_as_in_mxnet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch_training.Device("gpu(1)").device == torch.device("cuda", 1)
    assert torch_training.Device("cpu(0)").device == torch.device("cpu")
