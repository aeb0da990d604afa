"""What mxnet_gpu.py checks and times: MXNet's arrays on a GPU and the operators on them. In the tests the CPU stands for it.

On a GPU of compute capability 9.0 MXNet 1.9.1 has no kernels of its own. So nothing here launches one, but for what says so:
arrays are copied from NumPy, gradients go to buffers that were copied there too (``attach_grad`` would fill them by a
kernel), every result is given a head gradient (autograd would fill the others). What is left that needs one is tried last:

- the guard of the native operator (operators/native/functions.py) with ``grad_req="add"``: the adding is MXNet's. With
  "write" its backward is a copy;
- the seeding of MXNet's random numbers, which it does for every native operator. It is not checked there whether that works.
"""
import math
import time
from typing import Callable, NamedTuple, Optional

import numpy as np
from rnn_ops._mxnet import mx
from rnn_ops.exactness import relative_error
from rnn_ops.operators import custom, native
from rnn_ops.operators.native import functions as native_functions

from .. import problems, trainers
from ..worker import BOUND, verify
from . import checks
from .cells import TUTORIAL

PASSED, FAILED, SKIPPED = "PASS", "FAIL", "SKIPPED"
SHAPES = ((5, 3, 7, 33), (3, 9, 5, 300), (64, 32, 77, 256))  # T, B, I, H
QUEUED = 300    # calls without waiting, each from the last one's state
CALLS = 20000   # that must leave the device's memory as it was ...
SETTLED = 1000  # ... after so many
TIMED = 200     # calls
_START = 0.5    # in every gradient before the first backward
_NO_KERNEL = ("no kernel image", "invalid device function")


class Place(NamedTuple):
    """Where the arrays are and what is true there."""
    context: mx.Context
    has_mxnet_kernels: bool                # False: compute capability 9.0 and newer
    backend: object                        # what has `forward` and `backward` on ``view``s: the bare kernels
    view: Callable                         # NDArray → the backend's array on the same memory ...
    address: Callable                      # ... and where that begins
    synchronize: Callable                  # wait for the bare kernels
    free_memory: Optional[Callable] = None  # bytes of the device


class Outcome(NamedTuple):
    what: str
    status: str
    reason: str = ""
    numbers: dict = {}

    def __str__(self):
        numbers = ", ".join(f"{name} {value:,.4g}" for name, value in self.numbers.items())
        return (f"{self.status:7} {self.what}" + (f": {self.reason}" if self.reason else "")
                + (f" ({numbers})" if numbers else ""))


class Wrong(Exception):
    """What a check has found."""


def gpu():
    """The `Place` of the first GPU; call it after `rnn_ops.backends.cuda.why_not`."""
    import cupy
    from rnn_ops.backends import cuda
    from rnn_ops.backends.cuda.launcher import Launcher
    from rnn_ops.operators import ndarray
    runtime = cuda.gpu(0)
    return Place(mx.gpu(0), runtime.device.compute_capability < 90, Launcher(runtime),
                 lambda array: runtime.view(ndarray.address(array), array.shape, array.dtype), runtime.address,
                 runtime.synchronize, lambda: cupy.cuda.runtime.memGetInfo()[0])


def attempt(place, what, body, *arguments):
    """``body(place, *arguments)`` → Outcome: its numbers, or what is wrong, or that a kernel of MXNet's own is missing."""
    try:
        return Outcome(what, PASSED, numbers=body(place, *arguments) or {})
    except Exception as error:  # whatever breaks belongs into the list
        text = " ".join(str(error).split())
        reason = text if isinstance(error, Wrong) else f"{type(error).__name__}: {text}"
        if not place.has_mxnet_kernels and any(words in text for words in _NO_KERNEL):
            return Outcome(what, SKIPPED, f"needs a kernel of MXNet's own, which has none for this GPU: {reason}"[:500])
        return Outcome(what, FAILED, reason[:500])


# --- the operators

def _unguarded(inputs, state, Wxh, Whh, bh, activation="tanh"):
    call, _ = native_functions._functions
    outputs, state = call(inputs, state, Wxh, Whh, bh, step="0", activation=activation,
                          wanted="01111" if inputs.dtype == np.int32 else "11111")
    return outputs, state


OPERATORS = {"CustomOp": custom.rnn_sequence, "native, unguarded": _unguarded, "native": native.rnn_sequence}


class Call:
    """An operator on a problem's arrays, copied to a place, with gradients to go to buffers copied there too.

    Parameters
    ----------
    place : Place
    operator : callable
        As `rnn_ops.rnn_sequence`.
    problem : checks.Problem
        With both gradients that arrive.
    grad_reqs : dict
        By name of an argument, where it is not "write".
    """

    def __init__(self, place, operator, problem, grad_reqs=None):
        self._place, self._operator, self._problem = place, operator, problem
        self.inputs, self.state, self.Wxh, self.Whh, self.bh, *self._heads = map(self._copy, problem.arrays)
        variables = {name: getattr(self, name) for name in ("state", "Wxh", "Whh", "bh")}
        if problem.inputs.ndim == 3:
            variables["inputs"] = self.inputs
        self.gradients = {name: self._copy(np.full(array.shape, _START, array.dtype)) for name, array in variables.items()}
        mx.autograd.mark_variables(list(variables.values()), list(self.gradients.values()),
                                   [(grad_reqs or {}).get(name, "write") for name in variables])

    def _copy(self, array):
        return mx.nd.array(array, ctx=self._place.context, dtype=array.dtype)

    def forward(self):
        return self._operator(self.inputs, self.state, self.Wxh, self.Whh, self.bh, activation=self._problem.activation)

    def both(self):
        with mx.autograd.record():
            results = self.forward()
        mx.autograd.backward(list(results), self._heads)
        return results


# --- what is checked. Each takes the place and returns a list of Outcomes.

def check_custom(place):
    """Values, gradients, every grad_req, memory in place."""
    return _check_operator(place, "CustomOp") + [attempt(place, "CustomOp: on MXNet's own memory", _in_place)]


def check_unguarded(place):
    """The native operator as it is called where nobody adds gradients up."""
    return _check_operator(place, "native, unguarded", ("write",))


def check_native(place):
    return _check_operator(place, "native")


def _check_operator(place, name, grad_reqs=("write", "null", "add")):
    found = []
    for grad_req in grad_reqs:
        for shape in SHAPES:
            for kind in ("tokens", "dense"):
                for dtype, activation in ((np.float32, "tanh"), (np.float32, "relu"), (np.float64, "tanh")):
                    problem = checks.draw(*shape, np.dtype(dtype), kind == "tokens", activation=activation)
                    what = (f"{name}: {'×'.join(map(str, shape))} {kind} {np.dtype(dtype)} {activation}, "
                            f"grad_req {grad_req}")
                    found.append(attempt(place, what, _values, OPERATORS[name], problem, grad_req))
    return found


def _values(place, operator, problem, grad_req):
    """Two calls and two backwards. "null" is asked of one argument and "add" of all."""
    names = ("state", "Wxh", "Whh", "bh", "inputs")
    call = Call(place, operator, problem, {"Whh": "null"} if grad_req == "null" else dict.fromkeys(names, grad_req))
    for _ in range(2):
        outputs, state = call.both()
    truth = checks.evaluate(problem.astype(np.float64))
    bound = checks.bounds(problem, truth)
    found = {"outputs": outputs.asnumpy(), **{"d" + name: array.asnumpy() for name, array in call.gradients.items()}}
    if not np.array_equal(state.asnumpy(), found["outputs"][-1]):
        raise Wrong("the last state is not the last of the outputs")
    if grad_req == "null" and not (found.pop("dWhh") == _START).all():
        raise Wrong("Whh's gradient was written, and nobody has asked for it")
    worst = 0
    for name, array in found.items():
        expected = _START + 2 * truth[name] if grad_req == "add" and name != "outputs" else truth[name]
        error = relative_error(array, expected)
        if not error <= bound[name]:
            raise Wrong(f"{name} has a relative error of {error:.1e}, allowed are {bound[name]:.1e}")
        worst = max(worst, error)
    return {"error": worst}


class _Watched:
    """A place of the operators' (operators/devices.py) that writes down where the arrays are that it computes on."""

    def __init__(self, place, address, seen):
        self._place, self._address, self._seen = place, address, seen

    def __getattr__(self, name):
        return getattr(self._place, name)

    def forward(self, *arrays, **options):
        self._seen.append([self._address(array) for array in arrays])
        self._place.forward(*arrays, **options)


def _in_place(place):
    from rnn_ops.operators import ndarray
    seen, device_for = [], custom.device_for
    custom.device_for = lambda context: _Watched(device_for(context), place.address, seen)
    try:
        call = Call(place, OPERATORS["CustomOp"], checks.draw(*SHAPES[0]))
        outputs, _ = call.forward()
        outputs.wait_to_read()
    finally:
        custom.device_for = device_for
    wanted = [ndarray.address(array) for array in (call.inputs, call.state, call.Wxh, call.Whh, call.bh, outputs)]
    if seen != [wanted]:
        raise Wrong(f"computed at {seen}, MXNet's arrays are at {wanted}")


def check_streams(place):
    """Calls queued one after the other, on arrays that are overwritten behind them: the bits of calls waited for."""
    return [attempt(place, f"{name}: {QUEUED} calls without waiting", _queued, operator)
            for name, operator in OPERATORS.items()]


def _queued(place, operator):
    def run(after_each):
        call = Call(place, operator, checks.draw(9, 5, 7, 70))
        tokens = [mx.nd.array((call.inputs.asnumpy() + n) % 7, ctx=place.context, dtype="int32") for n in range(3)]
        state, dWhh = call.state, []
        for n in range(QUEUED):
            tokens[n % 3].copyto(call.inputs)  # right behind the call that reads it
            outputs, last = call.both()
            last.copyto(state)
            if n % 50 == 49:
                dWhh.append(call.gradients["Whh"].copyto(place.context))
            after_each()
        return [array.asnumpy() for array in (outputs, state, *dWhh, *call.gradients.values())]

    hurried, patient = run(lambda: None), run(mx.nd.waitall)
    different = sum(checks.different_cells(*pair) for pair in zip(hurried, patient))
    if different or not all(np.isfinite(array).all() for array in patient):
        raise Wrong(f"{different} elements differ from those of calls that were waited for")


def check_memory(place):
    """Forward and backward, thousands of times."""
    if place.free_memory is None:
        return [Outcome("device memory", SKIPPED, "this is no GPU")]
    return [attempt(place, f"{name}: memory flat over {CALLS:,} calls", _flat, operator)
            for name, operator in OPERATORS.items()]


def _flat(place, operator):
    call = Call(place, operator, checks.draw(16, 32, 77, 256))

    def free_after(count):
        for n in range(count):
            call.both()
            if n % 100 == 99:
                mx.nd.waitall()  # or the queue itself would grow
        mx.nd.waitall()
        return place.free_memory()

    settled = free_after(SETTLED)
    lost = settled - free_after(CALLS - SETTLED)
    if lost > 0:
        raise Wrong(f"{lost:,} bytes of the device's memory are gone")


def check_cost(place):
    """What a call costs beside the kernels, at the workload's shape: µs a call, queued and waited for at the end."""
    return [attempt(place, "bare kernels: µs a call", _time_bare)] + [
        attempt(place, f"{name}: µs a call", _time_operator, operator) for name, operator in OPERATORS.items()]


def _time_operator(place, operator):
    call = Call(place, operator, checks.draw(*TUTORIAL))
    return {"forward": _time(call.forward, mx.nd.waitall), "forward+backward": _time(call.both, mx.nd.waitall),
            "forward, each waited for": _time(lambda: (call.forward(), mx.nd.waitall()), mx.nd.waitall)}


def _time_bare(place):
    problem = checks.draw(*TUTORIAL)
    arrays = [mx.nd.array(array, ctx=place.context, dtype=array.dtype) for array in (
        *problem.arrays, problem.doutputs, problem.state, problem.Wxh, problem.Whh, problem.bh)]
    mx.nd.waitall()
    inputs, state, Wxh, Whh, bh, doutputs, dlast, outputs, *gradients = map(place.view, arrays)

    def forward():
        place.backend.forward(inputs, state, Wxh, Whh, bh, outputs)

    def both():
        forward()
        place.backend.backward(inputs, state, Wxh, Whh, outputs, doutputs, dlast,
                               **dict(zip(("dstate", "dWxh", "dWhh", "dbh"), gradients)))
    return {"forward": _time(forward, place.synchronize), "forward+backward": _time(both, place.synchronize),
            "forward, each waited for": _time(lambda: (forward(), place.synchronize()), place.synchronize)}


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


def check_cudnn(place):
    """``mx.nd.RNN``, cuDNN on a GPU, on the one-hot rows of the same tokens, right and timed."""
    return [attempt(place, "mx.nd.RNN: µs a call", _cudnn)]


def _cudnn(place):
    problem = checks.draw(*TUTORIAL)
    V, H = problem.Wxh.shape
    one_hot = (problem.inputs[..., np.newaxis] == np.arange(V)).astype(np.float32)
    flat = np.concatenate([problem.Wxh.T.ravel(), problem.Whh.T.ravel(), problem.bh, np.zeros(H, np.float32)])
    inputs, weights, state, doutputs, dlast = (mx.nd.array(array, ctx=place.context) for array in (
        one_hot, flat, problem.state[np.newaxis], problem.doutputs, problem.dlast[np.newaxis]))
    gradients = [mx.nd.array(np.zeros(array.shape), ctx=place.context) for array in (weights, state)]
    mx.autograd.mark_variables([weights, state], gradients)

    def forward():
        return mx.nd.RNN(inputs, weights, state, state_size=H, num_layers=1, mode="rnn_tanh", state_outputs=True)

    def both():
        with mx.autograd.record():
            results = forward()
        mx.autograd.backward(results, [doutputs, dlast])
        return results

    outputs = both()[0].asnumpy()
    dweights, dstate = (array.asnumpy() for array in gradients)
    sizes = np.cumsum([V * H, H * H, H])
    dWxh, dWhh, dbh, _ = np.split(dweights, sizes)
    truth = checks.evaluate(problem.astype(np.float64))
    error = verify({"outputs": outputs, "dWxh": dWxh.reshape(H, V).T, "dWhh": dWhh.reshape(H, H).T, "dbh": dbh,
                    "dstate": dstate[0]}, truth)
    return {"forward": _time(forward, mx.nd.waitall), "forward+backward": _time(both, mx.nd.waitall), "error": error}


def check_training(place):
    """The tutorial's loop on the place, plain and with the operator in it. Both need MXNet's own kernels."""
    if not place.has_mxnet_kernels:
        return [Outcome("the tutorial's loop, before and after the swap", SKIPPED,
                        "it is MXNet's own kernels, which has none for this GPU")]
    problem = problems.TrainingStep(problems.TUTORIAL)
    return [attempt(place, f"the training loop, {trainer.name}: µs a batch", _train, trainer, problem)
            for trainer in (trainers.Tutorial, trainers.OursCustom, trainers.Ours)]


def _train(place, trainer_class, problem):
    with place.context:
        trainer = trainer_class(problem)
        step = trainer.calls[trainers.MODE]
        step()
        error = verify(trainer.results(trainers.MODE), problem.truth(trainers.MODE), BOUND)
        return {"batch": _time(step, mx.nd.waitall) / problem.repeats, "error": error}


# The surest first; what may need a kernel that MXNet has not, last.
CHECKS = (check_custom, check_cost, check_cudnn, check_training, check_memory, check_streams, check_unguarded, check_native)
