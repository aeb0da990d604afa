"""Results as a file, as a table on screen and as the README's tables."""
import contextlib
import datetime
import json
import os
import tempfile
import textwrap

from . import floor, problems
from .measure import FLOOR
from .providers import KERNEL, NATIVE, OURS
from .trainers import MODE as TRAINING
from .worker import BOUND, OK

FORMAT = 1
_WIDTH = 110
_READS = (
    f"Every provider computes the {problems.GRADIENTS}, and was verified against float64 before it was timed "
    f"(relative error at most {BOUND:.0e}).",
    f"Floor = operations / GEMM rate; {floor.FORMULA}.",
    f"'of GEMM': floor / time, medians. '× kernel', '× {NATIVE}': how many times as long as that one takes.")


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


@contextlib.contextmanager
def replacing(path):
    """A temporary name beside ``path`` that takes its place if all goes well: never half a file."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=name)
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp's are for the owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(result, path):
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, ensure_ascii=False)
        file.write("\n")


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
        return f"sgemm: {_why(row)}"
    return (f"sgemm {problems.Gemm.n}³ in the same rounds: {row['flops_per_second'] / 1e9:.0f} GFLOP/s, "
            f"at best {row['flops'] / row['best'] / 1e9:.0f}")


def screen(result):
    """The tables for a terminal."""
    lines = [textwrap.fill(text, _WIDTH) for text in (environment_line(result), *_READS)]
    for stage, modes, gemm in groups(result["rows"]):
        lines += ["", f"T×B×I×H = {stage}", gemm_line(gemm)]
        for mode, rows in modes:
            header = [mode, "median ms", "best", "p20–p80"]
            header += (["tokens/s", "of GEMM", f"× {NATIVE}"] if mode == TRAINING else
                       ["µs/step", "steps/s", "of GEMM", "× kernel", f"× {NATIVE}"])
            table = [header] + [_cells(row) if row["status"] == OK else [row["provider"]] for row in rows]
            widths = [max(len(cells[i]) for cells in table if i < len(cells)) for i in range(len(header))]
            widths[0] = max(widths[0], 22)
            lines.append("")
            lines.append(_aligned(header, widths))
            lines.append("─" * (sum(widths) + 2 * len(widths) - 2))
            lines += [_aligned(cells, widths) if row["status"] == OK else
                      f"{row['provider']:<{widths[0]}}  {_why(row)}" for row, cells in zip(rows, table[1:])]
        lines += ["", *textwrap.wrap(added, _WIDTH)] if (added := added_line(modes)) else []
    return "\n".join(lines) + "\n"


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
    cells = [row["provider"], digits(row["median"] * 1e3), digits(row["best"] * 1e3), _spread(row)]
    if row["mode"] == TRAINING:
        return cells + [f"{row['tokens_per_second']:,.0f}", _percent(row), _ratio(row, NATIVE)]
    return cells + [digits(row["seconds_per_step"] * 1e6), f"{row['steps_per_second']:,.0f}", _percent(row),
                    _ratio(row, KERNEL), _ratio(row, NATIVE)]


def _aligned(cells, widths):
    line = "  ".join([f"{cells[0]:<{widths[0]}}"] + [f"{cell:>{w}}" for cell, w in zip(cells[1:], widths[1:])])
    return line.rstrip()


def results_table(result):
    """The README's tables in Markdown, one a stage."""
    lines = [f"float32, {environment_line(result)}. Milliseconds: median (p20–p80) over "
             f"{result['method']['rounds']} interleaved rounds; *of GEMM*: the floor at the measured sgemm rate, "
             "divided by the time; *× ours*: how many times as long as our native operator takes, or a training "
             "step with it."]
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
                cells += _markdown_cells(row) if row["status"] == OK else [_why(row).replace("|", "\\|"), "", "", ""]
            lines.append(_markdown(cells))
        lines += ["", added] if (added := added_line(modes)) else []
    return "\n".join(lines) + "\n"


def _markdown_cells(row):
    training = row["mode"] == TRAINING
    rate = row["tokens_per_second"] if training else row["steps_per_second"]
    return [f"{digits(row['median'] * 1e3)} ({_spread(row)})", f"{rate:,.0f}", _percent(row),
            _ratio(row, NATIVE)]


def _markdown(cells):
    return f"| {' | '.join(cells)} |"


def _emphasised(provider):
    if provider == FLOOR:
        return f"*{provider}*"
    return f"**{provider}**" if provider in OURS else provider


def _why(row):
    return textwrap.shorten(f"{row['status']}: {row['reason']}", 80, placeholder=" …")


def _spread(row):
    return f"{digits(row['p20'] * 1e3)}–{digits(row['p80'] * 1e3)}"


def _percent(row):
    return f"{row['of_gemm_rate']:.0%}" if "of_gemm_rate" in row else ""


def _ratio(row, ours):
    return f"{row['times_ours'][ours]:.2f}" if ours in row["times_ours"] else ""


def digits(value):
    """Three digits: 0.123, 1.23, 12.3, 123, 1,234."""
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f}"
