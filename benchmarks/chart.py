"""The picture: bars of time at the first shape with tokens, the tutorial's, and of tokens a second in training. That of a grid is
drawn by heatmap.py.
"""
from typing import NamedTuple, Optional

from rnn_ops_timemachine import files

from . import report
from .measure import FLOOR
from .providers import OURS
from .trainers import MODE as TRAINING
from .worker import OK

_OURS, _OTHERS, _MARK = "#c8553d", "#a9b4c2", "#333f48"


def draw(result, path):
    """Write a PNG, 1800 pixels wide, for a README that shows it at half that."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from rnn_ops_timemachine import plot

    lines = _panels(result["rows"])
    heights = [len(line[0].rows) + 1 for line in lines]
    with plot.plain_text(), pyplot.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure = pyplot.figure(figsize=(9, 0.28 * sum(heights) + 0.5), dpi=200, constrained_layout=True)
        grid = figure.add_gridspec(len(lines), 2, height_ratios=heights)
        for i, line in enumerate(lines):
            for j, panel in enumerate(line):
                axes = figure.add_subplot(grid[i, j] if len(line) > 1 else grid[i, :])
                _draw_panel(axes, panel, names=j == 0)
        figure.supxlabel(_caption(lines[0][0].rows[0]["stage"], result["environment"]), fontsize=7, color=_MARK)
        with files.writing(path) as file:
            figure.savefig(file, format="png")
    pyplot.close(figure)


class _Panel(NamedTuple):
    direction: str
    rows: list
    floor: Optional[float]  # seconds


def _panels(rows):
    """Lines of panels: both directions of the recurrence side by side, the training step below."""
    stages = [directions for _, directions, _ in report.groups(rows)]
    recurrence = [directions for directions in stages if directions[0][0] != TRAINING]
    tokens = [directions for directions in recurrence if directions[0][1][0]["input"] == "tokens"]
    chosen = (tokens or recurrence)[:1] + [directions for directions in stages if directions[0][0] == TRAINING]
    return [[_Panel(direction, [row for row in its if row["provider"] != FLOOR],
                    next((row["median"] for row in its if row["provider"] == FLOOR), None)) for direction, its in directions]
            for directions in chosen]


def _draw_panel(axes, panel, names):
    training = panel.direction == TRAINING
    lengths = [0 if row["status"] != OK else row["tokens_per_second"] if training else row["median"] * 1e3
               for row in panel.rows]
    room = max(lengths) or 1
    axes.barh(range(len(lengths)), lengths, height=0.72,
              color=[_OURS if row["provider"] in OURS else _OTHERS for row in panel.rows])
    for i, (row, length) in enumerate(zip(panel.rows, lengths)):
        text = row["status"] if row["status"] != OK else f"{length:,.0f}" if training else report.digits(length)
        if report.not_credible(row, ["median"]):
            text += ", not credible"
        axes.text(length + 0.012 * room, i, text, va="center", color=_MARK)
    if panel.floor and not training:
        x = panel.floor * 1e3
        axes.axvline(x, color=_MARK, linewidth=1, linestyle=(0, (3, 2)))
        axes.text(x + 0.012 * room, -0.56, f"floor {report.digits(x)}", fontsize=7, color=_MARK, va="center")
    axes.set_title(f"{panel.direction}: tokens/s, more is better" if training else f"{panel.direction}: ms, less is better",
                   loc="left")
    axes.set_xlim(0, 1.14 * room)
    axes.set_ylim(len(lengths) - 0.5, -0.75)
    axes.set_yticks(range(len(lengths)))
    axes.set_yticklabels([row["provider"] for row in panel.rows] if names else [])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)
    axes.xaxis.set_visible(False)


def _caption(stage, where):
    return (f"T×B×I×H = {stage}, float32, medians of interleaved rounds, on {where['processor']}, {where['cores']} "
            "cores. Floor: the same operations at the processor's measured peak.")
