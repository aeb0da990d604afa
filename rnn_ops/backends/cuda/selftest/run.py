"""The self-test as ``rnn-ops check --device cuda`` runs it: each family of kernels in a process of its own, with an end."""
import functools
import math
from typing import Callable, List

from rnn_ops import isolated
from rnn_ops.backends.cuda.selftest import checks

# Given to `checks.plan`. The short test: shapes of each family, options, the same bits in 20 runs, some values of tanh.
SHORT = dict(checks.FIRST, option_shapes=checks.OPTION_SHAPES[:1], bits_shapes=checks.BITS_SHAPES[:1],
             most_runs=checks.RUNS, sweep=2 ** 16)
FULL: dict = {}
SHORT_SECONDS, FULL_SECONDS = 120, 900  # for a family


def run(report: Callable[[str, List[checks.Result]], None], full: bool = False) -> List[str]:
    """Check all families → those whose process did not come to its end; the GPU may no longer answer then.

    ``report(family, results)`` is called after each task. A family without kernels for this GPU reports nothing.
    """
    ended = []
    for family in checks.EVERY:
        why_not = isolated.run(_check, family, FULL if full else SHORT, first_gpu, report=functools.partial(report, family),
                               seconds=FULL_SECONDS if full else SHORT_SECONDS)
        if why_not:
            report(family, [checks.Result(family, family, why_not, math.inf, 0)])
            ended.append(family)
    return ended


def first_gpu():
    """The first GPU, as CuPy gives it."""
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    return Gpu()


def _check(send, family, plan, make_gpu):
    gpu = make_gpu()
    with gpu.current():
        for task in checks.plan(gpu.device, **plan, among=(family,)):
            try:
                send(checks.run(gpu, [task]))
            except checks.GpuLost as lost:
                send(lost.results)
                raise
