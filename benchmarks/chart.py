"""The chart of a result: one bar a provider, the shortest first, at the first shape with tokens (the tutorial's).

It shows forward+backward, or the only direction that was measured. heatmap.py draws the result of a grid.
"""
from rnn_ops_timemachine import files

from . import report
from .measure import FLOOR
from .providers import CUSTOM, GLUON, NATIVE, OURS, TORCH_LAYER, TORCH_SEQUENCE
from .trainers import MODE as TRAINING
from .worker import NOT_INSTALLED, NOT_OFFERED, OK

_OURS, _PEER, _BEST, _INK = "#c8553d", "#a9b4c2", "#6c7f93", "#333f48"
# Those of ours that users call. Every factor refers to the first that was timed. The tables show all of ours.
_SHOWN = (NATIVE, CUSTOM, GLUON, TORCH_SEQUENCE, TORCH_LAYER)
_LABELS = {NATIVE: "rnn_ops, native operator", CUSTOM: "rnn_ops, CustomOp in Python", GLUON: "rnn_ops.gluon.RNN",
           "ndarray loop": "the tutorial's ndarray loop"}


def draw(result, path):
    """Write a PNG, 1800 pixels wide, for a README that shows it at half that."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from rnn_ops_timemachine import plot

    rows, floor = _chosen(result["rows"])
    with plot.plain_text(), pyplot.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, axes = pyplot.subplots(figsize=(9, 0.29 * len(rows) + 1.1), dpi=200, constrained_layout=True)
        _bars(axes, rows, floor)
        figure.supxlabel(_caption(rows[0]["stage"], result["environment"]), fontsize=7, color=_INK)
        with files.writing(path) as file:
            figure.savefig(file, format="png")
    pyplot.close(figure)


def _chosen(rows):
    """The rows to draw, the fastest first and those without a time last, and the floor's time, or None."""
    stages = {stage: dict(directions) for stage, directions, _ in report.groups(rows)}
    stage = min(stages.values(), key=lambda it: (TRAINING in it, next(iter(it.values()))[0]["input"] != "tokens"))
    found = stage.get("forward+backward") or next(iter(stage.values()))
    floor = next((row["median"] for row in found if row["provider"] == FLOOR), None)
    bars = [row for row in found if row["provider"] != FLOOR and row["status"] not in (NOT_OFFERED, NOT_INSTALLED)]
    if any(row["provider"] in _SHOWN for row in bars):  # else neither MXNet nor PyTorch is installed
        bars = [row for row in bars if row["provider"] in _SHOWN or row["provider"] not in OURS]
    return sorted(bars, key=lambda row: row.get("median", float("inf"))), floor


def _bars(axes, rows, floor):
    times = [row.get("median", 0) * 1e3 for row in rows]
    room = max(times) or 1
    unit = next((row["median"] for name in (*_SHOWN, *OURS) for row in rows
                 if row["provider"] == name and row["status"] == OK), None)
    best_peer = next((row for row in rows if row["provider"] not in OURS and row["status"] == OK), None)
    colours = [_OURS if row["provider"] in OURS else _BEST if row is best_peer else _PEER for row in rows]
    axes.barh(range(len(rows)), times, height=0.74, color=colours)
    for i, (row, time) in enumerate(zip(rows, times)):
        axes.text(time + 0.01 * room, i, _text(row, unit) + (", the best peer" if row is best_peer else ""),
                  va="center", color=_INK, fontweight="bold" if row["provider"] in OURS else "normal")
    if floor:
        axes.axvline(floor * 1e3, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.text(floor * 1e3 + 0.01 * room, -0.62, f"floor {report.digits(floor * 1e3)}", fontsize=7, color=_INK, va="center")
    axes.set_title(f"{rows[0]['direction']}, ms: less is better", loc="left")
    axes.set_xlim(0, 1.16 * room)
    axes.set_ylim(len(rows) - 0.5, -0.85)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([_LABELS.get(row["provider"], row["provider"]) for row in rows])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)
    axes.xaxis.set_visible(False)


def _text(row, unit):
    """A bar's time and how many times as long as ours that is; the status of a provider without a time."""
    if row["status"] != OK:
        return row["status"]
    text = report.digits(row["median"] * 1e3)
    if report.not_credible(row, ["median"]):
        text += ", not credible"
    return f"{text}   {row['median'] / unit:.1f}×" if unit else text


def _caption(stage, where):
    return (f"T×B×I×H = {stage}, float32, medians of interleaved rounds, on {where['processor']}, {where['cores']} cores. "
            "Factors: time / time of our operator.\nFloor: the same multiply-adds at the processor's measured peak.")
