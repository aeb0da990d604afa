"""The benchmark's rows of PyTorch: ours beside torch.nn.RNN, and the time that a call adds. Nothing here depends on how long
anything takes."""
import os
import sys

import numpy as np
import pytest
from rnn_ops_benchmarks import call_cost, chart, grid, measure, problems, providers, report, trainers, worker
from rnn_ops_benchmarks.problems import Shape
from rnn_ops_benchmarks.worker import FAILED, NOT_INSTALLED, OK

TINY, DENSE = (Shape(3, 2, 5, 4, tokens) for tokens in (True, False))
RESULTS = os.path.join(os.path.dirname(__file__), "..", "benchmarks", "results")
IN_TORCH = (providers.OurTorchSequence, providers.OurTorchRNN, providers.TorchRNN)


# --- the providers

@pytest.mark.parametrize("shape", [TINY, DENSE, Shape(1, 1, 1, 1, tokens=True)], ids=str)
@pytest.mark.parametrize("provider", IN_TORCH, ids=lambda provider: provider.name)
def test_they_compute_the_same(provider, shape):
    torch = pytest.importorskip("torch")
    made, known = worker.prepare(provider, problems.Sequence(shape))
    assert set(known["errors"]) == {"forward", "forward+backward"} and max(known["errors"].values()) < 1e-6
    assert known["versions"]["torch"] and made.about.startswith(f"torch {torch.__version__}, ")
    assert ("rnn_ops" in known["versions"]) == (provider.name in providers.OURS)


def test_gradients_are_those_of_one_call():
    """They are not added up from call to call."""
    pytest.importorskip("torch")
    for provider in IN_TORCH:
        made, _ = worker.prepare(provider, problems.Sequence(DENSE))
        first = {name: array.copy() for name, array in made.results("forward+backward").items()}
        made.calls["forward+backward"]()
        for name, array in made.results("forward+backward").items():
            np.testing.assert_array_equal(array, first[name], err_msg=name)


@pytest.mark.parametrize("provider, name", [
    (providers.OurTorchSequence, "dWhh"), (providers.OurTorchSequence, "dinputs"), (providers.OurTorchRNN, "dstate")])
def test_a_wrong_gradient_is_not_timed(provider, name, monkeypatch):
    torch = pytest.importorskip("torch")
    module = sys.modules["rnn_ops.torch"]
    right, index = module.rnn_sequence, {"dinputs": 0, "dstate": 1, "dWhh": 3}[name]

    def wrong(*arguments):
        arguments = list(arguments)
        arguments[index] = 2 * arguments[index] - arguments[index].detach()  # the same value, twice the gradient
        return right(*arguments)

    class WrongLayer(torch.nn.RNN):
        def forward(self, inputs, state):
            return super().forward(inputs, 2 * state - state.detach())

    monkeypatch.setattr(module, "rnn_sequence", wrong)
    monkeypatch.setattr(module, "RNN", WrongLayer)
    with pytest.raises(ValueError, match=f"^wrong result: {name} has a relative error of 1.0e[+]00$"):
        worker.prepare(provider, problems.Sequence(DENSE))


def test_the_training_step_with_our_layer():
    pytest.importorskip("torch")
    _, known = worker.prepare(trainers.OursTorch, problems.TrainingStep(TINY))
    assert known["errors"]["training step"] < 1e-5 and trainers.OursTorch.name == "rnn_ops.torch.RNN"
    assert trainers.OursTorch in trainers.TRAINERS


def test_without_pytorch_they_are_not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch" or name.startswith("rnn_ops.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    for provider in (*IN_TORCH, trainers.OursTorch):
        with pytest.raises(ImportError):  # which is that status
            provider(problems.Sequence(TINY) if provider in IN_TORCH else problems.TrainingStep(TINY))


def test_they_are_measured_at_every_shape_and_in_the_grid():
    for chosen in providers.for_shape(TINY), providers.for_grid(TINY):
        assert [provider for provider in chosen if provider in IN_TORCH] == list(IN_TORCH)
    assert {providers.OurTorchSequence.name, providers.OurTorchRNN.name} == set(providers.OURS_IN_TORCH) < set(providers.OURS)
    assert providers.OurTorchSequence.process in providers.OTHERS


# --- tables and pictures

def timed(provider, direction, micros, shape=TINY):
    return {"stage": str(shape), "shape": list(shape[:4]), "input": shape.input, "direction": direction, "provider": provider,
            "status": OK, "flops": 1000, "calls": 9, "best": 0.5e-6 * micros, "p20": 0.9e-6 * micros, "median": 1e-6 * micros,
            "p80": 1.5e-6 * micros, "turns": [1e-6 * micros] * 3, "about": "", "versions": {}}


def result(rows, kind=report.STAGES):
    yardsticks = [dict(timed(provider, direction, 1000), shape=None, input=None, flops=2_000_000) for provider, direction in (
        ("multiply-adds", "peak"), ("sgemm", "gemm"))]
    stages = dict.fromkeys(row["stage"] for row in rows)
    found = []
    for stage in stages:
        its = [dict(row, stage=stage) for row in yardsticks] + [row for row in rows if row["stage"] == stage]
        measure.derive(its)
        found += its
    where = {"processor": "a processor", "cores": 2, "versions": {}, "settings": {}}
    return report.make_result(found, 3, 0.1, where, kind)


def torch_rows(shape=TINY, one_thread=()):
    """torch.nn.RNN takes 40 µs forward and 90 both ways, our function 10 and 30, our layer 20 and 100."""
    rows = []
    for direction, times in (("forward", (5, 8, 10, 20, 40)), ("forward+backward", (15, 24, 30, 100, 90))):
        names = ("kernel", "native", *providers.OURS_IN_TORCH, "torch.nn.RNN")
        rows += [timed(name, direction, micros, shape) for name, micros in zip(names, times)]
        rows += [timed("torch.nn.RNN, 1 thread", direction, micros, shape) for micros in one_thread]
    return rows


def test_ratios_to_pytorchs_layer_are_shown():
    shown = result(torch_rows())
    for text in report.screen(shown).replace("\n", " "), report.results_table(shown):
        assert ("PyTorch's own, forward: torch.nn.RNN, 0.020 ms. Times as fast: rnn_ops.torch.rnn_sequence 4.00; "
                "rnn_ops.torch.RNN 2.00.") in text
        assert ("PyTorch's own, forward+backward: torch.nn.RNN, 0.045 ms. Times as fast: rnn_ops.torch.rnn_sequence 3.00; "
                "rnn_ops.torch.RNN ▼ 0.90.") in text
        assert "MXNet's own time, µs over the bare kernel (forward, forward+backward): native +3, +9." in text
        assert ("PyTorch's own time, µs over the bare kernel (forward, forward+backward): rnn_ops.torch.rnn_sequence +5, +15; "
                "rnn_ops.torch.RNN +15, +85.") in text
    assert "| **rnn_ops.torch.RNN** |" in report.results_table(shown)
    assert max(map(len, report.screen(shown).splitlines())) <= 80


def test_the_faster_of_pytorchs_layers_counts():
    text = report.screen(result(torch_rows(one_thread=[12]))).replace("\n", " ")
    assert "PyTorch's own, forward: torch.nn.RNN, 1 thread, 0.006 ms. Times as fast: rnn_ops.torch.rnn_sequence 1.20;" in text


def test_a_row_that_was_not_timed_has_no_ratio():
    rows = torch_rows()
    for row in rows:
        if row["provider"] == "rnn_ops.torch.RNN":
            row.update(status=FAILED, reason="wrong result")
        if row["provider"] == "torch.nn.RNN" and row["direction"] == "forward":
            row.update(status=NOT_INSTALLED, reason="No module named 'torch'")
    text = report.screen(result(rows)).replace("\n", " ")
    assert "PyTorch's own, forward:" not in text
    assert "PyTorch's own, forward+backward: torch.nn.RNN, 0.045 ms. Times as fast: rnn_ops.torch.rnn_sequence 3.00. " in text


def test_a_grid_has_a_table_of_pytorchs():
    small, large = TINY, Shape(30, 2, 5, 4, tokens=False)
    rows = torch_rows(small) + torch_rows(large)
    for row in rows:
        row["stage"] = "×".join(map(str, row["shape"]))
    made = result(rows, report.GRID)
    assert grid.torch_tables(made["rows"]) == {
        "forward": [["T×B×I×H", "input", "torch.nn.RNN, ms", "rnn_sequence", "RNN"],
                    ["3×2×5×4", "tokens", "0.020", "4.00", "2.00"], ["30×2×5×4", "dense", "0.020", "4.00", "2.00"],
                    ["geometric mean", "", "", "4.00 (2 of 2)", "2.00 (2 of 2)"]],
        "forward+backward": [["T×B×I×H", "input", "torch.nn.RNN, ms", "rnn_sequence", "RNN"],
                             ["3×2×5×4", "tokens", "0.045", "3.00", "▼ 0.90"], ["30×2×5×4", "dense", "0.045", "3.00", "▼ 0.90"],
                             ["geometric mean", "", "", "3.00 (2 of 2)", "0.90 (0 of 2)"]]}
    screen, readme = grid.screen(made), grid.results_table(made)
    assert max(map(len, screen.splitlines())) <= 80
    assert "forward+backward: rnn_ops.torch, times as fast as torch.nn.RNN, best calls\n" in screen
    assert "3×2×5×4         tokens             0.020           4.00           2.00\n" in screen
    assert "**forward**: rnn_ops.torch, times as fast as torch.nn.RNN, best calls\n" in readme
    assert "| 30×2×5×4 | dense | 0.020 | 4.00 | 2.00 |\n" in readme


def test_results_of_before_look_as_before():
    for name, kind in ("cpu.json", report.STAGES), ("grid.json", report.GRID):
        old = report.read_json(os.path.join(RESULTS, name))
        assert old["kind"] == kind
        if any(row["provider"] in providers.OURS_IN_TORCH for row in old["rows"]):
            pytest.skip(f"{name} was measured anew")
        with open(os.path.join(RESULTS, name.replace("json", "md")), encoding="utf-8") as file:
            readme = file.read()
        assert (report if kind == report.STAGES else grid).results_table(old) == readme


def test_the_chart_shows_ours_in_pytorch(monkeypatch, tmp_path):
    axes_module = pytest.importorskip("matplotlib.axes")
    names = []
    monkeypatch.setattr(axes_module.Axes, "set_yticklabels", lambda self, labels: names.extend(labels))
    rows = torch_rows()
    chart.draw(result(rows), tmp_path / "chart.png")
    assert names == ["rnn_ops, native operator", "rnn_ops.torch.rnn_sequence", "torch.nn.RNN", "rnn_ops.torch.RNN"]


# --- the time that a call adds

def test_the_bare_functions_compute_the_same():
    for shape in call_cost.SHAPES:
        _, known = worker.prepare(call_cost.Bare, problems.Sequence(shape))
        assert set(known["errors"]) == {"forward", "forward+backward"} and max(known["errors"].values()) < 1e-6


def cost_rows():
    """The machine's three rounds take longer and longer; ours takes 40 µs more than the bare functions in each."""
    drifting = np.array([1e-3, 2e-3, 9e-3])
    rows = []
    for name, added in (("bare", 0), ("rnn_ops.torch.rnn_sequence", 4e-5)):
        for direction in "forward", "forward+backward":
            rows.append(dict(timed(name, direction, 0), best=1.5e-6 + added / 2, median=1.25e-5,
                             turns=(drifting + added).tolist()))
        rows[-1]["best"] *= 2
    rows += [dict(timed("torch.nn.RNN", direction, 0), status=NOT_INSTALLED, reason="No module named 'torch'")
             for direction in ("forward", "forward+backward")]
    call_cost.add_differences(rows)
    return rows


def test_what_a_call_adds_is_measured_within_rounds():
    found = {(row["provider"], row["direction"]): row.get("over_bare") for row in cost_rows()}
    assert found["rnn_ops.torch.rnn_sequence", "forward"] == (pytest.approx(2e-5), pytest.approx(4e-5))
    assert found["rnn_ops.torch.rnn_sequence", "forward+backward"] == (pytest.approx(4e-5), pytest.approx(4e-5))
    assert found["torch.nn.RNN", "forward"] is None


def test_the_table_of_what_a_call_adds():
    assert call_cost.table(cost_rows()).splitlines() == [
        "| 3×2×5×4 tokens: µs over the bare C functions | forward, best | median | forward+backward, best | median |",
        "| :-- | --: | --: | --: | --: |", "| bare | 1.5 | 12.5 | 3.0 | 12.5 |",
        "| rnn_ops.torch.rnn_sequence | +20.0 | +40.0 | +40.0 | +40.0 |", "| torch.nn.RNN |  |  |  |  |", "",
        "- torch.nn.RNN: not installed: No module named 'torch'"]


def test_the_command_measures_what_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(call_cost, "SHAPES", call_cost.SHAPES[:1])
    monkeypatch.setattr(call_cost, "TIMED", call_cost.TIMED[:2])
    monkeypatch.setattr(call_cost, "_SECONDS", 0.001)
    assert call_cost.main(["--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| 2×2×4×8 dense: µs over the bare C functions |")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| bare", "| kernel"] and "+" in lines[3]
