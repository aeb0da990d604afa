"""``python -m benchmarks.gpu.mxnet_gpu``: the operators on MXNet's own GPU arrays: right, in order, lean, how dear.

For a host with mxnet-cu112 and CuPy. Each check of mxnet_checks.py runs in a process of its own: MXNet ends a process where
an exception meets it in a thread of its own, and what one check has broken would be the next one's fault.
"""
import argparse
import datetime
import multiprocessing
import os
import sys

from rnn_ops.backends import cuda

from .. import report
from ..environment import describe

FORMAT = "rnn_ops mxnet gpu 1"
SECONDS = 600  # for one check


def main(argv=None):
    """0; 1 where a check failed; 2 without a GPU, CuPy or MXNet for GPUs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.mxnet_gpu",
        description="Check the CustomOp and the native operator on MXNet arrays in mx.gpu(0): values and gradients against "
                    "float64, every grad_req, calls queued without waiting, 20,000 calls with the device's memory flat; "
                    "time them beside the bare kernels and mx.nd.RNN (cuDNN). Where MXNet has kernels for the GPU (compute "
                    "capability below 9.0), also the tutorial's loop before and after the swap.",
        epilog="Prints a line a check, PASS, FAIL or SKIPPED and why. The result file is written as the work goes on, "
               "marked incomplete until its end. Exit status: 0; 1 where a check failed; 2 without a GPU, CuPy or mxnet-cu112.")
    parser.add_argument("--json", metavar="FILE", default="mxnet-gpu.json", help="the result file (default: %(default)s)")
    options = parser.parse_args(argv)
    reason = why_not()
    if reason:
        print(f"benchmarks.gpu.mxnet_gpu: {reason}.", file=sys.stderr)
        return 2
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # cuDNN computes as we do
    from . import mxnet_checks
    result = {"format": FORMAT, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "complete": False, "gpu": cuda.devices()[0]._asdict(), "environment": describe(), "outcomes": []}
    try:
        report.write_json(result, options.json)  # before minutes of work, not after
    except OSError as error:
        parser.error(f"--json: cannot write {options.json}: {error.strerror}")
    return work(result, options.json, mxnet_checks.CHECKS, mxnet_checks.gpu, in_a_process)


def why_not():
    """Why nothing can be checked here, as a sentence; None where it can."""
    reason = cuda.why_not()
    if reason:
        return reason
    try:
        from rnn_ops._mxnet import mx
    except ImportError as error:
        return str(error).rstrip(".")
    if mx.context.num_gpus() == 0:
        return f"this MXNet {mx.__version__} finds no GPU: it needs to be mxnet-cu112, which rnn_ops[cu112] brings"
    return None


def work(result, path, checks, place, run):
    """Run all checks → exit status.

    ``place()`` makes the Place where ``run(check, place)`` calls ``check(place())`` → list of Outcomes.
    """
    from .mxnet_checks import FAILED
    failed = 0
    for check in checks:
        for outcome in run(check, place):
            print(outcome, flush=True)
            failed += outcome.status == FAILED
            result["outcomes"].append(dict(outcome._asdict(), check=check.__name__))
        report.write_json(result, path)
    result["complete"] = True
    report.write_json(result, path)
    print(f"{len(result['outcomes'])} checks, {failed} failed. Written: {path}")
    return int(failed > 0)


def in_a_process(check, place, seconds=None):
    """As `work` wants it, with all that the check does in a process that ends with it."""
    from .mxnet_checks import FAILED, Outcome
    context = multiprocessing.get_context("spawn")  # CUDA and MXNet are not made for forked ones
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, check, place))
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS if seconds is None else seconds):
            return ours.recv()
        why = "did not end in time"
    except EOFError:
        process.join()
        why = f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        ours.close()
    return [Outcome(check.__name__, FAILED, why)]


def _answer(connection, check, place):
    connection.send(check(place()))
    connection.close()


if __name__ == "__main__":
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a locale that lacks × or µ must not end a run
    sys.exit(main())
