"""The picture of a grid: in each cell how many times as fast as the best peer we are, and who that is."""
from rnn_ops_timemachine import files

from . import grid, report
from .providers import KERNEL, PUBLIC

_AHEAD, _LEVEL, _BEHIND, _TEXT = "#2f7f79", "#f4f1ea", "#c8553d", "#333f48"
_FARTHEST = 4  # from this ratio on the colour is full
_SHORT = {"jax.lax.scan": "JAX", "mx.gluon.rnn.RNN": "gluon", "torch.nn.RNN": "torch", "torch.nn.RNN, 1 thread": "torch",
          "onnxruntime": "onnx", "NumPy loop": "NumPy"}


def draw(result, path):
    """Write a PNG, 2000 pixels wide."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import colors, pyplot
    from rnn_ops_timemachine import plot

    by_direction = grid.cells(result["rows"])
    sizes = list(dict.fromkeys(cell.sizes for its in by_direction.values() for cell in its))
    colours = colors.LinearSegmentedColormap.from_list("ahead", [_BEHIND, _LEVEL, _AHEAD])
    scale = colors.LogNorm(1 / _FARTHEST, _FARTHEST)
    with plot.plain_text(), pyplot.rc_context({"font.size": 8, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, panels = pyplot.subplots(1, len(by_direction), figsize=(10, 0.27 * len(sizes) + 1.5), dpi=200, sharey=True,
                                         squeeze=False, constrained_layout=True)
        for axes, (direction, its) in zip(panels[0], by_direction.items()):
            _draw_panel(axes, direction, its, lambda ratio: colours(scale(ratio)))
        panels[0][0].set_yticks(range(len(sizes)))
        panels[0][0].set_yticklabels(sizes)
        panels[0][0].set_ylim(len(sizes) - 0.5, -0.5)
        figure.supxlabel(_caption(result), fontsize=7, color=_TEXT)
        with files.writing(path) as file:
            figure.savefig(file, format="png")
    pyplot.close(figure)


def _draw_panel(axes, direction, its, colour):
    from matplotlib.patches import Rectangle

    columns = [(provider, kind) for provider in (KERNEL, PUBLIC) for kind in grid.INPUTS]
    for at, cell in enumerate(its):
        for provider, row in cell.ours.items():
            x, y = columns.index((provider, cell.input)), at // len(grid.INPUTS)
            if "ahead" not in row:
                continue
            ratio, peer = row["ahead"], _SHORT.get(cell.peer["provider"], cell.peer["provider"])
            strong = not _FARTHEST ** -0.6 < ratio < _FARTHEST ** 0.6
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour(ratio), edgecolor="white"))
            axes.text(x, y, f"{report.ahead(ratio)}  {peer}", ha="center", va="center", fontsize=7,
                      color="white" if strong else _TEXT, fontweight="bold" if ratio < 1 else "normal")
    axes.set_title(direction, loc="left")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)))
    axes.set_xticklabels([f"{grid.COLUMNS[provider]},\n{kind}" for provider, kind in columns])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _caption(result):
    where = result["environment"]
    return (f"How many times as fast as the best peer, and who that is: best calls, float32, T×B×I×H, on {where['processor']}, "
            f"{where['cores']} cores, {result['date'][:10]}. {report.BEHIND.strip()}: we are behind.")
