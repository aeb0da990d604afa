"""The same providers and problems under pytest-benchmark, to hold one commit against another:

    pytest benchmarks/bench_recurrence.py -k "kernel or native" --benchmark-autosave
    pytest benchmarks/bench_recurrence.py -k "kernel or native" --benchmark-compare

All that is selected runs in pytest's own process, one after the other; to hold one provider against another use
``rnn-ops bench``, which gives each library its own process and interleaves them.
"""
import pytest
from rnn_ops_benchmarks import measure, problems, worker

_CASES = [pytest.param(problem, provider, mode, id=f"{problem.name}-{mode}-{provider.name}".replace("×", "x"))
          for stage in measure.stages(problems.SHAPES) for provider, problem in stage.members for mode in problem.modes]


@pytest.mark.parametrize("problem, provider_class, mode", _CASES)
def test_speed(benchmark, problem, provider_class, mode):
    try:
        provider, known = worker.prepare(provider_class, problem)
    except ImportError as error:
        pytest.skip(str(error))
    if mode not in provider.calls:
        pytest.skip(provider.lacks[mode])
    benchmark.group = f"{problem.name}, {mode}"
    benchmark.extra_info.update(about=known["about"], error=known["errors"][mode], flops=problem.flops(mode))
    benchmark(provider.calls[mode])
