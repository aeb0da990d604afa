"""One training run and its folder: settings, record, metrics, samples, plot, checkpoint.

An epoch is written down in this order: its samples, its metrics, then the checkpoint, which also holds the sizes of the
other two files. What a crash leaves in them beyond the checkpoint is cut off when the run is resumed, so that no epoch
is lost or written twice.
"""
import json
import math
import os
import platform
import time
from typing import NamedTuple

import numpy as np

import rnn_ops
from rnn_ops import operators, reference
from rnn_ops._mxnet import mx
from timemachine import checkpoint, data, files, model, network, plot, sampling, text, training

RECORD, METRICS, SAMPLES, PLOT = "run.json", "metrics.jsonl", "samples.txt", "loss.png"
PROMPTS = ("The Time Ma", "The Medical Man rose, came to the lamp,")
STEPS = ("native", "custom", "gluon", "reference")

_SAMPLE_LENGTH, _SAMPLE_TEMPERATURE = 1024, 0.1
_PLOT_PAUSE = 30  # seconds between two drawings of the plot, since one can take as long as half an epoch


class Settings(NamedTuple):
    """What a run depends on. The defaults are the tutorial's, but for its 2,000 epochs."""
    text: str = "timemachine"
    step: str = None  # one of STEPS; None for what `rnn_ops.rnn_sequence` takes when the run starts
    epochs: int = 15
    hidden: int = 256
    seed: int = 0
    learning_rate: float = 0.5
    batch_size: int = 32
    sequence_length: int = 64

    def check(self):
        """Raise a ValueError that names the first setting that cannot be."""
        if self.step not in STEPS:
            raise ValueError(f"step: got {self.step!r}, needs one of {', '.join(STEPS)}")
        if self.step == "native" and operators.native.why_not():
            raise ValueError(f"step: got 'native', but there is no native operator: {operators.native.why_not()}")
        for name, least in (("epochs", 1), ("hidden", 1), ("seed", 0), ("batch_size", 1), ("sequence_length", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}, needs an integer of at least {least}")
        rate, least, most = self.learning_rate, training.LEARNING_RATES.tiny, training.LEARNING_RATES.max
        if not isinstance(rate, (int, float)) or not least <= rate <= most:
            raise ValueError(f"learning_rate: got {rate!r}, needs a number from {least:.1e} to {most:.1e}")


class Run:
    """A run in ``folder``; made by `Run.start` or `Run.resume`, which do all the checking, and carried on by `train`.

    Attributes
    ----------
    settings : Settings
    text : text.Text
    vocabulary : data.Vocabulary
    inputs, labels : int32 (batches, T, B)
    parameters : dict
        NumPy arrays by name, as they were after ``epoch``.
    epoch : int
        The last one finished, 0 before the first.
    metrics : list of dict
        One for each epoch, as in metrics.jsonl.
    """

    def __init__(self, folder, settings, book):
        settings.check()
        self.folder, self.settings, self.text = folder, settings, book
        self.vocabulary = data.Vocabulary(book.characters)
        self.inputs, self.labels = data.batches(
            self.vocabulary.encode(book.characters), settings.sequence_length, settings.batch_size)
        self.parameters = model.initialise(len(self.vocabulary), settings.hidden, settings.seed)
        self.epoch, self.moving_loss, self.metrics = 0, None, []

    @classmethod
    def start(cls, settings, folder=None):
        """Begin a run in a folder that holds none yet. It is made if need be, and holds a checkpoint at once.

        Parameters
        ----------
        settings : Settings
        folder : str
            By default runs/<text>-<time>.

        Raises
        ------
        OSError, ValueError
            A setting or a text that cannot be used, or a folder that holds a run or cannot be written to.
        """
        if settings.step is None:
            settings = settings._replace(step=operators.choice())
        settings.check()
        book = text.load(settings.text)
        if folder is None:
            stem = os.path.splitext(os.path.basename(book.name))[0]
            folder = os.path.join("runs", f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        run = cls(folder, settings._replace(text=book.name), book)
        for name in (checkpoint.FILE, RECORD, METRICS, SAMPLES, PLOT):
            if os.path.exists(run._path(name)):
                raise FileExistsError(f"out: {folder} already holds a run ({name}): --resume it or name another folder")
        try:
            os.makedirs(folder, exist_ok=True)
            run._save()
            run._record(settings.text)
        except OSError as error:
            raise OSError(f"out: cannot write to {folder}: {error.strerror}") from error
        return run

    @classmethod
    def resume(cls, folder, given):
        """Take up a run where its checkpoint is.

        Parameters
        ----------
        folder : str
        given : dict
            Settings by name that were asked for again. ``epochs`` may be a new number; the others must be the run's.

        Raises
        ------
        OSError, ValueError
            No run or a damaged one, a setting that is not the run's, a text that is no longer the same.
        """
        saved = checkpoint.load(folder)
        try:
            settings = Settings(**{name: saved.settings[name] for name in Settings._fields})
            epoch, moving_loss, sha256, written = (
                saved.settings[name] for name in ("epoch", "moving_loss", "sha256", "written"))
        except KeyError as error:
            raise ValueError(f"checkpoint: the one in {folder} lacks {error} and cannot be resumed") from None
        for name, value in given.items():
            value = text.name_of(value) if name == "text" else value
            if name != "epochs" and value != getattr(settings, name):
                raise ValueError(f"{name}: got {value!r}, but the run in {folder} has {getattr(settings, name)!r}")
        settings = settings._replace(epochs=given.get("epochs", settings.epochs))
        if settings.epochs <= epoch:
            raise ValueError(f"epochs: got {settings.epochs}, needs more than the {epoch} that the run in {folder} has")
        book = text.load(settings.text)
        if book.sha256 != sha256:
            raise ValueError(f"text: {book.source} is not the text of the run in {folder}: its sha256 is "
                             f"{book.sha256}, not {sha256}")
        run = cls(folder, settings, book)
        run.parameters, run.epoch, run.moving_loss = saved.parameters, epoch, moving_loss
        for name, size in written.items():
            files.cut(run._path(name), size)
        run.metrics = run._read_metrics()
        run._record(settings.text)
        return run

    def train(self, on_batch):
        """Train to the last epoch: a generator that yields after each epoch, when all of it is on disk.

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
            Training has diverged. The checkpoint is that of the last good epoch.
        OSError
            Something could not be written. The same holds.
        """
        inputs, labels = (mx.nd.array(tokens, dtype="int32") for tokens in (self.inputs, self.labels))
        learner = self._learner()
        drawn = time.monotonic()
        try:
            while self.epoch < self.settings.epochs:
                self._train_epoch(learner, inputs, labels, on_batch)
                samples = self._sample()
                self._write(samples)
                if time.monotonic() - drawn > _PLOT_PAUSE:
                    self._draw()
                    drawn = time.monotonic()
                yield self.metrics[-1], samples
        finally:
            self._draw()

    def _learner(self):
        if self.settings.step == "gluon":
            return network.Learner(self.parameters)
        module = {"native": operators.native, "custom": operators.custom, "reference": reference}[self.settings.step]
        return training.Learner(self.parameters, module.rnn_sequence)

    def _train_epoch(self, learner, inputs, labels, on_batch):
        epoch, moving_loss, losses = self.epoch + 1, self.moving_loss, []
        learning_rate = training.learning_rate_of(epoch, self.settings.learning_rate)
        began = time.perf_counter()
        try:
            for loss in learner.train_epoch(inputs, labels, learning_rate):
                moving_loss = training.moving_average(moving_loss, loss)
                losses.append(loss)
                on_batch(moving_loss)
            arrays = learner.arrays()
        except FloatingPointError as error:
            raise FloatingPointError(f"epoch {epoch}: {error}; try a smaller learning rate. "
                                     f"{self._path(checkpoint.FILE)} holds epoch {self.epoch}") from None
        seconds = time.perf_counter() - began
        loss = float(np.mean(losses))
        self.parameters, self.epoch, self.moving_loss = arrays, epoch, moving_loss
        self.metrics.append(dict(
            epoch=epoch, loss=loss, moving_loss=moving_loss, perplexity=training.perplexity(loss), lr=learning_rate,
            tokens_per_second=inputs.size / seconds, seconds=seconds))

    def prompts(self):
        """The tutorial's two prompts; for one with characters that the text lacks, a stretch of the text itself."""
        characters = self.text.characters
        starts = range(0, len(characters), math.ceil(len(characters) / len(PROMPTS)))
        return [characters[start:start + len(prompt)] if self.vocabulary.missing(prompt) else prompt
                for prompt, start in zip(PROMPTS, starts)]

    def _sample(self):
        return [(prompt, sampling.sample(self.parameters, self.vocabulary, prompt, _SAMPLE_LENGTH, _SAMPLE_TEMPERATURE,
                                         seed=(self.settings.seed, self.epoch, index)))
                for index, prompt in enumerate(self.prompts())]

    def _write(self, samples):
        parts = [f"=== epoch {self.epoch}: loss {self.metrics[-1]['loss']:.4f}, temperature {_SAMPLE_TEMPERATURE} ==="]
        parts += [f"--- {prompt!r} goes on:\n{prompt}{continuation}" for prompt, continuation in samples]
        files.append(self._path(SAMPLES), "\n\n".join(parts) + "\n\n\n")
        files.append(self._path(METRICS), json.dumps(self.metrics[-1]) + "\n")
        self._save()

    def _save(self):
        written = {name: files.size(self._path(name)) for name in (METRICS, SAMPLES)}
        checkpoint.save(self._path(checkpoint.FILE), checkpoint.Checkpoint(self.parameters, self.vocabulary, dict(
            self.settings._asdict(), epoch=self.epoch, moving_loss=self.moving_loss, sha256=self.text.sha256,
            written=written, rnn_ops=rnn_ops.__version__)))

    def _record(self, asked):
        """Write run.json. One that is there already is a resumed run's: what was asked first and its sessions stay."""
        sessions = []
        if os.path.exists(self._path(RECORD)):
            with open(self._path(RECORD), encoding="utf-8") as file:
                old = json.load(file)
            asked, sessions = old["text"]["asked"], old["sessions"]
        batches, T, B = self.inputs.shape
        sessions.append(dict(
            first_epoch=self.epoch + 1, started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            versions=dict(python=platform.python_version(), numpy=np.__version__, mxnet=mx.__version__,
                          rnn_ops=rnn_ops.__version__)))
        record = dict(
            text=dict(asked=asked, name=self.text.name, source=self.text.source, sha256=self.text.sha256,
                      characters=len(self.text.characters), symbols=len(self.vocabulary), notice=self.text.notice),
            settings=self.settings._asdict(), batches_per_epoch=batches, tokens_per_epoch=batches * T * B,
            parameters=self.parameter_count, prompts=self.prompts(), sessions=sessions)
        with files.replacing(self._path(RECORD)) as file:
            file.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")

    @property
    def parameter_count(self):
        return sum(array.size for array in self.parameters.values())

    def _read_metrics(self):
        if not os.path.exists(self._path(METRICS)):
            return []
        with open(self._path(METRICS), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _draw(self):
        if self.metrics:
            with files.replacing(self._path(PLOT)) as file:
                name = os.path.basename(self.text.name)
                plot.draw(file, self.metrics, f"{name}, {self.settings.hidden} hidden units")

    def _path(self, name):
        return os.path.join(self.folder, name)
