"""A run on a GPU as Markdown, ready for a README. Pure functions of a result's contents."""
import re

from rnn_ops.backends.cuda.variants import FAMILIES

from . import gpu_floor, microbench
from .gpu_providers import OURS, TORCH
from .problems import BACKWARD, BOTH, FORWARD, STEPS, TUTORIAL
from .report import digits, markdown_table
from .worker import OK


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
    if "shapes" in found and "of" in found:
        return f"{found['shapes']} of {found['of']} shapes{': ' if found['facts'] else ''}{found['facts']}"
    if "rows" in found:
        return f"{len(found['rows'])} rows"
    return ""


def timed_headline(rows, shape):
    """Ours and cuDNN at a shape in a few words."""
    words = []
    for direction in (FORWARD, BOTH):
        ours, theirs = at(rows, shape, direction)
        if ours:
            words.append(f"{direction} {_a_step(ours)} µs a step ({ours['family']})" + (
                f", cuDNN {_a_step(theirs)}" if theirs else ""))
    return "; ".join(words)


def markdown(result):
    """All tables of a result."""
    rows, training = result["rows"], result["training"]
    by_the_wall = [row for part in ("mxnet", "jax") for row in (result[part] or {}).get("rows", ())]
    lines = [_environment(result), ""]
    if not result["complete"]:
        lines += ["**Incomplete.**", ""]
    parts = [[name, its["status"], f"{its['seconds']:.0f}", _escaped(its["reason"])] for name, its in result["parts"].items()]
    lines += _table([["part", "ended", "s", "why"], *parts], left="013")
    lines += _checks(result["checks"])
    if rows:
        for direction in (FORWARD, BOTH):
            lines += _grid(rows, direction)
        lines += _tutorial(rows)
    lines += _wall(rows + by_the_wall)
    if rows:
        lines += _lengths(rows)
        lines += _slower(rows)
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
    if result["sanitizer"]:
        lines += ["**compute-sanitizer**", "", *(f"- {tool}: {what}" for tool, what in result["sanitizer"].items()), ""]
    return "\n".join(lines) + "\n"


def screen(result):
    """The same tables for a terminal, where no character needs to be escaped."""
    return re.sub(r"\\([<>|])", r"\1", markdown(result))


def _table(table, left=""):
    """Lines of Markdown and an empty one, from rows of cells, a header first; ``left`` has the numbers of the columns that are
    aligned to the left."""
    return [*markdown_table(table, left), ""]


def _checks(found):
    """How many checks passed, and each failure."""
    if not found:
        return []
    table = [["part", "family", "right", "of its bound", "where"]]
    for part, its in found.items():
        table += [[part, family, f"{one['right']:,} of {one['count']:,}", f"{one['share']:.0%}", _escaped(one["nearest"])]
                  for family, one in its["families"].items()]
    failed = [f"- FAILED {_escaped(line)}" for its in found.values() for line in its["failed"]]
    return ["**Checks**: right of all; the share of its bound that the largest error takes", "", *_table(table, left="014"),
            *failed, *[""] * bool(failed)]


def _occupancy(rows):
    """How many blocks and clusters run at once: the chooser's table (variants.py) is to be compared with it."""
    return ["**At once**, of each kernel", "", *_table([
        ["kernel", "threads", "shared memory", "blocks a multiprocessor", "clusters"],
        *([_escaped(row["kernel"]), row["threads"], f"{row['shared']:,}", row["blocks"], row["clusters"] or ""]
          for row in rows)], left="0")]


def _escaped(text):
    return re.sub(r"[<>|]", lambda match: "\\" + match.group(), text)


def find(rows, shape, direction, provider=OURS, input="tokens", chosen=None):
    """The timed rows of one shape and direction."""
    return [row for row in rows if row["status"] == OK and row["direction"] == direction and row["provider"] == provider
            and row["input"] == input and chosen in (None, row["chosen"]) and row["shape"] == list(shape[:4])]


def first(rows):
    return rows[0] if rows else None


def at(rows, shape, direction):
    """(our chosen variant's row, PyTorch's row), either None if it was not timed."""
    return (first(find(rows, shape, direction, chosen=True)), first(find(rows, shape, direction, TORCH, "one-hot")))


def axes(rows):
    """(hidden sizes, batch sizes) of the rows with the tutorial's T, sorted."""
    shapes = [row["shape"] for row in rows if row["shape"][0] == TUTORIAL.T]
    return sorted({H for *_, H in shapes}), sorted({B for _, B, _, _ in shapes})


def best_families(rows, shape, direction):
    """[(median, family), ...] of our families at a shape, the fastest first."""
    medians = {}
    for row in find(rows, shape, direction):
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
            f"I = {TUTORIAL.I}; ours takes tokens, {TORCH} (cuDNN, no TF32) their one-hot rows.")


def _over_the_grid(rows, text):
    """A table with a line for each H and a column for each B; ``text(shape)`` of each."""
    hidden, batches = axes(rows)
    return _table([["H \\ B", *batches], *([f"**{H}**", *(text(TUTORIAL._replace(B=B, H=H)) for B in batches)] for H in hidden)])


def _grid(rows, direction):
    if not axes(rows)[0]:
        return []
    torch = any(row["provider"] == TORCH and row["status"] == OK for row in rows)

    def text(shape):
        ours, theirs = at(rows, shape, direction)
        return _beside(ours, theirs, 1e6 * ours["seconds_per_step"]) if ours else ""

    return [f"**{direction}, µs a step**" + (f" (in brackets how many times as long {TORCH} takes)" if torch else ""), "",
            *_over_the_grid(rows, text)]


def _tutorial(rows):
    """Every provider at the tutorial's shape."""
    here = [row for row in rows if row["shape"] == list(TUTORIAL[:4])]
    if not here:
        return []
    ours = {direction: first(find(here, TUTORIAL, direction, chosen=True)) for direction in (FORWARD, BACKWARD, BOTH)}
    table = [["provider", "input", "forward", "cycles", "predicted", "backward", "of it steps", "both", "× ours"]]
    floors = {direction: digits(1e6 * row["floor_cycles"] / row["clock"]) for direction, row in ours.items() if row}
    if len(floors) == len(ours):
        table.append(["*floor*", "tokens", floors[FORWARD], f"{ours[FORWARD]['floor_cycles']:,.0f}", "", floors[BACKWARD], "",
                      floors[BOTH], ""])
    by_provider = {}
    for row in here:
        by_provider.setdefault((row["provider"], row["variant"], row["input"]), {})[row["direction"]] = row
    for its in by_provider.values():
        row = next(iter(its.values()))
        if None in its:
            table.append([_name(row), row["input"], _why(row)] + [""] * 6)
            continue
        timed = {direction: row for direction, row in its.items() if row["status"] == OK}
        forward, both = timed.get(FORWARD), timed.get(BOTH)
        ratio = f"{both['median'] / ours[BOTH]['median']:.2f}" if both and ours[BOTH] else ""
        table.append([_name(row), row["input"], _spread(forward), f"{forward['cycles_per_step']:,.0f}" if forward else "",
                      f"{row['predicted_cycles']:,.0f}" if "predicted_cycles" in row else "", _spread(timed.get(BACKWARD)),
                      _spread(timed.get(STEPS)), _spread(both), ratio])
    return [f"**T×B×I×H = {TUTORIAL.sizes}, every provider**: µs a step, median (p20–p80); cycles a step at the clock of the "
            "run; *× ours*: how many times as long as the chosen variant (bold) takes.", "", *_table(table, left="01"),
            f"Floor, {gpu_floor.FORMULA}.", ""]


def _wall(rows):
    """Microseconds a call by a user's clock."""
    timed = [row for row in rows if "wall" in row and (row["chosen"] or row["provider"] != OURS)]
    untimed = [row for row in rows if row["direction"] is None and row["family"] in ("MXNet", "XLA")]
    if not timed + untimed:
        return []
    table = [["provider", "input", "direction", "together", "alone", "on the GPU"]]
    table += [[_name(row), row["input"], row["direction"], digits(1e6 * row["wall"]), digits(1e6 * row["wall_waited"]),
               digits(1e6 * row["median"]) if "median" in row else ""] for row in timed]
    table += [[_name(row), row["input"], _why(row), "", "", ""] for row in untimed]
    return ["**By the clock on the wall, µs a call** at the tutorial's shape: of many that are waited for together, of one "
            "that is waited for", "", *_table(table, left="012")]


def _lengths(rows):
    """How time grows with the number of steps, which shows the cost of a call besides them."""
    lengths = sorted({row["shape"][0] for row in rows})
    if lengths == [TUTORIAL.T]:
        return []

    def text(T, direction):
        ours, theirs = at(rows, TUTORIAL._replace(T=T), direction)
        return _beside(ours, theirs, 1e6 * ours["median"]) if ours else ""

    return [f"**Number of steps, B = {TUTORIAL.B}, H = {TUTORIAL.H}**: µs a call (in brackets how many times as long "
            f"{TORCH} takes)", "", *_table([["T", FORWARD, BOTH], *([T, text(T, FORWARD), text(T, BOTH)] for T in lengths)])]


def _beside(ours, theirs, value):
    return f"{digits(value)} ({theirs['median'] / ours['median']:.2f}×)" if theirs else digits(value)


def _slower(rows):
    """The shapes at which the chosen variant is slower than cuDNN; there should be none."""
    compared, slower = 0, []
    for direction in (FORWARD, BACKWARD, BOTH):
        for shape in dict.fromkeys(tuple(row["shape"]) for row in rows):
            ours, theirs = at(rows, shape, direction)
            if ours and theirs:
                compared += 1
                if theirs["median"] < ours["median"]:
                    T, B, _, H = shape
                    slower.append(f"T = {T}, B = {B}, H = {H}, {direction} ({theirs['median'] / ours['median']:.2f}×)")
    if not compared:
        return []
    return [f"**{TORCH} is faster** than the chosen variant in {len(slower)} of {compared} comparisons"
            + (": " + "; ".join(slower) if slower else "") + ".", ""]


def _choices(rows):
    """The family that the chooser takes at each shape, and, if another is faster, that one and by how much."""
    if not axes(rows)[0]:
        return []

    def text(shape):
        better = []
        for direction in (FORWARD, BOTH):
            chosen, best = at(rows, shape, direction)[0], first(best_families(rows, shape, direction))
            slower = chosen and best and best[1] != chosen["family"]
            better.append(f"{best[1]} {chosen['median'] / best[0]:.2f}×" if slower else "–")
        chosen = at(rows, shape, FORWARD)[0]
        family = chosen["family"] if chosen else ""
        return family if set(better) == {"–"} else f"{family}; {', '.join(better)}"

    return ["**Chosen family**, and the fastest one if that is another (× its time that the chosen one takes; "
            "forward, both ways)", "", *_over_the_grid(rows, text)]


def _estimates(rows):
    """The chooser's predictions beside the measurements: its constants (variants.py) are to be fitted to these."""
    hidden, batches = axes(rows)
    if not hidden:
        return []

    def text(family, B, H):
        timed = [row for row in find(rows, TUTORIAL._replace(B=B, H=H), FORWARD) if row["family"] == family]
        best = min(timed, key=lambda row: row["median"], default=None)
        return _predicted(best, "predicted_cycles") if best else ""

    return ["**Cycles a step, forward: predicted → measured**, the best variant of each family", "", *_table([
        ["H", "B", *FAMILIES], *([H, B, *(text(family, B, H) for family in FAMILIES)] for H in hidden for B in batches)])]


def _predicted(row, key):
    measured = f"{row['cycles_per_step']:,.0f}"
    return f"{row[key]:,.0f} → {measured}" if key in row else measured  # the older exchange is not predicted


def _variants(rows):
    """Every variant at the quick shapes, for the chooser's numbers."""
    table, timed = [["B", "H", "variant", FORWARD, STEPS]], {}
    for row in rows:
        if row["status"] == OK:
            timed.setdefault((row["shape"][1], row["shape"][3], row["variant"]), {})[row["direction"]] = row
    for (B, H, variant), its in timed.items():
        if FORWARD in its and STEPS in its:
            table.append([B, H, _escaped(variant), _predicted(its[FORWARD], "predicted_cycles"),
                          _predicted(its[STEPS], "predicted_backward_cycles")])
    return ["**Every variant, cycles a step: predicted → measured**", "", *_table(table, left="2")]


def _training(training):
    """The whole training step, and the result of 2,000 epochs of it."""
    table = [["launched", "tokens/s", "µs a batch", "largest error of a loss"]]
    for way in training["ways"]:
        table.append([way["way"], *([f"{way['tokens_per_second']:,.0f}", digits(way["us_per_batch"]), f"{way['error']:.1e}"]
                                    if way["status"] == OK else [_why(way), "", ""])])
    table.append([f"**{training['epochs']:,} epochs, {training['way']}**", f"{training['tokens_per_second']:,.0f}",
                  digits(training["us_per_batch"]), ""])
    return [f"**Training**, {training['text']}, T×B×V×H = {'×'.join(str(training[letter]) for letter in 'TBVH')}, "
            f"{training['batches']} batches an epoch; {training['variant']}. In {training['epochs']:,} epochs, "
            f"{digits(training['seconds'])} s, the mean loss has come from {training['losses'][0]:.4f} to "
            f"{training['losses'][-1]:.4f}; {training['known_words']:.0%} of the words of a sample are the text's.", "",
            *_table(table, left="0"), "> " + training["sample"].replace("\n", "\n> "), ""]


def _why(row):
    return f"{row['status']}: {row['reason']}".replace("|", "\\|")


def _name(row):
    if row["provider"] != OURS:
        return row["provider"]
    name = _escaped(row["variant"])
    return f"**{name}**" if row["chosen"] else name


def _a_step(row):
    return digits(1e6 * row["seconds_per_step"])


def _spread(row):
    if not row:
        return ""
    if "p20" not in row:  # a result of format "rnn_ops gpu 2" has quartiles
        return _a_step(row)
    low, high = (digits(1e6 * row[key] / row["shape"][0]) for key in ("p20", "p80"))
    return f"{_a_step(row)} ({low}–{high})"
