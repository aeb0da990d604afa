"""The operators on MXNet's arrays in ``mx.gpu(0)``, timed: beside the bare kernels, mx.nd.RNN (cuDNN), the tutorial's loop.

rnn_ops/operators/selftest.py checks that they are right. Only what says so launches a kernel of MXNet's own, since MXNet 1.9.1
has none for compute capability 9.0. In the tests the CPU stands in for the GPU.
"""
import time

import numpy as np
from rnn_ops._mxnet import mx
from rnn_ops.exactness import draw, evaluate
from rnn_ops.operators.selftest import OPERATORS, SKIPPED, Call, Outcome, attempt

from .. import problems, trainers
from ..worker import BOUND, verify
from .cells import TUTORIAL

TIMED = 200  # calls


def time_cost(target):
    """What a call costs beside the kernels, at the workload's shape: µs a call, queued and waited for at the end."""
    return [attempt(target, "bare kernels: µs a call", _time_bare)] + [
        attempt(target, f"{name}: µs a call", _time_operator, operator) for name, operator in OPERATORS.items()]


def _time_operator(target, operator):
    call = Call(target, operator, draw(*TUTORIAL))
    return {"forward": _time(call.forward, mx.nd.waitall), "forward+backward": _time(call.both, mx.nd.waitall),
            "forward, each waited for": _time(lambda: (call.forward(), mx.nd.waitall()), mx.nd.waitall)}


def _time_bare(target):
    problem = draw(*TUTORIAL)
    arrays = [mx.nd.array(array, ctx=target.context, dtype=array.dtype) for array in (
        *problem.arrays, problem.doutputs, problem.state, problem.Wxh, problem.Whh, problem.bh)]
    mx.nd.waitall()
    inputs, state, Wxh, Whh, bh, doutputs, dlast_state, outputs, *gradients = map(target.view, arrays)

    def forward():
        target.backend.forward(inputs, state, Wxh, Whh, bh, outputs)

    def both():
        forward()
        target.backend.backward(inputs, state, Wxh, Whh, outputs, doutputs, dlast_state,
                               **dict(zip(("dstate", "dWxh", "dWhh", "dbh"), gradients)))
    return {"forward": _time(forward, target.synchronize), "forward+backward": _time(both, target.synchronize),
            "forward, each waited for": _time(lambda: (forward(), target.synchronize()), target.synchronize)}


def _time(call, wait):
    """µs a call, the median of five turns."""
    for _ in range(3):
        call()
    wait()
    turns = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(TIMED // 5):
            call()
        wait()
        turns.append(1e6 * (time.perf_counter() - began) / (TIMED // 5))
    return float(np.median(turns))


def time_cudnn(target):
    """``mx.nd.RNN``, cuDNN on a GPU, on the one-hot rows of the same tokens, right and timed."""
    return [attempt(target, "mx.nd.RNN: µs a call", _cudnn)]


def _cudnn(target):
    problem = draw(*TUTORIAL)
    V, H = problem.Wxh.shape
    one_hot = (problem.inputs[..., np.newaxis] == np.arange(V)).astype(np.float32)
    flat = np.concatenate([problem.Wxh.T.ravel(), problem.Whh.T.ravel(), problem.bh, np.zeros(H, np.float32)])
    inputs, weights, state, doutputs, dlast_state = (mx.nd.array(array, ctx=target.context) for array in (
        one_hot, flat, problem.state[np.newaxis], problem.doutputs, problem.dlast_state[np.newaxis]))
    gradients = [mx.nd.array(np.zeros(array.shape), ctx=target.context) for array in (weights, state)]
    mx.autograd.mark_variables([weights, state], gradients)

    def forward():
        return mx.nd.RNN(inputs, weights, state, state_size=H, num_layers=1, mode="rnn_tanh", state_outputs=True)

    def both():
        with mx.autograd.record():
            results = forward()
        mx.autograd.backward(results, [doutputs, dlast_state])
        return results

    outputs = both()[0].asnumpy()
    dweights, dstate = (array.asnumpy() for array in gradients)
    sizes = np.cumsum([V * H, H * H, H])
    dWxh, dWhh, dbh, _ = np.split(dweights, sizes)
    truth = evaluate(problem.astype(np.float64))
    error = verify({"outputs": outputs, "dWxh": dWxh.reshape(H, V).T, "dWhh": dWhh.reshape(H, H).T, "dbh": dbh,
                    "dstate": dstate[0]}, truth)
    return {"forward": _time(forward, mx.nd.waitall), "forward+backward": _time(both, mx.nd.waitall), "error": error}


def time_training(target):
    """The tutorial's loop on the target, plain and with the operator in it. Both need MXNet's own kernels."""
    if not target.has_mxnet_kernels:
        return [Outcome("the tutorial's loop, before and after the swap", SKIPPED,
                        "MXNet has no kernels of its own for this GPU")]
    problem = problems.TrainingStep(problems.TUTORIAL)
    return [attempt(target, f"the training loop, {trainer.name}: µs a batch", _train, trainer, problem)
            for trainer in (trainers.Tutorial, trainers.OursCustom, trainers.Ours)]


def _train(target, trainer_class, problem):
    with target.context:
        trainer = trainer_class(problem)
        step = trainer.calls[trainers.MODE]
        step()
        error = verify(trainer.results(trainers.MODE), problem.truth(trainers.MODE), BOUND)
        return {"batch": _time(step, mx.nd.waitall) / problem.repeats, "error": error}


PARTS = (time_cost, time_cudnn, time_training)
