"""The tables of a grid: the best peer in each comparison, and how many times as fast our kernel and our operator are.

A comparison is of one shape, input and direction, a cell of the tables. All of it were given the same input and computed the same
gradients.
"""
import math
import textwrap
from typing import NamedTuple

from . import report
from .measure import FLOOR
from .providers import KERNEL, OURS, OURS_IN_TORCH, PUBLIC, TorchRNN
from .worker import OK

INPUTS = ("dense", "tokens")
COLUMNS = {KERNEL: "kernel", PUBLIC: "operator"}  # provider: the name of its column
_IN_TORCH = "rnn_ops.torch, times as fast as torch.nn.RNN, best calls"
_READS = (
    report.VERIFIED,
    "Providers that take no tokens are given the same as one-hot rows. Times are best calls, in milliseconds; beside them how "
    "many times as long as our kernel, and as our operator, the best peer takes: below 1, and marked "
    f"{report.BEHIND.strip()}, where we are behind.",
    "'of peak': the kernel's operations / best call, as a part of the processor's rate of multiply-adds in registers.")


class Comparison(NamedTuple):
    """The peer with the shortest best call (or None), and our rows by provider, those that were timed."""
    sizes: str
    input: str
    direction: str
    peer: dict
    ours: dict


def comparisons(rows):
    """{direction: [Comparison, …]} in the order of the measurement, dense before tokens."""
    found = {}
    for stage, directions, _ in report.groups(rows):
        for direction, its in directions:
            for kind in INPUTS:
                timed = [row for row in its if row["input"] == kind and row["status"] == OK]
                peers = [row for row in timed if row["provider"] not in (*OURS, FLOOR)]
                found.setdefault(direction, []).append(Comparison(
                    stage, kind, direction, min(peers, key=lambda row: row["best"], default=None),
                    {row["provider"]: row for row in timed if row["provider"] in COLUMNS}))
    return found


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def summary(rows):
    """Rows of a table, a header first: geometric means over the grid and, in brackets, in how many cells we are not behind."""
    table = [["times as fast as the best peer", "best calls", "medians"]]
    for direction, its in comparisons(rows).items():
        for provider, name in COLUMNS.items():
            for kind in INPUTS:
                ours = [one.ours[provider] for one in its if one.input == kind and "ahead" in one.ours.get(provider, ())]
                table.append([f"{direction}: {name}, {kind}", *(_mean([row[key] for row in ours]) for key in (
                    "ahead", "ahead_median"))])
    return table


def _mean(ratios):
    if not ratios:
        return ""
    return f"{geometric_mean(ratios):.2f} ({sum(ratio >= 1 for ratio in ratios)} of {len(ratios)})"


def behind_lines(rows):
    """Every comparison in which we are behind in best calls, a line for each direction and provider, the farthest first."""
    lines = []
    for direction, its in comparisons(rows).items():
        for provider, name in COLUMNS.items():
            slower = sorted((one for one in its if one.ours.get(provider, {}).get("ahead", 1) < 1),
                          key=lambda one: one.ours[provider]["ahead"])
            texts = [f"{one.sizes} {one.input} {report.ahead(one.ours[provider]['ahead']).lstrip(report.BEHIND)} "
                     f"({(one.ours[provider]['best'] - one.peer['best']) * 1e6:,.0f} µs behind {one.peer['provider']})"
                     for one in slower]
            count = sum("ahead" in one.ours.get(provider, ()) for one in its)
            lines.append(f"{direction}, {name}: behind in {len(texts)} of {count} cells{': ' if texts else ''}"
                         f"{'; '.join(texts)}.")
    return lines


def untimed_lines(rows):
    """Providers that were not timed, and why: a line for each reason."""
    reasons = {}
    for row in rows:
        if row["status"] != OK:
            where = reasons.setdefault((row["provider"], row["direction"], report.why(row, 200)), [])
            where.append(f"{row['stage']} {row['input'] or ''}".strip())
    all_of_them = {(row["stage"], row["input"]) for row in rows if row["shape"] is not None}
    return [f"{provider}, {direction}: {reason}"
            + ("" if len(where) == len(all_of_them) else f" ({', '.join(where)})") + "."
            for (provider, direction, reason), where in reasons.items()]


def peers_line(rows):
    """The peers' versions."""
    versions = {}
    for row in rows:
        if row["provider"] not in (*OURS, FLOOR) and row["shape"] is not None and "versions" in row:
            versions[row["provider"]] = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"Peers: {'; '.join(f'{provider} ({text})' for provider, text in versions.items())}."


def screen(result):
    """The tables for a terminal."""
    rows = result["rows"]
    lines = report.screen_head(result, (*_READS, peers_line(rows)))
    for direction, its in comparisons(rows).items():
        header = ["T×B×I×H", "input", "best peer", "ms", *COLUMNS.values(), "of peak"]
        table = [header] + [[one.sizes, one.input, *_peer(one), *(_ahead(one, provider) for provider in COLUMNS),
                             report.percent(one.ours.get(KERNEL, {}), "of_peak")] for one in its]
        lines += ["", direction, *_aligned(table, 3)]
    for direction, table in torch_tables(rows).items():
        lines += ["", f"{direction}: {_IN_TORCH}", *_aligned(table, 2)]
    table = summary(rows)
    widths = [max(map(len, column)) for column in zip(*table)]
    lines += ["", "geometric means, and in how many cells we are not behind:",
              *(report.aligned(line, widths) for line in table)]
    for text in (*behind_lines(rows), *untimed_lines(rows)):
        lines += ["", *textwrap.wrap(text, report.WIDTH)]
    return "\n".join(lines) + "\n"


def _aligned(table, left):
    """Lines of a table, with a rule under its header; so many columns go to the left."""
    widths, lines = [max(map(len, column)) for column in zip(*table)], []
    for line in table:
        first = "  ".join(f"{text:<{width}}" for text, width in zip(line[:left], widths))
        lines.append(report.aligned([first, *line[left:]], [len(first), *widths[left:]]))
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def results_table(result):
    """The README's tables in Markdown."""
    rows = result["rows"]
    busy = report.busy_line(result)
    lines = [f"float32, {report.environment_line(result)}. {peers_line(rows)} {result['method']['rounds']} interleaved rounds. "
             f"{' '.join(_READS[:2])} In brackets: best call / median. {report.tanh_line(result)}" + (f" {busy}" if busy else "")]
    lines += ["", *table] if (table := report.markdown_peak(result)) else []
    lines += ["", "Geometric means over the grid and, in brackets, in how many cells we are not behind:", "",
              *report.markdown_table(summary(rows)), ""] + [f"- {line}" for line in behind_lines(rows)]
    for direction, its in comparisons(rows).items():
        header = ["T×B×I×H"]
        for kind in INPUTS:
            header += [f"{kind}: best peer, ms", *COLUMNS.values()]
        table = [header]
        for dense, tokens in zip(its[::2], its[1::2]):
            line = [dense.sizes]
            for one in (dense, tokens):
                name, best = _peer(one)
                line.append(f"{name} {best} / {report.digits(one.peer['median'] * 1e3)}" if one.peer else "")
                line += [_with_times(one, provider) for provider in COLUMNS]
            table.append(line)
        lines += ["", f"**{direction}**: how many times as fast as the best peer", "", *report.markdown_table(table)]
    for direction, table in torch_tables(rows).items():
        lines += ["", f"**{direction}**: {_IN_TORCH}", "", *report.markdown_table(table, "01")]
    lines += ["", "**The kernel's part of the processor's peak** (of sgemm's rate), **and the most memory of a call, MB** "
                  "(forward+backward, dense input; results included, arguments not)", "", *report.markdown_table(_parts(rows))]
    lines += ["", *(f"- {line}" for line in untimed)] if (untimed := untimed_lines(rows)) else []
    return "\n".join(lines) + "\n"


def _parts(rows):
    """Rows of the table of the kernel's parts of the peak, and of memory."""
    by_direction = comparisons(rows)
    table = [["T×B×I×H", *(f"{direction}, {kind}" for direction in by_direction for kind in INPUTS), "MB: kernel", "operator",
              "best peer"]]
    for i, sizes in enumerate(dict.fromkeys(one.sizes for its in by_direction.values() for one in its)):
        line = [sizes]
        for its in by_direction.values():
            for one in its[2 * i:2 * i + 2]:
                row = one.ours.get(KERNEL, {})
                line.append(f"{report.percent(row, 'of_peak')} ({report.percent(row, 'of_gemm_rate')})" if row else "")
        last = list(by_direction.values())[-1][2 * i]
        line += [report.megabytes(row) for row in (*(last.ours.get(provider, {}) for provider in COLUMNS), last.peer or {})]
        table.append(line)
    return table


def torch_tables(rows):
    """{direction: rows of a table, a header first}: the best call of torch.nn.RNN in each comparison, how many times as fast ours
    in PyTorch are, and geometric means. Empty if they were not measured."""
    tables, ratios = {}, {}
    for stage, directions, _ in report.groups(rows):
        for direction, its in directions:
            for kind in INPUTS:
                theirs, ours = report.in_torch([row for row in its if row["input"] == kind])
                if theirs and ours:
                    faster = {row["provider"]: theirs["best"] / row["best"] for row in ours}
                    for provider, ratio in faster.items():
                        ratios.setdefault((direction, provider), []).append(ratio)
                    header = ["T×B×I×H", "input", f"{TorchRNN.name}, ms", *(name.rpartition(".")[2] for name in OURS_IN_TORCH)]
                    tables.setdefault(direction, [header]).append([
                        stage, kind, report.digits(theirs["best"] * 1e3),
                        *(report.ahead(faster[provider]) if provider in faster else "" for provider in OURS_IN_TORCH)])
    for direction, table in tables.items():
        table.append(["geometric mean", "", "", *(_mean(ratios.get((direction, provider))) for provider in OURS_IN_TORCH)])
    return tables


def _peer(one):
    """The best peer's name and its best call in milliseconds."""
    return [one.peer["provider"], report.digits(one.peer["best"] * 1e3)] if one.peer else ["", ""]


def _ahead(one, provider):
    """How many times as fast as the best peer one of ours is."""
    row = one.ours.get(provider, {})
    if "ahead" not in row:
        return ""
    return report.ahead(row["ahead"]) + "!" * report.not_credible(row, ["best"])


def _with_times(one, provider):
    text = _ahead(one, provider)
    row = one.ours.get(provider)
    return f"{text} ({report.digits(row['best'] * 1e3)} / {report.digits(row['median'] * 1e3)})" if text else ""
