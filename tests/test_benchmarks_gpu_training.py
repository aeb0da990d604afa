"""The training part of the GPU benchmark on a CPU: the same code on NumPy arrays and the emulator of the CUDA kernels."""
import json
import sys
import types

import numpy as np
import pytest
from rnn_ops_benchmarks import folder, gpu_report, gpu_training, gpu_work
from rnn_ops_benchmarks.rehearsal import made_up

from emulated_gpu import EmulatedGpu
from rnn_ops.backends import cpu
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.selftest import checks
from rnn_ops_timemachine import data, parameters, text
from test_timemachine_cuda import WORDS, descend

BOOK = text.Text("words", WORDS * 3, "here", "")


# --- what is measured

def measure(gpu, epochs=4):
    return gpu_training.measure(gpu, BOOK, epochs, T=5, B=3, H=19)


@pytest.mark.slow
def test_measure():
    gpu, shown = EmulatedGpu(), []
    found = gpu_training.measure(gpu, BOOK, 4, lambda *what: shown.append(what), T=5, B=3, H=19)
    assert found["failed"] == [] and gpu.recordings == 1
    assert [(way["way"], way["status"]) for way in found["ways"]] == [(gpu_training.LAUNCHES, "ok"), (gpu_training.GRAPH, "ok")]
    batches = (len(BOOK.characters) - 1) // 15
    assert found["batches"] == batches and found["V"] == len(set(WORDS))
    assert all(way["error"] < 1e-5 for way in found["ways"])
    assert found["tokens_per_second"] == pytest.approx(4 * batches * 15 / found["seconds"])
    assert len(found["losses"]) == 4 and found["losses"][-1] < found["losses"][0]
    assert shown == [(4, pytest.approx(found["losses"][-1], rel=1e-6))]
    assert len(found["sample"]) == len(gpu_training._PROMPT) + gpu_training._LENGTH and 0 <= found["known_words"] <= 1
    json.dumps(found)


@pytest.mark.slow
def test_the_losses_are_those_of_the_ways_own_epochs():
    """2 epochs of `descend` from the first parameters: what measure() reports, start to end."""
    found = measure(EmulatedGpu(), epochs=2)
    vocabulary = data.Vocabulary(BOOK.characters)
    inputs, labels = data.batches(vocabulary.encode(BOOK.characters), 5, 3)
    arrays = {name: array.astype("float64") for name, array in parameters.initialise(len(vocabulary), 19, seed=0).items()}
    true, _ = descend(arrays, inputs, labels, 2)
    np.testing.assert_allclose(found["losses"], true.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("defect, sentence", [
    ("other bits", "launch by launch: "), ("wrong", "launch by launch: a loss is off by a relative "),
    ("diverges", "launch by launch: FloatingPointError: training has diverged: the loss of batch 1 is "),
    ("cannot record", "a graph an epoch: RuntimeError: operation not permitted when stream is capturing")])
@pytest.mark.slow
def test_what_is_wrong_is_told(defect, sentence):
    with np.errstate(all="ignore"):
        found = measure(EmulatedGpu(defect=defect))
    assert any(failed.startswith(sentence) for failed in found["failed"]), found["failed"]
    if defect == "other bits":
        assert len(found["failed"]) == 1 and "losses and parameters differ between two runs" in found["failed"][0]
    if defect == "cannot record":
        assert found["way"] == gpu_training.LAUNCHES and "seconds" in found
    if defect == "diverges":
        assert "seconds" not in found
    json.dumps(found)


@pytest.mark.slow
def test_a_gpu_that_no_longer_answers_is_lost():
    class Gone(EmulatedGpu):
        def recorded(self, call):
            self.to_device = None
            raise RuntimeError("an illegal memory access")

    with pytest.raises(checks.GpuLost, match="training, a graph an epoch: "):
        measure(Gone())


def result():
    return dict(made_up(), rows=[], training=measure(EmulatedGpu()))


@pytest.mark.slow
def test_table():
    its = result()
    lines = gpu_report.markdown(its).splitlines()
    begins = next(number for number, line in enumerate(lines) if line.startswith("**Training**"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begins:] if line.startswith("|")]
    assert [row[0] for row in table[:5]] == [
        "launched", ":--", gpu_training.LAUNCHES, gpu_training.GRAPH, f"**4 epochs, {its['training']['way']}**"]
    assert table[2][1] == f"{its['training']['ways'][0]['tokens_per_second']:,.0f}"
    assert any(line.startswith("**Training**, words, T×B×V×H = 5×3×") for line in lines)
    its["training"]["ways"][1] = {"way": gpu_training.GRAPH, "status": "failed", "reason": "a | b"}
    assert r"failed: a \| b" in gpu_report.markdown(its)
    assert "Training" not in gpu_report.markdown(dict(its, training=None))


@pytest.mark.slow
def test_the_books_first_epochs_are_those_of_rnn_ops_train(book):
    """At the tutorial's shape, with the kernels of the CPU for the recurrence. The losses are the README's."""
    def without_variant(function):  # which the CPU has none of
        return lambda *arrays, variant, **options: function(*arrays, **options)

    gpu = EmulatedGpu()
    gpu.launcher = types.SimpleNamespace(forward=without_variant(cpu.forward), backward=without_variant(cpu.backward))
    found = gpu_training.measure(gpu, book, epochs=2)
    assert found["failed"] == [] and (found["T"], found["B"], found["V"], found["H"]) == (64, 32, 77, 256)
    assert max(way["error"] for way in found["ways"]) < gpu_training.BOUND / 3
    assert found["losses"] == pytest.approx([3.3658, 3.0317], abs=6e-5)


# --- the part of the command

@pytest.fixture
def work(monkeypatch, tmp_path):
    """A function of a gpu → (exit status, what was kept)."""
    monkeypatch.setattr(text, "load", lambda name: BOOK)
    results = folder.Folder(str(tmp_path))
    results.make()

    def run(gpu):
        status = gpu_work._training(gpu_work.Work("training", results, gpu, "small", 60, variants.FAMILIES))
        return status, results.read(folder.RESULTS, "training")
    return run


@pytest.mark.slow
def test_the_part_of_the_command(work):
    status, its = work(EmulatedGpu())
    assert status == gpu_work.DONE and its["epochs"] == 3 and its["failed"] == []
    status, its = work(EmulatedGpu(defect="cannot record"))
    assert status == gpu_work.FOUND and its["failed"][0].startswith("a graph an epoch: RuntimeError")


def test_without_the_workload_it_says_how_to_get_it(work, monkeypatch):
    import rnn_ops_timemachine
    monkeypatch.delattr(rnn_ops_timemachine, "text")
    monkeypatch.setitem(sys.modules, "rnn_ops_timemachine.text", None)
    with pytest.raises(gpu_work.LeftOut, match="in a clone, set PYTHONPATH=python"):
        work(EmulatedGpu())


def test_a_text_that_cannot_be_had_is_a_sentence(work, monkeypatch):
    def load(name):
        raise ValueError("text: timemachine.txt is not timemachine")
    monkeypatch.setattr(text, "load", load)
    status, its = work(EmulatedGpu())
    assert status == gpu_work.FOUND and its == {"failed": ["ValueError: text: timemachine.txt is not timemachine"]}


@pytest.mark.slow
def test_a_text_that_is_not_the_book_is_told(work, monkeypatch):
    monkeypatch.setattr(text, "load", lambda name: BOOK._replace(notice="the book is not here"))
    _, its = work(EmulatedGpu())
    assert "NOT THE BOOK: the book is not here" in gpu_report.headline("training", its)
