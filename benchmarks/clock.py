"""The two clocks: the one on the wall, for calls that return when their results are there, and a GPU's events.

Events see the GPU's own time: the launches of a turn are in its queue before it starts on them (`Gpu.time`). A call with more
launches than the queue holds is recorded as a CUDA graph, which counts as one.
"""
import functools
import math
import time

import numpy as np

_MINIMUM_CALLS = 3
TURN = 5e-4          # seconds that the calls of a turn should take together, so that events are exact enough
MOST_QUEUED = 900    # launches; the GPU's queue holds 1,024, and a host that fills it waits
_LONGEST_DELAY = 0.1  # seconds
_TOGETHER = 0.03     # seconds of calls that are waited for together
_ALONE = 20          # calls that are waited for one by one


def statistics(times):
    """Seconds: the best, the median, the 20th and 80th percentile; and how many times they come from."""
    p20, median, p80 = np.percentile(times, [20, 50, 80]).tolist()
    return {"calls": len(times), "best": min(times), "p20": p20, "median": median, "p80": p80}


def time_calls(call, seconds):
    """Seconds of each call, one after the other for about ``seconds`` and three calls at least.

    Warmed up for a fifth of that: threads are awake, caches filled, the clock is up.
    """
    _repeat(call, seconds / 5, 1)
    return _repeat(call, seconds, _MINIMUM_CALLS)


def _repeat(call, seconds, minimum):
    times = []
    start = now = time.perf_counter()
    while now - start < seconds or len(times) < minimum:
        call()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return times


def by_the_wall(call, wait, seconds=_TOGETHER):
    """Time ``call(i)``, i = 0, 1, …, which only queues, as a user's clock does → ``wall``: seconds a call of many that are
    waited for together, about ``seconds`` long; ``wall_waited``: of one that is waited for."""
    alone = []
    for i in range(_ALONE + 1):
        wait()
        started = time.perf_counter()
        call(i)
        wait()
        alone.append(time.perf_counter() - started)
    alone = float(np.median(alone[1:]))
    count = max(1, math.ceil(seconds / alone))
    started = time.perf_counter()
    for i in range(count):
        call(i)
    wait()
    return {"wall": (time.perf_counter() - started) / count, "wall_waited": alone}


class Events:
    """Times one provider in one direction by events, turn by turn: a few calls, each on the next of ``sets`` sets of arguments.

    ``before`` and ``call`` are those of `GpuProvider.calls`.
    """

    def __init__(self, gpu, before, call, sets, launches):
        self._gpu, self._before, self._call, self._sets = gpu, before, call, sets
        self._times, self._unqueued, self._offset = [], 0, 0
        self._launched = "in a graph" if launches > MOST_QUEUED else "one by one"
        if launches > MOST_QUEUED:
            graphs = [gpu.recorded(functools.partial(call, i)) for i in range(sets)]
            self._call, launches = lambda i: graphs[i](), 1
        self._count = 1
        self._delay = self._host_seconds()
        once, _ = self._time()  # warm by now
        self._count = min(sets, max(1, math.ceil(TURN / once)), max(1, MOST_QUEUED // launches))
        self._delay *= self._count

    def take(self):
        """Take a turn."""
        seconds, queued = self._time()
        self._times.append(seconds)
        self._unqueued += not queued
        if not queued:
            self._delay = min(_LONGEST_DELAY, 2 * self._delay)

    def found(self):
        """The columns of a result's row: statistics over the turns, and how they were taken."""
        return {**statistics(self._times), "turns": self._times, "calls": len(self._times) * self._count,
                "turns_with_host_time": self._unqueued, "launched": self._launched}

    def by_the_wall(self):
        """The columns that `by_the_wall` gives, unless something must come before each call."""
        return {} if self._before else by_the_wall(lambda i: self._call(i % self._sets), self._gpu.wait)

    def _time(self):
        """Seconds a call, and whether only the GPU's time counts."""
        offset, sets = self._offset, self._sets
        self._offset = (offset + self._count) % sets
        before = self._before and (lambda i: self._before((offset + i) % sets))
        seconds, queued = self._gpu.time(lambda i: self._call((offset + i) % sets), self._count, self._delay, before)
        return seconds / self._count, queued

    def _host_seconds(self):
        """A delay in which all launches of one call reach the queue: half as much again as they take."""
        longest = 0
        for i in range(3):
            self._gpu.wait()
            started = time.perf_counter()
            if self._before:
                self._before(0)
            self._call(0)
            seconds = time.perf_counter() - started
            longest = max(longest, seconds) if i else 0  # the first call compiles and allocates
        self._gpu.wait()
        return 1.5 * longest + 5e-5
