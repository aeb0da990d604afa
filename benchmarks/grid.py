"""The tables of a grid: who is the best peer in each cell, and how many times as fast our kernel and our operator are.

A cell is a shape, an input and a direction. All of one cell were given the same input and computed the same gradients.
"""
import math
import textwrap
from typing import NamedTuple

from . import report
from .measure import FLOOR
from .providers import KERNEL, OURS, PUBLIC
from .worker import OK

INPUTS = ("dense", "tokens")
COLUMNS = {KERNEL: "kernel", PUBLIC: "operator"}  # provider: what its column is called
_READS = (
    report.VERIFIED,
    "Who knows no tokens is given the same rows of zeros and ones. Times are best calls, in milliseconds; beside them how many "
    "times as long as our kernel, and as our operator, the best peer takes: below 1, and marked "
    f"{report.BEHIND.strip()}, where we are behind.",
    "'of peak': the kernel's operations / best call, as a part of the processor's rate of multiply-adds in registers.")


class Cell(NamedTuple):
    """A cell's peer whose best call is the shortest (None: there is none) and our rows by provider, those that were timed."""
    sizes: str
    input: str
    direction: str
    peer: dict
    ours: dict


def cells(rows):
    """{direction: [Cell, …]} in the order of the measurement, dense before tokens."""
    found = {}
    for stage, directions, _ in report.groups(rows):
        for direction, its in directions:
            for kind in INPUTS:
                timed = [row for row in its if row["input"] == kind and row["status"] == OK]
                peers = [row for row in timed if row["provider"] not in (*OURS, FLOOR)]
                found.setdefault(direction, []).append(Cell(
                    stage, kind, direction, min(peers, key=lambda row: row["best"], default=None),
                    {row["provider"]: row for row in timed if row["provider"] in COLUMNS}))
    return found


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def summary(rows):
    """Rows of a table, a header first: geometric means over the grid and, in brackets, in how many cells we are not behind."""
    table = [["times as fast as the best peer", "best calls", "medians"]]
    for direction, its in cells(rows).items():
        for provider, name in COLUMNS.items():
            for kind in INPUTS:
                ours = [cell.ours[provider] for cell in its if cell.input == kind and "ahead" in cell.ours.get(provider, ())]
                table.append([f"{direction}: {name}, {kind}", *(_mean([row[key] for row in ours]) for key in (
                    "ahead", "ahead_median"))])
    return table


def _mean(ratios):
    if not ratios:
        return ""
    return f"{geometric_mean(ratios):.2f} ({sum(ratio >= 1 for ratio in ratios)} of {len(ratios)})"


def behind_lines(rows):
    """Every cell in which we are behind in best calls, a line for each direction and provider, the farthest first."""
    lines = []
    for direction, its in cells(rows).items():
        for provider, name in COLUMNS.items():
            lost = sorted((cell for cell in its if cell.ours.get(provider, {}).get("ahead", 1) < 1),
                          key=lambda cell: cell.ours[provider]["ahead"])
            texts = [f"{cell.sizes} {cell.input} {report.ahead(cell.ours[provider]['ahead']).lstrip(report.BEHIND)} "
                     f"({(cell.ours[provider]['best'] - cell.peer['best']) * 1e6:,.0f} µs behind {cell.peer['provider']})"
                     for cell in lost]
            count = sum("ahead" in cell.ours.get(provider, ()) for cell in its)
            lines.append(f"{direction}, {name}: behind in {len(texts)} of {count} cells{': ' if texts else ''}"
                         f"{'; '.join(texts)}.")
    return lines


def untimed_lines(rows):
    """Who was not timed, and why: a line for each reason."""
    reasons = {}
    for row in rows:
        if row["status"] != OK:
            where = reasons.setdefault((row["provider"], row["direction"], report.why(row, 200)), [])
            where.append(f"{row['stage']} {row['input'] or ''}".strip())
    cells_of_all = {(row["stage"], row["input"]) for row in rows if row["shape"] is not None}
    return [f"{provider}, {direction}: {reason}"
            + ("" if len(where) == len(cells_of_all) else f" ({', '.join(where)})") + "."
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
    for direction, its in cells(rows).items():
        header = ["T×B×I×H", "input", "best peer", "ms", *COLUMNS.values(), "of peak"]
        table = [header] + [[cell.sizes, cell.input, *_peer(cell), *(_ahead(cell, provider) for provider in COLUMNS),
                             report.percent(cell.ours.get(KERNEL, {}), "of_peak")] for cell in its]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines += ["", direction]
        for i, line in enumerate(table):
            left = [f"{text:<{width}}" for text, width in zip(line[:3], widths)]
            lines.append(report.aligned(["  ".join(left), *line[3:]], [len("  ".join(left)), *widths[3:]]))
            lines += ["-" * (sum(widths) + 2 * len(widths) - 2)] * (i == 0)
    table = summary(rows)
    widths = [max(map(len, column)) for column in zip(*table)]
    lines += ["", "geometric means, and in how many cells we are not behind:",
              *(report.aligned(line, widths) for line in table)]
    for text in (*behind_lines(rows), *untimed_lines(rows)):
        lines += ["", *textwrap.wrap(text, report.WIDTH)]
    return "\n".join(lines) + "\n"


def results_table(result):
    """The README's tables in Markdown."""
    rows = result["rows"]
    busy = report.busy_line(result)
    lines = [f"float32, {report.environment_line(result)}. {peers_line(rows)} {result['method']['rounds']} interleaved rounds. "
             f"{' '.join(_READS[:2])} In brackets: best call / median. {report.tanh_line(result)}" + (f" {busy}" if busy else "")]
    lines += ["", *table] if (table := report.markdown_peak(result)) else []
    lines += ["", "Geometric means over the grid and, in brackets, in how many cells we are not behind:", "",
              *_markdown_table(summary(rows)), ""] + [f"- {line}" for line in behind_lines(rows)]
    for direction, its in cells(rows).items():
        header = ["T×B×I×H"]
        for kind in INPUTS:
            header += [f"{kind}: best peer, ms", *COLUMNS.values()]
        table = [header]
        for dense, tokens in zip(its[::2], its[1::2]):
            line = [dense.sizes]
            for cell in (dense, tokens):
                name, best = _peer(cell)
                line.append(f"{name} {best} / {report.digits(cell.peer['median'] * 1e3)}" if cell.peer else "")
                line += [_with_times(cell, provider) for provider in COLUMNS]
            table.append(line)
        lines += ["", f"**{direction}**: how many times as fast as the best peer", "", *_markdown_table(table)]
    lines += ["", "**The kernel's part of the processor's peak** (of sgemm's rate), **and the most memory of a call, MB** "
                  "(forward+backward, dense input; results included, arguments not)", "", *_markdown_table(_parts(rows))]
    lines += ["", *(f"- {line}" for line in untimed)] if (untimed := untimed_lines(rows)) else []
    return "\n".join(lines) + "\n"


def _parts(rows):
    """Rows of the table of the kernel's parts of the peak, and of memory."""
    by_direction = cells(rows)
    table = [["T×B×I×H", *(f"{direction}, {kind}" for direction in by_direction for kind in INPUTS), "MB: kernel", "operator",
              "best peer"]]
    for i, sizes in enumerate(dict.fromkeys(cell.sizes for its in by_direction.values() for cell in its)):
        line = [sizes]
        for its in by_direction.values():
            for cell in its[2 * i:2 * i + 2]:
                row = cell.ours.get(KERNEL, {})
                line.append(f"{report.percent(row, 'of_peak')} ({report.percent(row, 'of_gemm_rate')})" if row else "")
        last = list(by_direction.values())[-1][2 * i]
        line += [report.megabytes(row) for row in (*(last.ours.get(provider, {}) for provider in COLUMNS), last.peer or {})]
        table.append(line)
    return table


def _peer(cell):
    """The best peer's name and its best call in milliseconds."""
    return [cell.peer["provider"], report.digits(cell.peer["best"] * 1e3)] if cell.peer else ["", ""]


def _ahead(cell, provider):
    """How many times as fast as the best peer one of ours is."""
    row = cell.ours.get(provider, {})
    if "ahead" not in row:
        return ""
    return report.ahead(row["ahead"]) + "!" * report.not_credible(row, ["best"])


def _with_times(cell, provider):
    text = _ahead(cell, provider)
    row = cell.ours.get(provider)
    return f"{text} ({report.digits(row['best'] * 1e3)} / {report.digits(row['median'] * 1e3)})" if text else ""


def _markdown_table(table):
    return [report.markdown(table[0]), report.markdown([":--"] + ["--:"] * (len(table[0]) - 1)), *map(report.markdown, table[1:])]
