"""Floors, timing and tables of the benchmark on a GPU, with a stand-in that computes in NumPy for the GPU.

The run itself, its processes and files, is tested in test_benchmarks_gpu_run.py.
"""
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from rnn_ops_benchmarks import (
    clock,
    gpu_floor,
    gpu_measure,
    gpu_providers,
    gpu_report,
    gpu_work,
    heatmap,
    launches,
    problems,
    report,
)
from rnn_ops_benchmarks.gpu_measure import FAILED, NOT_INSTALLED, OK
from rnn_ops_benchmarks.gpu_providers import OURS, TORCH
from rnn_ops_benchmarks.problems import BACKWARD, BOTH, FORWARD, GPU_DIRECTIONS, STEPS, TUTORIAL, Shape
from rnn_ops_benchmarks.rehearsal import made_up
from rnn_ops_benchmarks.worker import verify

from defective_gpus import H100, Defective
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks
from rnn_ops_cli.main import main as rnn_ops

# --- floors and timing ------------------------------------------------------------------------------------------------

def test_floors_by_hand():
    # 32·256² multiply-adds over 132·128 lanes are 124 cycles; one element waits 100 + 4·8, and Whh (256 KiB) fits.
    assert gpu_floor.cycles(H100, TUTORIAL, FORWARD) == 132
    assert gpu_floor.cycles(H100, TUTORIAL, BACKWARD) == pytest.approx(132 + 32 * 65536 / 16896)
    assert gpu_floor.cycles(H100, TUTORIAL, BOTH) == pytest.approx(264 + 32 * 65536 / 16896)
    large = Shape(64, 256, 77, 2048, tokens=True)
    assert gpu_floor.cycles(H100, large, STEPS) == 256 * 2048 ** 2 / 16896
    one_row = Shape(64, 1, 77, 1024, tokens=True)  # 4 MiB: across multiprocessors
    assert gpu_floor.cycles(H100, one_row, FORWARD) == 100 + 40 + 180
    assert gpu_floor.cycles(variants.known_device(80, 108), one_row, FORWARD) == 100 + 40 + 400


def test_shapes_begin_with_the_tutorial_and_name_each_once():
    every = problems.gpu_shapes()
    assert every[0] == TUTORIAL and len(every) == len(set(every)) == 39
    assert every[-4:] == [TUTORIAL._replace(T=T) for T in (1, 16, 256, 1024)]
    assert set(problems.gpu_shapes(quick=True)) < set(every)


def test_providers_are_verified_timed_and_told_apart():
    shape = Shape(5, 3, 7, 12, tokens=True)
    rows = gpu_measure.measure(Defective(), shape, rounds=2, seconds=60)
    timed = [row for row in rows if row["status"] == OK]
    assert {(row["family"], row["input"]) for row in timed if row["provider"] == OURS} == {
        *((family, "tokens") for family in variants.FAMILIES), ("resident", "one-hot")}
    for row in timed:
        assert len(row["turns"]) == 2 and 0 < row["best"] <= row["p20"] <= row["median"] <= row["p80"]
        assert (row["shape"], row["stage"]) == ([5, 3, 7, 12], "5×3×7×12")
        assert row["cycles_per_step"] == pytest.approx(row["median"] / 5 * 1e9)
        assert row["seconds_per_step"] == pytest.approx(row["median"] / 5)
        assert row["floor_cycles"] == gpu_floor.cycles(H100, shape, row["direction"])
        assert row["error"] < 1e-5 and 2 <= row["sets"] <= 8 and row["calls"] <= 2 * row["sets"]
    assert {row["direction"] for row in timed if row["family"] == "grid"} == set(GPU_DIRECTIONS)
    chosen = variants.choose(H100, np.float32, 3, 12)
    assert {row["variant"] for row in timed if row["chosen"]} == {str(chosen)}
    torch = [row for row in rows if row["provider"] == TORCH]
    assert torch and all(row["status"] == NOT_INSTALLED and "torch" in row["reason"] for row in torch)
    json.dumps(rows)


def test_all_variants_are_timed_where_asked_for():
    shape = Shape(2, 3, 5, 33, tokens=True)
    every, _ = variants.candidates(H100, np.float32, 3, 33)
    rows = gpu_measure.measure(Defective(), shape, rounds=1, seconds=60, all_variants=True)
    assert {row["variant"] for row in rows if row["provider"] == OURS} == {str(variant) for variant in every}


def test_a_family_can_be_left_out_and_peers_too():
    shape = Shape(2, 3, 5, 33, tokens=True)
    rows = gpu_measure.measure(Defective(), shape, rounds=1, among=("grid", "stepwise"), alone=True)
    assert {row["family"] for row in rows} == {"grid", "stepwise"} and {row["provider"] for row in rows} == {OURS}


def test_a_call_with_more_launches_than_the_queue_holds_is_a_graph(monkeypatch):
    """1,024 fit into the queue; the host would wait with the others, and the events would measure it."""
    monkeypatch.setattr(clock, "MOST_QUEUED", 40)
    gpu, recorded = Defective(), []
    gpu.recorded = lambda call: recorded.append(call) or call
    rows = gpu_measure.measure(gpu, Shape(16, 3, 5, 33, tokens=True), rounds=1, alone=True)
    launched = {(row["family"], row["direction"]): row["launched"] for row in rows}
    assert launched["stepwise", FORWARD] == "one by one"  # 32 launches
    assert launched["stepwise", BOTH] == "in a graph"     # 68
    assert {how for (family, _), how in launched.items() if family != "stepwise"} == {"one by one"}
    assert len(recorded) == rows[0]["sets"] * 1
    stepwise = variants.choose(H100, np.float32, 3, 33, "stepwise")
    assert len(launches.record(H100, (16, 3, 5, 33), variant=stepwise, direction=FORWARD)) == 32
    turns = [row for row in rows if row["family"] == "stepwise" and row["direction"] == FORWARD]
    assert turns[0]["calls"] == len(turns[0]["turns"]) == 1  # of one call each: two would not fit


def test_at_the_tutorials_shape_all_variants_and_the_wall(monkeypatch):
    shape = Shape(3, 2, 5, 33, tokens=True)
    monkeypatch.setattr(gpu_measure, "TUTORIAL", shape)
    rows = gpu_measure.measure(Defective(), shape, rounds=1, among=("resident", "stepwise"))
    found, _ = variants.candidates(H100, np.float32, 2, 33)
    assert {row["variant"] for row in rows if row["provider"] == OURS} == {
        str(variant) for variant in found if variant.family in ("resident", "stepwise")}
    assert all(row["wall"] > 0 and row["wall_waited"] > 0 for row in rows if row["provider"] == OURS)
    table = "\n".join(gpu_report._wall(rows))
    assert table.count("**resident") == 2 * 4  # tokens and one-hot, every direction
    assert not any("wall" in row for row in gpu_measure.measure(Defective(), Shape(2, 2, 5, 33, tokens=True), rounds=1))


@pytest.mark.slow
def test_the_best_come_first_and_what_was_tried_is_left_out(monkeypatch):
    shape = Shape(3, 2, 5, 33, tokens=True)
    monkeypatch.setattr(gpu_measure, "TUTORIAL", shape)
    gpu = Defective()
    stages = list(gpu_measure.stages(gpu, shape, rounds=1))
    ends = [number for number, (_, rows) in enumerate(stages) if rows is not None]
    names, rows = stages[ends[0]]
    assert stages[ends[0] - 1] == ([gpu_measure.TOGETHER], None) and [[name] for name in names] == [
        tried for tried, _ in stages[:ends[0] - 1]]
    assert {row["family"] for row in rows if row["provider"] == OURS} == set(variants.FAMILIES)
    assert any(row["provider"] == TORCH for row in rows) and rows[0]["chosen"]
    for before, after in zip(stages[ends[0] + 1::2], stages[ends[0] + 2::2]):  # the others one by one
        assert before[1] is None and before[0] == after[0] and len({row["variant"] for row in after[1]}) == 1
    tried = [gpu_measure.TOGETHER, *names[1:]]
    again = list(gpu_measure.stages(gpu, shape, rounds=1, without=tried))
    assert [tried for tried, _ in again[:2]] == [[names[0]]] * 2 and len(again) == 2 + len(stages) - ends[0] - 1


def test_a_wrong_provider_is_not_timed():
    rows = gpu_measure.measure(Defective(defect="dWhh of T = 1 only"), Shape(5, 3, 7, 12, tokens=True), rounds=1, seconds=60)
    ours = [row for row in rows if row["provider"] == OURS]
    assert len(ours) == 5
    for row in ours:
        assert row["status"] == FAILED and "dWhh has a relative error" in row["reason"] and "median" not in row
    rows = gpu_measure.measure(Defective(defect="stepwise raises"), Shape(5, 3, 7, 12, tokens=True), rounds=1, seconds=60)
    assert [row["family"] for row in rows if row["status"] == FAILED] == ["stepwise"]
    with pytest.raises(checks.GpuLost, match="T = 5, B = 3, H = 12, ours, resident: a kernel hangs"):
        gpu_measure.measure(Defective(defect="hangs"), Shape(5, 3, 7, 12, tokens=True), rounds=1, seconds=60)


@pytest.mark.parametrize("peer", gpu_providers.PEERS, ids=lambda peer: peer.name)
def test_peers_compute_the_same(peer):
    """On the CPU, where PyTorch's layer is the same one."""
    pytest.importorskip("torch")
    problem = problems.Sequence(Shape(5, 3, 7, 12, tokens=True))
    provider = peer(problem, 2, device="cpu")
    assert verify(provider.results(), problem.truth(BOTH), 1e-5) < 1e-5
    for before, call in provider.calls.values():
        for i in range(2):
            if before:
                before(i)
        for i in range(2):
            call(i)
    known, found = gpu_providers.about(peer), gpu_providers.about(provider)
    assert dict(known, variant=found["variant"]) == found and found["variant"]


class Mine(gpu_providers.GpuProvider):
    """A provider of one's own."""
    name, input = "mine", "tokens"

    def __init__(self, problem, count):
        self.truth = problem.truth(BOTH)
        self.calls = {FORWARD: (None, lambda i: None)}

    def results(self):
        return self.truth


class Wrong(Mine):
    name = "wrong"

    def results(self):
        return {name: array + 1 for name, array in self.truth.items()}


def test_providers_of_ones_own_are_verified_and_timed():
    rows = gpu_measure.measure(Defective(), Shape(2, 3, 5, 33, tokens=True), rounds=1, more=[Mine, Wrong])
    mine, wrong = (row for row in rows if row["provider"] in ("mine", "wrong"))
    assert (mine["status"], mine["direction"], mine["input"]) == (OK, FORWARD, "tokens") and mine["median"] > 0
    assert wrong["status"] == FAILED and wrong["reason"].startswith("wrong result")


# --- tables, picture, files -------------------------------------------------------------------------------------------

def table_after(text, title):
    lines = text.split(title, 1)[1].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_markdown():
    text = gpu_report.markdown(made_up())
    forward = table_after(text, "**forward, µs a step**")
    assert forward[0] == ["H \\ B", "1", "8", "32", "64", "128"]
    assert [line[0] for line in forward[2:]] == [f"**{H}**" for H in (64, 128, 256, 384, 512, 1024, 2048)]
    # 0.5 µs · 1.3 · 1.32, and 5 / 1.5 times that
    assert forward[4][3] == "0.858 (3.33×)"
    assert table_after(text, "**forward+backward, µs a step**")[4][3] == "2.57 (3.33×)"
    tutorial = {line[0]: line[1:] for line in table_after(text, "as long as the chosen variant (bold) takes.")}
    assert tutorial["*floor*"][:3] == ["tokens", "0.132", "132"]
    ours = tutorial[r"**cluster: Tile\<256\>**"]
    assert tutorial[r"cluster, cluster barriers: Tile\<256\>"][2:4] == ["1,030", ""]  # the older exchange is not predicted
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
    every = {line[2]: line[3:] for line in table_after(text, "**Every variant, cycles a step: predicted → measured**")}
    assert every[r"cluster: Tile\<256\>"] == ["608 → 858", "608 → 1,030"]
    assert every[r"cluster, cluster barriers: Tile\<256\>"] == ["1,030", "1,236"]
    assert "**torch.nn.RNN is faster** than the chosen variant in 0 of 117 comparisons." in text
    assert "CuPy 13.6.0" in text and "driver 550.54.15" in text and "torch 2.5.1, cuDNN 90100; 2026-01-02" in text


def test_where_the_vendor_wins_is_a_line():
    result = made_up()
    for its in result["rows"]:
        if its["provider"] == TORCH and its["shape"][1::2] == [64, 512] and its["direction"] == BOTH:
            its["median"] /= 5
    assert ("**torch.nn.RNN is faster** than the chosen variant in 1 of 117 comparisons: T = 64, B = 64, H = 512, "
            "forward+backward (0.50×).\n") in gpu_report.markdown(result)


def test_markdown_without_pytorch_and_cut_off():
    result = made_up(torch=False)
    text = gpu_report.markdown(result)
    assert table_after(text, "**forward, µs a step**")[4][3] == "0.858"
    assert "not installed: No module named 'torch'" in text
    result["rows"] = [row for row in result["rows"] if row["shape"][3] <= 64]  # not even the tutorial's shape
    result["complete"] = False
    text = gpu_report.markdown(result)
    assert "Incomplete" in text and "Floor" not in text
    assert len(table_after(text, "**forward, µs a step**")) == 3
    assert "µs a step" not in gpu_report.markdown(dict(result, rows=[]))


@pytest.mark.parametrize("torch", [True, False])
@pytest.mark.slow
def test_picture(torch, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "gpu.png"
    heatmap.draw_gpu(made_up(torch), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_a_picture_of_few_shapes_warns_of_nothing_and_one_of_none_is_a_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    every, file, picture = made_up(), tmp_path / "result.json", tmp_path / "gpu.png"
    shapes = [row["shape"] for row in every["rows"]]
    for wanted in ({(64, 1)}, {(64, 1), (64, 8)}, {(64, 1), (128, 1)}, set()):
        rows = [row for row, (T, B, _, H) in zip(every["rows"], shapes) if T == 64 and (H, B) in wanted]
        report.write_json(dict(every, rows=rows), file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rnn_ops(["bench", "--from", str(file), "--png", str(picture)]) == int(not wanted)
        said = capsys.readouterr().err
        if wanted:
            assert said == "" and picture.read_bytes().startswith(b"\x89PNG")
            picture.unlink()
    assert said == (f"rnn-ops: error: cannot draw {picture}: ValueError: rows: got none of T = 64, needs one: there is nothing "
                    "to draw\n") and not picture.exists()


def test_a_result_is_shown_again(tmp_path, capsys):
    """By the same command, of whatever device; one of version 0.1 too."""
    result, file = made_up(), tmp_path / "result.json"
    report.write_json(result, file)
    assert rnn_ops(["bench", "--from", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out == gpu_report.markdown(result)
    assert rnn_ops(["bench", "--from", str(file)]) == 0
    text = capsys.readouterr().out
    assert text == gpu_report.screen(result) and "cluster: Tile<256>" in text and not re.search(r"\\[<>|]", text)

    def old(row):
        row = dict(row, **dict(zip("TBVH", row["shape"])), mode=row["direction"], p25=row["p20"], p75=row["p80"],
                   us_per_step=1e6 * row["seconds_per_step"])
        return {name: value for name, value in row.items() if name not in (
            "stage", "shape", "direction", "p20", "p80", "seconds_per_step")}

    before = dict(result, format="rnn_ops gpu 2", rows=list(map(old, result["rows"])),
                  variants={"rows": list(map(old, result["variants"]["rows"]))})
    del before["kind"], before["mxnet"]
    report.write_json(before, file)
    assert rnn_ops(["bench", "--from", str(file)]) == 0
    without_spread = re.sub(r" \([\d.]+–[\d.]+\)", "", text)  # it had quartiles, which are not p20 and p80
    assert without_spread != text and capsys.readouterr().out == without_spread


def test_facts_of_the_device():
    text = gpu_report.facts(dict(made_up(), gpu=dict(made_up()["gpu"], devices=2)))
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
    for command in ["-m", "rnn_ops_benchmarks"], ["-m", "rnn_ops", "bench"]:
        process = subprocess.run([sys.executable, *command, "--device", "cuda", *arguments], cwd=tmp_path, text=True,
                                 capture_output=True)
        assert process.returncode == 2, process.stderr
        assert process.stdout == "" and len(process.stderr.splitlines()) == 1
        assert process.stderr.startswith("rnn-ops: error: ")
        assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_gpu_needs_cupy_and_nothing_needs_mxnet(tmp_path):
    """On a host that has neither, the way to the sentence is free."""
    process = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['mxnet'] = sys.modules['pooch'] = None\n"
         "from rnn_ops_benchmarks import cli, gpu_training, rehearsal\n"
         "from rnn_ops_timemachine import text; text._URL = 'http://127.0.0.1:9/{name}'; assert text.load('timemachine')\n"
         "assert 'cupy' not in sys.modules; sys.modules['cupy'] = None\n"
         "sys.exit(cli.main(['--device', 'cuda', '--part', 'device', '--out', sys.argv[1]]))", str(tmp_path)],
        text=True, capture_output=True)
    assert process.returncode == gpu_work.LEFT_OUT and "CuPy" in process.stderr, process.stderr


def test_help_explains(capsys):
    assert rnn_ops(["bench", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--only", "--minutes", "--out", "--report", "--rehearse", "RNN_OPS_CACHE", "Exit status", "goes on"):
        assert word in text
    assert "--part" not in text and "--gpu" not in text
    assert "Some four minutes on an idle machine" in text and "best peer in each. Some ten minutes" in text


@pytest.mark.parametrize("arguments, words", [
    (["--device", "cuda", "--only", "nothing"], "check"), (["--device", "cuda", "--minutes", "0"], "needs more than 0"),
    (["--device", "cuda", "--minutes", "many"], "needs more than 0"),
    (["--minutes", "3", "--rehearse"], "--minutes, --rehearse: needs --device cuda"),
    (["--report", "x"], "error: --report: needs --device cuda"), (["--only", "check"], "error: --only: needs --device cuda"),
    (["--part", "check"], "error: --part: needs --device cuda"), (["--gpu", "a:b"], "error: --gpu: needs --device cuda"),
    (["--sizes", "full", "--seconds", "0", "--without", "grid"],
     "error: --seconds, --sizes, --without: needs --device cuda"),
    (["--device", "cuda", "--report", "x", "--sizes", "small"], "--sizes: not used by --report"),
    (["--device", "cuda", "--architecture", "80"], "error: --architecture: needs --rehearse"),
    (["--device", "cuda", "--seconds", "3"], "error: --seconds: needs --part"),
    (["--device", "cuda", "--shape", "3,2,5,4", "--ladder"], "--shape, --ladder: not used by --device cuda"),
    (["--device", "cuda", "--report", "x", "--only", "check"], "--only: not used by --report"),
    (["--device", "cuda", "--rehearse", "--out", "x"], "--out: not used by --rehearse"),
    (["--provider", "no_such_module:Mine"], "got 'no_such_module:Mine', needs MODULE:CLASS: ModuleNotFoundError"),
    (["--provider", "rnn_ops_benchmarks.providers:Kernel"], "its name 'kernel' is taken")])
def test_what_cannot_be_asked_for_is_refused(arguments, words, capsys):
    assert rnn_ops(["bench", *arguments]) == 2
    printed, said = capsys.readouterr()
    assert printed == "" and words in said and len(said.splitlines()) == 1
