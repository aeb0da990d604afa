"""The CUDA kernels against float64: every family and variant, on a GPU or a stand-in.

A gpu has ``device`` (`variants.Device`), ``launcher`` (`Launcher`), ``to_device(numpy)`` and ``to_host(array)``, and
``for_truth(numpy)``, which gives the array that truths are computed with: a real one (cupy_gpu.py), NumPy's stand-in
(numpy_gpu.py), or the emulator of the tests. Results are written into NaN between guard cells, so that an element left
out, or one written beside the result, is found.

Truth is numpy_reference.py in float64 on the same arguments; errors and bounds are those of `rnn_ops.exactness`.
"""
import math
from functools import partial
from typing import Any, Callable, Iterable, List, NamedTuple, Optional

import numpy as np

from rnn_ops.backends.cuda import variants
from rnn_ops.exactness import FLOAT32, FLOAT64, Problem, bounds, different_cells, draw, evaluate, relative_error

RUNS = 20   # that must give the same bits ...
MOST_RUNS = 1000  # ... and at the first of BITS_SHAPES, the workload's
ULPS = 4    # most that tanh may be off
GUARD = 64  # cells on either side of a result
_CANARY = -12345.0
_SWEPT = 2 ** 18  # values of tanh in one launch: as a number of rows no grid is too large for it

# T, B, I, H. Ones and primes; each family's largest H and its neighbours; more rows than a tile has and than there are
# multiprocessors; the workload's.
SHAPES = (
    (1, 1, 1, 1), (1, 2, 3, 5), (2, 1, 1, 3), (5, 3, 1, 2), (7, 1, 4, 1), (3, 2, 5, 7), (31, 17, 23, 37),
    (3, 4, 5, 31), (3, 5, 5, 32), (3, 3, 5, 33), (2, 301, 7, 61), (2, 1500, 3, 40), (5, 7, 11, 127), (1, 40, 9, 128),
    (4, 6, 11, 129), (3, 9, 5, 192), (3, 9, 5, 193), (3, 263, 5, 251), (1, 1, 3, 255), (64, 1, 77, 256),
    (64, 32, 77, 256), (3, 5, 7, 257), (3, 33, 5, 509), (2, 2, 5, 512), (3, 7, 5, 768), (3, 4, 5, 1021),
    (1, 150, 5, 1024), (3, 3, 5, 1025), (2, 34, 5, 1531), (3, 1, 5, 2048), (2, 3, 5, 2049))
VARIANT_SHAPES = ((3, 7, 5, 33), (5, 3, 7, 64), (3, 150, 5, 190), (4, 33, 7, 256), (3, 5, 7, 500), (3, 18, 5, 1024),
                  (2, 35, 5, 2000))  # every candidate
OPTION_SHAPES = ((5, 3, 7, 61), (3, 9, 5, 300), (3, 2, 5, 1100))  # arguments left out, wrong tokens
BITS_SHAPES = ((64, 32, 77, 256), (9, 133, 7, 61), (5, 37, 5, 700), (3, 5, 5, 1500))  # the same bits again and again
# What `plan` is given for a part of all. The first look: the workload's shape, and one for each family.
FIRST = dict(shapes=((64, 32, 77, 256), (7, 3, 4, 61), (3, 33, 5, 509), (2, 34, 5, 1531)), variant_shapes=(),
             option_shapes=(), bits_shapes=(), sweep=0)
ALL_BUT_REPEATS = dict(most_runs=RUNS)
REPEATS = dict(shapes=(), variant_shapes=(), option_shapes=(), bits_shapes=BITS_SHAPES[:1], sweep=0)
# A few kernels of each family, for tools that run them hundreds of times slower.
TINY = dict(shapes=((3, 3, 5, 37), (2, 5, 3, 300)), variant_shapes=(), option_shapes=(), bits_shapes=(), sweep=2 ** 8)

# The cluster family with its older exchange, where families are named; it stands in where "cluster" is not among them.
BARRIER = "cluster-barrier"
EVERY = (*variants.FAMILIES, BARRIER)

_NAMES = ("dstate", "dWxh", "dWhh", "dbh", "dinputs")


class GpuLost(Exception):
    """The GPU no longer answers: a kernel hangs or has broken it. Nothing else can be done in this process."""


class Result(NamedTuple):
    """One comparison. ``error`` is a relative error, an error in ulp, or a number of cells that must be 0."""
    case: str
    family: str
    what: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN

    def __str__(self):
        if math.isinf(self.error):
            return f"{self.case}: {self.what}" + (": not finite, or not zero where the truth is zero" if self.bound else "")
        how = f"{self.error:.2e} > {self.bound:.2e}" if self.bound else f"{self.error:.0f}"
        return f"{self.case}: {self.what}: {how}"


class Task(NamedTuple):
    """Checks that share arguments and a truth: ``run(gpu)`` gives Results."""
    name: str
    run: Callable
    variants: tuple  # it will launch these
    shape: tuple     # of its calls: T, B, I, H
    dtype: Any
    tokens: bool


def evaluate_on(gpu, problem: Problem) -> dict:
    """`evaluate` where the gpu computes truths: NumPy arrays there and back."""
    return {name: gpu.to_host(array) for name, array in evaluate(problem.map(gpu.for_truth)).items()}


def ulp_errors(found, exact):
    """|found - exact| in units of the last place that ``found``'s dtype has at ``exact``; infinite for NaN and infinity."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(found.astype(exact.dtype) - exact) / np.spacing(np.abs(exact).astype(found.dtype))
    return np.where(np.isfinite(found), errors, np.inf)


def execute(gpu, problem, variant=None, without=(), guard=GUARD):
    """Run both directions → (results by name as NumPy arrays, number of cells changed that should not have been).

    ``without`` names gradients to leave out.
    """
    arguments = [None if array is None else gpu.to_device(array) for array in problem.arrays]
    inputs, state, Wxh, Whh, bh, doutputs, dlast_state = arguments
    T, B, H = problem.shape
    shapes = {"outputs": (T, B, H), "dstate": state.shape, "dWxh": Wxh.shape, "dWhh": Whh.shape, "dbh": bh.shape}
    if problem.inputs.ndim == 3:
        shapes["dinputs"] = inputs.shape
    bases, views = {}, {}
    for name, shape in shapes.items():
        if name in without:
            continue
        size = math.prod(shape)
        cells = np.full(size + 2 * guard, _CANARY, problem.state.dtype)
        cells[guard:guard + size] = np.nan
        bases[name] = gpu.to_device(cells)
        views[name] = bases[name][guard:guard + size].reshape(shape)

    gpu.launcher.forward(inputs, state, Wxh, Whh, bh, views["outputs"], activation=problem.activation, variant=variant)
    gpu.launcher.backward(inputs, state, Wxh, Whh, views["outputs"], doutputs, dlast_state,
                          activation=problem.activation, variant=variant, **{name: views.get(name) for name in _NAMES})
    results, changed = {}, 0
    for name, base in bases.items():
        cells = gpu.to_host(base)
        results[name] = cells[guard:len(cells) - guard].reshape(shapes[name])
        changed += sum(np.count_nonzero(beside != _CANARY) for beside in (cells[:guard], cells[len(cells) - guard:]))
    for array, argument in zip(problem.arrays, arguments):
        if array is not None:
            changed += different_cells(gpu.to_host(argument), array)
    return results, changed


# --- the plan

def plan(device, shapes=SHAPES, variant_shapes=VARIANT_SHAPES, option_shapes=OPTION_SHAPES, bits_shapes=BITS_SHAPES,
         most_runs=MOST_RUNS, sweep=2 ** 22, guard=GUARD, among=variants.FAMILIES) -> List[Task]:
    """All Tasks for a device, each with the variants that `those_of` takes ``among``; a task without any is left out."""
    tasks = []

    def add(name, check, shape, dtype, kind, chosen, **more):
        chosen = those_of(chosen, among)
        if not chosen:
            return
        letters = "×".join(map(str, shape))
        name = f"{letters} {kind} {dtype}{name}"
        make = partial(draw, *shape, dtype, kind == "tokens", **more)
        run = partial(_each, name, chosen, partial(check, guard=guard), make)
        tasks.append(Task(name, run, tuple(chosen), shape, dtype, kind == "tokens"))

    for shape in shapes:
        for kind in ("tokens", "dense"):
            add("", _values, shape, FLOAT32, kind, families(device, FLOAT32, shape))
            add("", _values, shape, FLOAT64, kind, families(device, FLOAT64, shape))
    for shape in variant_shapes:
        found, _ = variants.candidates(device, FLOAT32, shape[1], shape[3])
        add(", every variant", _values, shape, FLOAT32, "tokens", found)
        add(", every variant, saturated", _values, shape, FLOAT32, "dense", found, scale=10)
    for shape in option_shapes:
        for dtype in (FLOAT32, FLOAT64):
            chosen = families(device, dtype, shape)
            add(", relu", _values, shape, dtype, "tokens", chosen, activation="relu")
            add(", arguments left out", _options, shape, dtype, "tokens", chosen)
            add(", wrong tokens", _wrong_tokens, shape, dtype, "tokens", chosen)
    for number, shape in enumerate(bits_shapes):
        runs = RUNS if number else most_runs
        same_bits, chosen = partial(_same_bits, runs=runs), families(device, FLOAT32, shape)
        add(f", {runs:,} times", same_bits, shape, FLOAT32, "tokens", chosen)
        add(f", {runs:,} times, relu", same_bits, shape, FLOAT32, "tokens", chosen, activation="relu")
        add(f", {runs:,} times", same_bits, shape, FLOAT32, "dense", chosen[:1])
    for dtype in (FLOAT32, FLOAT64) if sweep else ():
        size = sweep if dtype == FLOAT32 else sweep // 4
        # The families share the function; a grid would need much memory for so many rows.
        chosen = [variant for variant in families(device, dtype, (1, min(size, _SWEPT), 1, 1))
                  if variant.family in ("resident", "stepwise") and variant.family in among]
        name = f"tanh of {size:,} {dtype} values"
        tasks.append(Task(name, partial(_each, name, chosen, _tanh, partial(sweep_values, dtype, size)), tuple(chosen),
                          (1, min(size, _SWEPT), 1, 1), dtype, False))
    return tasks


def families(device, dtype, shape) -> list:
    """The best variant of each family that can serve a shape (T, B, I, H). The first is the chooser's."""
    found, _ = variants.candidates(device, dtype, shape[1], shape[3])
    best = {}
    for variant in sorted(found, key=variants.total_cycles):
        best.setdefault(variant.family, variant)
    return list(best.values())


def those_of(chosen, among) -> list:
    """The variants whose family is one of ``among``. If BARRIER is one of them and "cluster" is not, the cluster's variants
    come last, with the older exchange: how long that takes is not predicted."""
    found = [variant for variant in chosen if variant.family in among]
    if BARRIER in among and "cluster" not in among:
        found += [variant._replace(exchange="barrier") for variant in chosen if variant.family == "cluster"]
    return found


def run(gpu, tasks: Iterable[Task], report: Optional[Callable] = None) -> List[Result]:
    """Run all tasks → list of Results. ``report(number, tasks, task, its results or None before it starts)``.

    Raises
    ------
    GpuLost
        With the Results so far in its ``results``.
    """
    tasks = list(tasks)
    results = []
    for number, task in enumerate(tasks, 1):
        if report:
            report(number, len(tasks), task, None)
        new = []
        try:
            for result in task.run(gpu):
                new.append(result)
        except GpuLost as lost:
            lost.results = results + new
            raise
        results += new
        if report:
            report(number, len(tasks), task, new)
    return results


def _each(name, chosen, check, make, gpu):
    """``check`` with every variant on the same problem. What a variant breaks becomes its own Result."""
    problem = make()
    for_all = check(gpu, problem)
    for variant in chosen:
        case = f"{name}, {variant}"
        try:
            for what, error, bound in for_all(gpu, variant):
                yield Result(case, variant.family, what, error, bound)
        except Exception as error:  # a kernel that cannot be compiled or launched is a failure too
            text = " ".join(str(error).split())[:500]
            yield Result(case, variant.family, f"{type(error).__name__}: {text}", math.inf, 0)
            see_alive(gpu, case, error)


def see_alive(gpu, what: str, error: Exception) -> None:
    """Raise GpuLost if the gpu no longer answers after ``error``."""
    try:
        if isinstance(error, TimeoutError):
            raise error
        gpu.to_host(gpu.to_device(np.zeros(1)))
    except Exception as still:
        raise GpuLost(f"{what}: {' '.join(str(still).split())}") from error


# Each check takes the gpu and the problem, computes once what all variants share, and gives a function of (gpu, variant)
# that yields (what, error, bound).

def _truth(gpu, problem):
    """The truth, and how far off it each tensor may be."""
    truth = evaluate_on(gpu, problem.astype(FLOAT64))
    return truth, bounds(problem, truth, partial(evaluate_on, gpu))


def _values(gpu, problem, guard):
    truth, bound = _truth(gpu, problem)

    def check(gpu, variant):
        results, changed = execute(gpu, problem, variant, guard=guard)
        yield "cells changed beside the results", changed, 0
        for name, array in truth.items():
            yield name, relative_error(results[name], array), bound[name]
    return check


def _options(gpu, problem, guard):
    partials = [(left_out, problem._replace(**{left_out: None})) for left_out in ("doutputs", "dlast_state")]
    partials = [(left_out, some, *_truth(gpu, some)) for left_out, some in partials]

    def check(gpu, variant):
        for left_out, some, truth, limit in partials:
            results, changed = execute(gpu, some, variant, guard=guard)
            yield f"without {left_out}: cells changed beside the results", changed, 0
            for name, array in truth.items():
                yield f"without {left_out}: {name}", relative_error(results[name], array), limit[name]
        everything, _ = execute(gpu, problem, variant, guard=guard)
        for without in (("dstate",), ("dWxh", "dWhh", "dbh"), ("dstate", "dWxh", "dbh")):
            results, changed = execute(gpu, problem, variant, without, guard=guard)
            changed += sum(different_cells(array, everything[name]) for name, array in results.items())
            yield f"without {', '.join(without)}: cells of the others that changed", changed, 0
    return check


def _wrong_tokens(gpu, problem, guard):
    T, B, _ = problem.shape
    V = len(problem.Wxh)
    wrong = problem.inputs.copy()
    wrong_ones = [(0, 0, V), (T // 2, B // 2, -1), (T - 1, B - 1, 2 ** 31 - 1)]
    hit = np.zeros((T, B), bool)
    for t, b, token in wrong_ones:
        wrong[t, b] = token
        hit[t:, b] = True
    rows = hit.any(axis=0)

    def check(gpu, variant):
        good, _ = execute(gpu, problem, variant, guard=guard)
        bad, changed = execute(gpu, problem._replace(inputs=wrong), variant, guard=guard)
        yield "wrong tokens: cells changed beside the results", changed, 0
        yield ("wrong tokens: states from there on that are not NaN",
               int(np.count_nonzero(~np.isnan(bad["outputs"][hit]))), 0)
        for name, others in (("outputs", ~hit), ("dstate", ~rows)):
            yield (f"wrong tokens: cells of other rows' {name} that changed",
                   different_cells(bad[name][others], good[name][others]), 0)
    return check


def _same_bits(gpu, problem, guard, runs):
    """The runs are compared on the gpu and waited for once, so that nothing else runs between them."""
    def check(gpu, variant):
        first, _ = execute(gpu, problem, variant, guard=guard)
        inputs, state, Wxh, Whh, bh, doutputs, dlast_state = map(gpu.to_device, problem.arrays)
        again = {name: gpu.to_device(array) for name, array in first.items()}
        first = {name: gpu.to_device(array).view("uint32") for name, array in first.items()}
        different = 0
        for _ in range(runs - 1):
            for array in again.values():
                array.fill(np.nan)
            gpu.launcher.forward(inputs, state, Wxh, Whh, bh, again["outputs"], activation=problem.activation,
                                 variant=variant)
            gpu.launcher.backward(inputs, state, Wxh, Whh, again["outputs"], doutputs, dlast_state,
                                  activation=problem.activation, variant=variant,
                                  **{name: again.get(name) for name in _NAMES})
            for name, array in first.items():
                different = different + (again[name].view("uint32") != array).sum()
        yield f"cells that changed in {runs:,} runs", int(gpu.to_host(different)), 0
    return check


def sweep_values(dtype, size):
    """``size`` values for tanh: half of them over all exponents, half over those where tanh is neither x nor ±1.

    Subnormal numbers are left out: float32 kernels are compiled to take them for zero.
    """
    info = np.finfo(dtype)
    random = np.random.RandomState(0)
    exponents = np.concatenate([np.linspace(info.minexp, info.maxexp - 1, size // 2).round(),
                                np.linspace(-info.nmant // 2 - 2, 5, size - size // 2).round()])
    values = np.ldexp(random.uniform(1, 2, size), exponents.astype(int))
    values = np.minimum(values, info.max).astype(dtype)  # a float32 just below 2^128 may round to 2^128
    return values * random.choice(np.array([-1, 1], dtype), size)


def _tanh(gpu, values):
    """Through a step with I = H = 1, Wxh = [[1]], all else 0, which leaves tanh(x) exactly.

    The truth of float32 is NumPy's tanh in float64, that of float64 in long double, where that has more bits.
    """
    wider = FLOAT64 if values.dtype == FLOAT32 else np.dtype(np.longdouble)
    exact = np.tanh(values.astype(wider))
    exacter = np.finfo(wider).nmant > np.finfo(values.dtype).nmant
    what = "ulp in tanh" if exacter else "ulp in tanh (its truth is no more exact on this system)"
    one, zero = np.ones((1, 1), values.dtype), np.zeros((1, 1), values.dtype)

    def check(gpu, variant):
        worst = 0
        for first in range(0, len(values), _SWEPT):
            some = values[first:first + _SWEPT].reshape(1, -1, 1)
            outputs = gpu.to_device(np.full_like(some, np.nan))
            arrays = (some, np.zeros_like(some[0]), one, zero, zero[0])
            gpu.launcher.forward(*map(gpu.to_device, arrays), outputs, variant=variant)
            found = gpu.to_host(outputs).ravel()
            worst = max(worst, ulp_errors(found, exact[first:first + _SWEPT]).max())
        yield what, float(worst), ULPS
    return check
