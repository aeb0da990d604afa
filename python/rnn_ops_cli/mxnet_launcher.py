"""MXNet's own launcher in a process of its own, with what it lacks. `launch` starts it, and says there how a job ends.

``python mxnet_launcher.py SCRIPT IP ARGUMENTS…``: SCRIPT is mxnet/tools/launch.py; IP is the scheduler's address, or nothing.
The launcher calls `Thread.isAlive`, which Python 3.9 removed, and other names that may go. When a role fails it prints that
role's whole environment and leaves the others running. So the roles are started and waited for here, and the first that fails
ends the job.
"""
import contextlib
import functools
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Set

from rnn_ops_timemachine import streams
from rnn_ops_timemachine.options import FAILURE

GRACE = 5  # seconds that the others have to end: after a role that has said why it ends, and after each signal
_starting = threading.Lock()  # held for ever from the moment the job is ended


def main() -> None:
    """Exit status 0 where every role has ended well; else 1, after a line that says why."""
    script, host_ip, *arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: _in_background(
        _end, [signal.SIGINT, signal.SIGTERM], "error: MXNet's launcher was ended by SIGTERM"))
    _in_background(_end_with_stdin)
    before = threading.enumerate()
    try:
        _lend(host_ip)
        spec = importlib.util.spec_from_file_location("mxnet_tools_launch", script)
        launcher = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(launcher)
        sys.argv = [script, *arguments]
        launcher.main()
    except (ImportError, OSError, RuntimeError) as error:
        _end([signal.SIGTERM], f"error: MXNet's launcher: {error}")
    for thread in set(threading.enumerate()) - set(before):
        thread.join()  # the launcher itself waits for the scheduler only


def _lend(host_ip):
    threading.Thread.isAlive = threading.Thread.is_alive
    threading.Thread.setDaemon = lambda thread, daemon: setattr(thread, "daemon", daemon)
    logging.warn = logging.warning
    subprocess.call = subprocess.check_call = _run_role
    from dmlc_tracker import tracker
    try:
        host_ip = host_ip or tracker.get_host_ip()
    except OSError as error:
        _end([], f"error: --host-ip: got none, and this machine's address was not found ({error}), needs the address")
    tracker.get_host_ip = lambda _: host_ip
    os.environ.setdefault("DMLC_NODE_HOST", host_ip)  # of the roles on this machine; ps-lite would look for a network
    with socket.socket() as free:  # two launchers would both find the first port that the tracker tries
        free.bind(("", 0))
        port = free.getsockname()[1]
    tracker.PSTracker = functools.partial(tracker.PSTracker, port=port, port_end=port + 1)


def _in_background(do, *arguments):
    threading.Thread(target=do, args=arguments, daemon=True).start()


def _end_with_stdin():
    """End the job when `launch` closes its end of the pipe, or is killed."""
    os.read(0, 1)
    _end([signal.SIGINT, signal.SIGTERM])


def _run_role(command, **keywords):
    """`subprocess.call` for the launcher: does not return where a role fails."""
    with _starting:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **keywords)
    status = process.wait()
    if status:
        _end([signal.SIGTERM] if status < 0 else [0, signal.SIGTERM],
             f"error: {_role(command, keywords.get('env', {}))} {_ended(status)}; the rest of the job was ended")
    return status


def _role(command, environment):
    """The role that a command is, by its environment or by what ssh and mpirun are to export."""
    exported = dict(re.findall(r"(DMLC_ROLE|DMLC_NODE_HOST)=([^\s;]+)", command))
    role = exported.get("DMLC_ROLE") or environment["DMLC_ROLE"]
    host = f" on {exported['DMLC_NODE_HOST']}" if "DMLC_NODE_HOST" in exported else ""
    return f"{'the' if role == 'scheduler' else 'a'} {role}{host}"


def _ended(status):
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def _end(numbers, reason=None):
    """End every other process of the session that this one leads, by signals, each with some time, and at last by SIGKILL; then
    this process. SIGINT first, where a user ends the job: workers then end together, and servers wait for them."""
    _starting.acquire()
    for number in numbers:
        latest, told = time.monotonic() + GRACE, set()
        while True:
            others = others_of_session(os.getpid())
            if not others or time.monotonic() > latest:
                break
            _signal(others - told, number)  # those that were just started too, but nobody twice: mpirun would give up
            told |= others
            time.sleep(0.05)
    kill_session(os.getpid())
    if reason:
        with streams.prepared():
            streams.complain(reason)
    os._exit(FAILURE)


def kill_session(leader: int) -> None:
    """Kill every process of a session but its leader."""
    while True:
        others = others_of_session(leader)
        if not others:
            break
        _signal(others, signal.SIGKILL)
        time.sleep(0.01)


def others_of_session(leader: int) -> Set[int]:
    """The numbers of all processes of a session that have not ended, but for its leader's. They need not be of one process
    group: mpirun makes groups."""
    others = set()
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError), open(f"/proc/{number}/stat") as file:  # it may just end
            state, _, _, session = file.read().rpartition(")")[2].split()[:4]
            if int(session) == leader != number and state != "Z":
                others.add(number)
    return others


def _signal(processes, number):
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose names are not modules
    main()
