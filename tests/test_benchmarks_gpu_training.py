"""The whole training of benchmarks/gpu/training.py on a CPU: the same code on NumPy arrays and the kernels' own sources."""
import json
import sys
import types

import numpy as np
import pytest
from cuda_host import Host
from rnn_ops.backends import cpu
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops import numpy_reference
from rnn_ops_benchmarks.gpu import checks, folder, tables, training
from rnn_ops_benchmarks.gpu import work as gpu_work
from rnn_ops_benchmarks.gpu.rehearsal import made_up
from rnn_ops_timemachine import data, model, text
from rnn_ops_timemachine import training as timemachine_training

WORDS = "the cat sat on the mat and the dog ran after the cat until the cat ran up a tree. "
BOOK = text.Text("words", WORDS * 3, "here", "")


class HostMachine:
    """What training.py needs of a GPU, on the machine of tests/cuda_host. ``defect`` names what is wrong with it."""
    xp = np

    def __init__(self, architecture=90, defect=None):
        self.device, self.defect = variants.known_device(architecture, 16), defect
        self.runtime = Host(self.device)
        self._multiply, self.products, self.recordings = self.runtime.multiply, 0, 0
        self.runtime.multiply = self.multiply
        self.launcher = Launcher(self.runtime)

    def multiply(self, a, b, out, **how):
        self._multiply(a, b, out, **how)
        self.products += 1
        if self.defect == "other bits" and self.products == 50:
            out[0, 0] += 1e-6
        if self.defect == "wrong":
            out *= 1.1
        if self.defect == "diverges":
            out *= 1e30

    def recorded(self, call):
        if self.defect == "cannot record":
            raise RuntimeError("operation not permitted\n when stream is capturing")
        self.recordings += 1
        call()  # once before it is captured
        return call

    def to_device(self, array):
        return array.copy()

    to_host = for_truth = to_device

    def wait(self):
        pass


def problem(dtype, batches=3, T=5, B=3, V=7, H=19):
    random = np.random.default_rng(1)
    inputs, labels = (random.integers(V, size=(batches, T, B), dtype=np.int32) for _ in range(2))
    arrays = {name: 30 * array for name, array in training.initial(V, H, dtype).items()}  # so that all of it matters
    return arrays, inputs, labels


def descend(arrays, inputs, labels, epochs):
    """Stochastic gradient descent in NumPy → losses (epochs, batches), parameters."""
    arrays, losses = dict(arrays), []
    for epoch in range(1, epochs + 1):
        state = np.zeros((inputs.shape[2], len(arrays["bh"])), arrays["bh"].dtype)
        for tokens, targets in zip(inputs, labels):
            loss, gradients = numpy_reference.language_model_gradients(tokens, targets, state, **arrays)
            state = numpy_reference.forward(tokens, state, arrays["Wxh"], arrays["Whh"], arrays["bh"])[-1]
            arrays = {name: array - training.learning_rate_of(epoch) * gradients[name] for name, array in arrays.items()}
            losses.append(loss)
    return np.reshape(losses, (epochs, -1)), arrays


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.slow
def test_several_epochs_are_those_of_numpy(architecture, dtype, bound):
    arrays, inputs, labels = problem(dtype)
    true, true_arrays = descend({name: array.astype("float64") for name, array in arrays.items()}, inputs, labels, 4)
    assert true[-1].mean() < 0.9 * true[0].mean()
    machine = HostMachine(architecture)
    trainer = training.Trainer(machine, arrays, inputs, labels)
    losses = training.train(trainer, machine, trainer.epoch, 4)
    assert losses.dtype == dtype and losses.shape == (4, 3)
    assert np.abs(losses - true).max() < bound
    found = trainer.arrays()
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert np.abs(array - true_arrays[name]).max() < bound, name
    assert np.array_equal(training.true_losses(machine, arrays, inputs, labels, 4), true)


@pytest.mark.slow
def test_one_step_is_the_gradient_of_the_mean_loss():
    arrays, inputs, labels = problem("float64", batches=1)
    loss, gradients = numpy_reference.language_model_gradients(inputs[0], labels[0], np.zeros((3, 19)), **arrays)
    trainer = training.Trainer(HostMachine(), arrays, inputs, labels)
    trainer.set_learning_rate(0.25)
    trainer.epoch()
    assert trainer.losses[0] == pytest.approx(loss, rel=1e-13)
    for name, array in trainer.arrays().items():
        np.testing.assert_allclose((arrays[name] - array) / 0.25, gradients[name], atol=1e-13)


@pytest.mark.slow
def test_a_rate_of_zero_changes_nothing_and_a_start_is_a_new_one():
    arrays, inputs, labels = problem("float32")
    machine = HostMachine()
    trainer = training.Trainer(machine, arrays, inputs, labels)
    trainer.epoch()
    assert all(np.array_equal(trainer.arrays()[name], array) for name, array in arrays.items())
    first = training.train(trainer, machine, trainer.epoch, 2)
    trainer.start(arrays)
    assert np.array_equal(training.train(trainer, machine, trainer.epoch, 2), first)


@pytest.mark.slow
def test_few_launches_a_batch_and_the_recurrence_is_the_choosers():
    arrays, inputs, labels = problem("float32", batches=1)
    machine = HostMachine()
    training.Trainer(machine, arrays, inputs, labels).epoch()
    families = [launch.kernel.family for launch in machine.runtime.launches]
    assert families == [variants.choose(machine.device, np.float32, 3, 19).family] * 2 + ["sums"] * 2
    assert machine.products == 5


def test_a_row_far_below_another_has_a_finite_loss():
    """Where softmax underflows its logarithm does not."""
    arrays, inputs, labels = problem("float32", batches=1)
    arrays["by"][0] = 1000
    machine = HostMachine()
    trainer = training.Trainer(machine, arrays, inputs, labels)
    trainer.epoch()
    assert np.isfinite(trainer.losses).all() and trainer.losses[0] > 500


def test_what_rnn_ops_train_does_is_done_here():
    for V, H in (77, 256), (5, 3):
        theirs = model.initialise(V, H, seed=0)
        ours = training.initial(V, H)
        assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert all(training.learning_rate_of(epoch) == timemachine_training.learning_rate_of(epoch, 0.5)
               for epoch in range(1, 2001))


# --- what is measured

def measure(machine, epochs=4):
    return training.measure(machine, BOOK, epochs, T=5, B=3, H=19)


@pytest.mark.slow
def test_measure():
    machine, shown = HostMachine(), []
    found = training.measure(machine, BOOK, 4, lambda *what: shown.append(what), T=5, B=3, H=19)
    assert found["failed"] == [] and machine.recordings == 1
    assert [(way["way"], way["status"]) for way in found["ways"]] == [(training.LAUNCHES, "ok"), (training.GRAPH, "ok")]
    batches = (len(BOOK.characters) - 1) // 15
    assert found["batches"] == batches and found["V"] == len(set(WORDS))
    assert all(way["error"] < 1e-5 for way in found["ways"])
    assert found["tokens_per_second"] == pytest.approx(4 * batches * 15 / found["seconds"])
    assert len(found["losses"]) == 4 and found["losses"][-1] < found["losses"][0]
    assert shown == [(4, pytest.approx(found["losses"][-1], rel=1e-6))]
    assert len(found["sample"]) == len(training._PROMPT) + training._LENGTH and 0 <= found["known_words"] <= 1
    json.dumps(found)


@pytest.mark.slow
def test_the_losses_are_those_of_the_ways_own_epochs():
    """2 epochs of `descend` from the first parameters: what measure() reports, start to end."""
    found = measure(HostMachine(), epochs=2)
    vocabulary = data.Vocabulary(BOOK.characters)
    inputs, labels = data.batches(vocabulary.encode(BOOK.characters), 5, 3)
    arrays = {name: array.astype("float64") for name, array in training.initial(len(vocabulary), 19).items()}
    true, _ = descend(arrays, inputs, labels, 2)
    np.testing.assert_allclose(found["losses"], true.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("defect, sentence", [
    ("other bits", "launch by launch: "), ("wrong", "launch by launch: a loss is off by a relative "),
    ("diverges", "launch by launch: FloatingPointError: training has diverged: the loss of epoch 2 is nan"),
    ("cannot record", "a graph an epoch: RuntimeError: operation not permitted when stream is capturing")])
@pytest.mark.slow
def test_what_is_wrong_is_told(defect, sentence):
    with np.errstate(all="ignore"):
        found = measure(HostMachine(defect=defect))
    assert any(failed.startswith(sentence) for failed in found["failed"]), found["failed"]
    if defect == "other bits":
        assert len(found["failed"]) == 1 and "losses and parameters differ between two runs" in found["failed"][0]
    if defect == "cannot record":
        assert found["way"] == training.LAUNCHES and "seconds" in found
    if defect == "diverges":
        assert "seconds" not in found
    json.dumps(found)


@pytest.mark.slow
def test_a_machine_that_answers_no_more_is_lost():
    class Gone(HostMachine):
        def recorded(self, call):
            self.to_device = None
            raise RuntimeError("an illegal memory access")

    with pytest.raises(checks.Lost, match="training, a graph an epoch: "):
        measure(Gone())


def result():
    return dict(made_up(), rows=[], training=measure(HostMachine()))


@pytest.mark.slow
def test_table():
    its = result()
    lines = tables.markdown(its).splitlines()
    begins = next(number for number, line in enumerate(lines) if line.startswith("**Training**"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begins:] if line.startswith("|")]
    assert [row[0] for row in table] == [
        "launched", ":--", training.LAUNCHES, training.GRAPH, f"**4 epochs, {its['training']['way']}**"]
    assert table[2][1] == f"{its['training']['ways'][0]['tokens_per_second']:,.0f}"
    assert any(line.startswith("**Training**, words, T×B×V×H = 5×3×") for line in lines)
    its["training"]["ways"][1] = {"way": training.GRAPH, "status": "failed", "reason": "a | b"}
    assert r"failed: a \| b" in tables.markdown(its)
    assert "Training" not in tables.markdown(dict(its, training=None))


@pytest.mark.slow
def test_the_books_first_epochs_are_those_of_rnn_ops_train(book):
    """At the tutorial's shape, with the kernels of the CPU for the recurrence. The losses are the README's."""
    def without_variant(function):  # which the CPU has none of
        return lambda *arrays, variant, **options: function(*arrays, **options)

    machine = HostMachine()
    machine.launcher = types.SimpleNamespace(forward=without_variant(cpu.forward), backward=without_variant(cpu.backward))
    found = training.measure(machine, book, epochs=2)
    assert found["failed"] == [] and (found["T"], found["B"], found["V"], found["H"]) == (64, 32, 77, 256)
    assert max(way["error"] for way in found["ways"]) < training.BOUND / 3
    assert found["losses"] == pytest.approx([3.3658, 3.0317], abs=6e-5)


# --- the part of the command

@pytest.fixture
def work(monkeypatch, tmp_path):
    """A function of a machine → (exit status, what was kept)."""
    monkeypatch.setattr(text, "load", lambda name: BOOK)
    results = folder.Folder(str(tmp_path))
    results.make()

    def run(machine):
        status = gpu_work._training(gpu_work.Work("training", results, machine, "small", 60, variants.FAMILIES))
        return status, results.read(folder.RESULTS, "training")
    return run


@pytest.mark.slow
def test_the_part_of_the_command(work):
    status, its = work(HostMachine())
    assert status == gpu_work.DONE and its["epochs"] == 3 and its["failed"] == []
    status, its = work(HostMachine(defect="cannot record"))
    assert status == gpu_work.FOUND and its["failed"][0].startswith("a graph an epoch: RuntimeError")


def test_without_the_workload_it_says_how_to_get_it(work, monkeypatch):
    import rnn_ops_timemachine
    monkeypatch.delattr(rnn_ops_timemachine, "text")
    monkeypatch.setitem(sys.modules, "rnn_ops_timemachine.text", None)
    with pytest.raises(gpu_work.LeftOut, match="in a clone, set PYTHONPATH=python"):
        work(HostMachine())


def test_a_text_that_cannot_be_had_is_a_sentence(work, monkeypatch):
    def load(name):
        raise ValueError("text: timemachine.txt is not timemachine")
    monkeypatch.setattr(text, "load", load)
    status, its = work(HostMachine())
    assert status == gpu_work.FOUND and its == {"failed": ["ValueError: text: timemachine.txt is not timemachine"]}


@pytest.mark.slow
def test_a_text_that_is_not_the_book_is_told(work, monkeypatch):
    monkeypatch.setattr(text, "load", lambda name: BOOK._replace(notice="the book is not here"))
    _, its = work(HostMachine())
    assert "NOT THE BOOK: the book is not here" in tables.headline("training", its)
