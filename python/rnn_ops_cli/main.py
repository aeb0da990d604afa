"""The command line, ``rnn-ops``: a module here for each command but ``bench``, whose own is in rnn_ops_benchmarks.

A command imports its modules when it runs: help is instant, and no command fails because another one's modules are missing.
"""
import argparse
import signal
import sys
from typing import Optional, Sequence

from rnn_ops_cli import check, info, launch, sample, train
from rnn_ops_timemachine import hints, streams
from rnn_ops_timemachine.options import SIGNALLED, CommandError, Parser, importing


class _Version(argparse.Action):
    """As argparse's own, except that the package is imported only for it."""

    def __call__(self, parser, *_):
        import rnn_ops
        print(f"{hints.NAME} {rnn_ops.__version__}")
        parser.exit()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : list of str
        The command and its options; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 done; 1 failed on the way; 2 the command or an option cannot be followed; 128 + n ended by signal
        n. If stdout can no longer be written to, 141 if its reader is gone, and else 1; `train` first goes on to its end.
    """
    with streams.prepared():
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return status or streams.closed_status()
        except CommandError as error:
            if str(error):
                streams.complain(str(error))
            return error.status
        except KeyboardInterrupt as interrupt:  # without a number: a Ctrl-C that was not held back
            streams.complain(str(interrupt) or "interrupted")
            return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
        except streams.Closed as closed:
            if closed.status != streams.CLOSED_PIPE:
                streams.complain(f"error: {closed}")
            return closed.status


def _run(argv):
    try:
        if argv[:1] == ["bench"]:  # it has options and help of its own
            with importing():
                from rnn_ops_benchmarks import cli
            return cli.main(argv[1:])
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as end:  # of argparse, after --help and --version
        return end.code or 0


def _parser():
    parser = Parser(prog=" ".join(map(hints.quote, hints.program())),
                    description="Fused recurrent steps for MXNet, and a character model trained with them.")
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                        help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train.add_to(commands)
    launch.add_to(commands)
    sample.add_to(commands)
    check.add_to(commands)
    commands.add_parser("bench", help="measure the operators against others (bench --help says more)")
    info.add_to(commands)
    return parser
