"""Show a run while it trains: a bar and samples on a terminal, one line an epoch elsewhere."""
import math
import shlex
import shutil
import sys
import time
import unicodedata

from tqdm import tqdm

from timemachine import signals, training


def follow(run):
    """Train a `run.Run` to its end and show it on stdout (the bar on stderr, where that is a terminal).

    Raises
    ------
    FloatingPointError, OSError, MemoryError, RuntimeError
        As `run.Run.train`.
    signals.Interrupted
        Ctrl-C was pressed, or another signal came; the batch under way was finished.
    """
    batches, T, B = run.inputs.shape
    epochs = run.settings.epochs
    print(f"text: {run.text.name}, {len(run.text.characters):,} characters, {len(run.vocabulary)} symbols, "
          f"{batches} batches of {B} x {T} an epoch, from {run.text.source}")
    print(f"model: {run.settings.hidden} hidden units, {run.parameter_count:,} parameters, {run.settings.step} step; "
          + (f"nothing is left to train in {run.folder}" if run.finished else
             f"epochs {run.epoch + 1} to {epochs} go to {run.folder}"), flush=True)
    terminal = sys.stdout.isatty()
    with tqdm(total=epochs * run.inputs.size, initial=run.epoch * run.inputs.size, unit=" tokens", unit_scale=True,
              file=sys.stderr, disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False,
              bar_format="epoch {desc}|{bar}| {percentage:.0f}%, {remaining} left, {rate_fmt}{postfix}"
              ) as bar, signals.held_back() as raise_interrupt:

        def on_batch(moving_loss):
            raise_interrupt()
            bar.set_description_str(f"{run.epoch + 1}/{epochs} ", refresh=False)
            bar.set_postfix_str(f"loss {moving_loss:.3f}, perplexity {training.perplexity(moving_loss):.2f}",
                                refresh=False)
            bar.update(B * T)

        began = time.monotonic()
        samples = None
        for metrics, samples in run.train(on_batch):
            line = _line(metrics, epochs)
            if began and run.epoch < epochs:  # now that it is known how long one takes, with its samples and all
                line += f", {epochs - run.epoch:,} more in about {duration((epochs - run.epoch) * (time.monotonic() - began))}"
            began = None
            bar.write("\n".join([line] + (_lines(samples) if terminal else [])))
            sys.stdout.flush()
    samples = samples or run.samples()  # it was finished before
    if not terminal:
        print("\n".join(_lines(samples)))
    if run.stopped_early:
        print(f"stopped early: the validation loss has had no new minimum in {run.settings.patience} epochs")
    if run.held_out:
        print(f"best.npz is the model of epoch {run.state.best_epoch}, with the smallest validation loss, "
              f"{run.state.best_loss:.4f}")
    print(f"{run.folder} holds model.npz, metrics.jsonl, samples.txt, loss.png and run.json; to continue a text:\n"
          f"rnn-ops sample --checkpoint {shlex.quote(run.folder)} --prompt {shlex.quote(samples[0][0])}")


class Waiting:
    """Says what the user waits for, when it takes long: at once, and again whenever two more seconds have passed.

    Called with what is being done. Also raises `signals.Interrupted`, by the function that `signals.held_back` yields.
    """

    def __init__(self, raise_interrupt):
        self._raise_interrupt, self._said = raise_interrupt, -math.inf

    def __call__(self, doing):
        self._raise_interrupt()
        if time.monotonic() - self._said >= 2:
            self._said = time.monotonic()
            print(doing, flush=True)


def _line(metrics, epochs):
    validation = f"validation {metrics['validation_loss']:.4f}  " if "validation_loss" in metrics else ""
    return (f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  loss {metrics['loss']:.4f}  "
            f"perplexity {metrics['perplexity']:.2f}  {validation}lr {metrics['lr']:g}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s  {metrics['seconds']:.2f} s")


def duration(seconds):
    """A time in words, in its two largest units: 1 s, 50 s, 24 min, 1 h 5 min, 2 d 3 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _lines(samples):
    columns = shutil.get_terminal_size().columns - 1
    return [shorten(f"  {prompt}{continuation}", columns) for prompt, continuation in samples]


def shorten(text, columns):
    """Text on one screen line: white space and what cannot be printed as spaces, cut to so many columns."""
    line, width = "", 0
    for character in text:
        character = character if character.isprintable() else " "
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            break
        line += character
    return line
