"""Distributed jobs for tests: start their roles, find the processes, signal one of them, wait until all are gone."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

RNN_OPS = os.path.join(os.path.dirname(sys.executable), "rnn-ops")
PATIENCE = 200  # seconds after which a job that has not ended counts as one that never ends
ROLES = "worker 0", "worker 1", "server 0", "the scheduler"


class End(NamedTuple):
    """How a job has ended. ``seconds``: from the signal to the last process's end. ``statuses``: by role, or of the only
    process that was started here."""
    seconds: float
    stdout: str
    stderr: str
    statuses: dict


class Job:
    """A job whose processes write to two files in ``folder``. They are in sessions of their own, and a ``with`` block kills
    those that are left."""

    def __init__(self, folder, **environment):
        self._environment = {**os.environ, "COLUMNS": "1000", **{name: str(value) for name, value in environment.items()}}
        self._started, self._outputs = {}, [os.path.join(str(folder), name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            with open(path, "w"):
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started.values():
            process.wait()

    def start(self, name, command, code=None, **environment):
        """Start a process: rnn-ops with a command, Python ``code`` before it if there is some."""
        program = [RNN_OPS] if code is None else [
            sys.executable, "-c", f"import sys; from rnn_ops_cli.main import main\n{code}\nsys.exit(main(sys.argv[1:]))"]
        with open(self._outputs[0], "a") as stdout, open(self._outputs[1], "a") as stderr:
            self._started[name] = subprocess.Popen(
                [*program, *command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
                env={**self._environment, **{name: str(value) for name, value in environment.items()}})
        return self._started[name]

    def processes(self):
        """The ids of all living processes of the job."""
        sessions = {process.pid for process in self._started.values()}
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{pid}/stat") as file:
                    state, _, _, session = file.read().rpartition(")")[2].split()[:4]
                if int(session) in sessions and state != "Z":
                    found.append(int(pid))
        return sorted(found)

    def pid(self, name):
        """The process that has a role, None if it does not live. In a job of --workers its order among its kind is its rank."""
        if name in self._started:
            return self._started[name].pid if self._started[name].poll() is None else None
        role, _, number = name.replace("the ", "").partition(" ")
        of_role = [pid for pid in self.processes() if _role(pid) == role]
        return of_role[int(number or 0)] if len(of_role) > int(number or 0) else None

    def signal(self, name, number=signal.SIGKILL):
        """Send a signal to a role → whether it lived."""
        pid = self.pid(name)
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, number)
                return True
        return False

    def wait_for(self, text, count=1):
        """Wait until the job has printed a text so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.read(0).count(text) < count:
            assert time.monotonic() < deadline and self.processes(), self.read(0) + self.read(1)
            time.sleep(.02)

    def wait(self, name):
        """Wait for the end of a process that was started here → its exit status."""
        return self._started[name].wait(PATIENCE)

    def end(self, patience=PATIENCE):
        """Wait until all processes are gone."""
        began = time.monotonic()
        while True:
            statuses = {name: process.poll() for name, process in self._started.items()}  # it also reaps them
            if not self.processes():
                return End(time.monotonic() - began, self.read(0), self.read(1),
                           {name: process.wait() for name, process in self._started.items()})
            assert time.monotonic() - began < patience, (statuses, self.read(0), self.read(1))
            time.sleep(.02)

    def read(self, number):
        with open(self._outputs[number], errors="replace") as file:
            return file.read()


def by_supervisor(folder, command, workers=2, servers=1, **environment):
    """A job of ``rnn-ops train --workers``."""
    job = Job(folder, **environment)
    job.start("supervisor", ["train", f"--workers={workers}", f"--servers={servers}", *command])
    return job


def by_hand(folder, command, workers=2, servers=1, last=(), code=None, code_of_first=None, **environment):
    """The same job as MXNet's launcher would start it: each role by DMLC_* in its environment. The last worker has more options
    and Python ``code`` before it, the first one ``code_of_first``."""
    port, *ports = free_ports(workers + 1)
    job = Job(folder, **{**dict(DMLC_NUM_WORKER=workers, DMLC_NUM_SERVER=servers, DMLC_PS_ROOT_URI="127.0.0.1",
                                DMLC_PS_ROOT_PORT=port, DMLC_NODE_HOST="127.0.0.1"), **environment})
    job.port, job.command = port, ["train", "--kvstore=dist_sync", *command]
    job.start("the scheduler", job.command, DMLC_ROLE="scheduler")
    for number in range(servers):
        job.start(f"server {number}", job.command, DMLC_ROLE="server")
    for rank, own in enumerate(sorted(ports)):  # ps-lite ranks by port
        more, before = (last, code) if rank == workers - 1 else ((), code_of_first)
        job.start(f"worker {rank}", [*job.command, *more], before, DMLC_ROLE="worker", PORT=own)
    return job


def free_ports(count):
    """Ports of this machine that nobody uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _role(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/environ", "rb") as file:
            for entry in file.read().split(b"\0"):
                if entry.startswith(b"DMLC_ROLE="):
                    return entry[10:].decode()
