"""Are the operators right on MXNet's arrays in ``mx.gpu(0)``? Values, every grad_req, order of the queue, memory.

``rnn-ops check --device cuda`` asks this where MXNet is built for CUDA. In the tests the CPU stands in for the GPU.

MXNet 1.9.1 has no kernels of its own for compute capability 9.0. So nothing here launches one unless its comment says so:
arrays are copied from NumPy, gradients go to buffers copied there too (``attach_grad`` fills them by a kernel), and every
result gets a cotangent (autograd fills missing ones by a kernel). Two things still need MXNet's kernels and come last:

- the guard of the native operator with ``grad_req="add"``: MXNet does the adding. With "write" its backward is a copy;
- the seeding of MXNet's random numbers, which MXNet does for every native operator. Whether it works there is not checked.
"""
from typing import Callable, List, NamedTuple, Optional

import numpy as np

from rnn_ops import isolated
from rnn_ops._mxnet import mx
from rnn_ops.backends import cuda
from rnn_ops.exactness import Problem, bounds, different_cells, draw, evaluate, relative_error
from rnn_ops.operators import custom, native, ndarray

PASSED, FAILED, SKIPPED = "PASS", "FAIL", "SKIPPED"
SHAPES = ((5, 3, 7, 33), (3, 9, 5, 300), (64, 32, 77, 256))  # T, B, I, H
QUEUED = 300    # calls without waiting, each from the last one's state
CALLS = 20000   # calls that must not take more of the GPU's memory ...
SETTLED = 1000  # ... than these first ones
SECONDS = 600   # for one check
_START = 0.5    # in every gradient before the first backward
_NO_KERNEL = ("no kernel image", "invalid device function")


class Target(NamedTuple):
    """Where MXNet's arrays are, and the bare kernels there."""
    context: mx.Context
    has_mxnet_kernels: bool                # False: compute capability 9.0 and newer
    backend: object                        # the bare kernels: `forward` and `backward` on arrays that ``view`` gives
    view: Callable                         # NDArray → the backend's array on the same memory ...
    address: Callable                      # ... and its address
    synchronize: Callable                  # wait for the bare kernels
    free_memory: Optional[Callable] = None  # bytes of the GPU that are free


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
    """A sentence about a wrong result."""


def why_not() -> Optional[str]:
    """Why nothing can be checked here, as a sentence; None if it can be checked."""
    reason = cuda.why_not()
    if reason is None and mx.context.num_gpus() == 0:
        reason = f"this MXNet {mx.__version__} finds no GPU: it needs to be mxnet-cu112, which rnn_ops[cu112] brings"
    return reason


def gpu() -> Target:
    """The `Target` of the first GPU; call `why_not` first."""
    import cupy

    from rnn_ops.backends.cuda.launcher import Launcher
    runtime = cuda.gpu(0)
    return Target(mx.gpu(0), runtime.device.compute_capability < 90, Launcher(runtime),
                  lambda array: runtime.view(ndarray.address(array), array.shape, array.dtype), runtime.address,
                  runtime.synchronize, lambda: cupy.cuda.runtime.memGetInfo()[0])


def attempt(target, what: str, body: Callable, *arguments) -> Outcome:
    """``body(target, *arguments)`` → Outcome: its numbers, or the fault, or that MXNet lacks a kernel for this GPU."""
    try:
        return Outcome(what, PASSED, numbers=body(target, *arguments) or {})
    except Exception as error:  # every failure belongs into the list
        text = " ".join(str(error).split())
        reason = text if isinstance(error, Wrong) else f"{type(error).__name__}: {text}"
        if not target.has_mxnet_kernels and any(words in text for words in _NO_KERNEL):
            return Outcome(what, SKIPPED, f"MXNet has no kernel of its own for this GPU: {reason}"[:500])
        return Outcome(what, FAILED, reason[:500])


# --- the operators

def _unguarded(inputs, state, Wxh, Whh, bh, activation="tanh"):
    outputs, state = native.unguarded(inputs, state, Wxh, Whh, bh, step="0", activation=activation,
                                      wanted="01111" if inputs.dtype == np.int32 else "11111")
    return outputs, state


OPERATORS = {"CustomOp": custom.rnn_sequence, "native, unguarded": _unguarded, "native": native.rnn_sequence}


class Call:
    """An operator on a problem's arrays, copied to a target, with gradients that go to buffers copied there too.

    Parameters
    ----------
    target : Target
    operator : callable
        As `rnn_ops.rnn_sequence`.
    problem : exactness.Problem
        With both cotangents.
    grad_reqs : dict
        By name of an argument, where it is not "write".
    """

    def __init__(self, target, operator, problem, grad_reqs=None):
        self._target, self._operator, self._problem = target, operator, problem
        self.inputs, self.state, self.Wxh, self.Whh, self.bh, *self._cotangents = map(self._copy, problem.arrays)
        variables = {name: getattr(self, name) for name in ("state", "Wxh", "Whh", "bh")}
        if problem.inputs.ndim == 3:
            variables["inputs"] = self.inputs
        self.gradients = {name: self._copy(np.full(array.shape, _START, array.dtype)) for name, array in variables.items()}
        mx.autograd.mark_variables(list(variables.values()), list(self.gradients.values()),
                                   [(grad_reqs or {}).get(name, "write") for name in variables])

    def _copy(self, array):
        return mx.nd.array(array, ctx=self._target.context, dtype=array.dtype)

    def forward(self):
        return self._operator(self.inputs, self.state, self.Wxh, self.Whh, self.bh, activation=self._problem.activation)

    def both(self):
        with mx.autograd.record():
            results = self.forward()
        mx.autograd.backward(list(results), self._cotangents)
        return results


# --- the checks: each takes the target and returns a list of Outcomes

def check_custom(target) -> List[Outcome]:
    """Values, gradients, every grad_req, memory in target."""
    return _check_operator(target, "CustomOp") + [attempt(target, "CustomOp: on MXNet's own memory", _in_place)]


def check_unguarded(target) -> List[Outcome]:
    """The native operator without its guard, as it is called where no gradients are added up."""
    return _check_operator(target, "native, unguarded", ("write",))


def check_native(target) -> List[Outcome]:
    return _check_operator(target, "native")


def _check_operator(target, name, grad_reqs=("write", "null", "add")):
    found = []
    for grad_req in grad_reqs:
        for shape in SHAPES:
            for kind in ("tokens", "dense"):
                for dtype, activation in ((np.float32, "tanh"), (np.float32, "relu"), (np.float64, "tanh")):
                    problem = draw(*shape, np.dtype(dtype), kind == "tokens", activation=activation)
                    what = (f"{name}: {'×'.join(map(str, shape))} {kind} {np.dtype(dtype)} {activation}, "
                            f"grad_req {grad_req}")
                    found.append(attempt(target, what, _values, OPERATORS[name], problem, grad_req))
    return found


def _values(target, operator, problem: Problem, grad_req):
    """Two calls and two backwards. "null" goes to one argument and "add" to all."""
    names = ("state", "Wxh", "Whh", "bh", "inputs")
    call = Call(target, operator, problem, {"Whh": "null"} if grad_req == "null" else dict.fromkeys(names, grad_req))
    for _ in range(2):
        outputs, state = call.both()
    truth = evaluate(problem.astype(np.float64))
    limits = bounds(problem, truth)
    found = {"outputs": outputs.asnumpy(), **{"d" + name: array.asnumpy() for name, array in call.gradients.items()}}
    if not np.array_equal(state.asnumpy(), found["outputs"][-1]):
        raise Wrong("the last state is not the last of the outputs")
    if grad_req == "null" and not (found.pop("dWhh") == _START).all():
        raise Wrong("Whh's gradient was written, although its grad_req is null")
    worst = 0
    for name, array in found.items():
        expected = _START + 2 * truth[name] if grad_req == "add" and name != "outputs" else truth[name]
        error = relative_error(array, expected)
        if not error <= limits[name]:
            raise Wrong(f"{name} has a relative error of {error:.1e}, the bound is {limits[name]:.1e}")
        worst = max(worst, error)
    return {"error": worst}


class _Watched:
    """A device of devices.py that writes down the addresses of the arrays that it computes on."""

    def __init__(self, device, address, seen):
        self._device, self._address, self._seen = device, address, seen

    def __getattr__(self, name):
        return getattr(self._device, name)

    def forward(self, *arrays, **options):
        self._seen.append([self._address(array) for array in arrays])
        self._device.forward(*arrays, **options)


def _in_place(target):
    seen, device_for = [], custom.device_for
    custom.device_for = lambda context: _Watched(device_for(context), target.address, seen)
    try:
        call = Call(target, OPERATORS["CustomOp"], draw(*SHAPES[0]))
        outputs, _ = call.forward()
        outputs.wait_to_read()
    finally:
        custom.device_for = device_for
    wanted = [ndarray.address(array) for array in (call.inputs, call.state, call.Wxh, call.Whh, call.bh, outputs)]
    if seen != [wanted]:
        raise Wrong(f"computed at {seen}, MXNet's arrays are at {wanted}")


def check_streams(target) -> List[Outcome]:
    """Calls queued one after the other, on arrays that are overwritten behind them, give the bits of calls waited for."""
    return [attempt(target, f"{name}: {QUEUED} calls without waiting", _queued, operator)
            for name, operator in OPERATORS.items()]


def _queued(target, operator):
    def run(after_each):
        call = Call(target, operator, draw(9, 5, 7, 70))
        tokens = [mx.nd.array((call.inputs.asnumpy() + n) % 7, ctx=target.context, dtype="int32") for n in range(3)]
        state, dWhh = call.state, []
        for n in range(QUEUED):
            tokens[n % 3].copyto(call.inputs)  # right behind the call that reads them
            outputs, last = call.both()
            last.copyto(state)
            if n % 50 == 49:
                dWhh.append(call.gradients["Whh"].copyto(target.context))
            after_each()
        return [array.asnumpy() for array in (outputs, state, *dWhh, *call.gradients.values())]

    hurried, patient = run(lambda: None), run(mx.nd.waitall)
    different = sum(different_cells(*pair) for pair in zip(hurried, patient))
    if different or not all(np.isfinite(array).all() for array in patient):
        raise Wrong(f"{different} elements differ from those of calls that were waited for")


def check_memory(target) -> List[Outcome]:
    """Forward and backward, thousands of times."""
    if target.free_memory is None:
        return [Outcome("the GPU's memory", SKIPPED, "this is no GPU")]
    return [attempt(target, f"{name}: memory flat over {CALLS:,} calls", _flat, operator)
            for name, operator in OPERATORS.items()]


def _flat(target, operator):
    call = Call(target, operator, draw(16, 32, 77, 256))

    def free_after(count):
        for n in range(count):
            call.both()
            if n % 100 == 99:
                mx.nd.waitall()  # or the queue itself would grow
        mx.nd.waitall()
        return target.free_memory()

    settled = free_after(SETTLED)
    taken = settled - free_after(CALLS - SETTLED)
    if taken > 0:
        raise Wrong(f"{taken:,} bytes of the GPU's memory are gone")


# The surest first; the checks that may need a kernel of MXNet's last.
CHECKS = (check_custom, check_memory, check_streams, check_unguarded, check_native)
SHORT = (check_custom, check_unguarded, check_native)  # values alone


def run(report: Callable[[Outcome], None], checks=CHECKS, make_target=gpu) -> None:
    """Each check in a process of its own: MXNet ends a process where one of its own threads meets an exception, and one
    check must not make the next one fail. ``report`` gets every Outcome at once."""
    for check in checks:
        why_not = isolated.run(_send, check, make_target, seconds=SECONDS, report=report)
        if why_not:
            report(Outcome(check.__name__, FAILED, why_not))


def _send(send, check, make_target):
    for outcome in check(make_target()):
        send(outcome)
