"""Show a run while it trains: a bar and samples on a terminal, one line an epoch elsewhere."""
import contextlib
import shlex
import shutil
import signal
import sys
import time
import unicodedata

from tqdm import tqdm

from timemachine import training


def follow(run):
    """Train a `run.Run` to its end and show it on stdout (the bar on stderr, where that is a terminal).

    Raises
    ------
    FloatingPointError, OSError
        As `run.Run.train`.
    KeyboardInterrupt
        Ctrl-C was pressed; the batch under way was finished.
    """
    batches, T, B = run.inputs.shape
    epochs = run.settings.epochs
    print(f"text: {run.text.name}, {len(run.text.characters):,} characters, {len(run.vocabulary)} symbols, "
          f"{batches} batches of {B} x {T} an epoch, from {run.text.source}")
    print(f"model: {run.settings.hidden} hidden units, {run.parameter_count:,} parameters, {run.settings.step} step; "
          f"epochs {run.epoch + 1} to {epochs} go to {run.folder}", flush=True)
    terminal = sys.stdout.isatty()
    with tqdm(total=epochs * run.inputs.size, initial=run.epoch * run.inputs.size, unit=" tokens", unit_scale=True,
              file=sys.stderr, disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False,
              bar_format="epoch {desc}|{bar}| {percentage:.0f}%, {remaining} left, {rate_fmt}{postfix}"
              ) as bar, _interrupts_held_back() as raise_interrupt:

        def on_batch(moving_loss):
            raise_interrupt()
            bar.set_description_str(f"{run.epoch + 1}/{epochs} ", refresh=False)
            bar.set_postfix_str(f"loss {moving_loss:.3f}, perplexity {training.perplexity(moving_loss):.2f}",
                                refresh=False)
            bar.update(B * T)

        began = time.monotonic()
        for metrics, samples in run.train(on_batch):
            line = _line(metrics, epochs)
            if began and run.epoch < epochs:  # now that it is known how long one takes, with its samples and all
                line += f", {epochs - run.epoch:,} more in about {duration((epochs - run.epoch) * (time.monotonic() - began))}"
            began = None
            bar.write("\n".join([line] + (_lines(samples) if terminal else [])))
            sys.stdout.flush()
    if not terminal:
        print("\n".join(_lines(samples)))
    print(f"{run.folder} holds model.npz, metrics.jsonl, samples.txt, loss.png and run.json; to continue a text:\n"
          f"rnn-ops sample --checkpoint {shlex.quote(run.folder)} --prompt {shlex.quote(samples[0][0])}")


@contextlib.contextmanager
def _interrupts_held_back():
    """Keep Ctrl-C from raising KeyboardInterrupt wherever Python is, until the function that this yields is called.

    MXNet calls a custom operator's Python from within its own code. A KeyboardInterrupt there does not come through:
    it crashes the process or leaves it waiting for ever.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield lambda: None
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))

    def raise_interrupt():
        if pressed:
            raise KeyboardInterrupt

    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _line(metrics, epochs):
    return (f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  loss {metrics['loss']:.4f}  "
            f"perplexity {metrics['perplexity']:.2f}  lr {metrics['lr']:g}  "
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
