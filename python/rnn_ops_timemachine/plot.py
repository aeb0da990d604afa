"""Draw the loss of a run over its epochs.

matplotlib is imported when a plot is drawn and not before: a fault in it or its settings costs the plot and nothing else.
"""
import contextlib
import warnings
from typing import BinaryIO, Iterator, List

import numpy as np

_LOSS, _MOVING, _HELD_OUT, _INK = "#1b6ca8", "#e07b39", "#3a8f5c", "#444444"


def draw(file: BinaryIO, metrics: List[dict], title: str) -> None:
    """Write a PNG of the loss.

    Parameters
    ----------
    file : binary file
    metrics : list of dict
        One for each epoch, as in metrics.jsonl; at least one.
    title : str
        Drawn as it is: a $ does not begin mathematics.
    """
    with plain_text():
        _draw(file, metrics, "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in title))


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Inside, matplotlib draws text as it is, not as mathematics and not through TeX, and a box for each character that its
    font lacks."""
    import matplotlib
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _draw(file, metrics, title):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

    epochs = [line["epoch"] for line in metrics]
    # Without pyplot, which would look for a display and keep global state.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if len(epochs) <= 30 else None
    axes.plot(epochs, [line["moving_loss"] for line in metrics], color=_MOVING, linewidth=1.3, linestyle="--",
              label="moving average over batches")
    axes.plot(epochs, [line["loss"] for line in metrics], color=_LOSS, linewidth=2, marker=marker, markersize=4,
              label="mean over the epoch")
    held_out = [(line["epoch"], line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if held_out:
        axes.plot(*zip(*held_out), color=_HELD_OUT, linewidth=1.6, label="on the validation part")
    axes.set_title(f"{title}: perplexity {metrics[-1]['perplexity']:.2f} after epoch {epochs[-1]:,}",
                   loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("epoch", color=_INK)
    axes.set_ylabel("loss, nats per character", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    margin = max(0.5, 0.02 * len(epochs))
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.legend(frameon=False, labelcolor=_INK)
    perplexity = axes.secondary_yaxis("right", functions=(np.exp, np.log))
    perplexity.set_ylabel("perplexity", color=_INK)
    perplexity.set_yscale("log")
    perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    perplexity.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    perplexity.yaxis.set_minor_locator(NullLocator())
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for axis in (axes, perplexity):
        axis.tick_params(colors=_INK, length=0)
    perplexity.spines["right"].set_visible(False)
    FigureCanvasAgg(figure).print_png(file)
