"""``rnn-ops check``: are the operators and the kernels right on this machine?

On the CPU the gradient check. On a GPU first the kernels' self-test, which needs no MXNet; then, where MXNet is installed, the
gradient check, and the operators' self-test on arrays in ``mx.gpu(0)``.
"""
import contextlib
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
                    "process of its own. They need no MXNet; the parts that do are then left out, and the command says so.")
    parser.set_defaults(run=run)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--full", action="store_true",
                        help="on a GPU: every kernel, shape and option, the same bits in 1,000 runs, compute-sanitizer")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the table to a file as well")


def run(arguments) -> int:
    """0 where everything is within its bound, 1 where something is not or the file could not be written. A `CommandError`
    where nothing could be checked."""
    check_settings()
    if arguments.full and arguments.device == "cpu":
        raise CommandError(USAGE, "error: --full: is for --device cuda; the check on the CPU is the same without it")
    gradcheck, left_out = _gradcheck(arguments.device)
    _check_device_and_file(arguments)
    import numpy as np

    import rnn_ops
    started, failures = time.time(), 0
    record = {"rnn_ops": rnn_ops.__version__, "numpy": np.__version__, "device": arguments.device}
    if arguments.device == "cuda":
        failures += _check_kernels(record, left_out, arguments.full)
    if gradcheck:
        failures += _check_gradients(gradcheck, record, arguments.device)
        if arguments.device == "cuda":
            failures += _check_arrays_on_gpu(record, left_out, arguments.full)
    for sentence in left_out:
        print(_wrapped(f"Left out: {sentence}"), flush=True)
    if arguments.json:
        _write(arguments.json, dict(record, seconds=round(time.time() - started, 1), passed=not failures, left_out=left_out))
    return int(failures > 0)


def _gradcheck(device):
    """(the module `rnn_ops.gradcheck`, or None where a GPU is checked without MXNet; sentences about parts left out)"""
    try:
        with importing():
            from rnn_ops import gradcheck
    except CommandError as error:
        if device == "cpu":
            raise
        return None, [f"the operators, since MXNet cannot be imported: {str(error)[len('error: '):]}"]
    return gradcheck, []


def _check_device_and_file(arguments):
    """A missing GPU and an impossible file are errors now, and not after a minute's work."""
    if arguments.device == "cuda":
        from rnn_ops.backends import cuda
        if cuda.why_not():
            raise CommandError(USAGE, f"error: {cuda.why_not()}")
    reason = files.why_not_writable(arguments.json) if arguments.json else None
    if reason:
        raise CommandError(USAGE, f"error: cannot write {arguments.json}: {reason}")


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

def _check_gradients(gradcheck, record, device):
    """The number of failures."""
    import rnn_ops
    from rnn_ops import operators
    from rnn_ops._mxnet import mx
    started = time.time()
    with _computing_on(device) as computed_on:
        operator = operators.in_use()
        print(_wrapped(f"rnn_ops {rnn_ops.__version__}, {operator} operator, on {computed_on} against its reference in MXNet "
                       f"{mx.__version__}; of each case the tensor that is nearest to its bound, and how near:"))
        rows = gradcheck.check(report=_print_case)
    failed = [row for row in rows if not row.passed]
    print(_table(gradcheck, rows))
    for row in failed:
        print(f"FAILED  {row.case}:\n        {row.comparison}, {row.tensor}: {row.error:.2e} > {row.bound:.2e}")
    print(f"{len(rows)} comparisons in {time.time() - started:.0f} s, {len(failed)} failed", flush=True)
    record.update({
        "mxnet": mx.__version__, "device": computed_on, "operator": operator,
        "rows": [{**row.case._asdict(), "comparison": row.comparison, "tensor": row.tensor,
                  "error": row.error if math.isfinite(row.error) else None,  # JSON has no infinity
                  "bound": row.bound, "passed": row.passed} for row in rows]})
    return len(failed)


@contextlib.contextmanager
def _computing_on(device):
    """Inside, the operators compute on "cpu" or "cuda". Gives a description of that."""
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
