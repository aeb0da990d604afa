"""`rnn-ops launch`: the roles start with the words that were given, a failure is one line, and no process stays behind."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from rnn_ops_cli import launch, mxnet_launcher
from rnn_ops_cli.main import main

SCRIPT = os.path.join(os.path.dirname(sys.executable), "rnn-ops")

# A role notes its number, then does what the variable with its name says.
ROLE = """
%s
echo $DMLC_ROLE $$ >> roles
while [ $(wc -l < roles) -lt 4 ]; do sleep 0.05; done
case $DMLC_ROLE in worker) eval "$WORKER";; server) eval "$SERVER";; scheduler) eval "$SCHEDULER";; esac
"""
# ssh to this machine: a shell that has none of this process's environment.
SSH = """#!/bin/sh
echo "$3 $4 $5" >> "$(dirname "$0")/calls"
exec env -i PATH=/usr/bin:/bin WORKER="exit 9" bash -c "$6"
"""


@pytest.fixture
def launched(start, tmp_path):
    """Start `rnn-ops launch` of a scheduler, a server and two workers by ROLE, which wait for each other and then sleep, or do
    what the keywords say."""
    def begin(*options, first="", **roles):
        (tmp_path / "role.sh").write_text(ROLE % first)
        todo = {name.upper(): "exec sleep 1000" for name in ("worker", "server", "scheduler")}
        todo.update({name.upper(): text for name, text in roles.items()})
        return start([SCRIPT, "launch", "-n", "2", "-s", "1", *(options or ["--launcher", "local"]), "bash", "role.sh"],
                     cwd=str(tmp_path), env=dict(os.environ, **todo), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                     universal_newlines=True)
    return begin


@pytest.fixture
def roles(tmp_path):
    """[(role, process number)] once all have started."""
    def wait():
        latest = time.time() + 60
        while time.time() < latest:
            lines = (tmp_path / "roles").read_text().splitlines() if (tmp_path / "roles").exists() else []
            if len(lines) == 4:
                return [(role, int(number)) for role, number in map(str.split, lines)]
            time.sleep(0.05)
        raise AssertionError("the roles have not started")
    return wait


def end(process):
    """(exit status, our lines) of a process. Shells may say that they were terminated."""
    lines = process.communicate(timeout=60)[0].splitlines()
    return process.returncode, [line for line in lines if line.startswith("rnn-ops: ")]


def running(number):
    """Is it a process that has not ended?"""
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_end(roles):
    """After the job's end, which may take the time that roles have to end."""
    latest = time.time() + 60
    while any(running(number) for _, number in roles):
        assert time.time() < latest, roles
        time.sleep(0.05)


def test_all_roles_run_the_command(launched, roles):
    process = launched(worker="true", server="true", scheduler="true")
    assert end(process) == (0, [])
    assert sorted(role for role, _ in roles()) == ["scheduler", "server", "worker", "worker"]


def test_a_worker_may_end_after_the_scheduler(launched, tmp_path):
    process = launched(worker="sleep 1; echo >> done", server="true", scheduler="true")
    assert end(process) == (0, [])
    assert len((tmp_path / "done").read_text()) == 2


# --- words, environments, hosts

WORDS = ["a b", "$HOME", '"', "*", "\\", ";", "", "é", "-n", "--env", "{a,b}", "~", "a=b", "#", "`x`", "(", "&", "\t"]
# Without line feeds and single quotes.
SAY = 'import json, os, sys; open(os.environ["DMLC_ROLE"], "w").write(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))'


def said(folder, role):
    return json.loads((folder / role).read_text())


def test_words_arrive(tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["launch", "-n", "1", "-s", "1", "--launcher", "local", "--", sys.executable, "-c", SAY, *WORDS]) == 0
    for role in "worker", "server", "scheduler":
        words, where, environment = said(folder, role)
        assert (words, where) == (WORDS, str(folder))
        assert environment["DMLC_PS_ROOT_URI"] == environment["DMLC_NODE_HOST"] == "127.0.0.1"


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """SSH is ssh."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


def test_words_and_variables_arrive_over_ssh(ssh, monkeypatch):
    (ssh / "hosts").write_text("127.0.0.1\n\n127.0.0.2:2222 slots=3\n")
    monkeypatch.setenv("RNN_OPS_DATA", "a $folder")
    monkeypatch.setenv("OTHER", "x")
    assert main(["launch", "-n", "1", "-s", "1", "-H", "hosts", "--env", "RNN_OPS_DATA", sys.executable, "-c", SAY, *WORDS]) == 0
    assert sorted((ssh / "bin" / "calls").read_text().splitlines()) == ["127.0.0.1 -p 22", "127.0.0.2 -p 2222"]
    for role, host in ("worker", "127.0.0.2"), ("server", "127.0.0.1"), ("scheduler", "127.0.0.1"):
        words, where, environment = said(ssh, role)
        assert (words, where, environment["RNN_OPS_DATA"]) == (WORDS, str(ssh), "a $folder")
        assert (environment["DMLC_PS_ROOT_URI"], environment["DMLC_NODE_HOST"]) == ("127.0.0.1", host)
        assert ("OTHER" in environment) == (role == "scheduler")


def test_the_schedulers_address_can_be_given(ssh):
    (ssh / "hosts").write_text("127.0.0.1")
    assert main(["launch", "-n", "1", "-H", "hosts", "--host-ip", "127.0.0.7", sys.executable, "-c", SAY]) == 0
    assert said(ssh, "worker")[2]["DMLC_PS_ROOT_URI"] == "127.0.0.7"


def test_the_schedulers_address_is_not_a_loopback_address_for_other_hosts(ssh):
    (ssh / "hosts").write_text("127.0.0.1\n192.0.2.1\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 1))
        except OSError:
            pytest.skip("this machine has no network")
        address = route.getsockname()[0]
    assert main(["launch", "-n", "1", "-s", "1", "-H", "hosts", sys.executable, "-c", SAY]) == 0
    assert said(ssh, "worker")[2]["DMLC_PS_ROOT_URI"] == address


def test_a_folder_that_ssh_would_not_find_is_refused(ssh, monkeypatch, capfd):
    (ssh / "hosts").write_text("127.0.0.1")
    (ssh / "a folder").mkdir()
    monkeypatch.chdir(ssh / "a folder")
    assert main(["launch", "-n", "1", "-H", "../hosts", "x"]) == 2
    assert capfd.readouterr().err.startswith(f"rnn-ops: error: this folder: got {os.getcwd()!r}, needs a path of letters")


def test_a_failure_over_ssh_names_the_host(ssh, capfd):
    (ssh / "hosts").write_text("127.0.0.1\n127.0.0.3\n")
    status = main(["launch", "-n", "1", "-s", "1", "-H", "hosts", "bash", "-c", "eval $WORKER; sleep 1"])
    assert status == 1
    assert capfd.readouterr().err in [f"rnn-ops: error: a {role} ended with exit status 9; the rest of the job was ended\n"
                                      for role in ("worker on 127.0.0.3", "server on 127.0.0.1")]


# --- every end

@pytest.mark.parametrize("role, text, line", [
    ("worker", "mkdir one && kill -9 $$; exec sleep 1000", "a worker was ended by SIGKILL"),
    ("server", "kill -SEGV $$", "a server was ended by SIGSEGV"),
    ("scheduler", "kill -9 $$", "the scheduler was ended by SIGKILL")])
def test_a_role_that_is_killed_ends_the_job(launched, roles, role, text, line):
    process = launched(**{role: text})
    assert end(process) == (1, [f"rnn-ops: error: {line}; the rest of the job was ended"])
    assert not any(running(number) for _, number in roles())


@pytest.mark.slow
@pytest.mark.parametrize("role, text, line", [
    ("worker", "mkdir one && exit 3; exec sleep 1000", "a worker ended with exit status 3"),
    ("server", "exit 1", "a server ended with exit status 1"),
    ("scheduler", "exit 200", "the scheduler ended with exit status 200")])
def test_a_role_that_fails_ends_the_job(launched, roles, role, text, line):
    process = launched(**{role: text})
    assert end(process) == (1, [f"rnn-ops: error: {line}; the rest of the job was ended"])
    assert not any(running(number) for _, number in roles())


def test_the_others_may_say_why_a_role_fails(launched):
    process = launched(worker="mkdir one && exit 3; sleep 1; echo rnn-ops: why", server="sleep 2", scheduler="sleep 2")
    status, lines = end(process)
    assert status == 1
    assert lines == ["rnn-ops: why", "rnn-ops: error: a worker ended with exit status 3; the rest of the job was ended"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_job(launched, roles, number):
    process = launched()
    started = roles()
    process.send_signal(number)
    said = "interrupted" if number == signal.SIGINT else f"interrupted by {number.name}"
    assert end(process) == (128 + number, [f"rnn-ops: {said}: the job was ended"])
    assert not any(running(number) for _, number in started)


def test_a_kill_ends_the_job(launched, roles):
    process = launched()
    started = roles()
    process.kill()
    assert_end(started)


def launchers(process):
    """The process that runs MXNet's launcher."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_is_ended_ends_the_job(launched, roles, number):
    process = launched()
    started = roles()
    launcher, = launchers(process)
    os.kill(launcher, number)
    assert end(process) == (1, [f"rnn-ops: error: MXNet's launcher was ended by {number.name}"])
    assert not any(running(number) for _, number in started)


@pytest.mark.slow
def test_roles_that_do_not_end_are_killed(launched, roles):
    process = launched(first="trap '' INT TERM; bash -c 'set -m; sleep 1000 & wait; true' &", server="exit 1")
    started = roles()
    session, = launchers(process)
    others = mxnet_launcher.others_of_session(session)
    assert len(others) >= 9  # each role has two of its own
    assert end(process)[0] == 1
    assert not any(running(number) for number in others.union(number for _, number in started))


# --- what cannot be done

@pytest.mark.parametrize("words, status, line", [
    ([], 2, "the following arguments are required: -n/--num-workers (%launch --help says more)"),
    (["-n", "1"], 2, "COMMAND: got none, needs the command that every role runs, such as: rnn-ops train --kvstore dist_sync"),
    (["-n", "1", "--"], 2,
     "COMMAND: got none, needs the command that every role runs, such as: rnn-ops train --kvstore dist_sync"),
    (["-n", "0", "x"], 2, "argument -n/--num-workers: got '0', needs a whole number, 1 or more, of at most 18 digits "
                          "(%launch --help says more)"),
    (["-n", "1", "x"], 2, "--hostfile: --launcher ssh needs it, a file with a host a line"),
    (["-n", "1", "-H", "none", "x"], 2, "--hostfile: cannot read none: No such file or directory"),
    (["-n", "1", "-H", "blank", "x"], 2, "--hostfile: got no host in blank, needs one a line"),
    (["-n", "1", "-H", "bytes", "x"], 2, "--hostfile: cannot read bytes: not text"),
    (["-n", "1", "-H", "names", "x"], 2, "--hostfile: got 'server-2:22', needs IPv4 addresses, such as 10.0.0.5 or 10.0.0.5:22: "
                                         "MXNet's roles cannot listen on a name"),
    (["-n", "1", "--launcher", "local", "--host-ip", "here", "x"], 2,
     "argument --host-ip: got 'here', needs an IPv4 address (%launch --help says more)"),
    (["-n", "1", "--launcher", "local", "--env", "NOT_SET", "x"], 2,
     "--env: got NOT_SET, which is not set, needs a variable of this environment"),
    (["-n", "1", "--launcher", "local", "it's"], 2,
     "COMMAND: got \"it's\", needs words without ' and line feeds, which MXNet's launcher cannot hand on")])
def test_errors_are_one_line(words, status, line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank").write_text(" \n\n")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "names").write_text("10.0.0.1\nserver-2:22\n")
    assert main(["launch", *words]) == status
    stderr = [text for text in capfd.readouterr().err.splitlines() if text.startswith("rnn-ops: ")]
    assert [text.replace(f"{launch_command()} ", "%launch ") for text in stderr] == [f"rnn-ops: error: {line}"]


def launch_command():
    from rnn_ops_timemachine import hints
    return hints.command("launch")


@pytest.mark.parametrize("launcher, program", [("ssh", "ssh"), ("mpi", "mpirun"), ("local", "bash")])
def test_a_program_that_is_missing_is_named(launcher, program, tmp_path, monkeypatch, capfd):
    (tmp_path / "bin").mkdir()
    for other in {"bash", "ssh", "mpirun"} - {program}:
        (tmp_path / "bin" / other).write_text("")
        (tmp_path / "bin" / other).chmod(0o755)
    (tmp_path / "hosts").write_text("127.0.0.1\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["launch", "-n", "1", "--launcher", launcher, "-H", str(tmp_path / "hosts"), "x"]) == 1
    assert capfd.readouterr().err == (f"rnn-ops: error: --launcher {launcher}: needs the program {program}, which is not on the "
                                      "PATH\n")


def test_mxnet_that_is_missing_is_named(monkeypatch, capfd):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert main(["launch", "-n", "1", "--launcher", "local", "x"]) == 1
    assert capfd.readouterr().err.startswith("rnn-ops: error: No module named 'mxnet': rnn_ops[cpu], ")


def test_help_fits_a_small_screen():
    shown = subprocess.run([SCRIPT, "launch", "--help"], stdout=subprocess.PIPE,
                           env=dict(os.environ, COLUMNS="80", PATH=os.path.dirname(SCRIPT))).stdout.decode()
    assert shown.startswith("usage: rnn-ops launch -n N [OPTION ...] COMMAND ...\n")
    assert [line for line in shown.splitlines() if len(line) > 80] == []


# --- MXNet's roles

SUM = r"""
import os
role = os.environ.pop("DMLC_ROLE")  # else the import never ends
import rnn_ops
import mxnet as mx
from mxnet.kvstore.kvstore_server import KVStoreServer
os.environ["DMLC_ROLE"] = role
store = mx.kv.create("dist_sync")
if role != "worker":
    KVStoreServer(store).run()
else:
    total = mx.nd.zeros(3)
    store.init(0, total)
    store.pushpull(0, mx.nd.ones(3) * (store.rank + 1), out=total)
    os.write(1, f"{total.asnumpy().tolist()}\n".encode())  # at once, unlike print
"""


@pytest.mark.slow
def test_mxnets_workers_sum(tmp_path, capfd):
    (tmp_path / "sum.py").write_text(SUM)
    assert main(["launch", "-n", "2", "-s", "2", "--launcher", "local", sys.executable, str(tmp_path / "sum.py")]) == 0
    assert capfd.readouterr() == ("[3.0, 3.0, 3.0]\n" * 2, "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not here")
def test_mpi(launched, roles, tmp_path, monkeypatch):
    (tmp_path / "the hosts").write_text("localhost slots=2\n")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    process = launched("--launcher", "mpi", "-H", "the hosts", "--host-ip", "127.0.0.1", scheduler="exit 3")
    started = roles()
    assert end(process) == (1, ["rnn-ops: error: the scheduler ended with exit status 3; the rest of the job was ended"])
    assert not any(running(number) for _, number in started)  # mpirun puts them into groups of their own
