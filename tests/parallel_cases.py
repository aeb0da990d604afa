"""Jobs of several processes for tests, and how near their losses must be to those of one process.

Run as a program this file is one role of such a job; a worker calls a function of a test file.
"""
import contextlib
import importlib
import os
import pickle
import sys

import numpy as np

from rnn_ops_timemachine import job, learners, parameters, roles

# How far apart the losses of the same training may be, split in different ways. Each was measured on the book at the tutorial's
# shape: 15 epochs at most 1.4e-13 and 4.7e-5 apart. Rounding grows with training; a wrong row or weight is 1e-3 in one step.
CLOSE = {"float64": 1e-12, "float32": 2e-4}


def assert_same_losses(losses, true, dtype):
    np.testing.assert_allclose(losses, true, rtol=CLOSE[dtype], atol=0)


def problem(T, B, H, V, batches=2, dtype="float64", seed=0):
    """First parameters by name, and tokens and labels (batches, T, B)."""
    random = np.random.RandomState(seed)
    arrays = {name: 20 * array.astype(dtype) for name, array in parameters.initialise(V, H, seed).items()}
    return arrays, random.randint(0, V, (batches, T, B)), random.randint(0, V, (batches, T, B))


def trained(arrays, inputs, labels, exchange=None, step="native", epochs=1, learning_rate=0.5):
    """Train → every loss, with the loss on the same batches after each epoch, and the parameters."""
    learner = learners.make(step, arrays, exchange)
    losses = []
    for _ in range(epochs):
        losses += learner.train_epoch(inputs, labels, learning_rate)
        losses.append(learner.loss(inputs, labels))
    return losses, learner.arrays()


def run_job(function, argument=None, workers=2, servers=1, **environment):
    """Call a function in every worker of a job with the KVStore and an argument → the results by rank."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder, _environment(environment):
        with open(os.path.join(folder, "argument"), "wb") as file:
            pickle.dump(argument, file)
        command = [sys.executable, os.path.abspath(__file__), folder, function.__module__, function.__name__]
        ended = job.run(command, workers, servers)
        assert ended == job.Ended(0), ended
        results = []
        for rank in range(workers):
            with open(os.path.join(folder, str(rank)), "rb") as file:
                results.append(pickle.load(file))
        return results


@contextlib.contextmanager
def _environment(changes):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _be_a_role(folder, module, function):
    job.end_with_the_starter()
    place = roles.of_environment()
    if place.role != roles.WORKER:
        roles.serve(place)
        return
    store, watch = roles.join(place, str)
    with open(os.path.join(folder, "argument"), "rb") as file:
        argument = pickle.load(file)
    result = getattr(importlib.import_module(module), function)(store, argument)
    with open(os.path.join(folder, str(store.rank)), "wb") as file:
        pickle.dump(result, file)
    store._barrier()
    watch.stop()


if __name__ == "__main__":
    _be_a_role(*sys.argv[1:])
