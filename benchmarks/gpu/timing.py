"""Interleaved rounds over the providers of a cell, and their statistics.

First come the chosen variant, the best of each other family and the peers, in rounds together; then every other variant
that is asked for, alone: one that hangs costs itself. In a round every provider takes its turn in every mode, in
another order each round. A turn is a few calls one after the other, each on the next set of arguments, between two CUDA
events. The launches are in the GPU's queue before it starts on them (`Gpu.time`): what counts is the GPU's time,
not Python's. A call with more launches than the queue holds is recorded as a CUDA graph, which counts as one. Only
providers whose results are right are timed.
"""
import functools
import importlib.util
import math
import time

import numpy as np
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks

from .. import problems
from ..worker import BOUND, FAILED, NOT_INSTALLED, OK, verify
from .cells import MODES, TUTORIAL, floor_cycles
from .providers import FLASHRNN, OURS, FlashRNN, Ours, Torch, about_flashrnn, about_torch, make_sets

ROUNDS, SECONDS = 25, 3  # of a cell; after so many seconds no further round is begun ...
FEWEST_ROUNDS = 5        # ... but so many are made
TURN = 5e-4          # seconds that a turn's calls should take together, so that events are exact enough
MOST_QUEUED = 900    # launches; the GPU's queue holds 1,024, and a host that fills it waits
# Worst relative error of those who compute in less than float32: what they are, with room for sums of T·B such terms.
TF32_BOUND, BFLOAT16_BOUND = 2e-2, 1e-1
_LONGEST_DELAY = 0.1  # seconds
_WALL = 0.02          # seconds of calls by the clock on the wall
_WAITED = 20          # calls that are waited for one by one
TOGETHER = "the rounds of all"  # what `stages` tries besides single providers


def timed_variants(device, cell, all_variants=False, among=checks.EVERY):
    """Our variants that are timed at a cell, in the order of their predicted cycles: the chosen one first.

    At the tutorial's shape it is all of them, and the older exchange of the cluster family too. ``among`` is what
    `checks.those_of` takes.
    """
    if all_variants or cell == TUTORIAL:
        found, _ = variants.candidates(device, np.float32, cell.B, cell.H)
        found.sort(key=variants.total_cycles)
    else:
        found = checks.families(device, np.float32, cell)
    ours = checks.those_of(found, among)
    if cell == TUTORIAL and {"cluster", checks.BARRIER} <= set(among):
        ours += checks.those_of(found, [checks.BARRIER])
    return ours


def members(machine, cell, sets, problem, all_variants, among, alone):
    """(about, make, bound) of every provider of a cell: what is known before it is made, a function that makes it, and the
    largest error that its results may have. Two lists: those that are timed together, and our other variants."""
    ours = timed_variants(machine.device, cell, all_variants, among)
    best = {}
    for variant in ours:
        best.setdefault(variant.family, variant)
    made = [Ours(machine, sets, variant, chosen=variant == ours[0]) for variant in ours]
    made = [(variant in best.values(), (member.about, lambda member=member: member, BOUND))
            for variant, member in zip(ours, made)]
    found, others = ([member for is_best, member in made if is_best == which] for which in (True, False))
    if alone:
        return found, others
    one_hot = Ours(machine, sets, ours[0], one_hot=True, chosen=True)
    found.append((one_hot.about, lambda: one_hot, BOUND))
    found += [(about_torch(tf32), lambda tf32=tf32: Torch(problem, len(sets), tf32=tf32), TF32_BOUND if tf32 else BOUND)
              for tf32 in (False, True)]
    if importlib.util.find_spec("flashrnn") and (all_variants or cell == TUTORIAL):
        found += [(about_flashrnn(*how), lambda how=how: FlashRNN(problem, len(sets), *how),
                   BFLOAT16_BOUND if "bfloat16" in how else TF32_BOUND) for how in FLASHRNN]
    return found, others


def measure(machine, cell, rounds=ROUNDS, seconds=SECONDS, all_variants=False, among=checks.EVERY,
            alone=False):
    """Time all providers of a cell → list of dict, one row for each provider and mode. Arguments as those of `stages`."""
    rows = []
    for _, new in stages(machine, cell, rounds, seconds, all_variants, among, alone):
        rows += new or []
    return rows


def stages(machine, cell, rounds=ROUNDS, seconds=SECONDS, all_variants=False, among=checks.EVERY, alone=False,
           without=()):
    """Time the providers of a cell, bit by bit.

    Parameters
    ----------
    machine : cupy_gpu.Gpu
    cell : Cell
    rounds : int
    seconds : float
        After so many no further round is begun, but FEWEST_ROUNDS are made.
    all_variants : bool
        Every candidate variant instead of the best of each family; at the tutorial's shape always.
    among : names of families
        Of ours.
    alone : bool
        Ours only, and with tokens only.
    without : names
        Of providers that were tried before. With TOGETHER among them each is timed alone.

    Yields
    ------
    list of names, list of dict or None
        Before something is tried, its name and None. After it, the names of the providers that are done and their rows: one
        for each provider and mode.
    """
    problem = problems.Recurrence(problems.Shape(cell.T, cell.B, cell.V, cell.H, tokens=True))
    truth = checks.evaluate_on(machine, problem.arguments.astype(np.float64))
    sets, size = make_sets(machine, problem)
    clock = machine.measure_clock()
    together, others = ([member for member in some if _name(member[0]) not in without]
                        for some in members(machine, cell, sets, problem, all_variants, among, alone))
    groups = [[member] for member in others]
    groups = [[member] for member in together] + groups if TOGETHER in without else [together] + groups
    for group in filter(None, groups):
        rows, turns = [], []
        for about, make, bound in group:
            yield [_name(about)], None
            row = {**cell._asdict(), **about, "sets": len(sets), "set_bytes": size}
            try:
                member = make()
                row.update(member.about, status=OK, error=verify(member.results(), truth, bound))
                launches = getattr(member, "launches", lambda mode: 1)  # what PyTorch launches is not known
                new = [_Turn(machine, member.calls[mode], dict(row, mode=mode), len(sets), launches(mode))
                       for mode in MODES if mode in member.calls]
                turns += new
                rows += [turn.row for turn in new]
            except Exception as error:  # whatever is wrong with a provider belongs into the table
                rows.append(_fail(machine, dict(row, mode=None), error))
        if len(group) > 1:
            yield [TOGETHER], None
        _rounds(machine, cell, turns, rounds, seconds, clock)
        yield [_name(about) for about, *_ in group], rows


def _name(about):
    """Of a provider, each another at a cell."""
    return ", ".join(filter(None, (about["provider"], about["variant"] or about["family"], about["input"])))


def _rounds(machine, cell, turns, rounds, seconds, clock):
    """Let all take their turns, and put what came of it into their rows."""
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > seconds:
            break
        first = number * 7 % max(1, len(turns))
        for turn in turns[first:] + turns[:first]:
            if turn.row["status"] == OK:
                try:
                    turn.take()
                except Exception as error:
                    _fail(machine, turn.row, error)
    for turn in turns:
        if turn.row["status"] == OK:
            turn.finish(clock, floor_cycles(machine.device, cell, turn.row["mode"]))
            if cell == TUTORIAL:
                turn.by_the_wall()


def _fail(machine, row, error):
    """Note an error in a row; GpuLost where the machine is gone."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ImportError):
        row.update(status=NOT_INSTALLED, reason=text)
        return row
    row.update(status=FAILED, reason=text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")
    checks.see_alive(machine, f"T = {row['T']}, B = {row['B']}, H = {row['H']}, {row['provider']}, {row['family']}", error)
    return row


class _Turn:
    """One provider in one mode: how to time it, and the times so far."""

    def __init__(self, machine, calls, row, sets, launches):
        self._machine, self._before, self._call = machine, *calls
        self.row, self._sets = row, sets
        self._times, self._unqueued, self._offset = [], 0, 0
        row["launched"] = "in a graph" if launches > MOST_QUEUED else "one by one"
        if launches > MOST_QUEUED:
            graphs = [machine.recorded(functools.partial(self._call, i)) for i in range(sets)]
            self._call, launches = lambda i: graphs[i](), 1
        self._count = 1
        self._delay = self._host_seconds()
        once, _ = self._time()  # warm by now
        self._count = min(sets, max(1, math.ceil(TURN / once)), max(1, MOST_QUEUED // launches))
        self._delay *= self._count

    def take(self):
        seconds, queued = self._time()
        self._times.append(seconds)
        self._unqueued += not queued
        if not queued:
            self._delay = min(_LONGEST_DELAY, 2 * self._delay)

    def finish(self, clock, floor):
        p25, median, p75 = np.percentile(self._times, [25, 50, 75]).tolist()
        T = self.row["T"]
        self.row.update(
            best=min(self._times), p25=p25, median=median, p75=p75, turns=len(self._times), calls_a_turn=self._count,
            turns_with_host_time=self._unqueued, us_per_step=1e6 * median / T, clock=clock,
            cycles_per_step=median / T * clock, floor_cycles=floor)

    def by_the_wall(self):
        """What a user's clock says: seconds a call, of many that are waited for together, and of one that is waited for."""
        if self._before:  # it would be timed too
            return
        count, calls = max(1, math.ceil(_WALL / self.row["median"])), self._sets
        self._machine.wait()
        started = time.perf_counter()
        for i in range(count):
            self._call(i % calls)
        self._machine.wait()
        together = (time.perf_counter() - started) / count
        alone = []
        for i in range(_WAITED):
            started = time.perf_counter()
            self._call(i % calls)
            self._machine.wait()
            alone.append(time.perf_counter() - started)
        self.row.update(wall=together, wall_waited=float(np.median(alone)))

    def _time(self):
        """Seconds a call."""
        offset, sets = self._offset, self._sets
        self._offset = (offset + self._count) % sets
        before = self._before and (lambda i: self._before((offset + i) % sets))
        seconds, queued = self._machine.time(
            lambda i: self._call((offset + i) % sets), self._count, self._delay, before)
        return seconds / self._count, queued

    def _host_seconds(self):
        """What the delay must be so that all launches of one call are in the queue: half as much again as they take."""
        longest = 0
        for i in range(3):
            self._machine.wait()
            started = time.perf_counter()
            if self._before:
                self._before(0)
            self._call(0)
            seconds = time.perf_counter() - started
            longest = max(longest, seconds) if i else 0  # the first call compiles and allocates
        self._machine.wait()
        return 1.5 * longest + 5e-5
