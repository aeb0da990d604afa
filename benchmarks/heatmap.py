"""Pictures of many shapes, a coloured box each: how many times as fast as the best peer we are."""
from typing import Any, NamedTuple, Optional

from rnn_ops_timemachine import files

from . import gpu_report, grid, report
from .problems import BOTH, FORWARD, TUTORIAL
from .providers import KERNEL, PUBLIC

_AHEAD, _LEVEL, _BEHIND, _DARK, _LIGHT = "#2f7f79", "#f4f1ea", "#c8553d", "#333f48", "#ffffff"
_SHORT = {"jax.lax.scan": "JAX", "mx.gluon.rnn.RNN": "gluon", "torch.nn.RNN": "torch", "torch.nn.RNN, 1 thread": "torch",
          "onnxruntime": "onnx", "NumPy loop": "NumPy"}


class _Box(NamedTuple):
    x: int
    y: int
    text: str
    value: Optional[float]  # decides the colour; None: grey
    bold: bool = False


class _Scale(NamedTuple):
    """Colours of values from ``lowest`` to ``highest``, on a logarithmic scale."""
    lowest: float
    highest: float
    colours: Any
    label: str = ""  # beside a bar of the colours, with ``ticks`` {value: text}; "": no bar
    ticks: dict = {}


def draw_grid(result, path):
    """Write a PNG of a grid on a CPU, 2000 pixels wide: our kernel and our operator, and the name of the best peer."""
    by_direction = grid.comparisons(result["rows"])
    sizes = list(dict.fromkeys(one.sizes for its in by_direction.values() for one in its))
    columns = [(provider, kind) for provider in (KERNEL, PUBLIC) for kind in grid.INPUTS]
    panels = {direction: [
        _Box(columns.index((provider, one.input)), at // len(grid.INPUTS), f"{report.ahead(row['ahead'])}  {_short(one.peer)}",
             row["ahead"], row["ahead"] < 1)
        for at, one in enumerate(its) for provider, row in one.ours.items() if "ahead" in row]
        for direction, its in by_direction.items()}
    where = result["environment"]
    caption = (f"How many times as fast as the best peer, and who that is: best calls, float32, T×B×I×H, on "
               f"{where['processor']}, {where['cores']} cores, {result['date'][:10]}. {report.BEHIND.strip()}: we are behind.")
    names = [f"{grid.COLUMNS[provider]},\n{kind}" for provider, kind in columns]
    _draw(path, (10, 0.27 * len(sizes) + 1.5), panels, names, sizes, _Scale(1 / 4, 4, _ahead_or_behind()), caption)


def draw_gpu(result, path):
    """Write a PNG of a run on a GPU: a box for each H and B, coloured by how many times as long cuDNN takes, or, where that was
    not timed, by the floor's share of the time; µs a step and family in words. A ValueError if no row has the tutorial's T."""
    rows = result["rows"]
    hidden, batches = gpu_report.axes(rows)
    if not hidden:
        raise ValueError(f"rows: got none of T = {TUTORIAL.T}, needs one: there is nothing to draw")

    def pair(H, B, direction):
        return gpu_report.at(rows, TUTORIAL._replace(B=B, H=H), direction)

    torch = any(all(pair(H, B, FORWARD)) for H in hidden for B in batches)

    def boxes(direction):
        for y, H in enumerate(hidden):
            for x, B in enumerate(batches):
                ours, theirs = pair(H, B, direction)
                if ours:
                    text = f"{report.digits(1e6 * ours['seconds_per_step'])} µs\n{ours['family']}"
                    value = theirs["median"] / ours["median"] if theirs else None if torch else (
                        ours["floor_cycles"] / ours["cycles_per_step"])
                    if value is not None:
                        text = f"{value:.2f}×\n{text}" if torch else f"{value:.0%}\n{text}"
                    yield _Box(x, y, text, value)

    if torch:
        scale = _Scale(1 / 8, 8, _ahead_or_behind(), "times as long as ours that torch.nn.RNN takes",
                       {value: f"{value:.3g}×" for value in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)})
    else:
        scale = _Scale(0.01, 1, "Blues", "floor ÷ our time", {value: f"{value:.0%}" for value in (0.01, 0.03, 0.1, 0.3, 1)})
    caption = (f"{result['gpu']['name']}, float32, T = {TUTORIAL.T}, I = {TUTORIAL.I}: µs a step on the GPU, medians of "
               "interleaved rounds, and " + ("how many times as long torch.nn.RNN (cuDNN, no TF32) takes." if torch else
                                 "how near that is to the floor by arithmetic."))
    _draw(path, (2.2 + 1.7 * len(batches), 1.5 + 0.62 * len(hidden)), {one: list(boxes(one)) for one in (FORWARD, BOTH)},
          batches, hidden, scale, caption, axes_labels=("rows of the batch, B", "hidden units, H"))


def _short(row):
    return _SHORT.get(row["provider"], row["provider"])


def _ahead_or_behind():
    from matplotlib.colors import LinearSegmentedColormap
    return LinearSegmentedColormap.from_list("ahead", [_BEHIND, _LEVEL, _AHEAD])


def _draw(path, size, panels, columns, rows, scale, caption, axes_labels=("", "")):
    """A panel of boxes for each title in ``panels``, side by side."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    from rnn_ops_timemachine import plot

    colours = matplotlib.cm.ScalarMappable(LogNorm(scale.lowest, scale.highest), scale.colours)
    with plot.plain_text(), pyplot.rc_context({"font.size": 8, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, drawn = pyplot.subplots(1, len(panels), figsize=size, dpi=200, sharey=True, squeeze=False,
                                        constrained_layout=True)
        for axes, (title, boxes) in zip(drawn[0], panels.items()):
            for box in boxes:
                colour = colours.to_rgba(box.value) if box.value is not None else (0.9, 0.9, 0.9, 1)
                brightness = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]
                axes.add_patch(Rectangle((box.x - 0.5, box.y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
                axes.text(box.x, box.y, box.text, ha="center", va="center", fontsize=7,
                          fontweight="bold" if box.bold else "normal", color=_DARK if brightness > 0.6 else _LIGHT)
            axes.set_title(title, loc="left")
            axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=axes_labels[0],
                     xticks=range(len(columns)), yticks=range(len(rows)), xticklabels=columns, yticklabels=rows)
            axes.xaxis.tick_top()
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        drawn[0][0].set_ylabel(axes_labels[1])
        if scale.label:
            bar = figure.colorbar(colours, ax=drawn[0], aspect=30, pad=0.01)
            bar.set_label(scale.label)
            bar.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()), minor=False)
            bar.ax.minorticks_off()
        figure.supxlabel(caption, fontsize=7, color=_DARK)
        with files.writing(path) as file:
            figure.savefig(file, format="png")
    pyplot.close(figure)
