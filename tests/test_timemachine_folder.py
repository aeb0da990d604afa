"""The folder of a run: one owner at a time, what is damaged or missing beside the model, what is somebody else's."""
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from rnn_ops_timemachine import checkpoint, data, files, folder, lock, opening, record, settings
from rnn_ops_timemachine.folder import PLOT
from rnn_ops_timemachine.record import FILE as RECORD
from rnn_ops_timemachine.settings import METRICS, SAMPLES
from timemachine_cases import SMALL, TIMES, book_file, content_of, metrics_of, one_line, start_train, train


def test_a_run_has_one_owner(train, book_file, tmp_path):
    path = str(tmp_path / "out")
    first = start_train(book_file, path, "--epochs", "1000000")
    while "epoch" not in first.stdout.readline().split():  # its first line after the two of the head
        pass
    for options in (["--resume"], ["--resume", "--epochs", "1000001"]):
        status, _, stdout, stderr = train(*options)
        assert (status, stdout) == (2, "")
        one_line(stderr, f"out: another process is training the run in {path}")
    status, _, _, stderr = train("--epochs", "1")
    assert status == 2
    one_line(stderr, "already holds a run")
    first.kill()  # and so its lock is gone, though not the file
    first.wait()
    first.stdout.close()
    assert os.path.exists(tmp_path / "out" / lock.FILE)
    epoch = checkpoint.load(path).settings["epoch"]
    assert train("--resume", "--epochs", str(epoch + 1))[0] == 0
    assert [line["epoch"] for line in metrics_of(path)] == list(range(1, epoch + 2))
    assert not os.path.exists(tmp_path / "out" / lock.FILE)


def test_a_file_that_its_owner_removes_is_nobodys_lock(tmp_path, monkeypatch):
    """The owner lets go between another's opening of the file and its locking: the other takes the lock with a new file."""
    flock, owner = fcntl.flock, lock.Lock(str(tmp_path))

    def flock_too_late(*arguments):
        monkeypatch.setattr(fcntl, "flock", flock)
        owner.release()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    other = lock.Lock(str(tmp_path))
    with pytest.raises(BlockingIOError, match="out: another process is training the run in"):
        lock.Lock(str(tmp_path))
    other.release()
    assert not os.listdir(tmp_path)


def test_what_is_planted_at_the_locks_name_is_refused(train, tmp_path):
    _, path, _, _ = train("--epochs", "1")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    os.symlink(outside, os.path.join(path, lock.FILE))
    status, _, _, stderr = train("--resume", "--epochs", "2")
    assert status == 2 and outside.read_text() == "mine"
    one_line(stderr, f"{lock.FILE}: is a link, directory, pipe or device, needs to be a plain file")


def test_without_locks_a_run_is_trained_and_says_so(train, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)  # as on a file system without them, which no test can mount
    status, path, _, stderr = train("--epochs", "1")
    assert status == 0 and lock.FILE not in os.listdir(path)
    one_line(stderr, path, "is on a file system without locks (No locks available): see to it that no other process")


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.time, "strftime", lambda _: "20260101-000000")
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(folder.make(None, "/books/time.txt"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(paths) == sorted(
        [os.path.join("runs", "time-20260101-000000" + end) for end in [""] + [f"-{number}" for number in range(2, 9)]])
    assert len(set(paths)) == len(os.listdir("runs")) == 8


@pytest.mark.parametrize("damage, wrong", [(None, "is missing"), (b"{", "is damaged (")])
def test_a_record_is_written_anew(train, damage, wrong):
    _, path, _, _ = train("--epochs", "1")
    old = json.loads(content_of(path)[RECORD])
    os.remove(os.path.join(path, RECORD))
    if damage is not None:
        with open(os.path.join(path, RECORD), "wb") as file:
            file.write(damage)
    status, _, _, stderr = train("--resume", "--epochs", "2")
    assert status == 0
    one_line(stderr, os.path.join(path, RECORD), wrong, "it is written anew, without the earlier sessions")
    content = content_of(path)
    new = json.loads(content[RECORD])
    assert [session["first_epoch"] for session in new["sessions"]] == [2]
    assert {key: value for key, value in new.items() if key not in ("sessions", "settings")} == {
        key: value for key, value in old.items() if key not in ("sessions", "settings")}
    assert content.get(f"{RECORD}.damaged") == damage
    assert train("--resume", "--epochs", "3")[3] == ""


@pytest.mark.parametrize("content, wrong", [
    (b"", "Expecting value"), (b"\xff\xfe\xfd", "codec"), (b"[" * 100000, "is nested too deeply"),
    (b"[]", "does not say which text was asked for"),
    (b'{"text": {"asked": 1}}', "does not say which text was asked for"),
    (b'{"text": {"asked": "a"}, "init_from": 1, "sessions": []}', "does not say what the run began with"),
    (b'{"text": {"asked": "a"}, "sessions": {}}', "does not say when the run was started"),
    (b'{"text": {"asked": "a"}, "sessions": [{"first_epoch": "1"}]}', "does not say when the run was started")])
def test_a_record_that_no_run_writes_is_damaged(tmp_path, content, wrong):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(ValueError, match=wrong):
        record.read(str(tmp_path / RECORD))


@pytest.mark.parametrize("damage, wrong", [
    (lambda content: None, "is missing"), (lambda content: content[:-1], "is damaged (has "),
    (lambda content: b"\0" + content[1:], "is damaged (holds ")], ids=["missing", "short", "changed"])
def test_metrics_are_begun_anew_and_the_damaged_ones_kept(train, damage, wrong):
    _, path, _, _ = train("--epochs", "2")
    _, whole, _, _ = train("--epochs", "4", out="whole")
    damaged = damage(content_of(path)[METRICS])
    os.remove(os.path.join(path, METRICS))
    if damaged is not None:
        with open(os.path.join(path, METRICS), "wb") as file:
            file.write(damaged)
    status, _, _, stderr = train("--resume", "--epochs", "3")
    assert status == 0
    one_line(stderr, os.path.join(path, METRICS), wrong, "metrics and plot begin at epoch 3")
    assert content_of(path).get(f"{METRICS}.damaged") == damaged
    assert train("--resume", "--epochs", "4")[3] == ""
    assert metrics_of(path, TIMES) == metrics_of(whole, TIMES)[2:]
    assert content_of(path)[SAMPLES] == content_of(whole)[SAMPLES] and content_of(path)[PLOT].startswith(b"\x89PNG")


LINE = dict(epoch=4, loss=2.5, moving_loss=2.6, perplexity=12.1, lr=0.5, tokens_per_second=1e5, seconds=0.7)


def lines(*changes):
    return b"".join(json.dumps(dict(LINE, **change)).encode() + b"\n" for change in changes)


@pytest.mark.parametrize("content, wrong", [
    (lines(dict(epoch=4), dict(epoch=6)), "does not hold a whole line for each epoch up to 5"),
    (lines(dict(epoch=3), dict(epoch=4)), "does not hold a whole line"), (lines(dict(epoch=5), dict(epoch=5)), "does not hold"),
    (lines(*[dict(epoch=epoch) for epoch in range(6)]), "is no line"), (lines(dict(epoch=5))[:-1], "does not hold a whole line"),
    (b"\n" + lines(dict(epoch=5)), "is no line of an epoch"), (b"[]\n", "is no line"), (b"\xff\n", "is no line"),
    (b"[" * 4000 + b"\n", "is no line"), (b"[" * 6000 + b"\n", "has 6,001 bytes for 5 epochs"),
    (lines(dict(epoch="5")), "is no line"), (lines(dict(epoch=5.0)), "is no line"), (lines(dict(epoch=True)), "is no line"),
    (lines(dict(epoch=5, loss=float("nan"))), "is no line"), (lines(dict(epoch=5, loss=710)), "is no line"),
    (lines(dict(epoch=5, moving_loss=-1)), "is no line"), (lines(dict(epoch=5, seconds=float("inf"))), "is no line"),
    (lines(dict(epoch=5, lr="0.5")), "is no line"), (lines(dict(epoch=5, more=1)), "is no line"),
    (lines(dict(epoch=5, validation_loss=None)), "is no line"), (lines(dict(epoch=5)).replace(b', "lr": 0.5', b""), "is no line"),
])
def test_metrics_that_no_run_writes_are_damaged(tmp_path, content, wrong):
    path = tmp_path / METRICS
    path.write_bytes(content)
    with pytest.raises(ValueError, match=wrong):
        folder.read_metrics(str(path), len(content), epoch=5)
    good = lines(dict(epoch=4), dict(epoch=5, validation_loss=2.0))
    path.write_bytes(good + content)
    assert [line["epoch"] for line in folder.read_metrics(str(path), len(good), epoch=5)] == [4, 5]


def test_samples_are_begun_anew_and_the_damaged_ones_kept(train):
    _, path, _, _ = train("--epochs", "2")
    _, whole, _, _ = train("--epochs", "3", out="whole")
    content = content_of(path)[SAMPLES]
    os.truncate(os.path.join(path, SAMPLES), len(content) - 5)
    status, _, _, stderr = train("--resume", "--epochs", "3")
    assert status == 0
    one_line(stderr, f"{SAMPLES} is damaged (has {len(content) - 5:,} bytes, and had {len(content):,} when", "begin at epoch 3",
             f"is now called {SAMPLES}.damaged")
    assert content_of(path)[f"{SAMPLES}.damaged"] == content[:-5]
    assert content + content_of(path)[SAMPLES] == content_of(whole)[SAMPLES]


def test_a_second_damaged_file_gets_a_name_of_its_own(tmp_path):
    names = []
    for content in "abc":
        (tmp_path / "x").write_text(content)
        names.append(os.path.basename(files.set_aside(str(tmp_path / "x"))))
    assert names == ["x.damaged", "x.damaged-2", "x.damaged-3"]
    assert [(tmp_path / name).read_text() for name in names] == ["a", "b", "c"]


@pytest.mark.parametrize("name", [METRICS, SAMPLES, RECORD])
@pytest.mark.parametrize("plant", [
    lambda outside, path: os.symlink(outside, path), lambda outside, path: os.mkfifo(path), lambda outside, path: os.mkdir(path)],
    ids=["link", "pipe", "directory"])
def test_nothing_outside_the_folder_is_touched(train, tmp_path, name, plant):
    _, path, _, _ = train("--epochs", "1")
    outside = tmp_path / "thesis"
    os.replace(os.path.join(path, name), outside)  # a content that fits, and something after it
    with open(outside, "a") as file:
        file.write("ten years of work")
    before = outside.read_bytes()
    plant(outside, os.path.join(path, name))
    status, _, _, stderr = train("--resume", "--epochs", "2")
    assert status == 2 and outside.read_bytes() == before
    one_line(stderr, f"{name}: is a link, directory, pipe or device, needs to be a plain file")


def test_what_killed_processes_left_is_cleaned_up(train, tmp_path):
    _, path, _, _ = train("--epochs", "1")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    ours = [f"{checkpoint.FILE}.0123456789abcdef.tmp", f"{checkpoint.FILE}.tmp", f"{PLOT}.tmp"]
    for name in ours[1:]:
        (tmp_path / "out" / name).write_text("half")
    os.symlink(outside, os.path.join(path, ours[0]))
    theirs = {"notes.tmp", f"{checkpoint.FILE}.mine.tmp", "notes.txt"}
    for name in theirs:
        (tmp_path / "out" / name).write_text("kept")
    assert train("--resume", "--epochs", "2")[0] == 0
    assert set(os.listdir(path)) == {checkpoint.FILE, RECORD, METRICS, SAMPLES, PLOT} | theirs
    assert outside.read_text() == "mine"


def test_a_hostile_text_of_a_checkpoint_does_not_hang(train, tmp_path):
    _, path, _, _ = train("--epochs", "1")
    saved = checkpoint.load(path)
    os.mkfifo(tmp_path / "pipe")
    for hostile in str(tmp_path / "pipe"), "/dev/zero", str(tmp_path):
        checkpoint.save(os.path.join(path, checkpoint.FILE), saved._replace(settings=dict(saved.settings, text=hostile)))
        status, _, _, stderr = train("--resume", "--epochs", "2")
        assert status == 2
        one_line(stderr, f"{hostile}: is a directory, pipe or device, needs to be a plain file")


def test_a_model_whose_symbols_are_not_the_texts_is_not_taken_up(train, book_file):
    _, path, _, _ = train("--epochs", "1")
    saved = checkpoint.load(path)
    other = data.Vocabulary("".join(chr(ord(symbol) + 1000) for symbol in saved.vocabulary.symbols))
    checkpoint.save(os.path.join(path, checkpoint.FILE), saved._replace(vocabulary=other))
    status, _, _, stderr = train("--resume", "--epochs", "2")
    assert status == 2
    one_line(stderr, "text: got '\\n', ' ', ',', '.',", "more, which the vocabulary of")


@pytest.mark.parametrize("variable, value", [
    ("RNN_OPS_NUM_THREADS", "0"), ("RNN_OPS_NUM_THREADS", "x"), ("RNN_OPS_SIMD", "neon"), ("RNN_OPS_OPERATOR", "fast")])
def test_a_wrong_environment_leaves_no_folder(train, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    status, path, stdout, stderr = train("--epochs", "1")
    assert (status, stdout) == (2, "") and not os.path.exists(path)
    one_line(stderr, f"{variable}: got '{value}', needs ")
    monkeypatch.delenv(variable)
    assert train("--epochs", "1")[0] == 0


def test_a_run_that_could_not_begin_leaves_nothing(book_file, tmp_path):
    """A limit on the size of files stops the first checkpoint, as a full disk does."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes").write_text("mine")
    code = f"""
import os, resource, sys
from rnn_ops_cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for out in "here", os.path.join("new", "deep"):
    assert main({["train", "--text", book_file, *SMALL, "--epochs", "1"]} + ["--out", out]) == 2
    assert os.listdir("here") == ["notes"] and os.listdir("new") == [], out
"""
    (tmp_path / "new").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        f"rnn-ops: error: out: cannot write to {out}: File too large" for out in ("here", "new/deep")]


def test_a_run_whose_record_cannot_be_written_leaves_nothing(train, monkeypatch):
    def write(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), RECORD)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write", write)  # a disk that is full by then
        status, path, _, stderr = train("--epochs", "1")
    assert status == 2 and not os.path.exists(path)
    one_line(stderr, f"out: cannot write to {path}: No space left on device")
    assert train("--epochs", "1")[0] == 0


def test_a_text_whose_name_is_no_utf8(book_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.txt")
    os.rename(book_file, name)
    opening.start(settings.Settings(text=name, hidden=8, batch_size=3, sequence_length=7), "out").close()
    assert json.loads(content_of("out")[RECORD])["text"]["asked"] == name
    run = opening.resume("out", {})
    assert run.text.name == name and not run.notices
    run.close()
