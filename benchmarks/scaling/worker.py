"""A process of a job that is measured. Run as a module with a job's description, this becomes the job or one of its roles.

A worker computes the training step of ``rnn-ops train`` with the exchange of ``rnn-ops train``, and notes the time on the way.
"""
import json
import multiprocessing.connection
import os
import sys
import time

from rnn_ops_timemachine import job, roles

from .. import problems, worker
from ..clock import time_calls


def main(description):
    """The exit status."""
    job.end_with_the_starter()
    asked = json.loads(description)
    role = os.environ.get("DMLC_ROLE")
    if asked["workers"] and not role:
        return job.run([sys.executable, "-m", __spec__.name, description], asked["workers"], asked["servers"]).status
    if asked["namespaces"]:
        from . import network
        network.enter_by_role(asked["namespaces"])
    place = roles.of_environment()
    if place and place.role != roles.WORKER:
        roles.serve(place)
        return 0
    measured = Worker(place, asked["threshold"])
    try:
        with multiprocessing.connection.Client(asked["address"], "AF_UNIX") as connection:
            connection.send(measured.rank)
            while True:
                name, arguments = connection.recv()
                answer = getattr(measured, name)(**arguments)
                worker.wait_for_threads()
                connection.send(answer)
    except EOFError:  # no more turns
        measured.close()
    return 0


class Worker:
    """Answers turns. Every worker of a job is given the same turns."""

    def __init__(self, place, threshold):
        from rnn_ops._mxnet import mx
        self.rank, self._exchange, self._mx, self._learners, self._arrays = 0, None, mx, {}, {}
        self._clock = _Clock(mx)
        if place:
            store, watch = roles.join(place, str)
            self._store = store
            self._exchange = _timed_exchange()(store, threshold=threshold, watch=watch)
            self._exchange.clock, self.rank = self._clock, store.rank

    def steps(self, shape, count, in_parts=False):
        """``count`` training steps → their losses; the moments of each by `_Clock` if ``in_parts``, else its seconds. The first
        step is not timed: the workers begin it one after the other. A job can have one shape and one count."""
        learner, problem = self._learner(tuple(shape), count, self._exchange)
        self._clock.moments, self._clock.on = [], in_parts
        losses, moments = [], []
        for loss in learner.train_epoch(problem.tokens, problem.labels, problems.LEARNING_RATE):
            losses.append(loss)
            self._clock.mark()
            moments.append(time.perf_counter())
        self._clock.on = False
        if in_parts:
            every = len(self._clock.moments) // count
            ends = self._clock.moments[every - 1::every]
            steps = [self._clock.moments[every * number:every * (number + 1)] for number in range(1, count)]
            return losses, [[begin, *step] for begin, step in zip(ends, steps)]
        return losses, [end - begin for begin, end in zip(moments, moments[1:])]

    def alone(self, shape, seconds):
        """Seconds of the training steps of this process alone."""
        learner, problem = self._learner(tuple(shape), 4, None)

        def steps():
            for _ in learner.train_epoch(problem.tokens, problem.labels, problems.LEARNING_RATE):
                pass
        return [found / problem.repeats for found in time_calls(steps, seconds)]

    def kvstore(self, size, dtype, count):
        """Seconds of ``count`` rounds of the KVStore with a vector of so many numbers."""
        nd, key = self._mx.nd, (size, dtype)
        if key not in self._arrays:
            self._arrays[key] = 100 + len(self._arrays), nd.zeros(size, dtype=dtype)
            self._store.init(*self._arrays[key])
        number, array = self._arrays[key]
        seconds = []
        for _ in range(count + 1):
            began = time.perf_counter()
            self._store.pushpull(number, array, out=array)
            array.wait_to_read()
            seconds.append(time.perf_counter() - began)
        return seconds[1:]

    def close(self):
        if self._exchange:
            self._store = None
            self._exchange.close()

    def _learner(self, shape, count, exchange):
        if (shape, count) not in self._learners:
            from rnn_ops.operators import native
            problem = problems.TrainingStep(problems.Shape(*shape, tokens=True), count)
            kind = _timed_learner()
            kind.clock = self._clock
            self._learners[shape, count] = kind(problem.parameters, native.rnn_sequence, exchange), problem
        return self._learners[shape, count]


class _Clock:
    """Notes the moments of a training step. It waits for all that is queued first: without that a moment would say when something
    was asked for, not when it was done. Moments of all processes of a machine can be compared."""

    def __init__(self, mx):
        self.on, self.moments, self._mx = False, [], mx

    def mark(self):
        if self.on:
            self._mx.nd.waitall()
            self.moments.append(time.perf_counter())


def _timed_exchange():
    from rnn_ops_timemachine import exchange

    class Timed(exchange.Workers):
        """The exchange of ``rnn-ops train``. Moments: the message is complete; the sum is there."""

        def _sum(self, key, arrays):
            self.clock.mark()
            super()._sum(key, arrays)
            self.clock.mark()
    return Timed


def _timed_learner():
    from rnn_ops_timemachine import training

    class Timed(training.Learner):
        """The learner of ``rnn-ops train``. Moments: the gradients are computed; their sum is where they were."""

        def _sum(self, losses, weights):
            self.clock.mark()
            loss = super()._sum(losses, weights)
            self.clock.mark()
            return loss
    return Timed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
