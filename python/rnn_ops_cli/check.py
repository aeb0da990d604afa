"""``rnn-ops check``: are the operators and the kernels right on this machine?

On the CPU the gradient check of one framework, MXNet or PyTorch. On a GPU first the kernels' self-test, which needs neither;
then, where a framework is installed, its gradient check. After MXNet's on a GPU comes the operators' self-test on arrays in
``mx.gpu(0)``, after PyTorch's come PyTorch's own checks.
"""
import collections
import contextlib
import importlib.util
import json
import math
import textwrap
import time

from rnn_ops_timemachine import files
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, check_settings, importing, path


def add_to(commands) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "check", help="check the operators and kernels on this machine", allow_abbrev=False,
        description="Check the operators' gradients. On a GPU also every family of CUDA kernels against float64, each in a "
                    "process of its own. They need neither MXNet nor PyTorch; the parts that do are then left out, and the "
                    "command says so.")
    parser.set_defaults(run=run)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--framework", choices=("mxnet", "torch"),
                        help="whose operators (default: mxnet, or torch where PyTorch alone is installed)")
    parser.add_argument("--full", action="store_true",
                        help="on a GPU: every kernel, shape and option, the same bits in 1,000 runs, compute-sanitizer")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the table to a file as well")


def run(arguments) -> int:
    """0 where everything is within its bound, 1 where something is not or the file could not be written. A `CommandError`
    where nothing could be checked."""
    check_settings()
    if arguments.full and arguments.device == "cpu":
        raise CommandError(USAGE, "error: --full: is for --device cuda; the check on the CPU is the same without it")
    framework, left_out = _framework(arguments.framework, arguments.device)
    kernels = arguments.device == "cuda" and _has_kernels(framework, left_out)
    _check_file(arguments.json)
    import numpy as np

    import rnn_ops
    started, failures = time.time(), 0
    record = {"rnn_ops": rnn_ops.__version__, "numpy": np.__version__, "device": arguments.device}
    if kernels:
        failures += _check_kernels(record, left_out, arguments.full)
    if framework == "torch":
        with _pytorch(arguments.device) as facts:
            failures += _check_gradients("torch", record, *facts)
            failures += _check_by_pytorch(record)
    elif framework == "mxnet":
        with _mxnet(arguments.device) as facts:
            failures += _check_gradients("mxnet", record, *facts)
        if arguments.device == "cuda":
            failures += _check_arrays_on_gpu(record, left_out, arguments.full)
    for sentence in left_out:
        print(_wrapped(f"Left out: {sentence}"), flush=True)
    if arguments.json:
        _write(arguments.json, dict(record, seconds=round(time.time() - started, 1), passed=not failures, left_out=left_out))
    return int(failures > 0)


def _framework(asked, device):
    """("mxnet" or "torch", or None where a GPU is checked without either; sentences about parts left out)

    A framework that was asked for has to work. On a GPU one that was not is left out if it does not.
    """
    installed = {name: importlib.util.find_spec(name) is not None for name in ("mxnet", "torch")}
    name = asked or ("torch" if installed["torch"] and not installed["mxnet"] else "mxnet")
    if name == "torch" and not installed["torch"]:
        raise CommandError(FAILURE, "error: --framework torch: PyTorch is not installed; rnn_ops[torch] brings it")
    try:
        with importing():
            from rnn_ops import gradcheck
            importlib.import_module(gradcheck.FRAMEWORKS[name])
    except CommandError as error:
        if device == "cpu" or asked:
            raise
        title = {"mxnet": "MXNet", "torch": "PyTorch"}[name]
        return None, [f"the operators, since {title} cannot be imported: {str(error)[len('error: '):]}"]
    if name == "torch" and device == "cuda":
        import torch
        if not torch.cuda.is_available():
            reason = f"PyTorch {torch.__version__} finds no GPU that it can use"
            if asked:
                raise CommandError(USAGE, f"error: --device cuda: {reason}")
            return None, [f"the operators: {reason}"]
    return name, []


def _has_kernels(framework, left_out):
    """Whether the kernels alone can be checked on the GPU. If they cannot, PyTorch's operators still may be. A missing GPU is an
    error now, and not after a minute's work, and so is an impossible file."""
    from rnn_ops.backends import cuda
    reason = cuda.why_not()
    if reason and framework != "torch":
        raise CommandError(USAGE, f"error: {reason}")
    if reason:
        left_out.append(f"the kernels alone: {reason}")
    return not reason


def _check_file(file):
    reason = files.why_not_writable(file) if file else None
    if reason:
        raise CommandError(USAGE, f"error: cannot write {file}: {reason}")


def _write(path, record):
    try:
        with files.writing(path) as file:
            file.write(json.dumps(record, indent=1).encode())
    except OSError as error:
        raise CommandError(FAILURE, f"error: cannot write {path}: {error.strerror}") from error


# --- the kernels on a GPU

def _check_kernels(record, left_out, full):
    """The number of failures."""
    import rnn_ops
    from rnn_ops.backends import cuda
    from rnn_ops.backends.cuda.selftest import checks, sanitizer
    from rnn_ops.backends.cuda.selftest import run as selftest
    print(_wrapped(f"rnn_ops {rnn_ops.__version__}, CUDA kernels on {cuda.devices()[0].name} against NumPy in float64; of each "
                   "family the result that is nearest to its bound, and how near:"), flush=True)
    families = {family: [] for family in checks.EVERY}
    failed = []

    def report(family, results):
        families[family] += results
        for result in results:
            if not result.passed:
                failed.append(str(result))
                print(f"FAILED  {result}", flush=True)

    ended = selftest.run(report, full)
    for family, results in families.items():
        print(_family_line(family, results), flush=True)
    record["device"] = cuda.devices()[0].name
    record["kernels"] = {"families": {family: len(results) for family, results in families.items()}, "failed": failed}
    if not full:
        left_out.append("the other shapes, variants and repetitions, and compute-sanitizer: --full does them")
    elif sanitizer.find() is None:
        left_out.append("compute-sanitizer, which is not on the PATH: it comes with the CUDA toolkit")
    else:
        without = [word for family in ended for word in ("--without", family)]
        found = sanitizer.run(lambda line: print(f"compute-sanitizer, {line}", flush=True), lambda: math.inf,
                              lambda found: None, without)
        record["sanitizer"] = found
        failed += [f"{tool}: {what}" for tool, what in found.items() if what != sanitizer.CLEAN]
    return len(failed)


def _family_line(family, results):
    if not results:
        return f"{family:16} no kernel for this GPU"
    passed = sum(result.passed for result in results)
    line = f"{family:16} {passed:5,} of {len(results):5,} right"
    shares = [(result.error / result.bound, result) for result in results if result.bound and math.isfinite(result.error)]
    if shares:
        share, nearest = max(shares, key=lambda pair: pair[0])
        line += f"   {nearest.what} {100 * share:.2g} %"
    return line


# --- the operators

def _check_gradients(framework, record, what, facts):
    """The number of failures. ``what``: a description of what is checked; ``facts``: for the file."""
    import rnn_ops
    from rnn_ops import gradcheck
    started = time.time()
    print(_wrapped(f"rnn_ops {rnn_ops.__version__}, {what}; of each case the tensor that is nearest to its bound, and how near:"))
    rows = gradcheck.check(report=_print_case, framework=framework)
    failed = [row for row in rows if not row.passed]
    print(_table(gradcheck, rows))
    for row in failed:
        print(f"FAILED  {row.case}:\n        {row.comparison}, {row.tensor}: {row.error:.2e} > {row.bound:.2e}")
    print(f"{len(rows)} comparisons in {time.time() - started:.0f} s, {len(failed)} failed", flush=True)
    record.update(facts)
    record["rows"] = [{**row.case._asdict(), "comparison": row.comparison, "tensor": row.tensor,
                       "error": row.error if math.isfinite(row.error) else None,  # JSON has no infinity
                       "bound": row.bound, "passed": row.passed} for row in rows]
    return len(failed)


@contextlib.contextmanager
def _mxnet(device):
    """Inside, MXNet's operators compute on "cpu" or "cuda". Gives a description and facts for the file."""
    from rnn_ops import operators
    from rnn_ops._mxnet import mx
    with _computing_on(device) as computed_on:
        operator = operators.in_use()
        yield (f"{operator} operator, on {computed_on} against its reference in MXNet {mx.__version__}",
               {"mxnet": mx.__version__, "device": computed_on, "operator": operator})


@contextlib.contextmanager
def _computing_on(device):
    """The half of `_mxnet` that is about the device; gives a description of that."""
    import rnn_ops
    from rnn_ops._mxnet import mx
    from rnn_ops.backends import cuda
    if device == "cpu":
        yield "cpu"
        return
    gpu = cuda.devices()[0]
    if gpu.compute_capability < 90 and mx.runtime.Features().is_enabled("CUDA"):
        with mx.gpu(0):  # where new arrays go
            yield f"{gpu.name}, arrays in mx.gpu(0)"
        return
    rnn_ops.use("cuda")  # MXNet has no kernels for it: the reference stays on the CPU
    try:
        yield f"{gpu.name}, arrays in mx.cpu()"
    finally:
        rnn_ops.use("cpu")


@contextlib.contextmanager
def _pytorch(device):
    """The same of PyTorch's."""
    import numpy as np
    import torch
    computed_on = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    with torch.device(device):  # where new tensors go
        yield (f"PyTorch {torch.__version__} operator, on {computed_on} against its reference in NumPy {np.__version__}",
               {"torch": torch.__version__, "device": computed_on})


def _print_case(number, total, case, rows):
    worst = max(rows, key=lambda row: row.error / row.bound)
    verdict = "ok" if all(row.passed for row in rows) else "FAILED"
    print(f"[{number:2d}/{total}] {str(case):46s} {verdict:6s} {worst.tensor:>7s} {100 * worst.error / worst.bound:7.2g} %",
          flush=True)


def _table(gradcheck, rows):
    """The worst relative error of each tensor in each comparison, as text 80 columns wide."""
    from rnn_ops.exactness import FLOAT32_FACTOR, FLOAT32_FLOOR
    widths = [13, 15, 17, 15]
    headings = [textwrap.wrap(comparison, width - 2) for comparison, width in zip(gradcheck.COMPARISONS, widths)]
    lines = [""]
    for number in range(max(map(len, headings))):
        words = (heading[number] if number < len(heading) else "" for heading in headings)
        lines.append(("", "worst relative error")[number == 0].ljust(20)
                     + "".join(word.rjust(width) for word, width in zip(words, widths)))
    for tensor in gradcheck.TENSORS:
        cells = []
        for comparison in gradcheck.COMPARISONS:
            errors = [row.error for row in rows if row.comparison == comparison and row.tensor == tensor]
            cells.append(f"{max(errors):.1e}" if errors else "-")
        lines.append(tensor.ljust(20) + "".join(cell.rjust(width) for cell, width in zip(cells, widths)))
    bounds = [f"{gradcheck.FLOAT64_BOUND:.0e}", f"{gradcheck.DIFFERENCES_BOUND:.0e}", f"{gradcheck.DIFFERENCES_BOUND:.0e}", "*"]
    lines.append("bound".ljust(20) + "".join(bound.rjust(width) for bound, width in zip(bounds, widths)))
    lines.append(f"* {FLOAT32_FACTOR} times the float32 reference's own error + {FLOAT32_FLOOR:.0e}")
    return "\n".join(lines)


def _check_by_pytorch(record):
    """The number of failures."""
    from rnn_ops.torch import selftest
    outcomes = selftest.run()
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"FAILED  {outcome}", flush=True)
    counts = collections.Counter(outcome.check for outcome in outcomes)
    print(f"PyTorch's own checks: {', '.join(f'{count} {name}' for name, count in counts.items())}, {len(failed)} failed",
          flush=True)
    record["pytorch_checks"] = [{"check": outcome.check, **outcome.case._asdict(), "reason": outcome.reason,
                                 "passed": outcome.passed} for outcome in outcomes]
    return len(failed)


def _check_arrays_on_gpu(record, left_out, full):
    """The number of failures."""
    from rnn_ops.backends import cuda
    from rnn_ops.operators import selftest
    reason = selftest.why_not()
    if reason is None and not full and cuda.devices()[0].compute_capability >= 90:
        reason = "MXNet 1.9.1 has no kernels of its own for this GPU; --full checks the operators that need none"
    if reason:
        left_out.append(f"the operators on arrays in mx.gpu(0): {reason}")
        return 0
    print("The operators on arrays in mx.gpu(0):", flush=True)
    outcomes = []

    def report(outcome):
        outcomes.append(outcome)
        if outcome.status == selftest.FAILED:
            print(outcome, flush=True)

    selftest.run(report, selftest.CHECKS if full else selftest.SHORT)
    failed, skipped = (sum(outcome.status == status for outcome in outcomes)
                       for status in (selftest.FAILED, selftest.SKIPPED))
    print(f"{len(outcomes)} checks, {failed} failed, {skipped} skipped", flush=True)
    record["arrays_on_gpu"] = [outcome._asdict() for outcome in outcomes]
    return failed


def _wrapped(text):
    return textwrap.fill(text, 80)
