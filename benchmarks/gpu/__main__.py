"""``python -m benchmarks.gpu``: check every CUDA kernel, time them beside cuDNN, train → a folder of results."""
import argparse
import os
import sys

from . import parts, run, work
from .folder import Folder


def main(argv=None):
    """0; 1 where something is wrong; 2 where nothing could be begun; 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.part:
        status = work.main(options.part, Folder(options.out), options.machine, options.sizes, options.seconds,
                           options.without)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # whatever libraries do when they are taken down is nobody's result
    if options.rehearse:
        from . import rehearsal
        return rehearsal.main(options.architecture)
    if options.report:
        try:
            return 0 if run.write_report(Folder(options.report)) else 2
        except OSError as error:
            print(f"{__package__}: --report: cannot write {options.report}: {error.strerror or error}", file=sys.stderr)
            return 2
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes: got {options.minutes}, needs more than 0")
    try:
        return run.main(Folder(options.out), options.minutes, options.only, options.machine, options.sizes)
    except OSError as error:
        print(f"{__package__}: --out: cannot write {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",  # `benchmarks.gpu` in a checkout, `rnn_ops_benchmarks.gpu` installed
        description="On a GPU of compute capability 7.0 or more, with CuPy and without MXNet: check every CUDA kernel "
                    "against float64, time them beside one another, the floor and, where PyTorch is installed, "
                    "torch.nn.RNN (cuDNN), measure what nobody has published (st.async, barriers), do the tutorial's 2,000 "
                    "epochs. In parts, the most important first, each in a process of its own with an end: what hangs or "
                    "crashes costs its part.",
        epilog="Says at the start what will be done and what is left out. Results are written to the folder the moment they "
               "are there, and another call with the same folder goes on where this one ends. Exit status: 0; 1 where "
               "something was wrong or a part did not end by itself; 2 where nothing could be begun; 130 when interrupted. "
               "CUDA_VISIBLE_DEVICES picks the GPU, RNN_OPS_CACHE the folder of compiled kernels, RNN_OPS_DATA that of the "
               "book.")
    parser.add_argument("--minutes", type=float, metavar="N", help="do what fits into so many (default: everything)")
    parser.add_argument("--out", metavar="DIR", default="gpu-results",
                        help="the folder of the results (default: gpu-results)")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=parts.NAMES,
                        help=f"these parts alone, anew: {', '.join(parts.NAMES)}")
    parser.add_argument("--report", metavar="DIR", help="rebuild tables and chart from a folder; needs no GPU")
    parser.add_argument("--rehearse", action="store_true",
                        help="all that a run does but for the launches; needs no GPU. Prints a table; status 1 where "
                             "something is off")
    parser.add_argument("--architecture", type=int, default=90, choices=(70, 75, 80, 86, 89, 90), metavar="SM",
                        help="for which --rehearse compiles (default: 90)")
    # Of the processes that do the parts.
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3600, help=argparse.SUPPRESS)
    parser.add_argument("--machine", default=work.DEFAULT_MACHINE, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", default="full", choices=parts.SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="append", default=[], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a locale that lacks × or µ must not end a run
    sys.exit(main())
