"""The parts of a run on a GPU in order of worth, the seconds that each takes, and which of them fit into the minutes.

Pure functions of names and numbers; gpu_work.py does the parts, gpu_run.py starts them.
"""
from typing import NamedTuple, Optional

from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks

from .problems import TUTORIAL, Shape, gpu_shapes


class Part(NamedTuple):
    name: str
    what: str
    seconds: int             # by estimate, on an H100; with the start of its process
    limit: int               # seconds after which it is ended
    divisible: bool = False  # does as much as fits, and the next run goes on where it was cut off
    family: str = ""         # it is about
    resumes: bool = False    # if something in it ends its process, the next process goes on behind that; so for a divisible part


class Sizes(NamedTuple):
    """How much each part does."""
    first: dict      # keywords of checks.plan
    check: dict
    repeats: dict
    tutorial: Shape
    quick: list      # of Shapes
    grid: list
    rounds: int      # of a timed shape
    epochs: int
    model: dict      # keywords of gpu_training.measure
    characters: Optional[int]  # of the text, the first ones; None: all


_SMALL = [Shape(5, 3, 7, 12, True), Shape(5, 2, 7, 20, True), Shape(3, 2, 7, 40, True)]
SIZES = {
    "full": Sizes(checks.FIRST, checks.ALL_BUT_REPEATS, checks.REPEATS, TUTORIAL, gpu_shapes(quick=True),
                  gpu_shapes(), 25, 2000, {}, None),
    # For the rehearsal and the tests: the same work on next to nothing.
    "small": Sizes(
        dict(checks.FIRST, shapes=((5, 3, 7, 12), (2, 3, 5, 300))),
        dict(shapes=((1, 1, 1, 1), (3, 4, 5, 7)), variant_shapes=((2, 3, 5, 33),), option_shapes=((4, 3, 5, 6),),
             bits_shapes=((3, 2, 5, 4),), most_runs=3, sweep=2 ** 8),
        dict(checks.REPEATS, bits_shapes=((3, 2, 5, 4),), most_runs=20),
        _SMALL[0], _SMALL[:2], _SMALL,
        2, 3, dict(T=5, B=3, H=19), 1000)}

DEVICE, COMPILE = "device", "compile"
_START = 15  # seconds, below which no divisible part is started


def _first(family):
    """A family's first check; behind that of "cluster" its older exchange, which may work if st.async does not."""
    found = [Part(f"first-{family}", f"the tutorial's shape and others by {family} against float64", 8, 40, family=family)]
    if family == "cluster":
        found.append(Part(f"first-{checks.BARRIER}", "the same with the older exchange, cluster barriers", 5, 40,
                          family=checks.BARRIER))
    return found


def parts(architecture):
    """All `Part`s for a GPU of an architecture (90 for 9.0), the most important first."""
    families = [family for family in variants.FAMILIES if family != "cluster" or architecture >= 90]
    return [
        Part(DEVICE, "devices and versions", 10, 120),
        Part(COMPILE, "every kernel, in processes; nothing where they are on disk", 15, 240)] + [
        part for family in families for part in _first(family)] + [
        Part("tutorial", "all variants at the tutorial's shape, timed beside cuDNN", 40, 120, resumes=True),
        Part("microbench", "st.async, barriers, shared memory, in cycles", 10, 60, resumes=True),
        Part("occupancy", "blocks a multiprocessor and clusters at once, of every kernel", 15, 90),
        Part("quick", "few shapes, timed beside cuDNN", 50, 180, True),
        Part("training", "2,000 epochs of the tutorial", 60, 180),
        Part("check", "every shape, variant and option against float64", 90, 400, True),
        Part("grid", "all shapes, timed beside cuDNN", 120, 600, True),
        Part("repeats", "the same bits in 1,000 runs", 30, 120, True),
        Part("mxnet", "on MXNet's GPU arrays: operators, mx.nd.RNN", 40, 200, resumes=True),
        Part("jax", "jax.lax.scan under jit at the tutorial's shape", 40, 120),
        Part("sanitizer", "a few kernels under compute-sanitizer", 120, 200),
        Part("variants", "every variant at the quick shapes", 150, 600, True)]


NAMES = list(dict.fromkeys(part.name.split("-")[0] for part in parts(90)))  # for --only


def allotted(part, left):
    """The seconds that a part may take if so many are ``left`` (None: no limit), or None if the time is too short to begin it."""
    if left is None:
        return part.limit
    if left < (_START if part.divisible else part.seconds):
        return None
    return min(part.limit, left)


def table(chosen, minutes, why_not, done):
    """Which parts will be done and which are left out, as lines.

    Parameters
    ----------
    chosen : list of Part
    minutes : float or None
    why_not : dict
        {part's name: why it cannot be done here}
    done : names of parts that an earlier run has done
    """
    left = None if minutes is None else 60 * minutes
    lines = [f"{'part':<22}{'about s':>8}{'at most':>8}  what", "-" * 79]
    for part in chosen:
        text = part.what
        if part.name in done:
            text = "done before"
        elif part.name in why_not:
            text = f"LEFT OUT: {why_not[part.name]}"
        else:
            seconds = allotted(part, left)
            if seconds is None:
                text = f"LEFT OUT by estimate, may still fit: {text}"
            elif left is not None:
                if part.seconds > left:
                    text += " (as far as it comes)"
                left -= min(part.seconds, left)
        lines.append(f"{part.name:<22}{part.seconds:>8}{part.limit:>8}  {text}")
    return lines
