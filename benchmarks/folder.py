"""The folder of a run on a GPU: a JSON file for each part and each timed shape, written the moment its results are known.

parts/NAME.json    how a part ended, by the parent: status, reason, seconds
results/NAME.json  its results, by the part itself, again and again as it goes on
cells/SHAPE.json   the rows of a timed shape; while it is not done also which providers were "tried", and which is tried "now"
                   (a shape was called a cell; the folder keeps its name, so that older runs can go on)
logs/NAME.txt      the part's stdout and stderr
result.json, report.md, chart.png   all of it together, rebuilt whenever a run ends and by --report
"""
import json
import os

from rnn_ops_timemachine import files

from . import gpu_floor, report

# How a part ends. FAILED: wrong results, or it did not end by itself; CUT: the time was over; LEFT_OUT: not possible here.
DONE, FAILED, CUT, NO_TIME, LEFT_OUT = "done", "failed", "cut off", "no time", "left out"
COMPLETE = (DONE, FAILED, LEFT_OUT)
_NOT_IN_0_1 = ("mxnet",)  # parts that version 0.1 did not have: its folders are complete without them
PARTS, RESULTS, SHAPES, LOGS = "parts", "results", "cells", "logs"


class Folder:
    """The folder of a run."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    def make(self):
        """Make it and see that it can be written. An OSError says why not."""
        for name in ("", PARTS, RESULTS, SHAPES, LOGS):
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
        """The data of a file, or None if it is missing or no JSON. Half a file cannot be there."""
        try:
            with open(self.at(kind, name + ".json"), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def names(self, kind):
        """The names of a kind's files, sorted."""
        try:
            return sorted(name[:-5] for name in os.listdir(self.at(kind)) if name.endswith(".json") and name[0] != ".")
        except OSError:
            return []

    def remove(self, kind, name):
        try:
            os.unlink(self.at(kind, name + ".json"))
        except FileNotFoundError:
            pass


def name_of(shape):
    """The file's name of a timed shape."""
    return "T{}-B{}-V{}-H{}".format(*shape)


def assemble(folder, order):
    """Everything in a folder as one result; ``order`` of the parts' names.

    Returns None where not even the device is known.
    """
    device = folder.read(RESULTS, "device")
    if device is None:
        return None
    parts = {name: folder.read(PARTS, name) for name in order}
    results = {name: folder.read(RESULTS, name) for name in order}
    shapes = [found for found in (folder.read(SHAPES, name) for name in folder.names(SHAPES)) if found and "rows" in found]
    rows = [row for found in sorted(shapes, key=lambda found: found["number"]) for row in found["rows"]]
    upgraded = {name: found and dict(found, rows=list(map(report.upgraded, found.get("rows", ()))))
                for name, found in results.items() if name in ("jax", "mxnet", "variants")}
    expected = {name: part for name, part in parts.items()
                if part or name not in _NOT_IN_0_1 or not device.get("rnn_ops", "").startswith("0.1.")}
    return {
        "format": report.FORMAT, "kind": report.GPU, **device,
        "method": {"dtype": "float32", "units": "seconds", "floor": gpu_floor.FORMULA},
        "complete": all(part is not None and part["status"] in COMPLETE for part in expected.values()),
        "parts": {name: part for name, part in parts.items() if part},
        "checks": {name: found for name, found in results.items() if found and "families" in found},
        "rows": list(map(report.upgraded, rows)),
        **{name: results.get(name) for name in ("microbench", "occupancy", "training", "sanitizer")},
        **{name: upgraded.get(name) for name in ("jax", "mxnet", "variants")}}
