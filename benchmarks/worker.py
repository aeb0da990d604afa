"""Each library in a process of its own: the thread pools of MXNet, PyTorch, NumPy and our kernels would disturb one
another in one.

A worker blocks on its pipe while others are measured, and answers a turn only when its own threads have gone to sleep:
OpenBLAS's, for one, go on spinning for 0.1 s after their last product and would slow down the next provider.
"""
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from importlib import metadata

import numpy as np

from .clock import time_calls
from .memory import Resident

OK, FAILED, NOT_INSTALLED, NOT_OFFERED = "ok", "failed", "not installed", "not offered"
BOUND = 1e-4  # worst relative error that verification lets pass; float32 loses less, wrong results are off by far more
_SLEEP = 0.005  # seconds between two looks at whether the threads sleep
_PATIENCE = 100  # such looks at most


class Workers:
    """A process for each name, started at its first use; all end with the ``with`` block.

    Processes named in ``others`` look for packages in the folder ``packages`` first, if there is one. `for_memory` gives a second
    process of that name, which measures memory and not time.
    """

    def __init__(self, packages=None, others=()):
        self._workers, self._packages, self._others = {}, packages, others

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for worker in self._workers.values():
            worker.close()

    def __getitem__(self, name):
        return self._get(name, {})

    def for_memory(self, name):
        # Of the C library's several arenas only the first can be made to give back all that is free.
        return self._get(name, {"MALLOC_ARENA_MAX": "1"})

    def _get(self, name, environment):
        key = name, *environment
        if key not in self._workers or not self._workers[key].alive():
            self._workers[key] = Worker(self._packages if name in self._others else None, environment)
        return self._workers[key]


class Worker:
    """The parent's side: ``send`` a request, then ``receive`` its answer, (status, value or reason)."""

    def __init__(self, packages, environment):
        # Started afresh: a forked copy of a process that has threads need not work.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _starting_with(packages, environment):
            self._process.start()
        theirs.close()

    def alive(self):
        return self._process.is_alive()

    def send(self, *request):
        try:
            self._connection.send(request)
        except OSError:
            pass  # receive() says so

    def receive(self):
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return FAILED, f"its process ended with exit code {self._process.exitcode}"

    def close(self):
        self._process.terminate()
        self._process.join()
        self._connection.close()


@contextlib.contextmanager
def _starting_with(packages, environment):
    """A process that is started meanwhile is given the parent's path, and so looks for packages in that folder first, and the
    parent's environment, with these variables in it."""
    path, variables = list(sys.path), {name: os.environ.get(name) for name in environment}
    sys.path[:0] = [os.path.abspath(packages)] if packages else []
    os.environ.update(environment)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, value in variables.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    made, truths, warm = {}, {}, set()
    while True:
        try:
            request, *arguments = connection.recv()
        except (EOFError, OSError):  # the parent is gone, by whatever signal; so it may be when it is answered
            return
        try:
            if request == "forget":  # everything that was prepared
                value = made.clear(), truths.clear()
            elif request == "prepare":
                provider, problem = arguments
                made[provider.name, problem.name], value = prepare(provider, problem, truths)
            elif request == "memory":
                provider, problem = arguments
                if provider.name not in warm:  # libraries are loaded, threads there: the rest is the problem's
                    warm.add(provider.name)
                    peak_memory(provider, problem.small())
                value = peak_memory(provider, problem)
            else:
                name, problem_name, direction, seconds = arguments
                value = time_calls(made[name, problem_name].calls[direction], seconds)
            wait_for_threads()
            answer = OK, value
        except ImportError as error:
            answer = NOT_INSTALLED, _one_line(error)
        except Exception as error:  # whatever a provider does wrong belongs into the table
            answer = FAILED, _one_line(error)
        try:
            connection.send(answer)
        except OSError:
            return


def prepare(provider, problem, truths=None):
    """Make the provider and compare every result of it with the truth, which ``truths`` keeps for the next one.

    Returns the instance and its facts: {"about": …, "versions": {package: …}, "errors": {direction: worst relative error}}
    with the directions that it has.
    """
    truths = {} if truths is None else truths
    made, errors = provider(problem), {}
    for direction in problem.directions:
        if direction in made.calls:
            made.calls[direction]()
            if (problem.name, direction) not in truths:
                truths[problem.name, direction] = problem.truth(direction)
            errors[direction] = verify(made.results(direction), truths[problem.name, direction])
    versions = {name: metadata.version(name) for name in provider.packages}
    return made, {"about": made.about, "versions": versions, "errors": errors}


def peak_memory(provider, problem):
    """{direction: the most bytes that a call needed, its results and what it left beside them, but not its arguments; None if
    the system does not say}"""
    made = provider(problem)
    resident, peaks = Resident(), {}
    for direction in problem.directions:
        if direction in made.calls:
            peak = resident.peak_of(made.calls[direction])
            peaks[direction] = None if peak is None else peak + made.prepared.get(direction, 0)
    return peaks


def verify(results, truth, bound=BOUND):
    """The worst relative error over all results; a ValueError names one that is missing or wrong by more than ``bound``."""
    worst = 0.0
    for name, expected in truth.items():
        if name not in results:
            raise ValueError(f"wrong result: no {name}")
        got = results[name]
        if got.shape != expected.shape:
            raise ValueError(f"wrong result: {name} has shape {got.shape}, should be {expected.shape}")
        error = np.abs(got - expected).max() / (np.abs(expected).max() or 1.0)
        if not error <= bound:  # not a number is wrong too
            raise ValueError(f"wrong result: {name} has a relative error of {error:.1e}")
        worst = max(worst, float(error))
    return worst


def wait_for_threads():
    for _ in range(_PATIENCE):
        before = time.process_time()  # of all threads of this process
        time.sleep(_SLEEP)
        if time.process_time() - before < 0.1 * _SLEEP:
            return


def _one_line(error):
    text = " ".join(str(error).split())
    return text if isinstance(error, (ImportError, ValueError)) else f"{type(error).__name__}: {text}"
