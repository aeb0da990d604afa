"""Show a run while it trains: a bar and samples on a terminal, one line an epoch elsewhere."""
import math
import sys
import textwrap
import time
import unicodedata

from tqdm import tqdm

from rnn_ops_timemachine import descent, hints, prompts, signals, streams
from rnn_ops_timemachine.run import Follower, Run


def follow(run: Run, quiet: bool = False) -> None:
    """Train a `run.Run` to its end and show it on stdout (the bar on stderr, where that is a terminal).

    A stdout that can no longer be written to does not end the training: a line on stderr says so.

    Parameters
    ----------
    run : run.Run
    quiet : bool
        Show only the run's folder, at the end.

    Raises
    ------
    FloatingPointError, OSError, MemoryError, RuntimeError
        As `run.Run.train`.
    signals.Interrupted
        Ctrl-C was pressed, or another signal came; the current batch was finished.
    """
    if isinstance(run, Follower):
        with signals.held_back() as raise_interrupt:
            for _ in run.train(lambda loss: raise_interrupt()):
                pass
        return
    batches, T, B = run.inputs.shape
    epochs, columns = run.settings.epochs, hints.columns()

    def show(*lines):
        if not quiet:
            _show(bar.write, *lines)

    terminal = sys.stdout.isatty()
    with tqdm(total=epochs * run.inputs.size, initial=run.epoch * run.inputs.size, unit=" tokens", unit_scale=True,
              file=sys.stderr, disable=quiet or not sys.stderr.isatty(), dynamic_ncols=True, leave=False,
              bar_format="epoch {desc}|{bar}| {percentage:.0f}%, {remaining} left, {rate_fmt}{postfix}"
              ) as bar, signals.held_back() as raise_interrupt:

        def on_batch(moving_loss):
            raise_interrupt()
            bar.set_description_str(f"{run.epoch + 1}/{epochs} ", refresh=False)
            bar.set_postfix_str(f"loss {moving_loss:.3f}, perplexity {descent.perplexity(moving_loss):.2f}",
                                refresh=False)
            bar.update(B * T)

        show(*_wrapped(f"text: {run.text.name}, {len(run.text.characters):,} characters, {len(run.vocabulary)} symbols, "
                       f"{batches} batches of {B} x {T} an epoch, from {run.text.source}", columns),
             *_wrapped(f"model: {run.settings.hidden} hidden units, {run.parameter_count:,} parameters, "
                       f"{run.settings.step} step{_split(run.exchange)}; " + (
                           f"nothing is left to train in {run.folder}" if run.finished else
                           f"epochs {run.epoch + 1} to {epochs} go to {run.folder}"), columns))
        began, samples = time.monotonic(), None
        for metrics, samples in run.train(on_batch):
            show(_line(metrics, epochs, columns))
            if began and run.epoch < epochs:  # the time of one epoch, with its samples, is known now
                more = epochs - run.epoch
                show(f"{more:,} more in about {duration(more * (time.monotonic() - began))}")
            began = None
            if terminal:
                show(*_lines(samples, columns))
    if run.not_drawn:
        streams.complain(f"loss.png could not be drawn: {run.not_drawn}")
    if quiet:
        print(run.folder)
        return
    samples = samples or run.samples()  # the run was finished before
    if not terminal:
        show(*_lines(samples, columns))
    if run.stopped_early:
        show(f"stopped early: the validation loss has had no new minimum in {run.settings.patience} epochs")
    if run.held_out:
        epoch, loss, wrong = run.state.best_epoch, f"{run.state.best_loss:.4f}", run.why_no_best()
        show(*_wrapped(f"epoch {epoch} had the smallest validation loss, {loss}; its model is lost: {wrong}" if wrong else
                       f"best.npz is the model of epoch {epoch}, with the smallest validation loss, {loss}", columns))
    files, prompt = run.files(), prompts.for_a_shell(run.prompts, run.vocabulary)
    show(*_wrapped(f"{run.folder} holds {', '.join(files[:-1])} and {files[-1]}" + ("; to continue a text:" if prompt else ""),
                   columns))
    if prompt:
        show(hints.command_lines("sample", *hints.option("--checkpoint", run.folder), *hints.option("--prompt", prompt)))


def _split(exchange):
    """How the batches are split, in words."""
    if exchange is None:
        return ""
    workers = [f"{exchange.workers} worker{'s' * (exchange.workers > 1)}"] * (exchange.about()["kvstore"] == "dist_sync")
    contexts = [", ".join(map(str, exchange.contexts))] * (len(exchange.contexts) > 1)
    return "".join(f" on {part}" for part in workers + contexts)


class Waiting:
    """Tells the user why a long start takes long: at once, and again after every two seconds.

    Called with a text for the user. It also raises `signals.Interrupted`, by the function that `signals.held_back` yields.
    """

    def __init__(self, raise_interrupt, quiet=False):
        self._raise_interrupt, self._said, self._quiet = raise_interrupt, -math.inf, quiet

    def __call__(self, doing):
        self._raise_interrupt()
        if time.monotonic() - self._said >= 2:
            self._said = time.monotonic()
            if not self._quiet:
                _show(lambda text: print(text, flush=True), doing)


def _show(write, *lines):
    """Write lines to stdout. If that is no longer possible a line on stderr says so, and training goes on."""
    try:
        write("\n".join(lines))
        sys.stdout.flush()
    except streams.Closed as closed:
        streams.complain(f"{closed}: the training goes on")


def _line(metrics, epochs, columns):
    """An epoch on a line, with as many of its figures as there is room for. metrics.jsonl has all of them."""
    line, *parts = (f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {metrics['loss']:.4f}",
                    f"perplexity {metrics['perplexity']:.2f}",
                    *([f"validation {metrics['validation_loss']:.4f}"] if "validation_loss" in metrics else []),
                    f"lr {metrics['lr']:.4g}", f"{metrics['tokens_per_second']:,.0f} tokens/s", f"{metrics['seconds']:.2f} s")
    for part in parts:
        if len(line) + 2 + len(part) > columns:
            break
        line += f"  {part}"
    return line


def _wrapped(text, columns):
    """Lines of a text, no wider than the screen unless a word is, such as a path."""
    return textwrap.wrap(streams.one_line(text), columns, subsequent_indent="  ", break_long_words=False,
                         break_on_hyphens=False)


def duration(seconds: float) -> str:
    """A time in words, in its two largest units: 1 s, 50 s, 24 min, 1 h 5 min, 2 d 3 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _lines(samples, columns):
    return [shorten(f"  {prompt}{continuation}", columns - 1) for prompt, continuation in samples]


def shorten(text: str, columns: int) -> str:
    """Text on one screen line, cut to so many columns; white space and unprintable characters become spaces."""
    line, width = "", 0
    for character in text:
        character = character if character.isprintable() else " "
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            break
        line += character
    return line
