"""Results as a file, as a table on screen and as the README's tables. grid.py shows a grid's, gpu_report.py a GPU's.

Every result is a dictionary with ``format``, ``kind``, ``date``, ``environment``, ``method`` and ``rows``; one of a GPU also has
``gpu``, ``parts`` and the results of each part. A row is one provider at one shape in one direction:

    stage, shape [T, B, I, H], input, direction, provider, status; reason if it was not timed
    best, p20, median, p80, calls, turns   seconds; error  the worst relative error against float64
    family, variant, chosen, cycles_per_step, floor_cycles, …   on a GPU
"""
import datetime
import json
import textwrap

from rnn_ops_timemachine import files

from . import floor, problems
from .measure import FLOOR, PEAK_STAGE
from .providers import KERNEL, NATIVE, OURS, OURS_IN_TORCH, TorchRNN, TorchRNNOneThread
from .trainers import MODE as TRAINING
from .worker import BOUND, OK

FORMAT = 2
STAGES, GRID, GPU = "stages", "grid", "gpu"  # kinds of results
_GPU_FORMAT = "rnn_ops gpu 2"  # of a result or of a folder by version 0.1
WIDTH = 80
BEHIND = "▼ "  # before a ratio below 1
_BUSY = 0.1  # of the processors' time, taken by others, from which on it is said
VERIFIED = (f"Every provider computes the {problems.GRADIENTS}, and was verified against float64 before it was timed "
            f"(relative error at most {BOUND:.0e}).")
_READS = (
    VERIFIED,
    f"Floor = operations / peak, the processor's rate of multiply-adds in registers on all threads; {floor.FORMULA}. tanh is not "
    "in it.",
    "'peak', 'GEMM': operations / best call, as a part of that rate and of sgemm's. '× ours': how many times as long as our "
    "native operator takes, medians. MB: the most memory that a call needed, results included and arguments not.")
NOT_CREDIBLE = ("not credible: faster than its floor. The peak was measured too low, other programs were in the way, "
                "or the figure is wrong.")


class OtherFormat(ValueError):
    """A result, but of another version of rnn-ops."""


def make_result(rows, rounds, seconds, environment, kind=STAGES):
    """Everything that goes into the file: the rows, and how and where they came about."""
    return {
        "format": FORMAT,
        "kind": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": environment,
        "method": {"dtype": "float32", "rounds": rounds, "seconds_per_turn": seconds, "units": "seconds",
                   "gradients": problems.GRADIENTS, "floor": floor.FORMULA, "bound": BOUND},
        "rows": rows,
    }


def write_json(result, path):
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    with files.writing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace"))  # a setting may be no UTF-8: JSON escapes it


def read_json(path):
    """A result that ``write_json`` wrote; a ValueError says that it is not one."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if isinstance(result, dict) and result.get("format") == _GPU_FORMAT:
        return dict(result, format=FORMAT, kind=GPU, mxnet=None, rows=list(map(upgraded, result["rows"])), **{
            part: found and dict(found, rows=list(map(upgraded, found["rows"])))
            for part, found in ((part, result[part]) for part in ("jax", "variants"))})
    if not isinstance(result, dict) or not isinstance(result.get("format"), int):
        raise ValueError("it has no format")
    if result["format"] != FORMAT:
        raise OtherFormat(f"{path}: got a result in format {result['format']}, needs format {FORMAT}: measure it anew")
    if result["kind"] not in (STAGES, GRID, GPU):
        raise ValueError(f"it is of no known kind: {result['kind']!r}")
    return result


def upgraded(row):
    """A GPU's row as it is written today; version 0.1 had T, B, V, H and mode."""
    if "mode" not in row:
        return row
    old = dict(row)
    shape = [old.pop(letter) for letter in "TBVH"]
    if "us_per_step" in old:
        old["seconds_per_step"] = 1e-6 * old.pop("us_per_step")
    return {"stage": "×".join(map(str, shape)), "shape": shape, "direction": old.pop("mode"), **old}


def groups(rows):
    """[(stage, [(direction, rows of that direction), …], {yardstick's direction: its row}), …] as they were measured."""
    stages = {}
    for row in rows:
        if row["stage"] != PEAK_STAGE:
            directions, yardsticks = stages.setdefault(row["stage"], ({}, {}))
            if row["shape"] is None:
                yardsticks[row["direction"]] = row
            else:
                directions.setdefault(row["direction"], []).append(row)
    return [(stage, list(directions.items()), yardsticks) for stage, (directions, yardsticks) in stages.items()]


def environment_line(result):
    where = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    settings = "".join(f", {name}={value}" for name, value in where["settings"].items())
    about = {row["provider"]: row["about"] for row in result["rows"] if "about" in row}
    kernel = f"; kernel: {about[KERNEL].rsplit(', NumPy', 1)[0]}" if KERNEL in about else ""
    return f"{where['processor']}, {where['cores']} cores{settings}{kernel}; {versions}; {result['date'][:10]}"


def yardsticks_line(yardsticks):
    """The rates of the processor and its BLAS in the same rounds."""
    parts = []
    for name, row in (("peak", yardsticks["peak"]), (f"sgemm {problems.Gemm.n}³", yardsticks["gemm"])):
        parts.append(f"{name} {_rate_of(row):.0f} GFLOP/s, median {row['flops_per_second'] / 1e9:.0f}" if row["status"] == OK
                     else f"{name}: {why(row, WIDTH - 12)}")
    return "In the same rounds, at best: " + "; ".join(parts)


def _rate_of(row):
    """GFLOP/s of the best call."""
    return row["flops"] / row["best"] / 1e9


def peak_table(result):
    """Cells of the table of the processor's peak, a header first: GFLOP/s of best calls, by level, threads and dtype."""
    rows = [row for row in result["rows"] if row["stage"] == PEAK_STAGE and row["direction"] == "peak" and row["status"] == OK]
    table = {}
    for row in rows:
        level, dtype, threads, _ = row["yardstick"].replace(",", "").split()
        table.setdefault(level, {})[f"{dtype} ×{threads}"] = f"{_rate_of(row):.1f}"
    columns = list(dict.fromkeys(kind for found in table.values() for kind in found))
    return [["GFLOP/s, dtype × threads", *columns],
            *([level, *(found.get(kind, "") for kind in columns)] for level, found in table.items())]


def tanh_line(result):
    """The cost of tanh, which no floor counts; empty if it was not measured."""
    rows = [row for row in result["rows"] if row["direction"] == "tanh" and row["status"] == OK]
    return "".join(f"tanh: {1e9 * row['best'] / problems.Tanh.n:.3f} ns a value on one thread ({row['about'].split(',')[0]})."
                   for row in rows)


def peers_line(directions):
    """How the peers ran: versions, threads, the way that was chosen."""
    about = {row["provider"]: row["about"] for _, rows in directions for row in rows
             if row.get("about") and row["provider"] not in OURS}
    return "; ".join(f"{provider}: {text}" for provider, text in about.items()) + "." if about else ""


def ahead_lines(directions):
    """The best peer in each direction, and how far ahead of it or behind we are."""
    lines = []
    for direction, rows in directions:
        ours = [row for row in rows if "ahead" in row]
        if ours:
            peer = next(row for row in rows if row["provider"] == ours[0]["best_peer"])
            lines.append(f"Best peer, {direction}: {peer['provider']}, {digits(peer['best'] * 1e3)} ms. Times as fast: "
                         + "; ".join(f"{row['provider']} {ahead(row['ahead'])}" for row in ours) + ".")
        theirs, ours = in_torch(rows)
        if theirs and ours:
            lines.append(f"PyTorch's own, {direction}: {theirs['provider']}, {digits(theirs['best'] * 1e3)} ms. Times as fast: "
                         + "; ".join(f"{row['provider']} {ahead(theirs['best'] / row['best'])}" for row in ours) + ".")
    return lines


def in_torch(rows):
    """Of rows that are compared: the torch.nn.RNN with the shortest best call (or None), and ours in PyTorch, those that were
    timed."""
    timed = [row for row in rows if row["status"] == OK]
    theirs = [row for row in timed if row["provider"] in (TorchRNN.name, TorchRNNOneThread.name)]
    return min(theirs, key=lambda row: row["best"], default=None), [row for row in timed if row["provider"] in OURS_IN_TORCH]


def ahead(ratio):
    """1.23, or, where the peer is faster, the same with a mark; never 1.00 with it."""
    return f"{BEHIND}{min(ratio, 0.99):.2f}" if ratio < 1 else f"{ratio:.2f}"


def busy_line(result):
    """Says that other programs took the machine's time during the measurement; empty where they did not."""
    others = result["environment"].get("others") or 0
    return (f"Other programs took {others:.0%} of the processors' time meanwhile: these figures are those of a busy machine."
            if others >= _BUSY else "")


def screen_head(result, reads):
    """The lines above a terminal's tables."""
    texts = (environment_line(result), busy_line(result), *reads, tanh_line(result))
    lines = [line for text in texts if text for line in textwrap.wrap(text, WIDTH)]
    table = peak_table(result)
    if len(table) > 1:
        widths = [max(map(len, column)) for column in zip(*table)]
        lines += ["", "multiply-adds in registers, best calls:", *(aligned(cells, widths) for cells in table)]
    return lines


def markdown_peak(result):
    """The lines of the table of the processor's peak."""
    table = peak_table(result)
    return markdown_table(table) if table[1:] else []


def screen(result):
    """The tables for a terminal."""
    lines = screen_head(result, _READS)
    for stage, directions, yardsticks in groups(result["rows"]):
        lines += ["", f"T×B×I×H = {stage}", *textwrap.wrap(yardsticks_line(yardsticks), WIDTH)]
        for direction, rows in directions:
            header = [f"{direction}, ms", "best", "median", "p20–p80", "peak", "GEMM",
                      "tokens/s" if direction == TRAINING else "MB", "× ours"]
            table = [header] + [_cells(row) if row["status"] == OK else [row["provider"]] for row in rows]
            widths = [max(len(cells[i]) for cells in table if i < len(cells)) for i in range(len(header))]
            widths[0] = max(widths[0], 20)
            lines.append("")
            lines.append(aligned(header, widths))
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
            lines += [aligned(cells, widths) if row["status"] == OK else
                      f"{row['provider']:<{widths[0]}}  {why(row, WIDTH - widths[0] - 2)}"
                      for row, cells in zip(rows, table[1:])]
            if any(map(not_credible, rows)):
                lines += textwrap.wrap(f"! {NOT_CREDIBLE}", WIDTH)
        for text in (*ahead_lines(directions), *added_lines(directions), peers_line(directions)):
            lines += ["", *textwrap.wrap(text, WIDTH)] if text else []
    return "\n".join(lines) + "\n"


def not_credible(row, figures=("best", "p20", "median", "p80")):
    """Whether one of these figures of a row is faster than the floor's."""
    return any(name in figures for name in row.get("not_credible", ()))


def added_lines(directions):
    """The time that MXNet and PyTorch add to the bare kernel in each direction, a line each; none if it was not measured."""
    added = {}
    for _, rows in directions:
        for row in rows:
            if "over_the_kernel" in row and row["provider"] != KERNEL:
                framework = "PyTorch" if row["provider"] in OURS_IN_TORCH else "MXNet"
                added.setdefault(framework, {}).setdefault(row["provider"], []).append(f"{row['over_the_kernel'] * 1e6:+,.0f}")
    return [f"{framework}'s own time, µs over the bare kernel ({', '.join(direction for direction, _ in directions)}): "
            + "; ".join(f"{provider} {', '.join(figures)}" for provider, figures in its.items()) + "."
            for framework, its in added.items()]


def _cells(row):
    figures = [(text, "!" * not_credible(row, names)) for text, names in (
        (digits(row["best"] * 1e3), ["best"]), (digits(row["median"] * 1e3), ["median"]), (_spread(row), ["p20", "p80"]))]
    return [row["provider"], *map("".join, figures), percent(row, "of_peak"), percent(row, "of_gemm_rate"),
            f"{row['tokens_per_second']:,.0f}" if row["direction"] == TRAINING else megabytes(row), _ratio(row, NATIVE)]


def aligned(cells, widths):
    """A line of a table: the first column to the left, the others to the right."""
    line = "  ".join([f"{cells[0]:<{widths[0]}}"] + [f"{cell:>{w}}" for cell, w in zip(cells[1:], widths[1:])])
    return line.rstrip()


def results_table(result):
    """The README's tables in Markdown, one a stage."""
    lines = [f"float32, {environment_line(result)}. Milliseconds: the best call, and the median (p20–p80) over "
             f"{result['method']['rounds']} interleaved rounds. *floor*: the operations at the processor's peak; *of peak*, *of "
             "GEMM*: operations / best call, as a part of the peak and of sgemm's rate; *× ours*: how many times as long as our "
             "native operator takes, or a training step with it, in medians; *MB*: the most memory that a call needed, results "
             f"included and arguments not. {tanh_line(result)}" + (f" {busy}" if (busy := busy_line(result)) else "")]
    lines += ["", *table] if (table := markdown_peak(result)) else []
    for stage, directions, yardsticks in groups(result["rows"]):
        header, right = ["provider"], [":--"]
        for direction, _ in directions:
            header += [f"{direction}, ms", "median", "of peak", "of GEMM", "× ours",
                       "tokens/s" if direction == TRAINING else "MB"]
            right += ["--:"] * 6
        lines += ["", f"**{stage}** (T×B×I×H). {yardsticks_line(yardsticks)}.", ""]
        lines += [markdown(header), markdown(right)]
        for rows in zip(*(rows for _, rows in directions)):
            cells = [emphasised(rows[0]["provider"])]
            for row in rows:
                cells += _markdown_cells(row) if row["status"] == OK else [why(row, 80).replace("|", "\\|"), *[""] * 5]
            lines.append(markdown(cells))
        if any(not_credible(row) for _, rows in directions for row in rows):
            lines += ["", f"*{NOT_CREDIBLE[0].upper()}{NOT_CREDIBLE[1:]}*"]
        for text in (" ".join(ahead_lines(directions)), *added_lines(directions), peers_line(directions)):
            lines += ["", text] if text else []
    return "\n".join(lines) + "\n"


def _markdown_cells(row):
    best, others = (", not credible" * not_credible(row, names) for names in (["best"], ["p20", "median", "p80"]))
    return [f"{digits(row['best'] * 1e3)}{best}", f"{digits(row['median'] * 1e3)} ({_spread(row)}){others}",
            percent(row, "of_peak"), percent(row, "of_gemm_rate"), _ratio(row, NATIVE),
            f"{row['tokens_per_second']:,.0f}" if row["direction"] == TRAINING else megabytes(row)]


def markdown(cells):
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def markdown_table(table, left="0"):
    """Lines of a table in Markdown, from rows of cells, a header first; ``left`` has the numbers of the columns to the left."""
    rule = [":--" if str(column) in left else "--:" for column in range(len(table[0]))]
    return [markdown(table[0]), markdown(rule), *map(markdown, table[1:])]


def emphasised(provider):
    """A provider's name as Markdown shows it: ours stand out."""
    if provider == FLOOR:
        return f"*{provider}*"
    return f"**{provider}**" if provider in OURS else provider


def why(row, width):
    """Why a row was not timed."""
    return textwrap.shorten(f"{row['status']}: {row['reason']}", width, placeholder=" …")


def _spread(row):
    return f"{digits(row['p20'] * 1e3)}–{digits(row['p80'] * 1e3)}"


def percent(row, key):
    """A fraction of a row as text; empty where it was not measured."""
    return f"{row[key]:.0%}" if key in row else ""


def megabytes(row):
    """The peak of a row's memory as text; empty where it was not measured."""
    return "" if row.get("peak_memory") is None else f"{row['peak_memory'] / 1e6:,.1f}"


def _ratio(row, ours):
    return f"{row['times_ours'][ours]:.2f}" if ours in row["times_ours"] else ""


def digits(value):
    """Three digits: 0.123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f}"
