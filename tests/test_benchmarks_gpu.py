"""The command for a GPU host, but for what only a GPU does: truth, bounds, what the checks find, floors, tables.

A machine that computes in NumPy takes the GPU's place: right, it passes every check; with any one defect, it does not.
"""
import json
import math
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from cuda_host import Host
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops_benchmarks import environment, numpy_loop, report
from rnn_ops_benchmarks.gpu import __main__ as command
from rnn_ops_benchmarks.gpu import cells, checks, picture, sanitizer, tables, timing, training
from rnn_ops_benchmarks.gpu.cells import BACKWARD, BOTH, FORWARD, MODES, STEPS, TUTORIAL, Cell
from rnn_ops_benchmarks.gpu.providers import OURS, TORCH

H100 = variants.known_device(90, 132)
FEW = dict(shapes=((1, 1, 1, 1), (3, 4, 5, 7)), variant_shapes=((2, 3, 5, 33),), option_shapes=((4, 3, 5, 6),),
           bits_shapes=((3, 2, 5, 4), (2, 3, 5, 6)), most_runs=50, sweep=2 ** 12)


class NumPyMachine:
    """What checks.py and timing.py need of a GPU. ``defect`` names what is wrong with it."""

    def __init__(self, device=H100, defect=None):
        self.device, self.launcher, self.defect = device, self, defect
        self.clock, self.l2 = 1e9, 1000
        self.launches = 0

    def to_device(self, array):
        if self.defect == "gone" and self.launches:
            raise RuntimeError("an illegal memory access")
        return array.copy()

    to_host = to_device

    def empty(self, shape):
        return np.empty(shape, np.float32)

    def wait(self):
        pass

    def measure_clock(self):
        return self.clock

    def time(self, call, count, delay, before=None):
        if before:
            for i in range(count):
                before(i)
        started = time.perf_counter()
        for i in range(count):
            call(i)
        return time.perf_counter() - started + 1e-6, True

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        self.launches += 1
        if self.defect == "stepwise raises" and getattr(variant, "family", None) == "stepwise":
            raise RuntimeError("invalid configuration")
        if self.defect == "hangs":
            raise TimeoutError("a kernel hangs")
        if self.defect == "gone":
            return
        wrong = np.zeros(inputs.shape, bool)
        if inputs.ndim == 2:
            wrong = (inputs < 0) | (inputs >= len(Wxh))
            inputs = np.where(wrong, 0, inputs)
        table = Wxh.copy()
        outputs[:] = numpy_loop.forward(inputs, state, table, Whh, bh, activation=activation)
        if self.defect != "wrong tokens taken for 0":
            for t, b in np.argwhere(wrong):
                outputs[t:, b] = np.nan
                if self.defect == "a wrong token spoils its neighbour":
                    outputs[t:, (b + 1) % len(state)] = np.nan
        if self.defect == "tanh off by 8 ulp":
            outputs *= 1 - 8 * np.finfo(outputs.dtype).eps
        if self.defect == "last element left out":
            outputs[-1, -1, -1] = np.nan
        if self.defect == "one too many":
            outputs.base[-1] = 0
        if self.defect == "changes its input":
            state[0, 0] += 1
        if self.defect == "other bits":
            outputs[0, 0, 0] += np.spacing(outputs[0, 0, 0]) * (self.launches % 2)

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast, activation="tanh", variant=None,
                 **gradients):
        if self.defect == "gone":
            return
        total = np.zeros_like(outputs) if doutputs is None else doutputs.copy()
        if dlast is not None and self.defect != "dlast ignored":
            total[-1] += dlast
        if doutputs is None and self.defect == "doutputs needed":
            total += 1
        if inputs.ndim == 2:
            inputs = np.where((inputs < 0) | (inputs >= len(Wxh)), 0, inputs)
        if self.defect == "tanh's derivative for relu":
            activation = "tanh"
        found = numpy_loop.backward(inputs, state, Wxh, Whh, outputs, total, activation=activation)
        if self.defect == "dWhh of T = 1 only":
            found["dWhh"] -= outputs[:-1].reshape(-1, len(Whh)).T @ np.ones_like(outputs[1:]).reshape(-1, len(Whh))
        if self.defect == "without dstate all is other" and gradients.get("dstate") is None:
            found["dbh"] = found["dbh"] * 2
        if self.defect == "slightly off":
            found["dbh"] *= 1 + 1e-4 if found["dbh"].dtype == np.float32 else 1 + 1e-8
        unseen = np.setdiff1d(np.arange(len(Wxh)), inputs) if self.defect == "unseen tokens left out" else []
        for name, array in gradients.items():
            if array is not None:
                kept = array[unseen] if name == "dWxh" and len(unseen) else None
                array[:] = found[name]
                if kept is not None:
                    array[unseen] = kept


# --- what is right ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "dense"])
@pytest.mark.parametrize("left_out", [(), ("dlast",), ("doutputs",)], ids=str)
def test_truth_agrees_with_central_differences(tokens, left_out):
    problem = checks.draw(4, 3, 5, 6, np.float64, tokens)._replace(**dict.fromkeys(left_out))
    found = checks.evaluate(problem)

    def objective():
        outputs = numpy_loop.forward(*problem[:5])
        pairs = [(outputs, problem.doutputs), (outputs[-1], problem.dlast)]
        return sum(np.vdot(values, gradient) for values, gradient in pairs if gradient is not None)

    for name in ("state", "Wxh", "Whh", "bh") + (() if tokens else ("inputs",)):
        array, step = getattr(problem, name), 1e-6
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = objective()
            array[index] = kept - step
            below = objective()
            array[index] = kept
            assert found["d" + name][index] == pytest.approx((above - below) / (2 * step), abs=1e-8), (name, index)


def test_bounds_by_hand():
    problem = checks.draw(3, 2, 4, 5, np.float64)
    truth = checks.evaluate(problem)
    assert checks.bounds(problem, truth) == dict.fromkeys(truth, 1e-9)
    single = problem.astype(np.float32)
    truth = checks.evaluate(single.astype(np.float64))
    bounds = checks.bounds(single, truth)
    lost = checks.evaluate(single)
    assert lost["dWhh"].dtype == np.float32
    expected = 3 * np.abs(lost["dWhh"] - truth["dWhh"]).max() / np.abs(truth["dWhh"]).max() + 32 * 2.0 ** -23
    assert bounds["dWhh"] == pytest.approx(expected, rel=1e-12)
    assert set(bounds) == {"outputs", "dstate", "dWxh", "dWhh", "dbh"}


def test_relative_error():
    assert checks.relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert checks.relative_error(np.zeros(2), np.zeros(2)) == 0
    for a, b in [([1e-300], [0.0]), ([np.nan], [1.0]), ([1.0], [np.inf])]:
        assert checks.relative_error(np.array(a), np.array(b)) == math.inf


def test_ulp_errors():
    one = np.float32(1)
    next_one = np.nextafter(one, np.float32(2))
    found = np.array([1, next_one, 0.5, np.nan, -3], np.float32)
    exact = np.array([1, 1, 0.5 + 2.0 ** -25, 0, -3 - 3 * 2.0 ** -22])
    np.testing.assert_array_equal(checks.ulp_errors(found, exact), [0, 1, 0.5, np.inf, 3])
    assert checks.ulp_errors(np.tanh(np.linspace(-9, 9, 999, dtype=np.float32)),
                             np.tanh(np.linspace(-9, 9, 999, dtype=np.float32).astype(np.float64))).max() < 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sweep_has_every_exponent_and_no_subnormal_number(dtype):
    values = checks.sweep_values(dtype, 2 ** 14)
    info = np.finfo(dtype)
    assert values.dtype == dtype and values.size == 2 ** 14
    assert np.isfinite(values).all() and np.abs(values).min() >= info.tiny
    assert set(np.frexp(values)[1] - 1) == set(range(info.minexp, info.maxexp))
    assert 0.4 < np.mean(values < 0) < 0.6
    inner = np.abs(values)[(np.abs(values) > 1e-3) & (np.abs(values) < 9)]
    assert inner.size > 2000


# --- what the checks find ---------------------------------------------------------------------------------------------

def found_by(machine, **plan):
    return checks.run(machine, checks.plan(machine.device, **{**FEW, **plan}))


@pytest.mark.parametrize("device", [H100, variants.known_device(75, 40)], ids=lambda device: device.name)
def test_a_right_machine_passes(device):
    results = found_by(NumPyMachine(device))
    assert [str(result) for result in results if not result.passed] == []
    served = set(variants.FAMILIES) - ({"cluster"} if device.name == "sm_75" else set())
    assert {result.family for result in results} == served
    every, _ = variants.candidates(device, np.float32, 3, 33)
    checked = {result.case.split(", ", 2)[2] for result in results if "every variant" in result.case}
    assert {f"{variant}" for variant in every} <= {case.replace("saturated, ", "") for case in checked}


@pytest.mark.parametrize("defect, what", [
    ("tanh off by 8 ulp", "ulp in tanh"),
    ("last element left out", "outputs: not finite"),
    ("unseen tokens left out", "dWxh: not finite"),
    ("one too many", "cells changed that are no result: 1"),
    ("changes its input", "cells changed that are no result: 1"),
    ("other bits", "cells that changed in 50 runs: "),
    ("other bits", "cells that changed in 20 runs: "),
    ("other bits", "50 times, relu, resident"),
    ("wrong tokens taken for 0", "states from there on that are not NaN"),
    ("a wrong token spoils its neighbour", "cells of other rows' outputs that changed"),
    ("dlast ignored", "without doutputs: dWhh"),
    ("doutputs needed", "without doutputs: dbh"),
    ("dWhh of T = 1 only", "dWhh: "),
    ("without dstate all is other", "without dstate: cells of the others that changed: 6"),
    ("slightly off", "dbh: "),
    ("tanh's derivative for relu", "relu, resident: "),
    ("stepwise raises", "RuntimeError: invalid configuration"),
])
def test_every_defect_is_found(defect, what):
    failed = [str(result) for result in found_by(NumPyMachine(defect=defect)) if not result.passed]
    assert any(what in line for line in failed), failed[:5]
    if defect == "stepwise raises":
        assert all("stepwise" in line for line in failed)
    if defect == "slightly off":
        assert any("float64" in line for line in failed) and any("float32" in line for line in failed)


@pytest.mark.parametrize("defect, why", [("gone", "an illegal memory access"), ("hangs", "a kernel hangs")])
def test_a_machine_that_answers_no_more_ends_the_checks(defect, why):
    machine = NumPyMachine(defect=defect)
    with pytest.raises(checks.Lost, match=f"1×1×1×1 tokens float32, .*{why}") as raised:
        found_by(machine)
    assert machine.launches == 1
    assert [result.passed for result in raised.value.results] == [False]


@pytest.mark.parametrize("architecture, families", [(90, variants.FAMILIES), (75, ("resident", "grid", "stepwise"))])
def test_the_kernels_themselves_pass_on_a_cpu(architecture, families):
    """The same checks on the sources, run by tests/cuda_host."""
    machine = NumPyMachine(variants.known_device(architecture, 16))
    machine.launcher = Launcher(Host(machine.device))
    results = checks.run(machine, checks.plan(machine.device, shapes=((2, 3, 5, 37),), variant_shapes=(),
                                              option_shapes=((3, 2, 3, 5),), bits_shapes=(), sweep=2 ** 8))
    assert [str(result) for result in results if not result.passed] == []
    assert {result.family for result in results} == set(families)


def test_the_plan_covers_what_it_says():
    tasks = checks.plan(H100)
    kinds = {(task.name.split(" ")[1], task.name.split(" ")[2].strip(",")) for task in tasks[:-2]}
    assert kinds == {(kind, dtype) for kind in ("tokens", "dense") for dtype in ("float32", "float64")}
    # Each family at its largest H and beside it, and with more rows than its blocks take at a time.
    for family, largest in (("resident", 256), ("cluster", 1024), ("grid", 2048)):
        served = [shape for shape in checks.SHAPES
                  if family in {variant.family for variant in checks.families(H100, np.float32, shape)}]
        assert max(H for _, _, _, H in served) == largest
        assert any(H > largest and H - largest < 5 for _, _, _, H in checks.SHAPES)
        assert any(variant.rows > variant.tile.rows for shape in served
                   for variant in checks.families(H100, np.float32, shape) if variant.family == family)
    assert {1} <= {T for T, *_ in checks.SHAPES} and {1} <= {B for _, B, *_ in checks.SHAPES}
    repeated = [task for task in tasks if "1,000 times" in task.name]
    assert [task.name for task in repeated] == [
        f"64×32×77×256 {what}" for what in ("tokens float32, 1,000 times", "tokens float32, 1,000 times, relu",
                                            "dense float32, 1,000 times")]
    assert {variant.family for variant in repeated[1].variants} == set(variants.FAMILIES)
    quick = checks.plan(H100, **checks.QUICK)
    assert len(quick) < len(tasks) / 2
    for _, B, _, H in checks.SHAPES:
        assert checks.families(H100, np.float32, (3, B, 5, H))[0] == variants.choose(H100, np.float32, B, H)
    tiny = checks.plan(H100, **checks.TINY)
    assert {variant.family for task in tiny for variant in task.variants} == set(variants.FAMILIES)


def test_not_a_number_is_no_pass():
    assert not checks.Result("", "grid", "dWhh", math.nan, 1.0).passed


def test_summary_names_failures_and_what_was_nearest():
    results = [checks.Result("3×4×5×7 tokens float32, grid", "grid", "dWhh", 1e-6, 4e-6),
               checks.Result("1×1×1×1 tokens float32, grid", "grid", "dbh", 6e-6, 4e-6),
               checks.Result("3×4×5×7 tokens float32, grid", "grid", "cells changed", 3, 0)]
    assert command.summary(results).splitlines() == [
        "FAILED  1×1×1×1 tokens float32, grid: dbh: 6.00e-06 > 4.00e-06",
        "FAILED  3×4×5×7 tokens float32, grid: cells changed: 3",
        "grid: 1 of 3 right; nearest to its bound, at 1.5e+02 %: 1×1×1×1 tokens float32, grid: dbh"]


# --- floors and timing ------------------------------------------------------------------------------------------------

def test_floors_by_hand():
    # 32·256² multiply-adds over 132·128 lanes are 124 cycles; one element waits 100 + 4·8, and Whh (256 KiB) fits.
    assert cells.floor_cycles(H100, TUTORIAL, FORWARD) == 132
    assert cells.floor_cycles(H100, TUTORIAL, BACKWARD) == pytest.approx(132 + 32 * 65536 / 16896)
    assert cells.floor_cycles(H100, TUTORIAL, BOTH) == pytest.approx(264 + 32 * 65536 / 16896)
    large = Cell(64, 256, 77, 2048)
    assert cells.floor_cycles(H100, large, STEPS) == 256 * 2048 ** 2 / 16896
    one_row = Cell(64, 1, 77, 1024)  # 4 MiB: across multiprocessors
    assert cells.floor_cycles(H100, one_row, FORWARD) == 100 + 40 + 180
    assert cells.floor_cycles(variants.known_device(80, 108), one_row, FORWARD) == 100 + 40 + 400


def test_cells_begin_with_the_tutorial_and_name_each_once():
    every = cells.cells()
    assert every[0] == TUTORIAL and len(every) == len(set(every)) == 40
    assert every[-4:] == [(T, 32, 77, 256) for T in (1, 16, 256, 1024)]
    assert set(cells.cells(quick=True)) < set(every)


def test_providers_are_verified_timed_and_told_apart():
    cell = Cell(5, 3, 7, 12)
    rows = timing.measure(NumPyMachine(), cell, rounds=2, seconds=60)
    timed = [row for row in rows if row["status"] == timing.OK]
    assert {(row["family"], row["input"]) for row in timed if row["provider"] == OURS} == {
        *((family, "tokens") for family in variants.FAMILIES), ("resident", "one-hot")}
    for row in timed:
        assert row["turns"] == 2 and 0 < row["best"] <= row["p25"] <= row["median"] <= row["p75"]
        assert row["cycles_per_step"] == pytest.approx(row["median"] / 5 * 1e9)
        assert row["us_per_step"] == pytest.approx(row["median"] / 5 * 1e6)
        assert row["floor_cycles"] == cells.floor_cycles(H100, cell, row["mode"])
        assert row["error"] < 1e-5 and 2 <= row["sets"] <= 8 and row["calls_a_turn"] <= row["sets"]
    assert {row["mode"] for row in timed if row["family"] == "grid"} == set(MODES)
    chosen = variants.choose(H100, np.float32, 3, 12)
    assert {row["variant"] for row in timed if row["chosen"]} == {str(chosen)}
    torch = [row for row in rows if row["provider"] == TORCH]
    assert torch and all(row["status"] == timing.NOT_INSTALLED and "torch" in row["reason"] for row in torch)
    json.dumps(rows)


def test_all_variants_are_timed_where_asked_for():
    cell = Cell(2, 3, 5, 33)
    every, _ = variants.candidates(H100, np.float32, 3, 33)
    rows = timing.measure(NumPyMachine(), cell, rounds=1, seconds=60, all_variants=True)
    assert {row["variant"] for row in rows if row["provider"] == OURS} == {str(variant) for variant in every}


def test_a_wrong_provider_is_not_timed():
    rows = timing.measure(NumPyMachine(defect="dWhh of T = 1 only"), Cell(5, 3, 7, 12), rounds=1, seconds=60)
    ours = [row for row in rows if row["provider"] == OURS]
    assert len(ours) == 5
    for row in ours:
        assert row["status"] == timing.FAILED and "dWhh has a relative error" in row["reason"] and "median" not in row
    rows = timing.measure(NumPyMachine(defect="stepwise raises"), Cell(5, 3, 7, 12), rounds=1, seconds=60)
    assert [row["family"] for row in rows if row["status"] == timing.FAILED] == ["stepwise"]
    with pytest.raises(checks.Lost, match="T = 5, B = 3, H = 12, ours, resident: a kernel hangs"):
        timing.measure(NumPyMachine(defect="hangs"), Cell(5, 3, 7, 12), rounds=1, seconds=60)


def flashrnn(Wx, R, b, states, function, backend, dtype):
    """FlashRNN's function as its documentation has it. Shapes: batch, time, gates, heads, units."""
    import torch
    B, T, G, N, D = Wx.shape
    assert (G, N, function, backend) == (1, 1, "elman", "cuda") and getattr(torch, dtype) == Wx.dtype
    assert R.shape == (1, 1, D, D) and b.shape == (1, 1, D) and states.shape == (1, B, 1, 1, D)
    state, found = states[0, :, 0, 0], []
    for t in range(T):
        state = torch.tanh(Wx[:, t, 0, 0] + state @ R[0, 0].T + b[0, 0])
        found.append(state)
    found = torch.stack(found, dim=1)[None, :, :, None]
    return found, found[:, :, -1:]


@pytest.mark.parametrize("make, bound", [
    (lambda providers, problem: providers.Torch(problem, 2, device="cpu"), 1e-5),
    (lambda providers, problem: providers.Torch(problem, 2, device="cpu", tf32=True), 1e-5),
    (lambda providers, problem: providers.FlashRNN(problem, 2, "cuda", "float32", device="cpu"), 1e-5),
    (lambda providers, problem: providers.FlashRNN(problem, 2, "cuda", "bfloat16", device="cpu"), timing.BFLOAT16_BOUND),
], ids=["torch", "torch, TF32", "FlashRNN", "FlashRNN, bfloat16"])
def test_others_compute_the_same(make, bound, monkeypatch):
    """On the CPU, where PyTorch's layer is the same one; FlashRNN's function is written down above."""
    pytest.importorskip("torch")
    from rnn_ops_benchmarks import problems
    from rnn_ops_benchmarks.gpu import providers
    from rnn_ops_benchmarks.worker import verify
    monkeypatch.setitem(sys.modules, "flashrnn", types.SimpleNamespace(flashrnn=flashrnn))
    problem = problems.Recurrence(problems.Shape(5, 3, 7, 12, tokens=True))
    provider = make(providers, problem)
    assert verify(provider.results(), problem.truth("forward+backward"), bound) < bound
    for before, call in provider.calls.values():
        for i in range(2):
            if before:
                before(i)
        for i in range(2):
            call(i)
    for about in providers.about_torch(False), providers.about_flashrnn("cuda", "float32"):
        assert set(about) == set(provider.about)


def test_flashrnn_is_asked_for_where_it_can_be_imported(monkeypatch):
    from rnn_ops_benchmarks.gpu.providers import FLASHRNN
    installed = types.ModuleType("flashrnn")  # with nothing in it
    installed.__spec__ = types.SimpleNamespace()

    def names(cell, all_variants=False):
        rows = timing.measure(NumPyMachine(), cell, rounds=1, seconds=60, all_variants=all_variants)
        return [row["provider"] for row in rows if row["provider"].startswith("FlashRNN")]

    small = Cell(2, 3, 5, 6)
    assert names(small, all_variants=True) == []
    monkeypatch.setitem(sys.modules, "flashrnn", installed)
    assert names(small) == []
    assert names(small, all_variants=True) == [f"FlashRNN, {backend}, {dtype}" for backend, dtype in FLASHRNN]


# --- tables, picture, files -------------------------------------------------------------------------------------------

def row(B, H, mode, seconds, provider=OURS, family="cluster", variant=None, chosen=False, input="tokens", **more):
    cell = TUTORIAL._replace(B=B, H=H, T=more.pop("T", TUTORIAL.T))
    variant = variant or f"{family}: Tile<{H}>"
    return {**cell._asdict(), "provider": provider, "family": family, "variant": variant, "chosen": chosen,
            "input": input, "sets": 8, "set_bytes": 10 ** 6, "mode": mode, "status": "ok", "error": 1e-7,
            "best": 0.9 * seconds, "p25": 0.95 * seconds, "median": seconds, "p75": 1.1 * seconds, "turns": 25,
            "calls_a_turn": 4, "us_per_step": 1e6 * seconds / cell.T, "clock": 1e9,
            "cycles_per_step": 1e9 * seconds / cell.T,
            "floor_cycles": cells.floor_cycles(H100, cell, mode),
            **({"predicted_cycles": 608.0} if provider == OURS else {}), **more}


def synthetic(torch=True):
    """Times by formulas: ours 64 steps of 0.5 µs · (0.3 + H / 256)(1 + B / 100), thrice that both ways; cuDNN more."""
    rows = []
    for cell in cells.cells():
        seconds = cell.T * 5e-7 * (0.3 + cell.H / 256) * (1 + cell.B / 100)
        for mode, factor in zip(MODES, (1, 1.2, 2, 3)):
            chosen = "resident" if cell.H < 256 else "cluster" if cell.H <= 1024 else "grid"
            for family, slower in (("resident", 1.3), ("cluster", 1.1), ("grid", 2), ("stepwise", 9)):
                slower = 1 if family == chosen else slower
                if family == "resident" and cell.H == 128 and cell.B == 64:
                    slower = 1.4  # the chooser is wrong here
                if (family, cell.H <= 256) != ("resident", False) and (family, cell.H <= 1024) != ("cluster", False):
                    rows.append(row(cell.B, cell.H, mode, factor * slower * seconds, family=family,
                                    chosen=family == chosen, T=cell.T))
            rows.append(row(cell.B, cell.H, mode, 1.1 * factor * seconds, family=chosen, chosen=True, input="one-hot",
                            T=cell.T))
            if torch and mode != STEPS:
                rows.append(row(cell.B, cell.H, mode, factor * 5 * seconds / (1 + min(cell.H, 1024) / 512), TORCH, "cuDNN",
                                "torch 2.5.1, cuDNN 90100", input="one-hot", T=cell.T))
        if not torch:
            rows.append(dict(cell._asdict(), provider=TORCH, family="cuDNN", variant="", chosen=False, input="one-hot",
                             mode=None, status="not installed", reason="No module named 'torch'"))
    gpu = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": 9.0, "multiprocessors": 132, "memory": 85 * 10 ** 9,
           "shared_memory_per_block": 232448, "shared_memory_per_multiprocessor": 233472, "l2_cache": 52428800,
           "clock_khz": 1980000, "measured_clock_khz": 1950000, "memory_clock_khz": 2619000, "driver": "550.54.15",
           "cuda_driver": "12.4", "cuda_runtime": "11.8", "cupy": "13.6.0"}
    return {"format": command.FORMAT, "date": "2026-01-02T03:04:05", "complete": True, "lost": None, "gpu": gpu,
            "environment": environment.describe(), "rnn_ops": "0.1.0", "quick": False, "all_variants": False,
            "method": {}, "checks": None, "sanitizer": None, "rows": rows, "training": None}


def table_after(text, title):
    lines = text.split(title, 1)[1].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_markdown():
    text = tables.markdown(synthetic())
    forward = table_after(text, "**forward, µs a step**")
    assert forward[0] == ["H \\ B", "1", "8", "32", "64", "128", "256"]
    assert [line[0] for line in forward[2:]] == ["**64**", "**128**", "**256**", "**512**", "**1024**", "**2048**"]
    # 0.5 µs · 1.3 · 1.32, and 5 / 1.5 times that
    assert forward[4][3] == "0.858 (3.33×)"
    assert table_after(text, "**forward+backward, µs a step**")[4][3] == "2.57 (3.33×)"
    tutorial = {line[0]: line[1:] for line in table_after(text, "as long as the chosen variant (bold) takes.")}
    assert tutorial["*floor*"][:3] == ["tokens", "0.132", "132"]
    ours = tutorial[r"**cluster: Tile\<256\>**"]
    assert tutorial[r"resident: Tile\<256\>"] == [
        "tokens", "1.12 (1.06–1.23)", "1,115", "608", "2.23 (2.12–2.45)", "1.34 (1.27–1.47)", "3.35 (3.18–3.68)",
        "1.30"]
    assert ours[0] == "one-hot" and ours[-1] == "1.10"  # the last of the two lines of that name
    assert tutorial[TORCH][0] == "one-hot" and tutorial[TORCH][5] == "" and tutorial[TORCH][-1] == "3.33"
    choices = table_after(text, "(× its time that the chosen one takes; forward, both ways)")
    assert choices[3][4] == "resident; cluster 1.27×, cluster 1.27×"
    assert choices[4][3] == "cluster" and choices[7][1] == "grid"
    lengths = text.split("| T | forward | forward+backward |\n| --: | --: | --: |\n", 1)[1]
    assert lengths.startswith("| 1 | 0.858 (3.33×) | 2.57 (3.33×) |\n| 16 | 13.7")
    estimates = table_after(text, "the best variant of each family")
    assert estimates[0] == ["H", "B", "resident", "cluster", "grid", "stepwise"] and len(estimates) == 2 + 36
    assert estimates[2 + 2 * 6 + 2] == ["256", "32", "608 → 1,115", "608 → 858", "608 → 1,716", "608 → 7,722"]
    assert "**torch.nn.RNN is faster** than the chosen variant in 0 of 120 comparisons." in text
    assert "CuPy 13.6.0" in text and "driver 550.54.15" in text and "torch 2.5.1, cuDNN 90100; 2026-01-02" in text


def test_where_the_vendor_wins_is_a_line():
    result = synthetic()
    for its in result["rows"]:
        if its["provider"] == TORCH and its["B"] == 64 and its["H"] == 512 and its["mode"] == BOTH:
            its["median"] /= 5
    assert ("**torch.nn.RNN is faster** than the chosen variant in 1 of 120 comparisons: T = 64, B = 64, H = 512, "
            "forward+backward (0.50×).\n") in tables.markdown(result)


def test_markdown_without_pytorch_and_cut_off():
    result = synthetic(torch=False)
    text = tables.markdown(result)
    assert table_after(text, "**forward, µs a step**")[4][3] == "0.858"
    assert "not installed: No module named 'torch'" in text
    result["rows"] = [row for row in result["rows"] if row["H"] <= 64]  # not even the tutorial's shape
    result["complete"] = False
    text = tables.markdown(result)
    assert "Incomplete" in text and "Floor" not in text
    assert len(table_after(text, "**forward, µs a step**")) == 3
    assert tables.markdown(dict(result, rows=[])) == ""


@pytest.mark.parametrize("torch", [True, False])
def test_picture(torch, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "gpu.png"
    picture.draw(synthetic(torch), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_default_path(tmp_path):
    assert command.default_path("NVIDIA H100 80GB HBM3", str(tmp_path)) == str(tmp_path / "nvidia-h100-80gb-hbm3.json")
    assert command.default_path("NVIDIA A10G", str(tmp_path / "none")) == "nvidia-a10g.json"


def test_facts_of_the_device():
    text = command.facts(synthetic())
    for fact in ("NVIDIA H100 80GB HBM3: compute capability 9.0, 132 multiprocessors", "227 KiB a block",
                 "1,980,000 kHz", "just now 1,950,000 kHz", "driver 550.54.15", "CuPy 13.6.0", "rnn_ops 0.1.0"):
        assert fact in text


# --- the command ------------------------------------------------------------------------------------------------------

class Options:
    only, quick, all_variants = None, True, False


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command's way through its parts, on few shapes, with a NumPy machine → (function of a machine, the file).

    Training is left to test_benchmarks_gpu_training.py."""
    monkeypatch.setattr(checks, "QUICK", FEW)
    monkeypatch.setattr(training, "measure", lambda *arguments: {"failed": []})
    path = tmp_path / "result.json"
    result = dict(synthetic(), rows=[], complete=False)
    monkeypatch.setattr(cells, "cells", lambda quick: [Cell(5, 3, 7, 12), Cell(5, 2, 7, 20)])

    def run(machine):
        machine.compile = lambda wanted, progress: progress(1, 1)
        machine.free = lambda: None
        return command._work(machine, Options, result, str(path))

    return run, path


def test_all_parts_in_order(small, capsys):
    run, path = small
    assert run(NumPyMachine()) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["complete"] and result["checks"]["failed"] == [] and result["checks"]["count"] > 500
    assert {(row["B"], row["H"]) for row in result["rows"]} == {(3, 12), (2, 20)}
    assert "0 failed" in capsys.readouterr().out


def test_failures_show_in_the_exit_status_and_as_lines(small, capsys):
    run, path = small
    assert run(NumPyMachine(defect="tanh off by 8 ulp")) == 1  # good enough to be timed
    failed = json.loads(path.read_text(encoding="utf-8"))["checks"]["failed"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED  ")]
    assert failed and lines[:len(failed)] == ["FAILED  " + line for line in failed]


def test_a_wrong_result_when_timing_shows_too(small, monkeypatch, capsys):
    run, _ = small
    monkeypatch.setattr(Options, "only", "time")
    assert run(NumPyMachine(defect="dlast ignored")) == 0  # nobody gives dlast there
    assert run(NumPyMachine(defect="dWhh of T = 1 only")) == 1
    assert "FAILED  T = 5, B = 3, H = 12, ours, resident: one block" in capsys.readouterr().out


def test_what_was_measured_before_an_interrupt_is_kept(small, monkeypatch):
    run, path = small
    measure = timing.measure

    def interrupted(machine, cell, *rest):
        if cell.H == 20:
            written = json.loads(path.read_text(encoding="utf-8"))  # as a kill would leave it
            assert {row["H"] for row in written["rows"]} == {12} and not written["complete"]
            raise KeyboardInterrupt
        return measure(machine, cell, *rest)

    monkeypatch.setattr(timing, "measure", interrupted)
    assert run(NumPyMachine()) == 130
    result = json.loads(path.read_text(encoding="utf-8"))
    assert not result["complete"] and {row["H"] for row in result["rows"]} == {12}
    assert "Incomplete" in tables.markdown(result)


def test_a_lost_gpu_ends_the_work_and_is_told(small, capsys):
    run, path = small
    assert run(NumPyMachine(defect="gone")) == 1
    result = json.loads(path.read_text(encoding="utf-8"))
    assert "illegal memory access" in result["lost"] and not result["complete"] and len(result["checks"]["failed"]) == 1
    assert "The GPU answers no more" in capsys.readouterr().err


def test_sanitizer(tmp_path, monkeypatch):
    """A stand-in for the tool, which is not here: found on the PATH, and its verdicts read."""
    shown = []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitizer.run(shown.append) is None and "not on the PATH" in shown[0]
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"""#!{sys.executable}
import sys, time
tool, arguments = sys.argv[2], sys.argv[5:]
assert sys.argv[3:5] == ["--error-exitcode", "97"] and arguments[1] == "-m" and arguments[3] == "--sanitized", sys.argv
if tool == "racecheck": print("Race reported between"); sys.exit(97)
if tool == "synccheck": sys.exit(1)
if tool == "initcheck": time.sleep(60)
""")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "SECONDS", 3)
    assert sanitizer.run(shown.append) == {
        "memcheck": "clean", "racecheck": "has found errors:\n    Race reported between",
        "synccheck": "ended with status 1:", "initcheck": "did not end within 3 s"}


@pytest.fixture
def without_gpu():
    from rnn_ops.backends import cuda
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")


@pytest.mark.parametrize("arguments", [[], ["--only", "check", "--quick"]])
def test_without_a_gpu_one_sentence_and_status_2(arguments, tmp_path, without_gpu):
    process = subprocess.run([sys.executable, "-m", "rnn_ops_benchmarks.gpu", *arguments], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 2, process.stderr
    assert process.stdout == "" and len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("benchmarks.gpu: ") and process.stderr.endswith(".\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_machine_needs_cupy_and_nothing_needs_mxnet():
    """On a host that has neither, the way to the sentence is free."""
    process = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['mxnet'] = sys.modules['pooch'] = None\n"
         "from rnn_ops_benchmarks.gpu import __main__, checks, picture, sanitizer, tables, timing, training\n"
         "from timemachine import text; text._URL = 'http://127.0.0.1:9/{name}'; assert text.load('timemachine')\n"
         "assert 'cupy' not in sys.modules; sys.modules['cupy'] = None; sys.exit(__main__.main(['--only', 'check']))"],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 2 and "CuPy" in process.stderr, process.stderr


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--only", "--quick", "--all-variants", "--json", "compute-sanitizer", "Exit status", "incomplete"):
        assert word in text
    assert sanitizer.OPTION not in text


def test_a_part_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--only", "nothing"])
    assert exit_.value.code == 2
    assert "check" in capsys.readouterr().err
