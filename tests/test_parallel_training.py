"""Training on several contexts and by several workers: the losses of one context, at every batch and after every epoch."""
import json
import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_cases import assert_close, in_job, problem, run_train, same_bits, trained
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import checkpoint, exchange, learners
from rnn_ops_timemachine.record import FILE as RECORD
from rnn_ops_timemachine.settings import SAMPLES
from timemachine_cases import SMALL, TIMES, assert_same_run, book_file, content_of, metrics_of, one_line, train

STEPS = "native", "custom", "gluon", "reference"
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16])


def contexts(count, kvstore="device"):
    return exchange.Contexts([mx.cpu(number) for number in range(count)], kvstore)


def names(count):
    return ",".join(f"cpu({number})" for number in range(count))


@pytest.mark.parametrize("kvstore", ["local", "device"])
@settings(max_examples=15)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(2, 7), st.sampled_from(["native", "gluon"]))
@example(1, 1, 1, 1, 2, "native")
@example(1, 7, 1, 1, 7, "native")
def test_contexts_have_the_losses_of_one(kvstore, T, B, H, V, count, step):
    B = max(B, count)
    arrays, inputs, labels = problem(T, B, H, V)
    alone, split = (trained(arrays, inputs, labels, contexts(number, kvstore), step) for number in (1, count))
    assert_close(split[0] + 1, alone[0] + 1, "float64")  # with one symbol the losses are 0
    for name, array in alone[1].items():
        np.testing.assert_allclose(split[1][name], array, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", STEPS)
def test_contexts_have_the_same_bits_each_time(step, dtype):
    case = problem(9, 8, 16, 11, batches=5, dtype=dtype)
    alone = trained(*case, step=step)
    for count in 1, 2, 3, 4, 7:  # 8 rows do not divide by all of them
        first, second = (trained(*case, contexts(count), step) for _ in range(2))
        assert same_bits(first, second)
        assert_close(first[0], alone[0], dtype)
        assert count > 1 or same_bits(first, alone)


def test_all_replicas_have_the_same_parameters():
    arrays, inputs, labels = problem(9, 8, 16, 11, dtype="float32")
    learner = learners.make("native", arrays, contexts(3))
    list(learner.train_epoch(inputs, labels, 0.5))
    first, *others = [replica.arrays() for replica in learner._replicas]
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(other[name], array)


def assert_same_training(folder, true, dtype="float32"):
    """Two runs have the same metrics but for rounding, times and the number of workers."""
    lines, true_lines = (metrics_of(path, (*TIMES, "workers")) for path in (folder, true))
    assert [line["epoch"] for line in lines] == [line["epoch"] for line in true_lines]
    for line, true_line in zip(lines, true_lines):
        assert list(line) == list(true_line)
        assert_close([line[name] for name in line], [true_line[name] for name in line], dtype)


@pytest.fixture
def in_float64(train, tmp_path):
    """A checkpoint with parameters of float64."""
    _, folder, _, _ = train("--epochs", "1", out="float32")
    saved = checkpoint.load(folder)
    path = str(tmp_path / "float64.npz")
    checkpoint.save(path, saved._replace(
        parameters={name: array.astype("float64") for name, array in saved.parameters.items()}))
    return path


@pytest.mark.parametrize("step", ["native", *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS[1:])])
def test_a_run_on_contexts(train, step):
    how = "--epochs", "4", "--step", step, "--batch-size", "5", "--validation", "0.2"
    _, alone, _, _ = train(*how, out="alone")
    for count, kvstore in (2, "device"), (3, "local"), (5, "device"):
        status, folder, stdout, stderr = train(*how, "--ctx", names(count), "--kvstore", kvstore, out=str(count))
        assert (status, stderr) == (0, "")
        assert_same_training(folder, alone)
        assert {line["workers"] for line in metrics_of(folder)} == {1}
        assert sorted(os.listdir(folder)) == sorted(os.listdir(alone))
        again = train(*how, "--ctx", names(count), "--kvstore", kvstore, out=f"{count} again")[1]
        assert_same_run(folder, again)


def test_a_run_on_contexts_in_float64(train, in_float64):
    how = "--init-from", in_float64, "--epochs", "5", "--validation", "0.2"
    _, alone, _, _ = train(*how, out="alone")
    for count in 2, 3:
        status, folder, _, _ = train(*how, "--ctx", names(count), out=str(count))
        assert status == 0 and checkpoint.load(folder).parameters["Whh"].dtype == np.float64
        assert_same_training(folder, alone, "float64")
        assert content_of(folder)[SAMPLES] == content_of(alone)[SAMPLES]


def test_patience_ends_a_run_on_contexts_at_the_same_epoch(train, in_float64):
    # A learning rate that changes nothing, so that the loss does not fall.
    how = "--init-from", in_float64, "--epochs", "40", "--validation", "0.2", "--patience", "2", "--learning-rate", "1e-30"
    _, alone, _, _ = train(*how, out="alone")
    _, folder, _, _ = train(*how, "--ctx", names(2), out="two")
    assert len(metrics_of(alone)) == 3
    assert_same_training(folder, alone, "float64")


def test_a_run_is_resumed_on_other_contexts(train, in_float64):
    _, whole, _, _ = train("--init-from", in_float64, "--epochs", "4", out="whole")
    _, parts, _, _ = train("--init-from", in_float64, "--epochs", "1", "--ctx", names(2), out="parts")
    for epoch, options in (2, ["--ctx", names(3)]), (3, []), (4, ["--ctx", names(2), "--kvstore", "local"]):
        status, _, _, stderr = train("--resume", "--epochs", str(epoch), *options, out="parts")
        assert (status, stderr) == (0, "")
    assert_same_training(parts, whole, "float64")
    _, same, _, _ = train("--init-from", in_float64, "--epochs", "2", "--ctx", names(2), out="same")
    train("--resume", "--epochs", "4", "--ctx", names(2), out="same")
    assert_same_run(same, train("--init-from", in_float64, "--epochs", "4", "--ctx", names(2), out="at once")[1])


def test_fewer_rows_than_contexts_are_refused(train):
    status, folder, _, stderr = train("--ctx", names(4))
    assert status == 2 and not os.path.exists(folder)
    one_line(stderr, "batch_size: got 3, needs at least 4, a row for each context of each worker")


CASES = [(dict(T=T, B=B, H=H, V=V, dtype=dtype), dict(step=step), count) for T, B, H, V, dtype, step, count in [
    (1, 4, 1, 1, "float64", "native", 1), (3, 5, 7, 2, "float64", "native", 1), (5, 8, 13, 11, "float64", "gluon", 2),
    (8, 9, 16, 40, "float64", "custom", 1), (2, 11, 5, 3, "float64", "reference", 1), (7, 13, 31, 17, "float32", "native", 1),
    (6, 12, 32, 19, "float32", "gluon", 3), (9, 16, 64, 70, "float32", "native", 2)]]


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_workers_have_the_losses_of_one(count, servers):
    cases = [case for case in CASES if case[0]["B"] >= count * case[2]]
    results = in_job("train_all", 2 * cases, count, servers)  # twice, with the same bits
    for number, (shape, how, _) in enumerate(cases):
        alone = trained(*problem(**shape), **how)
        assert_close(results[0][number][0] + 1, alone[0] + 1, shape["dtype"])
        for of_worker in results:
            assert same_bits(of_worker[number], results[0][number])
            assert same_bits(of_worker[number + len(cases)], results[0][number])


@pytest.mark.slow
@pytest.mark.parametrize("count, servers", [(1, 1), (2, 3), (3, 2)])
def test_compressed_gradients_are_summed_as_their_description_says(count, servers):
    shape, threshold = dict(T=5, B=7, H=40, V=70, dtype="float32", batches=4), 1e-3
    results, again = (in_job("train_compressed", (shape, threshold), count, servers) for _ in range(2))
    arrays, inputs, labels = problem(**shape)
    replicas = [learners.make("reference", arrays) for _ in range(count)]
    residuals = [{name: np.zeros_like(array) for name, array in arrays.items()} for _ in range(count)]
    parts = [(7 * rank // count, 7 * (rank + 1) // count) for rank in range(count)]
    losses = []
    for _ in range(3):
        states = [mx.nd.zeros((end - begin, 40)) for begin, end in parts]
        for tokens, targets in zip(inputs, labels):
            loss, sums = 0, {name: 0 for name in arrays}
            for rank, (begin, end) in enumerate(parts):
                replica = replicas[rank]._replicas[0]
                with mx.autograd.record():
                    own, state = replica.loss(mx.nd.array(tokens[:, begin:end], dtype="int32"),
                                              mx.nd.array(targets[:, begin:end], dtype="int32"), states[rank])
                own.backward(mx.nd.full(1, (end - begin) / 7))
                states[rank], loss = state.detach(), loss + own.asscalar() * (end - begin) / 7
                for name, gradient in zip(arrays, replica.gradients):
                    rest = residuals[rank][name] = residuals[rank][name] + gradient.asnumpy() / np.float32(threshold)
                    sent = np.where(rest >= 1, 1, np.where(rest <= -1, -1, 0)).astype(np.float32)
                    rest -= sent
                    sums[name] = sums[name] + sent * np.float32(threshold)
            for learner in replicas:
                for name, gradient in zip(arrays, learner._replicas[0].gradients):
                    gradient[:] = sums[name]
                learner._replicas[0].update(0.5)
            losses.append(loss)
        losses.append(replicas[0].loss(inputs, labels))
    for result in (*results, *again):
        # A number near the threshold may be rounded to its other side; it is sent with the next step.
        np.testing.assert_allclose(result[0], losses, rtol=2e-3)
        assert same_bits(result, results[0])
    plain = trained(arrays, inputs, labels, epochs=3)[0]
    assert np.abs(plain / losses - 1).max() > 1e-2


@pytest.mark.slow
def test_a_run_by_workers(book_file, tmp_path, in_float64):
    how = ["--text", book_file, "--hidden", "8", "--batch-size", "7", "--sequence-length", "7", "--epochs", "4",
           "--validation", "0.2", "--init-from", in_float64]
    alone = str(tmp_path / "alone")
    assert run_train(*how, "--out", alone) == (0, "")
    for count, servers, later in (1, 1, 3), (3, 2, 2):
        folder = str(tmp_path / str(count))
        split = ["--workers", str(count), "--servers", str(servers)]
        assert run_train(*how, *split, "--out", folder) == (0, "")
        assert_same_training(folder, alone, "float64")
        assert sorted(os.listdir(folder)) == sorted(os.listdir(alone))
        assert {line["workers"] for line in metrics_of(folder)} == {count}
        contents, true = content_of(folder), content_of(alone)
        assert contents[SAMPLES] == true[SAMPLES]
        record, true_record = (json.loads(found[RECORD]) for found in (contents, true))
        assert list(record) == list(true_record)
        for name in "text", "settings", "parameters", "batches_per_epoch", "prompts":
            assert record[name] == true_record[name]
        assert run_train("--resume", "--out", folder, "--epochs", "6", "--workers", str(later)) == (0, "")
        assert [line["workers"] for line in metrics_of(folder)] == [count] * 4 + [later] * 2
    assert run_train("--resume", "--out", alone, "--epochs", "6") == (0, "")
    assert_same_training(folder, alone, "float64")


@pytest.mark.slow
def test_a_last_epoch_that_cannot_be_written_ends_the_job(book_file, tmp_path, monkeypatch):
    """The other workers are done with training then, but wait for worker 0."""
    folder = str(tmp_path / "out")
    (tmp_path / "sitecustomize.py").write_text("""
import errno
from rnn_ops_timemachine import files
def append(path, content, append=files.append):
    if '"epoch": 2' in content:
        raise OSError(errno.ENOSPC, "No space left on device", path)
    append(path, content)
files.append = append
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, stderr = run_train("--text", book_file, *SMALL, "--workers", "2", "--epochs", "2", "--out", folder, timeout=100)
    assert status == 1
    one_line(stderr, "epoch 2: cannot write to", "No space left on device", "holds epoch 1")
