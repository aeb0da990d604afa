"""The same providers and problems under pytest-benchmark, to compare one commit with another:

    pytest benchmarks/bench_recurrence.py -k "kernel or native" --benchmark-autosave
    pytest benchmarks/bench_recurrence.py -k "kernel or native" --benchmark-compare

All that is selected runs in pytest's own process, one after the other; to compare providers use
``rnn-ops bench``, which gives each library its own process and interleaves them.
"""
import pytest
from rnn_ops_benchmarks import measure, problems, worker

_CASES = [pytest.param(problem, provider, direction, id=f"{problem.name}-{direction}-{provider.name}".replace("×", "x"))
          for stage in measure.stages(problems.SHAPES) for provider, problem in stage.pairs for direction in problem.directions]


@pytest.mark.parametrize("problem, provider, direction", _CASES)
def test_speed(benchmark, problem, provider, direction):
    try:
        made, known = worker.prepare(provider, problem)
    except ImportError as error:
        pytest.skip(str(error))
    if direction not in made.calls:
        pytest.skip(provider.lacks[direction])
    benchmark.group = f"{problem.name}, {direction}"
    benchmark.extra_info.update(about=known["about"], error=known["errors"][direction], flops=problem.flops(direction))
    benchmark(made.calls[direction])
