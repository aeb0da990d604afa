"""``python -m rnn_ops_benchmarks.call_cost``: the time that a call adds to the kernel, measured on tiny arrays.

Each provider's time less that of the bare C functions, whose arguments are prepared once. All take turns, as in every benchmark
here: best is the difference of best calls, median that of the differences within each round.
"""
import numpy as np

from rnn_ops_timemachine.options import Parser, check_settings, positive, run_as_program

from . import measure, providers, report
from .problems import BOTH, FORWARD, Sequence, Shape
from .worker import FAILED, OK, Workers

SHAPES = (Shape(2, 2, 4, 8, tokens=False), Shape(2, 2, 4, 8, tokens=True))
_SECONDS = 0.02  # of one turn: hundreds of calls


class Bare(providers.Kernel):
    """The C functions."""
    name = "bare"

    def __init__(self, problem):
        super().__init__(problem)
        from rnn_ops.backends import codes, cpu
        self._library, tokens = cpu._library, problem.shape.tokens
        arrays = [problem.inputs, problem.state, problem.Wxh, problem.Whh, problem.bh, self.outputs, problem.doutputs]
        self._arrays = arrays = [np.ascontiguousarray(array) for array in arrays]  # the arguments have addresses alone
        inputs, state, Wxh, Whh, bh, outputs, doutputs = (array.ctypes.data for array in arrays)
        sizes = (*problem.shape[:4], codes.DTYPES[problem.state.dtype], codes.ACTIVATIONS["tanh"])
        first = (inputs, None) if tokens else (None, inputs)
        self._da = np.empty_like(self.outputs)
        written = [self.gradients[name].ctypes.data if name in self.gradients else None
                   for name in ("dinputs", "dstate", "dWxh", "dWhh", "dbh")]
        self._forward_args = cpu._ForwardArgs(*sizes, *first, state, Wxh, Whh, bh, outputs)
        self._backward_args = cpu._BackwardArgs(*sizes, *first, state, Wxh, Whh, outputs, doutputs, None, self._da.ctypes.data,
                                                *written)

    def _forward(self):
        self._library.rnn_cpu_forward(self._forward_args)

    def _forward_backward(self):
        self._library.rnn_cpu_forward(self._forward_args)
        self._library.rnn_cpu_backward(self._backward_args)


TIMED = (Bare, providers.Kernel, providers.OurTorchSequence, providers.OurTorchRNN, providers.TorchRNN, providers.Public,
         providers.OurGluon)


def rows(shape, rounds):
    """Rows as measure.py makes them, and in those that were timed ``over_bare``: (best, median) in seconds."""
    problem = Sequence(shape)
    with Workers() as workers:
        found = measure.measure(measure.Stage(problem.name, tuple((provider, problem) for provider in TIMED), yardsticks=False),
                                workers, rounds, _SECONDS, lambda its, _: its)
    add_differences(found)
    return found


def add_differences(found):
    """``over_bare`` of each row that was timed."""
    bare = {row["direction"]: row for row in found if row["provider"] == Bare.name and row["status"] == OK}
    for row in found:
        if row["status"] == OK and row["direction"] in bare:
            base = bare[row["direction"]]
            row["over_bare"] = (row["best"] - base["best"], float(np.median(np.subtract(row["turns"], base["turns"]))))


def table(found):
    """Markdown: µs over the bare functions; of those their own time. Below it why providers were not timed."""
    lines, notes = [], []
    for name in dict.fromkeys(row["provider"] for row in found):
        its, cells = {row["direction"]: row for row in found if row["provider"] == name}, [name]
        for direction in (FORWARD, BOTH):
            row = its[direction]
            if name == Bare.name and row["status"] == OK:
                cells += [f"{1e6 * row[key]:.1f}" for key in ("best", "median")]
            else:
                cells += [f"{1e6 * seconds:+.1f}" for seconds in row.get("over_bare", ())] or ["", ""]
        lines.append(cells)
        notes += [f"- {name}: {report.why(row, 100)}" for row in list(its.values())[:1] if row["status"] != OK]
    header = [f"{found[0]['stage']}: µs over the bare C functions", f"{FORWARD}, best", "median", f"{BOTH}, best", "median"]
    return "\n".join([*report.markdown_table([header, *lines]), *([""] * bool(notes)), *notes])


def main(arguments=None):
    """0, 1 if a provider gave a wrong result or broke."""
    parser = Parser(prog=f"python -m {__package__}.call_cost", allow_abbrev=False,
                    description="The time that a call adds to the kernel, with PyTorch and with MXNet. Half a minute.")
    parser.add_argument("--rounds", type=positive, default=20, help="over all providers (default %(default)s)")
    options = parser.parse_args(arguments)
    check_settings()
    failed = False
    for shape in SHAPES:
        found = rows(shape, options.rounds)
        failed |= any(row["status"] == FAILED for row in found)
        print(f"{table(found)}\n")
    return int(failed)


if __name__ == "__main__":
    run_as_program(main)
