"""The roles of a distributed job, each a process: workers, which train, servers, which sum, and the scheduler.

MXNet's launcher starts them with the environment variables DMLC_*; `job` does the same on one machine. The parameter server
(ps-lite) would wait for ever for a role that does not come or that has died. Here a role that cannot join says so. The scheduler
watches the heartbeats of all others, which ask it whether the job goes on and watch its heartbeats.
"""
import contextlib
import ctypes
import functools
import math
import os
import re
import socket
import threading
import time
from typing import Callable, Iterator, Mapping, NamedTuple, Optional

from rnn_ops_timemachine import inquiry, streams

WORKER, SERVER, SCHEDULER = "worker", "server", "scheduler"
_INTERVAL = 2  # seconds between two heartbeats, unless PS_HEARTBEAT_INTERVAL says otherwise
_NODE = {SCHEDULER: 1, SERVER: 8, WORKER: 9}  # ps-lite's number of the first node of a role; the next are 2 apart
_EVERY = 0.2  # seconds between two looks
_LINGER = 2  # seconds that the scheduler stays to answer why the job ends
_LATE = 5  # seconds after which a role without a rank in a job that runs is one too many


class Job(NamedTuple):
    """A process's place in a job, as the environment gives it."""
    role: str
    workers: int
    servers: int
    host: str
    port: int
    join_seconds: int  # a role that has waited so long for the others ends
    dead_seconds: int  # a role without a heartbeat for so long is dead


def of_environment(environment: Mapping[str, str] = os.environ) -> Optional[Job]:
    """This process's place in a job; None outside of one. A ValueError says which variable is wrong."""
    role = environment.get("DMLC_ROLE")
    if role is None:
        return None
    if role not in _NODE:
        raise ValueError(f"DMLC_ROLE: got {role!r}, needs {WORKER}, {SERVER} or {SCHEDULER}")
    host = environment.get("DMLC_PS_ROOT_URI")
    if not host:
        raise ValueError("DMLC_PS_ROOT_URI: is not set, needs the address of the scheduler")
    number = functools.partial(_number, environment)
    job = Job(role, number("DMLC_NUM_WORKER"), number("DMLC_NUM_SERVER"), host, number("DMLC_PS_ROOT_PORT", 65535),
              number("RNN_OPS_JOIN_TIMEOUT", otherwise=60), number("PS_HEARTBEAT_TIMEOUT", otherwise=20))
    interval = number("PS_HEARTBEAT_INTERVAL", otherwise=_INTERVAL)
    if job.dead_seconds < interval + 2:  # ps-lite counts in whole seconds
        raise ValueError(f"PS_HEARTBEAT_TIMEOUT: got {job.dead_seconds}, needs at least {interval + 2}, "
                         f"two more than PS_HEARTBEAT_INTERVAL")
    return job


def serve(job: Job) -> None:
    """Be a server or the scheduler until the job ends. A RuntimeError if it cannot begin."""
    if job.role == SCHEDULER:
        _check_port(job)
    else:
        _wait_for_scheduler(job)
    mx = _mxnet(job)
    from mxnet.kvstore import kvstore_server
    with _in_words(mx):
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
        No scheduler answers, or ps-lite cannot begin.
    """
    _wait_for_scheduler(job)
    # The arrays are summed by all servers, each a part, and not by one of them. (Set before there are threads.)
    os.environ.setdefault("MXNET_KVSTORE_BIGARRAY_BOUND", "4096")
    mx = _mxnet(job)
    watch = Watch(job, outlook=outlook)
    with _in_words(mx):
        watch.store = mx.kv.create("dist_sync")
    return watch.store, watch


class Left(RuntimeError):
    """Another worker cannot go on, and has said why. So the job ends."""

    def __init__(self, rank: int, reason: str, signal: int = 0):
        super().__init__(f"worker {rank}: {reason}")
        self.rank, self.signal = rank, signal


class Watch:
    """A thread that ends the process, with a line on stderr, when the job cannot begin or when another role is dead.

    MXNet waits in C++ then, from where no exception can come. The scheduler finds the dead role and answers with it to the
    others. So all end, and one says why: worker 0, which also knows what is saved; the scheduler if worker 0 does not ask or if
    no worker has a rank yet.
    """

    def __init__(self, job: Job, store=None, outlook: Callable[[], str] = str):
        self.store = store
        self._job, self._outlook, self._stopped = job, outlook, threading.Event()
        self._looked, self._woke = time.time(), 0.0  # when `_awake` was asked last, and when a pause has ended
        self._thread = threading.Thread(target=self._schedule if job.role == SCHEDULER else self._take_part, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and keep nothing of the KVStore."""
        self._stopped.set()
        self._thread.join()
        self.store = None

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """`stop`, and for the time of the block, in which MXNet waits for all other roles once more, a limit to that."""
        self.stop()
        limit = threading.Timer(self._job.dead_seconds, self._give_up)
        limit.daemon = True
        limit.start()
        try:
            yield
        finally:
            limit.cancel()

    def _give_up(self):
        if _rank() == 0:
            self._say(f"the job has not ended {self._job.dead_seconds} s after its last batch: a role has died"
                      f"{self._outlook()}")
        os._exit(streams.FAILURE)

    def _schedule(self):
        job, answers, came = self._job, inquiry.Answers(_own_host(self._job), self._job.port), {}
        deadline = time.monotonic() + job.join_seconds
        # Every node that has come has a heartbeat that is older than -1 seconds. Before ps-lite listens it must not be asked.
        while _answers(job) is not None or not self._dead(WORKER, 0, -1):
            came.update((address, (name, time.monotonic())) for address, name in answers.give(inquiry.WAITS).items())
            if self._stopped.wait(_EVERY):
                return
            if time.monotonic() > deadline:
                reason = _not_all(job)
                if came:
                    heard = [name for name, when in came.values() if time.monotonic() - when < _LATE]
                    reason += "; it hears " + " and ".join(_count(heard.count(role), role) for role in (WORKER, SERVER))
                self._say(reason)
                self._end_all(answers, reason, said=True)
        roles = [(f"{role} {rank}", role, rank) for role, count in ((WORKER, job.workers), (SERVER, job.servers))
                 for rank in range(count)]
        while not self._stopped.wait(_EVERY):
            answers.give(inquiry.RUNS)
            if not self._awake():
                continue
            for name, role, rank in roles:
                if self._dead(role, rank, job.dead_seconds):
                    reason = f"{name} has had no heartbeat for {job.dead_seconds} s: it has died"
                    self._end_all(answers, reason)

    def _end_all(self, answers, reason, said=False):
        """End, when the others know the reason or have had time to ask for it."""
        deadline, asked = time.monotonic() + _LINGER, {}
        while time.monotonic() < deadline and len(asked) < self._job.workers + self._job.servers - 1:
            asked.update(answers.give(inquiry.ENDS, reason))
            time.sleep(_EVERY / 4)
        if not said and "worker 0" not in asked.values():
            self._say(reason)
        os._exit(streams.FAILURE)

    def _take_part(self):
        job, questions = self._job, inquiry.Questions(self._job.host, self._job.port)
        began, ranked = time.monotonic(), None  # when this role got its rank
        answered, ran = None, None  # when the last answer came, and the first that the job runs
        while not self._stopped.wait(_EVERY):
            now, rank = time.monotonic(), _rank()
            if rank is not None and ranked is None:
                ranked = now
            answer = questions.ask(job.role if rank is None else f"{job.role} {rank}")
            if answer:
                answered = now
                if answer.state == inquiry.ENDS:
                    self._end(answer.reason, rank == 0)
                if answer.state == inquiry.RUNS and ran is None:
                    ran = now
            if rank is None and ran and now - ran > _LATE:
                self._end(f"the job of the scheduler at {job.host}:{job.port} has its {_all(job)} already")
            if rank is not None and self.store is not None:
                # At first ps-lite has no time of its own start, and counts from 1970.
                if self._awake() and now - ranked > job.dead_seconds and self._dead(SCHEDULER, 0, job.dead_seconds):
                    self._end(f"the scheduler has had no heartbeat for {job.dead_seconds} s: it has died, or has ended the job",
                              rank == 0)
            elif answered and now - answered > job.dead_seconds:
                self._end(f"the scheduler at {job.host}:{job.port} has not answered for {job.dead_seconds} s: it has died",
                          not rank)
            elif not answered and now - began > job.join_seconds:
                self._end(f"{_not_all(job)}, or somebody else listens there", not rank)

    def _awake(self):
        """Whether this process has run long enough to take others for dead. After Ctrl-Z, or when the computer has slept, their
        heartbeats are as old as its own. (ps-lite counts by the same clock.)"""
        now = time.time()
        if not 0 <= now - self._looked <= _LATE:
            self._woke = now
        self._looked = now
        return now - self._woke > self._job.dead_seconds

    def _end(self, reason, say=True):
        if not self._stopped.is_set():
            if say and (self._job.role == WORKER or _rank() is None):
                self._say(f"{reason}{self._outlook() if _rank() == 0 else ''}")
            os._exit(streams.FAILURE)

    @staticmethod
    def _say(reason):
        with contextlib.suppress(Exception):
            streams.complain(f"error: {reason}")

    def _dead(self, role, rank, seconds):
        from mxnet.base import _LIB
        number = ctypes.c_int()
        failed = _LIB.MXKVStoreGetNumDeadNode(self.store.handle, _NODE[role] + 2 * rank, ctypes.byref(number), seconds)
        return not failed and number.value > 0


def _rank():
    """This process's rank among those of its role, None before all roles have come. ps-lite puts it into the environment, which
    os.environ does not see."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    rank = getenv(b"DMLC_RANK")
    return int(rank) if rank else None


def _count(number, role):
    return f"{number} {role}{'s' * (number != 1)}"


def _all(job):
    return f"{_count(job.workers, WORKER)} and {_count(job.servers, SERVER)}"


def _not_all(job):
    return f"not all of {_all(job)} have come to the scheduler at {job.host}:{job.port} within {job.join_seconds} s"


def _number(environment, name, most=10 ** 6, otherwise=None):
    value = environment.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if not re.fullmatch("[0-9]{1,9}", value or "") or not 1 <= int(value) <= most:
        raise ValueError(f"{name}: " + ("is not set" if value is None else f"got {value!r}")
                         + f", needs a whole number from 1 to {most}")
    return int(value)


def _mxnet(job):
    """MXNet, imported as outside of a job: with the role of a server in the environment its import would not return."""
    os.environ.setdefault("PS_HEARTBEAT_INTERVAL", str(_INTERVAL))
    # `_rank` is that of this job. And ps-lite's setenv of a name that is there changes a pointer; of a new one it can move the
    # environment while another thread reads it.
    os.environ["DMLC_RANK"] = ""
    del os.environ["DMLC_ROLE"]
    try:
        from rnn_ops._mxnet import mx
    finally:
        os.environ["DMLC_ROLE"] = job.role
    return mx


@contextlib.contextmanager
def _in_words(mx):
    """Turn MXNet's errors into RuntimeErrors without a C++ stack trace."""
    try:
        yield
    except mx.MXNetError as error:
        raise RuntimeError(f"MXNet: {(str(error).strip() or 'no reason given').splitlines()[-1]}") from error


def _own_host(job):
    """The address where the scheduler listens."""
    return "0.0.0.0" if os.environ.get("DMLC_USE_KUBERNETES", "0") not in ("", "0") else job.host


def _check_port(job):
    """Raise a RuntimeError where the scheduler could not listen. ps-lite would end the process with a stack trace."""
    reason = _why_not_bound(_own_host(job), job.port)
    if reason:
        raise RuntimeError(f"the scheduler cannot listen on {job.host}:{job.port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT): "
                           f"{reason}")


def _why_not_bound(host, port):
    """Why no server can listen at an address of this machine, or None."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1)  # with this option two can bind a port, but only one can listen on it
    except OSError as error:
        return error.strerror


def _wait_for_scheduler(job):
    """Raise a RuntimeError where nobody listens at the scheduler's address, or where this role could not listen at its own."""
    own = os.environ.get("DMLC_NODE_HOST")
    reason = own and _why_not_bound(own, 0)
    if reason:
        raise RuntimeError(f"DMLC_NODE_HOST: got {own!r}, needs an address of this machine: {reason}")
    deadline = time.monotonic() + job.join_seconds
    while True:
        reason = _answers(job, deadline)
        if reason is None:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"no scheduler answers at {job.host}:{job.port} (DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT) "
                               f"within {job.join_seconds} s: {reason}")
        time.sleep(_EVERY)


def _answers(job, deadline=math.inf):
    """None if somebody listens at the scheduler's address, else why that is not known."""
    try:
        with socket.create_connection((job.host, job.port), timeout=max(.1, min(5, deadline - time.monotonic()))) as connection:
            if connection.getsockname() != connection.getpeername():  # a socket can come to be connected to itself
                return None
            return "Connection refused"
    except OSError as error:
        return error.strerror or str(error)
