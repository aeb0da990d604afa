"""Results as a file, as a table on screen and as the README's tables."""
import datetime
import json
import textwrap

from timemachine import files

from . import floor, problems
from .measure import FLOOR
from .providers import KERNEL, NATIVE, OURS
from .trainers import MODE as TRAINING
from .worker import BOUND, OK

FORMAT = 1
_WIDTH = 80
_BUSY = 0.1  # of the processors' time, taken by others, from which on it is said
_READS = (
    f"Every provider computes the {problems.GRADIENTS}, and was verified against float64 before it was timed "
    f"(relative error at most {BOUND:.0e}).",
    f"Floor = operations / GEMM rate; {floor.FORMULA}.",
    f"'of GEMM': floor / time, medians. '× {NATIVE}': how many times as long as that one takes.")
NOT_CREDIBLE = ("not credible: faster than its floor. The GEMM rate was measured too low, other programs were in the way, "
                "or the figure is wrong.")


def make_result(rows, rounds, seconds, environment):
    """Everything that goes into the file: the rows, and how and where they came about."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": environment,
        "method": {"dtype": "float32", "rounds": rounds, "seconds_per_turn": seconds, "units": "seconds",
                   "gradients": problems.GRADIENTS, "floor": floor.FORMULA, "bound": BOUND},
        "rows": rows,
    }


def write_json(result, path):
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    with files.writing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace"))  # what is no UTF-8 in a setting, as JSON escapes it


def read_json(path):
    """A result that ``write_json`` wrote; a ValueError says that it is not one."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of rnn-ops bench in format {FORMAT}")
    return result


def groups(rows):
    """[(stage, [(mode, rows of that mode), …], GEMM row), …] in the order of the measurement."""
    stages = {}
    for row in rows:
        stages.setdefault(row["stage"], {}).setdefault(row["mode"], []).append(row)
    return [(stage, [(mode, its) for mode, its in modes.items() if mode != "gemm"], modes["gemm"][0])
            for stage, modes in stages.items()]


def environment_line(result):
    where = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    settings = "".join(f", {name}={value}" for name, value in where["settings"].items())
    about = {row["provider"]: row["about"] for row in result["rows"] if "about" in row}
    kernel = f"; kernel: {about[KERNEL].rsplit(', NumPy', 1)[0]}" if KERNEL in about else ""
    return f"{where['processor']}, {where['cores']} cores{settings}{kernel}; {versions}; {result['date'][:10]}"


def gemm_line(row):
    if row["status"] != OK:
        return f"sgemm: {_why(row, _WIDTH - 7)}"
    return (f"sgemm {problems.Gemm.n}³ in the same rounds: {row['flops_per_second'] / 1e9:.0f} GFLOP/s, "
            f"at best {row['flops'] / row['best'] / 1e9:.0f}")


def busy_line(result):
    """Says that other programs took the machine's time during the measurement; empty where they did not."""
    others = result["environment"].get("others") or 0
    return (f"Other programs took {others:.0%} of the processors' time meanwhile: these figures are those of a busy machine."
            if others >= _BUSY else "")


def screen(result):
    """The tables for a terminal."""
    texts = (environment_line(result), busy_line(result), *_READS)
    lines = [textwrap.fill(text, _WIDTH) for text in texts if text]
    for stage, modes, gemm in groups(result["rows"]):
        lines += ["", f"T×B×I×H = {stage}", gemm_line(gemm)]
        for mode, rows in modes:
            header = [f"{mode}, ms", "median", "best", "p20–p80", "tokens/s" if mode == TRAINING else "steps/s", "of GEMM",
                      f"× {NATIVE}"]
            table = [header] + [_cells(row) if row["status"] == OK else [row["provider"]] for row in rows]
            widths = [max(len(cells[i]) for cells in table if i < len(cells)) for i in range(len(header))]
            widths[0] = max(widths[0], 20)
            lines.append("")
            lines.append(_aligned(header, widths))
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
            lines += [_aligned(cells, widths) if row["status"] == OK else
                      f"{row['provider']:<{widths[0]}}  {_why(row, _WIDTH - widths[0] - 2)}"
                      for row, cells in zip(rows, table[1:])]
            if any(map(not_credible, rows)):
                lines += textwrap.wrap(f"! {NOT_CREDIBLE}", _WIDTH)
        lines += ["", *textwrap.wrap(added, _WIDTH)] if (added := added_line(modes)) else []
    return "\n".join(lines) + "\n"


def not_credible(row, figures=("best", "p20", "median", "p80")):
    """Whether one of these figures of a row is faster than the floor's."""
    return any(name in figures for name in row.get("not_credible", ()))


def added_line(modes):
    """What MXNet adds to the bare kernel in each mode; empty where that was not measured."""
    added = {}
    for _, rows in modes:
        for row in rows:
            if "over_the_kernel" in row and row["provider"] != KERNEL:
                added.setdefault(row["provider"], []).append(f"{row['over_the_kernel'] * 1e6:+,.0f}")
    if not added:
        return ""
    return (f"MXNet's own time, µs over the bare kernel ({', '.join(mode for mode, _ in modes)}): "
            + "; ".join(f"{provider} {', '.join(figures)}" for provider, figures in added.items()) + ".")


def _cells(row):
    figures = [(text, "!" * not_credible(row, names)) for text, names in (
        (digits(row["median"] * 1e3), ["median"]), (digits(row["best"] * 1e3), ["best"]), (_spread(row), ["p20", "p80"]))]
    return [row["provider"], *map("".join, figures), _rate(row), _percent(row), _ratio(row, NATIVE)]


def _aligned(cells, widths):
    line = "  ".join([f"{cells[0]:<{widths[0]}}"] + [f"{cell:>{w}}" for cell, w in zip(cells[1:], widths[1:])])
    return line.rstrip()


def results_table(result):
    """The README's tables in Markdown, one a stage."""
    lines = [f"float32, {environment_line(result)}. Milliseconds: median (p20–p80) over "
             f"{result['method']['rounds']} interleaved rounds; *of GEMM*: the floor at the measured sgemm rate, "
             "divided by the time; *× ours*: how many times as long as our native operator takes, or a training "
             "step with it." + (f" {busy}" if (busy := busy_line(result)) else "")]
    for stage, modes, gemm in groups(result["rows"]):
        header, right = ["provider"], [":--"]
        for mode, _ in modes:
            rate = "tokens/s" if mode == TRAINING else "steps/s"
            header += [f"{mode}, ms", rate, "of GEMM", "× ours"]
            right += ["--:"] * 4
        lines += ["", f"**{stage}** (T×B×I×H; {gemm_line(gemm)})", ""]
        lines += [_markdown(header), _markdown(right)]
        for rows in zip(*(rows for _, rows in modes)):
            cells = [_emphasised(rows[0]["provider"])]
            for row in rows:
                cells += _markdown_cells(row) if row["status"] == OK else [_why(row, 80).replace("|", "\\|"), "", "", ""]
            lines.append(_markdown(cells))
        if any(not_credible(row, ["p20", "median", "p80"]) for _, rows in modes for row in rows):
            lines += ["", f"*{NOT_CREDIBLE[0].upper()}{NOT_CREDIBLE[1:]}*"]
        lines += ["", added] if (added := added_line(modes)) else []
    return "\n".join(lines) + "\n"


def _markdown_cells(row):
    remark = ", not credible" if not_credible(row, ["p20", "median", "p80"]) else ""
    return [f"{digits(row['median'] * 1e3)} ({_spread(row)}){remark}", _rate(row), _percent(row), _ratio(row, NATIVE)]


def _markdown(cells):
    return f"| {' | '.join(cells)} |"


def _emphasised(provider):
    if provider == FLOOR:
        return f"*{provider}*"
    return f"**{provider}**" if provider in OURS else provider


def _why(row, width):
    return textwrap.shorten(f"{row['status']}: {row['reason']}", width, placeholder=" …")


def _rate(row):
    return f"{row['tokens_per_second' if row['mode'] == TRAINING else 'steps_per_second']:,.0f}"


def _spread(row):
    return f"{digits(row['p20'] * 1e3)}–{digits(row['p80'] * 1e3)}"


def _percent(row):
    return f"{row['of_gemm_rate']:.0%}" if "of_gemm_rate" in row else ""


def _ratio(row, ours):
    return f"{row['times_ours'][ours]:.2f}" if ours in row["times_ours"] else ""


def digits(value):
    """Three digits: 0.123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f}"
