"""MXNet's arrays in ``mx.gpu(0)``, by the clock on the wall: our operators, the bare kernels, mx.nd.RNN (cuDNN), training steps.

rnn_ops/operators/selftest.py checks that the operators are right. Only a provider of training steps launches kernels of MXNet's
own, since MXNet 1.9.1 has none for compute capability 9.0. In the tests the CPU stands in for the GPU.
"""
from functools import partial

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.exactness import draw, evaluate
from rnn_ops.operators import selftest
from rnn_ops.operators.selftest import OPERATORS, Call, attempt

from . import providers, trainers
from .clock import by_the_wall
from .problems import BOTH, FORWARD, TRAINING, TUTORIAL, TrainingStep
from .worker import FAILED, NOT_OFFERED, OK, verify

_SECONDS = 0.2  # of calls that are waited for together


def measure(target, name):
    """Rows of one of PROVIDERS at the tutorial's shape, a `selftest.Target`'s."""
    input_, body = PROVIDERS[name]
    row = {"stage": TUTORIAL.sizes, "shape": list(TUTORIAL[:4]), "input": input_, "provider": name, "family": "MXNet",
           "variant": f"mxnet {mx.__version__}", "chosen": False}
    outcome = attempt(target, name, body)
    if outcome.status != selftest.PASSED:
        return [dict(row, direction=None, reason=outcome.reason,
                     status=NOT_OFFERED if outcome.status == selftest.SKIPPED else FAILED)]
    return [dict(row, direction=direction, status=OK, **figures) for direction, figures in outcome.numbers.items()]


def _timed(calls, wait):
    return {direction: by_the_wall(lambda _, call=call: call(), wait, _SECONDS) for direction, call in calls.items()}


def _operator(function, target):
    call = Call(target, function, draw(*TUTORIAL[:4]))
    return _timed({FORWARD: call.forward, BOTH: call.both}, mx.nd.waitall)


def _kernels(target):
    problem = draw(*TUTORIAL[:4])
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

    return _timed({FORWARD: forward, BOTH: both}, target.synchronize)


def _cudnn(target):
    problem = draw(*TUTORIAL[:4])
    I, H = problem.Wxh.shape
    one_hot = (problem.inputs[..., np.newaxis] == np.arange(I)).astype(np.float32)
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
    dWxh, dWhh, dbh, _ = np.split(dweights, np.cumsum([I * H, H * H, H]))
    error = verify({"outputs": outputs, "dWxh": dWxh.reshape(H, I).T, "dWhh": dWhh.reshape(H, H).T, "dbh": dbh,
                    "dstate": dstate[0]}, evaluate(problem.astype(np.float64)))
    return {direction: dict(figures, error=error) for direction, figures in _timed(
        {FORWARD: forward, BOTH: both}, mx.nd.waitall).items()}


def _training(trainer, target):
    if not target.has_mxnet_kernels:
        raise RuntimeError("no kernel image: MXNet's own are needed")
    problem = TrainingStep(TUTORIAL)
    with target.context:
        made = trainer(problem)
        made.calls[TRAINING]()
        error = verify(made.results(TRAINING), problem.truth(TRAINING))
        figures = _timed({TRAINING: made.calls[TRAINING]}, mx.nd.waitall)[TRAINING]
    return {TRAINING: {**{name: seconds / problem.repeats for name, seconds in figures.items()}, "error": error}}


# Name: input, and a function of the target → {direction: columns of the row}. The surest come first.
PROVIDERS = {
    providers.KERNEL: ("tokens", _kernels),
    **{name: ("tokens", partial(_operator, function)) for name, function in OPERATORS.items()},
    "mx.nd.RNN": ("one-hot", _cudnn),
    **{f"training with {trainer.name}": (input_, partial(_training, trainer)) for trainer, input_ in (
        (trainers.Tutorial, "one-hot"), (trainers.OursCustom, "tokens"), (trainers.Ours, "tokens"))}}
