"""The benchmark: what it counts, what it refuses to time, and how it shows it. Nothing here depends on how long
anything takes."""
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rnn_ops_benchmarks import chart, cli, environment, floor, grid, measure, memory, problems, profile, providers, report, worker
from rnn_ops_benchmarks.problems import Shape
from rnn_ops_benchmarks.worker import FAILED, NOT_INSTALLED, NOT_OFFERED, OK, Workers, verify

from rnn_ops import numpy_reference
from rnn_ops_cli.main import main as rnn_ops

TINY = Shape(3, 2, 5, 4, tokens=True)
DENSE = Shape(3, 2, 5, 4, tokens=False)


def test_floor_counts_by_hand():
    assert floor.forward(problems.TUTORIAL) == 268_435_456  # 2 · 64·32 rows · 256²
    assert floor.forward_backward(problems.TUTORIAL) == 805_306_368
    assert floor.training_step(problems.TUTORIAL) == 805_306_368 + 242_221_056  # 6 · 64·32 · 256·77
    assert floor.forward(Shape(64, 64, 256, 512, tokens=False)) == 3_221_225_472  # 2 · 64·64 · 512·(512 + 256)
    assert floor.gemm(2048) == 17_179_869_184
    assert floor.multiply_adds(5) == 10


def test_statistics_of_known_times():
    found = measure.statistics([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found == {"calls": 5, "best": 1.0, "p20": pytest.approx(1.8), "median": 3.0, "p80": pytest.approx(4.2)}


SIZES = st.integers(1, 10 ** 12)


@given(st.tuples(SIZES, SIZES, SIZES, SIZES), st.sampled_from(",x×"), st.sampled_from(["", ":tokens", ":dense"]))
def test_shapes_are_read(sizes, separator, kind):
    shape = Shape.parse(separator.join(map(str, sizes)) + kind)
    assert shape[:4] == sizes and shape.tokens == (kind != ":dense")
    assert Shape.parse(str(shape).replace(" ", ":")) == shape  # as it is shown


@given(st.text(alphabet="0123456789,x×:- .densetok", max_size=24))
def test_what_is_no_shape_is_refused(text):
    """Whatever else: one sentence, or a shape of four numbers that are there."""
    try:
        shape = Shape.parse(text)
    except ValueError as error:
        assert str(error) == f"a shape is T,B,I,H, each at least 1, with :tokens or :dense after it; got {text!r}"
    else:
        assert min(shape[:4]) >= 1 and sum(text.count(separator) for separator in ",x×") >= 3


@pytest.mark.parametrize("text", ["", "64x32x77", "64,32,77", "3x2x0x4", "3,2,5,4:sparse", "3x2x5x-4", "3,2,5,4,6", "3,2x5,4",
                                  "3, 2, 5, 4", "3,2,5,4:dense:tokens", "3,2,5,\u0664", "3,2,5,4\n", "3.0,2,5,4", "1e3,2,5,4"])
def test_these_are_none(text):
    with pytest.raises(ValueError, match="a shape is T,B,I,H"):
        Shape.parse(text)


def test_the_grid_is_that_of_the_targets():
    assert len(set(problems.GRID)) == 24
    assert {sizes[1] for sizes in problems.GRID} == {1, 8, 32, 128} and {sizes[3] for sizes in problems.GRID} == {
        64, 128, 256, 512, 1024}


# --- the truth ------------------------------------------------------------------------------------------------------

def central_differences(function, array, step=1e-6):
    """Of a scalar function of no arguments that reads ``array``."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        gradient[index] = (above - function()) / (2 * step)
        array[index] = kept
    return gradient


@pytest.mark.parametrize("shape", [TINY, DENSE, Shape(1, 1, 1, 1, tokens=True)], ids=str)
def test_truth_agrees_with_central_differences(shape):
    problem = problems.Sequence(shape)
    arrays = {name: getattr(problem, name).astype(np.float64) for name in ("state", "Wxh", "Whh", "bh")}
    arrays["inputs"] = problem.inputs if shape.tokens else problem.inputs.astype(np.float64)
    truth = problem.truth("forward+backward")
    for name in ("state", "Wxh", "Whh", "bh") + (() if shape.tokens else ("inputs",)):
        expected = central_differences(
            lambda: (numpy_reference.forward(**arrays) * problem.doutputs).sum(), arrays[name])
        np.testing.assert_allclose(truth["d" + name], expected, atol=1e-8, err_msg=name)


def test_truth_of_the_training_step_agrees_with_central_differences():
    problem = problems.TrainingStep(TINY, repeats=1)
    parameters = {name: array.astype(np.float64) for name, array in problem.parameters.items()}
    state = problem.state.astype(np.float64)
    truth = problem.truth("training step")
    for name, array in parameters.items():
        expected = central_differences(lambda: numpy_reference.language_model_gradients(
            problem.tokens[0], problem.labels[0], state, **parameters)[0], array)
        np.testing.assert_allclose(truth["d" + name], expected, atol=1e-8, err_msg=name)
        np.testing.assert_array_equal(truth[name], array - problems.LEARNING_RATE * truth["d" + name])


def test_truth_of_several_training_steps_is_that_of_one_after_the_other():
    several = problems.TrainingStep(TINY, repeats=3)
    one = problems.TrainingStep(TINY, repeats=1)
    one.state, one.parameters = several.state, several.parameters
    for tokens, labels in zip(several.tokens, several.labels):
        one.tokens, one.labels = tokens[None], labels[None]
        truth = one.truth("training step")
        one.state = numpy_reference.forward(tokens, one.state, *(one.parameters[name] for name in ("Wxh", "Whh", "bh")))[-1]
        one.parameters = {name: truth[name] for name in one.parameters}
    for name, array in several.truth("training step").items():
        np.testing.assert_allclose(array, truth[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_verification():
    truth = {"outputs": np.ones((2, 3)), "dbh": np.zeros(3)}
    assert verify(dict(truth, more=np.ones(1)), truth) == 0
    assert verify(dict(truth, outputs=np.full((2, 3), 1 + 1e-6)), truth) == pytest.approx(1e-6)
    for wrong, reason in [({"outputs": np.ones((2, 3))}, "no dbh"),
                          (dict(truth, dbh=np.zeros((3, 1))), r"dbh has shape \(3, 1\), should be \(3,\)"),
                          (dict(truth, outputs=np.full((2, 3), 1.001)), "outputs has a relative error of 1.0e-03"),
                          (dict(truth, outputs=np.full((2, 3), np.nan)), "outputs has a relative error of nan")]:
        with pytest.raises(ValueError, match=reason):
            verify(wrong, truth)


# --- providers that must not be timed -------------------------------------------------------------------------------

@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Providers in a module that the worker processes can import."""
    (tmp_path / "planted_providers.py").write_text(textwrap.dedent("""
        import itertools, os, time
        from rnn_ops_benchmarks.providers import NumPyLoop

        class Right(NumPyLoop):
            name = process = "right"

        class WrongSign(NumPyLoop):
            name = process = "wrong sign"
            def results(self, direction):
                results = super().results(direction)
                return {name: -array if name == "dWhh" else array for name, array in results.items()}

        class Absent(NumPyLoop):
            name = process = "absent"
            def __init__(self, problem):
                import a_module_that_nobody_has

        class Crashing(NumPyLoop):
            name = process = "crashing"
            def __init__(self, problem):
                os._exit(3)

        class ASecond(NumPyLoop):
            # Each of its calls takes a second on its process's clock.
            name = process = "a second"
            def __init__(self, problem):
                super().__init__(problem)
                time.perf_counter = itertools.count().__next__

        class LaterBroken(NumPyLoop):
            name = process = "later broken"
            seen = 0
            def _forward(self):
                super()._forward()
                LaterBroken.seen += 1
                if LaterBroken.seen > 2:  # two are verified
                    raise RuntimeError("out of order")

        class ForwardOnly(NumPyLoop):
            name = process = "forward only"
            lacks = {"forward+backward": "it has none"}
            def __init__(self, problem):
                super().__init__(problem)
                del self.calls["forward+backward"]

        class Greedy(NumPyLoop):
            # Takes 30 MB for a call, and is in one process with one that does not.
            name = "greedy"
            process = "right"
            def _forward(self):
                import numpy
                numpy.ones(30_000_000, numpy.uint8)
                super()._forward()

        class WhereItIs(NumPyLoop):
            name = process = "where"
            def __init__(self, problem):
                import planted_package
                super().__init__(problem)
                self.about = planted_package.__file__
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    import planted_providers
    return planted_providers


def measured(problem, *members, yardsticks=True, packages=None, others=()):
    """The rows of one short round."""
    stage = measure.Stage(problem.name, tuple((provider, problem) for provider in members), yardsticks)
    with Workers(packages, others) as workers:
        return measure.measure(stage, workers, 1, 0.001, lambda it, _: it)


@pytest.mark.slow
def test_only_verified_providers_are_timed_and_none_is_dropped(planted):
    members = (planted.WrongSign, planted.Absent, planted.Crashing, planted.LaterBroken, planted.ForwardOnly, planted.Right)
    found = {}
    for row in measured(problems.Sequence(TINY), *members):
        found.setdefault(row["provider"], []).append(row)
    assert list(found) == ["multiply-adds", "sgemm", "floor"] + [member.name for member in members]
    for name, status, reason in [("wrong sign", FAILED, "wrong result: dWhh has a relative error of 2.0e+00"),
                                 ("absent", NOT_INSTALLED, "No module named 'a_module_that_nobody_has'"),
                                 ("crashing", FAILED, "its process ended with exit code 3"),
                                 ("later broken", FAILED, "RuntimeError: out of order")]:
        for row in found[name]:
            assert (row["status"], row["reason"]) == (status, reason)
            assert "median" not in row
    forward, both = found["forward only"]
    assert forward["status"] == OK and (both["status"], both["reason"]) == (NOT_OFFERED, "it has none")
    for row in found["right"]:
        assert row["status"] == OK and row["calls"] >= 3 and row["median"] > 0
        assert row["versions"] == {"numpy": np.__version__} and (row["shape"], row["input"]) == ([3, 2, 5, 4], "tokens")
        assert row["best_peer"] if row["provider"] in providers.OURS else "ahead" not in row


@pytest.mark.skipif(memory.Resident().peak_of(int) is None, reason="this system does not tell the peak")
@pytest.mark.slow
def test_memory_is_that_of_each_providers_own_calls(planted):
    """Of two in one process, one of which takes 30 MB: first, last, and between two calls of the other."""
    small = problems.Sequence(Shape(3, 2, 5, 4, tokens=False))
    stage = measure.Stage("", tuple((provider, problem) for problem in (problems.Sequence(TINY), small)
                                    for provider in (planted.Greedy, planted.Right)), yardsticks=False)
    with Workers() as workers:
        rows = measure.measure(stage, workers, 1, 0.001, lambda it, _: it)
    peaks = [(row["provider"], row["peak_memory"] / 1e6) for row in rows]
    assert len(peaks) == 8
    for provider, peak in peaks:
        assert 29 < peak < 33 if provider == "greedy" else peak < 2, peaks


def test_others_may_have_packages_of_their_own(planted, tmp_path):
    """Those named, in their processes alone."""
    for folder in "installed", "own":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "planted_package.py").write_text("")
    sys.path.insert(0, str(tmp_path / "installed"))
    try:
        path = list(sys.path)
        for others, folder in (["where"], "own"), (["right"], "installed"), ([], "installed"):
            row, _ = measured(problems.Sequence(TINY), planted.WhereItIs, yardsticks=False, packages=str(tmp_path / "own"),
                              others=others)
            assert row["about"] == str(tmp_path / folder / "planted_package.py") and sys.path == path
    finally:
        sys.path.remove(str(tmp_path / "installed"))


# --- the providers --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, provider", [("jax", providers.JaxScan), ("onnxruntime", providers.OnnxRuntime)])
@pytest.mark.slow
def test_peers_compute_the_same(name, provider):
    """In a process of their own, as they are timed; dense and tokens, one row and one step too."""
    pytest.importorskip(name)
    with Workers() as workers:
        for shape in TINY, DENSE, Shape(1, 1, 1, 1, tokens=True):
            stage = measure.Stage(str(shape), ((provider, problems.Sequence(shape)),), yardsticks=False)
            rows = measure.measure(stage, workers, 1, 0.001, lambda it, _: it)
            assert len(rows) == 2
            for row in rows:
                assert row["provider"] == provider.name and row["direction"] in ("forward", "forward+backward")
                if row["direction"] in getattr(provider, "lacks", ()):
                    assert row["status"] == NOT_OFFERED
                else:
                    assert row["status"] == OK and row["error"] < 1e-6 and row["versions"][name], row
            if provider is providers.JaxScan:
                assert [text.split(": ")[0] for text in rows[0]["about"].split("; ")[1:]] == ["forward", "forward+backward"]


def test_the_fastest_form_is_taken(monkeypatch):
    jax_scan = pytest.importorskip("rnn_ops_benchmarks.jax_scan")
    took = {"slow": 3.0, "fast": 1.0, "slower": 4.0}
    monkeypatch.setattr(jax_scan, "time_calls", lambda call, seconds: [9.0, took[call()]])
    monkeypatch.setattr(jax_scan.jax, "block_until_ready", lambda found: found)
    form, call = jax_scan._fastest((f"{name}, as written", lambda name: name, (name,)) for name in took)
    assert (form, call()) == ("fast, as written", "fast")


def test_jax_on_a_gpu(monkeypatch):
    """Its rows, on the CPU; and that it is left out if JAX finds no GPU."""
    jax_scan = pytest.importorskip("rnn_ops_benchmarks.jax_scan")
    with pytest.raises(ImportError, match="finds no GPU"):
        jax_scan.measure_on_gpu(TINY)
    monkeypatch.setattr(jax_scan.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax_scan, "_TOGETHER", 0.001)
    rows = jax_scan.measure_on_gpu(TINY)
    assert [(row["direction"], row["status"], row["shape"]) for row in rows] == [
        ("forward", OK, [3, 2, 5, 4]), ("forward+backward", OK, [3, 2, 5, 4])]
    assert all(row["wall"] > 0 and row["wall_waited"] > 0 and row["error"] < 1e-6 and "on cpu" in row["variant"] for row in rows)


def test_yardsticks_do_what_they_count():
    for kind, provider in (problems.Peak(), providers.Peak), (problems.Peak("baseline", 1, "float64"), providers.Peak), (
            problems.Tanh(), providers.Tanh):
        made, known = worker.prepare(provider, kind)
        assert all(error < 1e-6 for error in known["errors"].values()) and known["about"]
    lanes_and_chains = {"baseline": 4 * 12, "avx2": 8 * 12, "avx512": 16 * 24}
    peak = problems.Peak(threads=1)
    assert peak.flops("peak") == 2 * lanes_and_chains[peak.level] * peak.rounds
    wrong = problems.Peak()
    wrong._count += 1e6
    with pytest.raises(ValueError, match="multiply-adds has a relative error"):
        worker.prepare(providers.Peak, wrong)


@pytest.mark.parametrize("threads", ["1", "2", "65536"])
def test_every_level_and_dtype_has_its_peak(threads, monkeypatch):
    """On one thread and on all, but on no more than there are processors for."""
    from rnn_ops.backends import cpu
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", threads)
    stage = measure.peak_stage()
    names = [problem.name for provider, problem in stage.pairs if provider is providers.Peak]
    most = min(int(threads), len(environment.processors()))
    assert len(set(names)) == len(names) == 2 * len(cpu.simd_levels()) * len({1, most}) and not stage.yardsticks
    assert names[-1] == f"baseline float64, {most} thread{'s' * (most > 1)}"


# --- tables and files -----------------------------------------------------------------------------------------------

def timed(provider, direction, median, flops=None, shape=TINY, **more):
    row = {"stage": str(shape), "shape": list(shape[:4]), "input": shape.input, "direction": direction, "provider": provider,
           "status": OK, "flops": flops or 1000, "calls": 9, "best": 0.5 * median, "p20": 0.9 * median, "median": median,
           "p80": 1.5 * median, "turns": [median] * 3, "about": "", "versions": {}, **more}
    if direction in ("peak", "gemm"):
        row.update(shape=None, input=None)
    return row


@pytest.fixture
def result():
    """A peak of 4·10⁹ operations a second at best, a GEMM of half of that, and providers that take 2, 3 and 20 µs for 1,000."""
    rows = [timed("multiply-adds", "peak", 1e-3, flops=2_000_000, stage=measure.PEAK_STAGE, yardstick="avx2 float32, 2 threads"),
            timed("multiply-adds", "peak", 1e-3, flops=2_000_000), timed("sgemm", "gemm", 1e-3, flops=1_000_000)]
    rows += [timed("floor", "forward", 5e-7)]
    rows += [timed("kernel", "forward", 2e-6, about="avx2, 2 threads", peak_memory=1_234_567), timed("native", "forward", 3e-6),
             timed("ndarray loop", "forward", 2e-5, peak_memory=None)]
    rows += [{"stage": str(TINY), "shape": [3, 2, 5, 4], "input": "tokens", "direction": "forward", "provider": provider,
              "status": status, "flops": 1000, "reason": reason} for provider, status, reason in (
                  ("torch.nn.RNN", NOT_INSTALLED, "No module named 'torch'"),
                  ("mx.gluon.rnn.RNN", FAILED, "wrong result: dbh | dWhh"))]
    measure.derive(rows[1:])
    return report.make_result(rows, rounds=7, seconds=0.1, environment=environment.describe())


def test_floors_are_the_operations_at_the_processors_peak():
    problem = problems.Sequence(TINY)
    forward, both = measure.floors(timed("multiply-adds", "peak", 1e-3, flops=2_000_000), problem)
    assert forward["flops"] == 2 * 3 * 2 * 4 * 4 == 192
    assert forward["median"] == pytest.approx(192 / 2e9) and forward["best"] == pytest.approx(192 / 4e9)
    assert both["median"] == pytest.approx(3 * 192 / 2e9)
    assert (forward["shape"], forward["input"], forward["direction"]) == ([3, 2, 5, 4], "tokens", "forward")


def test_derived_figures(result):
    loop = next(row for row in result["rows"] if row["provider"] == "ndarray loop")
    assert loop["seconds_per_step"] == pytest.approx(2e-5 / 3)
    assert loop["steps_per_second"] == pytest.approx(150_000)
    assert loop["tokens_per_second"] == pytest.approx(300_000)
    assert loop["flops_per_second"] == pytest.approx(5e7)
    assert loop["of_peak"] == pytest.approx(0.025) and loop["of_gemm_rate"] == pytest.approx(0.05)  # of best calls
    assert loop["times_ours"] == {"kernel": pytest.approx(10), "native": pytest.approx(20 / 3)}
    native = next(row for row in result["rows"] if row["provider"] == "native")
    assert native["over_the_kernel"] == pytest.approx(1e-6) and "over_the_kernel" not in loop
    assert (native["best_peer"], native["ahead"], native["ahead_median"]) == (
        "ndarray loop", pytest.approx(20 / 3), pytest.approx(20 / 3)) and "ahead" not in loop


def test_the_keys_that_others_read(result):
    """Provider, direction, shape, best, median, the parts of the peak and of the GEMM rate, memory, versions."""
    kernel = next(row for row in json.loads(json.dumps(result))["rows"] if row["provider"] == "kernel")
    assert {"provider", "direction", "shape", "input", "best", "median", "of_peak", "of_gemm_rate", "peak_memory", "versions",
            "status", "best_peer", "ahead"} <= set(kernel)


def test_the_best_peer_is_that_of_the_same_input_and_direction():
    """In best calls, ours left out; medians may say another one."""
    rows = []
    for shape in TINY, DENSE:
        for direction in "forward", "forward+backward":
            shift = (shape == DENSE) + 2 * (direction == "forward")
            rows += [timed("floor", direction, 1e-9, shape=shape), timed("kernel", direction, 4e-6, shape=shape),
                     timed("native", direction, 1e-6, shape=shape), timed("a", direction, 1e-6 * (5 + shift), shape=shape),
                     timed("b", direction, 1e-6 * (9 - shift), shape=shape)]
    rows[3].update(best=9e-6)  # its median stays the best
    measure.derive(rows)
    found = {(row["input"], row["direction"], row["provider"]): row for row in rows}
    for (_, _, provider), row in found.items():
        assert ("ahead" in row) == (provider in ("kernel", "native"))
    peers = {key[:2]: (row["best_peer"], row["ahead"], row["ahead_median"]) for key, row in found.items() if key[2] == "kernel"}
    assert peers == {("tokens", "forward"): ("b", pytest.approx(3.5 / 2), pytest.approx(7 / 4)),
                     ("tokens", "forward+backward"): ("a", pytest.approx(5 / 4), pytest.approx(5 / 4)),
                     ("dense", "forward"): ("b", pytest.approx(6 / 4), pytest.approx(6 / 4)),
                     ("dense", "forward+backward"): ("a", pytest.approx(6 / 4), pytest.approx(6 / 4))}


def test_what_mxnet_adds_is_measured_within_rounds():
    drifting = np.array([1e-3, 2e-3, 9e-3])  # the machine's three rounds
    rows = [timed("kernel", "forward", 2e-3, turns=drifting.tolist()),
            timed("native", "forward", 1e-3, turns=(drifting + 4e-5).tolist())]
    measure.derive(rows)
    assert rows[1]["over_the_kernel"] == pytest.approx(4e-5)


def test_json_round_trip(result, tmp_path):
    path = tmp_path / "result.json"
    report.write_json(result, path)
    assert report.read_json(path) == json.loads(json.dumps(result))
    assert list(tmp_path.iterdir()) == [path]
    where = result["environment"]
    assert where["cores"] >= 1 and where["processor"] and where["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0}', "no JSON"])
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError):
        report.read_json(tmp_path / "other.json")


@pytest.mark.parametrize("number", [1, 3])
def test_a_result_of_another_version_is_said(number, tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps({"format": number, "rows": []}))
    assert rnn_ops(["bench", "--from", str(tmp_path / "old.json")]) == 2
    assert f"--from: {tmp_path}/old.json: got a result in format {number}, needs format 2: measure it anew" in (
        capsys.readouterr().err)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        report.write_json({"a set is no JSON": {1}}, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_screen(result):
    lines = report.screen(result).splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line[:20].strip(): line[20:].split() for line in lines}
    assert cells["forward, ms"] == ["best", "median", "p20–p80", "peak", "GEMM", "MB", "×", "ours"]
    assert cells["kernel"] == ["0.001", "0.002", "0.002–0.003", "25%", "50%", "1.2", "0.67"]
    assert cells["ndarray loop"] == ["0.010", "0.020", "0.018–0.030", "2%", "5%", "6.67"]
    assert "credible" not in report.screen(result) + report.results_table(result)
    text = report.screen(result).replace("\n", " ")
    assert "MXNet's own time, µs over the bare kernel (forward): native +1." in text
    assert "Best peer, forward: ndarray loop, 0.010 ms. Times as fast: kernel 10.00; native 6.67." in text
    assert "In the same rounds, at best: peak 4 GFLOP/s, median 2; sgemm 2048³ 2 GFLOP/s, median 1" in text
    assert "float32 ×2 avx2" in " ".join(text.split()) and "4.0" in text
    assert "not installed: No module named 'torch'" in report.screen(result)
    assert "failed: wrong result: dbh | dWhh" in report.screen(result)


def test_markdown(result):
    table = [line for line in report.results_table(result).splitlines() if line.startswith("|")]
    assert table[:3] == ["| GFLOP/s, dtype × threads | float32 ×2 |", "| :-- | --: |", "| avx2 | 4.0 |"]
    assert table[3] == "| provider | forward, ms | median | of peak | of GEMM | × ours | MB |"
    assert table[4] == "| :-- | --: | --: | --: | --: | --: | --: |"
    assert "| **kernel** | 0.001 | 0.002 (0.002–0.003) | 25% | 50% | 0.67 | 1.2 |" in table
    assert "| torch.nn.RNN | not installed: No module named 'torch' |  |  |  |  |  |" in table
    assert r"| mx.gluon.rnn.RNN | failed: wrong result: dbh \| dWhh |  |  |  |  |  |" in table
    assert len(table) == 11
    assert "\nMXNet's own time, µs over the bare kernel (forward): native +1.\n" in report.results_table(result)


def marked(result, **figures):
    """The result with the kernel's figures changed, and what follows from them derived anew."""
    kernel = next(row for row in result["rows"] if row["provider"] == "kernel")
    kernel.update(figures)
    measure.derive(result["rows"][1:])
    return kernel


@pytest.mark.parametrize("figures", [dict(best=2e-7, p20=3e-7, median=4e-7, p80=5e-7), dict(best=2e-7), dict(p20=4e-7)])
def test_what_is_faster_than_its_floor_is_not_credible(result, figures, tmp_path):
    floor_ = next(row for row in result["rows"] if row["provider"] == "floor")
    assert any(figures[name] < floor_[name] for name in figures)
    assert marked(result, **figures)["not_credible"] == [name for name in figures if figures[name] < floor_[name]]
    lines = report.screen(result).splitlines()
    kernel = next(line for line in lines if line.startswith("kernel "))
    native = next(line for line in lines if line.startswith("native "))
    best, median, spread, *others = kernel.split()[1:]
    assert ["!" in text for text in (median, best, spread)] == ["median" in figures, "best" in figures, "p20" in figures]
    assert "!" not in native + "".join(others) and max(map(len, lines)) <= 80
    assert any(line.startswith("! not credible: faster than its floor") for line in lines)
    table = report.results_table(result)
    assert table.count(", not credible |") == ("best" in figures) + ("p20" in figures)
    assert table.count("*Not credible: faster than its floor") == 1
    report.write_json(result, tmp_path / "result.json")
    assert [bool(row["not_credible"]) for row in report.read_json(tmp_path / "result.json")["rows"]
            if "not_credible" in row] == [False, True, False, False]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that draws the chart of a result → its title, and the text at each bar by the bar's name, from the top."""
    axes_module = pytest.importorskip("matplotlib.axes")
    kept, barh = [], axes_module.Axes.barh
    monkeypatch.setattr(axes_module.Axes, "barh", lambda axes, *args, **options: (
        kept.append(axes), barh(axes, *args, **options))[1])

    def draw(result):
        chart.draw(result, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
        axes = kept.pop()
        texts = {round(text.get_position()[1]): text.get_text() for text in axes.texts if text.get_position()[1] >= 0}
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert axes.get_ylim()[0] > axes.get_ylim()[1] and not kept
        return axes.get_title(loc="left"), {name: texts[i] for i, name in enumerate(names)}
    return draw


def test_the_chart_marks_it_too_and_takes_any_name(result, drawn):
    next(row for row in result["rows"] if row["provider"] == "native")["median"] = 4e-7
    measure.derive(result["rows"][1:])
    result["environment"]["processor"] = r"a $\\frac{1}$ b$ $_{^ %s"
    assert [text for text in drawn(result)[1].values() if "not credible" in text] == ["0.000, not credible   1.0×"]


def test_the_chart_shows_forward_and_backward_the_fastest_first_with_factors(result, drawn):
    bars = {"rnn_ops, native operator": "0.003   1.0×", "the tutorial's ndarray loop": "0.020   6.7×, the best peer",
            "mx.gluon.rnn.RNN": "failed"}
    title, shown = drawn(result)
    assert title == "forward, ms: less is better" and list(shown.items()) == list(bars.items())
    result["rows"] += [timed("native", "forward+backward", 8e-6), timed("NumPy loop", "forward+backward", 1.2e-5),
                       timed("rnn_ops.gluon", "forward+backward", 9e-6), timed("kernel", "forward+backward", 1e-6),
                       timed("jax.lax.scan", "forward+backward", 3e-5)]
    title, shown = drawn(result)
    assert title == "forward+backward, ms: less is better" and list(shown.items()) == [
        ("rnn_ops, native operator", "0.008   1.0×"), ("rnn_ops.gluon.RNN", "0.009   1.1×"),
        ("NumPy loop", "0.012   1.5×, the best peer"), ("jax.lax.scan", "0.030   3.8×")]


def test_the_chart_shows_the_kernel_where_mxnet_is_missing(result, drawn):
    result["rows"] = [row for row in result["rows"] if row["provider"] in ("kernel", "ndarray loop")]
    assert list(drawn(result)[1].items()) == [
        ("kernel", "0.002   1.0×"), ("the tutorial's ndarray loop", "0.020   10.0×, the best peer")]


def test_the_readmes_chart_is_that_of_the_tutorials_shape(drawn):
    title, shown = drawn(report.read_json(os.path.join(os.path.dirname(__file__), "..", "benchmarks", "results", "cpu.json")))
    assert title == "forward+backward, ms: less is better" and next(iter(shown)) == "rnn_ops, native operator"


def test_a_chart_that_fails_costs_nothing_else(result, monkeypatch, tmp_path, capsys):
    report.write_json(result, tmp_path / "in.json")

    def fail(*_):
        raise RuntimeError("no\nink")

    monkeypatch.setattr(chart, "draw", fail)
    arguments = ["--from", str(tmp_path / "in.json"), "--json", str(tmp_path / "out.json"), "--png", str(tmp_path / "out.png")]
    assert rnn_ops(["bench", *arguments]) == 1
    printed, said = capsys.readouterr()
    assert printed == report.screen(result) and said == (
        f"rnn-ops: error: cannot draw {tmp_path / 'out.png'}: RuntimeError: no ink\n")
    assert report.read_json(tmp_path / "out.json") == report.read_json(tmp_path / "in.json")


def test_a_busy_machine_is_said(result, tmp_path):
    assert result["environment"].get("others") is None and "Other programs" not in report.screen(result)
    result["environment"]["others"] = 0.05
    assert "Other programs" not in report.screen(result)
    result["environment"]["others"] = 0.31
    for shown in report.screen(result), report.results_table(result):
        assert "Other programs took 31% of the processors' time meanwhile" in shown.replace("\n", " ")


def test_what_counts_as_busy(tmp_path, monkeypatch):
    """Of our processors: user, nice, system, irq, softirq and steal; not idle and iowait, nor guests, who are in user."""
    (tmp_path / "stat").write_text("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 4000 500 6 7 8 90 10\ncpu1 1 1 1 1 1 1 1 1 1 1\n"
                                   "cpu12 1000 0 0 0 0 0 0 0 0 0\nintr 7 7\n")
    monkeypatch.setattr(environment, "Path", lambda path: tmp_path / "stat")
    for processors, ticks in (({0}, 171), ({0, 1}, 177), ({12}, 1000)):
        monkeypatch.setattr(environment, "processors", lambda: processors)
        assert environment._busy() * os.sysconf("SC_CLK_TCK") == pytest.approx(ticks)
    (tmp_path / "stat").unlink()
    assert environment._busy() is None and environment.Others().share() is None


def test_what_others_take_is_seen_and_what_is_ours_is_not():
    if environment._busy() is None:
        pytest.skip("this system does not tell")
    burn = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end:\n    pass"
    ours, end = environment.Others(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    subprocess.run([sys.executable, "-c", burn], check=True)
    busy_before, clock = ours._began[1], ours._began[0]
    busy = (environment._busy() - busy_before) / (time.monotonic() - clock) / len(environment.processors())
    # Whatever else runs here: 1 s of all that was busy was ours, and do not count.
    assert ours.share() == pytest.approx(max(0, busy - 1 / (time.monotonic() - clock) / len(environment.processors())), abs=0.1)
    assert 0 <= ours.share() <= 1

    # A process that is not ours: its parent is gone and cannot be asked for its time.
    theirs = environment.Others()
    subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])", burn],
                   check=True)
    time.sleep(1)
    assert theirs.share() > 0.1 / len(environment.processors())


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_others(result, tmp_path, mask, mode):
    pytest.importorskip("matplotlib")
    before = os.umask(mask)
    try:
        report.write_json(result, tmp_path / "result.json")
        chart.draw(result, tmp_path / "result.png")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"result.json": mode, "result.png": mode}


def test_what_is_no_file_is_written_into_and_stays_what_it_is(result, tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    report.write_json(result, pipe)
    assert json.loads(reader.communicate()[0]) == json.loads(json.dumps(result)) and pipe.is_fifo()
    link.symlink_to(target)
    report.write_json(result, link)
    assert link.is_symlink() and report.read_json(target) == json.loads(json.dumps(result))
    report.write_json(result, os.devnull)
    assert not os.path.isfile(os.devnull)


def test_settings_that_are_no_utf8_are_written(result, tmp_path):
    result["environment"]["settings"]["RNN_OPS_SIMD"] = "\udcff"
    report.write_json(result, tmp_path / "result.json")
    assert report.read_json(tmp_path / "result.json")["environment"]["settings"]["RNN_OPS_SIMD"] == "\udcff"


# --- a grid ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def grid_result():
    """Two shapes. At the first one we are ahead, but the operator by 2 µs behind with tokens; at the second the kernel is behind
    with dense input, and there is no peer both ways with tokens."""
    rows = [timed("multiply-adds", "peak", 1e-3, flops=2_000_000, stage=measure.PEAK_STAGE, yardstick="avx2 float32, 1 thread")]
    times = {("3×2×5×4", "dense"): (1, 2, 3, 4), ("3×2×5×4", "tokens"): (1, 6, 4, 5), ("30×2×5×4", "dense"): (8, 2, 4, 9),
             ("30×2×5×4", "tokens"): (2, 2, 4, 9)}
    for sizes in "3×2×5×4", "30×2×5×4":
        its = [timed("multiply-adds", "peak", 1e-3, flops=2_000_000), timed("sgemm", "gemm", 1e-3, flops=1_000_000)]
        for kind in "dense", "tokens":
            shape = Shape.parse(f"{sizes}:{kind}")
            for direction, times_longer in (("forward", 1), ("forward+backward", 3)):
                its.append(timed("floor", direction, 1e-7, shape=shape))
                for provider, micros in zip(("kernel", "rnn_sequence", "jax.lax.scan", "NumPy loop"), times[sizes, kind]):
                    if (sizes, kind, direction) == ("30×2×5×4", "tokens", "forward+backward") and provider[0] in "jN":
                        its.append({"stage": "", "shape": list(shape[:4]), "input": kind, "direction": direction, "flops": 1,
                                    "provider": provider, "status": NOT_OFFERED, "reason": "it has | none"})
                    else:
                        its.append(timed(provider, direction, 2e-6 * micros * times_longer, shape=shape, peak_memory=5_000_000,
                                         versions={"jax": "9.9"} if provider[0] == "j" else {}))
        for row in its:
            row["stage"] = sizes
        measure.derive(its)
        rows += its
    return report.make_result(rows, rounds=2, seconds=0.1, environment=environment.describe(), kind=report.GRID)


def test_geometric_means():
    assert grid.geometric_mean([4.0]) == pytest.approx(4) and grid.geometric_mean([1.0, 4.0, 0.25, 16.0]) == pytest.approx(2)


def test_the_comparisons_of_a_grid(grid_result):
    found = grid.comparisons(grid_result["rows"])
    assert {direction: [(one.sizes, one.input, one.peer and one.peer["provider"]) for one in its]
            for direction, its in found.items()} == {
        "forward": [(sizes, kind, "jax.lax.scan") for sizes in ("3×2×5×4", "30×2×5×4") for kind in ("dense", "tokens")],
        "forward+backward": [("3×2×5×4", "dense", "jax.lax.scan"), ("3×2×5×4", "tokens", "jax.lax.scan"),
                             ("30×2×5×4", "dense", "jax.lax.scan"), ("30×2×5×4", "tokens", None)]}
    assert grid.summary(grid_result["rows"])[1:] == [
        ["forward: kernel, dense", "1.22 (1 of 2)", "1.22 (1 of 2)"],
        ["forward: kernel, tokens", "2.83 (2 of 2)", "2.83 (2 of 2)"],
        ["forward: operator, dense", "1.73 (2 of 2)", "1.73 (2 of 2)"],
        ["forward: operator, tokens", "1.15 (1 of 2)", "1.15 (1 of 2)"],
        ["forward+backward: kernel, dense", "1.22 (1 of 2)", "1.22 (1 of 2)"],
        ["forward+backward: kernel, tokens", "4.00 (1 of 1)", "4.00 (1 of 1)"],
        ["forward+backward: operator, dense", "1.73 (2 of 2)", "1.73 (2 of 2)"],
        ["forward+backward: operator, tokens", "0.67 (0 of 1)", "0.67 (0 of 1)"]]
    assert grid.behind_lines(grid_result["rows"]) == [
        "forward, kernel: behind in 1 of 4 cells: 30×2×5×4 dense 0.50 (4 µs behind jax.lax.scan).",
        "forward, operator: behind in 1 of 4 cells: 3×2×5×4 tokens 0.67 (2 µs behind jax.lax.scan).",
        "forward+backward, kernel: behind in 1 of 3 cells: 30×2×5×4 dense 0.50 (12 µs behind jax.lax.scan).",
        "forward+backward, operator: behind in 1 of 3 cells: 3×2×5×4 tokens 0.67 (6 µs behind jax.lax.scan)."]


def test_the_screen_of_a_grid(grid_result, tmp_path, capsys):
    report.write_json(grid_result, tmp_path / "grid.json")
    assert cli.main(["--from", str(tmp_path / "grid.json")]) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert max(map(len, shown.splitlines())) <= 80
    assert "T×B×I×H input best peer ms kernel operator of peak" in lines
    assert "3×2×5×4 dense jax.lax.scan 0.003 3.00 1.50 25%" in lines
    assert "3×2×5×4 tokens jax.lax.scan 0.004 4.00 ▼ 0.67 25%" in lines
    assert "30×2×5×4 dense jax.lax.scan 0.004 ▼ 0.50 2.00 3%" in lines
    assert "Peers: jax.lax.scan (jax 9.9)" in " ".join(lines)
    assert "jax.lax.scan, forward+backward: not offered: it has | none (30×2×5×4 tokens)." in " ".join(lines)


def test_a_grid_in_markdown(grid_result, tmp_path, capsys):
    report.write_json(grid_result, tmp_path / "grid.json")
    assert cli.main(["--from", str(tmp_path / "grid.json"), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ("| 3×2×5×4 | jax.lax.scan 0.003 / 0.006 | 3.00 (0.001 / 0.002) | 1.50 (0.002 / 0.004) "
            "| jax.lax.scan 0.004 / 0.008 | 4.00 (0.001 / 0.002) | ▼ 0.67 (0.006 / 0.012) |") in lines
    assert "| 30×2×5×4 | jax.lax.scan 0.012 / 0.024 | ▼ 0.50 (0.024 / 0.048) | 2.00 (0.006 / 0.012) |  |  |  |" in lines
    assert "| 3×2×5×4 | 25% (50%) | 25% (50%) | 8% (17%) | 8% (17%) | 5.0 | 5.0 | 5.0 |" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 3 + 10 + 3 * 4  # peak, means, two directions, parts of the peak


def test_the_picture_of_a_grid(grid_result, monkeypatch, tmp_path):
    axes_module = pytest.importorskip("matplotlib.axes")
    texts, text = [], axes_module.Axes.text
    monkeypatch.setattr(axes_module.Axes, "text", lambda self, x, y, s, **options: (
        texts.append((x, y, s)), text(self, x, y, s, **options))[1])
    report.write_json(grid_result, tmp_path / "grid.json")
    assert cli.main(["--from", str(tmp_path / "grid.json"), "--png", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert texts[:8] == [(0, 0, "3.00  JAX"), (2, 0, "1.50  JAX"), (1, 0, "4.00  JAX"), (3, 0, "▼ 0.67  JAX"),
                         (0, 1, "▼ 0.50  JAX"), (2, 1, "2.00  JAX"), (1, 1, "2.00  JAX"), (3, 1, "2.00  JAX")]
    assert len(texts) == 14  # of the last cell there is no peer


def test_a_ratio_just_below_one_is_not_shown_as_one():
    assert [report.ahead(ratio) for ratio in (0.9999, 1.0, 0.994, 1.004, 12.345)] == [
        "▼ 0.99", "1.00", "▼ 0.99", "1.00", "12.35"]


@pytest.mark.slow
def test_a_real_grid(tmp_path, capfd):
    file = tmp_path / "grid.json"
    status = cli.main(["--grid", "--rounds", "1", "--shape", "64,32,5,256", "--shape", "64x32x5x256:dense", "--json", str(file)])
    shown, said = capfd.readouterr()
    assert status == 0, shown
    assert [line for line in said.splitlines() if line.startswith("measuring")] == [
        "measuring 1 of 2: the processor's peak, 1 rounds", "measuring 2 of 2: 64×32×5×256, 1 rounds"]
    result = report.read_json(file)
    assert shown == grid.screen(result)
    rows = [row for row in result["rows"] if row["shape"] and row["provider"] in ("kernel", "rnn_sequence")]
    assert [(row["shape"], row["input"], row["direction"], row["provider"]) for row in rows] == [
        ([64, 32, 5, 256], kind, direction, provider) for kind in ("dense", "tokens") for provider in ("kernel", "rnn_sequence")
        for direction in ("forward", "forward+backward")]
    for row in rows:
        assert row["status"] == OK and 0 < row["best"] <= row["median"] and row["of_peak"] > 0 and row["versions"]["rnn_ops"]
        assert row["best_peer"] and row["ahead"] > 0
    for row in result["rows"]:  # everyone's call has its outputs to write, 2.1 MB
        if row["status"] == OK and row["shape"] and row["provider"] != "floor" and row["peak_memory"] is not None:
            assert 1.7e6 < row["peak_memory"] < 40e6, row


# --- the command ----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_whole_command(tmp_path, capfd, planted):
    """With a provider of one's own too."""
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    status = cli.main(["--quick", "--rounds", "1", "--shape", "3,2,5,4:dense", "--shape", "3x2x5x4",
                       "--provider", "planted_providers:Right",
                       "--json", str(file), "--png", str(picture)])
    shown = capfd.readouterr()
    assert status == 0, shown.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = report.read_json(file)
    assert shown.out == report.screen(result)
    assert [stage for stage, _, _ in report.groups(result["rows"])] == [
        "3×2×5×4 dense", "3×2×5×4 tokens", "3×2×5×4 tokens, whole training step"]
    for row in result["rows"]:
        assert row["status"] in (OK, NOT_INSTALLED, NOT_OFFERED)
        assert row["status"] == OK or row["reason"]
    assert [row["direction"] for row in result["rows"] if row["provider"] == "right"] == ["forward", "forward+backward"] * 2
    for name in ("multiply-adds", "tanh", "sgemm", "floor", "NumPy loop", "kernel", "right"):
        assert all(row["status"] == OK for row in result["rows"] if row["provider"] == name)
    for name in providers.OURS[2:]:  # in each stage
        status = OK if name not in providers.OURS_IN_TORCH or importlib.util.find_spec("torch") else NOT_INSTALLED
        assert [row["status"] for row in result["rows"] if row["provider"] == name] == [status] * (
            4 if "hybridized" in name or name == providers.TORCH_SEQUENCE else 5), name

    assert cli.main(["--from", str(file), "--markdown"]) == 0
    assert capfd.readouterr().out == report.results_table(result)


@pytest.mark.slow
def test_a_call_of_several_steps_is_timed_as_one(planted):
    problem = problems.Sequence(TINY)
    problem.repeats = 1000
    rows = measured(problem, planted.ASecond)
    assert [row["median"] for row in rows if row["provider"] == "a second"] == [1 / 1000] * 2


def test_the_profile_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(problems, "TUTORIAL", problems.Shape(3, 2, 5, 4, tokens=True))
    assert cli.main(["--profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.rsplit(None, 3)[0].strip(): line.split()[-3:] for line in lines[4:]}
    # The operator's node before it, which looks at the rank of its inputs, goes by the same name.
    for name, calls in (("rnn_ops_native", "2"), ("_backward_rnn_ops_native", "1"), ("FullyConnected", "1"),
                        ("sgd_update", "5")):
        assert cells[name][0] == calls
    assert lines[-1].startswith("a whole step") and lines[-1].endswith("100%") and "outside of operators" in lines[-2]


def test_the_table_of_a_profile():
    shown = profile.table(problems.TUTORIAL, {"rnn_ops_native": (1, 0.006), "sgd_update": (5, 0.001)}, 0.008).splitlines()
    assert shown[4:] == ["rnn_ops_native            1    6.00    75%", "sgd_update                5    1.00    12%",
                         "outside of operators           1.00    12%", "a whole step                   8.00   100%"]


@pytest.mark.parametrize("arguments, message", [
    (["--shape", "3x2"], "a shape is T,B,I,H"),
    (["--grid", "--shape", "3,2,5"], "a shape is T,B,I,H"),
    (["--grid", "--quick"], "--quick: not used by --grid"),
    (["--profile", "--grid"], "--grid: not used by --profile"),
    (["--from", "x.json", "--grid", "--packages", "y"], "--grid, --packages: not used by --from"),
    (["--packages", "/no/such/folder"], "--packages: /no/such/folder is no folder"),
    (["--rounds", "0"], "--rounds"),
    (["--json", "/no/such/folder/file.json"], "cannot write /no/such/folder/file.json"),
    (["--json", "/"], "cannot write /: Is a directory"),
    (["--from", "/no/such/file.json"], "--from: cannot read /no/such/file.json: No such file or directory"),
    (["--from", os.devnull], "--from: /dev/null is damaged or not a result"),
    (["--from", "{damaged}"], "--from: {damaged} is damaged or not a result of rnn-ops bench ('environment')"),
    (["--from", "{kind}"], "--from: {kind} is damaged or not a result of rnn-ops bench (it is of no known kind: 'kind')"),
    (["--profile", "--json", "x.json"], "--json: not used by --profile"),
    (["--profile", "--shape", "3x2x5x4", "--quick", "--rounds", "2", "--markdown"],
     "--quick, --rounds, --shape, --markdown: not used by --profile"),
    (["--profile", "--png", "x.png"], "--png: not used by --profile"),
    (["--profile", "--from", "x.json"], "--from: not used by --profile"),
    (["--from", "x.json", "--quick", "--shape", "3x2x5x4"], "--quick, --shape: not used by --from"),
])
def test_mistakes_are_told_before_anything_is_measured(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "measure", None)
    monkeypatch.setattr(profile, "profile", None)
    (tmp_path / "damaged.json").write_text('{"format": 2, "kind": "stages", "rows": []}')
    (tmp_path / "kind.json").write_text('{"format": 2, "kind": "kind", "rows": []}')
    texts = [*arguments, message]
    for name in "damaged", "kind":
        texts = [text.replace(f"{{{name}}}", str(tmp_path / f"{name}.json")) for text in texts]
    *arguments, message = texts
    assert rnn_ops(["bench", *arguments]) == 2
    printed, said = capsys.readouterr()
    assert printed == "" and len(said.splitlines()) == 1 and message in said


def test_a_failure_shows_in_the_exit_status(result, tmp_path, capsys):
    path = tmp_path / "result.json"
    report.write_json(result, path)
    assert cli.main(["--from", str(path)]) == 1
    assert "failed: wrong result" in capsys.readouterr().out
