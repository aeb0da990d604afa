"""``rnn-ops train``: train the character model on a text, or go on with a run."""
import argparse

from rnn_ops_cli import parallel
from rnn_ops_timemachine import roles, signals, streams
from rnn_ops_timemachine.options import FAILURE, SIGNALLED, USAGE, CommandError, check_settings, importing, one_line, path


class _NoDevice(argparse.Action):
    """Says what takes the place of ``--device``, which the other commands have."""

    def __call__(self, parser, *_):
        parser.error("--device: not an option of train, which takes --step cuda to train on a GPU")


def add_to(commands) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("train", help="train a character model on a book", allow_abbrev=False,
                                 argument_default=argparse.SUPPRESS,
                                 description="Train a character-level recurrent network on a text, as the tutorial does; the "
                                             "defaults are the tutorial's, except for its 2,000 epochs.")
    parser.set_defaults(run=run)
    parser.add_argument("--text", type=path, metavar="NAME|FILE",
                        help="timemachine (default), tinyshakespeare, python-topics or the path of a UTF-8 file")
    parser.add_argument("--step", choices=("native", "custom", "gluon", "reference", "cuda", "torch"),
                        help="the computation: our native operator (default), our CustomOp in Python, our layer in a Gluon "
                             "network, the tutorial's ndarray loop, our CUDA kernels on a GPU, or our operator in PyTorch; "
                             "the last two need no MXNet")
    parser.add_argument("--device", action=_NoDevice, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, metavar="N", help="train until epoch N (default 15)")
    parser.add_argument("--hidden", type=int, metavar="H", help="hidden units (default 256)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="rows of a batch (default 32)")
    parser.add_argument("--sequence-length", type=int, metavar="T", help="characters of a row (default 64)")
    parser.add_argument("--learning-rate", type=float, metavar="LR",
                        help="halved at every 100th epoch (default 0.5); a new one with --resume is that of the next epoch")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first parameters and the samples (default 0)")
    parser.add_argument("--validation", type=float, metavar="PART",
                        help="part of the text, such as 0.1, to hold out at its end and measure the loss on (default none)")
    parser.add_argument("--patience", type=int, metavar="N",
                        help="stop after N epochs without a new minimum of the loss on that part (default never)")
    parser.add_argument("--init-from", type=path, metavar="DIR|FILE",
                        help="begin with the parameters of another run, whose symbols must be those of the text or more")
    parallel.add_to(parser)
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of the run (default runs/<text>-<time>)")
    parser.add_argument("--resume", action="store_true", default=False,
                        help="go on with the run in --out, as if it had never stopped; --epochs, --patience, "
                             "--learning-rate and --step may be new")
    parser.add_argument("--quiet", action="store_true", default=False,
                        help="print only the run's folder, at the end, and errors")


def run(arguments: argparse.Namespace) -> int:
    """0; a `CommandError` where the run cannot begin or has ended before its last epoch."""
    given = {name: value for name, value in vars(arguments).items() if name != "run" and value is not False}
    place = parallel.place()
    if place and place.role != roles.WORKER:
        return parallel.serve(place)
    with signals.held_back() as raise_interrupt:
        if "workers" in given and not place:
            return parallel.run_job(given)
        return _run(given, place, raise_interrupt)


def _run(given, place, raise_interrupt):
    if not place:  # the workers of a job say together what is wrong with one of them
        check_settings(mxnet=parallel.step_of(given) not in ("cuda", "torch"))
    settings = {name: value for name, value in given.items()
                if name not in (*parallel.OPTIONS, "resume", "out", "init_from", "quiet")}
    resume, out, init_from, quiet = (given.get(name) for name in ("resume", "out", "init_from", "quiet"))
    with importing():
        from rnn_ops_timemachine import learners, opening
        from rnn_ops_timemachine.settings import Settings
        try:
            from rnn_ops_timemachine import progress
        except ModuleNotFoundError:  # tqdm; a GPU or MXNet that the step needs and that is missing comes first
            with one_line(USAGE, ValueError):
                opening.check_step(settings.get("step") or learners.default())
            raise
    raise_interrupt()
    on_wait = progress.Waiting(raise_interrupt, quiet)

    def begin():
        if resume and not out:
            raise ValueError("out: --resume needs --out, the folder of the run to go on with")
        if resume and init_from:
            raise ValueError("init_from: a run that is resumed has its parameters already")
        if resume:
            return opening.resume(out, settings, on_wait, exchange)
        return opening.start(Settings(**settings), out, init_from, on_wait, exchange)

    with parallel.joined(given, place) as exchange:
        with one_line(FAILURE, ImportError), one_line(USAGE, OSError, ValueError, MemoryError, RuntimeError):
            run = parallel.opened(exchange, begin, settings, init_from, on_wait) if place else begin()
        with run:
            for notice in run.notices:
                streams.complain(notice)
            try:
                with one_line(FAILURE, FloatingPointError, OSError, MemoryError, RuntimeError):
                    progress.follow(run, quiet)
            except signals.Interrupted as interrupt:
                said = "" if place and exchange.rank else (  # worker 0 has the folder, and says it
                    f"{interrupt}: {run.folder} holds epoch {run.saved_epoch}; to go on: {parallel.to_go_on(given, run.folder)}")
                raise CommandError(SIGNALLED + interrupt.number, said) from None
    return 0
