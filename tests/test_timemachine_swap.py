"""The swap: one training loop, on the real book, with the reference's recurrence and with ours."""
import numpy as np
import pytest

import rnn_ops
from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import data, network, parameters, training


def losses(book, rnn_sequence, dtype, epochs, batches=None):
    """The loss of every batch of a training run that starts where every other one does, (epochs · batches,)."""
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = (mx.nd.array(tokens[:batches], dtype="int32")
                      for tokens in data.batches(vocabulary.encode(book.characters), 64, 32))
    learner = training.Learner(parameters.initialise(len(vocabulary), 256, seed=0, dtype=dtype), rnn_sequence)
    return np.array([loss for _ in range(epochs)
                     for loss in learner.train_epoch(inputs, labels, 0.5)])


@pytest.mark.parametrize("dtype, epochs, batches, bound", [
    pytest.param("float64", 1, 20, 1e-9, id="float64-20_batches"),
    pytest.param("float32", 3, 87, 1e-3, id="float32-3_epochs", marks=pytest.mark.slow),
])
def test_only_the_step_function_changes(book, dtype, epochs, batches, bound):
    ours = losses(book, rnn_ops.rnn_sequence, dtype, epochs, batches)
    true = losses(book, reference.rnn_sequence, dtype, epochs, batches)
    assert len(true) == epochs * batches and np.isfinite(true).all()
    assert true[-1] < 0.9 * true[0]  # something was learnt, so that gradients have mattered
    worst = np.abs(ours - true) / true
    assert worst.max() <= bound, f"relative difference {worst.max():.2e} at batch {worst.argmax()} of {len(true)}"


@pytest.mark.parametrize("dtype, epochs, batches, bound", [
    pytest.param("float64", 1, 20, 1e-9, id="float64-20_batches"),
    pytest.param("float32", 3, 87, 1e-3, id="float32-3_epochs", marks=pytest.mark.slow),
])
def test_a_training_in_pytorch_learns_the_same(book, dtype, epochs, batches, bound):
    """As the native operator in float64. MXNet's output layer in float32 is 3 % away from that at batch 203."""
    pytest.importorskip("torch")
    from rnn_ops_timemachine import torch_training
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = (tokens[:batches] for tokens in data.batch_views(
        vocabulary.encode(book.characters, vocabulary.dtype), 64, 32))
    learner = torch_training.Learner(parameters.initialise(len(vocabulary), 256, seed=0, dtype=dtype))
    ours = np.array([loss for _ in range(epochs) for loss in learner.train_epoch(inputs, labels, 0.5)])
    true = losses(book, rnn_ops.rnn_sequence, "float64", epochs, batches)
    assert len(ours) == len(true) == epochs * batches and true[-1] < 0.9 * true[0]
    assert (np.abs(ours - true) / true).max() <= bound


@pytest.mark.slow
def test_the_gluon_network_learns_the_same(book):
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = (mx.nd.array(tokens[:40], dtype="int32")
                      for tokens in data.batches(vocabulary.encode(book.characters), 64, 32))
    learner = network.Learner(parameters.initialise(len(vocabulary), 256, seed=0))
    ours = np.array([loss for _ in range(3) for loss in learner.train_epoch(inputs, labels, 0.5)])
    true = losses(book, reference.rnn_sequence, "float32", 3, 40)
    assert len(ours) == len(true) == 120 and true[-1] < 0.9 * true[0]
    assert (np.abs(ours - true) / true).max() <= 1e-3
