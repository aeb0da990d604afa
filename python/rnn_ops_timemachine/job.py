"""A distributed job on this machine: ``rnn-ops train --workers N`` starts its roles and ends when they have ended.

The roles are started as MXNet's launcher starts them, by DMLC_* in their environment. Its own local launcher would not do: it
leaves the others alone when one dies. Here a role that dies ends the job, a line says which, and no role outlives this process.
"""
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from typing import List, NamedTuple

from rnn_ops_timemachine import hints, roles, signals

_HOST = "127.0.0.1"
_STARTED_BY = "RNN_OPS_STARTED_BY"  # for a role: the process that has started it
_GRACE = 10  # seconds that worker 0 has to end, and to say why, after another role has failed
_CRASHED = 255  # exit status: MXNet's handler of SIGSEGV and the like ends the process with -1
_EVERY = 0.05  # seconds between two looks at the roles


class Ended(NamedTuple):
    """How a job ended. ``status``: worker 0's exit status, or that of the role that failed first. ``killed``: which role has
    ended the job, and how, where no role could say it."""
    status: int
    killed: str = ""


def run(command: List[str], workers: int, servers: int) -> Ended:
    """Start a command in every role of a new job and wait for its end. Signals that come are passed to the workers.

    Raises
    ------
    ValueError
        An environment variable for the roles is wrong.
    OSError
        A process cannot be started.
    """
    ports = _free_ports(workers + 1)
    environment = dict(
        os.environ, DMLC_NUM_WORKER=str(workers), DMLC_NUM_SERVER=str(servers), DMLC_PS_ROOT_URI=_HOST,
        DMLC_PS_ROOT_PORT=str(ports.pop()), DMLC_NODE_HOST=_HOST, **{_STARTED_BY: str(os.getpid())})
    environment.pop("PORT", None)  # of some shells; ps-lite would take it for the role's own
    if workers > 1:  # together they have the processors
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))
    roles.of_environment(dict(environment, DMLC_ROLE=roles.WORKER))
    processes = {}
    with _passed_on(processes):
        try:
            for role, count in ((roles.SCHEDULER, 1), (roles.SERVER, servers), (roles.WORKER, workers)):
                for number in range(count):
                    own = {"PORT": str(ports[number])} if role == roles.WORKER else {}  # ps-lite ranks workers by port
                    processes[role, number] = subprocess.Popen(
                        command, env=dict(environment, DMLC_ROLE=role, **own), stdin=subprocess.DEVNULL,
                        stdout=None if role == roles.WORKER else subprocess.DEVNULL)
            return _watch(processes)
        finally:
            for process in processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            for process in processes.values():
                process.wait()


def end_with_the_starter() -> None:
    """In a role that `run` has started: end when that process ends, even if it is killed."""
    starter = os.environ.get(_STARTED_BY)
    if starter is None:
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG of Linux
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(starter):  # it has ended already
        os._exit(1)


def _watch(processes):
    first = None  # the exit status of the first role that has failed, when, and which
    while True:
        codes = {key: process.poll() for key, process in processes.items()}
        for (role, number), code in codes.items():
            if code == _CRASHED or code is not None and code < 0:
                how = "has crashed" if code > 0 else f"was killed by {signal.Signals(-code).name}"
                return Ended(1, f"{_name(role, number)} {how}")
            if code and first is None:
                first = code, time.monotonic(), role, number
        if all(code is not None for code in codes.values()):
            return Ended(codes[roles.WORKER, 0] or (first[0] if first else 0))
        ended = codes[roles.WORKER, 0]
        if first and ended is not None:
            return Ended(ended or first[0])
        if first and time.monotonic() - first[1] > _GRACE:
            said = codes[roles.SCHEDULER, 0]  # it ends early when it has found a dead role, and says so
            return Ended(first[0], "" if said else f"{_name(*first[2:])} has ended with exit status {first[0]}")
        time.sleep(_EVERY)


def _name(role, number):
    return "the scheduler" if role == roles.SCHEDULER else f"{role} {number}"


@contextlib.contextmanager
def _passed_on(processes):
    """Pass signals to the workers for the time of the block. These end together and say so; the other roles follow."""
    def pass_on(number, _):
        for (role, _), process in list(processes.items()):
            if role == roles.WORKER and process.poll() is None:
                process.send_signal(number)

    before = {number: signal.getsignal(number) for number in signals.NUMBERS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count):
    """Ports of this machine that nobody uses, the lowest first."""
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_HOST, 0))
        return sorted(one.getsockname()[1] for one in sockets)


def command(arguments: List[str]) -> List[str]:
    """The command that a role runs: this program, called as the user has called it, with other arguments."""
    program = hints.program()
    return [*([sys.executable, *program[1:]] if len(program) > 1 else program), *arguments]
