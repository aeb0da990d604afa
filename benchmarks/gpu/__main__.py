"""``python -m benchmarks.gpu``: check every CUDA kernel, time them, train → a result file, a chart and Markdown."""
import argparse
import contextlib
import datetime
import importlib
import importlib.util
import os
import re
import sys
import time

import rnn_ops
from rnn_ops.backends import cuda

from .. import report
from ..environment import describe
from . import cells, checks, picture, sanitizer, tables

FORMAT = "rnn_ops gpu 1"
PARTS = ("check", "sanitize", "time", "train")


def main(argv=None):
    """0; 1 if a check failed or a provider gave a wrong result; 2 without a GPU or CuPy; 130 if interrupted."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.only in (None, "time") and not options.sanitized:
        # Before why_not() loads the CUDA libraries that CuPy needs: PyTorch brings others, of the same names.
        with contextlib.suppress(ImportError, OSError):  # told again where it is to be timed
            importlib.import_module("torch")
    reason = cuda.why_not()
    if reason:
        print(f"benchmarks.gpu: {reason}.", file=sys.stderr)
        return 2
    from .machine import Machine
    machine = Machine()
    with machine.current():
        if options.sanitized:
            return _sanitized(machine)
        result = _new_result(machine, options)
        path = options.json or default_path(machine.device.name)
        try:
            report.write_json(result, path)  # before minutes of work, not after
        except OSError as error:
            parser.error(f"--json: cannot write {path}: {error.strerror}")
        print(facts(result))
        status = _work(machine, options, result, path)
        _show(result, path)
        if result["lost"]:
            sys.stdout.flush()
            os._exit(status)  # taking down what hangs in an orderly way would hang too
    return status


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Check every CUDA kernel against float64 (values, gradients, wrong tokens, the same bits in every "
                    "run, tanh), run a part of that under compute-sanitizer where it is on the PATH, then time our "
                    "kernels beside one another, the floor and, where PyTorch is installed, torch.nn.RNN (cuDNN), then "
                    "do the tutorial's whole training, 2,000 epochs, on the GPU. Needs CuPy and a GPU of compute "
                    "capability 7.0 or more, no MXNet. Planned for less than 10 minutes; shows how far it is.",
        epilog="Prints the device, each failure as a line, and Markdown tables. The result file is written as the work "
               "goes on, marked incomplete until its end. Exit status: 0; 1 where a check failed or a result was "
               "wrong; 2 without a GPU or CuPy; 130 when interrupted. CUDA_VISIBLE_DEVICES picks the GPU.")
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--quick", action="store_true",
                        help="a part of the shapes in fewer rounds, 100 epochs, no compute-sanitizer: less than two "
                             "minutes, and rougher")
    parser.add_argument("--all-variants", action="store_true",
                        help="time every variant that could serve a shape, not only the best of each family (at the "
                             "tutorial's shape they all are anyway)")
    parser.add_argument("--json", metavar="FILE",
                        help="the result file (default: benchmarks/results/GPU.json, or GPU.json where there is no "
                             "such folder); the chart lies beside it as PNG, if matplotlib is installed")
    parser.add_argument(sanitizer.OPTION, action="store_true", help=argparse.SUPPRESS)
    return parser


def default_path(name, folder=os.path.join("benchmarks", "results")):
    """A file named after the GPU."""
    file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"
    return os.path.join(folder, file) if os.path.isdir(folder) else file


def facts(result):
    """The device and the versions, a line each."""
    gpu, where = result["gpu"], result["environment"]
    lines = [
        f"{gpu['name']}: compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"{gpu['memory'] / 2 ** 30:.0f} GiB, L2 {gpu['l2_cache'] / 2 ** 20:.0f} MiB",
        f"shared memory: {gpu['shared_memory_per_block'] / 1024:.0f} KiB a block, "
        f"{gpu['shared_memory_per_multiprocessor'] / 1024:.0f} KiB a multiprocessor",
        f"clock: at most {gpu['clock_khz']:,} kHz, just now {gpu['measured_clock_khz']:,} kHz; memory "
        f"{gpu['memory_clock_khz']:,} kHz",
        f"driver {gpu['driver'] or 'unknown'}, for CUDA up to {gpu['cuda_driver']}; CUDA {gpu['cuda_runtime']}; "
        f"CuPy {gpu['cupy']}; rnn_ops {result['rnn_ops']}, commit {where['commit'] or 'unknown'}"]
    return "\n".join(lines)


def summary(results):
    """What the checks found, as lines: each failure, then for each family the result nearest to its bound."""
    lines = [f"FAILED  {result}" for result in results if not result.passed]
    for family, its in _by_family(results).items():
        bounded = [result for result in its if result.bound]
        nearest = max(bounded, key=lambda result: result.error / result.bound, default=None)
        lines.append(f"{family}: {sum(r.passed for r in its):,} of {len(its):,} right" + (
            f"; nearest to its bound, at {100 * nearest.error / nearest.bound:.2g} %: {nearest.case}: {nearest.what}"
            if nearest else ""))
    return "\n".join(lines)


def _by_family(results):
    found = {}
    for result in results:
        found.setdefault(result.family, []).append(result)
    return found


def _new_result(machine, options):
    return {"format": FORMAT, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "complete": False, "lost": None, "gpu": machine.describe(), "environment": describe(),
            "rnn_ops": rnn_ops.__version__, "quick": options.quick, "all_variants": options.all_variants,
            "method": {"dtype": "float32", "units": "seconds of GPU time", "floor": cells.FLOOR}, "checks": None,
            "sanitizer": None, "rows": [], "training": None}


def _work(machine, options, result, path):
    """The parts in their order → exit status."""
    parts = [options.only] if options.only else [p for p in PARTS if not (options.quick and p == "sanitize")]
    status = 0
    try:
        if "check" in parts:
            status |= _check(machine, options, result)
            report.write_json(result, path)
        if "sanitize" in parts:
            result["sanitizer"] = sanitizer.run(print)
            status |= int(any(found != sanitizer.CLEAN for found in (result["sanitizer"] or {}).values()))
            report.write_json(result, path)
        if "time" in parts:
            status |= _time(machine, options, result, path)
        if "train" in parts:
            status |= _train(machine, options, result)
        result["complete"] = True
    except checks.Lost as lost:
        result["lost"] = str(lost)
        print(f"The GPU answers no more, nothing after this was run: {lost}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    report.write_json(result, path)
    return status


def _check(machine, options, result):
    started = time.monotonic()
    tasks = checks.plan(machine.device, **(checks.QUICK if options.quick else {}))
    used = [variant for task in tasks for variant in task.variants]
    results = []
    try:
        machine.compile(used, _show_compiled)
        results = checks.run(machine, tasks, _show_task)
    except checks.Lost as lost:
        results = lost.results
        raise
    finally:
        _progress("")
        result["checks"] = {"seconds": round(time.monotonic() - started, 1), "count": len(results), "tasks": len(tasks),
                            "failed": [str(r) for r in results if not r.passed]}
        print(summary(results))
    print(f"{len(results):,} checks in {time.monotonic() - started:.0f} s, {len(result['checks']['failed'])} failed")
    return int(bool(result["checks"]["failed"]))


def _time(machine, options, result, path):
    from . import timing  # with the providers, which nothing else needs
    rounds, seconds = (7, 3) if options.quick else (25, 8)
    result["method"].update(rounds=rounds, seconds=seconds, turn=timing.TURN)
    every = cells.cells(options.quick)
    used = [variant for cell in every
            for variant in timing.timed_variants(machine.device, cell, options.all_variants)]
    machine.compile(used, _show_compiled)
    for number, cell in enumerate(every, 1):
        _progress(f"timing [{number}/{len(every)}] T = {cell.T}, B = {cell.B}, H = {cell.H}")
        result["rows"] += timing.measure(machine, cell, rounds, seconds, options.all_variants)
        machine.free()
        report.write_json(result, path)
    _progress("")
    wrong = [row for row in result["rows"] if row["status"] == timing.FAILED]
    for row in wrong:
        print(f"FAILED  T = {row['T']}, B = {row['B']}, H = {row['H']}, {row['provider']}, {row['variant']}, "
              f"{row['input']}: {row['reason']}")
    return int(any(row["provider"] == timing.OURS for row in wrong))


def _train(machine, options, result):
    try:
        from timemachine import text
    except ImportError as error:
        print(f"FAILED  training: {error}: install rnn_ops or, in a clone, set PYTHONPATH=python")
        return 1
    from . import training
    epochs = training.QUICK_EPOCHS if options.quick else training.EPOCHS

    def show(number, loss):
        _progress(f"training, epoch {number:,} of {epochs:,}: loss {loss:.4f}")

    _progress("training: checking it")
    try:
        found = training.measure(machine, text.load("timemachine"), epochs, show)
    except checks.Lost:
        raise
    except Exception as error:
        found = {"failed": [f"{type(error).__name__}: {' '.join(str(error).split())}"]}
        checks.see_alive(machine, "training", error)
    _progress("")
    result["training"] = found
    for failed in found["failed"]:
        print(f"FAILED  training: {failed}")
    return int(bool(found["failed"]))


def _show(result, path):
    print()
    print(tables.markdown(result), end="")
    print(f"Written: {path}", file=sys.stderr)
    if not result["rows"]:
        return
    if not importlib.util.find_spec("matplotlib"):
        print("There is no chart: it needs matplotlib, which is not installed.", file=sys.stderr)
        return
    chart = os.path.splitext(path)[0] + ".png"
    picture.draw(result, chart)
    print(f"Written: {chart}", file=sys.stderr)


def _sanitized(machine):
    """What compute-sanitizer is to see: a few kernels, every array an allocation of its own, no guard cells."""
    machine.no_pool()
    tasks = checks.plan(machine.device, **checks.TINY, guard=0)
    machine.compile([variant for task in tasks for variant in task.variants])
    results = checks.run(machine, tasks)
    print(summary(results))
    return int(not all(result.passed for result in results))


def _show_compiled(number, total):
    if number % 10 == 0 or number == total:
        _progress(f"compiling, {number} of {total}")


def _show_task(number, total, task, results):
    if results is None:
        _progress(f"[{number}/{total}] {task.name}")
    else:
        for result in results:
            if not result.passed:
                _progress(f"FAILED  {result}\n")


def _progress(text):
    """A line that the next one replaces, on a terminal; elsewhere a line. Empty: clear it."""
    if sys.stderr.isatty():
        end = "" if not text.endswith("\n") else "\n"
        print(f"\r\033[K{text.rstrip()}", end=end, file=sys.stderr, flush=True)
    elif text:
        print(text.rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
