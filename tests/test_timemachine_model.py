"""The model's loss against the reference, and the training loop against a plain one."""
import numpy as np
import pytest

import rnn_ops
from rnn_ops import operators, reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import descent, model, network, training
from rnn_ops_timemachine.parameters import initialise, shapes

nd = mx.nd
V, H, T, B = 11, 13, 7, 5
STEPS = pytest.mark.parametrize(
    "rnn_sequence", [reference.rnn_sequence, rnn_ops.rnn_sequence], ids=["reference", "custom"])


def problem(dtype, batches=1):
    random = np.random.RandomState(3)
    arrays = {name: 30 * array for name, array in initialise(V, H, 5, dtype).items()}
    inputs, labels = (nd.array(random.randint(0, V, (batches, T, B)), dtype="int32") for _ in range(2))
    state = nd.array(random.randn(B, H), dtype=dtype)
    return model.trainable(arrays), inputs, labels, state


def test_parameters_depend_on_the_seed_alone():
    before = np.random.get_state()[1].copy()
    drawn = initialise(V, H, seed=5)
    assert (np.random.get_state()[1] == before).all()
    assert {name: array.shape for name, array in drawn.items()} == shapes(V, H)
    for name, array in initialise(V, H, seed=5, dtype="float64").items():
        assert array.dtype == np.float64 and (array.astype("float32") == drawn[name]).all()
    assert (initialise(V, H, seed=6)["Whh"] != drawn["Whh"]).all()
    large = initialise(500, 300, seed=0)["Wxh"]
    assert abs(large.mean()) < 1e-4 and abs(large.std() - 0.01) < 1e-4


@STEPS
@pytest.mark.parametrize("dtype, bound", [("float32", 2e-6), ("float64", 1e-13)])
def test_the_loss_and_its_gradients_are_the_references(rnn_sequence, dtype, bound):
    parameters, (tokens,), (labels,), state = problem(dtype)
    with mx.autograd.record():
        loss, last = model.loss(tokens, labels, state, parameters, rnn_sequence)
    loss.backward()
    gradients = [parameter.grad.asnumpy() for parameter in parameters]
    with mx.autograd.record():
        true_loss, true_last = reference.language_model_loss(tokens, labels, state, *parameters)
    true_loss.backward()
    assert loss.shape == (1,) and loss.dtype == last.dtype == np.dtype(dtype)
    np.testing.assert_allclose(loss.asnumpy(), true_loss.asnumpy(), rtol=bound)
    np.testing.assert_allclose(last.asnumpy(), true_last.asnumpy(), rtol=bound, atol=bound)
    for name, gradient, parameter in zip(parameters._fields, gradients, parameters):
        true = parameter.grad.asnumpy()
        assert np.abs(true).max() > 1e-3
        np.testing.assert_allclose(gradient, true, rtol=0, atol=bound * np.abs(true).max() * 5, err_msg=name)


def tutorials_epoch(parameters, inputs, labels, learning_rate):
    """The losses of the tutorial's own loop over the batches, by which the parameters learn."""
    state, losses = nd.zeros((B, H), dtype="float64"), []
    for tokens, targets in zip(inputs, labels):
        with mx.autograd.record():
            loss, state = reference.language_model_loss(tokens, targets, state, *parameters)
        loss.backward()
        reference.sgd(parameters, learning_rate)
        state = state.detach()
        losses.append(float(loss.asscalar()))
    return losses


@pytest.mark.parametrize("learner_of", [
    lambda arrays: training.Learner(arrays, operators.native.rnn_sequence),
    lambda arrays: training.Learner(arrays, operators.custom.rnn_sequence),
    lambda arrays: training.Learner(arrays, reference.rnn_sequence), network.Learner],
    ids=["native", "custom", "reference", "gluon"])
def test_what_a_run_trains_with_learns_as_the_tutorials_loop(learner_of):
    others, inputs, labels, _ = problem("float64", batches=4)
    learner = learner_of(model.arrays(others))
    for count, learning_rate in (4, 0.5), (2, 0.25):  # the memory of a static block is used again
        batches = inputs[:count], labels[:count]
        losses = list(learner.train_epoch(*batches, learning_rate))
        np.testing.assert_allclose(losses, tutorials_epoch(others, *batches, learning_rate), rtol=1e-12)
    for name, true in model.arrays(others).items():
        np.testing.assert_allclose(learner.arrays()[name], true, rtol=1e-10, atol=1e-13, err_msg=name)

    before, state, true = learner.arrays(), nd.zeros((B, H), dtype="float64"), []
    for tokens, targets in zip(inputs, labels):
        loss, state = reference.language_model_loss(tokens, targets, state, *model.trainable(before))
        true.append(loss.asscalar())
    for _ in range(2):  # the state begins with zeros each time
        np.testing.assert_allclose(learner.loss(inputs, labels), np.mean(true), rtol=1e-12)
    for name, array in learner.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("count, T, B", [(4, 7, 5), (1, 3, 2), (5, 1, 1)])
def test_batches_are_made_as_they_are_gone_through(monkeypatch, count, T, B):
    tokens = np.random.RandomState(0).randint(0, 200, (B, count, T)).astype(np.uint8).transpose(1, 2, 0)
    for block in 1, 2 * T * B, 1 << 20:
        monkeypatch.setattr(training, "_BLOCK", block)
        made = list(training.batches(tokens))
        assert len(made) == count and all(batch.dtype == np.int32 for batch in made)
        np.testing.assert_array_equal([batch.asnumpy() for batch in made], tokens)


def test_the_learning_rate_is_halved_at_every_100th_epoch():
    rates = {epoch: descent.learning_rate_of(epoch, 0.5) for epoch in (1, 99, 100, 199, 200, 2000)}
    assert rates == {1: 0.5, 99: 0.5, 100: 0.25, 199: 0.25, 200: 0.125, 2000: 0.5 / 2 ** 20}
    parameters, inputs, labels, _ = problem("float32")
    smallest = descent.learning_rate_of(10 ** 6, 0.5)
    learner = training.Learner(model.arrays(parameters), reference.rnn_sequence)
    assert len(list(learner.train_epoch(inputs, labels, smallest))) == 1


def test_the_moving_loss_begins_with_the_first():
    assert descent.moving_average(None, 4.0) == 4.0
    assert descent.moving_average(4.0, 2.0) == pytest.approx(3.98)


def test_a_loss_that_is_no_number_ends_the_epoch():
    parameters, inputs, labels, _ = problem("float32", batches=3)
    learner = training.Learner(model.arrays(parameters), reference.rnn_sequence)
    losses = learner.train_epoch(inputs, labels, 0.5)
    next(losses)
    learner.parameters.by[:] = np.nan
    with pytest.raises(FloatingPointError, match="the loss of batch 2 is nan"):
        next(losses)
    parameters, inputs, labels, _ = problem("float32", batches=2)
    with pytest.raises(FloatingPointError, match="the loss of batch 2 is"):
        list(training.Learner(model.arrays(parameters), reference.rnn_sequence).train_epoch(inputs, labels, 1e6))


def test_a_validation_loss_that_is_no_number_is_an_error():
    parameters, inputs, labels, _ = problem("float32", batches=2)
    learner = training.Learner(model.arrays(parameters), reference.rnn_sequence)
    learner.parameters.by[:] = np.nan
    with pytest.raises(FloatingPointError, match="the loss on the validation part is nan"):
        learner.loss(inputs, labels)


def test_parameters_that_are_no_numbers_are_not_copied_out():
    parameters, _, _, _ = problem("float32")
    parameters.Whh[2, 3] = np.inf
    with pytest.raises(FloatingPointError, match="Whh is no longer finite"):
        model.arrays(parameters)
