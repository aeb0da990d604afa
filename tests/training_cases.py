"""A small training and the same in NumPy, for the tests of learners that need no MXNet."""
import numpy as np

from rnn_ops import numpy_reference
from rnn_ops_timemachine import descent, parameters

WORDS = "the cat sat on the mat and the dog ran after the cat until the cat ran up a tree. "


def problem(dtype, batches=3, T=5, B=3, V=7, H=19):
    random = np.random.default_rng(1)
    inputs, labels = (random.integers(V, size=(batches, T, B), dtype=np.int32) for _ in range(2))
    arrays = parameters.initialise(V, H, 0, dtype)
    return {name: 30 * array for name, array in arrays.items()}, inputs, labels  # 30: so that every parameter matters


def descend(arrays, inputs, labels, epochs):
    """Stochastic gradient descent in NumPy → losses (epochs, batches), parameters."""
    arrays, losses = dict(arrays), []
    for epoch in range(1, epochs + 1):
        state = np.zeros((inputs.shape[2], len(arrays["bh"])), arrays["bh"].dtype)
        for tokens, targets in zip(inputs, labels):
            loss, gradients = numpy_reference.language_model_gradients(tokens, targets, state, **arrays)
            state = numpy_reference.forward(tokens, state, arrays["Wxh"], arrays["Whh"], arrays["bh"])[-1]
            rate = descent.learning_rate_of(epoch, 0.5)
            arrays = {name: array - rate * gradients[name] for name, array in arrays.items()}
            losses.append(loss)
    return np.reshape(losses, (epochs, -1)), arrays


def train(learner, inputs, labels, epochs):
    return np.array([list(learner.train_epoch(inputs, labels, descent.learning_rate_of(epoch, 0.5)))
                     for epoch in range(1, epochs + 1)])
