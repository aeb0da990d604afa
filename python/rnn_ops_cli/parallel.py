"""Options of ``rnn-ops train`` that split its batches over contexts, processes and machines, and how they are followed."""
import contextlib
import re
import signal

from rnn_ops_timemachine import hints, job, roles
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, check_settings, importing, one_line, positive

OPTIONS = "ctx", "kvstore", "workers", "servers", "gradient_compression"
_THRESHOLD = 2.0 ** -8  # of 2bit


def add_to(parser) -> None:
    """Add the options to the command's."""
    parser.add_argument("--ctx", metavar="CONTEXTS",
                        help="MXNet's contexts, such as cpu(0),cpu(1) or gpu(0),gpu(1): each has a part of the rows of a batch "
                             "(default cpu(0)). With --step torch one, which PyTorch trains on")
    parser.add_argument("--kvstore", metavar="KIND",
                        help="MXNet's store that sums the gradients: local or device (default) for several contexts, dist_sync "
                             "for the processes of rnn-ops launch")
    parser.add_argument("--workers", type=positive, metavar="N",
                        help="train in N processes on this machine, each with a part of the rows of a batch")
    parser.add_argument("--servers", type=positive, metavar="M", help="processes that sum the workers' gradients (default 1)")
    parser.add_argument("--gradient-compression", metavar="2bit[:T]",
                        help=f"workers send two bits for each number of a gradient, -T, 0 or T (default {_THRESHOLD:g}), and add "
                             "the rest to the next one. A wrong T costs loss: after 15 epochs of the book with 2 workers it is "
                             "2.23 without, 2.19 with 0.004, 2.38 with 0.125, 2.93 with 0.00024. A resumed run has no rests")


def place():
    """This process's place in a distributed job, a `roles.Job`, or None."""
    job.end_with_the_starter()
    with one_line(USAGE, ValueError):
        return roles.of_environment()


def serve(place) -> int:
    """Be a server or the scheduler. Ctrl-C is for the workers, which end the job together."""
    for number in signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
    with one_line(FAILURE, ImportError, RuntimeError):
        roles.serve(place)
    return 0


def run_job(given: dict) -> int:
    """Run the command in all roles of a job on this machine."""
    check_settings()
    with one_line(USAGE, OSError, ValueError):
        if given.get("kvstore", "dist_sync") != "dist_sync":
            raise ValueError(f"kvstore: got {given['kvstore']!r}, but --workers needs dist_sync")
        _threshold(given)
        with importing():
            from rnn_ops_timemachine import folder as folders
            from rnn_ops_timemachine import learners, text
        learners.refuse_to_split(given.get("step"))
        made = "out" not in given and "resume" not in given
        if made:
            given["out"] = folders.make(None, text.name_of(given.get("text", "timemachine")))
    try:
        with one_line(USAGE, ValueError), one_line(FAILURE, OSError):
            ended = job.run(job.command(["train", *_words(given)]), given["workers"], given.get("servers", 1))
    finally:
        if made:
            folders.remove_empty(given["out"])
    if ended.killed:
        raise CommandError(FAILURE, f"error: {ended.killed}{_outlook(given)}")
    return ended.status


def step_of(given: dict):
    """The step that is given, or that of the run to resume; None where neither is there."""
    if "step" in given or "resume" not in given:
        return given.get("step")
    with importing():
        from rnn_ops_timemachine import checkpoint
    with contextlib.suppress(KeyError, OSError, ValueError):  # the run says why, when it begins
        return checkpoint.load(given["out"]).settings["step"]
    return None


@contextlib.contextmanager
def joined(given: dict, place):
    """The exchange that joins the parts of a batch, for the time of the block; None for one context of one process.

    A worker other than worker 0 ends without a word when all have heard why: worker 0 says it.
    """
    made = _exchange(given, place)
    if made is None:
        yield None
        return
    try:
        yield made
        made.close()
    except BaseException as error:
        if not made.told:
            made.leave(str(error) or type(error).__name__)
        if not made.told:  # the others could not be told
            raise
        made.close()
        if made.rank:
            raise CommandError(getattr(error, "status", FAILURE), "") from error
        if isinstance(error, roles.Left):
            raise CommandError(FAILURE, f"error: {error}") from error
        raise


def opened(exchange, begin, settings, init_from, on_wait):
    """The run that all workers train, as `joining.together` gives it."""
    from rnn_ops_timemachine import joining
    return joining.together(exchange, begin, settings, init_from, on_wait)


def to_go_on(given: dict, folder: str) -> str:
    """The command that goes on with a run in the same way."""
    how = {name: given[name] for name in OPTIONS if name in given}
    return hints.command("train", "--resume", *hints.option("--out", folder), *_words(how))


def _exchange(given, place):
    how = {name: given[name] for name in OPTIONS if name in given}
    if not place:
        if not how:
            return None
        with importing():
            from rnn_ops_timemachine import learners
        step = step_of(given)
        with one_line(FAILURE, ImportError), one_line(USAGE, ValueError):
            step = step or learners.default()
            if step == "torch" and list(how) == ["ctx"]:
                from rnn_ops_timemachine import opening
                opening.check_step(step)
                from rnn_ops_timemachine import torch_training
                return torch_training.Device(how["ctx"])
            learners.refuse_to_split(step)
        with importing():
            from rnn_ops_timemachine import exchange
        with one_line(USAGE, ValueError):
            contexts, _ = _checked(how, place)
        return exchange.Contexts(contexts, how.get("kvstore", "device"))
    with one_line(FAILURE, ImportError, RuntimeError):
        store, watch = roles.join(place, lambda: _outlook(given))
    with importing():
        from rnn_ops import info
        from rnn_ops_timemachine import exchange
    wrong = None
    try:
        for reason in info.wrong_settings():
            raise ValueError(reason)
        contexts, threshold = _checked(how, place)
    except ValueError as error:  # the others are told, when all have joined
        wrong, contexts, threshold = error, (), None
    made = exchange.Workers(store, contexts, threshold, watch)
    made.wrong = wrong
    return made


def _checked(how, place):
    """The contexts and the threshold. A ValueError where an option is wrong."""
    from rnn_ops_timemachine import exchange
    kvstore = how.get("kvstore", "dist_sync" if place else "device")
    if kvstore == "dist_async":
        raise ValueError("kvstore: got 'dist_async', needs dist_sync: with dist_async a worker's gradients change the "
                         "parameters whenever they arrive, and no run is like another")
    if kvstore not in ("local", "device", "dist_sync"):
        raise ValueError(f"kvstore: got {kvstore!r}, needs local, device or dist_sync")
    if place and kvstore != "dist_sync":
        raise ValueError(f"kvstore: got {kvstore!r}, but a worker of a job (DMLC_ROLE) needs dist_sync")
    if not place and kvstore == "dist_sync":
        raise ValueError("kvstore: got 'dist_sync', which needs --workers on one machine, rnn-ops launch on several")
    if not place and "servers" in how:
        raise ValueError(f"servers: got {how['servers']}, needs --workers")
    if not place and "gradient_compression" in how:
        raise ValueError(f"gradient_compression: got {how['gradient_compression']!r}, needs --workers or --kvstore dist_sync")
    for name, variable in ("workers", "DMLC_NUM_WORKER"), ("servers", "DMLC_NUM_SERVER"):
        if place and how.get(name, getattr(place, name)) != getattr(place, name):
            raise ValueError(f"{name}: got {how[name]}, but {variable} is {getattr(place, name)}")
    return exchange.contexts(how.get("ctx", "cpu(0)")), _threshold(how)


def _threshold(given):
    """The threshold in 2bit or 2bit:0.01; None for no compression."""
    asked = given.get("gradient_compression")
    if asked is None:
        return None
    known = re.fullmatch("2bit(:([0-9.e+-]{1,20}))?", asked)
    with contextlib.suppress(TypeError, ValueError):
        threshold = float(known[2] or _THRESHOLD)
        if 1e-30 < threshold < 1e30:
            return threshold
    raise ValueError(f"gradient_compression: got {asked!r}, needs 2bit or 2bit:T with a positive number T")


def _words(given):
    """Options as words of a command."""
    return [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]


def _outlook(given):
    """What the folder of a run that was killed holds, and how to go on."""
    from rnn_ops_timemachine import checkpoint
    try:
        epoch = checkpoint.load(given["out"]).settings["epoch"]
    except (KeyError, OSError, ValueError):
        return ""
    return f"; {given['out']} holds epoch {epoch}; to go on: {to_go_on(given, given['out'])}"
