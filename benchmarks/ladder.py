"""``rnn-ops bench --ladder``: how much each edit on the way from the tutorial's loop to ours brings, as a table."""
import textwrap

from . import measure, problems, report, trainers
from .environment import describe
from .measure import FLOOR
from .providers import Row
from .worker import FAILED, OK, Workers

_WIDTH = 80
_SECONDS = 0.2  # of one turn


class _Trainer(trainers.Tutorial):
    """The tutorial's training step with the loss of a rung."""

    def __init__(self, problem, number):
        super().__init__(problem)
        from .rungs import RUNGS
        rung, V = RUNGS[number], problem.shape.I
        self._compute = rung.make(V)
        self.batches = [rung.batch(*(self.mx.nd.array(a, dtype="int32") for a in batch), V)
                        for batch in zip(problem.tokens, problem.labels)]

    def _loss(self, inputs, labels):
        return self._compute(inputs, labels, self.state, self.parameters)


def run(rounds=10):
    """Measure and print the table; 0, 1 if a rung gave a wrong result or broke. An ImportError says that MXNet or our kernels
    are missing."""
    environment = describe()
    rows = measure_rungs(problems.TUTORIAL, rounds, _SECONDS)
    T, B, V, H, _ = problems.TUTORIAL
    load = "" if environment["load"] is None else f"; load before: {environment['load']:.1f}"
    result = report.make_result(rows, rounds, _SECONDS, environment)
    print(textwrap.fill(f"Training step at T={T}, B={B}, V={V}, H={H}, float32, interleaved rounds: {rounds}. "
                        f"{report.environment_line(result)}{load}.", _WIDTH))
    print(f"\n{table(rows)}", end="")
    return int(any(row["status"] == FAILED for row in rows))


def measure_rungs(shape, rounds, seconds):
    """Rows as measure.py makes them: the yardsticks', the floor's, one a rung. An ImportError says that MXNet or our kernels are
    missing."""
    from .rungs import RUNGS
    timed = tuple(Row(f"{number} {rung.name}", trainers.Tutorial.process, trainers.Tutorial.packages, _Trainer, (number,))
                  for number, rung in enumerate(RUNGS))
    problem = problems.TrainingStep(shape)
    stage = measure.Stage(problem.name, tuple((rung, problem) for rung in timed))
    with Workers() as workers:
        return measure.measure(stage, workers, rounds, seconds, lambda rounds, _: rounds)


def table(rows):
    """Markdown that can be read as it is: best and median, and how many times as fast as the first rung's the median is.
    Below it why rungs were not timed."""
    rungs = [row for row in rows if row["direction"] == problems.TRAINING and row["provider"] != FLOOR]
    rungs += [row for row in rows if row["provider"] == FLOOR]
    first = rungs[0].get("median")
    cells = [("rung", "best, ms", "median, ms", "times as fast")]
    for row in rungs:
        figures = ("", "", row["status"])
        if row["status"] == OK:
            figures = (*(report.digits(1e3 * row[name]) for name in ("best", "median")),
                       f"{first / row['median']:.1f}" if first else "")
        cells.append((row["provider"], *figures))
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, (f":{'-' * (widths[0] - 1)}", *("-" * (width - 1) + ":" for width in widths[1:])))
    lines = [f"| {name:<{widths[0]}} | " + " | ".join(map(str.rjust, others, widths[1:])) + " |" for name, *others in cells]
    reasons = {}
    for row in rungs:
        if row["status"] != OK:
            reasons.setdefault(row["reason"], []).append(row["provider"])
    for reason, names in reasons.items():
        lines += ["", *textwrap.wrap(f"{', '.join(names)}: {reason}", _WIDTH)]
    return "\n".join(lines) + "\n"
