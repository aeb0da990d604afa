"""Trainings that are split over contexts and workers, for tests: jobs of real processes, and how near their losses must be to
those of one context."""
import contextlib
import os
import pickle
import subprocess
import sys
import tempfile

import numpy as np

from rnn_ops_timemachine import job, learners, parameters

# How far apart the losses of the same training may be, relatively, however it is split. After each of 15 epochs of the book at
# the default settings, on 2, 3, 4 workers or contexts, they were at most 3.5e-14 and 4.1e-5 apart.
CLOSE = {"float64": 1e-12, "float32": 1e-4}

_ROLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "parallel_workers.py")


def assert_close(losses, true, dtype):
    np.testing.assert_allclose(losses, true, rtol=CLOSE[dtype], atol=0)


def problem(T, B, H, V, batches=2, dtype="float64", seed=0):
    """First parameters by name, and tokens and labels (batches, T, B)."""
    random = np.random.RandomState(seed)
    arrays = {name: 20 * array.astype(dtype) for name, array in parameters.initialise(V, H, seed).items()}
    return arrays, random.randint(0, V, (batches, T, B)), random.randint(0, V, (batches, T, B))


def trained(arrays, inputs, labels, exchange=None, step="native", epochs=2, learning_rate=0.5):
    """Train → every loss, after each epoch also the loss on the same batches, and the last parameters."""
    learner, losses = learners.make(step, arrays, exchange), []
    for _ in range(epochs):
        losses += learner.train_epoch(inputs, labels, learning_rate)
        losses.append(learner.loss(inputs, labels))
    return np.array(losses, np.float64), learner.arrays()


def same_bits(one, other):
    """Whether two results of `trained` are the same to the bit."""
    return np.array_equal(one[0], other[0]) and all(np.array_equal(one[1][name], other[1][name]) for name in one[1])


def in_job(function, argument=None, workers=2, servers=1, **environment):
    """Call a function of parallel_workers.py, by its name, in every worker of a job → the results by rank."""
    with tempfile.TemporaryDirectory() as folder, _environment(environment):
        with open(os.path.join(folder, "argument"), "wb") as file:
            pickle.dump(argument, file)
        ended = job.run([sys.executable, _ROLES, folder, function], workers, servers)
        assert ended == job.Ended(0), ended
        results = []
        for rank in range(workers):
            with open(os.path.join(folder, str(rank)), "rb") as file:
                results.append(pickle.load(file))
        return results


def run_train(*options, timeout=300):
    """`rnn-ops train` in a process of its own → (exit status, stderr)."""
    done = subprocess.run([sys.executable, "-m", "rnn_ops", "train", *options], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, timeout=timeout)
    return done.returncode, done.stderr


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
