"""The command line, ``rnn-ops``: train, sample, check, bench, info.

Modules are imported by the command that needs them, so that help is instant and no command fails for what another one
needs.
"""
import argparse
import signal
import sys

from rnn_ops_timemachine import hints, streams
from rnn_ops_timemachine.options import (
    FAILURE, SIGNALLED, USAGE, CommandError, Parser, check_settings, importing, one_line, path, positive)


class _Version(argparse.Action):
    """As argparse's own, but that the package is imported when it is asked for."""

    def __call__(self, parser, *_):
        import rnn_ops
        print(f"{hints.NAME} {rnn_ops.__version__}")
        parser.exit()


def main(argv=None):
    """Run a command.

    Parameters
    ----------
    argv : list of str
        The command and its options; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 done, 1 failed on the way, 2 asked for something that cannot be, 128 + n ended by signal n. Where
        stdout can no longer be written to, 141 if nobody reads it any more, and else 1; `train` first goes on to its end.
    """
    with streams.prepared():
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return status or streams.lost_status()
        except CommandError as error:
            streams.complain(str(error))
            return error.status
        except KeyboardInterrupt as interrupt:  # without a number: a Ctrl-C that nobody held back
            streams.complain(str(interrupt) or "interrupted")
            return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
        except streams.Lost as lost:
            if lost.status != streams.CLOSED_PIPE:
                streams.complain(f"error: {lost}")
            return lost.status


def _run(argv):
    try:
        if argv[:1] == ["bench"]:  # has options and help of its own
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

    train = commands.add_parser("train", help="train a character model on a book", allow_abbrev=False,
                                argument_default=argparse.SUPPRESS,
                                description="Train a character-level recurrent network on a text, as the tutorial "
                                            "does; the defaults are its own, but for its 2,000 epochs.")
    train.set_defaults(run=_train)
    train.add_argument("--text", type=path, metavar="NAME|FILE", help="timemachine (default), tinyshakespeare, python-topics or "
                                                           "the path of a UTF-8 file")
    train.add_argument("--step", choices=("native", "custom", "gluon", "reference"),
                       help="the recurrence: our native operator (default), our CustomOp in Python, our layer in a Gluon "
                            "network, or the tutorial's ndarray loop")
    train.add_argument("--epochs", type=int, metavar="N", help="train until epoch N (default 15)")
    train.add_argument("--hidden", type=int, metavar="H", help="hidden units (default 256)")
    train.add_argument("--batch-size", type=int, metavar="B", help="rows of a batch (default 32)")
    train.add_argument("--sequence-length", type=int, metavar="T", help="characters of a row (default 64)")
    train.add_argument("--learning-rate", type=float, metavar="LR",
                       help="halved at every 100th epoch (default 0.5); a new one with --resume is that of the next epoch")
    train.add_argument("--seed", type=int, metavar="S", help="of the first parameters and the samples (default 0)")
    train.add_argument("--validation", type=float, metavar="PART",
                       help="part of the text, such as 0.1, to hold out at its end and measure the loss on (default none)")
    train.add_argument("--patience", type=int, metavar="N",
                       help="stop after N epochs without a new minimum of the loss on that part (default never)")
    train.add_argument("--init-from", type=path, metavar="DIR|FILE",
                       help="begin with the parameters of another run, whose symbols must be those of the text or more")
    train.add_argument("--out", type=path, metavar="DIR", help="folder of the run (default runs/<text>-<time>)")
    train.add_argument("--resume", action="store_true", default=False,
                       help="go on with the run in --out, as if it had never stopped; --epochs, --patience and "
                            "--learning-rate may be new")
    train.add_argument("--quiet", action="store_true", default=False,
                       help="print the run's folder alone, at the end, and what goes wrong")

    sample = commands.add_parser("sample", help="let a trained model continue a text", allow_abbrev=False)
    sample.set_defaults(run=_sample)
    sample.add_argument("--checkpoint", type=path, required=True, metavar="DIR|FILE", help="a run's folder or its model.npz")
    sample.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    sample.add_argument("--ignore-unknown", action="store_true",
                        help="leave out characters of the prompt that the model does not know")
    sample.add_argument("--length", type=int, default=512, metavar="N", help="characters to add (default 512)")
    sample.add_argument("--temperature", type=float, default=0.5, metavar="T",
                        help="near 0 always the likeliest character, 1 as trained (default 0.5)")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another text (default 0)")

    check = commands.add_parser("check", help="check the operators' gradients", allow_abbrev=False)
    check.set_defaults(run=_check)
    check.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    check.add_argument("--json", type=path, metavar="FILE", help="write the table to a file as well")

    commands.add_parser("bench", help="measure the operators against others (bench --help says more)")
    info = commands.add_parser("info", help="say what was built and what it runs on", allow_abbrev=False)
    info.set_defaults(run=_info)
    info.add_argument("--batch-size", type=positive, default=32, metavar="B",
                      help="of the shape to choose a CUDA kernel for (default 32)")
    info.add_argument("--hidden", type=positive, default=256, metavar="H", help="hidden units of that shape (default 256)")
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _check(arguments):
    check_settings()
    with importing():
        from rnn_ops import gradcheck
    return gradcheck.main(device=arguments.device, json_path=arguments.json)


def _info(arguments):
    with importing():
        from rnn_ops import info
    return info.main(arguments.batch_size, arguments.hidden, arguments.json)


def _sample(arguments):
    with importing():
        from rnn_ops_timemachine import checkpoint, data, sampling
    with one_line(USAGE, OSError, ValueError):
        model = checkpoint.load(arguments.checkpoint)
        prompt, unknown = arguments.prompt, model.vocabulary.missing(arguments.prompt)
        if unknown and arguments.ignore_unknown:
            prompt = "".join(character for character in prompt if character not in unknown)
            streams.complain(f"prompt: leaves out {data.listed(unknown)}, which the model does not know")
        elif unknown:
            raise ValueError(f"prompt: got {data.listed(unknown)}, not among the {len(model.vocabulary):,} symbols that the "
                             "model knows; --ignore-unknown leaves such characters out")
        pieces = sampling.stream(model.parameters, model.vocabulary, prompt, arguments.length, arguments.temperature,
                                 arguments.seed)
    print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except FloatingPointError as error:
        print(flush=True)  # the message begins a line of its own
        raise CommandError(FAILURE, f"error: checkpoint: {arguments.checkpoint}: {error}") from error
    print()
    return 0


def _train(arguments):
    from rnn_ops_timemachine import signals
    with signals.held_back() as raise_interrupt:
        return _train_while_held_back(arguments, raise_interrupt)


def _train_while_held_back(arguments, raise_interrupt):
    from rnn_ops_timemachine import signals
    check_settings()
    given = dict(vars(arguments))
    resume, out, init_from = (given.pop(name, None) for name in ("resume", "out", "init_from"))
    del given["run"], given["quiet"]
    with importing():
        from rnn_ops_timemachine import opening, progress
        from rnn_ops_timemachine.settings import Settings
    raise_interrupt()
    on_wait = progress.Waiting(raise_interrupt, arguments.quiet)
    with one_line(USAGE, OSError, ValueError, MemoryError, RuntimeError):
        if resume and not out:
            raise ValueError("out: --resume needs --out, the folder of the run to go on with")
        if resume and init_from:
            raise ValueError("init_from: a run that is resumed has its parameters already")
        run = opening.resume(out, given, on_wait) if resume else opening.start(Settings(**given), out, init_from, on_wait)
    with run:
        for notice in run.notices:
            streams.complain(notice)
        try:
            with one_line(FAILURE, FloatingPointError, OSError, MemoryError, RuntimeError):
                progress.follow(run, arguments.quiet)
        except signals.Interrupted as interrupt:
            raise CommandError(SIGNALLED + interrupt.number, f"{interrupt}: {run.folder} holds epoch {run.saved_epoch}; "
                               "to go on: " + hints.command("train", "--resume", *hints.option("--out", run.folder))) from None
    return 0
