"""The chart: a cell for each H and B, coloured by how many times as long cuDNN takes; µs a step and family in words."""
from rnn_ops_timemachine import files, plot

from .. import report
from . import tables
from .cells import BOTH, FORWARD, TUTORIAL

_DARK, _LIGHT = "#1f2933", "#ffffff"


def draw(result, path):
    """Write a PNG. Where cuDNN was not timed, the colour is the floor's share of the time."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    rows = result["rows"]
    hidden, batches = tables.axes(rows)
    torch = any(all(tables.of_cell(rows, TUTORIAL._replace(B=B, H=H), FORWARD)) for H in hidden for B in batches)
    with plot.plain_text(), pyplot.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(2.2 + 1.7 * len(batches), 1.5 + 0.62 * len(hidden)), dpi=160,
                                         constrained_layout=True)
        # Both ends as far from 1, so that white is a tie.
        norm = LogNorm(1 / 8, 8) if torch else LogNorm(0.01, 1)
        colours = pyplot.get_cmap("RdBu" if torch else "Blues")
        for axes, mode in zip(panels, (FORWARD, BOTH)):
            for y, H in enumerate(hidden):
                for x, B in enumerate(batches):
                    pair = tables.of_cell(rows, TUTORIAL._replace(B=B, H=H), mode)
                    _draw_cell(axes, x, y, *pair, torch, norm, colours)
            axes.set(xlim=(-0.5, len(batches) - 0.5), ylim=(len(hidden) - 0.5, -0.5), xlabel="rows of the batch, B",
                     xticks=range(len(batches)), yticks=range(len(hidden)), xticklabels=batches, yticklabels=hidden)
            axes.set_title(mode, loc="left")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("hidden units, H")
        panels[1].set_yticklabels([])
        scale = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=panels, aspect=30, pad=0.01)
        scale.set_label("times as long as ours that torch.nn.RNN takes" if torch else "floor ÷ our time")
        ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8] if torch else [0.01, 0.03, 0.1, 0.3, 1]
        scale.set_ticks(ticks, labels=[f"{tick:.3g}×" if torch else f"{tick:.0%}" for tick in ticks], minor=False)
        scale.ax.minorticks_off()
        figure.supxlabel(_caption(result, torch), fontsize=7, color=_DARK)
        with files.writing(path) as file:
            figure.savefig(file, format="png")
    pyplot.close(figure)


def _draw_cell(axes, x, y, ours, theirs, torch, norm, colours):
    from matplotlib.patches import Rectangle
    if not ours:
        return
    text = f"{report.digits(ours['us_per_step'])} µs\n{ours['family']}"
    value = theirs["median"] / ours["median"] if theirs else None if torch else (
        ours["floor_cycles"] / ours["cycles_per_step"])
    if value is not None:
        text = f"{value:.2f}×\n{text}" if torch else f"{value:.0%}\n{text}"
    colour = colours(norm(value)) if value is not None else (0.9, 0.9, 0.9, 1)
    axes.add_patch(Rectangle((x - 0.485, y - 0.47), 0.97, 0.94, facecolor=colour, edgecolor="none"))
    brightness = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]
    axes.text(x, y, text, ha="center", va="center", fontsize=7, linespacing=1.15,
              color=_DARK if brightness > 0.5 else _LIGHT)


def _caption(result, torch):
    return (f"{result['gpu']['name']}, float32, T = {TUTORIAL.T}, V = {TUTORIAL.V}: µs a step on the GPU, medians of "
            "interleaved rounds, and " + ("how many times as long torch.nn.RNN (cuDNN, no TF32) takes." if torch else
                                          "how near that is to the floor by arithmetic."))
