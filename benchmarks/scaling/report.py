"""The result file, and all of it as Markdown tables: what was measured, and what the model makes of it."""
import datetime
import json

from ..report import FORMAT, digits
from . import model, parts

KIND = "scaling"
NETWORKS = (("1 Gbit/s", model.Network(1.25e8, 5e-5)), ("10 Gbit/s", model.Network(1.25e9, 5e-5)))  # of the model's table
_FITTED = 10 ** 6  # numbers; larger vectors are in no cache, and a line does not describe both
_BUSY = 0.1  # of the processors' time, taken by others, from which on it is said


def empty():
    """A result without parts."""
    return {"format": FORMAT, "kind": KIND, "parts": {}}


def stamp():
    """When a part was measured."""
    return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def read(path):
    """A result file. A ValueError says that it is none."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if not isinstance(result, dict) or (result.get("format"), result.get("kind")) != (FORMAT, KIND):
        raise ValueError(f"got another file, needs a result of {__package__} in format {FORMAT}")
    return result


def markdown(result):
    """The tables of all parts that the result has."""
    found = result["parts"]
    sections = [show(found) for needed, show in (
        (("steps",), _steps), (("kvstore",), _kvstore), (("computing",), _computing), (("network",), _network),
        (("kvstore",), _rounds), (("steps", "kvstore", "computing"), _model)) if all(name in found for name in needed)]
    return "\n\n".join([_bytes(), *sections, _where(found)]) + "\n"


def _bytes():
    """By arithmetic alone."""
    _, _, symbols, hidden = parts.SHAPE
    count, lines = model.parameters(hidden, symbols), []
    for workers, compressed, name in (
            (2, False, "2 workers, float32"), (2, True, "2 workers, 2bit"),
            (4, False, "4 workers, float64"), (4, True, "4 workers, 2bit")):
        sent = model.message(count, workers, compressed)
        lines.append((name, *(digits(size / 1e6) for size in (sent.up, sent.down, workers * sent.up, workers * sent.down))))
    return _table((f"MB a training step, {count:,} parameters", "a worker sends", "receives", "the server receives", "sends"),
                  lines)


def _where(found):
    lines = []
    for name, part in found.items():
        where = part["environment"]
        versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
        others = where.get("others")
        busy = f"; other programs took {others:.0%} of the processors' time" if (others or 0) > _BUSY else ""
        lines.append(f"- {name}: {part['date'][:10]}, {where['processor']}, {where['cores']} cores, commit {where['commit']}, "
                     f"{versions}; {part['rounds']} rounds{busy}")
    return "\n".join(lines)


def _table(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, [":--"] + ["--:"] * (len(head) - 1), *rows))


def _ms(seconds):
    return digits(1e3 * seconds)


def _steps(found):
    rows = found["steps"]["rows"]
    alone = next(row for row in rows if not row["workers"])
    names = parts.PARTS_OF_A_STEP
    return _table(("ms a training step", "best", "median", "times one process", *names),
                  [(row["job"], _ms(row["best"]), _ms(row["median"]), f"{row['median'] / alone['median']:.2f}",
                    *(_ms(row["parts"][name]) if row["workers"] or name == names[0] else "" for name in names)) for row in rows])


def _kvstore(found):
    rows = found["kvstore"]["rows"]
    sizes = sorted({row["size"] for row in rows})
    lines = []
    for job, dtype in dict.fromkeys((row["job"], row["dtype"]) for row in rows):
        its = {row["size"]: row["median"] for row in rows if (row["job"], row["dtype"]) == (job, dtype)}
        cost, error = _cost(rows, job, dtype)
        lines.append((f"{job}, {dtype}", *(_ms(its[size]) for size in sizes), _ms(cost.latency), digits(1e9 * cost.per_byte),
                      f"{error:.0%}"))
    return _table(("ms a round, numbers", *(f"{size:,}" for size in sizes), "fit: ms", "+ ns a byte", "worst error"), lines)


def _cost(rows, job, dtype):
    """The fit to the medians of a job's rounds, and its largest relative error."""
    its = [row for row in rows if (row["job"], row["dtype"]) == (job, dtype) and row["size"] <= _FITTED]
    sizes = [row["size"] * (4 if dtype == "float32" else 8) for row in its]
    cost = model.fit(sizes, [row["median"] for row in its])
    return cost, max(abs(cost.at(size) / row["median"] - 1) for size, row in zip(sizes, its))


def _computing(found):
    rows = found["computing"]["rows"]
    counts = sorted({row["rows"] for row in rows})
    return _table(("ms a step of one process, rows", *map(str, counts)), [
        (f"H = {hidden}", *(_ms(row["median"]) for count in counts for row in rows
                            if (row["hidden"], row["rows"]) == (hidden, count)))
        for hidden in sorted({row["hidden"] for row in rows})])


def _network(found):
    rows = found["network"]["rows"]
    _, _, symbols, hidden = parts.SHAPE
    lines, errors = [], []
    for row in rows:
        if row["bandwidth"] is None:
            continue
        base = next(other["median"] for other in rows if other["job"] == row["job"] and other["bandwidth"] is None)
        sent = model.message(model.parameters(hidden, symbols), row["workers"], row["threshold"] is not None)
        predicted = base + model.on_the_network(sent, row["workers"], row["servers"],
                                                model.Network(row["bandwidth"], row["latency"]))
        errors.append(predicted / row["median"] - 1)
        bandwidth, latency = row["probed"]
        lines.append((row["job"], f"{8e-6 * row['bandwidth']:,.0f}", f"{1e3 * row['latency']:g}",
                      f"{8e-6 * bandwidth:,.0f}, {digits(1e3 * latency)}", _ms(row["median"]), _ms(predicted),
                      f"{errors[-1]:+.0%}"))
    table = _table(("ms a step over a simulated network", "Mbit/s", "ms one way", "by a probe", "measured", "model", "error"),
                   lines)
    middle = sorted(map(abs, errors))[len(errors) // 2]
    return f"{table}\n\nErrors of the model: {middle:.0%} in the middle, {max(errors, key=abs):+.0%} at worst."


def _rounds(found):
    """What a round takes, by the model: a step gains if the workers save more than that in computing."""
    cases = [(workers, name, network) for workers in (2, 4) for name, network in NETWORKS]
    lines = []
    for hidden in parts.HIDDEN:
        count, line = model.parameters(hidden, parts.SHAPE[2]), []
        for workers, _, network in cases:
            sent = model.message(count, workers)
            cost, _ = _cost(found["kvstore"]["rows"], f"{workers} workers, 1 server", "float32" if workers <= 2 else "float64")
            line.append(_ms(cost.at(sent.up) + model.on_the_network(sent, workers, 1, network)))
        lines.append((f"H = {hidden}, {count:,} parameters", *line))
    return _table(("model: ms a round, 1 server", *(f"{workers} workers, {name}" for workers, name, _ in cases)), lines)


def _model(found):
    return "\n\n".join([_gains(found, weak=False), _gains(found, weak=True)])


def gain(found, hidden, workers, servers, network, weak):
    """By the model: how many times the tokens a second of one worker; of 32 rows together, or 32 each if ``weak``."""
    batch, symbols = parts.SHAPE[1], parts.SHAPE[2]
    computing = {(row["hidden"], row["rows"]): row["median"] for row in found["computing"]["rows"]}
    job = next(row for row in found["steps"]["rows"] if (row["workers"], row["servers"], row["threshold"]) == (workers, 1, None))
    flattening = job["parts"]["flattening"] / model.numbers(model.parameters(parts.SHAPE[3], symbols), workers)
    cost, _ = _cost(found["kvstore"]["rows"], f"{workers} workers, 1 server", "float32" if workers <= 2 else "float64")
    seconds = model.step(computing[hidden, batch if weak else batch // workers], hidden, symbols, workers, servers, network,
                         flattening, cost)
    return computing[hidden, batch] / seconds * (workers if weak else 1)


def _gains(found, weak):
    cases = [(workers, servers, name, network) for workers in (2, 4) for servers in (1, workers) for name, network in NETWORKS]
    head = (f"model: times as fast, {'32 rows for each worker' if weak else '32 rows together'}",
            *(f"{workers} workers, {servers} server{'s' * (servers > 1)}, {name}" for workers, servers, name, _ in cases))
    return _table(head, [
        (f"H = {hidden}, {model.parameters(hidden, parts.SHAPE[2]):,} parameters",
         *(f"{gain(found, hidden, workers, servers, network, weak):.2f}" for workers, servers, _, network in cases))
        for hidden in sorted({row["hidden"] for row in found["computing"]["rows"]})])
