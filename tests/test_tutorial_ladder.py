"""From the tutorial's loop to ours, rung by rung: every edit keeps the loss and the gradients."""
import sys

import numpy as np
import pytest
from rnn_ops_benchmarks import ladder, measure, problems, rungs
from rnn_ops_benchmarks.rungs import RUNGS
from rnn_ops_benchmarks.worker import FAILED, OK

from rnn_ops import numpy_reference, reference
from rnn_ops._mxnet import mx
from rnn_ops.gradcheck import relative_error
from rnn_ops_cli.main import main
from rnn_ops_timemachine import model
from rnn_ops_timemachine.parameters import initialise

pytestmark = pytest.mark.slow

nd = mx.nd
T, B, V, H = 7, 5, 11, 13
BATCHES, LEARNING_RATE, BOUND = 3, 0.5, 1e-10
ALL = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name.replace(" ", "_"))


@pytest.fixture(scope="module")
def arrays():
    """(tokens, labels) of some batches, the state before the first and the parameters, which are large enough to bend tanh."""
    random = np.random.RandomState(3)
    tokens, labels = random.randint(0, V, (2, BATCHES, T, B)).astype(np.int32)
    parameters = {name: 30 * array for name, array in initialise(V, H, 5, "float64").items()}
    return tokens, labels, random.uniform(-1, 1, (B, H)), parameters


@pytest.fixture(scope="module")
def truth(arrays):
    """By name and batch, in NumPy: the loss, the gradients and the state after it."""
    all_tokens, all_labels, state, parameters = arrays
    found = {}
    for batch, (tokens, labels) in enumerate(zip(all_tokens, all_labels)):
        loss, gradients = numpy_reference.language_model_gradients(tokens, labels, state, **parameters)
        state = numpy_reference.forward(tokens, state, *(parameters[name] for name in ("Wxh", "Whh", "bh")))[-1]
        parameters = {name: parameters[name] - LEARNING_RATE * gradient for name, gradient in gradients.items()}
        found.update({f"{name} {batch}": array for name, array in gradients.items()})
        found.update({f"loss {batch}": np.array([loss]), f"state {batch}": state})
    return found


def trained(rung, arrays, together=lambda rows: rows):
    """The same names by a rung, in the tutorial's training loop: the state goes on as it is, never detached."""
    all_tokens, all_labels, state, parameters = arrays
    parameters, state = model.trainable(parameters), nd.array(state, dtype="float64")
    compute, found = rung.make(V), {}
    for batch, (tokens, labels) in enumerate(zip(all_tokens, all_labels)):
        inputs, labels = map(together, rung.batch(*(nd.array(a, dtype="int32") for a in (tokens, labels)), V, "float64"))
        with mx.autograd.record():
            loss, state = compute(inputs, labels, state, parameters)
            loss.backward()
        found.update((f"{name} {batch}", array.grad.asnumpy()) for name, array in parameters._asdict().items())
        found.update({f"loss {batch}": loss.asnumpy(), f"state {batch}": state.asnumpy()})
        reference.sgd(parameters, LEARNING_RATE)
    return found


def assert_same(found, wanted):
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    assert len(errors) == 7 * BATCHES and max(errors.values()) <= BOUND, errors
    assert min(np.abs(wanted[name]).max() for name in wanted) > 1e-3


@ALL
@pytest.mark.usefixtures("operator")
def test_every_rung_is_the_tutorials_training_step(rung, arrays, truth):
    assert_same(trained(rung, arrays), truth)


@ALL
def test_one_hot_rows_of_a_batch_in_one_array(rung, arrays, truth):
    """The tutorial cuts its batches from one array (batches, T, B, V): its loop walks through an array, not a list."""
    assert_same(trained(rung, arrays, lambda rows: nd.stack(*rows) if isinstance(rows, list) else rows), truth)


@ALL
@pytest.mark.usefixtures("operator")
def test_the_gradient_of_the_first_state(rung, arrays):
    (tokens, *_), (labels, *_), state, parameters = arrays
    gradients = []
    for one in (rung, RUNGS[0]):
        first = nd.array(state, dtype="float64")
        first.attach_grad()
        inputs, targets = one.batch(nd.array(tokens, dtype="int32"), nd.array(labels, dtype="int32"), V, "float64")
        with mx.autograd.record():
            loss, _ = one.make(V)(inputs, targets, first, model.trainable(parameters))
        loss.backward()
        gradients.append(first.grad.asnumpy())
    assert np.abs(gradients[1]).max() > 1e-3
    assert relative_error(*gradients) <= BOUND


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_the_networks_outputs_are_the_same_at_any_temperature(temperature, arrays):
    """They are what the tutorial samples from."""
    (tokens, *_), _, state, parameters = arrays
    rows = list(nd.one_hot(nd.array(tokens, dtype="int32"), V, dtype="float64"))
    arguments = rows, nd.array(state, dtype="float64"), model.trainable(parameters)
    outputs, last = rungs.simple_rnn(*arguments, temperature)
    for network in (rungs.simple_rnn_of_steps, rungs.simple_rnn_of_a_sequence, rungs.simple_rnn_without_a_loop):
        others, other_last = network(*arguments, temperature)
        assert len(others) == T and relative_error(other_last.asnumpy(), last.asnumpy()) <= BOUND
        for other, output in zip(others, outputs):
            assert relative_error(other.asnumpy(), output.asnumpy()) <= BOUND


def test_every_rung_is_verified_and_timed():
    rows = ladder.measure_rungs(problems.Shape(3, 2, 5, 4, tokens=True), 1, 0.001)
    assert [row["provider"] for row in rows][3:] == [f"{number} {rung.name}" for number, rung in enumerate(RUNGS)]
    for row in rows:
        assert row["status"] == OK, row
    lines = ladder.table(rows).splitlines()
    assert len(lines) == 2 + len(RUNGS) + 1 and {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80


def row(provider, seconds, direction="training step"):
    return {"provider": provider, "direction": direction, "status": OK, "best": seconds, "median": 1.2 * seconds}


WRONG = {"provider": "2 wrong", "direction": "training step", "status": FAILED, "reason": "wrong result: no loss"}


def test_the_table_of_known_times():
    rows = [row("multiply-adds", 1.0, "peak"), row("sgemm", 1.0, "gemm"), row(measure.FLOOR, 0.004), row("0 slow", 0.05),
            row("1 fast", 0.01), WRONG]
    assert ladder.table(rows).splitlines() == [
        "| rung    | best, ms | median, ms | times as fast |",
        "| :------ | -------: | ---------: | ------------: |",
        "| 0 slow  |     50.0 |       60.0 |           1.0 |",
        "| 1 fast  |     10.0 |       12.0 |           5.0 |",
        "| 2 wrong |          |            |        failed |",
        "| floor   |     4.00 |       4.80 |          12.5 |",
        "",
        "2 wrong: wrong result: no loss"]
    rows = [WRONG, rows[4], dict(WRONG, provider="3 wrong too")]
    assert ladder.table(rows).splitlines()[2:] == [
        "| 2 wrong     |          |            |        failed |",
        "| 1 fast      |     10.0 |       12.0 |               |",
        "| 3 wrong too |          |            |        failed |",
        "",
        "2 wrong, 3 wrong too: wrong result: no loss"]


def test_the_command(monkeypatch, capsys):
    """Its exit status says whether every rung was right."""
    def measured(shape, rounds, seconds):
        assert (shape, rounds) == (problems.TUTORIAL, 3)
        return rows

    monkeypatch.setattr(ladder, "measure_rungs", measured)
    for rows, status in (([row("0 slow", 0.05)], 0), ([row("0 slow", 0.05), WRONG], 1)):
        assert main(["bench", "--ladder", "--rounds", "3"]) == status
        printed = capsys.readouterr().out
        assert "T=64, B=32, V=77, H=256" in printed and ladder.table(rows) in printed
        assert max(map(len, printed.splitlines())) <= 80
    assert main(["bench", "--ladder", "--quick"]) == 2
    assert "--quick: not used by --ladder" in capsys.readouterr().err


def test_the_command_without_figures(monkeypatch, capsys):
    def measured(shape, rounds, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "measure_rungs", measured)
    assert main(["bench", "--ladder"]) == 130
    assert capsys.readouterr() == ("", "rnn-ops: interrupted\n")
    monkeypatch.setitem(sys.modules, "rnn_ops.operators", None)  # as where there is no MXNet
    assert main(["bench", "--ladder"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rnn-ops: error: ") and len(err.splitlines()) == 1
