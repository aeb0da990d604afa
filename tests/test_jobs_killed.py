"""Jobs of which a role is killed, stopped, interrupted, out of disk or of memory, at random moments.

All roles end within a stated time, one line names the role, and --resume goes on to the same model as a run never killed.
"""
import fcntl
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import termios
import time

import pytest

from job_cases import RNN_OPS, ROLES, by_hand, by_supervisor
from rnn_ops_timemachine import checkpoint
from timemachine_cases import SMALL, assert_same_run, book_file, one_line

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("RNN_OPS_TEST_KILLS", 2))  # of each role, in each way to start it
EPOCHS = 25
FAST = dict(PS_HEARTBEAT_INTERVAL=1, PS_HEARTBEAT_TIMEOUT=5, RNN_OPS_JOIN_TIMEOUT=15)
KINDS = {by_supervisor: {}, by_hand: FAST}


@pytest.fixture
def command(book_file, tmp_path):
    return ["--text", book_file, *SMALL, f"--epochs={EPOCHS}", "--out", str(tmp_path / "out")]


def longer(command):
    return [*command, "--epochs=1000000"]


def epoch_of(tmp_path):
    path = str(tmp_path / "out")
    return checkpoint.load(path).settings["epoch"] if os.path.exists(os.path.join(path, checkpoint.FILE)) else None


def to_go_on(tmp_path, command):
    return ["--resume", *command[-2:]] if epoch_of(tmp_path) is not None else command


def finish(start, tmp_path, workers, command, environment):
    """Let the job go on to its end, and compare it with a run that was never killed."""
    with start(tmp_path, to_go_on(tmp_path, command), workers, **environment) as job:
        end = job.end()
    assert (end.stderr, set(end.statuses.values())) == ("", {0})
    with by_supervisor(tmp_path, [*command[:-1], str(tmp_path / "whole")], workers) as job:
        assert job.end().stderr == ""
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("start, role, workers", [(start, role, 2) for start in KINDS for role in ROLES]
                         + [(by_supervisor, "worker 2", 3)])
def test_kills_at_random_moments(tmp_path, command, start, role, workers):
    random_moment, kills, longest = random.Random(f"{start.__name__} {role}"), 0, 1.
    while kills < KILLS and epoch_of(tmp_path) != EPOCHS:
        with start(tmp_path, to_go_on(tmp_path, command), workers, **KINDS[start]) as job:
            began = time.monotonic()
            time.sleep(random_moment.uniform(0, longest))
            if not job.signal(role):  # it is not there yet, or no longer
                end = job.end()
                assert (end.stderr, set(end.statuses.values())) == ("", {0})
                longest = time.monotonic() - began
                continue
            end, kills = job.end(), kills + 1
            longest = max(longest, 4.)
        assert all(end.statuses.values())
        print(f"{start.__name__}, {role}: {end.seconds:.1f} s, epoch {epoch_of(tmp_path)}")
        lines = end.stderr.splitlines()
        if start is by_hand and role == "the scheduler" and len(lines) > 1:  # the others had no ranks yet: each says it
            assert all("scheduler" in line for line in lines), end.stderr
            continue
        one_line(end.stderr)
        if start is by_supervisor:
            assert lines[0].startswith(f"rnn-ops: error: {role} was killed by SIGKILL")
            assert epoch_of(tmp_path) is None or f"/out holds epoch {epoch_of(tmp_path)}; to go on: " in lines[0]
        elif "not all of" not in lines[0]:  # it was killed before it had come
            assert role in lines[0]
    finish(start, tmp_path, workers, command, KINDS[start])


def test_the_starter_is_killed(tmp_path, command):
    with by_supervisor(tmp_path, longer(command)) as job:
        job.wait_for("epoch ", 3)
        job.signal("supervisor")
        end = job.end()
    assert end.stderr == "" and epoch_of(tmp_path) > 0


@pytest.mark.parametrize("start, role", [(by_supervisor, "supervisor"), (by_supervisor, "worker 1"), (by_hand, "worker 0")])
def test_sigterm(tmp_path, command, start, role):
    with start(tmp_path, longer(command), **KINDS[start]) as job:
        job.wait_for("epoch ", 3)
        job.signal(role, signal.SIGTERM)
        end = job.end()
    assert end.statuses == ({"supervisor": 143} if start is by_supervisor else {
        "the scheduler": 0, "server 0": 0, "worker 0": 143, "worker 1": 143})
    one_line(end.stderr, f"interrupted by SIGTERM: {tmp_path}/out holds epoch {epoch_of(tmp_path)}; to go on: ")


def test_sigterm_of_a_server(tmp_path, command):
    with by_supervisor(tmp_path, longer(command)) as job:
        job.wait_for("epoch ", 3)
        job.signal("server 0", signal.SIGTERM)
        end = job.end()
    assert end.statuses == {"supervisor": 1}
    one_line(end.stderr, f"error: server 0 was killed by SIGTERM; {tmp_path}/out holds epoch {epoch_of(tmp_path)}; to go on: ")


@pytest.mark.parametrize("start", KINDS)
@pytest.mark.parametrize("role", ["worker 0", "worker 1", "server 0", "the scheduler"])
def test_a_role_that_is_stopped_counts_as_dead(tmp_path, command, start, role):
    with start(tmp_path, longer(command), **FAST) as job:
        job.wait_for("epoch ", 3)
        stopped = job.pid(role)
        job.signal(role, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while job.processes() not in ([stopped], []) and time.monotonic() < deadline:
            time.sleep(.1)
        assert job.processes() in ([], [stopped] if start is by_hand else [])  # by hand nobody is there to kill it
        stderr = job.read(1)
    one_line(stderr, f"error: {role} has had no heartbeat for 5 s: it has died")


def test_a_server_dies_when_all_is_done(tmp_path, command):
    """MXNet's workers then wait for it once more, and nobody watches any longer."""
    server = tmp_path / "server"
    code = f"""import os
from rnn_ops_timemachine import roles
stop = roles.Watch.stop
def stop_and_kill(watch):
    stop(watch)
    os.kill(int(open({str(server)!r}).read()), 9)
roles.Watch.stop = stop_and_kill"""
    with by_hand(tmp_path, command, code=code, **FAST) as job:
        server.write_text(str(job.pid("server 0")))
        end = job.end()
    assert epoch_of(tmp_path) == EPOCHS and end.statuses["worker 0"] == end.statuses["worker 1"] == 1
    assert "the job has not ended 5 s after its last batch: a role has died; " in end.stderr


@pytest.mark.parametrize("start", KINDS)
def test_a_job_that_is_stopped_for_a_while_goes_on(tmp_path, command, start):
    """Ctrl-Z and fg: then all heartbeats are older than a dead role's."""
    with start(tmp_path, longer(command), **FAST) as job:
        job.wait_for("epoch ", 3)
        for number, pause in (signal.SIGSTOP, 8), (signal.SIGCONT, 0):
            for pid in job.processes():
                os.kill(pid, number)
            time.sleep(pause)
        job.wait_for("epoch ", job.read(0).count("epoch ") + 100)
        time.sleep(8)  # and the watch is awake again
        assert job.read(1) == ""
        job.signal("worker 0", signal.SIGTERM)
        end = job.end()
    one_line(end.stderr, "interrupted by SIGTERM: ")


def test_ctrl_c_on_a_terminal(tmp_path, command):
    """One line; the command that it gives can be run."""
    terminal, end = pty.openpty()
    process = subprocess.Popen([RNN_OPS, "train", "--workers=2", *longer(command)], stdin=end, stdout=end, stderr=end,
                               start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                               env=dict(os.environ, COLUMNS="1000"))
    os.close(end)
    said = b""
    while said.count(b"tokens/s  ") < 3:
        said += os.read(terminal, 1000)
    os.write(terminal, b"\3")
    try:
        while True:
            said += os.read(terminal, 1000)
    except OSError:  # all processes have closed it
        pass
    assert process.wait() == 130
    lines = [line.replace("^C", "") for line in re.sub(r"\x1b\[[A-Z]", "\n", said.decode()).replace("\r", "\n").splitlines()
             if "rnn-ops: " in line]
    epoch = epoch_of(tmp_path)
    assert len(lines) == 1 and lines[0].startswith(f"rnn-ops: interrupted: {tmp_path}/out holds epoch {epoch}; to go on: "), lines
    hint = shlex.split(lines[0].partition("to go on: ")[2])
    hint = [RNN_OPS, *hint[hint.index("train"):]]
    assert subprocess.run([*hint, f"--epochs={epoch + 1}", "--quiet"], timeout=100).returncode == 0
    assert epoch_of(tmp_path) == epoch + 1


@pytest.mark.parametrize("epochs", [3, 4])
def test_a_full_disk_of_worker_0(tmp_path, command, epochs):
    """At the third epoch: the last one, when the other worker has no batch left, and one before it."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    command = [*command[:-3], f"--epochs={epochs}", *command[-2:]]
    with by_hand(tmp_path, command, code_of_first=limit, **FAST) as job:
        end = job.end()
    assert end.statuses == {"the scheduler": 0, "server 0": 0, "worker 0": 1, "worker 1": 1}
    one_line(end.stderr, f"error: epoch 3: cannot write to {tmp_path}/out/samples.txt: File too large. {tmp_path}/out/model.npz "
             "holds epoch 2")
    finish(by_supervisor, tmp_path, 2, command, {})


@pytest.mark.parametrize("where, what, said", [
    ("training.Replicas.arrays", "MemoryError('no room')", "worker 1: not enough memory (no room)"),
    ("run.descent.learning_rate_of", "RuntimeError('broken')", "worker 1: RuntimeError: broken"),
    ("run.descent.learning_rate_of", "KeyError('broken')", "worker 1: 'broken'"),
    ("run.descent.checked", "FloatingPointError('nan')", "worker 1: nan; try a smaller learning rate")])
def test_an_error_in_worker_1_only(tmp_path, command, where, what, said):
    module, _, name = where.partition(".")
    holder, _, function = f"{module}.{name}".rpartition(".")
    code = f"from rnn_ops_timemachine import {module}\ndef fail(*_):\n    raise {what}\n{holder}.{function} = fail"
    with by_hand(tmp_path, command, code=code, **FAST) as job:
        end = job.end()
    assert end.statuses == {"the scheduler": 0, "server 0": 0, "worker 0": 1, "worker 1": 1}
    one_line(end.stderr, f"error: epoch 1: {said}. {tmp_path}/out/model.npz holds epoch 0")
    finish(by_supervisor, tmp_path, 2, command, {})


def test_training_that_diverges(tmp_path, command):
    with by_supervisor(tmp_path, [*command, "--learning-rate=1e6"]) as job:
        end = job.end()
    assert end.statuses == {"supervisor": 1} and epoch_of(tmp_path) == 0
    one_line(end.stderr, "error: epoch 1: training has diverged: ", f"{tmp_path}/out/model.npz holds epoch 0")
