"""Where a run's results are: a JSON file for each part and each timed cell, written the moment it is known.

parts/NAME.json    how a part ended, by the parent: status, reason, seconds
results/NAME.json  what it has found, by the part itself, again and again as it goes on
cells/CELL.json    the rows of a timed cell; while it is not done also what was "tried" of it, and what is tried "now"
logs/NAME.txt      what the part printed
result.json, report.md, chart.png   all of it together, rebuilt whenever a run ends and by --report
"""
import json
import os

from rnn_ops_timemachine import files

from .. import report

FORMAT = "rnn_ops gpu 2"
# How a part ends: wrong results or no end of its own; what there was time for; no time at all; not possible here.
DONE, FAILED, CUT, NO_TIME, LEFT_OUT = "done", "failed", "cut off", "no time", "left out"
COMPLETE = (DONE, FAILED, LEFT_OUT)
PARTS, RESULTS, CELLS, LOGS = "parts", "results", "cells", "logs"


class Folder:
    """The folder of a run."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    def make(self):
        """Make it and see that it can be written. An OSError says why not."""
        for name in ("", PARTS, RESULTS, CELLS, LOGS):
            os.makedirs(os.path.join(self.path, name), exist_ok=True)
        with files.writing(self.at("result.json.try")):
            pass
        os.unlink(self.at("result.json.try"))

    def at(self, *names):
        return os.path.join(self.path, *names)

    def log(self, part):
        return self.at(LOGS, part + ".txt")

    def write(self, kind, name, data):
        report.write_json(data, self.at(kind, name + ".json"))

    def read(self, kind, name):
        """What was written, or None. Half a file cannot be there; one that is none is as if it were not."""
        try:
            with open(self.at(kind, name + ".json"), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def names(self, kind):
        """Of what there is of a kind, in the order of the alphabet."""
        try:
            return sorted(name[:-5] for name in os.listdir(self.at(kind)) if name.endswith(".json") and name[0] != ".")
        except OSError:
            return []

    def remove(self, kind, name):
        try:
            os.unlink(self.at(kind, name + ".json"))
        except FileNotFoundError:
            pass


def assemble(folder, order):
    """Everything in a folder as one result; ``order`` of the parts' names.

    Returns None where not even the device is known.
    """
    device = folder.read(RESULTS, "device")
    if device is None:
        return None
    parts = {name: folder.read(PARTS, name) for name in order}
    results = {name: folder.read(RESULTS, name) for name in order}
    cells = [folder.read(CELLS, name) for name in folder.names(CELLS)]
    rows = [row for cell in sorted(filter(_has_rows, cells), key=lambda cell: cell["number"]) for row in cell["rows"]]
    return {
        "format": FORMAT, **device,
        "complete": all(part is not None and part["status"] in COMPLETE for part in parts.values()),
        "parts": {name: part for name, part in parts.items() if part},
        "checks": {name: found for name, found in results.items() if found and "families" in found},
        "rows": rows,
        **{name: results.get(name) for name in ("jax", "mxnet", "microbench", "occupancy", "variants", "training", "sanitizer")}}


def _has_rows(cell):
    return cell is not None and "rows" in cell
