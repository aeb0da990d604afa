"""Runs that are killed, interrupted or out of disk or memory: nothing saved is lost, and one line says so."""
import os
import re
import shlex
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

import killed_runs
from rnn_ops_timemachine import checkpoint, sampling
from rnn_ops_timemachine.settings import SAMPLES
from timemachine_cases import assert_same_run, book_file, metrics_of, one_line, start_train, train

pytestmark = pytest.mark.slow


def test_kills_at_every_write(tmp_path):
    done = subprocess.run([sys.executable, killed_runs.__file__, str(tmp_path)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True,
                          env=dict(os.environ, PYTHONPATH=os.path.dirname(killed_runs.__file__)))
    assert done.returncode == 0, done.stdout[-3000:]
    kills = re.search(r"(\d+) and 18 kills", done.stdout)
    assert kills and int(kills.group(1)) > 40, done.stdout


@pytest.mark.parametrize("number, ignored", [
    (signal.SIGTERM, (signal.SIGHUP, signal.SIGINT)),  # as nohup and a shell's & leave them
    (signal.SIGHUP, ())])
def test_signals_end_a_run_as_ctrl_c_does(book_file, tmp_path, train, number, ignored):
    path = str(tmp_path / "out")
    dispositions = {one: "SIG_IGN" if one in ignored else "SIG_DFL" for one in (signal.SIGTERM, signal.SIGHUP)}
    dispositions[signal.SIGINT] = "SIG_IGN" if signal.SIGINT in ignored else "default_int_handler"
    process = start_train(book_file, path, "--epochs", "1000000", before="import signal\n" + "\n".join(
        f"signal.signal({int(one)}, signal.{disposition})" for one, disposition in dispositions.items()))

    def read_until(epochs):
        while epochs:
            epochs -= process.stdout.readline().startswith("epoch ")

    read_until(2)
    for one in ignored:
        process.send_signal(one)
    read_until(3)  # it trains on
    process.send_signal(number)
    last = process.communicate()[0].splitlines()[-1]
    assert process.returncode == 128 + number
    epoch = checkpoint.load(path).settings["epoch"]
    assert epoch >= 5
    assert last == (f"rnn-ops: interrupted by {number.name}: {path} holds epoch {epoch}; "
                    f"to go on: {shlex.quote(sys.executable)} -m rnn_ops train --resume --out {shlex.quote(path)}")
    assert train("--resume", "--epochs", str(epoch + 1))[0] == 0
    assert [line["epoch"] for line in metrics_of(path)] == list(range(1, epoch + 2))


def test_a_signal_before_training_leaves_a_line_and_no_folder(book_file, tmp_path):
    path = str(tmp_path / "out")
    when_numpy_is_imported = """
import os, signal
class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""
    process = start_train(book_file, path, "--epochs", "1", before=when_numpy_is_imported)
    assert process.communicate()[0] == "rnn-ops: interrupted by SIGTERM\n"
    assert process.returncode == 143 and not os.path.exists(path)

    with socket.socket() as silent:  # a server that never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{{name}}.txt"
        environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"))
        environment.pop("RNN_OPS_DATA", None)
        process = start_train("timemachine", path, env=environment,
                              before=f"from rnn_ops_timemachine import text; text._URL = {url!r}")
        assert process.stdout.readline().startswith("fetching http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[0] == "rnn-ops: interrupted by SIGTERM\n"
    assert process.returncode == 143 and not os.path.exists(path)
    assert os.listdir(tmp_path / "cache" / "rnn_ops") == []


def test_a_full_disk_ends_a_run_in_a_line_and_room_lets_it_go_on(book_file, tmp_path, train):
    """A limit on the size of files stops the samples of the third epoch, and the plot at the end as well."""
    path = str(tmp_path / "out")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    process = start_train(book_file, path, "--epochs", "4", before=limit)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 1 and lines[-2].startswith("epoch 2/4")
    assert lines[-1] == (f"rnn-ops: error: epoch 3: cannot write to {os.path.join(path, SAMPLES)}: File too large. "
                         f"{os.path.join(path, checkpoint.FILE)} holds epoch 2")
    assert os.path.getsize(os.path.join(path, SAMPLES)) == 6000
    process = start_train(book_file, path, "--resume", before=limit)
    assert process.communicate()[0].splitlines()[-1] == lines[-1] and process.returncode == 1
    assert train("--resume")[0] == 0
    _, whole, _, _ = train("--epochs", "4", out="whole")
    assert_same_run(path, whole)


def test_a_full_disk_while_a_run_is_taken_up(book_file, tmp_path, train):
    _, path, _, _ = train("--epochs", "1")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    process = start_train(book_file, path, "--resume", "--epochs", "2", before=limit)
    said = process.communicate()[0]
    assert process.returncode == 2
    one_line(said, f"epoch 2: cannot write to {os.path.join(path, checkpoint.FILE)}: File too large", "holds epoch 1")
    assert train("--resume", "--epochs", "2")[0] == 0


def test_too_little_memory_ends_a_run_in_a_line(train, monkeypatch):
    sample, calls = sampling.sample, []

    def sample_until_there_is_no_memory(*arguments, **keywords):
        calls.append(1)
        return sample(*arguments, **keywords) if len(calls) < 3 else np.empty(10 ** 17)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample", sample_until_there_is_no_memory)
        status, path, _, stderr = train("--epochs", "3")
    assert status == 1
    one_line(stderr, "epoch 2: not enough memory (Unable to allocate", f"{checkpoint.FILE} holds epoch 1")
    assert train("--resume")[0] == 0
    _, whole, _, _ = train("--epochs", "3", out="whole")
    assert_same_run(path, whole)


def test_a_run_killed_before_its_plot_is_finished(train):
    _, path, stdout, _ = train("--epochs", "2")
    plot = os.path.join(path, "loss.png")
    os.remove(plot)
    for _ in range(2):  # the second time there is nothing left to do, which is no error
        status, _, again, stderr = train("--resume", "--epochs", "2")
        assert (status, stderr) == (0, "") and os.path.getsize(plot)
        assert "nothing is left to train" in again and again.splitlines()[-4:] == stdout.splitlines()[-4:]
    assert [line["epoch"] for line in metrics_of(path)] == [1, 2]
