"""Interleaved rounds over all providers, and their statistics.

A machine's speed drifts within seconds by more than the differences we look for. So the providers take turns, A B C …
A B C …, a small budget of time each; medians over all rounds have then seen the same machine, and so has the GEMM
rate, which is one more provider in the same rounds. What is compared is always of one stage: one problem, one run.
"""
from typing import NamedTuple

import numpy as np

from . import problems, providers, trainers
from .worker import OK

FLOOR = "floor"
_STATISTICS = ("best", "p20", "median", "p80")


class Stage(NamedTuple):
    """One problem, and all who take part."""
    problem: object
    providers: tuple


def stages(shapes):
    """The recurrence at every shape, and the whole training step at the first one with tokens."""
    found = [Stage(problems.Recurrence(shape), providers.for_shape(shape)) for shape in shapes]
    tokens = [shape for shape in shapes if shape.tokens]
    return found + [Stage(problems.TrainingStep(shape), trainers.TRAINERS) for shape in tokens[:1]]


def measure(stage, workers, rounds, seconds, progress):
    """Measure one stage.

    Parameters
    ----------
    stage : Stage
    workers : worker.Workers
    rounds : int
    seconds : float
        The budget of one turn: one provider in one mode.
    progress : callable
        ``progress(iterable, description)`` gives the iterable back and shows how far it is.

    Returns
    -------
    list of dict
        One row for each provider and mode, that of the GEMM first and those of the floor after it.
    """
    problem = stage.problem
    members = [(providers.Gemm, problems.Gemm())] + [(provider, problem) for provider in stage.providers]
    processes = {provider.process: workers[provider.process] for provider, _ in members}
    for provider, its_problem in members:
        processes[provider.process].send("prepare", provider, its_problem)
    turns = []
    for provider, its_problem in members:
        worker = processes[provider.process]
        status, value = worker.receive()
        for mode in its_problem.modes:
            row = {"stage": problem.name, "mode": mode, "provider": provider.name, "status": status,
                   "flops": its_problem.flops(mode)}
            row.update({"about": value["about"], "error": value["errors"][mode]} if status == OK else {"reason": value})
            turns.append((worker, row, its_problem.repeats, []))
    for _ in progress(range(rounds), problem.name):
        for worker, row, repeats, times in turns:
            if row["status"] == OK:
                _take(worker, row, repeats, times, seconds)
    for _, row, _, times in turns:
        if row["status"] == OK:
            row.update(statistics(np.concatenate(times).tolist()), turns=[float(np.median(turn)) for turn in times])
    rows = [row for _, row, _, _ in turns]
    rows[1:1] = floors(rows[0], problem)
    derive(rows, problem.shape)
    return rows


def _take(worker, row, repeats, times, seconds):
    worker.send("time", row["provider"], row["mode"], seconds)
    status, value = worker.receive()
    if status == OK:
        times.append([time / repeats for time in value])
    else:
        row.update(status=status, reason=value)


def statistics(times):
    """Seconds: the best call, the median, the 20th and 80th percentile; and how many calls they come from."""
    p20, median, p80 = np.percentile(times, [20, 50, 80]).tolist()
    return {"calls": len(times), "best": min(times), "p20": p20, "median": median, "p80": p80}


def floors(gemm, problem):
    """Rows for the time that the problem's operations take at the GEMM's rate, the best call's for the best."""
    if gemm["status"] != OK:
        return []
    return [dict({key: gemm[key] * problem.flops(mode) / gemm["flops"] for key in _STATISTICS},
                 stage=gemm["stage"], mode=mode, provider=FLOOR, status=OK, flops=problem.flops(mode))
            for mode in problem.modes]


def derive(rows, shape):
    """Add to every row that was timed what follows from its median: rates, ratios within its mode, which figures are not
    credible, and for our operators the seconds that MXNet adds to the kernel's; the GEMM has no steps.

    What MXNet adds is less than the machine drifts from round to round: the median of the differences within each round.
    """
    medians = {(row["mode"], row["provider"]): row["median"] for row in rows if row["status"] == OK}
    floors_ = {row["mode"]: row for row in rows if row["provider"] == FLOOR}
    kernels = {row["mode"]: row["turns"] for row in rows if row["status"] == OK and row["provider"] == providers.KERNEL}
    for row in rows:
        if row["status"] != OK:
            continue
        median, mode = row["median"], row["mode"]
        row["flops_per_second"] = row["flops"] / median
        if mode in problems.Gemm.modes:
            continue
        row["seconds_per_step"] = median / shape.T
        row["steps_per_second"] = shape.T / median
        row["tokens_per_second"] = shape.T * shape.B / median
        if (mode, FLOOR) in medians:
            row["of_gemm_rate"] = medians[mode, FLOOR] / median
            row["not_credible"] = [name for name in _STATISTICS if row[name] < floors_[mode][name]]
        if row["provider"] in providers.OURS and mode in kernels:
            row["over_the_kernel"] = float(np.median(np.subtract(row["turns"], kernels[mode])))
        row["times_ours"] = {name: median / medians[mode, name] for name in providers.OURS if (mode, name) in medians}
