"""The folder of a run: how one is made, which files it holds, and how those beside the checkpoint are read and checked.

They may be damaged, gone or somebody else's. A run goes on without its record (run.json), its metrics or its samples: a file
that cannot be used is renamed and begun anew, and the user is told.
"""
import contextlib
import os
import time
from typing import Any, Callable, List, Optional, Tuple

from rnn_ops_timemachine import checkpoint, files, record
from rnn_ops_timemachine.settings import METRICS, SAMPLES, is_integer, is_loss, is_number

PLOT, BEST = "loss.png", "best.npz"
FILES = (checkpoint.FILE, BEST, record.FILE, METRICS, SAMPLES, PLOT)
METRICS_KEYS = ("epoch", "loss", "moving_loss", "perplexity", "lr", "tokens_per_second", "seconds")
WORKERS_KEY = "workers"  # comes next; not in the metrics of 0.2.0 and older
VALIDATION_KEY = "validation_loss"  # comes last, in runs with a validation part

_LONGEST_STEM = 200  # of a folder that is named for its text, in bytes; file systems take 255, and a time comes after it
_LONGEST_LINE = 1024  # of the metrics, in bytes; a run's are a quarter of that


def make(path: Optional[str], name: str) -> str:
    """Make the folder ``path`` and return it. If it is None, make a new one in runs/ that is named for the text ``name``."""
    if path is not None:
        os.makedirs(path, exist_ok=True)
        return path
    stem = os.path.splitext(os.path.basename(name))[0]
    while len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = stem[:-1]
    stem = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    os.makedirs("runs", exist_ok=True)
    number, path = 1, os.path.join("runs", stem)
    while True:
        try:
            os.mkdir(path)  # it fails for the second of two processes
            return path
        except FileExistsError:
            number, path = number + 1, os.path.join("runs", f"{stem}-{number + 1}")


def refuse_taken(path: str) -> None:
    """Raise a FileExistsError if a folder holds a file with a name in `FILES`: a run would overwrite it."""
    taken = [name for name in FILES if os.path.lexists(os.path.join(path, name))]
    if checkpoint.FILE in taken:
        raise FileExistsError(f"out: {path} already holds a run ({checkpoint.FILE}): --resume it or name another folder")
    if taken:
        raise FileExistsError(f"out: {path} holds {taken[0]}, a name that a run's own file has, and no {checkpoint.FILE} to "
                              "resume: name another folder")


def remove_files(path: str) -> None:
    """Remove the files of a run that could not begin."""
    for name in FILES:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(path, name))


def remove_empty(path: str) -> None:
    """Remove a folder if it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def recover(path: str, read: Callable[[str], Any], otherwise: Any, consequence: str) -> Tuple[Any, str]:
    """Read a file that a run can go on without.

    Parameters
    ----------
    path : str
    read : callable
        Takes the path; a ValueError says that the file is damaged.
    otherwise : object
        The result if the file is missing or damaged. A damaged file is renamed.
    consequence : str
        What that means for the run.

    Returns
    -------
    result : object
    notice : str
        What was wrong; empty if nothing was.
    """
    try:
        return read(path), ""
    except FileNotFoundError:
        wrong = "is missing"
    except ValueError as error:
        wrong = f"is damaged ({error}) and is now called {os.path.basename(files.set_aside(path))}"
    return otherwise, f"{path} {wrong}: {consequence}"


def read_metrics(path: str, size: int, epoch: int) -> List[dict]:
    """The first ``size`` bytes of a run's metrics, their length after so many epochs → one dict an epoch.

    Raises
    ------
    ValueError
        They are not a whole line for each epoch, the last of them for ``epoch``.
    """
    if not size:
        return []
    check_size(path, size)
    if size > _LONGEST_LINE * epoch:
        raise ValueError(f"has {size:,} bytes for {epoch} epochs")
    content = files.read(path, size)
    metrics = [_metrics_line(line) for line in content.splitlines()]
    if content[-1:] != b"\n" or [line["epoch"] for line in metrics] != list(range(epoch + 1 - len(metrics), epoch + 1)):
        raise ValueError(f"does not hold a whole line for each epoch up to {epoch}")
    return metrics


def check_size(path: str, size: int) -> None:
    """Raise a ValueError if a file is shorter than when the checkpoint was written, a FileNotFoundError if it is gone."""
    if size and not os.path.lexists(path):
        raise FileNotFoundError(path)
    if files.size(path) < size:
        raise ValueError(f"has {files.size(path):,} bytes, and had {size:,} when the checkpoint was written")


def _metrics_line(line):
    try:
        values = files.parsed(line)
        keys = tuple(values) if type(values) is dict else ()
        more = tuple(key for key in (WORKERS_KEY, VALIDATION_KEY) if key in keys)
        if keys == METRICS_KEYS + more and is_integer(values["epoch"], 1) and is_integer(values.get(WORKERS_KEY, 1), 1) and all(
                is_loss(values[key]) if key.endswith("loss") else is_number(values[key], 0) for key in keys):
            return values
    except ValueError:
        pass
    raise ValueError(f"holds {line[:40]!r}, which is no line of an epoch")
