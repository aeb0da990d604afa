"""``rnn-ops bench``: measure, show the tables, write what was asked for."""
import argparse
import contextlib
import functools
import importlib
import importlib.util
import os
import sys

from rnn_ops_timemachine import files, hints, streams
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, Parser, check_settings, importing, path, positive

from . import chart, grid, heatmap, ladder, measure, problems, providers, report
from .environment import Others, describe
from .worker import FAILED, Workers

_OPTIONS = {"quick": "--quick", "rounds": "--rounds", "shapes": "--shape", "grid": "--grid", "packages": "--packages",
            "json": "--json", "png": "--png", "markdown": "--markdown", "result": "--from", "profile": "--profile",
            "ladder": "--ladder"}
_NOT_USED = {"profile": list(_OPTIONS), "ladder": [name for name in _OPTIONS if name != "rounds"],
             "result": ["quick", "rounds", "shapes", "grid", "packages"], "grid": ["quick"]}  # beside these options


def main(argv=None):
    """Run the benchmark; 0, 1 if any provider gave a wrong result or broke. What cannot be is a `CommandError`."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    if options.profile or options.ladder:
        check_settings()
        with importing():
            importlib.import_module("rnn_ops.operators")  # and MXNet, which the others can do without
        return _profile() if options.profile else ladder.run(options.rounds or 10)
    if options.result:
        try:
            result = report.read_json(options.result)
            tables = _tables(result, options)
        except OSError as error:
            parser.error(f"--from: cannot read {options.result}: {error.strerror}")
        except report.OtherFormat as error:
            parser.error(f"--from: {error}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            parser.error(f"--from: {options.result} is damaged or not a result of rnn-ops bench ({error})")
    else:
        check_settings()
        result = _measure(options)
        tables = _tables(result, options)
    with _failing("write", options.json):
        if options.json:  # before stdout, which may fail too
            report.write_json(result, options.json)
    print(tables, end="")
    with _failing("draw", options.png):
        if options.png:
            _shower(result, chart, heatmap).draw(result, options.png)
    return int(any(row["status"] == FAILED for row in result["rows"]))


def _profile():
    from . import profile
    print(profile.table(problems.TUTORIAL, *profile.profile(problems.TUTORIAL)), end="")
    return 0


def _check(parser, options):
    """See before anything is measured that every option counts and that the files can be written."""
    for one, others in _NOT_USED.items():
        unused = [_OPTIONS[name] for name in others if name != one and getattr(options, name)]
        if getattr(options, one) and unused:
            parser.error(f"{', '.join(unused)}: not used by {_OPTIONS[one]}")
    if options.packages and not os.path.isdir(options.packages):
        parser.error(f"--packages: {options.packages} is no folder")
    for path in filter(None, (options.json, options.png)):
        reason = files.why_not_writable(path)
        if reason:
            parser.error(f"cannot write {path}: {reason}")
    if options.png and not importlib.util.find_spec("matplotlib"):
        parser.error("the chart needs matplotlib, which rnn_ops[bench] brings")


def _tables(result, options):
    tables = _shower(result, report, grid)
    return tables.results_table(result) if options.markdown else tables.screen(result)


def _shower(result, of_stages, of_a_grid):
    return of_a_grid if result["kind"] == report.GRID else of_stages


@contextlib.contextmanager
def _failing(what, path):
    """Turn whatever keeps a file from being made into a line: what was measured has been shown or comes yet."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise CommandError(FAILURE, f"error: cannot {what} {path}: {reason}") from error


def _parser():
    parser = Parser(
        prog=hints.command("bench"), allow_abbrev=False,
        description="Time the recurrence and the whole training step: our kernel and operators, MXNet, PyTorch, JAX, onnxruntime "
                    "and NumPy, in processes of their own and interleaved rounds, and the processor's peak beside them. About "
                    "5 minutes on an idle machine with 2 cores.")
    parser.add_argument("--quick", action="store_true",
                        help="the tutorial's shape alone, in 3 short rounds: under half a minute, and rougher")
    parser.add_argument("--rounds", type=positive, help="rounds over all providers (default: 10, with --quick 3, with --grid 2)")
    parser.add_argument("--shape", type=_shape, action="append", dest="shapes", metavar="T,B,I,H[:dense|:tokens]",
                        help="measure this shape instead (repeatable); with :dense the input is floats, else tokens. "
                             "The training step is that of the first shape with tokens")
    parser.add_argument("--grid", action="store_true",
                        help=f"measure {len(problems.GRID)} shapes, or those of --shape, with both inputs: our kernel and our "
                             "operator against the best peer in each. About a quarter of an hour")
    parser.add_argument("--packages", type=path, metavar="DIR",
                        help="a folder made by 'pip install --target DIR jax onnxruntime': what is there is taken before what is "
                             "installed, in the processes of JAX, onnxruntime and PyTorch alone. The newest JAX needs a newer "
                             "NumPy than MXNet can have")
    parser.add_argument("--json", type=path, metavar="FILE", help="write every figure and the environment")
    parser.add_argument("--png", type=path, metavar="FILE", help="draw a chart")
    parser.add_argument("--markdown", action="store_true", help="print the README's tables instead of the screen's")
    parser.add_argument("--profile", action="store_true",
                        help="instead of comparing, show where the time of our training step goes, operator by operator")
    parser.add_argument("--ladder", action="store_true",
                        help="instead, time the tutorial's own training step, and what each edit from it to ours brings")
    parser.add_argument("--from", type=path, dest="result", metavar="FILE", help="show this JSON file instead of measuring")
    return parser


def _measure(options):
    shapes = options.shapes or ((problems.TUTORIAL,) if options.quick else problems.SHAPES)
    rounds, seconds = options.rounds or 10, 0.06
    if options.quick:
        rounds, seconds = options.rounds or 3, 0.03
    if options.grid:
        sizes = dict.fromkeys(shape[:4] for shape in options.shapes) if options.shapes else problems.GRID
        rounds, seconds, stages = options.rounds or 2, 0.05, lambda: measure.grid_stages(sizes)
    else:
        stages = lambda: measure.stages(shapes)  # noqa: E731
    count, environment = _count(stages, shapes), describe()
    if (environment["load"] or 0) > 0.5:
        streams.complain(f"note: other programs kept {environment['load']:.1f} processors busy in the last minute; the figures "
                         "are good on an idle machine only")
    rows, others = [], Others()
    with Workers(options.packages, providers.OTHERS) as workers:
        for number, stage in enumerate(stages(), 1):
            rows += measure.measure(stage, workers, rounds, seconds, functools.partial(_progress, f"{number} of {count}: "))
    environment["others"] = others.share()
    return report.make_result(rows, rounds, seconds, environment, report.GRID if options.grid else report.STAGES)


def _count(stages, shapes):
    """How many stages there are. Their inputs are made, one after the other: shapes that are too large for that are refused."""
    with importing():
        importlib.import_module("rnn_ops.backends.cpu")  # whose multiply-adds are the peak
    try:
        return sum(1 for _ in stages())
    except (MemoryError, ValueError, OverflowError) as error:  # NumPy's for what no memory and what no array could hold
        raise CommandError(USAGE, f"error: --shape: {', '.join(map(str, shapes))}: too large for this machine "
                                  f"({error or type(error).__name__})") from error


def _progress(number, rounds, description):
    """A bar on a terminal that goes away again, where tqdm is installed; else one line."""
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm
        return tqdm(rounds, desc=number + description, unit="round", leave=False)
    print(f"measuring {number}{description}, {len(rounds)} rounds", file=sys.stderr)
    return rounds


def _shape(text):
    try:
        return problems.Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
