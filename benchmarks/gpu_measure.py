"""Interleaved rounds over the providers of a shape on a GPU, and their rows.

First come the chosen variant, the best of each other family and the peers, in rounds together; then every other variant that is
wanted, alone: one that hangs costs itself only. In a round every provider takes its turn in every direction (`clock.Events`), in
another order each round. Only providers with right results are timed.
"""
import time

import numpy as np

from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks

from . import gpu_floor, problems
from .clock import Events
from .gpu_providers import PEERS, Ours, about, make_sets
from .problems import GPU_DIRECTIONS, TUTORIAL
from .worker import FAILED, NOT_INSTALLED, OK, verify

ROUNDS, SECONDS = 25, 3  # of a shape; after so many seconds no further round begins ...
FEWEST_ROUNDS = 5        # ... but so many are made
TOGETHER = "the rounds of all"  # `stages` tries this besides single providers


def timed_variants(device, shape, all_variants=False, among=checks.EVERY):
    """Our variants that are timed at a shape, in the order of their predicted cycles: the chosen one first.

    At the tutorial's shape it is all of them, and the older exchange of the cluster family too. ``among``: see
    `checks.those_of`.
    """
    if all_variants or shape == TUTORIAL:
        found, _ = variants.candidates(device, np.float32, shape.B, shape.H)
        found.sort(key=variants.total_cycles)
    else:
        found = checks.families(device, np.float32, shape[:4])
    ours = checks.those_of(found, among)
    if shape == TUTORIAL and {"cluster", checks.BARRIER} <= set(among):
        ours += checks.those_of(found, [checks.BARRIER])
    return ours


def providers(gpu, problem, sets, all_variants, among, alone, more):
    """(columns, make, bound) of every provider of a problem: facts known before it is made, a function that makes it, and the
    largest error that its results may have. Two lists: providers that are timed together, and our other variants."""
    ours = timed_variants(gpu.device, problem.shape, all_variants, among)
    best = {}
    for variant in ours:
        best.setdefault(variant.family, variant)

    def ready(provider):
        return about(provider), lambda: provider, provider.bound

    found, others = ([ready(Ours(gpu, sets, variant, chosen=variant == ours[0])) for variant in ours
                      if (variant in best.values()) == which] for which in (True, False))
    if not alone:
        found.append(ready(Ours(gpu, sets, ours[0], one_hot=True, chosen=True)))
        found += [(about(peer), lambda peer=peer: peer(problem, len(sets)), peer.bound) for peer in (*PEERS, *more)]
    return found, others


def measure(gpu, shape, **options):
    """Time all providers of a shape → list of dict, one row for each provider and direction. Options as those of `stages`."""
    return [row for _, rows in stages(gpu, shape, **options) for row in rows or []]


def stages(gpu, shape, rounds=ROUNDS, seconds=SECONDS, all_variants=False, among=checks.EVERY, alone=False, without=(), more=()):
    """Time the providers of a shape, bit by bit.

    Parameters
    ----------
    gpu : cupy_gpu.Gpu
    shape : problems.Shape
        With tokens.
    rounds : int
    seconds : float
        After so many no further round begins, but FEWEST_ROUNDS are made.
    all_variants : bool
        Every candidate variant instead of the best of each family; at the tutorial's shape always.
    among : names of families
        Of ours.
    alone : bool
        Ours only, and with tokens only.
    without : names
        Of providers that were tried before. With TOGETHER among them each is timed alone.
    more : classes
        Further peers, see `GpuProvider`.

    Yields
    ------
    list of names, list of dict or None
        Before something is tried, its name and None. After it, the names of the providers that are done and their rows: one
        for each provider and direction.
    """
    problem = problems.Sequence(shape)
    truth = checks.evaluate_on(gpu, problem.arguments.astype(np.float64))
    sets, size = make_sets(gpu, problem)
    clock = gpu.measure_clock()
    together, others = ([one for one in some if _name(one[0]) not in without]
                        for some in providers(gpu, problem, sets, all_variants, among, alone, more))
    groups = [[one] for one in others]
    groups = [[one] for one in together] + groups if TOGETHER in without else [together] + groups
    for group in filter(None, groups):
        rows, turns = [], []
        for columns, make, bound in group:
            yield [_name(columns)], None
            row = {"stage": shape.sizes, "shape": list(shape[:4]), **columns, "sets": len(sets), "set_bytes": size}
            try:
                provider = make()
                row.update(about(provider), status=OK, error=verify(provider.results(), truth, bound),
                           **getattr(provider, "predicted", {}))
                new = [(dict(row, direction=direction), Events(gpu, *provider.calls[direction], len(sets),
                                                               provider.launches(direction)))
                       for direction in GPU_DIRECTIONS if direction in provider.calls]
                turns += new
                rows += [row for row, _ in new]
            except Exception as error:  # whatever is wrong with a provider belongs into the table
                rows.append(_fail(gpu, dict(row, direction=None), error))
        if len(group) > 1:
            yield [TOGETHER], None
        _rounds(gpu, shape, turns, rounds, seconds, clock)
        yield [_name(columns) for columns, *_ in group], rows


def _name(columns):
    """Of a provider, each another at a shape."""
    return ", ".join(filter(None, (columns["provider"], columns["variant"] or columns["family"], columns["input"])))


def _rounds(gpu, shape, turns, rounds, seconds, clock):
    """Let all take their turns, and add the figures to their rows."""
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > seconds:
            break
        first = number * 7 % max(1, len(turns))
        for row, events in turns[first:] + turns[:first]:
            if row["status"] == OK:
                try:
                    events.take()
                except Exception as error:
                    _fail(gpu, row, error)
    for row, events in turns:
        if row["status"] == OK:
            row.update(events.found())
            step = row["median"] / shape.T
            row.update(seconds_per_step=step, cycles_per_step=step * clock, clock=clock,
                       floor_cycles=gpu_floor.cycles(gpu.device, shape, row["direction"]))
            if shape == TUTORIAL:
                row.update(events.by_the_wall())


def _fail(gpu, row, error):
    """Note an error in a row; GpuLost if the GPU no longer answers."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ImportError):
        row.update(status=NOT_INSTALLED, reason=text)
        return row
    row.update(status=FAILED, reason=text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")
    T, B, _, H = row["shape"]
    checks.see_alive(gpu, f"T = {T}, B = {B}, H = {H}, {row['provider']}, {row['family']}", error)
    return row
