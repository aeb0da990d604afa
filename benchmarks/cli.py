"""``rnn-ops bench``: measure, show the tables, write what was asked for."""
import argparse
import importlib.util
import os
import sys

from . import chart, measure, problems, report
from .environment import describe
from .worker import FAILED, Workers


def main(argv=None):
    """Run the benchmark; 0, 1 if any provider gave a wrong result or broke, 130 if interrupted."""
    parser = _parser()
    options = parser.parse_args(argv)
    for path in filter(None, (options.json, options.png)):
        if not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            parser.error(f"cannot write {path}: its folder does not exist or is not writable")
    if options.png and not importlib.util.find_spec("matplotlib"):
        parser.error("the chart needs matplotlib: pip install 'rnn_ops[bench]'")
    if options.profile:
        from . import profile
        print(profile.table(problems.TUTORIAL, *profile.profile(problems.TUTORIAL)), end="")
        return 0
    if options.result:
        try:
            result = report.read_json(options.result)
        except (OSError, ValueError) as error:
            parser.error(f"--from: {error}")
    else:
        try:
            result = _measure(options)
        except KeyboardInterrupt:
            print("rnn-ops bench: interrupted", file=sys.stderr)
            return 130
    print(report.results_table(result) if options.markdown else report.screen(result), end="")
    if options.json:
        report.write_json(result, options.json)
    if options.png:
        chart.draw(result, options.png)
    return int(any(row["status"] == FAILED for row in result["rows"]))


def _parser():
    parser = argparse.ArgumentParser(
        prog="rnn-ops bench",
        description="Time the recurrence and the whole training step: our kernel and operators, MXNet, PyTorch and "
                    "NumPy, in processes of their own and interleaved rounds. About 4 minutes on an idle machine with "
                    "2 cores.")
    parser.add_argument("--quick", action="store_true",
                        help="the tutorial's shape alone, in 3 short rounds: under half a minute, and rougher")
    parser.add_argument("--rounds", type=positive, help="rounds over all providers (default: 10, with --quick 3)")
    parser.add_argument("--shape", type=_shape, action="append", dest="shapes", metavar="TxBxIxH[:dense]",
                        help="measure this shape instead (repeatable); with :dense the input is floats, not tokens. "
                             "The training step is that of the first shape with tokens")
    parser.add_argument("--json", metavar="FILE", help="write every figure and the environment")
    parser.add_argument("--png", metavar="FILE", help="draw a chart")
    parser.add_argument("--markdown", action="store_true", help="print the README's tables instead of the screen's")
    parser.add_argument("--profile", action="store_true",
                        help="instead of comparing, show where the time of our training step goes, operator by operator")
    parser.add_argument("--from", dest="result", metavar="FILE", help="show this JSON file instead of measuring")
    return parser


def _measure(options):
    shapes = options.shapes or ((problems.TUTORIAL,) if options.quick else problems.SHAPES)
    rounds = options.rounds or (3 if options.quick else 10)
    seconds = 0.03 if options.quick else 0.06
    environment = describe()
    if (environment["load"] or 0) > 0.5:
        print(f"note: other programs kept {environment['load']:.1f} processors busy in the last minute; the figures "
              "are good on an idle machine only", file=sys.stderr)
    rows = []
    with Workers() as workers:
        for stage in measure.stages(shapes):
            rows += measure.measure(stage, workers, rounds, seconds, _progress)
    return report.make_result(rows, rounds, seconds, environment)


def _progress(rounds, description):
    """A bar on a terminal that goes away again, where tqdm is installed; else one line."""
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm
        return tqdm(rounds, desc=description, unit="round", leave=False)
    print(f"measuring {description}, {len(rounds)} rounds", file=sys.stderr)
    return rounds


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _shape(text):
    try:
        return problems.Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
