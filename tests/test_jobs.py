"""Jobs that cannot begin: each role ends within a stated time, and a line says why."""
import os
import signal
import socket
import subprocess
import sys

import pytest

from job_cases import Job, by_hand, free_ports
from rnn_ops_cli.main import main
from rnn_ops_timemachine import checkpoint, inquiry, job, roles
from timemachine_cases import SMALL, book_file, one_line

PLACE = dict(DMLC_ROLE="worker", DMLC_PS_ROOT_URI="127.0.0.1", DMLC_PS_ROOT_PORT="9", DMLC_NUM_WORKER="2", DMLC_NUM_SERVER="1")


def test_the_place_in_a_job_comes_from_the_environment():
    assert roles.of_environment({}) is None
    assert roles.of_environment(PLACE) == ("worker", 2, 1, "127.0.0.1", 9, 60, 20)
    assert roles.of_environment(dict(PLACE, RNN_OPS_JOIN_TIMEOUT="5", PS_HEARTBEAT_TIMEOUT="4"))[-2:] == (5, 4)


@pytest.mark.parametrize("wrong, message", [
    (dict(DMLC_ROLE="boss"), "DMLC_ROLE: got 'boss', needs worker, server or scheduler"),
    (dict(DMLC_PS_ROOT_URI=""), "DMLC_PS_ROOT_URI: is not set, needs the address of the scheduler"),
    (dict(DMLC_NUM_WORKER="0"), "DMLC_NUM_WORKER: got '0', needs a whole number from 1 to 1000000"),
    (dict(DMLC_NUM_SERVER=None), "DMLC_NUM_SERVER: is not set, needs a whole number from 1 to 1000000"),
    (dict(DMLC_PS_ROOT_PORT="65536"), "DMLC_PS_ROOT_PORT: got '65536', needs a whole number from 1 to 65535"),
    (dict(RNN_OPS_JOIN_TIMEOUT="-1"), "RNN_OPS_JOIN_TIMEOUT: got '-1', needs a whole number from 1 to 1000000"),
    (dict(PS_HEARTBEAT_INTERVAL="0"), "PS_HEARTBEAT_INTERVAL: got '0', needs a whole number from 1 to 1000000"),
    (dict(PS_HEARTBEAT_TIMEOUT="3"), "PS_HEARTBEAT_TIMEOUT: got 3, needs at least 4, two more than PS_HEARTBEAT_INTERVAL")])
def test_a_wrong_variable_is_named(monkeypatch, capfd, wrong, message):
    for name, value in dict(PLACE, **wrong).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert main(["train"]) == 2
    assert capfd.readouterr() == ("", f"rnn-ops: error: {message}\n")


def test_ps_lites_rank_is_no_new_variable():
    # ps-lite sets it in one thread while the watch reads it in another: a new variable would move the environment.
    program = """import ctypes
from rnn_ops_timemachine import roles
c = ctypes.CDLL(None)
def count():
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(c, "environ")
    return next(number for number in range(10 ** 6) if environ[number] is None)
roles._mxnet(roles.of_environment())
before = count()
assert roles._rank() is None
c.setenv(b"DMLC_RANK", b"12", 1)
assert roles._rank() == 12 and count() == before
"""
    subprocess.run([sys.executable, "-c", program], env=dict(os.environ, **PLACE), check=True, timeout=60)


def test_the_scheduler_answers_all_that_have_asked():
    port, = free_ports(1)
    first, second = inquiry.Questions("127.0.0.1", port), inquiry.Questions("127.0.0.1", port)
    assert first.ask("server 0") is None  # nobody is there
    answers = inquiry.Answers("127.0.0.1", port)
    assert first.ask("server 0") is None and second.ask("worker 1") is None  # answered later
    assert sorted(answers.give(inquiry.ENDS, "worker 0: has died ü").values()) == ["server 0", "worker 1"]
    assert answers.give(inquiry.RUNS) == {}
    assert first.ask("server 0") == second.ask("worker 1") == (inquiry.ENDS, "worker 0: has died ü")


@pytest.mark.parametrize("host, reason", [
    ("127.0.0.1", "Connection refused"), ("10.255.255.1", ""), ("no-such-host.invalid", "")])
def test_no_scheduler_answers(monkeypatch, capfd, host, reason):
    port, = free_ports(1)
    for name, value in dict(PLACE, DMLC_PS_ROOT_URI=host, DMLC_PS_ROOT_PORT=str(port), RNN_OPS_JOIN_TIMEOUT="1").items():
        monkeypatch.setenv(name, value)
    assert main(["train"]) == 1
    one_line(capfd.readouterr().err, f"error: no scheduler answers at {host}:{port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT) "
             f"within 1 s: {reason}")


def test_a_node_without_an_address_of_this_machine(monkeypatch, capfd):
    for name, value in dict(PLACE, DMLC_NODE_HOST="192.0.2.1").items():
        monkeypatch.setenv(name, value)
    assert main(["train"]) == 1
    one_line(capfd.readouterr().err, "error: DMLC_NODE_HOST: got '192.0.2.1', needs an address of this machine: ")


@pytest.mark.parametrize("host, reason", [("127.0.0.1", "Address already in use"), ("192.0.2.1", "")])
def test_the_scheduler_cannot_listen(tmp_path, host, reason):
    with socket.socket() as taken, Job(tmp_path, **PLACE) as one:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        one.start("the scheduler", ["train"], DMLC_ROLE="scheduler", DMLC_PS_ROOT_URI=host, DMLC_PS_ROOT_PORT=port)
        end = one.end()
    assert end.statuses == {"the scheduler": 1}
    one_line(end.stderr, f"the scheduler cannot listen on {host}:{port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT): {reason}")


@pytest.mark.parametrize("role", ["worker", "server"])
def test_somebody_else_listens(tmp_path, role):
    with socket.socket() as taken, Job(tmp_path, **dict(PLACE, RNN_OPS_JOIN_TIMEOUT=2)) as one:
        taken.bind(("127.0.0.1", 0))
        taken.listen(5)
        port = taken.getsockname()[1]
        one.start(role, ["train"], DMLC_ROLE=role, DMLC_PS_ROOT_PORT=port)
        end = one.end()
    assert end.statuses == {role: 1}
    one_line(end.stderr, f"not all of 2 workers and 1 server have come to the scheduler at 127.0.0.1:{port} within 2 s, or "
             "somebody else listens there")


@pytest.mark.parametrize("options, status, message", [
    (["--workers=0"], 2, "argument --workers: got '0', needs a whole number, 1 or more"),
    (["--servers=2"], 2, "servers: got 2, needs --workers"),
    (["--workers=2", "--kvstore=local"], 2, "kvstore: got 'local', but --workers needs dist_sync"),
    (["--workers=2", "--gradient-compression=3bit"], 2, "gradient_compression: got '3bit', needs 2bit or 2bit:T"),
    (["--workers=2", "--device=cuda"], 2, "--device: not an option of train"),
    (["--kvstore=dist_sync"], 2, "kvstore: got 'dist_sync', which needs --workers on one machine"),
    (["--kvstore=dist_async"], 2, "kvstore: got 'dist_async', needs dist_sync")])
def test_options_that_cannot_be_followed_start_nothing(tmp_path, monkeypatch, capfd, options, status, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run", None)
    assert main(["train", *options]) == status
    one_line(capfd.readouterr().err, message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name, value", [("RNN_OPS_SIMD", "x"), ("RNN_OPS_JOIN_TIMEOUT", "x"), ("PS_HEARTBEAT_TIMEOUT", "1")])
def test_a_wrong_setting_is_said_once_and_starts_nothing(tmp_path, name, value, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(job.subprocess, "Popen", None)
    assert main(["train", "--workers=2", "--text", "x"]) == 2
    one_line(capfd.readouterr().err, f"{name}: got {value if value == '1' else repr(value)}, needs")
    assert os.listdir("runs") == [] if os.path.exists("runs") else True


@pytest.mark.parametrize("code, ended", [
    ("", (0, "")),
    ("sys.exit(5 * (role == 'worker'))", (5, "")),
    ("sys.exit(3) if role == 'server' else time.sleep(100)", (3, "server 0 has ended with exit status 3")),
    ("os.kill(os.getpid(), 9) if role == 'scheduler' else time.sleep(100)", (1, "the scheduler was killed by SIGKILL")),
    ("sys.exit(4) if role == 'worker' else time.sleep(100)", (4, ""))])
def test_a_role_that_ends_ends_the_job(monkeypatch, tmp_path, code, ended):
    """Roles of a line. A worker 0 that has failed has said why."""
    monkeypatch.setattr(job, "_GRACE", 1)
    (tmp_path / "role.py").write_text(f"import os, sys, time\nrole = os.environ['DMLC_ROLE']\n{code}\n")
    assert job.run([sys.executable, str(tmp_path / "role.py")], 2, 1) == ended


FAST = dict(PS_HEARTBEAT_INTERVAL=1, PS_HEARTBEAT_TIMEOUT=5, RNN_OPS_JOIN_TIMEOUT=40)


@pytest.fixture
def command(book_file, tmp_path):
    return ["--text", book_file, *SMALL, "--epochs=1", "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("servers, message", [
    (1, "it hears 1 worker and 1 server"), (0, "it hears 1 worker and 0 servers")])
def test_too_few_come(tmp_path, command, servers, message):
    with by_hand(tmp_path, command, 1, servers, DMLC_NUM_WORKER=3, DMLC_NUM_SERVER=1, RNN_OPS_JOIN_TIMEOUT=15) as one:
        end = one.end()
    assert all(end.statuses.values()) and not os.path.exists(tmp_path / "out")
    one_line(end.stderr, f"error: not all of 3 workers and 1 server have come to the scheduler at 127.0.0.1:{one.port} within "
             f"15 s; {message}")


def test_one_too_many_comes(tmp_path, command):
    """It ends with a line, and the others go on."""
    with by_hand(tmp_path, command[:-3] + ["--epochs=1000000", *command[-2:]], **FAST) as one:
        one.wait_for("epoch ", 2)
        one.start("worker 2", one.command, DMLC_ROLE="worker")
        assert one.wait("worker 2") == 1
        one_line(one.read(1), f"the job of the scheduler at 127.0.0.1:{one.port} has its 2 workers and 1 server already")
        one.wait_for("epoch ", one.read(0).count("epoch ") + 2)
        one.signal("worker 1", signal.SIGTERM)
        end = one.end()
    assert end.statuses == {"the scheduler": 0, "server 0": 0, "worker 0": 143, "worker 1": 143, "worker 2": 1}
    epoch = checkpoint.load(str(tmp_path / "out")).settings["epoch"]
    one_line(end.stderr.splitlines()[-1], f"interrupted by SIGTERM: {tmp_path}/out holds epoch {epoch}; to go on: ",
             "--kvstore=dist_sync")
    assert len(end.stderr.splitlines()) == 2


@pytest.mark.parametrize("given, code, message", [
    (["--hidden=9"], None, "worker 1: hidden: got 9, but the run of worker 0 has 8"),
    (["--ctx=cpu(0),cpu(1)"], None, "worker 1 has contexts 2, worker 0 has 1"),
    (["--ctx=tpu"], None, "worker 1: ctx: got 'tpu', needs cpu(0), or several"),
    (["--gradient-compression=2bit:0.5"], None, "worker 1 has gradient_compression 2bit:0.5, worker 0 has None"),
    ([], "import rnn_ops; rnn_ops.__version__ = '0.1.9'", "worker 1 has rnn_ops 0.1.9, worker 0 has "),
    (["--workers=3"], None, "worker 1: workers: got 3, but DMLC_NUM_WORKER is 2")])
def test_a_worker_that_is_unlike_worker_0_is_refused(tmp_path, command, given, code, message):
    """In an empty folder, which stays; nothing else is left."""
    os.mkdir(tmp_path / "out")
    with by_hand(tmp_path, command, last=given, code=code, **FAST) as one:
        end = one.end()
    assert end.statuses == {"the scheduler": 0, "server 0": 0, "worker 0": 2, "worker 1": 2}
    one_line(end.stderr, f"error: {message}")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("made", ["text", "model"])
def test_a_worker_with_another_text_or_model_is_refused(tmp_path, command, book_file, made):
    if made == "text":
        given, other = [], str(tmp_path / "other")
        code = f"from rnn_ops_timemachine import text\nold = text.load\ntext.load = lambda _, *more: old({other!r}, *more)"
        with open(book_file) as file, open(other, "w") as changed:
            changed.write(file.read().replace("tocks", "ticks"))
        message = f"worker 1: text: {tmp_path}/other is not the text of the run of worker 0: its sha256 is "
    else:
        for name, seed in ("one", "1"), ("two", "2"):
            assert main(["train", *command[:-2], "--quiet", f"--seed={seed}", "--out", str(tmp_path / name)]) == 0
        given, code = [f"--init-from={tmp_path}/two"], None
        command = [*command, f"--init-from={tmp_path}/one"]
        message = f"worker 1: init_from: {tmp_path}/two has another Wxh than the run of worker 0"
    with by_hand(tmp_path, command, last=given, code=code, **FAST) as one:
        end = one.end()
    assert end.statuses == {"the scheduler": 0, "server 0": 0, "worker 0": 2, "worker 1": 2}
    one_line(end.stderr, f"error: {message}")
    assert not os.path.exists(tmp_path / "out")
