"""Interleaved rounds over all providers, and their statistics.

A machine's speed drifts within seconds by more than the differences we look for. So the providers take turns, A B C …
A B C …, a small budget of time each; all have then seen the same machine, and so have the yardsticks, the
processor's peak and the GEMM rate, which are two more providers in the same rounds. Only figures of one stage are compared:
of one run at one shape.
"""
from typing import NamedTuple

import numpy as np

from . import problems, providers, trainers
from .clock import statistics
from .worker import NOT_OFFERED, OK

FLOOR = "floor"
PEAK_STAGE = "the processor's peak"
_STATISTICS = ("best", "p20", "median", "p80")


class Stage(NamedTuple):
    """One shape, and all that are compared: (provider, problem) each. The peak and the GEMM come first if they are yardsticks."""
    name: str
    pairs: tuple
    yardsticks: bool = True


def stages(shapes, more=()):
    """The processor's peak, the recurrence at every shape, and the whole training step at the first one with tokens. ``more``:
    further providers of the recurrence."""
    yield peak_stage()
    for shape in shapes:
        problem = problems.Sequence(shape)
        yield Stage(problem.name, tuple((provider, problem) for provider in (*providers.for_shape(shape), *more)))
    for shape in [shape for shape in shapes if shape.tokens][:1]:
        problem = problems.TrainingStep(shape)
        yield Stage(problem.name, tuple((provider, problem) for provider in trainers.TRAINERS))


def grid_stages(sizes, more=()):
    """The processor's peak, and the recurrence at every (T, B, I, H): kernel, operator and peers, dense input and tokens."""
    yield peak_stage()
    for one in sizes:
        both = [problems.Sequence(problems.Shape(*one, tokens)) for tokens in (False, True)]
        yield Stage(both[0].shape.sizes, tuple((provider, problem) for problem in both
                                               for provider in (*providers.for_grid(problem.shape), *more)))


def peak_stage():
    """Every SIMD level, on one thread and on all, in both dtypes; and tanh."""
    from rnn_ops.backends import cpu
    kinds = [problems.Peak(level, threads, dtype) for dtype in ("float32", "float64") for level in cpu.simd_levels()
             for threads in sorted({1, problems.all_threads()})]
    return Stage(PEAK_STAGE, (*((providers.Peak, kind) for kind in kinds), (providers.Tanh, problems.Tanh())), yardsticks=False)


def measure(stage, workers, rounds, seconds, progress):
    """Measure one stage.

    Parameters
    ----------
    stage : Stage
    workers : worker.Workers
    rounds : int
    seconds : float
        The budget of one turn: one provider in one direction.
    progress : callable
        ``progress(iterable, description)``, called before anything else, gives the iterable back and shows how far it is.

    Returns
    -------
    list of dict
        One row for each provider and direction, those of the yardsticks first and those of the floor after them.
    """
    its_rounds = progress(range(rounds), stage.name)
    yardsticks = ((providers.Peak, problems.Peak()), (providers.Gemm, problems.Gemm())) if stage.yardsticks else ()
    pairs = (*yardsticks, *stage.pairs)
    processes = {}
    for provider, _ in pairs:
        if provider.process not in processes:
            processes[provider.process] = worker = workers[provider.process]
            worker.send("forget")
            worker.receive()
    of_memory = {provider.process: workers.for_memory(provider.process) for provider, problem in pairs if problem.shape}
    for provider, problem in pairs:
        processes[provider.process].send("prepare", provider, problem)
        if problem.shape:
            of_memory[provider.process].send("memory", provider, problem)
    turns = []
    for provider, problem in pairs:
        worker = processes[provider.process]
        status, value = worker.receive()
        told, peaks = of_memory[provider.process].receive() if problem.shape else (None, None)
        for direction in problem.directions:
            row = {"stage": stage.name, **_shape(problem), "direction": direction, "provider": provider.name, "status": status,
                   "flops": problem.flops(direction)}
            if status != OK:
                row["reason"] = value
            elif direction in value["errors"]:
                row.update(about=value["about"], versions=value["versions"], error=value["errors"][direction],
                           peak_memory=peaks.get(direction) if told == OK else None)
            else:
                row.update(status=NOT_OFFERED, reason=provider.lacks.get(direction, "it has no such call"))
            turns.append((worker, row, problem, []))
    for _ in its_rounds:
        for worker, row, problem, times in turns:
            if row["status"] == OK:
                _take(worker, row, problem, times, seconds)
    for _, row, _, times in turns:
        if row["status"] == OK:
            row.update(statistics(np.concatenate(times).tolist()), turns=[float(np.median(turn)) for turn in times])
    rows = [row for _, row, _, _ in turns]
    of_the_floor = list(dict.fromkeys(problem for _, problem in stage.pairs)) if yardsticks else []
    rows[len(yardsticks):len(yardsticks)] = [row for problem in of_the_floor for row in floors(rows[0], problem)]
    derive(rows)
    return rows


def _shape(problem):
    if problem.shape is None:
        return {"shape": None, "input": None, "yardstick": problem.name}
    return {"shape": list(problem.shape[:4]), "input": problem.shape.input}


def _take(worker, row, problem, times, seconds):
    worker.send("time", row["provider"], problem.name, row["direction"], seconds)
    status, value = worker.receive()
    if status == OK:
        times.append([time / problem.repeats for time in value])
    else:
        row.update(status=status, reason=value)


def floors(peak, problem):
    """Rows for the time that the problem's operations take at the processor's peak, the best call's for the best."""
    if peak["status"] != OK:
        return []
    return [dict({key: peak[key] * problem.flops(direction) / peak["flops"] for key in _STATISTICS},
                 stage=peak["stage"], **_shape(problem), direction=direction, provider=FLOOR, status=OK,
                 flops=problem.flops(direction))
            for direction in problem.directions]


def derive(rows):
    """Add derived figures to every timed row of a stage: rates, ratios, and which figures are not credible.

    ``of_peak`` and ``of_gemm_rate`` compare best calls, which other programs disturb least. A row of ours names the ``best_peer``
    with the same input, in best calls, and says how many times as fast it is itself: ``ahead`` in best calls, ``ahead_median`` in
    medians, below 1 if the peer is faster. ``over_the_kernel``, MXNet's own time, is less than the machine drifts from round to
    round: it is the median of the differences within each round.
    """
    timed = [row for row in rows if row["status"] == OK]
    rates = {row["direction"]: row["flops"] / row["best"] for row in timed if row["shape"] is None}
    for row in timed:
        if row["flops"]:
            row["flops_per_second"] = row["flops"] / row["median"]
    for its in _comparable(timed).values():
        by_name = {row["provider"]: row for row in its}
        peers = [row for row in its if row["provider"] not in (*providers.OURS, FLOOR)]
        for row in its:
            (T, B, _, _), median = row["shape"], row["median"]
            row["seconds_per_step"] = median / T
            row["steps_per_second"] = T / median
            row["tokens_per_second"] = T * B / median
            for name, yardstick in (("of_peak", "peak"), ("of_gemm_rate", "gemm")):
                if yardstick in rates:
                    row[name] = row["flops"] / row["best"] / rates[yardstick]
            if FLOOR in by_name:
                row["not_credible"] = [name for name in _STATISTICS if row[name] < by_name[FLOOR][name]]
            row["times_ours"] = {name: median / by_name[name]["median"] for name in providers.OURS if name in by_name}
            if row["provider"] in providers.OURS:
                if providers.KERNEL in by_name:
                    row["over_the_kernel"] = float(np.median(np.subtract(row["turns"], by_name[providers.KERNEL]["turns"])))
                if peers:
                    best = min(peers, key=lambda peer: peer["best"])
                    row["best_peer"] = best["provider"]
                    row["ahead"] = best["best"] / row["best"]
                    row["ahead_median"] = min(peer["median"] for peer in peers) / median


def _comparable(rows):
    """{(input, direction): rows that are compared}"""
    found = {}
    for row in rows:
        if row["shape"] is not None:
            found.setdefault((row["input"], row["direction"]), []).append(row)
    return found
