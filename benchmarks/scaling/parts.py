"""What is measured, part by part. A part gives rows; all its jobs take turns in interleaved rounds."""
import contextlib
import statistics
import sys

import numpy as np

from .. import clock, problems
from . import model, network
from .jobs import Job

SHAPE = problems.TUTORIAL[:4]  # T, B, V, H
STEPS, STEPS_OVER_A_NETWORK = 20, 10  # training steps of a turn
THRESHOLD = 2.0 ** -8  # the default of rnn-ops train
PARTS_OF_A_STEP = ("computing", "flattening", "waiting for the slowest", "KVStore", "updating")
_BOUND = 1e-4  # relative; the losses of a job that are further from those of one process are wrong

# name, workers, servers, threshold
ALONE = ("1 process, no KVStore", 0, 1, None)
JOBS = (ALONE, ("2 workers", 2, 1, None), ("2 workers, 2 servers", 2, 2, None),
        ("2 workers, 2bit", 2, 1, THRESHOLD), ("4 workers", 4, 1, None))
STORES = tuple((f"{workers} workers, {servers} server{'s' * (servers > 1)}", workers, servers, None)
               for workers in (2, 4) for servers in (1, 2))
OVER_A_NETWORK = tuple(job for job in JOBS if job[1] > 1 and job[2] == 1)
SIZES = tuple(10 ** power for power in range(3, 8))
HIDDEN, ROWS = (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16, 32)
NETWORKS = tuple(model.Network(bits * 1e6 / 8, milliseconds * 1e-3)
                 for bits in (100, 1000, 10000) for milliseconds in (0.05, 0.5, 5))


def measure_steps(rounds, shape=SHAPE, jobs=JOBS):
    """Training steps of each job, and where their time goes."""
    with _started(jobs) as started:
        truth = _warm(started, shape, STEPS)
        seconds, parts = ({job.name: [] for job in started} for _ in range(2))
        for _ in _progress(rounds, "training steps"):
            for job in started:
                answers = job.turn("steps", shape=shape, count=STEPS)
                seconds[job.name].append(_slowest(answers))
                parts[job.name] += _parts(job.turn("steps", shape=shape, count=STEPS, in_parts=True))
        return [dict(job=job.name, workers=job.workers, servers=job.servers, threshold=job.threshold, error=error,
                     **_statistics(seconds[job.name]), parts=_medians(parts[job.name])) for job, error in truth]


def measure_kvstore(rounds, sizes=SIZES, stores=STORES):
    """Rounds of the KVStore alone."""
    rows = {}
    with _started(stores) as started:
        for _ in _progress(rounds, "the KVStore"):
            for size in sizes:
                for job in started:
                    for dtype in ("float32", "float64"):
                        found = job.turn("kvstore", size=size, dtype=dtype, count=max(2, min(40, 2 * 10 ** 6 // size)))
                        row = rows.setdefault((job.name, size, dtype), dict(
                            job=job.name, workers=job.workers, servers=job.servers, size=size, dtype=dtype, times=[]))
                        row["times"].append(_slowest([(None, answer) for answer in found]))
    return [{**row, **_statistics(row.pop("times"))} for row in rows.values()]


def measure_computing(rounds, hidden=HIDDEN, rows=ROWS, shape=SHAPE):
    """Training steps of one process by rows and hidden size."""
    T, _, V, _ = shape
    times = {}
    with _started([ALONE]) as (job,):
        for _ in _progress(rounds, "one process"):
            for H in hidden:
                for B in rows:
                    found, = job.turn("alone", shape=(T, B, V, H), seconds=0.15)
                    times.setdefault((H, B), []).append(found)
    return [dict(hidden=H, rows=B, **_statistics(found)) for (H, B), found in times.items()]


def measure_network(rounds, networks=NETWORKS, shape=SHAPE, jobs=OVER_A_NETWORK):
    """Training steps of jobs over simulated networks, those over a network without limits, and what a probe finds of each
    network."""
    rows, unlimited = {}, model.Network(float("inf"), 0.0)
    with network.Relay() as relay, _started(jobs, relay.namespaces) as started:
        truth = _warm(started, shape, STEPS_OVER_A_NETWORK)
        for _ in _progress(rounds, "simulated networks"):
            for one in (unlimited, *networks):
                relay.limit(one)
                probed = relay.probe()
                for job, error in truth:
                    row = rows.setdefault((job.name, one), dict(
                        job=job.name, workers=job.workers, servers=job.servers, threshold=job.threshold, error=error,
                        bandwidth=None if one == unlimited else one.bandwidth, latency=one.latency, probed=[], times=[]))
                    row["times"].append(_slowest(job.turn("steps", shape=shape, count=STEPS_OVER_A_NETWORK)))
                    row["probed"].append(probed)
                    print(f"  {job.name}, {1e3 * one.latency:g} ms, {8e-6 * one.bandwidth:g} Mbit/s: "
                          f"{1e3 * statistics.median(row['times'][-1]):.1f} ms a step", file=sys.stderr)
    return [{**row, "probed": np.median(row["probed"], axis=0).tolist(), **_statistics(row.pop("times"))}
            for row in rows.values()]


@contextlib.contextmanager
def _started(jobs, namespaces=None):
    with contextlib.ExitStack() as ends:
        yield [ends.enter_context(Job(*job, namespaces=namespaces)) for job in jobs]


def _warm(started, shape, count):
    """The first turn: [(job, the largest relative difference of its losses from those of one process, None if compressed)]"""
    found = {job.name: job.turn("steps", shape=shape, count=count)[0][0] for job in started}
    if ALONE[0] not in found:
        with Job(*ALONE) as alone:
            found[ALONE[0]] = alone.turn("steps", shape=shape, count=count)[0][0]
    truth, errors = np.array(found[ALONE[0]]), []
    for job in started:
        error = float(np.max(np.abs(found[job.name] - truth) / truth))
        if job.threshold:
            error = None
        elif error > _BOUND:
            raise ValueError(f"{job.name}: wrong result: the losses differ from those of one process by {error:.1e}")
        errors.append((job, error))
    return errors


def _slowest(answers):
    """Seconds of each step of all workers: the slowest one's."""
    return np.max([seconds for _, seconds in answers], axis=0).tolist()


def _parts(answers):
    """For each step of each worker the seconds of its `PARTS_OF_A_STEP`, from the moments that `worker._Clock` has noted."""
    moments = np.array([steps for _, steps in answers])  # worker, step, moment
    if moments.shape[2] == 2:  # one process: nothing is exchanged
        taken = np.diff(moments, axis=2)
        return [[step[0], 0.0, 0.0, 0.0, 0.0] for step in taken.reshape(-1, 1).tolist()]
    begin, computed, complete, summed, spread, updated = np.moveaxis(moments, 2, 0)
    all_complete = complete.max(axis=0)
    parts = np.stack([computed - begin, complete - computed + spread - summed, all_complete - complete, summed - all_complete,
                      updated - spread], axis=-1)
    return parts.reshape(-1, len(PARTS_OF_A_STEP)).tolist()


def _medians(parts):
    return dict(zip(PARTS_OF_A_STEP, np.median(parts, axis=0).tolist()))


def _statistics(turns):
    found = clock.statistics([time for turn in turns for time in turn])
    return dict(found, turns=[statistics.median(turn) for turn in turns])


def _progress(rounds, what):
    for number in range(rounds):
        print(f"measuring {what}: round {number + 1} of {rounds}", file=sys.stderr)
        yield number
