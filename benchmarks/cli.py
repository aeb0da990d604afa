"""``rnn-ops bench``: measure, show the tables, write files. gpu_run.py does the runs on a GPU."""
import argparse
import contextlib
import functools
import importlib
import importlib.util
import os
import sys

from rnn_ops_timemachine import files, hints, streams
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, Parser, check_settings, importing, path, positive

from . import chart, gpu_parts, gpu_report, gpu_run, grid, heatmap, ladder, measure, problems, providers, report
from .environment import Others, describe
from .worker import FAILED, Workers

_OPTIONS = {"quick": "--quick", "rounds": "--rounds", "shapes": "--shape", "grid": "--grid", "packages": "--packages",
            "json": "--json", "png": "--png", "markdown": "--markdown", "result": "--from", "profile": "--profile",
            "ladder": "--ladder"}
_CUDA_OPTIONS = {"minutes": "--minutes", "out": "--out", "only": "--only", "report": "--report", "rehearse": "--rehearse",
                 "architecture": "--architecture"}
# Of the processes that do the parts, and of the tests: what each option is where it is not given.
_PART_OPTIONS = {"part": None, "seconds": 3600, "gpu": gpu_run.GPU, "sizes": "full", "without": ()}
_NAMES = {**_OPTIONS, **_CUDA_OPTIONS, **{name: f"--{name}" for name in _PART_OPTIONS}, "providers": "--provider"}
_MEASURES = ["quick", "rounds", "shapes", "grid", "packages", "providers"]
# Option: the options that it has no use for.
_NOT_USED = {"profile": [*_OPTIONS, "providers"], "ladder": [name for name in (*_OPTIONS, "providers") if name != "rounds"],
             "result": _MEASURES, "grid": ["quick"],
             "report": ["minutes", "out", "only", "rehearse", "architecture", "providers", *_PART_OPTIONS],
             "rehearse": ["minutes", "out", "only", "providers", *_PART_OPTIONS]}
# Option: the one that it is for.
_NEEDS = {"architecture": "rehearse", "seconds": "part", "without": "part"}
_SHOWN = {report.STAGES: (report.screen, report.results_table, lambda *result_and_path: chart.draw(*result_and_path)),
          report.GRID: (grid.screen, grid.results_table, heatmap.draw_grid),
          report.GPU: (gpu_report.screen, gpu_report.markdown, heatmap.draw_gpu)}  # of each kind: screen, README, picture


def main(argv=None, prog=None):
    """Run the benchmark; 0, 1 if any provider gave a wrong result or broke. A mistake in the options is a `CommandError`."""
    parser = _parser(prog or hints.command("bench"))
    options = parser.parse_args(argv)
    _check(parser, options)
    for name, default in _PART_OPTIONS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.device == "cuda":
        return _on_a_gpu(parser, options)
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
            _SHOWN[result["kind"]][2](result, options.png)
    return int(any(row["status"] == FAILED for row in result["rows"]))


def _on_a_gpu(parser, options):
    if options.part:  # a process of a run, which ends here
        gpu_run.do_part(options)
    if options.rehearse:
        from . import rehearsal
        return rehearsal.main(options.architecture or 90)
    option, folder = ("--report", options.report) if options.report else ("--out", options.out or "gpu-results")
    try:
        if options.report:
            return gpu_run.rebuild(folder)
        providers = [f"{one.__module__}:{one.__qualname__}" for one in options.providers or ()]
        return gpu_run.main(folder, options.minutes, options.only, options.gpu, options.sizes, providers)
    except OSError as error:
        parser.error(f"{option}: cannot write {folder}: {error.strerror or error}")


def _profile():
    from . import profile
    print(profile.table(problems.TUTORIAL, *profile.profile(problems.TUTORIAL)), end="")
    return 0


def _check(parser, options):
    """See before anything is measured that every option counts and that the files can be written."""
    def refuse(names, why):
        given = [_NAMES[name] for name in names if getattr(options, name) != parser.get_default(name)]
        if given:
            parser.error(f"{', '.join(given)}: {why}")

    if options.device == "cuda":
        refuse(_OPTIONS, "not used by --device cuda")
    else:
        refuse([*_CUDA_OPTIONS, *_PART_OPTIONS], "needs --device cuda")
    for one, others in _NOT_USED.items():
        if getattr(options, one):
            refuse([name for name in others if name != one], f"not used by {_NAMES[one]}")
    for one, other in _NEEDS.items():
        if not getattr(options, other):
            refuse([one], f"needs {_NAMES[other]}")
    if options.packages and not os.path.isdir(options.packages):
        parser.error(f"--packages: {options.packages} is no folder")
    for file in filter(None, (options.json, options.png)):
        reason = files.why_not_writable(file)
        if reason:
            parser.error(f"cannot write {file}: {reason}")
    if options.png and not importlib.util.find_spec("matplotlib"):
        parser.error("the chart needs matplotlib, which rnn_ops[bench] brings")


def _tables(result, options):
    screen, readme, _ = _SHOWN[result["kind"]]
    return readme(result) if options.markdown else screen(result)


@contextlib.contextmanager
def _failing(what, path):
    """Turn whatever keeps a file from being made into a line: the figures have been shown, or come next."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise CommandError(FAILURE, f"error: cannot {what} {path}: {reason}") from error


def _parser(prog):
    parser = Parser(
        prog=prog, allow_abbrev=False,
        description="Time the recurrence and the whole training step: our kernel and operators, MXNet, PyTorch, JAX, onnxruntime "
                    "and NumPy, in processes of their own and interleaved rounds, and the processor's peak beside them. Some "
                    "four minutes on an idle machine with 2 cores. With --device cuda: check the kernels on a GPU, then time "
                    "them.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--provider", type=_provider, action="append", dest="providers", metavar="MODULE:CLASS",
                        help="time your own as well (repeatable): a class as rnn_ops_benchmarks.providers.Provider describes it, "
                             "on a GPU gpu_providers.GpuProvider")
    parser.add_argument("--from", type=path, dest="result", metavar="FILE",
                        help="show this result file, of either device, instead of measuring")
    parser.add_argument("--json", type=path, metavar="FILE", help="write every figure and the environment")
    parser.add_argument("--png", type=path, metavar="FILE", help="draw a chart")
    parser.add_argument("--markdown", action="store_true", help="print the README's tables instead of the screen's")

    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument("--quick", action="store_true",
                     help="the tutorial's shape alone, in 3 short rounds: under half a minute, and rougher")
    cpu.add_argument("--rounds", type=positive, help="rounds over all providers (default: 10, with --quick 3, with --grid 2)")
    cpu.add_argument("--shape", type=_shape, action="append", dest="shapes", metavar="T,B,I,H[:dense|:tokens]",
                     help="measure this shape instead (repeatable); with :dense the input is floats, else tokens. "
                          "The training step is that of the first shape with tokens")
    cpu.add_argument("--grid", action="store_true",
                     help=f"measure {len(problems.GRID)} shapes, or those of --shape, with both inputs: our kernel and our "
                          "operator against the best peer in each. Some ten minutes")
    cpu.add_argument("--packages", type=path, metavar="DIR",
                     help="a folder made by 'pip install --target DIR jax onnxruntime': the processes of JAX, onnxruntime and "
                          "PyTorch take packages from there first. The newest JAX needs a newer NumPy than MXNet can have")
    cpu.add_argument("--profile", action="store_true",
                     help="instead of comparing, show where the time of our training step goes, operator by operator")
    cpu.add_argument("--ladder", action="store_true",
                     help="instead, time the tutorial's own training step, and how much each edit from it to ours brings")

    cuda = parser.add_argument_group(
        "on a GPU",
        "Needs compute capability 7.0 or more and CuPy, not MXNet. Checks every CUDA kernel against float64, times them "
        "beside one another, the floor and, where PyTorch is installed, torch.nn.RNN (cuDNN), measures st.async and "
        "barriers, does the tutorial's 2,000 epochs. In parts, the most important first, each in a process of its own "
        "with an end: a part that hangs or crashes costs itself only. Says at the start which parts will be done and "
        "which are left out. Results are written the moment they are there; another call with the same folder goes on "
        "where this one ends. Exit status: 0; 1 if something was wrong or a part did not end by itself; 2 if nothing "
        "could begin; 130 when interrupted. CUDA_VISIBLE_DEVICES picks the GPU, RNN_OPS_CACHE the folder of compiled "
        "kernels, RNN_OPS_DATA that of the book.")
    cuda.add_argument("--minutes", type=_minutes, metavar="N", help="do what fits into so many (default: everything)")
    cuda.add_argument("--out", type=path, metavar="DIR", help="the folder of the results (default: gpu-results)")
    cuda.add_argument("--only", nargs="+", metavar="PART", choices=gpu_parts.NAMES,
                      help=f"these parts alone, anew: {', '.join(gpu_parts.NAMES)}")
    cuda.add_argument("--report", type=path, metavar="DIR", help="rebuild tables and chart from a folder; needs no GPU")
    cuda.add_argument("--rehearse", action="store_true",
                      help="all that a run does except the launches; needs no GPU. Prints a table; status 1 if something is off")
    cuda.add_argument("--architecture", type=int, choices=(70, 75, 80, 86, 89, 90), metavar="SM",
                      help="for which --rehearse compiles (default: 90)")
    for name, more in {**dict.fromkeys(_PART_OPTIONS, {}), "seconds": {"type": float}, "sizes": {"choices": gpu_parts.SIZES},
                       "without": {"action": "append"}}.items():
        parser.add_argument(_NAMES[name], help=argparse.SUPPRESS, **more)
    return parser


def _measure(options):
    shapes = options.shapes or ((problems.TUTORIAL,) if options.quick else problems.SHAPES)
    rounds, seconds, more = options.rounds or 10, 0.06, options.providers or ()
    if options.quick:
        rounds, seconds = options.rounds or 3, 0.03
    if options.grid:
        sizes = dict.fromkeys(shape[:4] for shape in options.shapes) if options.shapes else problems.GRID
        rounds, seconds, stages = options.rounds or 2, 0.05, lambda: measure.grid_stages(sizes, more)
    else:
        stages = lambda: measure.stages(shapes, more)  # noqa: E731
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
    except (MemoryError, ValueError, OverflowError) as error:  # NumPy's, if no memory or no array could hold it
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


def _provider(text):
    """The class that ``module:Class`` names; its module may be in the working directory."""
    module, _, name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the processes of the providers are given this path too
    try:
        found = getattr(importlib.import_module(module), name)
        if found.name in providers.NAMES:
            raise ValueError(f"its name {found.name!r} is taken")
        return found
    except Exception as error:  # whatever that module does
        raise argparse.ArgumentTypeError(f"got {text!r}, needs MODULE:CLASS: {type(error).__name__}: {error}") from None


def _minutes(text):
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text}, needs more than 0")
