"""The self-test of the CUDA kernels, `rnn_ops.backends.cuda.selftest`: its truth and bounds, and what it finds.

A stand-in that computes in NumPy takes the GPU's place: right, it passes every check; with any one defect, it does not.
"""
import json
import math
import os
import re
import sys
import types

import numpy as np
import pytest

import rnn_ops
from cuda_host import Emulator
from defective_gpus import H100, Defective
from rnn_ops import exactness, numpy_reference
from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.backends.cuda.selftest import __main__ as watched
from rnn_ops.backends.cuda.selftest import checks, run, sanitizer
from rnn_ops_cli.main import main
from rnn_ops_timemachine import parameters

FEW = dict(shapes=((1, 1, 1, 1), (3, 4, 5, 7)), variant_shapes=((2, 3, 5, 33),), option_shapes=((4, 3, 5, 6),),
           bits_shapes=((3, 2, 5, 4), (2, 3, 5, 6)), most_runs=50, sweep=2 ** 12)


# --- what is right ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "dense"])
@pytest.mark.parametrize("left_out", [(), ("dlast_state",), ("doutputs",)], ids=str)
def test_truth_agrees_with_central_differences(tokens, left_out):
    problem = exactness.draw(4, 3, 5, 6, np.float64, tokens)._replace(**dict.fromkeys(left_out))
    found = exactness.evaluate(problem)

    def objective():
        outputs = numpy_reference.forward(*problem[:5])
        pairs = [(outputs, problem.doutputs), (outputs[-1], problem.dlast_state)]
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


def test_truths_are_computed_by_the_module_that_the_arrays_are_of(monkeypatch):
    """CuPy's on a GPU: NumPy's functions do not take its arrays with others, and would not stay on the device."""
    class Other(types.ModuleType):
        called = set()

        def __getattr__(self, name):
            self.called.add(name)
            return getattr(np, name)

    class Array(np.ndarray):
        __module__ = "otherpy.core"

    monkeypatch.setitem(sys.modules, "otherpy", Other("otherpy"))
    for tokens in (True, False):
        problem = exactness.draw(4, 3, 5, 6, np.float64, tokens)
        theirs = exactness.evaluate(exactness.Problem(*(array.view(Array) for array in problem.arrays)))
        for name, array in exactness.evaluate(problem).items():
            assert np.array_equal(theirs[name], array)
    exactness.evaluate(exactness.Problem(*(array.view(Array) for array in problem.arrays[:5]), None, None, "relu"))
    weights = {name: array.view(Array) for name, array in parameters.initialise(5, 6, 0, np.float64).items()}
    tokens = exactness.draw(4, 3, 5, 6).inputs.view(Array)
    numpy_reference.language_model_gradients(tokens, tokens, np.zeros((3, 6)).view(Array), **weights)
    assert Other.called == {"tanh", "maximum", "empty_like", "zeros_like", "arange", "exp", "log"}


def test_bounds_by_hand():
    problem = exactness.draw(3, 2, 4, 5, np.float64)
    truth = exactness.evaluate(problem)
    assert exactness.bounds(problem, truth) == dict.fromkeys(truth, 1e-9)
    single = problem.astype(np.float32)
    truth = exactness.evaluate(single.astype(np.float64))
    bounds = exactness.bounds(single, truth)
    lost = exactness.evaluate(single)
    assert lost["dWhh"].dtype == np.float32
    expected = 3 * np.abs(lost["dWhh"] - truth["dWhh"]).max() / np.abs(truth["dWhh"]).max() + 32 * 2.0 ** -23
    assert bounds["dWhh"] == pytest.approx(expected, rel=1e-12)
    assert set(bounds) == {"outputs", "dstate", "dWxh", "dWhh", "dbh"}


def test_relative_error():
    assert exactness.relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert exactness.relative_error(np.zeros(2), np.zeros(2)) == 0
    for a, b in [([1e-300], [0.0]), ([np.nan], [1.0]), ([1.0], [np.inf])]:
        assert exactness.relative_error(np.array(a), np.array(b)) == math.inf


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

def found_by(gpu, **plan):
    return checks.run(gpu, checks.plan(gpu.device, **{**FEW, **plan}))


@pytest.mark.parametrize("device", [H100, variants.known_device(75, 40)], ids=lambda device: device.name)
def test_a_right_machine_passes(device):
    results = found_by(Defective(device))
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
    ("one too many", "cells changed beside the results: 1"),
    ("changes its input", "cells changed beside the results: 1"),
    ("other bits", "cells that changed in 50 runs: "),
    ("other bits", "cells that changed in 20 runs: "),
    ("other bits", "50 times, relu, resident"),
    ("wrong tokens taken for 0", "states from there on that are not NaN"),
    ("a wrong token spoils its neighbour", "cells of other rows' outputs that changed"),
    ("dlast_state ignored", "without doutputs: dWhh"),
    ("doutputs needed", "without doutputs: dbh"),
    ("dWhh of T = 1 only", "dWhh: "),
    ("without dstate all is other", "without dstate: cells of the others that changed: 6"),
    ("slightly off", "dbh: "),
    ("tanh's derivative for relu", "relu, resident: "),
    ("stepwise raises", "RuntimeError: invalid configuration"),
])
@pytest.mark.slow
def test_every_defect_is_found(defect, what):
    failed = [str(result) for result in found_by(Defective(defect=defect)) if not result.passed]
    assert any(what in line for line in failed), failed[:5]
    if defect == "stepwise raises":
        assert all("stepwise" in line for line in failed)
    if defect == "slightly off":
        assert any("float64" in line for line in failed) and any("float32" in line for line in failed)


@pytest.mark.parametrize("defect, why", [("gone", "an illegal memory access"), ("hangs", "a kernel hangs")])
def test_a_machine_that_answers_no_more_ends_the_checks(defect, why):
    gpu = Defective(defect=defect)
    with pytest.raises(checks.GpuLost, match=f"1×1×1×1 tokens float32, .*{why}") as raised:
        found_by(gpu)
    assert gpu.launches == 1
    assert [result.passed for result in raised.value.results] == [False]


@pytest.mark.parametrize("architecture, families", [(90, variants.FAMILIES), (75, ("resident", "grid", "stepwise"))])
@pytest.mark.slow
def test_the_kernels_themselves_pass_on_a_cpu(architecture, families):
    """The same checks on the sources, run by tests/cuda_host."""
    gpu = Defective(variants.known_device(architecture, 16))
    gpu.launcher = Launcher(Emulator(gpu.device))
    results = checks.run(gpu, checks.plan(gpu.device, shapes=((2, 3, 5, 37),), variant_shapes=(),
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
    assert len({task.name for task in tasks}) == len(tasks)  # by which a run goes on where it was cut off
    repeats = checks.plan(H100, **checks.REPEATS)
    assert [task.name for task in repeats] == [task.name for task in repeated]
    others = checks.plan(H100, **checks.ALL_BUT_REPEATS)
    assert {task.name for task in tasks} - {task.name for task in others} == {task.name for task in repeated}
    first = checks.plan(H100, **checks.FIRST)
    assert {variant.family for task in first for variant in task.variants} == set(variants.FAMILIES)
    assert all(task.shape in checks.FIRST["shapes"] for task in first) and first[0].shape == (64, 32, 77, 256)
    for family in variants.FAMILIES:
        alone = checks.plan(H100, **checks.FIRST, among=(family,))
        assert len(alone) >= 4 and {variant.family for task in alone for variant in task.variants} == {family}
    for _, B, _, H in checks.SHAPES:
        assert checks.families(H100, np.float32, (3, B, 5, H))[0] == variants.choose(H100, np.float32, B, H)
    tiny = checks.plan(H100, **checks.TINY)
    assert {variant.family for task in tiny for variant in task.variants} == set(variants.FAMILIES)


def test_not_a_number_is_no_pass():
    assert not checks.Result("", "grid", "dWhh", math.nan, 1.0).passed


# --- compute-sanitizer ------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_sanitizer(tmp_path, monkeypatch):
    """A stand-in for the tool, which is not here: found on the PATH, and its verdicts read."""
    shown, kept = [], []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitizer.find() is None
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"""#!{sys.executable}
import sys, time
tool, arguments = sys.argv[2], sys.argv[5:]
assert sys.argv[3:5] == ["--error-exitcode", "97"], sys.argv
assert arguments[1:] == ["-m", "rnn_ops.backends.cuda.selftest", "--without", "grid"], sys.argv
if tool == "racecheck": print("Race reported between"); sys.exit(97)
if tool == "synccheck": sys.exit(1)
if tool == "initcheck": time.sleep(60)
""")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "SECONDS", 3)
    found = sanitizer.run(shown.append, lambda: 100, lambda found: kept.append(dict(found)), ["--without", "grid"])
    assert found == kept[-1] == {
        "racecheck": "has found errors:\n    Race reported between", "memcheck": "clean",
        "synccheck": "ended with status 1:", "initcheck": "did not end within 3 s"}
    assert [len(one) for one in kept] == [1, 2, 3, 4] and len(shown) == 4
    over = sanitizer.run(shown.append, lambda: 1, kept.append)
    assert set(over.values()) == {"was not started: no time was left"}


def test_what_the_sanitizer_watches():
    pools, launched = [], set()

    class Watched(Defective):
        def no_pool(self):
            pools.append(0)

        def forward(self, *arguments, variant=None, **options):
            launched.add(variant.family)
            super().forward(*arguments, variant=variant, **options)

    gpu = Watched()
    assert watched.passes(gpu, ("grid", "stepwise")) and launched == {"grid", "stepwise"} and pools and gpu.patience == 100
    assert not watched.passes(Defective(defect="slightly off"), ("grid",))


# --- the command ------------------------------------------------------------------------------------------------------

def right():
    return Defective()


def slightly_off():
    return Defective(defect="slightly off")


class CrashingCluster(Defective):
    def forward(self, *arguments, variant=None, **options):
        if variant.family == "cluster" and variant.exchange == "async":
            os._exit(77)
        super().forward(*arguments, variant=variant, **options)


class HangingGrid(Defective):
    """As `Gpu.wait` does it: a TimeoutError, and the GPU does not answer."""

    def forward(self, *arguments, variant=None, **options):
        if variant.family == "grid":
            raise TimeoutError("the GPU has not finished within 20 s: a kernel hangs")
        super().forward(*arguments, variant=variant, **options)


SMALL = dict(shapes=((3, 4, 5, 7), (2, 3, 5, 300)), variant_shapes=(), option_shapes=(), bits_shapes=((3, 2, 5, 4),),
             most_runs=3, sweep=2 ** 8)


@pytest.fixture
def check(monkeypatch, capfd, tmp_path):
    """``rnn-ops check --device cuda`` with a stand-in that this file makes → (exit status, stdout, record). The processes
    import this file by its name."""
    import test_cuda_selftest as importable
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.abspath(__file__)))
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    monkeypatch.setattr(cuda, "devices", lambda: [H100])
    monkeypatch.setattr(run, "SHORT", SMALL)
    monkeypatch.setattr(run, "FULL", SMALL)
    monkeypatch.setitem(sys.modules, "rnn_ops.operators.autograd", None)  # as where MXNet cannot be imported

    def call(make_gpu, *options):
        monkeypatch.setattr(run, "first_gpu", getattr(importable, make_gpu))
        path = tmp_path / "check.json"
        status = main(["check", "--device", "cuda", "--json", str(path), *options])
        return status, capfd.readouterr().out, json.loads(path.read_text())
    return call


@pytest.mark.slow
def test_the_command_checks_every_family_without_mxnet(check):
    status, stdout, record = check("right")
    assert status == 0 and record["passed"] and record["device"] == H100.name and "rows" not in record
    lines = stdout.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith(f"rnn_ops {rnn_ops.__version__}, CUDA kernels on sm_90 against")
    counts = record["kernels"]["families"]
    assert set(counts) == set(checks.EVERY) and all(counts.values()) and record["kernels"]["failed"] == []
    for family, count in counts.items():
        assert any(re.match(rf"{family} +{count} of +{count} right   \S+ .* %$", line) for line in lines), family
    assert [sentence.split(",")[0] for sentence in record["left_out"]] == ["the operators", "the other shapes"]
    assert "Left out: the operators, since MXNet cannot be imported: " in stdout


@pytest.mark.slow
def test_the_command_says_what_is_wrong(check):
    status, stdout, record = check("slightly_off")
    assert status == 1 and not record["passed"]
    assert "FAILED  3×4×5×7 tokens float32, resident: " in stdout and "dbh: " in stdout
    assert len(record["kernels"]["failed"]) == stdout.count("FAILED")


@pytest.mark.slow
def test_a_family_that_ends_its_process_or_hangs_costs_itself(check, monkeypatch):
    status, stdout, record = check("CrashingCluster")
    assert status == 1 and record["kernels"]["failed"] == ["cluster: its process ended with exit code 77"]
    assert re.search(r"cluster-barrier +(\d+) of +\1 right", stdout)  # its older exchange works
    asked = []
    monkeypatch.setattr(sanitizer, "find", lambda: "tool")
    monkeypatch.setattr(sanitizer, "run",
                        lambda show, left, keep, without: asked.append(without) or {"racecheck": "found"})
    status, stdout, record = check("HangingGrid", "--full")
    assert status == 1 and record["sanitizer"] == {"racecheck": "found"} and asked == [["--without", "grid"]]
    assert [line.split(":")[0] for line in record["kernels"]["failed"]] == ["3×4×5×7 tokens float32, grid", "grid", "racecheck"]
    assert "GpuLost" in stdout and "a kernel hangs" in stdout


def test_full_is_for_a_gpu(capfd):
    assert main(["check", "--full"]) == 2
    assert capfd.readouterr().err == (
        "rnn-ops: error: --full: is for --device cuda; the check on the CPU is the same without it\n")
