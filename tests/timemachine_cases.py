"""A small run of `rnn-ops train` and comparisons of runs, for the tests of runs."""
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from emulated_gpu import EmulatedGpu
from rnn_ops_cli.main import main
from rnn_ops_timemachine import checkpoint, cuda_training, learners
from rnn_ops_timemachine.settings import METRICS, SAMPLES

SMALL = ["--hidden", "8", "--batch-size", "3", "--sequence-length", "7"]
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture
def book_file(tmp_path):
    """A little book that has all the characters of the tutorial's first prompt and not those of its second."""
    path = tmp_path / "little book.txt"
    path.write_text("The Time Machine is a machine of time.\nSo it ticks, and it tocks, and it stops.\n" * 8)
    return str(path)


@pytest.fixture
def train(book_file, tmp_path, capfd, monkeypatch):
    """Run `rnn-ops train` on the little book, on a very wide screen → (exit status, folder, stdout, stderr).

    The emulator stands in for a GPU (--step cuda).
    """
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(learners, "cuda", types.SimpleNamespace(why_not=lambda: None))
    monkeypatch.setattr(cuda_training, "first_gpu", EmulatedGpu)

    def call(*options, out="out"):
        if "cuda" in options:  # its version is written down; some versions cannot be imported without a driver
            pytest.importorskip("cupy", exc_type=ImportError)
        if "torch" in options:
            pytest.importorskip("torch")
        folder = str(tmp_path / out)
        what = [] if "--resume" in options else ["--text", book_file, *SMALL]
        status = main(["train", "--out", folder, *what, *options])
        return (status, folder, *capfd.readouterr())
    return call


def metrics_of(folder, without=()):
    with open(os.path.join(folder, METRICS)) as file:
        return [{name: value for name, value in json.loads(line).items() if name not in without} for line in file]


def content_of(folder):
    """The bytes of every file."""
    contents = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            contents[name] = file.read()
    return contents


def assert_same_run(one, other):
    """All that a run leaves is the same, to the bit, but for times."""
    assert metrics_of(one, TIMES) == metrics_of(other, TIMES)
    assert content_of(one)[SAMPLES] == content_of(other)[SAMPLES]
    first, second = checkpoint.load(one), checkpoint.load(other)
    for name in first.parameters:
        np.testing.assert_array_equal(first.parameters[name], second.parameters[name])
    assert first.settings["moving_loss"] == second.settings["moving_loss"]


def one_line(stderr, *parts):
    assert len(stderr.splitlines()) == 1 and stderr.startswith("rnn-ops: "), stderr
    for part in parts:
        assert part in stderr


def start_train(book, folder, *options, before="", **kinds):
    """Start `rnn-ops train` on a text in a process of its own, Python code ``before`` it; its two outputs are one pipe."""
    command = ["train", "--text", book, *SMALL, "--out", folder, *options]
    code = f"import sys; from rnn_ops_cli.main import main\n{before}\nsys.exit(main({command}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            universal_newlines=True, cwd=os.path.dirname(folder), **kinds)


def train_by_hand(parameters, inputs, labels, learning_rate, rnn_sequence):
    """The losses of an epoch, from which `model.Parameters` learn: one operation after the other, no block, no trainer."""
    from rnn_ops._mxnet import mx
    from rnn_ops_timemachine import model
    losses, state = [], mx.nd.zeros((inputs.shape[2], len(parameters.bh)), dtype=parameters.bh.dtype)
    for tokens, targets in zip(inputs, labels):
        with mx.autograd.record():
            loss, state = model.loss(tokens, targets, state, parameters, rnn_sequence)
        loss.backward()
        for parameter in parameters:
            mx.nd.sgd_update(parameter, parameter.grad, lr=learning_rate, out=parameter)
        state = state.detach()
        losses.append(float(loss.asscalar()))
    return losses
