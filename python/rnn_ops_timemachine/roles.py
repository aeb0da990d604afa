"""The roles of a distributed job, each a process: workers, which train, servers, which sum, and the scheduler.

MXNet's launcher starts them with the environment variables DMLC_*; `job` does the same on one machine. The parameter server
(ps-lite) would wait for ever for a role that does not come or that has died. Here a role that cannot join says so, and each
watches the heartbeats: the scheduler those of all others, these the scheduler's.
"""
import contextlib
import ctypes
import os
import re
import socket
import threading
import time
from typing import Callable, NamedTuple, Optional

from rnn_ops_timemachine import streams

WORKER, SERVER, SCHEDULER = "worker", "server", "scheduler"
_INTERVAL = 2  # seconds between two heartbeats, unless PS_HEARTBEAT_INTERVAL says otherwise
_NODE = {SCHEDULER: 1, SERVER: 8, WORKER: 9}  # ps-lite's number of the first node of a role; the next are 2 apart
_EVERY = 0.2  # seconds between two looks


class Job(NamedTuple):
    """A process's place in a job, as the environment gives it."""
    role: str
    workers: int
    servers: int
    host: str
    port: int
    join_seconds: int  # a role that has waited so long for the others ends
    dead_seconds: int  # a role without a heartbeat for so long is dead


def of_environment() -> Optional[Job]:
    """This process's place in a job; None outside of one. A ValueError says which variable is wrong."""
    role = os.environ.get("DMLC_ROLE")
    if role is None:
        return None
    if role not in _NODE:
        raise ValueError(f"DMLC_ROLE: got {role!r}, needs {WORKER}, {SERVER} or {SCHEDULER}")
    host = os.environ.get("DMLC_PS_ROOT_URI")
    if not host:
        raise ValueError("DMLC_PS_ROOT_URI: is not set, needs the address of the scheduler")
    return Job(role, _number("DMLC_NUM_WORKER"), _number("DMLC_NUM_SERVER"), host, _number("DMLC_PS_ROOT_PORT", 65535),
               _number("RNN_OPS_JOIN_TIMEOUT", otherwise=60), _number("PS_HEARTBEAT_TIMEOUT", otherwise=20))


def serve(job: Job) -> None:
    """Be a server or the scheduler until the job ends. A RuntimeError if it cannot begin."""
    if job.role == SCHEDULER:
        _check_port(job)
    mx = _mxnet(job)
    from mxnet.kvstore import kvstore_server
    store = mx.kv.create("dist")
    watch = Watch(job, store)
    kvstore_server.KVStoreServer(store).run()
    watch.stop()


def join(job: Job, outlook: Callable[[], str]) -> tuple:
    """Join as a worker → MXNet's KVStore, and the `Watch` that ends this process when the scheduler is gone.

    Worker 0 then adds ``outlook()`` to its line: what is saved, and how to go on.

    Raises
    ------
    RuntimeError
        No scheduler answers.
    """
    _wait_for_scheduler(job)
    mx = _mxnet(job)
    watch = Watch(job, outlook=outlook)
    # The arrays are summed by all servers, each a part, and not by one of them.
    os.environ.setdefault("MXNET_KVSTORE_BIGARRAY_BOUND", "4096")
    watch.store = mx.kv.create("dist_sync")
    return watch.store, watch


class Left(RuntimeError):
    """Another worker cannot go on, and has said why. So the job ends."""

    def __init__(self, rank: int, reason: str, signal: int = 0):
        super().__init__(f"worker {rank}: {reason}")
        self.rank, self.signal = rank, signal


class Watch:
    """A thread that ends the process, with a line on stderr, when the job cannot begin or when another role is dead.

    MXNet waits in C++ then, from where no exception can come.
    """

    def __init__(self, job: Job, store=None, outlook: Callable[[], str] = str):
        self.store = store
        self._job, self._outlook, self._stopped = job, outlook, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and keep nothing of the KVStore."""
        self._stopped.set()
        self._thread.join()
        self.store = None

    def _run(self):
        job, deadline = self._job, time.monotonic() + self._job.join_seconds
        while not self._joined():
            if self._stopped.wait(_EVERY):
                return
            if time.monotonic() > deadline:
                self._end(f"not all of {job.workers} workers and {job.servers} servers have come to the scheduler "
                          f"({job.host}:{job.port}) within {job.join_seconds} s")
        others = [(f"{role} {rank}", role, rank) for role, count in ((WORKER, job.workers), (SERVER, job.servers))
                  for rank in range(count)] if job.role == SCHEDULER else [("the scheduler", SCHEDULER, 0)]
        while not self._stopped.wait(_EVERY):
            for name, role, rank in others:
                if self._dead(role, rank, job.dead_seconds):
                    self._end(f"{name} has had no heartbeat for {job.dead_seconds} s: "
                              + ("it has died" if job.role == SCHEDULER else "it has died, or has ended the job"))

    def _joined(self):
        """Whether all roles have come to the scheduler."""
        if self._job.role == WORKER:
            return self.store is not None
        if self._job.role == SERVER:  # ps-lite puts its rank into the environment, which os.environ does not see
            getenv = ctypes.CDLL(None).getenv
            getenv.restype = ctypes.c_char_p
            return getenv(b"DMLC_RANK") is not None
        # Every node that has come has a heartbeat that is older than -1 seconds. Before ps-lite listens it must not be asked.
        return _answers(self._job) is None and self._dead(WORKER, 0, -1)

    def _dead(self, role, rank, seconds):
        from mxnet.base import _LIB
        number = ctypes.c_int()
        failed = _LIB.MXKVStoreGetNumDeadNode(self.store.handle, _NODE[role] + 2 * rank, ctypes.byref(number), seconds)
        return not failed and number.value > 0

    def _end(self, reason):
        if self._stopped.is_set():
            return
        rank = self.store.rank if self._job.role == WORKER and self.store is not None else 0
        if rank == 0 and self._job.role != SERVER:
            with contextlib.suppress(Exception):
                streams.complain(f"error: {reason}{self._outlook()}")
        os._exit(streams.FAILURE)


def _number(name, most=10 ** 6, otherwise=None):
    value = os.environ.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if not re.fullmatch("[0-9]{1,9}", value or "") or not 1 <= int(value) <= most:
        raise ValueError(f"{name}: " + ("is not set" if value is None else f"got {value!r}")
                         + f", needs a whole number from 1 to {most}")
    return int(value)


def _mxnet(job):
    """MXNet, imported as outside of a job: with the role of a server in the environment its import would not return."""
    os.environ.setdefault("PS_HEARTBEAT_INTERVAL", str(_INTERVAL))
    del os.environ["DMLC_ROLE"]
    try:
        from rnn_ops._mxnet import mx
    finally:
        os.environ["DMLC_ROLE"] = job.role
    return mx


def _check_port(job):
    """Raise a RuntimeError where the scheduler could not listen. ps-lite would end the process with a stack trace."""
    try:
        family, *_, address = socket.getaddrinfo(job.host, job.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise RuntimeError(f"the scheduler cannot listen on {job.host}:{job.port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT): "
                           f"{error.strerror}") from error


def _wait_for_scheduler(job):
    """Raise a RuntimeError where nobody listens at the scheduler's address. ps-lite would wait for ever."""
    deadline = time.monotonic() + job.join_seconds
    while True:
        reason = _answers(job)
        if reason is None:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"no scheduler answers at {job.host}:{job.port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT) "
                               f"within {job.join_seconds} s: {reason}")
        time.sleep(_EVERY)


def _answers(job):
    """None if somebody listens at the scheduler's address, else why that is not known."""
    try:
        socket.create_connection((job.host, job.port), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
