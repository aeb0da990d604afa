"""What was measured as Markdown, ready for a README. Pure functions of the result file's contents."""
import re

from rnn_ops.backends.cuda.variants import FAMILIES

from ..report import digits
from ..worker import OK
from . import microbench
from .cells import BACKWARD, BOTH, FLOOR, FORWARD, STEPS, TUTORIAL
from .providers import OURS, TORCH


def facts(result):
    """The device and the versions, a line each."""
    gpu, where = result["gpu"], result["environment"]
    lines = [
        f"{gpu['name']}: compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"{gpu['memory'] / 2 ** 30:.0f} GiB, L2 {gpu['l2_cache'] / 2 ** 20:.0f} MiB",
        f"shared memory: {gpu['shared_memory_per_block'] / 1024:.0f} KiB a block, "
        f"{gpu['shared_memory_per_multiprocessor'] / 1024:.0f} KiB a multiprocessor",
        f"clock: at most {gpu['clock_khz']:,} kHz, just now {gpu['measured_clock_khz']:,} kHz; memory "
        f"{gpu['memory_clock_khz']:,} kHz",
        f"driver {gpu['driver'] or 'unknown'}, for CUDA up to {gpu['cuda_driver']}; CUDA {gpu['cuda_runtime']}; "
        f"CuPy {gpu['cupy']}; rnn_ops {result['rnn_ops']}, commit {where['commit'] or 'unknown'}",
        f"float64 truths by {gpu['truths']}"]
    if gpu["devices"] > 1:
        lines.append(f"{gpu['devices']} GPUs: the first one is used (CUDA_VISIBLE_DEVICES picks)")
    return "\n".join(lines)


def headline(part, found):
    """The most important numbers of a part's results in a few words."""
    if "families" in found:
        words = [f"{family} {its['right']:,}/{its['count']:,} right (nearest to its bound: {its['share']:.0%})"
                 for family, its in found["families"].items()]
        return f"{len(found['done'])} of {found['tasks']} tasks: " + ", ".join(words)
    if part == "compile":
        return f"{found['kernels']} kernels, in {found['folder']}"
    if part == "training" and "seconds" in found:
        notice = f"; NOT THE BOOK: {found['notice']}" if found["notice"] else ""
        return (f"{found['epochs']:,} epochs of {found['text']} in {digits(found['seconds'])} s, loss "
                f"{found['losses'][0]:.4f} → {found['losses'][-1]:.4f}{notice}")
    if "cells" in found and "of" in found:
        return f"{found['cells']} of {found['of']} cells{': ' if found['facts'] else ''}{found['facts']}"
    if "rows" in found:
        return f"{len(found['rows'])} rows"
    return ""


def timed_headline(rows, cell):
    """Ours and cuDNN at a cell in a few words."""
    words = []
    for mode in (FORWARD, BOTH):
        ours, theirs = of_cell(rows, cell, mode)
        if ours:
            words.append(f"{mode} {digits(ours['us_per_step'])} µs a step ({ours['family']})" + (
                f", cuDNN {digits(theirs['us_per_step'])}" if theirs else ""))
    return "; ".join(words)


def markdown(result):
    """All tables of what there is."""
    rows, training = result["rows"], result["training"]
    lines = [_environment(result), ""]
    if not result["complete"]:
        lines += ["**Incomplete.**", ""]
    lines += _parts(result["parts"])
    lines += _checks(result["checks"])
    if rows:
        for mode in (FORWARD, BOTH):
            lines += _grid(rows, mode)
        lines += _tutorial(rows)
        lines += _wall(rows + ((result["jax"] or {}).get("rows") or []))
        lines += _lengths(rows)
        lines += _lost(rows)
        lines += _choices(rows)
        lines += _estimates(rows)
    if training and "seconds" in training:
        lines += _training(training)
    if result["variants"]:
        lines += _variants(result["variants"]["rows"])
    if result["microbench"]:
        lines += microbench.markdown(result["microbench"]["rows"])
    if result["occupancy"]:
        lines += _occupancy(result["occupancy"]["rows"])
    if result["mxnet"]:
        lines += ["**Operators on MXNet's GPU arrays**", "", *(f"- {_escaped(line)}" for line in result["mxnet"]["lines"]), ""]
    if result["sanitizer"]:
        lines += ["**compute-sanitizer**", "", *(f"- {tool}: {what}" for tool, what in result["sanitizer"].items()), ""]
    return "\n".join(lines) + "\n"


def _parts(parts):
    """How each part has ended."""
    lines = ["| part | ended | s | why |", "| :-- | :-- | --: | :-- |"]
    return lines + [_line([name, its["status"], f"{its['seconds']:.0f}", its["reason"].replace("|", "\\|")])
                    for name, its in parts.items()] + [""]


def _checks(found):
    """What was checked, and each failure."""
    if not found:
        return []
    lines = ["**Checks**: right of all; the share of its bound that the largest error takes", "",
             _line(["part", "family", "right", "of its bound", "where"]), _line([":--", ":--", "--:", "--:", ":--"])]
    for part, its in found.items():
        for family, one in its["families"].items():
            lines.append(_line([part, family, f"{one['right']:,} of {one['count']:,}", f"{one['share']:.0%}", _escaped(
                one["nearest"])]))
    failed = [f"- FAILED {_escaped(line)}" for its in found.values() for line in its["failed"]]
    return lines + [""] + failed + [""] * bool(failed)


def _occupancy(rows):
    """How many blocks and clusters run at once: the chooser's table (variants.py) is to be compared with it."""
    lines = ["**At once**, of each kernel", "", _line(["kernel", "threads", "shared memory", "blocks a multiprocessor",
                                                      "clusters"]), _line([":--"] + ["--:"] * 4)]
    return lines + [_line([_escaped(row["kernel"]), row["threads"], f"{row['shared']:,}", row["blocks"],
                           row["clusters"] or ""]) for row in rows] + [""]


def _escaped(text):
    return re.sub(r"[<>|]", lambda match: "\\" + match.group(), text)


def find(rows, cell, mode, provider=OURS, input="tokens", chosen=None):
    """The timed rows of one cell and mode; ``cell`` is (T, B, V, H)."""
    return [row for row in rows if row["status"] == OK and row["mode"] == mode and row["provider"] == provider
            and row["input"] == input and chosen in (None, row["chosen"])
            and (row["T"], row["B"], row["V"], row["H"]) == tuple(cell)]


def first(rows):
    return rows[0] if rows else None


def of_cell(rows, cell, mode):
    """(our chosen variant's row, PyTorch's row), either None where it was not timed."""
    return (first(find(rows, cell, mode, chosen=True)), first(find(rows, cell, mode, TORCH, "one-hot")))


def axes(rows):
    """(hidden sizes, batch sizes) of the rows with the tutorial's T, sorted."""
    rows = [row for row in rows if row["T"] == TUTORIAL.T]
    return sorted({row["H"] for row in rows}), sorted({row["B"] for row in rows})


def best_families(rows, cell, mode):
    """[(median, family), ...] of our families at a cell, the fastest first."""
    medians = {}
    for row in find(rows, cell, mode):
        medians[row["family"]] = min(row["median"], medians.get(row["family"], row["median"]))
    return sorted((median, family) for family, median in medians.items())


def _environment(result):
    gpu, where = result["gpu"], result["environment"]
    commit = f" ({where['commit']})" if where["commit"] else ""
    torch = next((row["variant"] for row in result["rows"] if row["provider"] == TORCH and row["status"] == OK), None)
    now, most = gpu["measured_clock_khz"] / 1e6, gpu["clock_khz"] / 1e6
    return (f"float32, {gpu['name']}, {gpu['multiprocessors']} multiprocessors at {now:.2f} GHz (at most {most:.2f}); "
            f"rnn_ops {result['rnn_ops']}{commit}, CuPy {gpu['cupy']}, "
            f"CUDA {gpu['cuda_runtime']}, driver {gpu['driver'] or 'unknown'}{f', {torch}' if torch else ''}; "
            f"{result['date'][:10]}. GPU time by CUDA events, medians of interleaved rounds. T = {TUTORIAL.T}, "
            f"V = {TUTORIAL.V}; ours takes tokens, {TORCH} (cuDNN, no TF32) their one-hot rows.")


def _grid(rows, mode):
    hidden, batches = axes(rows)
    if not hidden:
        return []
    torch = any(row["provider"] == TORCH and row["status"] == OK for row in rows)
    lines = [f"**{mode}, µs a step**" + (f" (in brackets how many times as long {TORCH} takes)" if torch else ""), "",
             _line(["H \\ B"] + batches), _line(["--:"] * (1 + len(batches)))]
    for H in hidden:
        cells = [f"**{H}**"]
        for B in batches:
            ours, theirs = of_cell(rows, TUTORIAL._replace(B=B, H=H), mode)
            cells.append(_beside(ours, theirs, ours["us_per_step"]) if ours else "")
        lines.append(_line(cells))
    return lines + [""]


def _tutorial(rows):
    """Every provider at the tutorial's shape."""
    here = [row for row in rows if (row["T"], row["B"], row["V"], row["H"]) == TUTORIAL]
    if not here:
        return []
    ours = {mode: first(find(here, TUTORIAL, mode, chosen=True)) for mode in (FORWARD, BACKWARD, BOTH)}
    lines = [f"**T×B×V×H = {'×'.join(map(str, TUTORIAL))}, every provider**: µs a step, median (quartiles); cycles a "
             "step at the clock of the run; *× ours*: how many times as long as the chosen variant (bold) takes.", "",
             _line(["who", "input", "forward", "cycles", "predicted", "backward", "of it steps", "both", "× ours"]),
             _line([":--", ":--"] + ["--:"] * 7)]
    floors = {mode: row for mode, row in ours.items() if row}
    if len(floors) == len(ours):
        lines.append(_line(["*floor*", "tokens", *_floor(floors[FORWARD], True), "", *_floor(floors[BACKWARD]), "",
                            *_floor(floors[BOTH]), ""]))
    members = {}
    for row in here:
        members.setdefault((row["provider"], row["variant"], row["input"]), {})[row["mode"]] = row
    for (provider, variant, kind), its in members.items():
        row = next(iter(its.values()))
        if None in its:
            lines.append(_line([_name(row), kind, _why(row)] + [""] * 6))
            continue
        timed = {mode: row for mode, row in its.items() if row["status"] == OK}
        forward, both = timed.get(FORWARD), timed.get(BOTH)
        ratio = f"{both['median'] / ours[BOTH]['median']:.2f}" if both and ours[BOTH] else ""
        lines.append(_line([
            _name(row), kind, _spread(forward), f"{forward['cycles_per_step']:,.0f}" if forward else "",
            f"{row['predicted_cycles']:,.0f}" if "predicted_cycles" in row else "", _spread(timed.get(BACKWARD)),
            _spread(timed.get(STEPS)), _spread(both), ratio]))
    return lines + ["", f"Floor, {FLOOR}.", ""]


def _wall(rows):
    """What a user's clock says: microseconds a call."""
    timed = [row for row in rows if "wall" in row and (row["chosen"] or row["provider"] != OURS)]
    if not timed:
        return []
    lines = ["**By the clock on the wall, µs a call** at the tutorial's shape: of many that are waited for together, of one "
             "that is waited for", "", _line(["who", "input", "mode", "together", "alone", "on the GPU"]),
             _line([":--"] * 3 + ["--:"] * 3)]
    for row in timed:
        lines.append(_line([_name(row), row["input"], row["mode"], digits(1e6 * row["wall"]),
                            digits(1e6 * row["wall_waited"]), digits(1e6 * row["median"]) if "median" in row else ""]))
    return lines + [""]


def _lengths(rows):
    """How time grows with the number of steps: what a call costs besides them shows."""
    lengths = sorted({row["T"] for row in rows})
    if lengths == [TUTORIAL.T]:
        return []
    lines = [f"**Number of steps, B = {TUTORIAL.B}, H = {TUTORIAL.H}**: µs a call (in brackets how many times as long "
             f"{TORCH} takes)", "", _line(["T", FORWARD, BOTH]), _line(["--:"] * 3)]
    for T in lengths:
        pairs = [of_cell(rows, TUTORIAL._replace(T=T), mode) for mode in (FORWARD, BOTH)]
        lines.append(_line([T] + [_beside(ours, theirs, 1e6 * ours["median"]) if ours else "" for ours, theirs in pairs]))
    return lines + [""]


def _beside(ours, theirs, value):
    return f"{digits(value)} ({theirs['median'] / ours['median']:.2f}×)" if theirs else digits(value)


def _lost(rows):
    """Where the chosen variant is slower than the vendor: there must be no such cell."""
    cells = list(dict.fromkeys((row["T"], row["B"], row["V"], row["H"]) for row in rows))
    compared, slower = 0, []
    for mode in (FORWARD, BACKWARD, BOTH):
        for cell in cells:
            ours, theirs = of_cell(rows, cell, mode)
            if ours and theirs:
                compared += 1
                if theirs["median"] < ours["median"]:
                    T, B, _, H = cell
                    slower.append(f"T = {T}, B = {B}, H = {H}, {mode} ({theirs['median'] / ours['median']:.2f}×)")
    if not compared:
        return []
    return [f"**{TORCH} is faster** than the chosen variant in {len(slower)} of {compared} comparisons"
            + (": " + "; ".join(slower) if slower else "") + ".", ""]


def _choices(rows):
    """The family that the chooser takes at each cell, and, where another is faster, that one and by how much."""
    hidden, batches = axes(rows)
    if not hidden:
        return []
    lines = ["**Chosen family**, and the fastest one where that is another (× its time that the chosen one takes; "
             "forward, both ways)", "", _line(["H \\ B"] + batches), _line(["--:"] * (1 + len(batches)))]
    for H in hidden:
        cells = [f"**{H}**"]
        for B in batches:
            cell, better = TUTORIAL._replace(B=B, H=H), []
            for mode in (FORWARD, BOTH):
                chosen, best = of_cell(rows, cell, mode)[0], first(best_families(rows, cell, mode))
                if chosen and best and best[1] != chosen["family"]:
                    better.append(f"{best[1]} {chosen['median'] / best[0]:.2f}×")
                else:
                    better.append("–")
            chosen = of_cell(rows, cell, FORWARD)[0]
            text = chosen["family"] if chosen else ""
            cells.append(f"{text}; {', '.join(better)}" if set(better) != {"–"} else text)
        lines.append(_line(cells))
    return lines + [""]


def _estimates(rows):
    """What the chooser believes beside what is: its constants (variants.py) are to be fitted to this."""
    hidden, batches = axes(rows)
    if not hidden:
        return []
    lines = ["**Cycles a step, forward: predicted → measured**, the best variant of each family", "",
             _line(["H", "B", *FAMILIES]), _line(["--:"] * (2 + len(FAMILIES)))]
    for H in hidden:
        for B in batches:
            cells = []
            for family in FAMILIES:
                timed = [row for row in find(rows, TUTORIAL._replace(B=B, H=H), FORWARD) if row["family"] == family]
                best = min(timed, key=lambda row: row["median"], default=None)
                cells.append(f"{best['predicted_cycles']:,.0f} → {best['cycles_per_step']:,.0f}" if best else "")
            lines.append(_line([H, B, *cells]))
    return lines + [""]


def _variants(rows):
    """Every variant at the quick shapes, for the chooser's numbers."""
    lines = ["**Every variant, cycles a step: predicted → measured**", "",
             _line(["B", "H", "variant", FORWARD, STEPS]), _line(["--:", "--:", ":--", "--:", "--:"])]
    timed = {}
    for row in rows:
        if row["status"] == OK:
            timed.setdefault((row["B"], row["H"], row["variant"]), {})[row["mode"]] = row
    for (B, H, variant), its in timed.items():
        if FORWARD in its and STEPS in its:
            lines.append(_line([B, H, _escaped(variant)] + [
                f"{its[mode][predicted]:,.0f} → {its[mode]['cycles_per_step']:,.0f}" for mode, predicted in (
                    (FORWARD, "predicted_cycles"), (STEPS, "predicted_backward_cycles"))]))
    return lines + [""]


def _training(training):
    """The whole training step, and what 2,000 epochs of it have come to."""
    lines = [f"**Training**, {training['text']}, T×B×V×H = {'×'.join(str(training[letter]) for letter in 'TBVH')}, "
             f"{training['batches']} batches an epoch; {training['variant']}. In {training['epochs']:,} epochs, "
             f"{digits(training['seconds'])} s, the mean loss has come from {training['losses'][0]:.4f} to "
             f"{training['losses'][-1]:.4f}; {training['known_words']:.0%} of the words of a sample are the text's.", "",
             _line(["launched", "tokens/s", "µs a batch", "largest error of a loss"]), _line([":--"] + ["--:"] * 3)]
    for way in training["ways"]:
        cells = [f"{way['tokens_per_second']:,.0f}", digits(way["us_per_batch"]), f"{way['error']:.1e}"] if (
            way["status"] == OK) else [_why(way), "", ""]
        lines.append(_line([way["way"], *cells]))
    return lines + [_line([f"**{training['epochs']:,} epochs, {training['way']}**", f"{training['tokens_per_second']:,.0f}",
                           digits(training["us_per_batch"]), ""]), "", "> " + training["sample"].replace("\n", "\n> "), ""]


def _why(row):
    return f"{row['status']}: {row['reason']}".replace("|", "\\|")


def _name(row):
    if row["provider"] != OURS:
        return row["provider"]
    name = re.sub(r"[<>]", lambda match: "\\" + match.group(), row["variant"])
    return f"**{name}**" if row["chosen"] else name


def _floor(row, cycles=False):
    text = [digits(1e6 * row["floor_cycles"] / row["clock"])]
    return text + [f"{row['floor_cycles']:,.0f}"] if cycles else text


def _spread(row):
    if not row:
        return ""
    low, high = (digits(1e6 * row[key] / row["T"]) for key in ("p25", "p75"))
    return f"{digits(row['us_per_step'])} ({low}–{high})"


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"
