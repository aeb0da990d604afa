"""One training run: it trains and writes each epoch to its folder.

An epoch is written in this order: its samples, its metrics, then the checkpoint, which also holds the sizes of the other two
files. A crash can leave more in them than the checkpoint knows of; that is cut off when the run is resumed, so that no epoch is
lost or written twice.
"""
import json
import os
import textwrap
import time
from typing import Callable, Iterator, List, Optional, Tuple

import numpy as np

import rnn_ops
from rnn_ops_timemachine import checkpoint, data, descent, files, learners, parameters, plot, prompts, record, roles, signals
from rnn_ops_timemachine import folder as folders
from rnn_ops_timemachine.lock import Lock
from rnn_ops_timemachine.settings import METRICS, SAMPLES, Settings, State
from rnn_ops_timemachine.text import Text

_LONGEST_TITLE = 40  # characters of a text's name over the plot; a longer one would leave no room for the plot
_PLOT_PAUSE = 30  # seconds between two drawings of the plot, since one can take as long as half an epoch


class Run:
    """A run in ``folder``; made and checked by `opening.start` or `opening.resume`, carried on by `train`.

    It owns its folder until `close`; a ``with`` block calls that at its end.

    Parameters
    ----------
    settings : Settings
    book : text.Text
    initial : checkpoint.Checkpoint
        The run begins with its parameters and vocabulary; by default with new ones.

    Attributes
    ----------
    settings : Settings
    text : text.Text
    vocabulary : data.Vocabulary
    inputs, labels : unsigned integers (batches, T, B)
        Views of the text's tokens, as `data.batch_views`.
    held_out : (inputs, labels) or None
        The batches of the validation part.
    parameters : dict
        NumPy arrays by name, as they were after ``epoch``.
    state : State
    metrics : list of dict
        One for each epoch, as in metrics.jsonl.
    prompts : list of str
        The texts that the model continues after each epoch.
    saved_epoch : int
        The epoch that the checkpoint in the folder holds.
    notices : list of str
        Lines that the user should read before the run trains.
    not_drawn : str or None
        Why the plot could not be drawn the last time.
    exchange : exchange.Contexts or exchange.Workers or None
        Joins the parts that a batch is split into; None if it is not split.
    """

    not_drawn = exchange = None

    def __init__(self, settings: Settings, book: Text, initial: Optional[checkpoint.Checkpoint] = None):
        self.settings, self.text, self.notices = settings, book, [book.notice] if book.notice else []
        self.vocabulary = initial.vocabulary if initial else data.Vocabulary(book.characters)
        tokens = self.vocabulary.encode(book.characters, self.vocabulary.dtype)
        held_out = int(settings.validation * len(tokens))
        shape = settings.sequence_length, settings.batch_size
        data.batch_views(tokens, *shape)  # a text that is too short as a whole gets the plain error
        try:
            self.inputs, self.labels = data.batch_views(tokens[:len(tokens) - held_out], *shape)
        except ValueError as error:
            raise ValueError(f"validation: got {settings.validation}, which leaves too small a part to train on. "
                             f"{error}") from None
        try:
            self.held_out = data.batch_views(tokens[len(tokens) - held_out:], *shape) if settings.validation else None
        except ValueError as error:
            raise ValueError(f"validation: got {settings.validation}, which is too small a part. {error}") from None
        try:
            self.parameters = initial.parameters if initial else parameters.initialise(
                len(self.vocabulary), settings.hidden, settings.seed)
        except (MemoryError, ValueError) as error:  # NumPy raises the ValueError for a size that no array can have
            raise ValueError(f"hidden: got {settings.hidden}, which is too many for this machine ({error})") from error
        self.prompts = prompts.of(book.characters, self.vocabulary)
        self.metrics = []
        self.state = State(epoch=0, moving_loss=None, sha256=book.sha256, written={}, rnn_ops=rnn_ops.__version__)

    def own(self, folder: str, owner: Lock) -> None:
        """Take a folder as its own, with the lock of that folder."""
        self.folder, self._owner = folder, owner
        if owner.notice:
            self.notices.append(owner.notice)

    def close(self) -> None:
        """Release the folder: another process may train the run."""
        self._owner.release()

    def take_back(self) -> None:
        """Let go of a run that cannot begin after all; `opening.start` sees to it that a new one leaves nothing behind."""
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def epoch(self) -> int:
        """The last finished epoch, 0 before the first."""
        return self.state.epoch

    @property
    def stopped_early(self) -> bool:
        """Whether the patience is over: so many epochs without a new minimum of the validation loss and without a new
        learning rate."""
        patience, state = self.settings.patience, self.state
        since = max(state.best_epoch or 0, state.learning_rate_since - 1)
        return bool(patience) and state.epoch - since >= patience

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.epoch >= self.settings.epochs or self.stopped_early

    def train(self, on_batch: Callable[[float], None]) -> Iterator[Tuple[dict, List[Tuple[str, str]]]]:
        """Train to the last epoch: a generator that yields after each epoch, when all its files are on disk.

        Parameters
        ----------
        on_batch : callable
            Called with the moving loss after each batch.

        Yields
        ------
        metrics : dict
            The epoch's line in metrics.jsonl.
        samples : list of (prompt, continuation)

        Raises
        ------
        FloatingPointError
            Training has diverged, or the model can no longer be sampled from. The checkpoint is that of the last good epoch.
        OSError, MemoryError, RuntimeError
            A file could not be written, memory is not enough, or MXNet, CuPy or PyTorch has failed. The same holds.
        """
        try:
            learner, self._drawn = learners.make(self.settings.step, self.parameters, self.exchange), time.monotonic()
            while not self.finished:
                self._train_epoch(learner, on_batch)
                yield self.metrics[-1], self._keep()
        except BaseException as error:
            self._draw()
            if isinstance(error, roles.Left):
                if error.signal:
                    raise signals.Interrupted(error.signal) from error
            elif self.exchange:
                self.exchange.leave(str(_in_words(error)) or type(error).__name__, getattr(error, "number", 0))
            if isinstance(error, (FloatingPointError, OSError, MemoryError, RuntimeError)):  # the libraries' are the last
                raise self.ended_by(error) from error
            raise
        self._draw()

    def ended_by(self, error: Exception) -> Exception:
        """An error that ended the training, as a sentence that also says which epoch is saved."""
        said = _in_words(error)
        return type(said)(f"epoch {self.saved_epoch + 1}: {said}. {self.path(checkpoint.FILE)} holds epoch {self.saved_epoch}")

    def _train_epoch(self, learner, on_batch):
        state, losses = self.state, []
        epoch, moving_loss = state.epoch + 1, state.moving_loss
        learning_rate = descent.learning_rate_of(epoch, self.settings.learning_rate, state.learning_rate_since)
        began = time.perf_counter()
        for loss in learner.train_epoch(self.inputs, self.labels, learning_rate):
            moving_loss = descent.moving_average(moving_loss, loss)
            losses.append(loss)
            on_batch(moving_loss)
        arrays = learner.arrays()
        seconds = time.perf_counter() - began
        loss = float(np.mean(losses))
        line = dict(epoch=epoch, loss=loss, moving_loss=moving_loss, perplexity=descent.perplexity(loss), lr=learning_rate,
                    tokens_per_second=self.inputs.size / seconds, seconds=seconds,
                    workers=self.exchange.workers if self.exchange else 1)
        best = {}
        if self.held_out:
            line[folders.VALIDATION_KEY] = held_out_loss = learner.loss(*self.held_out)
            if state.best_loss is None or held_out_loss < state.best_loss:
                best = dict(best_epoch=epoch, best_loss=held_out_loss)
        self.parameters, self.state = arrays, state._replace(epoch=epoch, moving_loss=moving_loss, **best)
        self.metrics.append(line)

    def samples(self) -> List[Tuple[str, str]]:
        """(prompt, continuation) of each prompt by the model as it is now."""
        return prompts.continued(self.prompts, self.parameters, self.vocabulary, self.settings.seed, self.epoch)

    def _keep(self):
        """Write the epoch to the folder → its samples."""
        samples = self.samples()
        self._write(samples)
        if time.monotonic() - self._drawn > _PLOT_PAUSE:
            self._draw()
            self._drawn = time.monotonic()
        return samples

    def _write(self, samples):
        files.append(self.path(SAMPLES), prompts.written(samples, self.epoch, self.metrics[-1]["loss"]))
        files.append(self.path(METRICS), json.dumps(self.metrics[-1]) + "\n")
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        self.state = self.state._replace(rnn_ops=rnn_ops.__version__, written={
            name: files.size(self.path(name)) for name in (METRICS, SAMPLES)})
        saved = self.checkpoint()
        checkpoint.save(self.path(checkpoint.FILE), saved)
        self.saved_epoch = self.epoch
        if self.state.best_epoch == self.epoch:  # second: after a crash in between --resume writes it
            checkpoint.save(self.path(folders.BEST), saved)

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The run as it is now."""
        return checkpoint.Checkpoint(self.parameters, self.vocabulary, dict(self.settings._asdict(), **self.state._asdict()))

    def read_best(self) -> None:
        """Read best.npz. A FileNotFoundError or a ValueError if it is not the model of the best epoch."""
        path = self.path(folders.BEST)
        if os.path.islink(path) or os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("is not a plain file")
        epoch = checkpoint.load(path).settings["epoch"]
        if epoch != self.state.best_epoch:
            raise ValueError(f"is the model of epoch {epoch}, not of epoch {self.state.best_epoch}")

    def why_no_best(self) -> Optional[str]:
        """What is wrong with best.npz, as a sentence, or None."""
        try:
            self.read_best()
        except FileNotFoundError:
            return f"{folders.BEST} is missing"
        except (OSError, ValueError):
            return f"{folders.BEST} is damaged or of another epoch"

    def files(self) -> List[str]:
        """The names of its files that exist, without best.npz."""
        names = checkpoint.FILE, METRICS, SAMPLES, folders.PLOT, record.FILE
        return [name for name in names if os.path.isfile(self.path(name))]

    @property
    def parameter_count(self) -> int:
        return sum(array.size for array in self.parameters.values())

    def _draw(self):
        """Draw the plot. If that fails for any reason, training goes on."""
        if self.metrics:
            try:
                with files.replacing(self.path(folders.PLOT)) as file:
                    name = os.path.basename(self.text.name)
                    name = name if len(name) <= _LONGEST_TITLE else f"{name[:_LONGEST_TITLE]}..."
                    plot.draw(file, self.metrics, f"{name}, {self.settings.hidden} hidden units")
                self.not_drawn = None
            except Exception as error:
                self.not_drawn = textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")

    def path(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.folder, name)


class Follower(Run):
    """The run as a worker other than worker 0 trains it: it has no folder, and writes nothing."""

    def _keep(self):
        self.saved_epoch = self.epoch
        return []

    def _draw(self):
        pass

    def ended_by(self, error):
        return _in_words(error)

    def close(self):
        pass


def _in_words(error):
    """An error that ended a training, as one of the few that `Run.train` raises; others as they are."""
    kind, said = type(error), str(error)
    if isinstance(error, FloatingPointError):
        return FloatingPointError(f"{error}; try a smaller learning rate")
    if isinstance(error, OSError):
        return OSError(f"cannot write to {error.filename}: {error.strerror}" if error.strerror else said)
    if isinstance(error, MemoryError):
        return MemoryError(f"not enough memory ({said or type(error).__name__})")
    if isinstance(error, roles.Left):
        return RuntimeError(said)
    if isinstance(error, RuntimeError):
        libraries = {"mxnet": "MXNet", "cupy": "CuPy", "cupy_backends": "CuPy", "torch": "PyTorch"}
        library = libraries.get(kind.__module__.partition(".")[0], kind.__name__)
        kind = MemoryError if "memory" in said.lower() else RuntimeError
        return kind(f"{library}: {(said.strip() or 'no reason given').splitlines()[-1]}")
    return error
