"""What a run may be asked for besides the tutorial's: a validation part, early stopping, another learning rate, a first model."""
import json
import os
import shutil

import numpy as np
import pytest

from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import checkpoint, data, descent, model, text
from rnn_ops_timemachine.folder import BEST, PLOT
from rnn_ops_timemachine.parameters import initialise
from rnn_ops_timemachine.record import FILE as RECORD
from rnn_ops_timemachine.settings import STEPS
from timemachine_cases import assert_same_run, book_file, content_of, main, metrics_of, one_line, train, train_by_hand

pytestmark = pytest.mark.slow


def record_of(folder):
    return json.loads(content_of(folder)[RECORD])


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.slow if step == "cuda" else ()) for step in STEPS])
def test_a_validation_part_is_held_out(train, book_file, step):
    status, folder, stdout, _ = train("--epochs", "3", "--step", step, "--validation", "0.25")
    assert status == 0
    book = text.load(book_file)
    vocabulary = data.Vocabulary(book.characters)
    tokens = vocabulary.encode(book.characters)
    assert len(tokens) == 640
    trained, held_out = data.batches(tokens[:480], 7, 3), data.batches(tokens[480:], 7, 3)
    inputs, labels, held_out_inputs, held_out_labels = (mx.nd.array(part, dtype="int32") for part in trained + held_out)
    assert len(inputs) == 22 and len(held_out_inputs) == 7
    parameters = model.trainable(initialise(len(vocabulary), 8, seed=0))
    true = []
    for _ in range(3):
        train_by_hand(parameters, inputs, labels, 0.5, reference.rnn_sequence)
        state, losses = mx.nd.zeros((3, 8)), []
        for batch in zip(held_out_inputs, held_out_labels):
            loss, state = model.loss(*batch, state, parameters, reference.rnn_sequence)
            losses.append(loss.asscalar())
        true.append(np.mean(losses))
    assert content_of(folder)[PLOT].startswith(b"\x89PNG")
    lines = metrics_of(folder)
    assert list(lines[0])[-1] == "validation_loss"
    np.testing.assert_allclose([line["validation_loss"] for line in lines], true, rtol=1e-4)
    for epoch, line in enumerate(lines, start=1):
        assert f"epoch {epoch}/3  loss {line['loss']:.4f}" in stdout and f"validation {line['validation_loss']:.4f}" in stdout
    best = 1 + int(np.argmin([line["validation_loss"] for line in lines]))
    assert checkpoint.load(folder).settings["best_epoch"] == best
    assert checkpoint.load(os.path.join(folder, BEST)).settings["epoch"] == best
    smallest = lines[best - 1]["validation_loss"]
    assert f"{BEST} is the model of epoch {best}, with the smallest validation loss, {smallest:.4f}" in stdout


def test_what_is_held_out_changes_nothing_else(train, book_file, tmp_path):
    """A run on the text without that part, by the same vocabulary, learns the same."""
    _, held, _, _ = train("--epochs", "2", "--validation", "0.25")
    book = text.load(book_file).characters
    (tmp_path / "rest.txt").write_text(book[:480])
    _, rest, _, _ = train("--epochs", "2", "--text", str(tmp_path / "rest.txt"), out="rest")
    one, other = checkpoint.load(held), checkpoint.load(rest)
    assert one.vocabulary.symbols == other.vocabulary.symbols
    for name in one.parameters:
        np.testing.assert_array_equal(one.parameters[name], other.parameters[name])


# A learning rate at which the loss on a validation part that resembles the rest rises at once.
HASTY = ("--validation", "0.25", "--learning-rate", "6", "--patience", "2")


def stopped(train, *options, out="out"):
    status, folder, stdout, _ = train("--epochs", "40", *HASTY, *options, out=out)
    assert status == 0
    assert "stopped early: the validation loss has had no new minimum in 2 epochs" in stdout
    return folder


def test_a_run_stops_when_patience_is_at_an_end(train):
    folder = stopped(train)
    losses = [line["validation_loss"] for line in metrics_of(folder)]
    assert 3 <= len(losses) < 40
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 2 and checkpoint.load(os.path.join(folder, BEST)).settings["epoch"] == best
    for epoch in range(1, len(losses)):  # not earlier
        assert epoch - 1 - int(np.argmin(losses[:epoch])) < 2
    status, _, stdout, _ = train("--resume")
    assert status == 0 and "nothing is left to train" in stdout and "stopped early" in stdout
    assert len(metrics_of(folder)) == len(losses)


def test_a_stopped_run_goes_on_with_more_patience_or_another_learning_rate(train):
    folder = stopped(train)
    count = len(metrics_of(folder))
    train("--resume", "--patience", "4")
    assert len(metrics_of(folder)) == count + 2
    train("--resume", "--learning-rate", "0.01")  # and so four more epochs at least
    assert len(metrics_of(folder)) >= count + 6
    assert {line["lr"] for line in metrics_of(folder)[count + 2:]} == {0.01}
    sessions = [tuple(session[name] for name in ("first_epoch", "learning_rate", "patience"))
                for session in record_of(folder)["sessions"]]
    assert sessions == [(1, 6.0, 2), (count + 1, 6.0, 4), (count + 3, 0.01, 4)]


def test_a_resumed_run_stops_where_it_would_have(train):
    whole = stopped(train)
    count = len(metrics_of(whole))
    for epochs in range(1, count):
        out = f"parts{epochs}"
        train("--epochs", str(epochs), *HASTY, out=out)
        status, parts, _, _ = train("--resume", "--epochs", "40", out=out)
        assert status == 0
        assert_same_run(whole, parts)
        best = checkpoint.load(os.path.join(parts, BEST))
        assert best.settings["best_loss"] == checkpoint.load(whole).settings["best_loss"]


def test_the_best_model_is_made_good_after_a_crash(train):
    _, folder, _, _ = train("--epochs", "1", "--validation", "0.25")
    os.remove(os.path.join(folder, BEST))  # as if killed between the two
    train("--resume", "--epochs", "1")
    assert checkpoint.load(os.path.join(folder, BEST)).settings["epoch"] == 1


def lose(path):
    os.remove(path)


def damage(path):
    with open(path, "r+b") as file:
        file.truncate(100)


def exchange(path):
    shutil.copy(os.path.join(os.path.dirname(path), checkpoint.FILE), path)


def link(path):
    os.rename(path, f"{path}.elsewhere")
    os.symlink(f"{path}.elsewhere", path)


@pytest.mark.parametrize("wrong, said", [
    (lose, "is missing: "), (link, "is damaged (is not a plain file) and is now called best.npz.damaged: "),
    (damage, "BadZipFile: File is not a zip file)) and is now called best.npz.damaged: "),
    (exchange, "is damaged (is the model of epoch {last}, not of epoch {best}) and is now called best.npz.damaged: ")])
def test_a_best_model_that_is_lost_is_not_said_to_be_there(train, wrong, said):
    folder = stopped(train)
    saved = checkpoint.load(folder).settings
    wrong(os.path.join(folder, BEST))
    status, _, stdout, stderr = train("--resume")
    assert status == 0 and not os.path.lexists(os.path.join(folder, BEST))
    one_line(stderr, f"{folder}/{BEST} ", said.format(last=saved["epoch"], best=saved["best_epoch"]),
             f": the model of epoch {saved['best_epoch']}, the best so far, is lost")
    assert (f"epoch {saved['best_epoch']} had the smallest validation loss, {saved['best_loss']:.4f}; "
            f"its model is lost: {BEST} is missing") in stdout and f"{BEST} is the model" not in stdout


@pytest.mark.parametrize("options, message", [
    (["--validation", "1"], "validation: got 1.0, needs a number from 0, below 1"),
    (["--validation", "nan"], "validation: got nan"), (["--validation", "-0.1"], "validation: got -0.1"),
    (["--validation", "0.03"], "validation: got 0.03, which is too small a part. text: got 19 characters, needs 22 for one"),
    (["--validation", "0.97"],
     "validation: got 0.97, which leaves too small a part to train on. text: got 20 characters, needs 22 for one batch"),
    (["--validation", "0.5", "--sequence-length", "300"], "error: text: got 640 characters, needs 901 for one batch"),
    (["--patience", "3"], "patience: got 3, needs a validation part"),
    (["--validation", "0.2", "--patience", "-1"], "patience: got -1, needs an integer of at least 0"),
    (["--init-from", "nowhere"], "checkpoint: nowhere does not exist"),
])
def test_what_cannot_be_is_named(train, options, message):
    status, folder, _, stderr = train(*options)
    assert status == 2 and not os.path.exists(folder)
    one_line(stderr, message)


def test_another_learning_rate_begins_with_the_next_epoch(train):
    _, folder, _, _ = train("--epochs", "2")
    status, _, stdout, _ = train("--resume", "--epochs", "3", "--learning-rate", "0.1")
    assert status == 0 and "lr 0.1" in stdout
    train("--resume", "--epochs", "4")  # it stays
    train("--resume", "--epochs", "5", "--learning-rate", "0.1")  # the run's own: nothing new begins
    assert [line["lr"] for line in metrics_of(folder)] == [0.5, 0.5, 0.1, 0.1, 0.1]
    assert checkpoint.load(folder).settings["learning_rate_since"] == 3
    assert [session["learning_rate"] for session in record_of(folder)["sessions"]] == [0.5, 0.1, 0.1, 0.1]
    status, _, _, stderr = train("--resume", "--epochs", "6", "--learning-rate", "0")
    assert status == 2
    one_line(stderr, "learning_rate: got 0.0, needs a number from")


def test_another_learning_rate_is_there_after_a_crash(train):
    """It is saved before the first epoch with it."""
    from rnn_ops_timemachine import opening
    _, folder, _, _ = train("--epochs", "1")
    opening.resume(folder, dict(epochs=3, learning_rate=0.25)).close()
    train("--resume")
    assert [line["lr"] for line in metrics_of(folder)] == [0.5, 0.25, 0.25]


def test_another_learning_rate_is_halved_from_its_epoch_on():
    rates = {epoch: descent.learning_rate_of(epoch, 0.3, since=150) for epoch in (150, 199, 200, 299, 300)}
    assert rates == {150: 0.3, 199: 0.3, 200: 0.15, 299: 0.15, 300: 0.075}
    assert descent.learning_rate_of(100, 0.3, since=100) == 0.3


@pytest.mark.parametrize("source", ["folder", "file"])
def test_a_run_begins_with_the_model_of_another(train, tmp_path, source):
    _, first, _, _ = train("--epochs", "2", out="first")
    before = checkpoint.load(first)
    (tmp_path / "other.txt").write_text("it ticks and tocks, it stops. " * 30)  # fewer symbols, all known
    given = first if source == "folder" else os.path.join(first, checkpoint.FILE)
    command = ["train", "--text", str(tmp_path / "other.txt"), "--batch-size", "4", "--sequence-length", "5", "--epochs", "1",
               "--init-from", given]
    assert main(command + ["--out", str(tmp_path / "second")]) == 0
    after = checkpoint.load(str(tmp_path / "second"))
    assert after.vocabulary.symbols == before.vocabulary.symbols and after.settings["hidden"] == 8

    vocabulary = before.vocabulary
    inputs, labels = (mx.nd.array(tokens, dtype="int32") for tokens in data.batches(
        vocabulary.encode(text.load(str(tmp_path / "other.txt")).characters), 5, 4))
    parameters = model.trainable(before.parameters)
    train_by_hand(parameters, inputs, labels, 0.5, reference.rnn_sequence)
    for name, parameter in parameters._asdict().items():
        np.testing.assert_allclose(after.parameters[name], parameter.asnumpy(), rtol=1e-4, atol=1e-6)
    assert record_of(str(tmp_path / "second"))["init_from"] == dict(path=given, text=before.settings["text"], epoch=2)
    assert main(["train", "--resume", "--epochs", "2", "--out", str(tmp_path / "second")]) == 0
    assert record_of(str(tmp_path / "second"))["init_from"]["epoch"] == 2
    for name in before.parameters:  # the first run is as it was
        np.testing.assert_array_equal(checkpoint.load(first).parameters[name], before.parameters[name])


def test_a_model_that_does_not_fit_is_refused(train, tmp_path):
    _, first, _, _ = train("--epochs", "1", out="first")
    (tmp_path / "other.txt").write_text("été 時間 " * 100, encoding="utf-8")
    status, folder, _, stderr = train("--init-from", first, "--text", str(tmp_path / "other.txt"))
    assert status == 2 and not os.path.exists(folder)
    one_line(stderr, f"init_from: the model in {first} lacks characters of {tmp_path / 'other.txt'}: 'é', '時', '間'")
    (tmp_path / "many.txt").write_text("".join(map(chr, range(0x4e00, 0x4f00))), encoding="utf-8")
    _, _, _, stderr = train("--init-from", first, "--text", str(tmp_path / "many.txt"))
    one_line(stderr, "'一', '丁'", "and 246 more")
    status, folder, _, stderr = train("--init-from", first, "--hidden", "9")
    assert status == 2 and not os.path.exists(folder)
    one_line(stderr, f"hidden: got 9, but the model in {first} has 8")


def test_a_run_of_version_0_1_0_goes_on(train, book_file):
    """Its checkpoint and its record as that version wrote them."""
    _, folder, _, _ = train("--epochs", "2")
    _, whole, _, _ = train("--epochs", "4", out="whole")
    saved, path = checkpoint.load(folder), os.path.join(folder, checkpoint.FILE)
    old = {name: saved.settings[name] for name in (
        "text", "step", "epochs", "hidden", "seed", "learning_rate", "batch_size", "sequence_length", "epoch", "moving_loss",
        "sha256", "written")}
    with open(path, "wb") as file:
        np.savez(file, symbols=np.array([ord(symbol) for symbol in saved.vocabulary.symbols], np.uint32),
                 settings=np.array(json.dumps(dict(old, rnn_ops="0.1.0", format="rnn_ops.timemachine/1"))), **saved.parameters)
    record = record_of(folder)
    del record["init_from"]
    for session in record["sessions"]:
        for name in "epochs", "learning_rate", "patience":
            del session[name]
    with open(os.path.join(folder, RECORD), "w") as file:
        json.dump(record, file)
    status, _, _, stderr = train("--resume", "--epochs", "4")
    assert (status, stderr) == (0, "")
    assert_same_run(whole, folder)
    assert [session["first_epoch"] for session in record_of(folder)["sessions"]] == [1, 3]
