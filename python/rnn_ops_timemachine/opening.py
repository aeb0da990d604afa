"""Begin a run or resume one: everything that is checked before a run trains, and the files of a resumed run."""
import contextlib
import os
from typing import Any, Callable, Dict, Optional

import numpy as np

from rnn_ops.folders import why_not_writable
from rnn_ops_timemachine import checkpoint, data, files, learners, lock, record, text
from rnn_ops_timemachine import folder as folders
from rnn_ops_timemachine.run import Follower, Run
from rnn_ops_timemachine.settings import MAY_CHANGE, METRICS, SAMPLES, Settings, State


def start(settings: Settings, folder: Optional[str] = None, init_from: Optional[str] = None,
          on_wait: Callable[[str], None] = lambda doing: None, exchange=None) -> Run:
    """Begin a run in a folder that holds none yet. The folder is made if it does not exist, and holds a checkpoint at once.

    Parameters
    ----------
    settings : Settings
    folder : str
        By default runs/<text>-<time>.
    init_from : str
        A checkpoint or the folder of a run, whose parameters the new run begins with. Its vocabulary is kept, and
        must have all characters of the text.
    on_wait : callable
        As that of `text.load`.
    exchange : exchange.Contexts or exchange.Workers
        If the batches are split.

    Raises
    ------
    OSError, ValueError
        A setting or a text that cannot be used; a folder that holds a run or cannot be written to.
    ImportError
        A library that the step needs cannot be imported.
    """
    initial = checkpoint.load(init_from) if init_from else None
    hidden = initial.settings["hidden"] if initial else 256
    settings = settings._replace(step=settings.step or learners.default(),
                                 hidden=hidden if settings.hidden is None else settings.hidden)
    settings.check()
    check_step(settings.step, exchange)
    if exchange:
        exchange.check(settings.batch_size)
    if settings.hidden != hidden and initial:
        raise ValueError(f"hidden: got {settings.hidden}, but the model in {init_from} has {hidden}")
    # Before a text is fetched or a large one is read; both again below, when nobody else can begin a run there.
    if folder is not None:
        folders.refuse_taken(folder)
    reason = why_not_writable(folder or "runs")
    if reason:
        raise OSError(f"out: cannot write to {folder or 'runs'}: {reason}")
    asked, book = settings.text, text.load(settings.text, on_wait)
    if initial and initial.vocabulary.missing(book.characters):
        raise ValueError(f"init_from: the model in {init_from} lacks characters of {book.source}: "
                         f"{data.listed(initial.vocabulary.missing(book.characters))}")
    run = Run(settings._replace(text=book.name), book, initial)
    run.exchange = exchange
    origin = init_from and dict(path=init_from, text=initial.settings["text"], epoch=initial.settings["epoch"])
    with contextlib.ExitStack() as undo:  # if a step fails, the earlier ones are undone in reverse order
        try:
            if folder is None or not os.path.isdir(folder):
                folder = folders.make(folder, book.name)
                undo.callback(folders.remove_empty, folder)
            run.own(folder, lock.Lock(folder))
            undo.callback(run.close)
            folders.refuse_taken(folder)
            files.remove_temporaries(folder, folders.FILES)
            undo.callback(folders.remove_files, folder)
            run.save()
            record.write(run.path(record.FILE), run, asked, origin, sessions=[])
        except OSError as error:
            if error.strerror is None:  # a sentence already
                raise
            raise OSError(f"out: cannot write to {folder or error.filename}: {error.strerror}") from error
        run.take_back = undo.pop_all().close
    return run


def resume(folder: str, given: Dict[str, Any], on_wait: Callable[[str], None] = lambda doing: None, exchange=None) -> Run:
    """Go on with a run from its checkpoint.

    Parameters
    ----------
    folder : str
    given : dict
        Settings by name that the user has given again. ``epochs``, ``patience``, ``learning_rate`` and ``step`` may be
        new; the others must be the run's. A new learning rate holds from the next epoch on, and is halved from there.
    on_wait, exchange
        As those of `start`.

    Raises
    ------
    OSError, ValueError
        No run or a damaged one, a setting that is not the run's, a text that has changed, another process that trains it.
    ImportError
        A library that the step needs cannot be imported.
    """
    file = os.path.join(folder, checkpoint.FILE)
    if not os.path.lexists(file):  # a lock goes only into the folder of a run
        raise FileNotFoundError(f"checkpoint: {file} does not exist")
    owner = lock.Lock(folder)
    try:
        run = _of(Run, checkpoint.load(file), f"the run in {folder}", given, MAY_CHANGE, on_wait, exchange)
        run.own(folder, owner)
        try:
            _take_up(run)
        except OSError as error:
            raise run.ended_by(error) from error
    except BaseException:
        owner.release()
        raise
    return run


def follow(content: bytes, given: Dict[str, Any], init_from: Optional[str], on_wait: Callable[[str], None], exchange) -> Follower:
    """The run of worker 0, from its checkpoint's content, as another worker trains it.

    Raises
    ------
    OSError, ValueError
        A text, a setting or a model to begin with that is not worker 0's, or that cannot be used here.
    """
    saved = checkpoint.from_bytes(content)
    run = _of(Follower, saved, "the run of worker 0", given, (), on_wait, exchange)
    if init_from and os.path.exists(init_from) and not run.epoch:  # a worker without the file needs none
        initial = checkpoint.load(init_from)
        for name, array in saved.parameters.items():
            if not np.array_equal(array, initial.parameters[name]):
                raise ValueError(f"init_from: {init_from} has another {name} than the run of worker 0")
    return run


def _of(kind, saved, whose, given, may_change, on_wait, exchange):
    """The run of a checkpoint, with the settings that it goes on with."""
    settings, state = (kind(**{name: saved.settings[name] for name in kind._fields}) for kind in (Settings, State))
    for name, value in given.items():
        value = text.name_of(value) if name == "text" else value
        if name not in may_change and value != getattr(settings, name):
            raise ValueError(f"{name}: got {value!r}, but {whose} has {getattr(settings, name)!r}")
    if given.get("learning_rate", settings.learning_rate) != settings.learning_rate:
        state = state._replace(learning_rate_since=state.epoch + 1)
    settings = settings._replace(**{name: given[name] for name in may_change if name in given})
    settings.check()
    check_step(settings.step, exchange)
    if exchange:
        exchange.check(settings.batch_size)
    if settings.epochs < state.epoch:
        raise ValueError(f"epochs: got {settings.epochs}, needs at least the {state.epoch} that {whose} has")
    book = text.load(settings.text, on_wait)
    if book.sha256 != state.sha256:
        raise ValueError(f"text: {book.source} is not the text of {whose}: its sha256 is "
                         f"{book.sha256}, not {state.sha256}")
    run = kind(settings, book, saved)
    run.state, run.saved_epoch, run.exchange = state, state.epoch, exchange
    return run


def _take_up(run):
    """Bring the files beside the checkpoint to its epoch; damaged and missing ones are begun anew."""
    files.remove_temporaries(run.folder, folders.FILES)
    epoch, written = run.state.epoch, run.state.written
    kept, *notices = folders.recover(
        run.path(record.FILE), record.read, dict(asked=run.settings.text, init_from=None, sessions=[]),
        "it is written anew, without the earlier sessions")
    run.metrics, notice = folders.recover(
        run.path(METRICS), lambda path: folders.read_metrics(path, written[METRICS], epoch), [],
        f"metrics and plot begin at epoch {epoch + 1}")
    notices.append(notice)
    _, notice = folders.recover(
        run.path(SAMPLES), lambda path: folders.check_size(path, written[SAMPLES]), None,
        f"samples begin at epoch {epoch + 1}")
    notices.append(notice)
    if run.state.best_epoch not in (None, epoch):  # else it is written again
        _, notice = folders.recover(run.path(folders.BEST), lambda path: run.read_best(), None,
                                    f"the model of epoch {run.state.best_epoch}, the best so far, is lost")
        notices.append(notice)
    run.notices += filter(None, notices)
    for name, size in written.items():
        files.cut(run.path(name), size)
    run.save()
    record.write(run.path(record.FILE), run, **kept)


def check_step(step: str, exchange=None) -> None:
    """Raise a ValueError where this machine or its environment cannot compute the step."""
    if exchange and step not in exchange.steps:
        learners.refuse_to_split(step)
    reason = learners.why_not(step)
    if reason:
        raise ValueError(f"step: got {step!r}, but {reason}")
