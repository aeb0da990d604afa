"""`rnn-ops train --step cuda` without a GPU: the learner on NumPy arrays and the emulator of the CUDA kernels."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from emulated_gpu import EmulatedGpu
from rnn_ops import numpy_reference
from rnn_ops.backends.cuda import variants
from rnn_ops_cli.main import main
from rnn_ops_timemachine import cuda_training
from rnn_ops_timemachine.settings import STEPS
from training_cases import WORDS, descend, problem, train


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.slow
def test_several_epochs_are_those_of_numpy(architecture, dtype, bound):
    arrays, inputs, labels = problem(dtype)
    true, true_arrays = descend({name: array.astype("float64") for name, array in arrays.items()}, inputs, labels, 4)
    assert true[-1].mean() < 0.9 * true[0].mean()
    learner = cuda_training.Learner(arrays, EmulatedGpu(architecture))
    assert np.abs(train(learner, inputs, labels, 4) - true).max() < bound
    found = learner.arrays()
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert array.dtype == dtype and np.abs(array - true_arrays[name]).max() < bound, name


@pytest.mark.slow
def test_one_step_is_the_gradient_of_the_mean_loss():
    arrays, inputs, labels = problem("float64", batches=1)
    loss, gradients = numpy_reference.language_model_gradients(inputs[0], labels[0], np.zeros((3, 19)), **arrays)
    learner = cuda_training.Learner(arrays, EmulatedGpu())
    assert list(learner.train_epoch(inputs, labels, 0.25)) == [pytest.approx(loss, rel=1e-13)]
    for name, array in learner.arrays().items():
        np.testing.assert_allclose((arrays[name] - array) / 0.25, gradients[name], atol=1e-13)


@pytest.mark.slow
def test_a_rate_of_zero_changes_nothing_and_a_start_is_a_new_one():
    arrays, inputs, labels = problem("float32")
    learner = cuda_training.Learner(arrays, EmulatedGpu())
    list(learner.train_epoch(inputs, labels, 0))
    assert all(np.array_equal(learner.arrays()[name], array) for name, array in arrays.items())
    first = train(learner, inputs, labels, 2)
    learner.start(arrays)
    assert np.array_equal(train(learner, inputs, labels, 2), first)


@pytest.mark.slow
def test_few_launches_a_batch_and_the_recurrence_is_the_choosers():
    arrays, inputs, labels = problem("float32", batches=1)
    gpu = EmulatedGpu()
    list(cuda_training.Learner(arrays, gpu).train_epoch(inputs, labels, 0.1))
    families = [launch.kernel.family for launch in gpu.runtime.launches]
    assert families == [variants.choose(gpu.device, np.float32, 3, 19).family] * 2 + ["sums"] * 2
    assert gpu.products == 5


@pytest.mark.slow
def test_a_long_text_in_parts_gives_the_bits_of_one_part(monkeypatch):
    """Whole parts are recorded once; the rest of the batches, a smaller part, is launched kernel by kernel."""
    arrays, inputs, labels = problem("float32", batches=5)
    whole = cuda_training.Learner(arrays, EmulatedGpu())
    losses = train(whole, inputs, labels, 2)
    monkeypatch.setattr(cuda_training, "_MOST_STEPS", 12)  # two batches of five steps
    gpu = EmulatedGpu()
    parts = cuda_training.Learner(arrays, gpu)
    assert np.array_equal(train(parts, inputs, labels, 2), losses) and gpu.recordings == 1
    assert parts.loss(inputs, labels) == whole.loss(inputs, labels)
    for name, array in parts.arrays().items():
        assert np.array_equal(array, whole.arrays()[name])


@pytest.mark.slow
def test_the_validation_loss_learns_nothing_and_disturbs_nothing():
    arrays, inputs, labels = problem("float64", batches=4)
    alone, among = (cuda_training.Learner(arrays, EmulatedGpu()) for _ in range(2))
    true, _ = descend(arrays, inputs[:2], labels[:2], 1)
    fresh = cuda_training.Learner(arrays, EmulatedGpu())
    assert fresh.loss(inputs[:1], labels[:1]) == pytest.approx(true[0, 0], rel=1e-12)
    expected = train(alone, inputs[:3], labels[:3], 2)
    training, held_out = (inputs[:3], labels[:3]), (inputs[3:], labels[3:])
    first = list(among.train_epoch(*training, 0.5))
    before = among.arrays()
    assert 0 < among.loss(*held_out) < 10
    assert all(np.array_equal(before[name], array) for name, array in among.arrays().items())
    assert np.array_equal([first, list(among.train_epoch(*training, 0.5))], expected)


def test_a_row_far_below_another_has_a_finite_loss():
    """Where softmax underflows its logarithm does not."""
    arrays, inputs, labels = problem("float32", batches=1)
    arrays["by"][0] = 500
    loss, = cuda_training.Learner(arrays, EmulatedGpu()).train_epoch(inputs, labels, 0)
    assert np.isfinite(loss) and loss > 250


def test_training_that_diverges_is_an_error():
    arrays, inputs, labels = problem("float32")
    learner = cuda_training.Learner(arrays, EmulatedGpu(defect="diverges"))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="training has diverged: the loss of batch 1 is "):
        train(learner, inputs, labels, 2)
    with pytest.raises(FloatingPointError, match="training has diverged: W.. is no longer finite"):
        learner.arrays()


# --- as a run

PROGRAM = """
import sys, types
sys.modules["mxnet"] = sys.modules["torch"] = None
from emulated_gpu import EmulatedGpu
from rnn_ops_cli.main import main
from rnn_ops_timemachine import cuda_training, learners
learners.cuda = types.SimpleNamespace(why_not=lambda: {reason!r})
cuda_training.first_gpu = EmulatedGpu
sys.exit(main(sys.argv[1:]))
"""


def without_mxnet(*words, reason=None):
    """(exit status, stdout, stderr) of a command in a process that has no MXNet, with the emulator for a GPU."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM.format(reason=reason), *words], capture_output=True,
                         text=True, cwd=os.path.dirname(os.path.abspath(__file__)))
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.slow
def test_a_run_needs_no_mxnet(tmp_path):
    """It begins without a word about the step, is resumed, validated, sampled from, and begins another one."""
    pytest.importorskip("cupy", exc_type=ImportError)  # its version is written down
    book, out = tmp_path / "words.txt", str(tmp_path / "run")
    book.write_text(WORDS * 6)
    options = ["--text", str(book), "--hidden", "8", "--batch-size", "3", "--sequence-length", "7", "--validation", "0.2"]
    status, stdout, stderr = without_mxnet("train", *options, "--epochs", "2", "--out", out)
    assert (status, stderr) == (0, "") and "cuda step" in stdout
    status, stdout, stderr = without_mxnet("train", "--resume", "--epochs", "3", "--out", out)
    assert (status, stderr) == (0, "") and "epochs 3 to 3" in stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["step"] == "cuda" and len(record["sessions"]) == 2
    assert set(record["sessions"][0]["versions"]) == {"python", "numpy", "cupy", "rnn_ops"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and lines[2]["loss"] < lines[0]["loss"]
    assert all(0 < line["validation_loss"] < 4 for line in lines)
    status, stdout, stderr = without_mxnet("sample", "--checkpoint", out, "--prompt", "the cat", "--length", "20")
    assert (status, stderr, len(stdout)) == (0, "", 28)
    status, _, stderr = without_mxnet("train", "--text", str(book), "--step", "cuda", "--batch-size", "3", "--sequence-length",
                                      "7", "--epochs", "1", "--init-from", out, "--out", str(tmp_path / "other"))
    assert (status, stderr) == (0, "")


@pytest.mark.slow
def test_without_a_gpu_or_mxnet_it_is_one_line(tmp_path):
    words = ["train", "--out", str(tmp_path / "run")]
    assert without_mxnet(*words, "--step", "cuda", reason="the reason") == (
        2, "", "rnn-ops: error: step: got 'cuda', but nothing can be computed on a GPU here: the reason\n")
    for more in [], ["--step", "native"], ["--step", "reference"]:
        status, stdout, stderr = without_mxnet(*words, *more, reason="the reason")
        assert (status, stdout, stderr.count("\n")) == (1, "", 1) and stderr.startswith("rnn-ops: error: ")
        assert "mxnet" in stderr.lower()
    assert list(tmp_path.iterdir()) == []


def test_the_command_offers_the_steps_that_there_are(capfd):
    assert main(["train", "--step", "nothing"]) == 2
    offered = capfd.readouterr().err.partition("choose from")[2].partition(")")[0]
    assert re.findall(r"\w+", offered) == list(STEPS)
