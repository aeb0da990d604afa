"""A job on two hosts: two network namespaces with a cable between them. Started by DMLC_* and over ssh; ended by a cut cable."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rnn_ops_timemachine import checkpoint
from rnn_ops_timemachine.settings import METRICS
from timemachine_cases import book_file, metrics_of, train  # noqa: F401, the fixtures
from two_hosts import namespaces, remove_left, two_hosts

pytestmark = pytest.mark.slow

SCRIPT = os.path.join(os.path.dirname(sys.executable), "rnn-ops")
OPTIONS = ["--hidden", "8", "--batch-size", "4", "--sequence-length", "7"]
BOUND = 1e-6  # of a loss in float32, relative: the order of a sum is another one
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@pytest.fixture
def hosts():
    try:
        with two_hosts() as made:
            yield made
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def job(hosts, start, book_file, tmp_path):
    """Start the scheduler, a server and a worker on the first host and a worker on the second → {(role, host): process}."""
    def begin(*options):
        environment = dict(os.environ, DMLC_NUM_WORKER="2", DMLC_NUM_SERVER="1", DMLC_PS_ROOT_URI=hosts.addresses[0],
                           DMLC_PS_ROOT_PORT="9091", PS_HEARTBEAT_INTERVAL="1", PS_HEARTBEAT_TIMEOUT="5")
        command = [SCRIPT, "train", "--kvstore", "dist_sync", "--text", book_file, *OPTIONS, *options]
        return {(role, host): start(hosts.command(host, *command), cwd=str(tmp_path),
                                    env=dict(environment, DMLC_ROLE=role, DMLC_NODE_HOST=hosts.addresses[host]),
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
                for role, host in (("scheduler", 0), ("server", 0), ("worker", 0), ("worker", 1))}
    return begin


def test_hosts_that_a_killed_process_left_are_removed(hosts):
    code = 'import os, two_hosts\nwith two_hosts.two_hosts() as made: print(*made.names, flush=True); os.kill(os.getpid(), 9)'
    left = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), stdout=subprocess.PIPE).stdout.decode()
    assert set(left.split()) < set(namespaces())
    remove_left()
    assert set(hosts.names) <= set(namespaces()) and not set(left.split()) & set(namespaces())


def losses(folder):
    return [line["loss"] for line in metrics_of(folder)]


def wait_for_an_epoch(folder):
    latest = time.time() + 120
    while not (folder / METRICS).exists() or not (folder / METRICS).read_text():
        assert time.time() < latest
        time.sleep(0.1)


def test_the_losses_are_those_of_one_process(job, train, tmp_path):
    alone = train(*OPTIONS, "--epochs", "2")[1]
    said = {key: process.communicate(timeout=200) for key, process in job("--epochs", "2", "--out", "together").items()}
    # The worker with the last address is worker 0, which writes the run and speaks.
    assert said.pop(("worker", 1))[0].startswith("text: ")
    assert set(said.values()) == {("", "")}
    np.testing.assert_allclose(losses(str(tmp_path / "together")), losses(alone), rtol=BOUND)


def test_every_role_ends_when_the_cable_is_cut(hosts, job, tmp_path):
    processes = job("--epochs", "1000000", "--out", "run", "--quiet")
    wait_for_an_epoch(tmp_path / "run")
    hosts.cut()
    said = {key: process.communicate(timeout=100)[1] for key, process in processes.items()}
    assert {process.returncode for process in processes.values()} == {1}
    epoch = checkpoint.load(str(tmp_path / "run")).settings["epoch"]
    assert said[("worker", 1)].startswith(
        "rnn-ops: error: the scheduler has had no heartbeat for 5 s: it has died, or has ended the job; "
        f"run holds epoch {epoch}; to go on: ")
    assert said[("scheduler", 0)] == "rnn-ops: error: worker 0 has had no heartbeat for 5 s: it has died\n"
    assert said[("server", 0)] == said[("worker", 0)] == ""


# --- over ssh

SSHD_CONFIG = """
Port 2222
HostKey {0}/host
AuthorizedKeysFile {0}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
"""


@pytest.fixture
def ssh(hosts, start, tmp_path, monkeypatch):
    """sshd on both hosts, with keys of its own; `ssh` and `rnn-ops launch` on the first find the second, by a file of hosts."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (openssh-server)")
    for key in "host", "key":
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", str(tmp_path / key)], check=True)
    (tmp_path / "sshd").write_text(SSHD_CONFIG.format(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -i '{tmp_path}/key' -o LogLevel=ERROR "
                                          '-o UserKnownHostsFile=/dev/null "$@"\n')
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for host in 0, 1:  # each with a /run of its own, where sshd needs a folder
        serve = f"mount -t tmpfs none /run; mkdir /run/sshd; exec {SSHD} -D -e -f '{tmp_path}/sshd'"
        start(hosts.command(host, "sh", "-c", serve), stderr=subprocess.DEVNULL)
        trial = hosts.command(0, "ssh", "-o", "ConnectionAttempts=20", "-o", "StrictHostKeyChecking=no", "-p", "2222",
                              hosts.addresses[host], "true")
        tried = subprocess.run(trial, capture_output=True, encoding="utf-8")
        if tried.returncode:
            pytest.skip(f"ssh from a namespace to a namespace: {tried.stderr}")
    (tmp_path / "hosts").write_text("".join(f"{address}:2222\n" for address in hosts.addresses))
    monkeypatch.chdir(tmp_path)


def launch(hosts, book_file, *options):
    return hosts.command(0, SCRIPT, "launch", "-n", "2", "-s", "1", "-H", "hosts", "--env", "PS_HEARTBEAT_TIMEOUT",
                         SCRIPT, "train", "--kvstore", "dist_sync", "--text", book_file, *OPTIONS, *options)


def test_launch_over_ssh(hosts, ssh, train, book_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PS_HEARTBEAT_TIMEOUT", "5")
    alone = train(*OPTIONS, "--epochs", "2")[1]
    ended = subprocess.run(launch(hosts, book_file, "--epochs", "2", "--out", "a run", "--quiet"), stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=200)
    assert (ended.returncode, ended.stdout) == (0, b"a run\n")
    np.testing.assert_allclose(losses(str(tmp_path / "a run")), losses(alone), rtol=BOUND)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_role_stays_when_launch_is_ended(hosts, ssh, start, book_file, tmp_path, monkeypatch, number):
    monkeypatch.setenv("PS_HEARTBEAT_TIMEOUT", "5")
    before = hosts.processes()
    process = start(launch(hosts, book_file, "--epochs", "1000000", "--out", "run", "--quiet"))
    wait_for_an_epoch(tmp_path / "run")
    assert len(hosts.processes() - before) > 6
    process.send_signal(number)
    process.wait(timeout=100)
    latest = time.time() + 100
    while hosts.processes() - before:
        assert time.time() < latest
        time.sleep(0.1)
