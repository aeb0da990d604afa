"""The command for a GPU host, with a stand-in that computes in NumPy for the GPU: floors, timing, tables.

The run itself, its processes and files, is tested in test_benchmarks_gpu_run.py.
"""
import json
import math
import subprocess
import sys
import types

import numpy as np
import pytest
from cuda_host import Emulator
from gpu_machines import H100
from gpu_machines import Defective
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops import numpy_reference
from rnn_ops_benchmarks.gpu import __main__ as command
from rnn_ops_benchmarks.gpu import cells, launches, picture, tables, timing, work
from rnn_ops_benchmarks.gpu.cells import BACKWARD, BOTH, FORWARD, MODES, STEPS, TUTORIAL, Cell
from rnn_ops_benchmarks.gpu.providers import OURS, TORCH
from rnn_ops_benchmarks.gpu.rehearsal import made_up


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
    assert every[0] == TUTORIAL and len(every) == len(set(every)) == 39
    assert every[-4:] == [(T, 32, 77, 256) for T in (1, 16, 256, 1024)]
    assert set(cells.cells(quick=True)) < set(every)


def test_providers_are_verified_timed_and_told_apart():
    cell = Cell(5, 3, 7, 12)
    rows = timing.measure(Defective(), cell, rounds=2, seconds=60)
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
    rows = timing.measure(Defective(), cell, rounds=1, seconds=60, all_variants=True)
    assert {row["variant"] for row in rows if row["provider"] == OURS} == {str(variant) for variant in every}


def test_a_family_can_be_left_out_and_peers_too():
    cell = Cell(2, 3, 5, 33)
    rows = timing.measure(Defective(), cell, rounds=1, among=("grid", "stepwise"), alone=True)
    assert {row["family"] for row in rows} == {"grid", "stepwise"} and {row["provider"] for row in rows} == {OURS}


def test_a_call_with_more_launches_than_the_queue_holds_is_a_graph(monkeypatch):
    """1,024 fit into the queue; the host would wait with the others, and the events would measure it."""
    monkeypatch.setattr(timing, "MOST_QUEUED", 40)
    machine, recorded = Defective(), []
    machine.recorded = lambda call: recorded.append(call) or call
    rows = timing.measure(machine, Cell(16, 3, 5, 33), rounds=1, alone=True)
    launched = {(row["family"], row["mode"]): row["launched"] for row in rows}
    assert launched["stepwise", FORWARD] == "one by one"  # 32 launches
    assert launched["stepwise", BOTH] == "in a graph"     # 68
    assert {how for (family, _), how in launched.items() if family != "stepwise"} == {"one by one"}
    assert len(recorded) == rows[0]["sets"] * 1
    stepwise = variants.choose(H100, np.float32, 3, 33, "stepwise")
    assert len(launches.record(H100, (16, 3, 5, 33), variant=stepwise, mode=FORWARD)) == 32
    turns = [row for row in rows if row["family"] == "stepwise" and row["mode"] == FORWARD]
    assert turns[0]["calls_a_turn"] == 1  # two would not fit


def test_at_the_tutorials_shape_all_variants_and_the_wall(monkeypatch):
    cell = Cell(3, 2, 5, 33)
    monkeypatch.setattr(timing, "TUTORIAL", cell)
    rows = timing.measure(Defective(), cell, rounds=1, among=("resident", "stepwise"))
    found, _ = variants.candidates(H100, np.float32, 2, 33)
    assert {row["variant"] for row in rows if row["provider"] == OURS} == {
        str(variant) for variant in found if variant.family in ("resident", "stepwise")}
    assert all(row["wall"] > 0 and row["wall_waited"] > 0 for row in rows if row["provider"] == OURS)
    table = "\n".join(tables._wall(rows))
    assert table.count("**resident") == 2 * 4  # tokens and one-hot, every mode
    assert not any("wall" in row for row in timing.measure(Defective(), Cell(2, 2, 5, 33), rounds=1))


@pytest.mark.slow
def test_the_best_come_first_and_what_was_tried_is_left_out(monkeypatch):
    cell = Cell(3, 2, 5, 33)
    monkeypatch.setattr(timing, "TUTORIAL", cell)
    machine = Defective()
    stages = list(timing.stages(machine, cell, rounds=1))
    ends = [number for number, (_, rows) in enumerate(stages) if rows is not None]
    names, rows = stages[ends[0]]
    assert stages[ends[0] - 1] == ([timing.TOGETHER], None) and [[name] for name in names] == [
        tried for tried, _ in stages[:ends[0] - 1]]
    assert {row["family"] for row in rows if row["provider"] == OURS} == set(variants.FAMILIES)
    assert any(row["provider"] == TORCH for row in rows) and rows[0]["chosen"]
    for before, after in zip(stages[ends[0] + 1::2], stages[ends[0] + 2::2]):  # the others one by one
        assert before[1] is None and before[0] == after[0] and len({row["variant"] for row in after[1]}) == 1
    tried = [timing.TOGETHER, *names[1:]]
    again = list(timing.stages(machine, cell, rounds=1, without=tried))
    assert [tried for tried, _ in again[:2]] == [[names[0]]] * 2 and len(again) == 2 + len(stages) - ends[0] - 1


def test_a_wrong_provider_is_not_timed():
    rows = timing.measure(Defective(defect="dWhh of T = 1 only"), Cell(5, 3, 7, 12), rounds=1, seconds=60)
    ours = [row for row in rows if row["provider"] == OURS]
    assert len(ours) == 5
    for row in ours:
        assert row["status"] == timing.FAILED and "dWhh has a relative error" in row["reason"] and "median" not in row
    rows = timing.measure(Defective(defect="stepwise raises"), Cell(5, 3, 7, 12), rounds=1, seconds=60)
    assert [row["family"] for row in rows if row["status"] == timing.FAILED] == ["stepwise"]
    with pytest.raises(checks.GpuLost, match="T = 5, B = 3, H = 12, ours, resident: a kernel hangs"):
        timing.measure(Defective(defect="hangs"), Cell(5, 3, 7, 12), rounds=1, seconds=60)


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
        rows = timing.measure(Defective(), cell, rounds=1, seconds=60, all_variants=all_variants)
        return [row["provider"] for row in rows if row["provider"].startswith("FlashRNN")]

    small = Cell(2, 3, 5, 6)
    assert names(small, all_variants=True) == []
    monkeypatch.setitem(sys.modules, "flashrnn", installed)
    assert names(small) == []
    assert names(small, all_variants=True) == [f"FlashRNN, {backend}, {dtype}" for backend, dtype in FLASHRNN]


# --- tables, picture, files -------------------------------------------------------------------------------------------

def table_after(text, title):
    lines = text.split(title, 1)[1].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_markdown():
    text = tables.markdown(made_up())
    forward = table_after(text, "**forward, µs a step**")
    assert forward[0] == ["H \\ B", "1", "8", "32", "64", "128"]
    assert [line[0] for line in forward[2:]] == [f"**{H}**" for H in (64, 128, 256, 384, 512, 1024, 2048)]
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
    assert choices[4][3] == "cluster" and choices[8][1] == "grid"
    lengths = text.split("| T | forward | forward+backward |\n| --: | --: | --: |\n", 1)[1]
    assert lengths.startswith("| 1 | 0.858 (3.33×) | 2.57 (3.33×) |\n| 16 | 13.7")
    estimates = table_after(text, "the best variant of each family")
    assert estimates[0] == ["H", "B", "resident", "cluster", "grid", "stepwise"] and len(estimates) == 2 + 35
    assert estimates[2 + 2 * 5 + 2] == ["256", "32", "608 → 1,115", "608 → 858", "608 → 1,716", "608 → 7,722"]
    assert "**torch.nn.RNN is faster** than the chosen variant in 0 of 117 comparisons." in text
    assert "CuPy 13.6.0" in text and "driver 550.54.15" in text and "torch 2.5.1, cuDNN 90100; 2026-01-02" in text


def test_where_the_vendor_wins_is_a_line():
    result = made_up()
    for its in result["rows"]:
        if its["provider"] == TORCH and its["B"] == 64 and its["H"] == 512 and its["mode"] == BOTH:
            its["median"] /= 5
    assert ("**torch.nn.RNN is faster** than the chosen variant in 1 of 117 comparisons: T = 64, B = 64, H = 512, "
            "forward+backward (0.50×).\n") in tables.markdown(result)


def test_markdown_without_pytorch_and_cut_off():
    result = made_up(torch=False)
    text = tables.markdown(result)
    assert table_after(text, "**forward, µs a step**")[4][3] == "0.858"
    assert "not installed: No module named 'torch'" in text
    result["rows"] = [row for row in result["rows"] if row["H"] <= 64]  # not even the tutorial's shape
    result["complete"] = False
    text = tables.markdown(result)
    assert "Incomplete" in text and "Floor" not in text
    assert len(table_after(text, "**forward, µs a step**")) == 3
    assert "µs a step" not in tables.markdown(dict(result, rows=[]))


@pytest.mark.parametrize("torch", [True, False])
@pytest.mark.slow
def test_picture(torch, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "gpu.png"
    picture.draw(made_up(torch), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_facts_of_the_device():
    text = tables.facts(dict(made_up(), gpu=dict(made_up()["gpu"], devices=2)))
    for fact in ("NVIDIA H100 80GB HBM3: compute capability 9.0, 132 multiprocessors", "227 KiB a block",
                 "1,980,000 kHz", "just now 1,950,000 kHz", "driver 550.54.15", "CuPy 13.6.0", "rnn_ops 0.1.0",
                 "float64 truths by CuPy", "2 GPUs: the first one is used"):
        assert fact in text


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture
def without_gpu():
    from rnn_ops.backends import cuda
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")


@pytest.mark.parametrize("arguments", [[], ["--only", "check", "--minutes", "1"]])
@pytest.mark.slow
def test_without_a_gpu_one_sentence_and_status_2(arguments, tmp_path, without_gpu):
    process = subprocess.run([sys.executable, "-m", "rnn_ops_benchmarks.gpu", *arguments], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 2, process.stderr
    assert process.stdout == "" and len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("rnn_ops_benchmarks.gpu: ")
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_machine_needs_cupy_and_nothing_needs_mxnet():
    """On a host that has neither, the way to the sentence is free."""
    process = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['mxnet'] = sys.modules['pooch'] = None\n"
         "from rnn_ops_benchmarks.gpu import __main__, picture, rehearsal, tables, timing, training, work\n"
         "from rnn_ops_timemachine import text; text._URL = 'http://127.0.0.1:9/{name}'; assert text.load('timemachine')\n"
         "assert 'cupy' not in sys.modules; sys.modules['cupy'] = None; sys.exit(__main__.main(['--part', 'device']))"],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == work.LEFT_OUT and "CuPy" in process.stderr, process.stderr


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--only", "--minutes", "--out", "--report", "--rehearse", "RNN_OPS_CACHE", "Exit status", "goes on"):
        assert word in text
    assert "usage: python -m rnn_ops_benchmarks.gpu " in text
    assert "--part" not in text and "--machine" not in text


@pytest.mark.parametrize("arguments, word", [(["--only", "nothing"], "check"), (["--minutes", "0"], "needs more than 0")])
def test_what_cannot_be_asked_for_is_refused(arguments, word, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert word in capsys.readouterr().err
