"""Where the time of our training step goes, as MXNet's own profiler sees it: ``rnn-ops bench --profile``."""
import json
import os
import tempfile
import time

from . import problems
from .report import digits

_BATCHES = 40
_ENGINE = ("WaitForVar", "DeleteVariable", "DeleteOperator")  # the engine's bookkeeping, not operators


def profile(shape):
    """Profile training steps at a shape with tokens.

    Returns
    -------
    operators : dict
        {MXNet's name of the operator: (calls a step, seconds a step)}, the longest first.
    seconds : float
        A whole step, by the clock.
    """
    import rnn_ops
    from rnn_ops._mxnet import mx
    from rnn_ops_timemachine import training
    problem = problems.TrainingStep(shape, _BATCHES)
    tokens, labels = (mx.nd.array(array, dtype="int32") for array in (problem.tokens, problem.labels))
    learner = training.Learner(problem.parameters, rnn_ops.rnn_sequence)

    def steps():
        for _ in learner.train_epoch(tokens, labels, problems.LEARNING_RATE):
            pass

    steps()  # memory is there, threads are awake
    with tempfile.TemporaryDirectory() as folder:
        mx.profiler.set_config(profile_imperative=True, profile_symbolic=True, aggregate_stats=True,
                               filename=os.path.join(folder, "trace.json"))
        mx.profiler.set_state("run")
        try:
            started = time.perf_counter()
            steps()
            seconds = (time.perf_counter() - started) / _BATCHES
        finally:
            mx.profiler.set_state("stop")
        found = json.loads(mx.profiler.dumps(reset=True, format="json"))["Time"]["operator"]
    spent = {name: (row["Count"] / _BATCHES, 1e-3 * row["Total"] / _BATCHES) for name, row in found.items()
             if name not in _ENGINE}
    return dict(sorted(spent.items(), key=lambda item: -item[1][1])), seconds


def table(shape, operators, seconds):
    """`profile`'s findings for a terminal."""
    rows = [(name, f"{calls:.3g}", digits(spent * 1e3), f"{spent / seconds:.0%}")
            for name, (calls, spent) in operators.items()]
    outside = seconds - sum(spent for _, spent in operators.values())
    rows += [("outside of operators", "", digits(max(0, outside) * 1e3), f"{max(0, outside) / seconds:.0%}"),
             ("a whole step", "", digits(seconds * 1e3), "100%")]
    width = max(len(row[0]) for row in rows)
    lines = [f"training step, T×B×V×H = {shape}, mean of {_BATCHES} by MXNet's profiler", "",
             f"{'operator':<{width}}  calls      ms  share", "-" * (width + 22)]
    lines += [f"{name:<{width}}  {calls:>5}  {spent:>6}  {share:>5}" for name, calls, spent, share in rows]
    return "\n".join(lines) + "\n"
